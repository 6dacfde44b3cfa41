"""Settings of the text-to-sound models.

Sizes of the paper's: GPT-2 medium behind a CLAP vector, four codebooks flattened, block 2000 = 10 s (arXiv 2408.17175,
section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xcodec_lm.configs.conditioning import ConditionConfig
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig, LMDataConfig, LMTrainConfig
from xcodec_lm.configs.run import OptimConfig


@dataclass(frozen=True)
class SoundDataConfig(LMDataConfig):
    """Sounds with captions, their tokens, the CLAP that embeds both, and batches (counted in codes)."""

    manifests: tuple[str, ...] = ()
    """Manifests with `audio` and `caption` or `captions`, to be tokenized first; --data is short for it. The store is
    `tokens` if that is given, else tokens/ in the run folder; what it holds already is not encoded again."""
    codec: str = "xcodec-tiny"
    """Codec that tokenizes them: run folder, model folder, shipped name or hub id; --codec is short for it."""
    clap: str = "clap-tiny"
    """CLAP that embeds captions and sounds: a folder, one of LAION's .pt files, or a shipped name; --clap is short for
    it."""
    text_share: float = 0.5
    """Share of training examples that are conditioned on a caption; the others are on the sound itself. A sound that
    has only one of both is always conditioned on that one, if its share is not 0."""
    hidden: float = 0.0
    """Largest share of a stretch's codes that the model is not shown, in runs, though it predicts them; the share is
    drawn for each stretch. What it cannot go on with, it has to take from the condition."""
    cache: str = ""
    """Folder of the embeddings; empty for clap-cache/ in the first token store."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.text_share <= 1:
            raise ConfigError(f"data.text_share must lie in [0, 1], got {self.text_share}")
        if not 0 <= self.hidden < 1:
            raise ConfigError(f"data.hidden must lie in [0, 1), got {self.hidden}")
        if self.manifests and len(self.tokens) > 1:
            raise ConfigError(
                f"data.manifests are tokenized into one store, but data.tokens names {len(self.tokens)}",
                "name one, or leave out the manifests to train on stores that are there",
            )


@dataclass(frozen=True)
class SoundTrainConfig(LMTrainConfig):
    """Everything that decides the training of a text-to-sound model."""

    model: GPTConfig = field(default_factory=lambda: GPTConfig(block=2000, layout=LayoutConfig("flatten", 4)))
    """The decoder and its token layout."""
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    """What stands in front of the codes; `kind: label` takes the manifest's `label` instead of a CLAP's vector."""
    data: SoundDataConfig = field(default_factory=SoundDataConfig)
    """Sounds, tokens and batches."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=80_000,
            lr=3e-4,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.1,
            schedule="cosine",
            warmup_steps=2000,
            clip_norm=1.0,
        )
    )
    """Optimizer and schedule."""
