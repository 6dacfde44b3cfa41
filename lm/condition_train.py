"""Training a decoder behind conditions: its examples, its loss, and its parts for the trainer.

Each stretch of a recording stands behind the prefix of its own condition, so that several may share a row. The draws -
which condition, and whether it is left out - are functions of (seed, position), as order and crops are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.run import Run
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.lm.conditioning import ConditionedGPT, Conditions
from xcodec_lm.lm.examples import (
    HIDDEN_RUN,
    IGNORED,
    Batch,
    Example,
    cell_nats,
    code_bits,
    hide_steps,
    make_batch,
    make_example,
)  # fmt: skip
from xcodec_lm.lm.layouts import FILLER, Layout, layout_from
from xcodec_lm.lm.objective import Cells, Material
from xcodec_lm.lm.shards import JoinedStore, TokenStore
from xcodec_lm.lm.stretches import Stretches
from xcodec_lm.lm.train import row_counts
from xcodec_lm.lm.trainer import Listen, Trainer
from xcodec_lm.lm.warm_start import start_from


@dataclass(frozen=True)
class ConditionedBatch(Batch):
    """Rows of examples behind prefixes.

    Attributes:
        values: (N, size) or (N,) the condition of each stretch, row by row.
        dropped: (N,) bool, which of them are left out.
        where: (B, L) place of a position among all prefixes (N * P); -1 where it is none.
    """

    values: Tensor
    dropped: Tensor
    where: Tensor

    def to(self, device: torch.device) -> ConditionedBatch:
        """The same elsewhere."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        moved = {name: part.to(device, non_blocking=True) for name, part in parts.items() if part is not None}
        return replace(self, **moved)


def behind_prefix(layout: Layout, codes: np.ndarray, ends: bool, count: int) -> Example:
    """What is read and predicted of a stretch behind a prefix; the ids of the prefix mean nothing.

    Args:
        layout: of the ids.
        codes: (MQ, T).
        ends: whether the recording ends with it.
        count: P, positions of the prefix. Without bos the last of them predicts the first step.
    """
    example = make_example(layout, codes, ends)
    shape = (count, layout.width)
    inputs, targets = torch.full(shape, layout.vocabulary.pad or 0), torch.full(shape, IGNORED)
    rows, times = torch.full(shape, FILLER), torch.full(shape, -1)
    if not layout.lead:
        plan = layout.plan(codes.shape[1], ends)
        targets[-1] = layout.pack(torch.from_numpy(codes.astype(np.int64)), ends)[0]
        rows[-1], times[-1] = torch.from_numpy(plan.rows[0].copy()), torch.from_numpy(plan.times[0].copy())
        # Without bos, `make_example` reads from the first step on and predicts from the second.
    return Example(
        torch.cat([inputs, example.inputs]),
        torch.cat([targets, example.targets]),
        torch.cat([rows, example.rows]),
        torch.cat([times, example.times]),
    )


class ConditionedStretches(Stretches):
    """Stretches of the recordings of one split, each behind its condition.

    Args:
        store: the tokens.
        split: name of the split.
        layout: how codes become ids.
        block: steps of a row, bos and prefix not counted.
        seed: of order and crops.
        conditions: of the recordings of the store; those without any are left out.
        prefix: P, positions of a prefix.
        pack: put several stretches into a row.
        hidden: largest share of the codes that are not shown, see `SoundDataConfig.hidden`.

    Attributes:
        left_out: ids of recordings that have nothing to be conditioned on.
    """

    def __init__(
        self, store: TokenStore | JoinedStore, split: str, layout: Layout, block: int, seed: int,
        conditions: Conditions, prefix: int, pack: bool = True, hidden: float = 0.0,
    ):  # fmt: skip
        super().__init__(store, split, layout, block, seed, pack)
        self.conditions, self.prefix, self.hidden = conditions, prefix, hidden
        self.capacity += prefix
        known = np.array([conditions.has(int(recording)) for recording in self.slots], dtype=bool)
        missing = dict.fromkeys(self.slots[~known].tolist())
        self.left_out = [str(store.rows[recording].get("id", recording)) for recording in missing]
        self.slots, self.lengths, self.firsts = self.slots[known], self.lengths[known], self.firsts[known]

    def _length(self, frames: int, ends: bool) -> int:
        return super()._length(frames, ends) + self.prefix

    def _make(self, document: int, start: int, frames: int, ends: bool) -> Example:
        codes = np.ascontiguousarray(self.store.codes(document)[start : start + frames].T)  # (MQ, T)
        return behind_prefix(self.layout, codes, ends, self.prefix)

    def example(self, position: int) -> Example:
        """See `Stretches.example`; a share of its codes, drawn for each, is not shown."""
        example, layout = super().example(position), self.layout
        rng = generator(self.seed, "hidden", position)
        share = self.hidden * float(torch.rand((), generator=rng))
        if not share:
            return example
        run = max(1, round(HIDDEN_RUN * len(example) / self.place(position)[2]))  # steps
        first = self.prefix + layout.lead
        inputs = hide_steps(example.inputs, first, run, share, layout.vocabulary.pad or 0, rng)
        return replace(example, inputs=inputs)

    def batch(self, rows: Sequence[Sequence[int]]) -> ConditionedBatch:
        """Rows of positions as a batch."""
        examples = [[self.example(position) for position in row] for row in rows]
        drawn = [self.conditions.draw(self.place(position)[0], position) for row in rows for position in row]
        return self._joined(examples, [value for value, _ in drawn], [dropped for _, dropped in drawn])

    def fixed_batch(self, slots: Sequence[int]) -> ConditionedBatch | None:
        """The stretches of slots as a batch, one a row, none without its condition."""
        if not len(slots):
            return None
        values = [self.conditions.fixed(self.recording(slot)) for slot in slots]
        return self._joined([[self.fixed(slot)] for slot in slots], values, [False] * len(values))

    def _joined(
        self, rows: Sequence[Sequence[Example]], values: Sequence[Tensor], dropped: Sequence[bool]
    ) -> ConditionedBatch:
        batch = make_batch(self.layout, rows)
        where, number = torch.full(batch.places.shape, -1), 0
        for index, row in enumerate(rows):
            start = 0
            for example in row:
                where[index, start : start + self.prefix] = number + torch.arange(self.prefix)
                number, start = number + self.prefix, start + len(example)
        parts = {item.name: getattr(batch, item.name) for item in fields(batch)}
        return ConditionedBatch(**parts, values=torch.stack(list(values)), dropped=torch.tensor(dropped), where=where)


