"""What a model reads and predicts: stretches of recordings as inputs and targets, one or several to a row.

A stretch reads bos, where there is one, and the steps of its codes but the last; every position predicts the step after
it. Where the recording ends, eos is predicted too. Stretches that share a row do not see each other (`document`) and
count positions from 0 each (`places`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import FILLER, Layout

IGNORED = -100
"""Target that no loss counts; the default `ignore_index` of PyTorch's cross entropy."""
HIDDEN_RUN = 20
"""Mean length of what a model is not shown at once in training, in frames."""


@dataclass(frozen=True)
class Example:
    """A stretch of a recording.

    Attributes:
        inputs: (L, W) ids that are read.
        targets: (L, W) ids that are predicted; `IGNORED` where there is nothing to predict.
        rows: (L, W) row of the codes that each target belongs to; `END` for eos, `FILLER` where there is none.
        times: (L, W) frame of each target within the stretch.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    times: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Batch:
    """Rows of examples, padded on the right.

    Attributes:
        inputs: (B, L, W).
        targets: (B, L, W).
        rows: (B, L, W).
        places: (B, L) position of each step in its stretch.
        document: (B, L) number of the stretch within the row; -1 is padding. None where every row holds one stretch.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    places: Tensor
    document: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same elsewhere."""
        moved = [
            None if part is None else part.to(device, non_blocking=True)
            for part in (self.inputs, self.targets, self.rows, self.places, self.document)
        ]
        return Batch(*moved)  # type: ignore[arg-type]


def make_example(layout: Layout, codes: np.ndarray | Tensor, ends: bool) -> Example:
    """What is read and predicted of a stretch of a recording.

    Args:
        layout: of the ids.
        codes: (MQ, T) of the stretch.
        ends: whether the recording ends with it, so that eos follows in vocabularies that have it.

    Returns:
        An example of as many positions as steps; one less without bos, where nothing predicts the first step.
    """
    codes = torch.as_tensor(np.asarray(codes, dtype=np.int64)) if isinstance(codes, np.ndarray) else codes.long()
    plan, ids = layout.plan(codes.shape[1], ends), layout.pack(codes, ends)
    rows, times = torch.from_numpy(plan.rows.copy()), torch.from_numpy(plan.times.copy())
    targets = ids.masked_fill(rows == FILLER, IGNORED)
    if not layout.lead:
        return Example(ids[:-1], targets[1:], rows[1:], times[1:])
    first = torch.full((1, layout.width), layout.vocabulary.pad or 0)
    first[0, 0] = layout.vocabulary.bos or 0
    return Example(torch.cat([first, ids[:-1]]), targets, rows, times)


def hide_steps(inputs: Tensor, first: int, run: int, share: float, pad: int, rng: torch.Generator) -> Tensor:
    """Ids that a model reads, some runs of which become pad, though it predicts what follows them.

    It is the part that dropout on the frames behind plays in Tacotron (arXiv 1703.10135, section 3.3): audio goes on
    well from what came last, without a text or another condition, and a model that is always shown it reads these late.

    Args:
        inputs: (L, W).
        first: steps before it stay: conditions, bos.
        run: mean length of a run in steps.
        share: of the steps, about; below 1.
        pad: id in the place of those that are hidden.
        rng: of the draws.
    """
    runs = round(-math.log1p(-share) * (len(inputs) - first) / run)  # they may overlap
    if runs < 1:
        return inputs
    starts = torch.randint(first, len(inputs), (runs,), generator=rng)
    lengths = torch.randint(1, 2 * run, (runs,), generator=rng)
    places = torch.arange(len(inputs))
    unseen = ((places >= starts[:, None]) & (places < (starts + lengths)[:, None])).any(0)
    return inputs.masked_fill(unseen[:, None], pad)


def steps_of(layout: Layout, frames: int | np.ndarray, ends: bool | np.ndarray) -> int | np.ndarray:
    """Positions that stretches of so many frames take as examples, without making them."""
    lead, eos = layout.lead, layout.vocabulary.specials
    if isinstance(frames, np.ndarray):
        pairs, index = np.unique(np.stack([frames, np.broadcast_to(ends, frames.shape)]), axis=1, return_inverse=True)
        values = [steps_of(layout, int(count), bool(end)) for count, end in pairs.T]
        return np.array(values, dtype=np.int64)[index.reshape(-1)]
    return layout.plan(frames, bool(ends) and eos).steps - 1 + lead


def make_batch(layout: Layout, rows: Sequence[Sequence[Example]]) -> Batch:
    """Rows of one or several examples each, as one batch."""
    length = max(sum(len(example) for example in row) for row in rows)
    shape = (len(rows), length, layout.width)
    inputs = torch.full(shape, layout.vocabulary.pad or 0)
    targets, owners = torch.full(shape, IGNORED), torch.full(shape, FILLER)
    places, document = torch.zeros(shape[:2], dtype=torch.int64), torch.full(shape[:2], -1)
    for index, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            here = slice(start, start + len(example))
            inputs[index, here], targets[index, here] = example.inputs, example.targets
            owners[index, here], places[index, here] = example.rows, torch.arange(len(example))
            document[index, here] = number
            start += len(example)
        places[index, start:] = torch.arange(length - start)
    single = all(len(row) == 1 for row in rows)
    return Batch(inputs, targets, owners, places, None if single else document)


def cell_logits(
    model: GPT, layout: Layout, inputs: Tensor, targets: Tensor, places: Tensor | None = None, mask: Any = None
) -> list[Tensor]:
    """Logits (B, L, K_w) of every slot, see `GPT.slot_logits`.

    Args:
        model: whose.
        layout: of its ids.
        inputs: (B, L, W) of a batch.
        targets: (B, L, W), which an inner model reads slot by slot.
        places: (B, L) of a batch whose rows hold several stretches; None where each holds one.
        mask: of attention in such a batch.
    """
    hidden = model.hidden(inputs[..., 0] if layout.flat else inputs, places=places, mask=mask)
    return model.slot_logits(hidden, layout, None if layout.flat else known_steps(layout, targets))


def known_steps(layout: Layout, targets: Tensor) -> Tensor:
    """Targets (B, L, W) as an inner model reads them: pad where there is nothing to predict."""
    return torch.where(targets == IGNORED, layout.vocabulary.pad or 0, targets)


def cell_nats(layout: Layout, logits: list[Tensor], targets: Tensor) -> Tensor:
    """Cross entropy of every cell, as training minimises it: over all ids that its slot may hold.

    Args:
        layout: of the ids.
        logits: W tensors (B, L, K_w).
        targets: (B, L, W).

    Returns:
        (B, L, W) fp32; 0 where there is nothing to predict.
    """
    losses = []
    for slot, part in enumerate(logits):
        wanted = targets[..., slot]
        if not layout.flat:
            low, high = layout.vocabulary.id_range(slot)
            columns = torch.where(wanted == layout.vocabulary.eos, high - low, wanted - low)
            wanted = torch.where(wanted == IGNORED, IGNORED, columns)
        nats = F.cross_entropy(part.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
        losses.append(nats.view(wanted.shape))
    return torch.stack(losses, dim=2)


class Predicted(Protocol):
    """A batch as `code_bits` sees it: what is predicted, and the rows of the codes that it belongs to."""

    @property
    def targets(self) -> Tensor:
        """(B, L, W) ids."""
        ...

    @property
    def rows(self) -> Tensor:
        """(B, L, W)."""
        ...


def code_bits(layout: Layout, logits: list[Tensor], batch: Predicted) -> Tensor:
    """Bits of every code among those of its codebook, which is the distribution that decoding draws from.

    Returns:
        (B, L, W) fp32; 0 for cells that hold no code, eos among them.
    """
    vocabulary, found = layout.vocabulary, []
    for slot, part in enumerate(logits):
        wanted, rows = batch.targets[..., slot], batch.rows[..., slot]
        held = rows >= 0
        if layout.flat:
            allowed = torch.zeros(len(vocabulary.sizes), vocabulary.size, dtype=torch.bool)
            for table in range(len(vocabulary.sizes)):
                low, high = vocabulary.id_range(table)
                allowed[table, low:high] = True
            part = part.float().masked_fill(~allowed.to(part.device)[rows.clamp(min=0)], -torch.inf)
            columns = wanted
        else:
            low, high = vocabulary.id_range(slot)
            part, columns = part[..., : high - low].float(), wanted - low
        taken = part.log_softmax(-1).gather(-1, columns.where(held, 0)[..., None].clamp(min=0))[..., 0]
        found.append(torch.where(held, taken, 0) / -np.log(2))
    return torch.stack(found, dim=2)


@torch.inference_mode()
def recording_bits(model: GPT, layout: Layout, codes: Tensor, batch: int = 4) -> np.ndarray:
    """Bits of every code of a recording, each predicted once with at least half a block before it where there is one.

    Args:
        model: in eval mode.
        layout: of its ids.
        codes: (MQ, T).
        batch: windows read at once.

    Returns:
        (R, T); NaN for the first code in a vocabulary without bos, where nothing comes before it.
    """
    total = codes.shape[1]
    result = np.full((len(layout.books), total), np.nan)
    unit = layout.chunk or 1
    window = max(unit, layout.frames_in(model.config.block) // unit * unit)
    stride = max(unit, window // 2 // unit * unit)
    starts = [0, *range(stride, total - window + stride, stride)]
    for group in range(0, len(starts), batch):
        chosen = starts[group : group + batch]
        examples = [make_example(layout, codes[:, start : start + window], ends=False) for start in chosen]
        examples = [(start, example) for start, example in zip(chosen, examples, strict=True) if len(example)]
        if not examples:
            continue
        made = make_batch(layout, [[example] for _, example in examples]).to(model.device)
        bits = code_bits(layout, cell_logits(model, layout, made.inputs, made.targets), made).cpu().double().numpy()
        for index, (start, example) in enumerate(examples):
            rows, times = example.rows.numpy(), example.times.numpy() + start
            fresh = rows >= 0
            if start:
                fresh &= times >= start + window - stride
            result[rows[fresh], times[fresh]] = bits[index, : len(example)][fresh]
    return result
