"""Training steps and evaluation on a CPU that move little memory: layers as functions that work in pieces."""
