"""Decoding: requests share a batch, each at its own place, and every one gets what it would get alone.

A lane is a row of the key-value cache. A request takes one, or two with classifier-free guidance; the prompt is read
once into it, then every turn reads one step of all lanes together and fills the next. A request that ends frees its
lanes for the next one at once. When a context is full, its last half becomes the new one and is read again, so that a
step costs the same however long the sequence, and a model goes on beyond the length it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.lm.cache import KVCache
from xcodec_lm.lm.graph import Decoder, GraphStep
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.requests import Cell, Made, Request, Sequence
from xcodec_lm.lm.sampling import Sampling, draw, guide

GREEDY = Sampling(temperature=0)


@dataclass
class Event:
    """Frames of a request that became complete.

    Attributes:
        index: of the request, in the order in which they were given.
        codes: (R, T) the new frames, or None when there are none.
        made: the whole result with the last event of a request, else None.
    """

    index: int
    codes: Tensor | None
    made: Made | None


@dataclass
class _Active:
    """A request that is being decoded: its sequence, its lanes, and what the model said about its next step."""

    index: int
    sequence: Sequence
    lanes: list[int]
    hidden: Tensor | None = None  # (lanes, D) of the last position
    prompt_hidden: Tensor | None = None  # the same when the prompt had been read, for others with the same prompt
    prompt_lengths: tuple[int, ...] = ()  # positions that each lane had read then


class Engine:
    """Decodes requests with a model.

    Args:
        model: in eval mode.
        layout: what its ids mean.
        lanes: rows of the cache, so the most requests at once (half as many with guidance).
        graph: read steps in shapes that never change, as one CUDA graph on a GPU: faster where starting kernels is what
            takes the time. None takes it on CUDA alone.

    Raises:
        UsageError: no lane, or a layout that is refined over all frames, which `lm.engine` does not do.
    """

    def __init__(self, model: Decoder, layout: Layout, lanes: int = 1, graph: bool | None = None):
        if lanes < 1:
            raise UsageError(f"an engine needs at least one lane, got {lanes}")
        if layout.inner == "nar":
            raise UsageError(f"layout {layout.name} is not decoded step by step")
        self.model, self.layout, self.lanes = model, layout, lanes
        self.graph = model.device.type == "cuda" if graph is None else graph
        self._cache: KVCache | None = None
        self._step: GraphStep | None = None
        self._inner: KVCache | None = None

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Decodes requests; they may be made while others are decoded, and one is taken whenever there is room.

        Args:
            requests: any number; a request that fails ends with an error in its `Made`, the others go on.

        Yields:
            Frames as they become complete, and with the last of each request its result.
        """
        waiting, self._active = enumerate(iter(requests)), []
        pending = next(waiting, None)
        while pending is not None or self._active:
            while pending is not None and (not self._active or self._fits(pending[1])):
                index, request = pending
                pending = next(waiting, None)
                yield from self._start(index, request)
            if self._active:
                yield from self._turn()

    def decode(self, requests: Seq[Request], progress: Callable[[int, int], None] | None = None) -> list[Made]:
        """The results of requests, in their order.

        Args:
            requests: what to decode.
            progress: called with frames done and frames asked for, over all requests.
        """
        made: list[Made | None] = [None] * len(requests)
        total, done = sum(max(request.frames, 0) for request in requests), 0
        for event in self.run(requests):
            done += 0 if event.codes is None else event.codes.shape[1]
            if progress is not None and event.codes is not None:
                progress(done, total)
            if event.made is not None:
                made[event.index] = event.made
        return [one for one in made if one is not None]

    # ------------------------------------------------------------------ requests come and go

    def _fits(self, request: Request) -> bool:
        used = sum(len(active.lanes) for active in self._active)
        return used + self._lanes_of(request) <= self.lanes

    def _lanes_of(self, request: Request) -> int:
        return 2 if request.negative is not None and request.sampling.cfg_scale != 1 else 1

    def _start(self, index: int, request: Request) -> Iterator[Event]:
        try:
            if self._lanes_of(request) > self.lanes:
                raise UsageError("guidance needs two lanes", "make the engine with lanes=2 or more")
            fronts = [request.prefix, request.negative][: self._lanes_of(request)]
            prefix = max(0 if front is None else len(front) for front in fronts)
            limit = self.model.positions - prefix
            sequence = Sequence(request, self.layout, limit)
            self._reserve(prefix + min(limit, self.layout.lead + self.layout.plan(sequence.total).steps))
        except XcodecLMError as error:
            yield Event(index, None, Made(torch.zeros(len(self.layout.books), 0, dtype=torch.int64), 0, error=error))
            return
        first = sum(len(active.lanes) for active in self._active)
        active = _Active(index, sequence, list(range(first, first + self._lanes_of(request))))
        self._active.append(active)
        if sequence.done:
            yield from self._finish(active)
            return
        try:
            self._read_context(active)
        except XcodecLMError as error:
            yield from self._finish(active, error)

    def _finish(self, active: _Active, error: XcodecLMError | None = None) -> Iterator[Event]:
        """Ends a request; the lanes behind its own move up, so that those in use stay together."""
        codes = active.sequence.take()
        self._active.remove(active)
        place = 0
        for other in self._active:
            for position, lane in enumerate(other.lanes):
                if lane != place and self._cache is not None:
                    self._cache.move(lane, place)
                other.lanes[position] = place
                place += 1
        yield Event(active.index, codes, active.sequence.made(error))

    def _reserve(self, positions: int) -> None:
        """Makes sure that the cache has so many positions a lane."""
        old = self._cache
        if old is not None and old.capacity >= positions:
            return
        wanted = positions if old is None and not self.graph else self.model.positions
        self._cache = self.model.new_cache(self.lanes, wanted)
        if old is not None:
            self._cache.take_from(old)
        self._step = GraphStep(self.model, self._cache, self.layout.width) if self.graph else None

    # ------------------------------------------------------------------ reading and filling

    def _read_context(self, active: _Active) -> None:
        """Reads everything before the next step into the request's lanes."""
        assert self._cache is not None
        request, sequence = active.sequence.request, active.sequence
        twin = self._with_same_prompt(active)
        if twin is not None:
            for lane, other, count in zip(active.lanes, twin.lanes, twin.prompt_lengths, strict=True):
                self._cache.move(other, lane, count)
            active.hidden = active.prompt_hidden = twin.prompt_hidden
            active.prompt_lengths = twin.prompt_lengths
            return
        ids = self._on_device(sequence.context()[None])
        prefixes = [request.prefix, request.negative]
        hidden = []
        for lane, prefix in zip(active.lanes, prefixes, strict=False):
            row = self._cache.rows(lane, lane + 1)
            row.reset()
            front = None if prefix is None else prefix.to(self.model.device)[None]
            hidden.append(self.model.hidden(ids, row, front)[:, -1])
        active.hidden = active.prompt_hidden = torch.cat(hidden)
        active.prompt_lengths = tuple(self._cache.lengths[active.lanes].tolist())

    def _with_same_prompt(self, active: _Active) -> _Active | None:
        """Another request whose lanes begin as this one's would: the same prompt is read once."""
        mine = active.sequence.request
        if active.hidden is not None or mine.prompt is None:
            return None
        for other in self._active:
            request = other.sequence.request
            if other is not active and other.prompt_hidden is not None and not other.sequence.refills and (
                request.prompt is mine.prompt and request.prefix is mine.prefix and request.negative is mine.negative
                and request.frames == mine.frames and request.given is mine.given
                and len(other.lanes) == len(active.lanes)
            ):  # fmt: skip
                return other
        return None

    def _on_device(self, ids: Tensor) -> Tensor:
        """(B, L, W) on the model's device, as (B, L) where a step is one id."""
        ids = ids.to(self.model.device)
        return ids[..., 0] if self.layout.flat else ids

    def _turn(self) -> Iterator[Event]:
        """Fills the next step of every request, and reads it."""
        for active in list(self._active):
            if active.hidden is not None and not bool(active.hidden.isfinite().all()):
                error = XcodecLMError(
                    f"the model's output for request {active.index} is not finite",
                    "its weights or the prefix are damaged, or the precision is too low",
                )
                yield from self._finish(active, error)
        if self._active:
            self._fill()
        for active in list(self._active):
            sequence = active.sequence
            sequence.advance()
            if sequence.done:
                yield from self._finish(active)
            elif (codes := sequence.take()) is not None:
                yield Event(active.index, codes, None)
        if self._active:
            yield from self._read()

    def _read(self) -> Iterator[Event]:
        """Reads the step that each request filled last: all together, but for those whose context is full."""
        assert self._cache is not None
        filler = torch.zeros(self.layout.width, dtype=torch.int64)
        rows, again = [], []
        for active in self._active:
            last = active.sequence.last()
            if last is None:
                again.append(active)
                self._cache.lengths[active.lanes] = 0  # what is written there below is lost
            rows += [filler if last is None else last] * len(active.lanes)
        ids = torch.stack(rows)[:, None]  # (lanes in use, 1, W)
        if len(again) < len(self._active):
            if self._step is not None:
                hidden = self._step(ids)  # (lanes in use, D)
            else:
                hidden = self.model.hidden(self._on_device(ids), self._cache.rows(0, len(rows)))[:, 0]
            for active in self._active:
                active.hidden = hidden[active.lanes]
        for active in again:
            try:
                self._read_context(active)
            except XcodecLMError as error:
                yield from self._finish(active, error)

    def _fill(self) -> None:
        """Draws the cells of the next step of every request, slot by slot, those alike together."""
        layout, model = self.layout, self.model
        cells = [{cell.slot: cell for cell in active.sequence.cells()} for active in self._active]
        hidden = torch.cat([active.hidden for active in self._active if active.hidden is not None])  # (lanes, D)
        joined, inner, before = hidden, None, None
        logits = None
        if model.inner is None:
            logits = model.logits(hidden)  # (lanes, V)
        else:
            joined = model.inner.join(hidden)
            if self._inner is None or self._inner.lengths.shape[0] != len(hidden):
                self._inner = model.inner.new_cache(len(hidden))
            self._inner.reset()
            inner = self._inner
        for slot in range(layout.width):
            if model.inner is not None and inner is not None:
                logits = model.inner.step(joined, before, inner)
            assert logits is not None
            wanted = [
                (active, here[slot], active.lanes)
                for active, here in zip(self._active, cells, strict=True)
                if slot in here and active.sequence.still_open(here[slot])
            ]
            self._draw(logits, wanted)
            if inner is not None and slot + 1 < layout.width:
                ids = [active.sequence.known_id(slot) for active in self._active for _ in active.lanes]
                before = torch.tensor(ids, device=model.device)

    def _draw(self, logits: Tensor, wanted: list[tuple[_Active, Cell, list[int]]]) -> None:
        """Draws cells of one slot from logits (lanes, V), those with equal ids and settings at once."""
        groups: dict[tuple, list[tuple[_Active, Cell, list[int]]]] = {}
        for item in wanted:
            active, cell, _ = item
            groups.setdefault((cell.low, cell.size, cell.may_end, active.sequence.settings(cell)), []).append(item)
        for (low, size, may_end, sampling), items in groups.items():
            lanes = [lanes[0] for _, _, lanes in items]
            columns = list(range(low, low + size)) + ([self.layout.vocabulary.eos] if may_end else [])
            chosen = logits[:, low : low + size] if not may_end else logits[:, columns]
            mine = chosen if len(lanes) == len(chosen) else chosen[lanes]
            if any(len(lanes) > 1 for _, _, lanes in items):
                others = chosen[[lanes[-1] for _, _, lanes in items]]
                mine = guide(mine, others, sampling.cfg_scale)
            noise = redraw = recent = None
            count = size + may_end
            if sampling.temperature > 0:
                noise = torch.stack([active.sequence.noise(cell, count) for active, cell, _ in items])
                if sampling.ras_window:
                    redraw = torch.stack([active.sequence.noise(cell, count, True) for active, cell, _ in items])
            if sampling.history:
                recent = torch.stack([active.sequence.recent(cell, sampling.history) for active, cell, _ in items])
            drawn = draw(mine, sampling, noise, recent, redraw).tolist()
            for (active, cell, _), column in zip(items, drawn, strict=True):
                active.sequence.put(cell, column)


