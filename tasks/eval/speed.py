"""Real-time factor: seconds of computing for a second of audio, after warm-up and with the device waited for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RealTimeFactor:
    """How long something took.

    Attributes:
        value: median over the repeats; below 1 is faster than real time.
        repeats: all of them.
        audio_s: seconds of audio in each.
        threads: of the CPU.
        device: where it ran.
    """

    value: float
    repeats: tuple[float, ...]
    audio_s: float
    threads: int
    device: str


def real_time_factor(
    work: Callable[[], Any], audio_s: float, repeats: int = 5, warmup: int = 1, device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> RealTimeFactor:  # fmt: skip
    """Times a piece of work.

    Args:
        work: computes what is timed.
        audio_s: seconds of audio that it takes or makes.
        repeats: that are timed.
        warmup: runs before them.
        device: that is waited for before the clock is read.
        clock: seconds.

    Raises:
        ValueError: no audio, or nothing to repeat.
    """
    import torch

    if not audio_s > 0 or repeats < 1:
        raise ValueError(f"need audio and repeats, got {audio_s} s and {repeats}")

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return clock()

    for _ in range(warmup):
        work()
    taken = []
    for _ in range(repeats):
        start = now()
        work()
        taken.append((now() - start) / audio_s)
    return RealTimeFactor(statistics.median(taken), tuple(taken), audio_s, torch.get_num_threads(), device)
