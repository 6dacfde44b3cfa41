"""Utterances with text as examples: what the AR and the NAR read and predict.

A document is text, then frames, in one row with others (`document`); text and frames count positions from 0 each. What
is drawn (order, partner, book, prompt) is a function of (seed, position), as in `lm.stretches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import DataOrder, derive_seed, generator
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.configs.tts import SpeechDataConfig, Stage
from xcodec_lm.lm.examples import HIDDEN_RUN, IGNORED, hide_steps, make_example, steps_of
from xcodec_lm.lm.layouts import FILLER, Layout
from xcodec_lm.lm.packing import Packer
from xcodec_lm.lm.shards import JoinedStore, TokenStore

BUFFER = 128
"""Utterances among which the packer chooses."""
PACE_SPREAD = 0.15
"""Deviation of the logarithm of the pace at which texts are laid over their speech: decoding has to guess it."""
NO_TEXT = 0
"""Id in the place of every unit of a text that is not shown: that of padding, which no text has."""
Encode = Callable[[str], Sequence[int]]
"""Text as ids, with those of its begin and end."""


@dataclass(frozen=True)
class SpeechExample:
    """A document.

    Attributes:
        inputs: (L, W) ids of the text in slot 0; then those that the AR reads, or all codes (L, Q) for the NAR.
        targets: (L, W') what is predicted; `IGNORED` where nothing is.
        rows: (L, W') of what the target is, see `lm.examples.Example`; for the NAR the book, counted from the second.
        places: (L,) position within the text, or the frames; fp32 where the text stands over its speech.
        text: (L,) whether a position is text.
        stage: (L,) book that the NAR predicts, from 1; 0 for the AR.
        given: (L,) frames of which the NAR reads all books.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    places: Tensor
    text: Tensor
    stage: Tensor
    given: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class SpeechBatch:
    """Rows of documents, padded on the right: each attribute of `SpeechExample` with a first axis B.

    Attributes:
        document: (B, L) number of the document in its row; -1 is padding.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    places: Tensor
    text: Tensor
    stage: Tensor
    given: Tensor
    document: Tensor

    def to(self, device: torch.device) -> SpeechBatch:
        """The same elsewhere."""
        return SpeechBatch(*(getattr(self, part.name).to(device, non_blocking=True) for part in fields(self)))


def text_places(parts: Sequence[tuple[int, float]]) -> Tensor:
    """Where the units of a text stand among the steps of its speech: (units + 2,) fp32, its begin and end included.

    Args:
        parts: (units, steps) of stretches behind each other; each spreads its units evenly over its steps.
    """
    places, start = [torch.zeros(1)], 0.0
    for units, steps in parts:
        places.append(start + (torch.arange(units) + 0.5) * (steps / max(1, units)))
        start += steps
    return torch.cat([*places, torch.tensor([start])])


def ar_example(
    layout: Layout, text: Sequence[int], codes: np.ndarray, ends: bool = True, places: Tensor | None = None
) -> SpeechExample:
    """A document of the AR: text, bos and codes are read, codes and eos predicted.

    Args:
        layout: of the AR's ids.
        text: (S,) ids.
        codes: (MQ, T).
        ends: whether the speech ends with them.
        places: (S,) of the text, see `text_places`; None counts.
    """
    speech = make_example(layout, codes, ends)
    ids, count, width = torch.tensor(list(text)), len(text), layout.width
    front = torch.zeros(count, width, dtype=torch.int64)
    front[:, 0] = ids
    nothing = torch.full((count, width), FILLER)
    total = count + len(speech)
    return SpeechExample(
        torch.cat([front, speech.inputs]),
        torch.cat([torch.full_like(front, IGNORED), speech.targets]),
        torch.cat([nothing, speech.rows]),
        torch.cat([torch.arange(count) if places is None else places, torch.arange(len(speech))]),
        torch.arange(total) < count,
        torch.zeros(total, dtype=torch.int64),
        torch.zeros(total, dtype=torch.bool),
    )


def hide(example: SpeechExample, layout: Layout, share: float, rng: torch.Generator) -> SpeechExample:
    """A document of the AR some of whose codes cannot be read: runs of about `HIDDEN_RUN` frames become pad.

    Targets stay, see `examples.hide_steps`.

    Args:
        example: of `ar_example`.
        layout: of the ids.
        share: of the steps, about; below 1.
        rng: of the draws.
    """
    first = int(example.text.sum()) + 1  # behind text and bos
    run = max(1, HIDDEN_RUN // layout.width)  # steps
    return replace(example, inputs=hide_steps(example.inputs, first, run, share, layout.vocabulary.pad or 0, rng))


def nar_example(
    text: Sequence[int], codes: np.ndarray, stage: int, given: int, silent: tuple[int, int] = (0, 0)
) -> SpeechExample:
    """A document of the NAR: one book of the frames that are not given is predicted from the books before it.

    Args:
        text: (S,) ids.
        codes: (Q, T) all books, the prompt's frames first.
        stage: book to predict, from 1.
        given: frames of the prompt, which show all books.
        silent: frames (first, stop) that are not to be predicted: what the prompt was cut from.
    """
    frames = torch.from_numpy(codes.astype(np.int64)).T  # (T, Q)
    ids, count = torch.tensor(list(text)), len(text)
    front = torch.zeros(count, frames.shape[1], dtype=torch.int64)
    front[:, 0] = ids
    total, place = count + len(frames), torch.arange(len(frames))
    shown = place < given
    wanted = ~shown & ((place < silent[0]) | (place >= silent[1]))
    targets = torch.where(wanted, frames[:, stage], IGNORED)[:, None]
    rows = torch.where(wanted, stage - 1, FILLER)[:, None]
    nothing = torch.zeros(count, 1, dtype=torch.int64)
    return SpeechExample(
        torch.cat([front, frames]),
        torch.cat([nothing + IGNORED, targets]),
        torch.cat([nothing + FILLER, rows]),
        torch.cat([torch.arange(count), place]),
        torch.arange(total) < count,
        torch.full((total,), stage),
        torch.cat([torch.zeros(count, dtype=torch.bool), shown]),
    )


def speech_batch(rows: Sequence[Sequence[SpeechExample]]) -> SpeechBatch:
    """Rows of one or several documents each."""
    length = max(sum(len(example) for example in row) for row in rows)
    first = rows[0][0]
    fill = {"targets": IGNORED, "rows": FILLER}
    parts = {}
    for part in fields(SpeechExample):
        like = getattr(first, part.name)
        whole = torch.full((len(rows), length, *like.shape[1:]), fill.get(part.name, 0), dtype=like.dtype)
        for index, row in enumerate(rows):
            joined = torch.cat([getattr(example, part.name) for example in row])
            whole[index, : len(joined)] = joined
        parts[part.name] = whole
    document = torch.full((len(rows), length), -1)
    for index, row in enumerate(rows):
        numbers = torch.repeat_interleave(torch.arange(len(row)), torch.tensor([len(example) for example in row]))
        document[index, : len(numbers)] = numbers
    return SpeechBatch(**parts, document=document)


@dataclass(frozen=True)
class _Place:
    """What stands at a position of the endless sequence: utterances in this order, and the NAR's book and prompt."""

    slots: tuple[int, ...]
    stage: int = 0
    source: int = -1  # slot that a prompt in front is cut from; -1 for none
    start: int = 0
    given: int = 0
    position: int = -1  # for the draws of what the AR is not shown; -1 shows it all


class Utterances:
    """The utterances of one split.

    Args:
        store: the tokens; its rows have `text`, and `speaker` where it is known.
        split: name of the split.
        encode: text as ids.
        layout: of the AR's ids; the NAR takes the codec's books alone.
        stage: whose examples these are.
        n_q: codebooks in use.
        block: positions of a row.
        data: lengths, prompts, packing.
        seed: of all draws.
        over_speech: whether texts stand at the positions of their speech, see `ValleConfig.text_over_speech`.

    Attributes:
        left_out: why recordings are not used -> ids of those; they are counted, not lost from sight.
    """

    def __init__(
        self, store: TokenStore | JoinedStore, split: str, encode: Encode, layout: Layout, stage: Stage, n_q: int,
        block: int, data: SpeechDataConfig, seed: int, over_speech: bool = False,
    ):  # fmt: skip
        self.store, self.layout, self.stage, self.n_q = store, layout, stage, n_q
        self.capacity, self.data, self.seed, self.over_speech = block, data, seed, over_speech
        self.encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(encode(text)))
        self.prompt_frames = max(1, round(data.prompt_s * store.spec.frame_rate))
        self.left_out: dict[str, list[str]] = {}
        rate, slots, texts, speakers = store.spec.frame_rate, [], [], []
        for document in store.split(split):
            row, frames = store.rows[document], int(store.lengths[document])
            text = row.get("text")
            seconds = float(frames / rate)
            reason = None
            if not isinstance(text, str) or not text.strip():
                reason = "no text"
            elif not data.min_s <= seconds <= data.max_s:
                reason = f"outside {data.min_s:g} to {data.max_s:g} s"
            else:
                try:
                    if len(self.encode(text)) + self._frames_length(frames) > block:
                        reason = f"longer than model.block {block}"
                except UsageError:  # marks alone, or a script that the front end lacks
                    reason = "nothing that can be said"
            if reason is None:
                slots.append(document)
                texts.append(text)
                # At another speed a voice is another one.
                speakers.append(None if row.get("speaker") is None else (row["speaker"], row.get("speed", 1)))
            else:
                self.left_out.setdefault(reason, []).append(str(row.get("id", document)))
        self.slots, self.texts = np.array(slots, dtype=np.int64), texts
        self.lengths = store.lengths[self.slots]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(speakers)) if name is not None}
        self.speakers = np.array([numbers.get(name, -1) for name in speakers], dtype=np.int64)
        self._of_speaker = {number: np.flatnonzero(self.speakers == number) for number in numbers.values()}
        self._order: DataOrder | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def summary(self) -> str:
        """What is used and what is left out, in one line."""
        hours = float(self.lengths.sum() / self.store.spec.frame_rate) / 3600
        known = len(self._of_speaker)
        text = f"{len(self)} utterances, {hours:.2f} h, {known} speaker(s)"
        for reason, ids in self.left_out.items():
            text += f"; {len(ids)} left out, {reason}: {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}"
        return text

    def pace(self) -> dict[str, float]:
        """Frames for each symbol of text: `least` and `most` hold for all but one utterance of 200, `usual` is the
        median."""
        frames = self.lengths / np.array([len(self.encode(text)) for text in self.texts])
        return dict(zip(("least", "usual", "most"), np.quantile(frames, (0.005, 0.5, 0.995)).tolist(), strict=True))

    def unit_frames(self) -> float:
        """Frames that a unit of text lasts on average, without begin and end."""
        units = sum(len(self.encode(text)) - 2 for text in self.texts)
        return float(self.lengths.sum()) / max(1, units)

    # ------------------------------------------------------------------ the endless sequence

    def _frames_length(self, frames: int) -> int:
        """Positions that so many frames take."""
        return int(steps_of(self.layout, frames, True)) if self.stage == "ar" else frames

    def _length(self, slots: Sequence[int], given: int = 0) -> int:
        frames = int(self.lengths[list(slots)].sum()) + given
        return len(self.encode(self._text(slots))) + self._frames_length(frames)

    def _text(self, slots: Sequence[int]) -> str:
        return " ".join(self.texts[slot] for slot in slots)

    def _draw(self, what: str, position: int, count: int) -> int:
        return int(torch.randint(count, (), generator=generator(self.seed, what, position)))

    def _other(self, slot: int, position: int, what: str) -> int | None:
        """Another utterance of the speaker."""
        mates = self._of_speaker.get(int(self.speakers[slot]))
        if mates is None or len(mates) < 2:
            return None
        mate = int(mates[self._draw(what, position, len(mates) - 1)])
        return int(mates[-1]) if mate == slot else mate

    def place(self, position: int) -> _Place:
        """What stands at a position."""
        if self._order is None:
            self._order = DataOrder(len(self.slots), self.seed)
        slot = self._order[position]
        slots: tuple[int, ...] = (slot,)
        if self.data.join and derive_seed(self.seed, "join", position) < self.data.join * 2**63:
            mate = self._other(slot, position, "mate")
            if mate is not None and self._length((mate, slot)) <= self.capacity:
                slots = (mate, slot)
        if self.stage == "ar":
            return _Place(slots, position=position)
        return self._prompted(slots, position, 1 + self._draw("stage", position, self.n_q - 1))

    def _prompted(self, slots: tuple[int, ...], position: int, stage: int) -> _Place:
        """With the prompt that the NAR is given."""
        mode, total, most = self.data.prompt_mode, int(self.lengths[list(slots)].sum()), self.prompt_frames
        if mode == 0:
            return _Place(slots, stage)
        if mode == 1:
            given = total // 4 + self._draw("prompt", position, max(1, total // 2 - total // 4))
            return _Place(slots, stage, given=min(given, most))
        source = slots[-1] if mode == 2 else self._other(slots[-1], position, "prompt-of")
        if source is None:
            return _Place(slots, stage)
        frames = int(self.lengths[source])
        given = min(most, frames // 4 if mode == 2 else frames, self.capacity - self._length(slots))
        if given < 1:
            return _Place(slots, stage)
        return _Place(slots, stage, source, self._draw("prompt", position, frames - given + 1), given)

    def steps(self, position: int) -> int:
        """Positions that the document takes."""
        place = self.place(position)
        return self._length(place.slots, place.given if place.source >= 0 else 0)

    def packer(self) -> Packer:
        """The rows of the endless sequence."""
        return Packer(self.steps, self.capacity, BUFFER if self.data.pack else 1)

    def batch(self, rows: Sequence[Sequence[int]]) -> SpeechBatch:
        """Rows of positions as a batch."""
        return speech_batch([[self._make(self.place(position)) for position in row] for row in rows])

    # ------------------------------------------------------------------ examples

    def _codes(self, slot: int) -> np.ndarray:
        return self.store.codes(int(self.slots[slot])).T  # (MQ, T)

    def content(self, slots: Sequence[int]) -> tuple[Sequence[int], np.ndarray]:
        """Ids of the text and codes (MQ, T) of utterances behind each other."""
        codes = np.concatenate([self._codes(slot) for slot in slots], axis=1)
        return self.encode(self._text(slots)), np.ascontiguousarray(codes)

    def _shown(self, text: Sequence[int], place: _Place) -> Sequence[int]:
        """Ids of the text, or as many of `NO_TEXT` where the AR is to speak without it."""
        without = place.position >= 0 and derive_seed(self.seed, "no-text", place.position) < self.data.no_text * 2**63
        return [NO_TEXT] * len(text) if without else text

    def _without_prompt_text(self, place: _Place) -> bool:
        """Whether the first of two utterances stands there without its text."""
        drawn = derive_seed(self.seed, "no-prompt-text", place.position) < self.data.no_prompt_text * 2**63
        return place.position >= 0 and len(place.slots) > 1 and drawn

    def _text_places(self, place: _Place, units: int, mute: bool) -> Tensor:
        """Of a text of so many units: each utterance's over its steps, the last one's at a pace that is drawn.

        Args:
            place: which utterances.
            units: of the whole text.
            mute: whether the text is that of the last utterance alone.
        """
        steps = [float(self.lengths[slot]) / self.layout.width for slot in place.slots]
        if place.position >= 0:
            drawn = torch.randn((), generator=generator(self.seed, "pace", place.position))
            steps[-1] *= math.exp(PACE_SPREAD * float(drawn))
        before = [0 if mute else min(units, len(self.encode(self.texts[slot])) - 2) for slot in place.slots[:-1]]
        return text_places(list(zip([*before, units - sum(before)], steps, strict=True)))

    def _make(self, place: _Place) -> SpeechExample:
        text, codes = self.content(place.slots)
        if self.stage == "ar":
            mute = self._without_prompt_text(place)
            if mute:
                text = self.encode(self.texts[place.slots[-1]])
            places = self._text_places(place, len(text) - 2, mute) if self.over_speech else None
            example = ar_example(self.layout, self._shown(text, place), codes, places=places)
            if self.data.hidden and place.position >= 0:
                rng = generator(self.seed, "hidden", place.position)
                share = self.data.hidden * float(torch.rand((), generator=rng))
                example = hide(example, self.layout, share, rng)
            return example
        codes, silent = codes[: self.n_q], (0, 0)
        if place.source >= 0:
            segment = self._codes(place.source)[: self.n_q, place.start : place.start + place.given]
            if place.source == place.slots[-1]:  # what it shows is not asked for
                start = place.given + codes.shape[1] - int(self.lengths[place.source]) + place.start
                silent = (start, start + place.given)
            codes = np.concatenate([segment, codes], axis=1)
        return nar_example(text, codes, place.stage, place.given, silent)

    def fixed_batch(self, slots: Sequence[int]) -> SpeechBatch | None:
        """Utterances as a batch, one a row; the NAR's book and prompt go by the slot."""
        if self.stage == "ar":
            return speech_batch([[self._make(_Place((slot,)))] for slot in slots])
        places = [self._prompted((slot,), -1 - slot, 1 + slot % (self.n_q - 1)) for slot in slots]
        return speech_batch([[self._make(place)] for place in places])

    def recording(self, slot: int) -> int:
        """Which recording of the store an utterance is."""
        return int(self.slots[slot])
