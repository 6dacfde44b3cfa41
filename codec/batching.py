"""How audio of many lengths is cut into pieces that fit: buckets of rows, windows of time.

Neither changes a result. Rows of a bucket are padded and masked; windows carry the context that their core needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ACTIVATION_BYTES = 20 * 2**20
"""Largest activation on a CPU. Beyond 32 MB the C library maps fresh pages for every tensor, which costs a third of the
time; a little below is faster still, see docs/performance.md."""
ACTIVATION_BYTES_GPU = 2**31
"""Largest activation elsewhere, where only memory limits it."""
LEAST_FULL = {"cpu": 0.75}
"""Share of the longest row's length that every row of a bucket has at least; a CPU gains little from more rows."""
LEAST_FULL_GPU = 0.4


def frames_at_once(floats_per_frame: int, device: torch.device) -> int:
    """Frames whose widest activation stays within what the device takes well, over all rows.

    Args:
        floats_per_frame: size of the widest activation of a stack, per frame.
        device: where it runs.
    """
    budget = ACTIVATION_BYTES if device.type == "cpu" else ACTIVATION_BYTES_GPU
    return max(100, budget // (4 * floats_per_frame))


def buckets(frames: list[int], limit: int, device: torch.device) -> Iterator[list[int]]:
    """Rows that are worth computing together, longest first.

    Args:
        frames: of each row.
        limit: frames of a bucket with its padding; a single row may have more.
        device: where it runs.

    Yields:
        Indices of rows; every row is in one bucket.
    """
    least_full = LEAST_FULL.get(device.type, LEAST_FULL_GPU)
    order = sorted(range(len(frames)), key=lambda row: -frames[row])
    bucket: list[int] = []
    for row in order:
        longest = frames[bucket[0]] if bucket else 0
        if bucket and (frames[row] < least_full * longest or longest * (len(bucket) + 1) > limit):
            yield bucket
            bucket = []
        bucket.append(row)
    if bucket:
        yield bucket


def equal_rows(sizes: list[int], limit: int) -> Iterator[tuple[int, list[int]]]:
    """Rows of one size together, for models that padding would change.

    Args:
        sizes: of each row.
        limit: sum of the sizes of rows that go together; a single row may have more.

    Yields:
        A size and the indices of rows that have it; every row is yielded once.
    """
    groups: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    for size, members in groups.items():
        at_once = max(1, limit // size)
        for first in range(0, len(members), at_once):
            yield size, members[first : first + at_once]


def windows(total: int, core: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """Cuts `total` frames into cores with context.

    Yields:
        (start, stop, left, right): frames start..stop are the core, left..right what must be seen for it.
    """
    for start in range(0, total, core):
        stop = min(total, start + core)
        yield start, stop, max(0, start - halo), min(total, stop + halo)


def equal_windows(total: int, size: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """As `windows`, but every window has `size` frames, which one compiled program serves.

    Args:
        total: frames, at least `size`.
        size: of a window with its context; more than twice the halo.
        halo: context.
    """
    start = 0
    while start < total:
        left = min(max(0, start - halo), total - size)
        right = left + size
        stop = total if right == total else right - halo
        yield start, stop, left, right
        start = stop


def keep(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, C, L) with zeros beyond each row's length; with None, x as it is.

    Padded convolutions see zeros beyond the end of a row that is alone. Masking before each of them gives the rows of
    a batch the same.
    """
    if lengths is None:
        return x
    valid = torch.arange(x.shape[-1], device=x.device) < lengths[:, None]  # (B, L)
    return x * valid.view(len(x), *(1,) * (x.dim() - 2), -1)


def uneven(lengths: list[int], device: torch.device) -> Tensor | None:
    """Lengths as `keep` wants them: (B,), or None when all are equal and nothing needs masking."""
    return None if len(set(lengths)) == 1 else torch.tensor(lengths, device=device)


def in_windows(
    stack: Callable[..., Tensor], x: Tensor, lengths: Tensor | None, rates: tuple[int, int], halo: int, core: int
) -> Tensor:
    """What a stack of convolutions makes of long rows, in windows whose context makes them exact.

    Args:
        stack: of (B, C, L) and lengths, as `nn.acoustic.Encoder` and `Decoder`.
        x: (B, C, L).
        lengths: (B,) of padded rows, in positions of x, or None.
        rates: positions of x, and of the result, per frame.
        halo: frames of context.
        core: frames of a window without it.
    """
    parts = []
    before, after = rates
    for start, stop, left, right in windows(x.shape[2] // before, core, halo):
        here = None if lengths is None else (lengths - left * before).clamp(0, (right - left) * before)
        if here is not None and here.device.type == "cpu" and int(here.min()) == (right - left) * before:
            here = None  # no row ends in this window
        y = stack(x[:, :, left * before : right * before], here)
        parts.append(y[:, :, (start - left) * after : (stop - left) * after])
    return torch.cat(parts, dim=2)


def in_equal_windows(
    stack: Callable[[Tensor], Tensor], x: Tensor, rates: tuple[int, int], halo: int, size: int
) -> Tensor:
    """The same for a compiled stack, row by row, in windows of `size` frames; rows are full and at least that long."""
    rows = []
    before, after = rates
    for row in x.split(1):
        parts = []
        for start, stop, left, right in equal_windows(x.shape[2] // before, size, halo):
            y = stack(row[:, :, left * before : right * before].contiguous())
            parts.append(y[:, :, (start - left) * after : (stop - left) * after])
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)
