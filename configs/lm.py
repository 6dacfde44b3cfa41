"""Settings of the language models over codec tokens.

Sizes of the paper's music model: GPT-2 medium, block 4096, one codebook of 1024 codes (arXiv 2408.17175, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.run import OptimConfig, RunConfig


@dataclass(frozen=True)
class LayoutConfig:
    """How codes (Q, T) become one sequence of ids."""

    name: Literal["first", "flatten"] = "first"
    """`first` takes the first codebook only; `flatten` takes n_q codebooks frame by frame."""
    n_q: int = 1
    """Codebooks in the sequence; 1 for `first`."""
    ids: Literal["offset", "shared"] = "offset"
    """`offset` gives every codebook its own ids; `shared` uses the same ids for all."""
    specials: Literal["none", "standard"] = "standard"
    """`standard` appends bos, eos and pad after the codes and rounds the vocabulary up to 64; `none` has codes only."""

    def __post_init__(self):
        if self.n_q < 1:
            raise ConfigError(f"layout.n_q must be at least 1, got {self.n_q}")
        if self.name == "first" and self.n_q != 1:
            raise ConfigError(f"layout.name: first has one codebook, but layout.n_q is {self.n_q}; use flatten")


@dataclass(frozen=True)
class GPTConfig:
    """A GPT-2 decoder."""

    layers: int = 24
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    dim: int = 1024
    """Width of the residual stream."""
    block: int = 4096
    """Longest sequence in codes; positions = block + prefix + specials."""
    dropout: float = 0.0
    """Dropout on embeddings, attention and residual branches."""
    bias: bool = True
    """Biases in linear layers and layer norms, as GPT-2 has."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """Token layout and vocabulary."""

    def __post_init__(self):
        for name in ("layers", "heads", "dim", "block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout must lie in [0, 1), got {self.dropout}")
        if self.block < self.layout.n_q:
            raise ConfigError(f"model.block {self.block} does not hold one frame of {self.layout.n_q} codes")
        if self.dim % self.heads:
            raise ConfigError(f"model.dim {self.dim} is not divisible by model.heads {self.heads}")


@dataclass(frozen=True)
class LMDataConfig:
    """Token stores and batches. Batches are counted in codes, over all devices and accumulated micro-batches."""

    tokens: str = ""
    """Token store made by `data tokenize`."""
    batch_codes: int = 81_920
    """Codes in one optimizer step, over all devices."""
    micro_batch_codes: int = 16_384
    """Codes that one device takes at once; the rest is accumulated."""
    eval_batches: int = 20
    """Micro-batches of the dev split in one validation; fewer if the split is smaller."""

    def __post_init__(self):
        for name in ("batch_codes", "micro_batch_codes", "eval_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class LMTrainConfig:
    """Everything that decides a language-model training run."""

    model: GPTConfig = field(default_factory=GPTConfig)
    """The decoder and its token layout."""
    data: LMDataConfig = field(default_factory=LMDataConfig)
    """Token store and batches."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=300_000,
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
    run: RunConfig = field(default_factory=RunConfig)
    """Seed, intervals, tracker."""

    def __post_init__(self):
        if self.data.batch_codes < self.model.block:
            raise ConfigError(f"data.batch_codes {self.data.batch_codes} is below model.block {self.model.block}")