class ConditionedCells(Cells):
    """Cross entropy of every code, and of the end, behind conditions.

    Args:
        model: the decoder.
        layout: of its ids.
        facts: JSON values for the exported model's config.json, such as what made the conditions.
    """

    model: ConditionedGPT

    def __init__(self, model: ConditionedGPT, layout: Layout, facts: dict[str, Any]):
        super().__init__(model, layout)
        self.facts = facts

    def empty(self) -> ConditionedGPT:
        """See `Objective.empty`."""
        return self.model.like()

    def prepare(self, batch: ConditionedBatch, flex: bool = False) -> tuple[Any, ...]:  # type: ignore[override]
        """Inputs, targets, places and mask of `Cells.prepare`; places of prefixes, conditions, which are left out."""
        return *super().prepare(batch, flex), batch.where, batch.values, batch.dropped

    def forward(  # type: ignore[override]
        self, inputs: Tensor, targets: Tensor, places: Tensor | None, mask: Any, where: Tensor, values: Tensor,
        dropped: Tensor,
    ) -> Tensor:  # fmt: skip
        """(B, L, W) nats of every cell; 0 where there is nothing to predict."""
        logits = self._logits(self.model, inputs, targets, places, mask, where, values, dropped)
        return cell_nats(self.layout, logits, targets)

    def bits(self, model: nn.Module, batch: ConditionedBatch) -> Tensor:  # type: ignore[override]
        """See `Objective.bits`."""
        return code_bits(self.layout, self._logits(model, *self.prepare(batch)), batch)

    def _logits(
        self, model: Any, inputs: Tensor, targets: Tensor, places: Tensor | None, mask: Any, where: Tensor,
        values: Tensor, dropped: Tensor,
    ) -> list[Tensor]:  # fmt: skip
        hidden = model.read_rows(inputs, where, values, dropped, places, mask)
        steps = None if self.layout.flat else targets.masked_fill(targets == IGNORED, self.layout.vocabulary.pad or 0)
        return model.slot_logits(hidden, self.layout, steps)


def make_trainer(
    run: Run, config: Any, store: TokenStore | JoinedStore, conditions: Conditions, facts: dict[str, Any],
    listen: Listen | None = None,
) -> Trainer:  # fmt: skip
    """The trainer of a run over all recordings that have a condition.

    Args:
        run: the open run folder.
        config: an `LMTrainConfig` with `condition`, whose `size` is set.
        store: the tokens.
        conditions: of its recordings.
        facts: see `ConditionedCells`.
        listen: writes samples at every validation.

    Raises:
        XcodecLMError: no recording of split train has a condition.
    """
    layout = layout_from(config.model.layout, store.spec)
    block, seed, prefix = config.model.block, config.run.seed, config.condition.tokens
    data = config.data
    train = ConditionedStretches(store, "train", layout, block, seed, conditions, prefix, data.pack, data.hidden)
    dev = ConditionedStretches(store, "dev", layout, block, seed, conditions, prefix)
    if not len(train):
        raise XcodecLMError(
            f"{store.folder} has no recording of split train with a condition: {len(train.left_out)} without",
            "tokenize a manifest whose rows have the field that conditions come from",
        )
    model = ConditionedGPT(config.model, layout.vocabulary.size, config.condition).to(run.device)
    if config.init:
        start_from(model, config.init, store.spec)
    material = Material(store, train, dev, *row_counts(config, layout))
    return Trainer(run, config, ConditionedCells(model, layout, facts), material, listen)


def parameter_count(config: Any, vocab_size: int) -> int:
    """Parameters of the model of a run, conditioner included, without making it."""
    with torch.device("meta"):
        return ConditionedGPT(config.model, vocab_size, config.condition).parameter_count()
