"""How codes (R, T) become steps of a language model, and back: every token layout of the field behind one interface.

A layout is a grid. Step s of the model reads and predicts the `width` ids of row s; a cell of the grid holds one code,
or nothing (a filler). All layouts end in the same way: eos stands where the first row's code of frame T would stand, so
what came before is the grid of T frames, whatever length was planned. A recording of T frames has R * T codes and one
eos, each once, in every layout.

    first         the first codebook alone                                     S = T
    single        the one codebook of a codec that has no more                 S = T
    flatten       n_q codebooks frame by frame: t0q0, t0q1, ..., t1q0, ...     S = n_q T
    coarse_first  chunks of frames; in each, codebook after codebook           S = n_q T
    dual_track    several tracks frame by frame: vocal, accompaniment, ...     S = tracks * n_q * T
    delay         n_q at once, codebook k `delays[k]` steps later              S = T + max delay
    parallel      n_q at once                                                  S = T
    depth         n_q a step, one after the other in an inner model            S = T
    grouped       `group` frames of the first codebook at once                 S = T / group
    ar_nar        the first codebook, then each other one over all frames      S = T, and n_q - 1 passes

Sources: X-Codec (arXiv 2408.17175) appendix; AudioLM (2209.03143); MusicGen (2306.05284); UniAudio (2310.00704);
VALL-E (2301.02111) and VALL-E 2 (2406.05370); LLaSA (2502.04128); YuE (2503.08638).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.lm import LayoutConfig
from xcodec_lm.lm.vocabulary import Vocabulary

FILLER, END = -1, -2
"""Rows of cells that hold no code: nothing at all, or eos."""
Inner = Literal["none", "parallel", "depth", "nar"]
"""How the ids of a step depend on each other: there is one; not at all; each on those before; all on all frames."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The grid of a number of frames.

    Attributes:
        frames: T.
        rows: (S, W) row of the codes that each cell holds, counted among those that the layout carries, or `FILLER`, or
            `END`.
        times: (S, W) frame of each cell; T at the `END`, -1 at fillers.
        ready: (T,) steps after which each frame is complete; never decreases.
    """

    frames: int
    rows: np.ndarray
    times: np.ndarray
    ready: np.ndarray

    @property
    def steps(self) -> int:
        """S."""
        return len(self.rows)

    def frames_ready(self, steps: int) -> int:
        """Frames that are complete after so many steps."""
        return int(np.searchsorted(self.ready, steps, side="right"))


@dataclass(frozen=True)
class Layout:
    """A layout for the tokens of one codec; made by `layout_from`.

    Attributes:
        name: one of those in the module's docstring.
        vocabulary: ids; its tables are the slots of a step, or, with one id a step, the rows.
        books: rows of the codec's codes (tracks * quantizers, track-major) that it carries, R in number.
        width: W, ids in a step.
        delays: of each row, in steps; zeros but for `delay`.
        chunk: frames in a chunk of `coarse_first`; 0 makes the whole one chunk.
    """

    name: str
    vocabulary: Vocabulary
    books: tuple[int, ...]
    width: int = 1
    delays: tuple[int, ...] = ()
    chunk: int = 0

    # ------------------------------------------------------------------ shape

    @property
    def inner(self) -> Inner:
        """How the ids of a step depend on each other."""
        if self.width == 1:
            return "none"
        return {"depth": "depth", "ar_nar": "nar"}.get(self.name, "parallel")  # type: ignore[return-value]

    @property
    def flat(self) -> bool:
        """Whether a step is one id, so that any engine for text models can serve it."""
        return self.width == 1

    @property
    def period(self) -> int:
        """Steps after which what may stand in a step repeats; sequences of flat layouts are cut at multiples of it."""
        if self.name == "coarse_first":
            return len(self.books) * self.chunk
        return len(self.books) if self.flat else 1

    @property
    def lead(self) -> int:
        """Steps in front of the codes: 1 (bos) or 0."""
        return 1 if self.vocabulary.specials else 0

    @lru_cache(maxsize=256)  # noqa: B019 - layouts are few and small
    def plan(self, frames: int, end: bool = True) -> Plan:
        """The grid of a number of frames.

        Args:
            frames: T, from 0.
            end: whether eos follows, in vocabularies that have it.
        """
        count = len(self.books)
        row, time = (part.reshape(-1) for part in np.meshgrid(np.arange(count), np.arange(frames), indexing="ij"))
        end = end and self.vocabulary.specials
        if end:
            row, time = np.append(row, 0), np.append(time, frames)
        step, slot = self._place(row, time, frames, end)
        steps = int(step.max()) + 1 if len(step) else 0
        rows = np.full((steps, self.width), FILLER)
        times = np.full((steps, self.width), -1)
        rows[step, slot], times[step, slot] = row, time
        if end:
            rows[step[-1], slot[-1]] = END
        ready = np.zeros(frames, dtype=np.int64)
        np.maximum.at(ready, time[time < frames], step[time < frames] + 1)
        if self.inner == "nar":
            ready[:] = steps  # refined over the whole utterance
        for array in (rows, times, ready):
            array.setflags(write=False)
        return Plan(frames, rows, times, np.maximum.accumulate(ready))

    def _place(self, row: np.ndarray, time: np.ndarray, frames: int, end: bool) -> tuple[np.ndarray, np.ndarray]:
        """Step and slot of cells."""
        count, here = len(self.books), np.zeros_like(row)
        if self.name == "grouped":
            return time // self.width, time % self.width
        if self.name == "coarse_first":
            chunk = self.chunk or frames + 1
            number, within = time // chunk, time % chunk
            held = np.clip(frames - number * chunk, 0, chunk)  # frames in the cell's chunk
            firsts = held + (end & (frames // chunk == number))  # cells of its first row: eos is one of them
            later = firsts + (row - 1) * held
            return number * chunk * count + np.where(row == 0, 0, later) + within, here
        if self.flat:
            return time * count + row, here
        return time + np.asarray(self.delays or (0,) * count)[row], row

    def table(self, step: int, slot: int = 0) -> int:
        """Which table of the vocabulary the id of a cell comes from, in a grid of enough frames."""
        if not self.flat:
            return slot
        if self.name != "coarse_first":
            return step % len(self.books)
        if not self.chunk:
            raise TokenError("coarse_first in one chunk has no fixed ranges", "set model.layout.chunk, or use the plan")
        return step // self.chunk % len(self.books)

    def logit_range(self, step: int, slot: int = 0) -> tuple[int, int]:
        """Ids of codes (low, high), high exclusive, that may stand in a cell; steps count from the first code.

        Raises:
            TokenError: for `coarse_first` in one chunk, whose ranges depend on the number of frames.
        """
        return self.vocabulary.id_range(self.table(step, slot))

    def may_end(self, step: int, slot: int = 0) -> bool:
        """Whether eos may stand in a cell: where a code of the first row may."""
        if not self.vocabulary.specials:
            return False
        if self.name == "grouped":
            return True
        return self.table(step, slot) == 0

    def slot_ids(self, slot: int) -> list[int]:
        """Ids that may ever be drawn in a slot: for one id a step all of them, else one table's, and eos if it may."""
        vocabulary = self.vocabulary
        if self.flat:
            return list(range(vocabulary.size))
        low, high = vocabulary.id_range(slot)
        eos = [vocabulary.eos] if self.may_end(0, slot) and vocabulary.eos is not None else []
        return [*range(low, high), *eos]

    def frames_in(self, steps: int) -> int:
        """Most frames whose codes take at most so many steps."""
        if self.flat:
            return steps // len(self.books)
        return steps * self.width if self.name == "grouped" else max(0, steps - max(self.delays, default=0))

    def steps_for(self, frames: int) -> int:
        """Steps that so many frames take, without eos."""
        return self.plan(frames, end=False).steps

    def cost(self, frames: int) -> dict[str, int]:
        """What decoding so many frames takes: steps of the outer model, cells of an inner one, positions kept in its
        cache, and pairs of positions that attention compares."""
        steps = self.lead + self.plan(frames).steps
        inner = frames * self.width if self.inner == "depth" else 0
        passes = self.width - 1 if self.inner == "nar" else 0
        return {
            "steps": steps,
            "inner_steps": inner,
            "cache_positions": steps,
            "attention_pairs": steps * (steps + 1) // 2 + passes * frames * frames,
        }

    # ------------------------------------------------------------------ codes and ids

    def carried(self, codes: Tensor) -> Tensor:
        """The rows (..., R, T) of codes (..., M Q, T) that the layout carries, checked.

        Raises:
            TokenError: too few rows, or a code outside its codebook.
        """
        if codes.dim() not in (2, 3) or codes.shape[-2] <= max(self.books):
            raise TokenError(
                f"layout {self.name} takes codes (Q, T) with Q >= {max(self.books) + 1}, got {tuple(codes.shape)}"
            )
        codes = codes[..., list(self.books), :].long()
        sizes = torch.tensor(self._row_sizes(), device=codes.device)
        bad = (codes < 0) | (codes >= sizes[:, None])
        if bad.any():
            place = bad.nonzero()[0].tolist()
            row, frame = place[-2:]
            raise TokenError(
                f"code {int(codes[tuple(place)])} of quantizer {self.books[row]}, frame {frame} is outside "
                f"0..{int(sizes[row]) - 1}"
            )
        return codes

    def pack(self, codes: Tensor, end: bool = False) -> Tensor:
        """Codes as ids.

        Args:
            codes: (MQ, T) or (B, MQ, T) integers; the rows in `books` are taken.
            end: whether eos follows, in vocabularies that have it.

        Returns:
            (S, W) or (B, S, W) int64.

        Raises:
            TokenError: too few codebooks, or a code outside its codebook.
        """
        codes = self.carried(codes)
        plan = self.plan(codes.shape[-1], end)
        rows, times = (torch.from_numpy(part.clip(0)).to(codes.device) for part in (plan.rows, plan.times))
        if not codes.shape[-1]:
            codes = torch.nn.functional.pad(codes, (0, 1))
        ids = codes[..., rows, times.clamp(max=codes.shape[-1] - 1)] + self._firsts(plan).to(codes.device)
        special = torch.from_numpy(self._specials(plan)).to(codes.device)
        return torch.where(special >= 0, special, ids)

    def unpack(self, ids: Tensor, frames: int | None = None) -> Tensor:
        """Ids as codes; the inverse of `pack`.

        Args:
            ids: (S, W) or (B, S, W) integers, without bos.
            frames: T; None takes the place of eos, or the length of ids.

        Returns:
            (R, T) or (B, R, T) int64.

        Raises:
            TokenError: the length fits no number of frames, or an id is not one of its place.
        """
        ids = ids.long()
        if ids.dim() not in (2, 3) or ids.shape[-1] != self.width:
            raise TokenError(f"layout {self.name} takes ids (S, {self.width}), got {tuple(ids.shape)}")
        plan = self._plan_of(ids if ids.dim() == 2 else ids[0], frames)
        special, firsts = torch.from_numpy(self._specials(plan)).to(ids.device), self._firsts(plan).to(ids.device)
        sizes = torch.from_numpy(np.array(self._row_sizes())[plan.rows.clip(0)]).to(ids.device)
        bad = torch.where(special >= 0, ids != special, (ids < firsts) | (ids >= firsts + sizes))
        if bad.any():
            place = bad.nonzero()[0].tolist()
            step, slot = place[-2:]
            row, value = int(plan.rows[step, slot]), int(ids[tuple(place)])
            at = f"step {step}" if self.flat else f"step {step}, slot {slot}"
            if row < 0:
                wanted = "eos" if row == END else "no code"
                raise TokenError(f"id {value} at {at} stands where {wanted} belongs, id {int(special[step, slot])}")
            low = int(firsts[step, slot])
            raise TokenError(
                f"id {value} at {at} is outside {low}..{low + int(sizes[step, slot]) - 1}, "
                f"the ids of quantizer {self.books[row]}"
            )
        codes = ids.new_zeros(*ids.shape[:-2], len(self.books), plan.frames)
        held = torch.from_numpy(plan.rows >= 0).to(ids.device)
        rows, times = torch.from_numpy(plan.rows[plan.rows >= 0]), torch.from_numpy(plan.times[plan.rows >= 0])
        codes[..., rows, times] = (ids - firsts)[..., held]
        return codes

    def forced(self, codes: Tensor) -> Tensor:
        """What is certain of a grid before anything is predicted: cells that hold nothing, and codes that are given.

        Args:
            codes: (R, T) codes of the carried rows; negative where they are not known.

        Returns:
            (S, W) ids of the grid without eos; -1 where a code is to be predicted. Without pad, empty cells are 0.
        """
        plan = self.plan(codes.shape[1], end=False)
        if not codes.shape[1]:
            return torch.zeros(0, self.width, dtype=torch.int64)
        held = codes.cpu().long()[plan.rows.clip(0), plan.times.clip(0)]
        ids = torch.where(held >= 0, held + self._firsts(plan), -1)
        special = torch.from_numpy(self._specials(plan))
        return torch.where(special >= 0, special, ids)

    def resume(self, codes: Tensor) -> tuple[Tensor, Tensor, int]:
        """How a prompt stands in a grid that goes on behind it.

        Args:
            codes: (MQ, T0).

        Returns:
            ids (S0, W) with pad, or 0 without one, where they are not known yet; known (S0, W) bool; and the first step
            that has something to predict.
        """
        codes = self.carried(codes)
        given, unit = codes.shape[-1], self.chunk or 1
        beyond = given + max(self.delays, default=0) + self.width + unit
        known_codes = torch.nn.functional.pad(codes.cpu(), (0, -(-beyond // unit) * unit - given), value=-1)
        plan, ids = self.plan(known_codes.shape[1], end=False), self.forced(known_codes)
        prompt = ((plan.times < given) & (plan.rows >= 0)).any(axis=1).nonzero()[0]
        count = int(prompt[-1]) + 1 if len(prompt) else 0
        following = int((ids < 0).any(dim=1).nonzero()[0])
        return torch.where(ids < 0, self.vocabulary.pad or 0, ids)[:count], (ids >= 0)[:count], following

    def tables(self, plan: Plan) -> np.ndarray:
        """(S, W) table of the vocabulary that each cell's id comes from; 0 where it holds no code."""
        return plan.rows.clip(0) if self.flat else np.broadcast_to(np.arange(self.width), plan.rows.shape)

    def _firsts(self, plan: Plan) -> Tensor:
        """(S, W) id of code 0 of each cell."""
        firsts = np.array([self.vocabulary.first_id(table) for table in range(len(self.vocabulary.sizes))])
        return torch.from_numpy(firsts[self.tables(plan)])

    def _specials(self, plan: Plan) -> np.ndarray:
        """(S, W) the id of cells without a code, -1 elsewhere."""
        pad, eos = self.vocabulary.pad, self.vocabulary.eos
        special = np.full(plan.rows.shape, -1)
        special[plan.rows == FILLER] = 0 if pad is None else pad
        special[plan.rows == END] = -1 if eos is None else eos
        return special

    def _row_sizes(self) -> list[int]:
        """Codes in each carried row's codebook."""
        return [self.vocabulary.sizes[0 if self.name == "grouped" else row] for row in range(len(self.books))]

    def _plan_of(self, ids: Tensor, frames: int | None) -> Plan:
        """The grid that ids (S, W) stand in."""
        steps, eos = len(ids), self.vocabulary.eos
        places = [] if eos is None else (ids == eos).nonzero().tolist()
        candidates = [frames] if frames is not None else []
        if frames is None and places:
            step, slot = places[0]
            wide = self.plan(steps * self.width + 1, end=False)
            if self.name == "coarse_first" and not self.chunk:
                candidates = [step]
            elif wide.rows[step, slot] == 0:
                candidates = [int(wide.times[step, slot])]
        elif frames is None:
            most = self.frames_in(steps)
            candidates = list(range(most, max(-1, most - self.width), -1))
        for candidate in candidates:
            plan = self.plan(candidate, end=bool(places))
            pads = torch.from_numpy(plan.rows == FILLER)
            tells_apart = self.name == "grouped" and self.width > 1  # groups that are not full take as many steps
            if plan.steps == steps and (not tells_apart or torch.equal(pads, ids.cpu() == self.vocabulary.pad)):
                return plan
        raise TokenError(
            f"{steps} steps of layout {self.name} hold no whole number of frames"
            + (f" ending at step {places[0][0]}" if places else ""),
            "they are cut off, or of another layout",
        )


def layout_from(config: LayoutConfig, spec: TokenSpec) -> Layout:
    """The layout of a configuration for the tokens of a codec.

    Raises:
        TokenError: the codec has fewer quantizers, or another number of tracks.
    """
    n_q, name = config.n_q, config.name
    if n_q > spec.n_q:
        raise TokenError(
            f"layout.n_q is {n_q}, but {spec.name} has {spec.n_q} quantizers",
            f"set model.layout.n_q to at most {spec.n_q}",
        )
    if name == "single" and spec.n_q != 1:
        raise TokenError(
            f"layout single is for codecs of one codebook, but {spec.name} has {spec.n_q}", "use first, or flatten"
        )
    if (name == "dual_track") != (len(spec.tracks) > 1):
        raise TokenError(
            f"layout {name} holds {'several tracks' if name == 'dual_track' else 'one track'}, but {spec.name} has "
            f"{', '.join(spec.tracks)}",
            "use dual_track for tokens of several tracks, any other layout for those of one",
        )
    books = tuple(track * spec.n_q + q for track in range(len(spec.tracks)) for q in range(n_q))
    sizes = tuple(spec.codebook_sizes[q] for _ in spec.tracks for q in range(n_q))
    width, delays = 1, ()
    if name == "grouped":
        width, sizes = config.group, spec.codebook_sizes[:1] * config.group
    elif name in ("delay", "parallel", "depth", "ar_nar"):
        width = n_q
        delays = (config.delays or tuple(range(n_q))) if name == "delay" else ()
    vocabulary = Vocabulary(
        sizes,
        shared=config.ids == "shared",
        specials=config.specials == "standard",
        base=config.first_id,
        total=config.vocabulary_size,
    )
    return Layout(name, vocabulary, books, width, delays, config.chunk)
