"""Warped distances of stretches of frames, for many pairs at once: the part of ABX that takes the time.

The distance of two stretches is the mean distance of their frames along the cheapest warping path. A path that can go
several ways at equal cost goes diagonally, else along the second stretch, else along the first.

Frame distances come from one matrix product for each block of pairs. The tables of all pairs of like sizes are then
filled together, diagonal by diagonal. The cost of a path, the way that it came and its length share one integer, so
that the least integer is the right predecessor and carries its length along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Distance = Literal["angular", "identical"]
GRAIN = 2.0**24
"""Frame distances are whole multiples of 1 / GRAIN, so that sums are exact and ties are ties on every machine. The
rounding error of an arccos near 0 is several times smaller."""
LENGTH_BITS, WAY_BITS = 16, 2
"""Of the integer of a cell: the length of its path, lowest; then the way that it came, 0 diagonally; then the cost."""
LONGEST = 2 ** (LENGTH_BITS - 1)
"""Frames of a stretch; a path has fewer than two such stretches."""
TABLE_AT_ONCE = 16_000_000
"""Frame distances held at once."""
CELLS_AT_ONCE = 200_000
"""Cells of the tables that are filled together: what a core's cache holds."""
EXACT_SIZE = 16
"""Stretches of up to so many frames share a batch with their like alone; longer ones are padded a little."""


def pair_distances(
    vectors: Sequence[Tensor | None], pairs: np.ndarray, blocks: np.ndarray, distance: Distance = "angular"
) -> np.ndarray:
    """Warped distances (P,) of pairs of stretches, each in 0..1.

    Args:
        vectors: (T, D) of each stretch, T at least 1 for those in pairs.
        pairs: (P, 2) indices of vectors.
        blocks: (P,) numbers; pairs of one number should have their members in common, for the distances of all frames
            of their first members to all frames of their second are computed.
        distance: of frames. `angular`: the angle between vectors as a share of pi; a zero vector is at distance 1 from
            every other, and at 0 from another zero vector. `identical`: the share of the D codes that differ.

    Raises:
        ValueError: a stretch has more frames than can be warped.
    """
    result = np.empty(len(pairs))
    if not len(pairs):
        return result
    lengths = np.array([0 if stretch is None else len(stretch) for stretch in vectors])
    if lengths.max() >= LONGEST:
        raise ValueError(f"a stretch of {lengths.max()} frames is too long to be warped; the limit is {LONGEST - 1}")
    order = np.argsort(blocks, kind="stable")
    edges = np.flatnonzero(np.diff(blocks[order])) + 1
    tables: list[Tensor] = []
    places: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    held = 0

    def finish() -> None:
        which, starts, strides = (np.concatenate(column) for column in zip(*places, strict=True))
        first, second = lengths[pairs[which]].T
        result[which] = _warp(torch.cat(tables), starts, strides, first, second)

    for members in np.split(order, edges):
        for which, table, starts in _tables(vectors, lengths, pairs, members, distance):
            places.append((which, starts + held, np.full(len(which), table.shape[1])))
            tables.append(table.flatten().to(torch.int64).mul_(1 << LENGTH_BITS + WAY_BITS).add_(1))
            held += table.numel()
            if held >= TABLE_AT_ONCE:
                finish()
                tables, places, held = [], [], 0
    if tables:
        finish()
    return result


