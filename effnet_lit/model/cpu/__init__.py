"""A training step on a CPU that moves little memory: layers as functions that work in pieces of a batch."""
