"""Settings of `compare` and of each replication in it: which language model, which corpus, what is generated.

The language model's own settings are a preset that `train` names; a comparison changes nothing of it but what equal
seconds of audio demand (`tasks/compare/equal.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xcodec_lm.configs.errors import ConfigError


@dataclass(frozen=True)
class MusicComparison:
    """Music continuation."""

    train: str = "music/tiny"
    """Preset of the language model, or a YAML file."""
    clips: int = 120
    """Pieces of the synthetic corpus, where no data is given; a tenth of them is tested."""
    clip_s: float = 12.0
    """Their length."""
    prompt_s: float = 2.0
    """Length of a prompt."""
    seconds: float = 4.0
    """Length of what is continued."""
    most: int = 24
    """Prompts at most, spread over the pieces."""

    def __post_init__(self):
        _check_counts("music", self.clips, self.most)
        if not (self.prompt_s > 0 and self.seconds > 0 and self.clip_s > 0):
            raise ConfigError("music.prompt_s, music.seconds and music.clip_s must be above 0")


@dataclass(frozen=True)
class TTSComparison:
    """Zero-shot speech."""

    train: str = "tts/tiny"
    """Preset of AR and NAR, or a YAML file."""
    row_s: float = 28.0
    """Seconds of audio that `model.block` of that preset holds at 50 frames/s; its other positions are for text."""
    clips: int = 1000
    """Utterances of the synthetic corpus, where no data is given; a tenth of them is tested."""
    texts: Literal["sentences", "digits", "mixed"] = "digits"
    """What they say."""
    min_s: float = 0.5
    """Shortest utterance that is tested."""
    max_s: float = 10.0
    """Longest."""
    most: int = 48
    """Utterances at most, spread over the speakers."""
    judge_steps: int = 1200
    """Training steps of the recogniser, where no judges are given."""
    voice_steps: int = 600
    """Training steps of the judge of voices, likewise; 0 leaves it out."""
    copies: int = 60
    """Training clips that the judges also hear through each of the compared codecs."""
    temperature: float = 1.0
    """Of the first codebook."""
    top_p: float = 0.95
    """Likewise."""
    cfg: float = 1.0
    """Guidance away from speech without a text; above 1 only for a preset with `data.no_text`."""

    def __post_init__(self):
        _check_counts("tts", self.clips, self.most)
        if not 0 < self.min_s < self.max_s:
            raise ConfigError(f"tts.min_s {self.min_s} and tts.max_s {self.max_s} leave no utterance")
        if not self.row_s > 0 or self.judge_steps < 1 or self.voice_steps < 0 or self.copies < 0:
            raise ConfigError(
                "tts.row_s and tts.judge_steps must be positive, tts.voice_steps and tts.copies not negative"
            )


@dataclass(frozen=True)
class SoundComparison:
    """Text to sound."""

    train: str = "sound/tiny"
    """Preset of the language model, or a YAML file."""
    clips: int = 400
    """Sounds of the synthetic corpus, where no data is given; a tenth of them is tested."""
    clip_s: float = 4.0
    """Their length."""
    seconds: float = 0.0
    """Length of a made sound; 0 takes the median of the recordings, at most what the model sees at once."""
    most: int = 48
    """Captions at most, spread over the recordings."""
    samples: int = 1
    """Sounds of each caption."""
    cfg: float = 3.0
    """Guidance scale, of models that were trained for it."""

    def __post_init__(self):
        _check_counts("sound", self.clips, self.most)
        if self.samples < 1 or not self.clip_s > 0 or self.seconds < 0:
            raise ConfigError("sound.samples and sound.clip_s must be positive, sound.seconds not negative")


@dataclass(frozen=True)
class CompareConfig:
    """One size of `compare`, for each task."""

    music: MusicComparison = field(default_factory=MusicComparison)
    """For `--task music`."""
    tts: TTSComparison = field(default_factory=TTSComparison)
    """For `--task tts`."""
    sound: SoundComparison = field(default_factory=SoundComparison)
    """For `--task sound`."""


def _check_counts(task: str, clips: int, most: int) -> None:
    if clips < 12:
        raise ConfigError(f"{task}.clips must be at least 12, so that every split has some, got {clips}")
    if most < 2:
        raise ConfigError(f"{task}.most must be at least 2, got {most}")
