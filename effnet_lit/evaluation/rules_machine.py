"""The doctor's rules on time and memory."""

from __future__ import annotations

from collections.abc import Iterator

from effnet_lit.evaluation.advice import Advice, between
from effnet_lit.evaluation.evidence import Evidence

WAITING = 0.15  # share of the training time
LONG_SECONDS = 1800.0
EDGE, UNUSED = 0.92, 0.3  # shares of the device's memory


def slow(seen: Evidence) -> Iterator[Advice]:
    """Steps wait for images, or computing takes long."""
    share, seconds = seen.result["data_wait_share"], seen.result["seconds_training"]
    shares = seen.result["data_wait_by_epoch"] or [share]
    data = seen.config.data
    if share > WAITING and min(shares) > WAITING / 2:
        override = "data.cache=disk" if data.cache == "off" else f"data.workers={max(4, 2 * int(data.workers))}"
        yield Advice(
            "data_slow",
            f"Slow because of data: steps waited for images for {share:.0%} of the time "
            f"({between(min(shares), max(shares))} from epoch to epoch).",
            override,
            f"at most {1 / (1 - share):.1f} times as fast",
        )
    elif seconds > LONG_SECONDS and isinstance(data.image_size, int) and data.image_size > 128:
        smaller = max(128, 32 * round(data.image_size * 0.7 / 32))
        yield Advice(
            "compute_slow",
            f"Slow because of computing: {1 - share:.0%} of {seconds / 60:.0f} minutes, {share:.0%} waited for images.",
            f"data.image_size={smaller}",
            f"about {(data.image_size / smaller) ** 2:.1f} times as fast; small details are lost",
        )


def memory(seen: Evidence) -> Iterator[Advice]:
    """The device's memory is nearly full, or most of it is idle while the step was cut up to save it."""
    total = seen.result["device_memory_bytes"]
    peak = seen.result["gpu_peak_memory_bytes"] or seen.result["peak_memory_bytes"]
    if not total or not peak:
        return
    share, training = peak / total, seen.config.training
    if share > EDGE:
        yield Advice(
            "memory_edge",
            f"Memory near the edge: {peak / 1e9:.1f} of {total / 1e9:.1f} GB ({share:.0%}).",
            "model.gradient_checkpointing=blocks",
            "room for other programs; on a CPU a fifth slower",
        )
    elif share < UNUSED and training.micro_batch != seen.config.batch_size:
        yield Advice(
            "memory_idle",
            f"Memory badly used: {peak / 1e9:.1f} of {total / 1e9:.1f} GB ({share:.0%}), {training.micro_batch} images "
            "at once.",
            f"training.micro_batch={seen.config.batch_size}",
            "fewer, larger steps of the device",
        )
