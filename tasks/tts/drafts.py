"""Drafts of sentences: how long they may be, whether they ended well, and which of several is kept.

A model is fond of its own bland speech, whatever it says: likelihood alone hardly tells a draft that speaks the text
from one that does not. What the text adds to it does, as in guidance (arXiv 2207.12598).

Sources: repetition-aware sampling of VALL-E 2, arXiv 2406.05370; best of several by likelihood normalised by length, as
VALL-E X's public code has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.lm.engine import Engine
from xcodec_lm.lm.layouts import FILLER, Layout
from xcodec_lm.lm.llama import SpeechLlama
from xcodec_lm.lm.requests import Made, Request
from xcodec_lm.lm.speech import NO_TEXT, text_places
from xcodec_lm.lm.valle_ar import ValleAR
from xcodec_lm.tasks.tts.speech import Ending, Pace, Prompt, Rank, Sentence, Speaking

PROMPT_PACE = 0.75
"""How far the pace of a prompt counts against the usual one, as an exponent; on spoken digits this errs least."""
LOOP_S = 2.0
"""A draft that repeats itself for so long has fallen into a loop."""
Speaker = ValleAR | SpeechLlama
"""A model that speaks: VALL-E's AR the first codebook, the single stream all that its layout carries."""
LONGEST_PERIOD_S = 1.0
"""Longest stretch that is looked for in such a loop."""


@dataclass
class Task:
    """A sentence to speak.

    Attributes:
        line: number of the line it belongs to.
        text: as it is read.
        ids: of the prompt's text and the sentence.
        units: symbols of the sentence alone.
        prompt: the voice, or None.
        seed: of the draws.
        unknown: symbols that the model does not know.
        begun: frames of the prompt that are the sentence's own beginning.
        sentence: the result.
    """

    line: int
    text: str
    ids: Sequence[int]
    units: int
    prompt: Prompt | None
    seed: int
    unknown: tuple[str, ...] = ()
    begun: int = 0
    sentence: Sentence | None = None


@dataclass(frozen=True)
class Draft:
    """What became of one attempt at a sentence."""

    codes: Tensor  # (R, T) of the speech
    ended: Ending
    score: float


