"""Settings of the small judges that are trained on the data at hand: a recogniser and an embedder of speakers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.run import OptimConfig, RunConfig

MOST_WORDS = 100
"""With at most so many different words in its training texts, a recogniser names whole words."""


@dataclass(frozen=True)
class RecogniserConfig:
    """Sizes of the recogniser."""

    units: Literal["auto", "words", "characters"] = "auto"
    """What it names; `auto` takes whole words where the training texts have at most 100 different ones."""
    highest_hz: float = 8000.0
    """Upper end of the spectrum that it hears."""
    channels: int = 128
    """Width of the convolutions."""
    layers: int = 4
    """Dilated convolutions behind the first two; each doubles the dilation."""
    dropout: float = 0.1
    """Dropout of whole channels in every layer."""

    def __post_init__(self):
        _check_hz("recogniser", self.highest_hz)


@dataclass(frozen=True)
class SpeakerConfig:
    """Sizes and loss of the speaker embedder."""

    highest_hz: float = 3800.0
    """Upper end of the spectrum that it hears, so that recordings are not told apart by their band."""
    channels: int = 128
    """Width of the convolutions."""
    dim: int = 128
    """Size of an embedding."""
    dropout: float = 0.2
    """Dropout on the pooled statistics."""
    crop_s: float = 2.0
    """Seconds of a training crop."""
    margin: float = 0.2
    """What is taken off the cosine of the right speaker in training; it grows to this over the first half."""
    scale: float = 20.0
    """Factor on cosines before the softmax."""

    def __post_init__(self):
        _check_hz("speaker", self.highest_hz)
        if not self.crop_s >= 0.2:
            raise ConfigError(f"speaker.crop_s must be at least 0.2, got {self.crop_s}")


@dataclass(frozen=True)
class EvaluatorDataConfig:
    """What a judge is trained on."""

    manifests: tuple[str, ...] = ()
    """Manifests with `text` (recogniser) or `speaker` (embedder); split train is trained on."""
    batch_clips: int = 24
    """Clips of one step."""
    longest_s: float = 12.0
    """Longer clips are left out of the recogniser's training; the embedder takes a stretch of this length of them."""
    copies: str = ""
    """Manifest of copies of training clips through codecs, as `eval train-evaluators --codecs` makes it; none if
    empty."""
    copied_share: float = 0.4
    """How often a clip of a batch is one of the copies."""
    eval_clips: int = 200
    """Clips that each validation looks at."""

    def __post_init__(self):
        if self.batch_clips < 1 or self.eval_clips < 1:
            raise ConfigError("data.batch_clips and data.eval_clips must be at least 1")
        if not 0 <= self.copied_share <= 1:
            raise ConfigError(f"data.copied_share must lie in [0, 1], got {self.copied_share}")
        if not self.longest_s >= 0.2:
            raise ConfigError(f"data.longest_s must be at least 0.2, got {self.longest_s}")


@dataclass(frozen=True)
class AugmentConfig:
    """How training clips are varied; each share is the probability of the variation."""

    gain_db: float = 12.0
    """Gain, drawn within plus and minus this."""
    speed: float = 0.1
    """Speed, drawn within 1 plus and minus this; pitch moves along."""
    noise_share: float = 0.6
    """Additive noise, white to strongly coloured."""
    noise_db: tuple[float, float] = (5.0, 40.0)
    """Its signal-to-noise ratio."""
    low_pass_share: float = 0.5
    """Low-pass at 3.8 kHz."""
    tilt_db: float = 6.0
    """Tilt of the spectrum from end to end, drawn within plus and minus this."""
    pause_share: float = 0.5
    """Pauses at both ends and at quiet places."""
    longest_pause_s: float = 0.3
    """Longest of them."""


@dataclass(frozen=True)
class EvaluatorTrainConfig:
    """One judge."""

    kind: Literal["recogniser", "speaker"] = "recogniser"
    """Which one."""
    recogniser: RecogniserConfig = field(default_factory=RecogniserConfig)
    """Read for the kind `recogniser`."""
    speaker: SpeakerConfig = field(default_factory=SpeakerConfig)
    """Read for the kind `speaker`."""
    data: EvaluatorDataConfig = field(default_factory=EvaluatorDataConfig)
    """Clips."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Variations."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=1200,
            lr=2e-3,
            betas=(0.9, 0.98),
            eps=1e-8,
            schedule="cosine",
            warmup_steps=60,
            clip_norm=1.0,
            min_lr_ratio=0.02,
        )
    )
    """Optimizer."""
    run: RunConfig = field(default_factory=lambda: RunConfig(eval_every=300, save_every=300, keep_checkpoints=1))
    """Run folder."""

    def __post_init__(self):
        self.optim.require_adamw()

    @staticmethod
    def of(kind: Literal["recogniser", "speaker"]) -> EvaluatorTrainConfig:
        """What suits a kind: a speaker's pace and spectrum are their own, and are varied less."""
        if kind == "recogniser":
            return EvaluatorTrainConfig(data=EvaluatorDataConfig(batch_clips=16))
        return EvaluatorTrainConfig(
            kind=kind, data=EvaluatorDataConfig(copied_share=0.2), augment=AugmentConfig(speed=0.0, tilt_db=3.0)
        )


def _check_hz(where: str, hz: float) -> None:
    if not 1000 <= hz <= 8000:
        raise ConfigError(f"{where}.highest_hz must lie in 1000..8000, got {hz}")
