"""Mixup and cutmix: an image takes a share of its neighbour in the batch, and of its label.

Like every variation, a sample's mixing is a function of its own random numbers. Number 14 decides which kind, if any,
15 the share; the later binary digits of both, independent of the earlier ones, decide where cutmix's square lies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

KIND, SHARE = 14, 15
LATER_DIGITS = 2**12  # a float32 in 0-1 has 24 digits


def mix(pixels: Tensor, numbers: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix some of the images (N, 3, T, T) with the next one in the batch.

    ``mixup`` and ``cutmix`` are the chances of an image to be blended with its partner (arXiv 1710.09412) or to have a
    square of it pasted in (arXiv 1905.04899); together at most 1. The papers draw the share from Beta(1, 1), uniform
    in 0-1. Here an image keeps at least half of itself, uniform in 0-0.5, since who is whose partner is random.

    Returns:
        The mixed images, each one's partner (N,) int64 and the partner's share (N,) in 0-0.5, in cutmix that of the
        square's pixels. An image that is not mixed stays as it is, its share is 0.
    """
    assert mixup >= 0 <= cutmix and mixup + cutmix <= 1
    partner = torch.arange(len(pixels), device=pixels.device).roll(-1)
    if mixup + cutmix == 0:
        return pixels, partner, pixels.new_zeros(len(pixels))
    u = numbers[:, [KIND, SHARE]].float().to(pixels.device)  # (N, 2)
    blended = u[:, 0] < mixup
    pasted = ~blended & (u[:, 0] < mixup + cutmix)
    share = u[:, 1] / 2 * (blended | pasted)
    square = squares(u * LATER_DIGITS % 1, share * pasted, pixels.shape[-1])  # (N, 1, T, T)
    share = torch.where(pasted, square.float().mean((1, 2, 3)), share)
    weight = torch.where(pasted.view(-1, 1, 1, 1), square, share.view(-1, 1, 1, 1))  # of the partner, pixel by pixel
    return torch.lerp(pixels, pixels[partner], weight), partner, share


def squares(place: Tensor, area: Tensor, size: int) -> Tensor:
    """Mask (N, 1, size, size) of a square of at most ``area`` (N,), a share, at ``place`` (N, 2) of the room left."""
    side = (area.sqrt() * size).floor().unsqueeze(1)  # (N, 1) pixels
    first = (place * (size - side + 1)).floor()  # (N, 2)
    steps = torch.arange(size, device=place.device)
    x, y = ((steps >= start) & (steps < start + side) for start in first.split(1, dim=1))  # (N, T) each
    return (y.unsqueeze(2) & x.unsqueeze(1)).unsqueeze(1)


def mixed_loss(
    logits: Tensor, labels: Tensor, partner: Tensor, share: Tensor, label_smoothing: float, class_weights: Tensor | None
) -> Tensor:
    """Cross-entropy of logits (N, classes) with the own label (N,) and, by its ``share``, the partner's: a scalar.

    With ``class_weights`` (classes,) a mean weighted as in ``functional.cross_entropy``, by the weights of the labels
    that take part.
    """
    own, other = (
        functional.cross_entropy(logits, target, class_weights, reduction="none", label_smoothing=label_smoothing)
        for target in (labels, labels[partner])
    )
    losses = torch.lerp(own, other, share)
    if class_weights is None:
        return losses.mean()
    return losses.sum() / torch.lerp(class_weights[labels], class_weights[labels[partner]], share).sum()
