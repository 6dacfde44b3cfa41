"""One request to the engine as it is decoded: what is known of its codes, where it stands, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.lm.layouts import END, Layout, Plan
from xcodec_lm.lm.sampling import NO_ID, Sampling, row_noise

UNKNOWN = -1
"""Stands for a code that is to be drawn."""


@dataclass(frozen=True)
class Request:
    """What is to be continued, and how.

    Attributes:
        frames: frames to add behind the prompt, at most; exactly so many unless it may end.
        prompt: (MQ, T0) codes, rows as the codec has them; None begins with nothing.
        sampling: how codes are drawn.
        seed: the draws are a function of it and of the place in the sequence, whatever else is decoded.
        may_end: whether the model may end earlier, by eos.
        min_frames: frames to add at least before it may end.
        given: (MQ, frames) codes of the continuation that are known, and `UNKNOWN` elsewhere: a second stage that is
            told the first codebook. None knows nothing.
        prefix: (P, D) vectors in front of all, a conditioner's.
        negative: (P, D) as `prefix`, for the other half of classifier-free guidance (`sampling.cfg_scale`).
    """

    frames: int
    prompt: Tensor | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    seed: int = 0
    may_end: bool = False
    min_frames: int = 0
    given: Tensor | None = None
    prefix: Tensor | None = None
    negative: Tensor | None = None


@dataclass
class Made:
    """What became of a request.

    Attributes:
        codes: (R, T0 + T) int64 codes of prompt and continuation, in the rows that the layout carries.
        prompt_frames: T0.
        ended: whether the model ended it.
        refills: how often the context was full, and its last half read again as the new one.
        error: why it could not be decoded; the codes are then those that were made before.
    """

    codes: Tensor
    prompt_frames: int
    ended: bool = False
    refills: int = 0
    error: XcodecLMError | None = None


@dataclass
class Cell:
    """A code to draw.

    Attributes:
        slot: of the step.
        row: of the codes.
        time: frame, of the whole sequence.
        low: first id of the codebook.
        size: codes in it.
        may_end: whether eos may be drawn instead.
    """

    slot: int
    row: int
    time: int
    low: int
    size: int
    may_end: bool


@dataclass
class Sequence:
    """A request while it is decoded.

    Attributes:
        request: what was asked.
        layout: of the model.
        limit: positions that the model has for steps, bos included.
    """

    request: Request
    layout: Layout
    limit: int
    codes: np.ndarray = field(init=False)
    plan: Plan = field(init=False)
    origin: int = 0  # frame that the grid begins with
    step: int = 0  # steps whose cells are filled
    emitted: int = 0  # frames that were handed on
    ended: bool = False
    refills: int = 0

    def __post_init__(self):
        request, layout = self.request, self.layout
        if request.frames < 0:
            raise UsageError(f"the number of frames must not be negative, got {request.frames}")
        if not 0 <= request.min_frames <= request.frames:
            raise UsageError(f"min_frames {request.min_frames} must lie within 0..{request.frames}, the frames to make")
        prompt = torch.zeros(max(layout.books) + 1, 0) if request.prompt is None else request.prompt
        if prompt.dim() != 2:
            raise TokenError(f"a prompt must be codes (Q, T), got {tuple(prompt.shape)}", "one request a recording")
        known = layout.carried(prompt.cpu()).numpy()
        self.prompt_frames = self.emitted = known.shape[1]
        if not self.prompt_frames and not layout.lead and request.prefix is None:
            raise TokenError(
                "an empty prompt cannot be continued: this vocabulary has no bos", "give at least one frame"
            )
        if request.may_end and layout.vocabulary.eos is None:
            raise UsageError("this vocabulary has no eos, so the model cannot end by itself", "leave out may_end")
        total = self.prompt_frames + request.frames
        self.codes = np.full((len(layout.books), total), UNKNOWN, dtype=np.int64)
        self.codes[:, : self.prompt_frames] = known
        if request.given is not None:
            given = request.given.cpu()
            if given.dim() != 2 or given.shape[1] != request.frames:
                raise TokenError(f"given codes must be (Q, {request.frames}), got {tuple(given.shape)}")
            checked = layout.carried(given.clamp(min=0)).numpy()
            self.codes[:, self.prompt_frames :] = np.where(given[list(layout.books)].numpy() >= 0, checked, UNKNOWN)
        self._settings = [request.sampling.for_book(book) for book in layout.books]
        if layout.name == "coarse_first" and not layout.chunk and layout.lead + layout.steps_for(total) > self.limit:
            raise TokenError(
                f"{total} frames of coarse_first in one chunk take {layout.steps_for(total)} steps, but the model has "
                f"{self.limit} positions",
                "ask for fewer frames, or train with model.layout.chunk",
            )
        self._lay_out()

    @property
    def total(self) -> int:
        """Frames in all, if it does not end earlier."""
        return self.codes.shape[1]

    @property
    def done(self) -> bool:
        """Whether nothing is left to fill."""
        return self.step >= self.plan.steps

    @property
    def ready(self) -> int:
        """Frames from the beginning that are complete."""
        return min(self.origin + self.plan.frames_ready(self.step), self.total)

    def _lay_out(self) -> None:
        """The grid from `origin` on, and the first step with something to draw."""
        self.plan = self.layout.plan(self.total - self.origin, end=self.ended)
        held = self.codes[:, self.origin :]
        unknown = (self.plan.rows >= 0) & (
            held[self.plan.rows.clip(0), self.plan.times.clip(0, max(held.shape[1] - 1, 0))] == UNKNOWN
            if held.shape[1]
            else False
        )
        open_steps = unknown.any(axis=1).nonzero()[0]
        self.step = int(open_steps[0]) if len(open_steps) else self.plan.steps

    def context(self) -> Tensor:
        """(L, W) ids to read before the next step is filled, bos included; begins a new context where they are too
        many.

        Raises:
            TokenError: the context cannot hold what one step needs.
        """
        lead = self.layout.lead
        if lead + self.step > self.limit:
            self._begin_again()
        return self._ids(-lead, self.step)

    def last(self) -> Tensor | None:
        """(W,) ids of the last step that was filled, to be read next; None if the context is full."""
        if self.layout.lead + self.step > self.limit:
            return None
        return self._ids(self.step - 1, self.step)[0]

    def _ids(self, start: int, stop: int) -> Tensor:
        """(stop - start, W) ids of steps; those before 0 are bos."""
        vocabulary, layout = self.layout.vocabulary, self.layout
        rows, times = self.plan.rows[max(start, 0) : stop], self.plan.times[max(start, 0) : stop]
        filler = 0 if vocabulary.pad is None else vocabulary.pad
        ids = np.full((stop - start, layout.width), filler, dtype=np.int64)
        if start < 0:
            ids[:-start, 0] = vocabulary.bos
        held = self.codes[:, self.origin :]
        if held.shape[1]:
            values = held[rows.clip(0), times.clip(0, held.shape[1] - 1)]
            tables = layout.tables(self.plan)[max(start, 0) : stop]
            firsts = np.array([vocabulary.first_id(table) for table in range(len(vocabulary.sizes))])[tables]
            ids[max(-start, 0) :] = np.where(rows >= 0, values + firsts, filler)
        if vocabulary.eos is not None:
            ids[max(-start, 0) :][rows == END] = vocabulary.eos
        return torch.from_numpy(ids)

    def _begin_again(self) -> None:
        """Makes the last half of a block the new context."""
        layout, ready = self.layout, self.ready
        keep = layout.frames_in(self.limit // 2 - layout.lead)
        unit = layout.chunk or 1
        origin = -(-max(ready - keep, 0) // unit) * unit
        if origin > ready or origin <= self.origin:
            origin = ready // unit * unit
        before = self.origin
        self.origin = origin
        self._lay_out()
        self.refills += 1
        if layout.lead + self.step > self.limit or (not layout.lead and not self.step) or origin <= before:
            raise TokenError(
                f"a block of {self.limit - layout.lead} steps does not hold two frames of layout {layout.name}",
                "train with a larger model.block",
            )

    def cells(self) -> list[Cell]:
        """The codes to draw in the next step, in the order of slots; none where all are known."""
        layout, step = self.layout, self.step
        tables = layout.tables(self.plan)[step]
        found = []
        for slot in range(layout.width):
            row, time = int(self.plan.rows[step, slot]), int(self.plan.times[step, slot]) + self.origin
            if row < 0 or self.codes[row, time] != UNKNOWN:
                continue
            low, high = layout.vocabulary.id_range(int(tables[slot]))
            added = time - self.prompt_frames
            may_end = self.request.may_end and row == 0 and added >= max(self.request.min_frames, 0)
            found.append(Cell(slot, row, time, low, high - low, may_end and not self.ended))
        return found

    def still_open(self, cell: Cell) -> bool:
        """Whether a cell of `cells` is to be drawn yet: none is that lies behind an eos drawn in the same step."""
        return int(self.plan.rows[self.step, cell.slot]) == cell.row and cell.time < self.total

    def settings(self, cell: Cell) -> Sampling:
        """How a cell is drawn."""
        return self._settings[cell.row]

    def noise(self, cell: Cell, count: int, redraw: bool = False) -> Tensor:
        """(count,) the noise of a cell's draw."""
        return row_noise(self.request.seed, cell.time * len(self.layout.books) + cell.row, count, redraw)

    def recent(self, cell: Cell, count: int) -> Tensor:
        """(count,) the codes before a cell in its codebook, the newest last."""
        before = self.codes[cell.row, max(0, cell.time - count) : cell.time]
        return torch.from_numpy(np.concatenate([np.full(count - len(before), NO_ID), before]))

    def put(self, cell: Cell, column: int) -> int:
        """Fills a cell with a drawn column, the one behind the codes being eos; returns its id."""
        if column < cell.size:
            self.codes[cell.row, cell.time] = column
            return cell.low + column
        self.ended = True
        self.codes = self.codes[:, : cell.time]
        self.plan = self.layout.plan(cell.time - self.origin, end=True)
        eos = self.layout.vocabulary.eos
        assert eos is not None
        return eos

    def known_id(self, slot: int) -> int:
        """The id of a slot of the next step that is not drawn."""
        return int(self._ids(self.step, self.step + 1)[0, slot])

    def advance(self) -> None:
        """Goes on to the next step."""
        self.step += 1

    def take(self) -> Tensor | None:
        """(R, T) the frames that became complete since the last call, or None."""
        ready = self.ready
        if ready <= self.emitted:
            return None
        fresh = torch.from_numpy(self.codes[:, self.emitted : ready].copy())
        self.emitted = ready
        return fresh

    def made(self, error: XcodecLMError | None = None) -> Made:
        """The result; what is not complete is left out."""
        codes = torch.from_numpy(self.codes[:, : self.total if self.done else max(self.ready, self.prompt_frames)])
        return Made(codes.clone(), self.prompt_frames, self.ended, self.refills, error)
