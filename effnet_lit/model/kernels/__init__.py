"""Triton kernels that fuse BatchNorm and SiLU into the depthwise convolution and the gate of MBConv."""
