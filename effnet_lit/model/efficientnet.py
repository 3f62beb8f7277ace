"""EfficientNet from scratch (arXiv 1905.11946): MBConv blocks (arXiv 1801.04381) with squeeze-and-excitation
(arXiv 1709.01507), B0 as the paper's table 1, the others by compound scaling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from effnet_lit.model.checkpointing import MODES, recomputed
from effnet_lit.model.cpu.conv_norm import fused_conv_norm
from effnet_lit.model.cpu.depthwise import DepthwiseConv2d
from effnet_lit.model.cpu.frozen import frozen_mbconv
from effnet_lit.model.cpu.mbconv import fused_mbconv
from effnet_lit.model.cpu.step import in_step
from effnet_lit.model.cpu.suits import suits, suits_frozen
from effnet_lit.model.kernels.mbconv import (
    covers,
    covers_head,
    covers_stem,
    head_with_kernels,
    mbconv_with_kernels,
)
from effnet_lit.model.padding import SamePaddingConv2d
from effnet_lit.model.relu6 import ReLU6
from effnet_lit.model.scaling import LITE, SCALES, scale_channels, scale_repeats


class Stage(NamedTuple):
    """One row of the table: ``repeats`` MBConv blocks, the first with ``stride``."""

    expand: int
    kernel: int
    stride: int
    channels: int
    repeats: int


STEM_CHANNELS = 32
HEAD_FACTOR = 4  # head channels per channel of the last stage: 320 -> 1280
B0_STAGES = (
    #     expand kernel stride channels repeats      out size at 224
    Stage(1, 3, 1, 16, 1),  #                      112
    Stage(6, 3, 2, 24, 2),  #                       56
    Stage(6, 5, 2, 40, 2),  #                       28
    Stage(6, 3, 2, 80, 3),  #                       14
    Stage(6, 5, 1, 112, 3),  #                      14
    Stage(6, 5, 2, 192, 4),  #                       7
    Stage(6, 3, 1, 320, 1),  #                       7
)


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm and, unless ``activation`` is off, SiLU, in Lite0 ReLU6; settings as ``EfficientNet``.

    In training where BatchNorm is frozen, the two are one convolution of a scaled kernel: a pass over the activations
    less, and of them the raw ones are not kept for backward.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        settings: dict[str, Any],
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        same = settings["padding"] == "same" and stride > 1  # at 1 both are the same
        convolution = SamePaddingConv2d if same else DepthwiseConv2d if groups > 1 else nn.Conv2d
        padding = 0 if same else kernel // 2
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        eps, momentum = settings["batchnorm_eps"], settings["batchnorm_momentum"]
        self.norm = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)
        if activation:
            self.act = ReLU6() if settings.get("name") == LITE else nn.SiLU()  # in place, autograd would keep a copy

    def forward(self, input: Tensor) -> Tensor:
        return self.activated(self.convolved(input))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Kernel, scale and shift."""
        return self.conv.weight, self.norm.weight, self.norm.bias

    def folded(self) -> bool:
        """Whether BatchNorm is part of the convolution: in training, where it is frozen."""
        return self.training and not self.norm.training

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution; BatchNorm too, where it is frozen."""
        if not self.folded():
            return self.conv(x)
        return self.conv._conv_forward(x, *self.folded_tensors())

    def folded_tensors(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the convolution that does what both do where BatchNorm is frozen."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        # PyTorch's fuse_conv_bn_weights makes new parameters, from which no gradient comes back.
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - mean * scale

    def activated(self, raw: Tensor) -> Tensor:
        """What follows: BatchNorm, unless it is frozen, and the activation, if there is one."""
        y = raw if self.folded() else self.norm(raw)
        return self.act(y) if hasattr(self, "act") else y


def conv_norm(layer: ConvNorm, x: Tensor, gradient_checkpointing: str) -> Tensor:
    """``layer(x)``, with activation, the way that suits device and mode."""
    if suits(layer, x):
        return fused_conv_norm(layer, x)
    if gradient_checkpointing == "off":
        return layer(x)
    return recomputed(layer.activated, layer.convolved(x), layer)


def mean_over_space(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 1, 1). Half precision sums in float32: 112 x 112 values overflow fp16."""
    if in_step(x):  # else the gradient is not in channels_last, and mixed layouts take longer
        return x.permute(0, 2, 3, 1).mean((1, 2), keepdim=True).permute(0, 3, 1, 2)
    return x.mean((2, 3), keepdim=True, dtype=torch.float32 if x.dtype == torch.float16 else None).to(x.dtype)