def continue_codes(
    model: Decoder,
    layout: Layout,
    prompt: Tensor,
    frames: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    seed: int | Seq[int] = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Continues prompts of equal length by a number of frames.

    Args:
        model: in eval mode.
        layout: what its ids mean.
        prompt: (B, MQ, T0) codes; T0 may be 0 where the vocabulary has bos.
        frames: how many frames to add.
        sampling: how codes are drawn.
        seed: one for all rows, of which the first uses it itself and the others seeds derived from it, or one a row.
        progress: called with frames done and frames in all.

    Returns:
        (B, R, frames) int64, the new codes alone.

    Raises:
        TokenError: the prompt does not fit the layout, or is empty without bos.
        UsageError: `frames` is negative, or there are not as many seeds as rows.
    """
    rows = len(prompt)
    if isinstance(seed, int):
        seeds = [seed if row == 0 else derive_seed(seed, "row", row) for row in range(rows)]
    else:
        seeds = list(seed)
    if len(seeds) != rows:
        raise UsageError(f"{rows} prompts need {rows} seeds, got {len(seeds)}")
    requests = [Request(frames, codes, sampling, one) for codes, one in zip(prompt, seeds, strict=True)]
    made = Engine(model, layout, rows).decode(requests, progress)
    for one in made:
        if one.error is not None:
            raise one.error
    return torch.stack([one.codes[:, one.prompt_frames :] for one in made])
