"""Settings of the speech models: VALL-E's two decoders, of which one speaks and the other refines.

Defaults are the sizes of the paper's run (arXiv 2301.02111, section 4.1, and arXiv 2408.17175, section 4.1). `group`
above 1 is VALL-E 2 (arXiv 2406.05370).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.lm import LayoutConfig

SPECIALS = 3
"""Ids after the codes: bos, eos and pad, see `lm/vocabulary.py`."""


@dataclass(frozen=True)
class ValleConfig:
    """Either part: the AR model, which writes the first codebook, or the NAR model, which writes the others."""

    layers: int = 12
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    dim: int = 1024
    """Width of the residual stream."""
    mlp_dim: int = 4096
    """Hidden width of the feed-forward layers."""
    dropout: float = 0.1
    """Dropout on embeddings, attention and residual branches; the NAR's text has none on its embedding."""
    text_size: int = 512
    """Ids of text units that there is room for."""
    n_q: int = 8
    """Codebooks that are spoken: the first by the AR model, the others by the NAR model."""
    codebook_size: int = 1024
    """Codes in each codebook."""
    group: int = 1
    """Frames of the first codebook that the AR model speaks in a step; above 1 as VALL-E 2 does."""
    chain: bool = False
    """Draw the frames of a group one after the other, each knowing the one before. VALL-E 2 draws all at once, as if
    they did not depend on each other."""
    tie: Literal["natural", "repo", "none"] = "natural"
    """Output heads of the NAR model: `natural` uses the embedding of the codebook that is predicted; `repo` that of the
    codebook after it, and a head of its own for the last, as the public code does that the paper trained; `none` gives
    every codebook a head of its own."""
    block: int = 2048
    """Most positions of the AR model, text and audio together, bos included. The NAR model has no limit of its own."""
    text_pace: float = 1.0
    """Positions of the AR model that a unit of text takes. At the steps that a unit usually lasts, text and speech have
    like positions where they belong together, and a small model follows the text sooner (docs/tts.md). 0, for training
    alone, measures it in the training data."""
    text_over_speech: bool = False
    """Let every text stand at the AR positions of its own speech. Training spreads it over the utterance, drawn
    somewhat longer or shorter; decoding spreads the prompt's text over the prompt and goes on at about its pace.
    `text_pace` is then that of speech without a prompt's text."""
    recompute: bool = False
    """Gradient checkpointing: keep no activations of the blocks, compute them again in the backward pass."""

    def __post_init__(self):
        for name in ("layers", "heads", "dim", "mlp_dim", "text_size", "n_q", "codebook_size", "group", "block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout must lie in [0, 1), got {self.dropout}")
        if not self.text_pace >= 0:
            raise ConfigError(f"model.text_pace must be at least 0, got {self.text_pace}")
        if self.chain and self.group == 1:
            raise ConfigError("model.chain is about the frames of a group, but model.group is 1")
        if self.dim % self.heads:
            raise ConfigError(f"model.dim {self.dim} is not divisible by model.heads {self.heads}")
        if self.dim % 2:
            raise ConfigError(f"sinusoidal positions need an even model.dim, got {self.dim}")

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.dim // self.heads

    @property
    def layout(self) -> LayoutConfig:
        """Steps and ids of the AR model: as many ids as there are codes and specials, without rounding up."""
        return LayoutConfig(
            name="first" if self.group == 1 else "grouped",
            group=self.group,
            vocabulary_size=self.codebook_size * self.group + SPECIALS,
        )
