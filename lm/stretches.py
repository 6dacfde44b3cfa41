"""The training data of a language model: stretches of stored recordings, packed into rows, in an order of their own.

Everything is a function of (seed, position): which recording comes when, where it is cropped, how rows are packed. So a
checkpoint holds the packer's few numbers, and the number of processes does not change the order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xcodec_lm.codec.runtime.order import DataOrder, generator
from xcodec_lm.lm.examples import Batch, Example, make_batch, make_example, steps_of
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.packing import Packer
from xcodec_lm.lm.shards import JoinedStore, TokenStore

BUFFER = 128
"""Stretches among which the packer chooses."""


class Stretches:
    """Stretches of the recordings of one split.

    A recording that fits a row is one stretch, and ends with eos; a longer one is cropped at random, once for every
    row's worth of it, so that an epoch sees all of it about once.

    Args:
        store: the tokens.
        split: name of the split.
        layout: how codes become ids.
        block: steps of a row, bos not counted.
        seed: of order and crops.
        pack: put several stretches into a row.

    Attributes:
        frames: most frames in a stretch.
    """

    def __init__(
        self, store: TokenStore | JoinedStore, split: str, layout: Layout, block: int, seed: int, pack: bool = True
    ):
        self.store, self.layout, self.seed, self.pack = store, layout, seed, pack
        self.capacity = block + layout.lead
        unit = layout.chunk or 1
        self.frames = max(unit, layout.frames_in(block) // unit * unit)
        documents = np.array(store.split(split), dtype=np.int64)
        lengths = store.lengths[documents]
        fits = lengths > (0 if layout.lead else 1)  # without bos nothing predicts a recording of one frame
        documents, lengths = documents[fits], lengths[fits]
        counts = -(-lengths // self.frames)
        self.slots = np.repeat(documents, counts)
        self.lengths = np.repeat(lengths, counts)
        self.firsts = np.concatenate([np.arange(n) * self.frames for n in counts]) if len(counts) else counts
        self._order: DataOrder | None = None
        self._steps: dict[tuple[int, bool], int] = {}

    def __len__(self) -> int:
        return len(self.slots)

    def place(self, position: int) -> tuple[int, int, int, bool]:
        """Recording, first frame, frames, and whether it ends with them, at a position of the endless sequence."""
        if self._order is None:
            self._order = DataOrder(len(self.slots), self.seed)
        slot = self._order[position]
        return self._crop(slot, position)

    def _crop(self, slot: int, position: int | None) -> tuple[int, int, int, bool]:
        total = int(self.lengths[slot])
        # A row has one step more than the codes of a full stretch, for bos; eos takes it where the recording ends.
        frames = min(total, self.frames)
        start, spare = int(self.firsts[slot]), total - frames
        if position is not None:
            start = 0
            if spare > 0:
                start = int(torch.randint(spare + 1, (), generator=generator(self.seed, "crop", position)))
        frames = min(frames, total - start)
        return int(self.slots[slot]), start, frames, start + frames == total and self._end_fits(frames)

    def _end_fits(self, frames: int) -> bool:
        return self._length(frames, True) <= self.capacity

    def _length(self, frames: int, ends: bool) -> int:
        key = (frames, ends)
        if key not in self._steps:
            self._steps[key] = int(steps_of(self.layout, frames, ends))
        return self._steps[key]

    def steps(self, position: int) -> int:
        """Positions that the stretch at a position takes."""
        _, _, frames, ends = self.place(position)
        return self._length(frames, ends)

    def example(self, position: int) -> Example:
        """The stretch at a position."""
        return self._make(*self.place(position))

    def fixed(self, slot: int) -> Example:
        """The stretch of a slot, for validation: all slots together predict every code once."""
        return self._make(*self._crop(slot, None))

    def fixed_batch(self, slots: Sequence[int]) -> Batch | None:
        """The stretches of slots as a batch, one a row; None where nothing is to be predicted."""
        examples = [example for slot in slots if len(example := self.fixed(slot))]
        return make_batch(self.layout, [[example] for example in examples]) if examples else None

    def recording(self, slot: int) -> int:
        """Which recording of the store a slot is of."""
        return int(self.slots[slot])

    def _make(self, document: int, start: int, frames: int, ends: bool) -> Example:
        codes = np.ascontiguousarray(self.store.codes(document)[start : start + frames].T)  # (MQ, T)
        return make_example(self.layout, codes, ends)

    def packer(self) -> Packer:
        """The rows of the endless sequence."""
        return Packer(self.steps, self.capacity, BUFFER if self.pack else 1)

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of positions as a batch."""
        return make_batch(self.layout, [[self.example(position) for position in row] for row in rows])
