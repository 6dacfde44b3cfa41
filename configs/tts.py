"""Settings of the text-to-speech models.

Sizes and recipe of the paper's VALL-E: the open implementation's, with a learning rate of 0.01 for the AR and 100 and
200 epochs of LibriTTS (arXiv 2408.17175, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.lm import LMRunConfig
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.configs.valle import ValleConfig

Stage = Literal["ar", "nar"]


@dataclass(frozen=True)
class SpeechDataConfig:
    """Token stores of speech with text, and batches. Batches are counted in positions: text units and frames."""

    tokens: tuple[str, ...] = ()
    """Token stores made by `data tokenize`, all with one codec, of manifests with `text` and `speaker`."""
    batch_codes: int = 16_384
    """Positions in one optimizer step, over all devices; rows that are not full count as full ones."""
    micro_batch_codes: int = 8192
    """Positions that one device takes at once; the rest is accumulated."""
    eval_batches: int = 20
    """Micro-batches of the dev split in one validation; fewer if the split is smaller."""
    pack: bool = True
    """Put several utterances into a row; they do not see each other."""
    min_s: float = 0.5
    """Shorter utterances are left out, and counted."""
    max_s: float = 14.0
    """Longer ones, likewise."""
    join: float = 0.0
    """Share of examples that are two utterances of one speaker behind each other, as prompt and speech are in
    decoding."""
    hidden: float = 0.0
    """Largest share of an utterance's codes that the AR is not shown, in runs, though it predicts them; the share is
    drawn for each utterance. What it cannot go on with, it has to read in the text."""
    no_text: float = 0.0
    """Share of examples whose text the AR is not shown, so that decoding can be guided away from speech without a text
    (`tts say --cfg`)."""
    no_prompt_text: float = 0.0
    """Share of the joined examples in which the AR is not shown the first utterance's text, as for a prompt whose words
    are not known."""
    prompt_mode: Literal[0, 1, 2, 4] = 1
    """What the NAR is given of all codebooks in training. 0: nothing; 1: the first quarter to half of the utterance;
    2: a segment of the same utterance, in front of it; 4: a segment of another utterance of the speaker, in front."""
    prompt_s: float = 3.0
    """Longest such prompt."""

    def __post_init__(self):
        for name in ("batch_codes", "micro_batch_codes", "eval_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.min_s < self.max_s:
            raise ConfigError(f"data.min_s {self.min_s} and data.max_s {self.max_s} leave no utterance")
        if not 0 <= self.join <= 1:
            raise ConfigError(f"data.join must lie in [0, 1], got {self.join}")
        for name in ("hidden", "no_text", "no_prompt_text"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must lie in [0, 1), got {getattr(self, name)}")
        if not self.prompt_s > 0:
            raise ConfigError(f"data.prompt_s must be positive, got {self.prompt_s}")


@dataclass(frozen=True)
class NarSizes:
    """Where the NAR's sizes differ from those in `model`; 0 takes these."""

    layers: int = 0
    """Transformer blocks."""
    heads: int = 0
    """Attention heads."""
    dim: int = 0
    """Width of the residual stream."""
    mlp_dim: int = 0
    """Hidden width of the feed-forward layers."""


@dataclass(frozen=True)
class TTSTrainConfig:
    """Everything that decides the training of VALL-E: the AR, and the NAR behind it."""

    stage: Literal["both", "ar", "nar"] = "both"
    """What is trained: the AR predicts the first codebook, the NAR each further one."""
    model: ValleConfig = field(default_factory=ValleConfig)
    """Both models."""
    nar: NarSizes = field(default_factory=NarSizes)
    """Other sizes for the NAR."""
    text: TextConfig = field(default_factory=TextConfig)
    """How text becomes symbols."""
    data: SpeechDataConfig = field(default_factory=SpeechDataConfig)
    """Token stores and batches."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=100_000, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", warmup_steps=1000, clip_norm=1.0
        )
    )
    """Optimizer and schedule of the AR."""
    nar_optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=100_000, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", warmup_steps=1000, clip_norm=1.0
        )
    )
    """Optimizer and schedule of the NAR."""
    run: LMRunConfig = field(default_factory=LMRunConfig)
    """Seed, intervals, precision, devices, tracker."""
    init: str = ""
    """A finished run whose weights training starts from. Empty: fresh weights."""

    def __post_init__(self):
        for name in ("batch_codes", "micro_batch_codes"):
            if getattr(self.data, name) < self.model.block:
                raise ConfigError(
                    f"data.{name} {getattr(self.data, name)} is below model.block {self.model.block}, one row"
                )
        if self.run.shard and {self.optim.name, self.nar_optim.name} != {"adamw"}:
            raise ConfigError("run.shard spreads matrices, which Muon and ScaledAdam need whole", "train with adamw")

    def of_stage(self, stage: Stage) -> TTSTrainConfig:
        """The run of one of the two models, with its sizes in `model` and its optimizer in `optim`."""
        if stage == "ar":
            return replace(self, stage=stage)
        sizes = {name: size for name, size in vars(self.nar).items() if size}
        return replace(self, stage=stage, model=replace(self.model, **sizes), optim=self.nar_optim)
