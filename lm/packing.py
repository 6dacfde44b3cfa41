"""Packing: documents of many lengths in rows of one length, and the masks that keep them apart.

A document is a recording, or a window of one, in steps of the sequence; whoever cuts it does so between frames. Packing
is best fit: of the documents at hand, the longest that fits the rest of a row goes into it. Nothing is cut or dropped.

`pack` packs a finite list at once. `Packer` packs an endless sequence through a buffer, and its state is the few
positions in that buffer. All processes run the same packer and take their own rows (`rank_rows`), so the number of
processes does not change the order of the data.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xcodec_lm.configs.errors import TokenError, XcodecLMError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

PADDING = -1
"""Document id of the end of a row that no document fills."""
_OTHER_CHECKPOINT = "remove the newest checkpoint to fall back to the one before it, or start a new run"

Item = TypeVar("Item")


class Packer:
    """Rows of documents, taken from a sequence of them through a buffer.

    A row begins with the oldest document of the buffer, so none waits for more than `buffer` rows. Then the longest
    that fits follows (the oldest of equals), until none fits.

    Args:
        length_of: position in the sequence -> length of its document in steps, from 1 to `capacity`; always the same.
        capacity: steps of a row.
        buffer: documents to choose from. More fill rows better and mix the order more.
        count: how many documents there are; None for an endless sequence.

    Raises:
        XcodecLMError: `capacity` or `buffer` below 1.
    """

    def __init__(self, length_of: Callable[[int], int], capacity: int, buffer: int = 256, count: int | None = None):
        if capacity < 1 or buffer < 1:
            raise XcodecLMError(f"a packer needs at least 1 step a row and 1 document, got {capacity} and {buffer}")
        self.length_of, self.capacity, self.buffer, self.count = length_of, capacity, buffer, count
        self.restore({"cursor": 0, "rows": 0, "filled": 0, "buffer": []})

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        """The positions of the documents of the next row, in the order in which they stand in it."""
        self._refill()
        if not self._waiting:
            raise StopIteration
        position, length = next(iter(self._waiting.items()))
        row, space = [self._take(position)], self.capacity - length
        # The buffer is sorted by (length, -position): what fits ends here, and the last of it is the best.
        while index := bisect_right(self._sorted, (space, 1)):
            length, negative = self._sorted[index - 1]
            row.append(self._take(-negative))
            space -= length
        self._rows += 1
        self._filled += self.capacity - space
        return row

    def take(self, count: int) -> list[list[int]]:
        """The next rows; fewer at the end of a sequence that has one."""
        return [row for _, row in zip(range(count), self, strict=False)]

    @property
    def rows(self) -> int:
        """Rows made so far."""
        return self._rows

    @property
    def fill(self) -> float:
        """Mean share of a row that documents fill, over the rows so far; 1 before the first."""
        return self._filled / (self._rows * self.capacity) if self._rows else 1.0

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values; at most `buffer` numbers and three more."""
        return {"cursor": self._cursor, "rows": self._rows, "filled": self._filled, "buffer": list(self._waiting)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where a packer of the same sequence, capacity and buffer stood.

        Args:
            state: of `state`.

        Raises:
            XcodecLMError: it is not such a state.
        """
        try:
            cursor, rows, filled = (int(state[name]) for name in ("cursor", "rows", "filled"))
            waiting = [int(position) for position in state["buffer"]]
        except (KeyError, TypeError, ValueError) as error:
            raise XcodecLMError(f"the state of the data order cannot be read: {error!r}", _OTHER_CHECKPOINT) from None
        is_sorted = all(a < b for a, b in zip([-1, *waiting], [*waiting, cursor], strict=True))
        if len(waiting) > self.buffer or not is_sorted:
            raise XcodecLMError("the state of the data order is of another run, or damaged", _OTHER_CHECKPOINT)
        self._cursor, self._rows, self._filled = cursor, rows, filled
        self._waiting: dict[int, int] = {position: self._checked_length(position) for position in waiting}
        self._sorted = sorted((length, -position) for position, length in self._waiting.items())

    def _refill(self) -> None:
        while len(self._waiting) < self.buffer and (self.count is None or self._cursor < self.count):
            length = self._checked_length(self._cursor)
            self._waiting[self._cursor] = length  # a dict keeps the order of entry: the first is the oldest
            insort(self._sorted, (length, -self._cursor))
            self._cursor += 1

    def _take(self, position: int) -> int:
        length = self._waiting.pop(position)
        self._sorted.pop(bisect_right(self._sorted, (length, -position)) - 1)
        return position

    def _checked_length(self, position: int) -> int:
        length = int(self.length_of(position))
        if not 1 <= length <= self.capacity:
            raise _misfit(position, length, self.capacity)
        return length


def pack(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Packs a finite list by best fit, longest first, into the fullest row that has room.

    Args:
        lengths: (n,) length of each document in steps, from 1 to `capacity`.
        capacity: steps of a row.

    Returns:
        Rows: arrays of indices into `lengths`, in the order in which they stand in the row. Every index occurs once.

    Raises:
        TokenError: a document is empty or longer than a row.

    Source: Johnson 1973, "Near-optimal bin packing algorithms": best-fit decreasing takes at most 11/9 of the fewest
        rows possible (and 4 more).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if bad := np.flatnonzero((lengths < 1) | (lengths > capacity)).tolist():
        raise _misfit(bad[0], int(lengths[bad[0]]), capacity)
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (space left, row), sorted
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        index = bisect_right(spaces, (length, -1))
        if index < len(spaces):
            space, row = spaces.pop(index)
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(document)
        if space > length:
            insort(spaces, (space - length, row))
    return [np.array(row, dtype=np.int64) for row in rows]


def rank_rows(rows: Sequence[Item], rank: int, world: int) -> Sequence[Item]:
    """The rows of a step that one of `world` processes takes: row i belongs to process i % world."""
    return rows[rank::world]


def document_ids(lengths: Sequence[int], capacity: int) -> np.ndarray:
    """(capacity,) int64: which document of a row each step belongs to, from 0; `PADDING` behind the last."""
    ids = np.full(capacity, PADDING, dtype=np.int64)
    ids[: sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    return ids


def document_positions(lengths: Sequence[int], capacity: int) -> np.ndarray:
    """(capacity,) int64: how far each step of a row is from the start of its document; 0 in padding."""
    positions = np.zeros(capacity, dtype=np.int64)
    positions[: sum(lengths)] = np.concatenate([np.arange(length) for length in [0, *lengths]])
    return positions


def document_mask(ids: Tensor) -> Tensor:
    """Which step may attend to which: to those of its own document that are not behind it.

    Padding is a document of its own, so that no row of the mask is empty (softmax would give NaN).

    Args:
        ids: (B, L) of `document_ids`.

    Returns:
        (B, 1, L, L) bool, [b, 0, query, key], for `scaled_dot_product_attention`.
    """
    same = ids[:, None, :, None] == ids[:, None, None, :]  # (B, 1, L, L)
    return same.tril()


def document_mask_mod(ids: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule of `document_mask` as flex attention asks for it: a function of (batch, head, query, key)."""

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (ids[batch, query] == ids[batch, key]) & (query >= key)

    return allowed


def flex_mask(ids: Tensor) -> BlockMask:
    """The same mask for `flex_attention`, which skips blocks that are all forbidden; meant for CUDA.

    Args:
        ids: (B, L) of `document_ids`, on the device of the model.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch, length = ids.shape
    return create_block_mask(document_mask_mod(ids), batch, None, length, length, device=str(ids.device))


def _misfit(document: int, length: int, capacity: int) -> TokenError:
    return TokenError(
        f"document {document} has {length} steps, outside 1 to {capacity}",
        "leave empty documents out and cut long ones into windows before packing",
    )