def _tables(
    vectors: Sequence[Tensor | None], lengths: np.ndarray, pairs: np.ndarray, members: np.ndarray, distance: Distance
) -> Iterator[tuple[np.ndarray, Tensor, np.ndarray]]:
    """Frame distances of one block, in parts of some of its first members against all of its second ones.

    Yields:
        Pairs of the part, its table (frames of first members, frames of second ones), and where in it each pair begins.
    """
    firsts, row_of = np.unique(pairs[members, 0], return_inverse=True)
    seconds, column_of = np.unique(pairs[members, 1], return_inverse=True)
    columns = np.concatenate([[0], np.cumsum(lengths[seconds])])
    y = torch.cat([vectors[index] for index in seconds])  # type: ignore[misc]
    begin = 0
    while begin < len(firsts):
        frames = np.cumsum(lengths[firsts[begin:]])
        count = max(1, int(np.searchsorted(frames, TABLE_AT_ONCE // columns[-1], side="right")))
        x = torch.cat([vectors[index] for index in firsts[begin : begin + count]])  # type: ignore[misc]
        inside = (row_of >= begin) & (row_of < begin + count)
        rows = np.concatenate([[0], frames])[row_of[inside] - begin]
        table = _angles(x, y) if distance == "angular" else _differing(x, y)
        yield members[inside], table, rows * int(columns[-1]) + columns[column_of[inside]]
        begin += count


def _angles(x: Tensor, y: Tensor) -> Tensor:
    """Angles / pi of (N, D) and (M, D), (N, M), scaled by GRAIN and rounded."""
    norms = [vectors.double().norm(dim=1, keepdim=True) for vectors in (x, y)]
    x, y = (vectors.double() / norm.clamp_min(1e-300) for vectors, norm in zip((x, y), norms, strict=True))
    angles = torch.mm(x, y.T).clamp_(-1, 1).arccos_().mul_(GRAIN / math.pi).round_()
    zero_x, zero_y = norms[0] == 0, (norms[1] == 0).T
    if zero_x.any() or zero_y.any():
        angles = torch.where(zero_x | zero_y, (zero_x ^ zero_y).double() * GRAIN, angles)
    return angles


def _differing(x: Tensor, y: Tensor) -> Tensor:
    """Shares of codes that differ of (N, D) and (M, D), (N, M), scaled by GRAIN and rounded."""
    count = torch.zeros(len(x), len(y), dtype=torch.float64)
    for column in range(x.shape[1]):
        count += x[:, column, None] != y[None, :, column]
    return count.mul_(GRAIN / x.shape[1]).round_()


def _warp(cells: Tensor, starts: np.ndarray, strides: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mean distance along the cheapest path of each pair (P,).

    Args:
        cells: what each cell of the tables adds to a path, flat.
        starts: (P,) where a pair's table begins.
        strides: (P,) from one of its rows to the next.
        rows: (P,) frames of the first stretch.
        columns: (P,) of the second.
    """
    n, m = _padded(rows), _padded(columns)
    order = np.lexsort((m, n))
    edges = np.flatnonzero(np.diff(n[order]) | np.diff(m[order])) + 1
    result = np.empty(len(rows))
    for alike in np.split(order, edges):
        most = max(1, CELLS_AT_ONCE // int(n[alike[0]] * m[alike[0]]))
        for begin in range(0, len(alike), most):
            which = alike[begin : begin + most]
            result[which] = _fill(cells, *(column[which] for column in (starts, strides, rows, columns)))
    return result


def _padded(sizes: np.ndarray) -> np.ndarray:
    """The size to which stretches are padded."""
    step = np.maximum(1, 2 ** (np.ceil(np.log2(np.maximum(sizes, 1) / EXACT_SIZE)).astype(int)).clip(0)) * 2
    return np.where(sizes <= EXACT_SIZE, sizes, -(-sizes // step) * step)


def _fill(cells: Tensor, starts: np.ndarray, strides: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The same for pairs of like sizes. A diagonal of all tables, (n, P), is stored by row; row 0 lies before all."""
    n, m = int(rows.max()), int(columns.max())
    ragged = bool((rows < n).any() or (columns < m).any())
    start, stride, n_of, m_of = (torch.from_numpy(values) for values in (starts, strides, rows, columns))
    places = start + torch.arange(n)[:, None] * (stride - 1)  # plus the diagonal's number, where its cells lie
    if ragged:  # what is read outside a pair's table does not matter: no path to its end passes there
        places.clamp_(max=len(cells) - n - m)
    one_way, mask = 1 << LENGTH_BITS, ~(((1 << WAY_BITS) - 1) << LENGTH_BITS)
    far = torch.iinfo(torch.int64).max // 2
    before, last, now = (torch.full((n + 1, len(starts)), far) for _ in range(3))
    before[0] = 0  # where every path begins: before the first cell, at no cost
    found = torch.empty(len(starts), dtype=torch.int64)
    for diagonal in range(n + m - 1):
        low, high = max(0, diagonal - m + 1), min(diagonal, n - 1) + 1
        best = now[low + 1 : high + 1]
        torch.minimum(before[low:high], last[low + 1 : high + 1] + one_way, out=best)
        torch.minimum(best, last[low:high] + 2 * one_way, out=best)
        best.bitwise_and_(mask).add_(cells[diagonal:].take(places[low:high]))
        before[0] = now[low] = far  # rows that this diagonal does not have
        if high < n:
            now[high + 1] = far
        if ragged:
            ends = (n_of + m_of - 2 == diagonal).nonzero()[:, 0]
            found[ends] = now[n_of[ends], ends]
        before, last, now = last, now, before
    if not ragged:
        found = last[n]
    return ((found >> LENGTH_BITS + WAY_BITS).double() / found.bitwise_and(one_way - 1) / GRAIN).numpy()
