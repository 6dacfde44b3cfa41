"""What is asked of the speech models, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.lm.sampling import Sampling

Ending = Literal["eos", "limit", "loop"]
Rank = Literal["likelihood", "text"]
ENDINGS: dict[Ending, str] = {
    "eos": "ended by itself",
    "limit": "cut: it took more frames than such a text may",
    "loop": "cut where it began to repeat itself",
}


@dataclass(frozen=True)
class Speaking:
    """How to speak.

    Attributes:
        sampling: of the first codebook.
        codec_stage: `nar` speaks all codebooks, `ar` the first alone, as the paper's AR columns.
        nar_sampling: of the others; None takes the codes nearest to what the NAR expects, or, where a codec does not
            show what its codes stand for, the likeliest ones.
        best_of: drafts of each sentence, of which one is kept, of those that end by themselves if there are any.
        rank: by what: `likelihood` keeps the likeliest for its length, `text` the one that the text makes most likelier
            than it is without a text, which needs a model that was trained without text as well.
        retries: further drafts, with repetition-aware sampling, where none ended by itself.
        most_units: symbols of text that are spoken at once; longer texts are split.
        lanes: drafts decoded at once.
    """

    sampling: Sampling = Sampling(top_p=0.95, ras_window=10)  # noqa: RUF009 - frozen
    codec_stage: Literal["ar", "nar"] = "nar"
    nar_sampling: Sampling | None = None
    best_of: int = 1
    rank: Rank = "likelihood"
    retries: int = 2
    most_units: int = 200
    lanes: int = 8

    def __post_init__(self):
        if min(self.best_of, self.lanes, self.most_units) < 1 or self.retries < 0:
            raise UsageError("best-of, lanes and most-units must be at least 1, retries at least 0")


SAMPLING = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "ras_window": "ras_window", "cfg": "cfg_scale",
}  # fmt: skip
"""Settings as commands and `speaking.json` call them, and the fields of `Sampling` that they are."""
SETTINGS = (*SAMPLING, "best_of", "rank", "retries")
FILE = "speaking.json"
"""Beside a model: the settings that it speaks best with."""


def adjusted(speaking: Speaking, settings: Mapping[str, Any]) -> Speaking:
    """With other settings.

    Args:
        speaking: how to speak otherwise.
        settings: of `SETTINGS`; None leaves one as it is.

    Raises:
        UsageError: a setting that there is none of, or a value that it cannot have.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if unknown := sorted(set(given) - set(SETTINGS)):
        raise UsageError(f"there is no setting {unknown[0]!r} of speaking", f"there are {', '.join(SETTINGS)}")
    sampling = replace(speaking.sampling, **{SAMPLING[name]: given[name] for name in SAMPLING if name in given})
    return replace(speaking, sampling=sampling, **{name: given[name] for name in given if name not in SAMPLING})


def read_speaking(source: Path) -> Speaking:
    """How the model in a folder speaks best; the general settings where it does not say.

    Args:
        source: the folder, or a file such as its `speaking.json`.

    Raises:
        XcodecLMError: the file is damaged.
    """
    path = source / FILE if source.is_dir() else source
    if not path.is_file():
        return Speaking()
    try:
        return adjusted(Speaking(), json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, UsageError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}", "remove or mend it") from None


@dataclass(frozen=True)
class Prompt:
    """A voice.

    Attributes:
        codes: (Q, P) int64.
        text: what is said in it, or None.
    """

    codes: Tensor
    text: str | None = None


@dataclass(frozen=True)
class Line:
    """Something to say.

    Attributes:
        text: what.
        prompt: the voice; None lets the model choose one.
        seed: of the draws.
        continual: the prompt is the beginning of the text itself, which is to be gone on with.
    """

    text: str
    prompt: Prompt | None = None
    seed: int = 0
    continual: bool = False


@dataclass
class Sentence:
    """What became of a sentence.

    Attributes:
        text: as it was read.
        units: symbols of it.
        codes: (n_q, T) of the speech, without the prompt.
        ended: `eos`: by itself; `limit`: it was cut after as many frames as such a text may take; `loop`: it repeated
            itself and was cut there.
        score: mean log-likelihood of a code of the first book, or, with `rank: text`, what the text adds to it.
        drafts: how many were made.
        unknown: symbols that the model does not know.
    """

    text: str
    units: int
    codes: Tensor
    ended: Ending
    score: float
    drafts: int
    unknown: tuple[str, ...] = ()


@dataclass
class Spoken:
    """Speech.

    Attributes:
        wav: (1, N) audio.
        sample_rate: of it, in Hz.
        sentences: of the text, in order.
        wall_s: seconds that it took, shared with what was spoken beside it.
    """

    wav: Tensor
    sample_rate: int
    sentences: list[Sentence] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.wav.shape[-1] / self.sample_rate

    @property
    def ended(self) -> Ending:
        """The worst ending of its sentences."""
        endings = {sentence.ended for sentence in self.sentences}
        return "loop" if "loop" in endings else "limit" if "limit" in endings else "eos"

    def report(self) -> dict[str, object]:
        """Plain values."""
        frames, units = sum(s.codes.shape[1] for s in self.sentences), sum(s.units for s in self.sentences)
        return {
            "ended": self.ended,
            "seconds": round(self.seconds, 3),
            "frames_per_unit": round(frames / max(units, 1), 2),
            "real_time_factor": round(self.wall_s / max(self.seconds, 1e-9), 3),
            "sentences": [
                {"text": s.text, "ended": s.ended, "frames": s.codes.shape[1], "units": s.units,
                 "score": round(s.score, 3), "drafts": s.drafts, "unknown": list(s.unknown)}
                for s in self.sentences
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """How long speech takes, by the training texts: frames for each symbol.

    Attributes:
        least: hardly any utterance had fewer.
        usual: the median.
        most: hardly any had more.
    """

    least: float
    usual: float
    most: float