class SqueezeExcite(nn.Module):
    """Weighs channels by a gate computed from their means: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(functional.silu(self.reduce(mean_over_space(x))))
        return x * torch.sigmoid(gate)


class MBConv(nn.Module):
    """Expand 1x1, depthwise k x k, squeeze-and-excite, project 1x1; skip where the shapes match.

    The squeeze is a quarter of the block's input channels, not of the expanded ones.
    """

    def __init__(
        self, in_channels: int, stage: Stage, stride: int, drop_path_rate: float, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        hidden = in_channels * stage.expand
        self.expand = ConvNorm(in_channels, hidden, 1, settings) if stage.expand > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, stage.kernel, settings, stride, groups=hidden)
        gated = settings.get("name") != LITE
        self.squeeze_excite: Any = SqueezeExcite(hidden, max(1, in_channels // 4)) if gated else nn.Identity()
        self.project = ConvNorm(hidden, stage.channels, 1, settings, activation=False)
        self.has_skip = stride == 1 and in_channels == stage.channels
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")  # arXiv 1603.09382
        self.gradient_checkpointing = "off"
        self.kernels = False

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.block, x, self) if self.gradient_checkpointing == "blocks" else self.block(x)

    def block(self, x: Tensor) -> Tensor:
        """The whole block, the way that suits device and mode."""
        if suits(self, x):
            return fused_mbconv(self, x)
        if suits_frozen(self, x):
            return frozen_mbconv(self, x)
        if self.kernels and covers(self, x):
            return mbconv_with_kernels(self, x)
        y = self.body_of_raw(x) if self.gradient_checkpointing == "activations" else self.body(x)
        return x + self.drop_path(y) if self.has_skip else y

    def body(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return self.project(self.squeeze_excite(self.depthwise(self.expand(x))))

    def body_of_raw(self, x: Tensor) -> Tensor:
        """``body``, which keeps the raw outputs of its convolutions only; BatchNorm, SiLU and gate are recomputed."""
        depthwise = self.depthwise.convolved
        if isinstance(self.expand, ConvNorm):
            expand = self.expand
            raw = recomputed(lambda raw: depthwise(expand.activated(raw)), expand.convolved(x), expand)
        else:
            raw = depthwise(x)
        raw = recomputed(lambda raw: self.project.convolved(self.gated(raw)), raw, self.depthwise)
        return self.project.activated(raw)

    def gated(self, raw: Tensor) -> Tensor:
        """From the depthwise convolution's raw output to the projection's input."""
        return self.squeeze_excite(self.depthwise.activated(raw))


class EfficientNet(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes).

    Args:
        name: efficientnet_b0 to efficientnet_b7, or efficientnet_lite0: B0 without squeeze-and-excitation and with
            ReLU6 (github.com/tensorflow/tpu, efficientnet/lite).
        drop_path_rate: chance to skip the last block's body; falls linearly to 0 at the first block.
        batchnorm_eps, batchnorm_momentum, padding: 1e-5, 0.1 and "symmetric" in PyTorch's checkpoints; 1e-3, 0.01 and
            "same" in those that come from TensorFlow.
    """

    def __init__(
        self,
        name: str = "efficientnet_b0",
        num_classes: int = 1000,
        dropout_rate: float = 0.2,
        drop_path_rate: float = 0.2,
        batchnorm_eps: float = 1e-5,
        batchnorm_momentum: float = 0.1,
        padding: str = "symmetric",
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "name": name,
            "num_classes": num_classes,
            "dropout_rate": dropout_rate,
            "drop_path_rate": drop_path_rate,
            "batchnorm_eps": batchnorm_eps,
            "batchnorm_momentum": batchnorm_momentum,
            "padding": padding,
        }
        settings, scale = self.architecture, SCALES[name]
        channels = scale_channels(STEM_CHANNELS, scale.width)
        self.stem = ConvNorm(3, channels, 3, settings, stride=2)
        repeats = [scale_repeats(stage.repeats, scale.depth) for stage in B0_STAGES]
        rates = iter(drop_path_rate * i / sum(repeats) for i in range(sum(repeats)))
        stages = []
        for row, count in zip(B0_STAGES, repeats, strict=True):
            stage = row._replace(channels=scale_channels(row.channels, scale.width))
            blocks = []
            for i in range(count):
                blocks.append(MBConv(channels, stage, stage.stride if i == 0 else 1, next(rates), settings))
                channels = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = ConvNorm(channels, HEAD_FACTOR * channels, 1, settings)
        self.dropout = nn.Dropout(dropout_rate)
        self.classifier = nn.Linear(HEAD_FACTOR * channels, num_classes)
        self.gradient_checkpointing = "off"
        initialise(self)

    def blocks(self) -> Iterator[MBConv]:
        """All MBConv blocks from the input to the output."""
        for stage in self.stages:
            assert isinstance(stage, nn.Sequential)
            for block in stage:
                assert isinstance(block, MBConv)
                yield block

    def set_gradient_checkpointing(self, mode: str) -> None:
        """What a training step keeps for backward: "off" everything; "activations" the convolutions' raw outputs, and
        BatchNorm, SiLU and gate are computed again; "blocks" each block's input, and the whole block again.

        On a CPU in full precision all three keep less than elsewhere: see ``cpu``. Weights and buffers after training
        are the same bit for bit in all three.
        """
        assert mode in MODES, mode
        self.gradient_checkpointing = mode
        for block in self.blocks():
            block.gradient_checkpointing = mode

    def forward_stages(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 320, H/32, W/32) in B0."""
        first, *others = self.blocks()
        if not (self.uses_kernels() and covers_stem(self.stem, first, x)):
            return self.stages(conv_norm(self.stem, x, self.gradient_checkpointing))
        x = mbconv_with_kernels(first, x, self.stem)
        for block in others:
            x = block(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1280, H/32, W/32) in B0."""
        return conv_norm(self.head, self.forward_stages(x), self.gradient_checkpointing)

    def pooled(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1280) in B0."""
        if self.uses_kernels() and covers_head(self.head, x):
            return head_with_kernels(self.head, self.forward_stages(x))
        return mean_over_space(self.forward_features(x)).flatten(1)

    def uses_kernels(self) -> bool:
        """Outside the blocks, too: where nothing else is to be computed again."""
        return self.gradient_checkpointing == "off" and next(self.blocks()).kernels

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.pooled(x)))


def initialise(network: EfficientNet) -> None:
    """Normal weights of variance 2 / fan_out, fan_out counted per group (the paper's code); blocks with a skip start as
    identities (zero last scale, arXiv 1706.02677) and the classifier near zero, so the first loss is ln(classes)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in network.blocks():
        if block.has_skip:
            nn.init.zeros_(block.project.norm.weight)
    nn.init.normal_(network.classifier.weight, 0.0, 0.01)
    nn.init.zeros_(network.classifier.bias)