def draft(
    ar: Speaker, layout: Layout, pace: Pace, tasks: Sequence[Task], speaking: Speaking, frame_rate: float,
    progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Speaks the codebooks of the model for every task, and sets its `sentence`.

    All drafts of all tasks are decoded together. Tasks none of whose drafts ended by itself are tried again with
    repetition-aware sampling.

    Args:
        ar: the model, in eval mode.
        layout: of its ids.
        pace: of its training data.
        tasks: what to speak.
        speaking: how.
        frame_rate: frames a second.
        progress: called with tasks done and in all.

    Raises:
        XcodecLMError: a text and its prompt do not fit the model.
    """
    made: dict[int, list[Draft]] = {index: [] for index in range(len(tasks))}
    for attempt in range(1 + speaking.retries):
        open_ = [index for index in made if all(one.ended != "eos" for one in made[index])]
        if not open_:
            break
        sampling = speaking.sampling
        if attempt and not sampling.ras_window:
            sampling = replace(sampling, ras_window=10, temperature=max(sampling.temperature, 0.9))
        wanted = [(index, number) for index in open_ for number in range(speaking.best_of)]
        requests = [
            request_of(
                ar, tasks[index], pace, replace(speaking, sampling=sampling),
                derive_seed(tasks[index].seed, "draft", attempt, number),
            )
            for index, number in wanted
        ]  # fmt: skip
        lanes = min(speaking.lanes, len(requests)) * (2 if sampling.cfg_scale != 1 else 1)
        engine = Engine(ar, layout, lanes=lanes)
        for event in engine.run(requests):
            if event.made is None:
                continue
            if event.made.error is not None:
                raise event.made.error
            index, _ = wanted[event.index]
            made[index].append(judge(ar, layout, tasks[index], event.made, frame_rate, speaking.rank))
            if progress is not None:
                progress(sum(any(one.ended == "eos" for one in drafts) for drafts in made.values()), len(tasks))
    for index, task in enumerate(tasks):
        best = max(made[index], key=lambda one: (one.ended == "eos", one.ended == "limit", one.score))
        task.sentence = Sentence(
            task.text, task.units, best.codes, best.ended, best.score, len(made[index]), task.unknown
        )


def most_frames(pace: Pace, units: int) -> int:
    """Frames that a text of so many symbols may take: half as many again as hardly any did in training."""
    return math.ceil(units * pace.most * 1.5) + 10


def least_frames(pace: Pace, units: int) -> int:
    """Frames that it takes at least: half as many as hardly any fell below."""
    return max(1, math.floor(units * pace.least * 0.5))


def request_of(ar: Speaker, task: Task, pace: Pace, speaking: Speaking, seed: int) -> Request:
    """A draft of a task, as the engine takes it.

    Raises:
        XcodecLMError: the text does not fit the model.
    """
    ids = torch.tensor([list(task.ids)], device=ar.device)
    read = ar.text_prefix if isinstance(ar, SpeechLlama) else partial(ar.text_prefix, places=places_of(ar, task))
    with torch.inference_mode():
        prefix = read(ids)[0]
        unguided = read(torch.full_like(ids, NO_TEXT))[0] if speaking.sampling.cfg_scale != 1 else None
    frames = max(1, most_frames(pace, task.units) - task.begun)
    least = min(max(0, least_frames(pace, task.units) - task.begun), frames)
    codes = None if task.prompt is None else task.prompt.codes
    return Request(
        frames, codes, speaking.sampling, seed, may_end=True, min_frames=least, prefix=prefix, negative=unguided
    )


def places_of(ar: ValleAR, task: Task) -> Tensor | None:
    """Where a task's text stands, (S,) in steps, if the model's texts stand over their speech.

    The prompt's text stands over the prompt, the sentence behind it. Its pace is between the prompt's and the usual
    one: few words of a prompt say little about the pace of others.
    """
    if not ar.config.text_over_speech:
        return None
    usual, units, own = ar.config.text_pace, len(task.ids) - 2, task.units - 2
    steps = 0.0 if task.prompt is None else task.prompt.codes.shape[1] / ar.config.group
    said = units - own  # units of the prompt's text
    if task.begun:
        return text_places([(units, max(units * usual, steps))])
    pace = usual if not said or not steps else usual * (steps / said / usual) ** PROMPT_PACE
    return text_places([(said, steps), (own, own * pace)])


def judge(
    ar: Speaker, layout: Layout, task: Task, made: Made, frame_rate: float, rank: Rank = "likelihood"
) -> Draft:  # fmt: skip
    """How a draft ended, without the round that it was caught in, and how good it is."""
    codes = made.codes[:, made.prompt_frames :]
    ended: Ending = "eos" if made.ended else "limit"
    loop = find_loop(codes[0].numpy(), frame_rate)
    if loop is not None:
        codes, ended = codes[:, : max(1, loop)], "loop"
    value = score(ar, layout, task, codes, ended == "eos")
    if rank == "text":
        value -= score(ar, layout, replace(task, ids=[NO_TEXT] * len(task.ids)), codes, ended == "eos")
    return Draft(codes, ended, value)


@torch.inference_mode()
def score(ar: Speaker, layout: Layout, task: Task, codes: Tensor, ended: bool) -> float:
    """Mean log-likelihood of the speech's codes, and of its end, under the model.

    Args:
        ar: the model.
        layout: of its ids.
        task: whose text and prompt stand before.
        codes: (R, T).
        ended: whether eos follows.
    """
    given = 0 if task.prompt is None else task.prompt.codes.shape[1]
    whole = codes if task.prompt is None else torch.cat([task.prompt.codes[list(layout.books)], codes], dim=1)
    read = ar.spoken_nats if isinstance(ar, SpeechLlama) else partial(ar.spoken_nats, places=places_of(ar, task))
    nats, rows = read(layout, task.ids, whole.numpy(), ended)
    begin = given * len(layout.books) if layout.flat else given // layout.width
    mine = (rows != FILLER) & (torch.arange(len(rows)) >= begin)[:, None]
    return -float(nats[mine].mean()) if bool(mine.any()) else -math.inf


def find_loop(codes: np.ndarray, frame_rate: float) -> int | None:
    """Where a sequence falls into repeating itself for at least `LOOP_S`.

    Args:
        codes: (T,).
        frame_rate: frames a second.

    Returns:
        Frames before the repetition (its first round included), or None.
    """
    least = round(LOOP_S * frame_rate)
    found: list[int] = []
    for period in range(1, round(LONGEST_PERIOD_S * frame_rate) + 1):
        if len(codes) < least + period:
            break
        same = codes[period:] == codes[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for start, stop in edges.reshape(-1, 2):
            if stop - start >= least:
                found.append(int(start) + period)
                break
    return min(found) if found else None
