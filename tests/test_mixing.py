"""Mixup and cutmix: exact shares, the right pixels, and the loss against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from effnet_lit.data.augment import NUMBERS, random_numbers
from effnet_lit.data.mixing import KIND, LATER_DIGITS, SHARE, mix, mixed_loss

SIZE = 16


def flat_images(count: int, size: int = SIZE) -> Tensor:
    """(N, 3, size, size) channels_last; image i has the value i everywhere."""
    values = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1)
    return values.expand(count, 3, size, size).contiguous(memory_format=torch.channels_last)


def numbers(*pairs: tuple[float, float]) -> Tensor:
    """Random numbers (N, NUMBERS) with these for kind and share; the others must not matter, so they are NaN."""
    u = torch.full((len(pairs), NUMBERS), torch.nan)
    u[:, [KIND, SHARE]] = torch.tensor(pairs)
    return u


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(random_numbers(seed, 0, 0, count)).float()


def test_mixup_is_the_weighted_sum() -> None:
    images = torch.rand(3, 3, SIZE, SIZE)
    mixed, partner, share = mix(images, numbers((0.1, 0.5), (0.2, 0.0), (0.0, 1.0)), 0.3, 0.3)
    assert partner.tolist() == [1, 2, 0]
    assert share.tolist() == [0.25, 0.0, 0.5]
    assert torch.allclose(mixed[0], 0.75 * images[0] + 0.25 * images[1])
    assert torch.equal(mixed[1], images[1])
    assert torch.allclose(mixed[2], (images[2] + images[0]) / 2)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(4, 40),
    pairs=st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=2, max_size=5),
)
def test_cutmix_pastes_one_square_of_the_partner(size: int, pairs: list[tuple[float, float]]) -> None:
    images = flat_images(len(pairs), size)
    mixed, partner, share = mix(images, numbers(*pairs), 0.0, 1.0)
    pasted = (mixed == partner.view(-1, 1, 1, 1)).all(1)  # (N, T, T)
    assert torch.equal(torch.where(pasted.unsqueeze(1), images[partner], images), mixed)
    assert torch.equal(share, pasted.float().mean((1, 2)))
    for square, (kind, number), exact in zip(pasted, pairs, share, strict=True):
        rows, columns = square.any(1), square.any(0)
        assert rows.sum() == columns.sum()
        assert square.sum() == rows.sum() * columns.sum()  # one rectangle, without holes
        if kind < 1:
            assert abs(exact.sqrt() - (number / 2) ** 0.5) <= 1 / size + 1e-5
            assert exact <= 0.5


def test_each_kind_comes_as_often_as_asked_for() -> None:
    images = flat_images(4000, 32)
    mixed, partner, share = mix(images, drawn(4000), 0.3, 0.5)
    values = mixed.flatten(1)
    whole_values = ((values == images.flatten(1)) | (values == partner.view(-1, 1))).all(1)
    blended, pasted = ~whole_values, whole_values & (share > 0)
    assert abs(blended.float().mean() - 0.3) < 0.03
    assert abs(pasted.float().mean() - 0.5) < 0.03
    assert abs(share[blended].mean() - 0.25) < 0.01
    assert share.max() <= 0.5


def test_what_is_not_mixed_stays_to_the_last_bit() -> None:
    images = torch.rand(64, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    mixed, _, share = mix(images, drawn(64), 0.2, 0.2)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert 20 < (share == 0).sum() < 60
    for before, after, part in zip(images, mixed, share, strict=True):
        assert torch.equal(before, after) == (part == 0)
    same, _, none = mix(images, drawn(64), 0.0, 0.0)
    assert torch.equal(same, images)
    assert not none.any()


def test_squares_lie_anywhere() -> None:
    pasted = mix(flat_images(2000), drawn(2000), 0.0, 1.0)[0] != flat_images(2000)
    often = pasted[:, 0].float().mean(0)  # (T, T)
    assert often.min() > 0.005  # corners are met least
    assert torch.allclose(often, often.flip(0), atol=0.05)
    assert torch.allclose(often, often.flip(1), atol=0.05)
    assert torch.allclose(often, often.T, atol=0.05)


def test_later_digits_are_independent_of_the_numbers() -> None:
    kind, share = drawn(20000)[:, KIND], drawn(20000)[:, SHARE]
    places = [number * LATER_DIGITS % 1 for number in (kind, share)]
    assert all(place.min() >= 0 and place.max() < 1 and abs(place.mean() - 0.5) < 0.01 for place in places)
    assert torch.corrcoef(torch.stack([kind, share, *places])).fill_diagonal_(0).abs().max() < 0.03


def test_a_sample_is_mixed_alike_in_any_place_of_a_batch() -> None:
    images = torch.rand(12, 3, SIZE, SIZE)
    whole, _, shares = mix(images, drawn(12), 0.5, 0.5)
    for start in range(9):
        part, _, share = mix(images[start : start + 4], drawn(12)[start : start + 4], 0.5, 0.5)
        assert torch.allclose(part[:3], whole[start : start + 3])  # the fourth has another partner
        assert torch.equal(share, shares[start : start + 4])


LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
PARTNER = torch.arange(6).roll(-1)
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.7])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_without_mixing_the_loss_is_torchs(smoothing: float, weights: Tensor | None) -> None:
    ours = mixed_loss(LOGITS, LABELS, PARTNER, torch.zeros(6), smoothing, weights)
    theirs = functional.cross_entropy(LOGITS, LABELS, weights, label_smoothing=smoothing)
    assert torch.allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mixed_loss_is_torchs_on_probabilities(smoothing: float, weights: Tensor | None) -> None:
    share = torch.tensor([0.0, 0.5, 0.25, 0.1, 0.0, 0.4])
    own, other = functional.one_hot(LABELS, 4).float(), functional.one_hot(LABELS[PARTNER], 4).float()
    target = own * (1 - share).unsqueeze(1) + other * share.unsqueeze(1)  # (N, classes)
    total = functional.cross_entropy(LOGITS, target, weights, label_smoothing=smoothing, reduction="sum")
    theirs = total / (6 if weights is None else (target @ weights).sum())
    assert torch.allclose(mixed_loss(LOGITS, LABELS, PARTNER, share, smoothing, weights), theirs, rtol=1e-6)


def test_gradients_reach_both_labels() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    labels, share = torch.tensor([0, 2]), torch.tensor([0.25, 0.0])
    mixed_loss(logits, labels, torch.tensor([1, 0]), share, 0.0, None).backward()
    assert logits.grad is not None
    expected = torch.tensor([[1 / 3 - 0.75, 1 / 3, 1 / 3 - 0.25], [1 / 3, 1 / 3, 1 / 3 - 1]]) / 2
    assert torch.allclose(logits.grad, expected, atol=1e-6)
