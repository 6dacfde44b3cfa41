"""Settings of the language models over codec tokens.

Sizes of the paper's music model: GPT-2 medium, block 4096, one codebook of 1024 codes (arXiv 2408.17175, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.run import OptimConfig, RunConfig

LayoutName = Literal[
    "first", "single", "flatten", "coarse_first", "dual_track", "delay", "parallel", "depth", "grouped", "ar_nar"
]


@dataclass(frozen=True)
class LayoutConfig:
    """How codes (Q, T) become steps of a language model; `lm/layouts.py` says what each name means."""

    name: LayoutName = "first"
    """`first`, `single`, `flatten`, `coarse_first`, `dual_track`: one id a step; `delay`, `parallel`, `depth`,
    `grouped`, `ar_nar`: several."""
    n_q: int = 1
    """Codebooks that the model speaks, of each track."""
    ids: Literal["offset", "shared"] = "offset"
    """`offset` gives every codebook its own ids; `shared` uses the same ids for all, where a step is one id."""
    specials: Literal["none", "standard"] = "standard"
    """`standard` appends bos, eos and pad after the codes and rounds the vocabulary up to 64; `none` has codes only."""
    delays: tuple[int, ...] = ()
    """`delay`: steps that each codebook waits; empty for 0, 1, 2, ..."""
    chunk: int = 0
    """`coarse_first`: frames in a chunk; 0 makes the whole recording one."""
    group: int = 1
    """`grouped`: frames of the first codebook in a step."""
    first_id: int = 0
    """Id of the first code, where a text model's ids come before."""
    vocabulary_size: int = 0
    """Ids in all, where a model fixes them; 0 takes what is needed."""

    def __post_init__(self):
        if self.n_q < 1:
            raise ConfigError(f"layout.n_q must be at least 1, got {self.n_q}")
        if self.name in ("first", "single", "grouped") and self.n_q != 1:
            raise ConfigError(
                f"layout.name: {self.name} has one codebook, but layout.n_q is {self.n_q}",
                "set n_q to 1, or use flatten for several",
            )
        for key, owner in (("delays", "delay"), ("chunk", "coarse_first")):
            if getattr(self, key) and self.name != owner:
                raise ConfigError(f"layout.{key} is for layout.name: {owner}, not {self.name}")
        if self.group != 1 and self.name != "grouped":
            raise ConfigError(f"layout.group is for layout.name: grouped, not {self.name}")
        if self.group < 1 or min(self.chunk, self.first_id, self.vocabulary_size) < 0:
            raise ConfigError("layout.group must be at least 1; chunk, first_id and vocabulary_size at least 0")
        if self.delays and (len(self.delays) != self.n_q or min(self.delays) < 0 or self.delays[0] != 0):
            raise ConfigError(
                f"layout.delays {self.delays} must be {self.n_q} numbers from 0, the first of them 0",
                "the first codebook says when a recording ends, so it cannot wait",
            )
        if self.width > 1 and self.ids == "shared":
            raise ConfigError(f"layout.ids: shared needs one id a step; {self.name} has {self.width}")
        if self.width > 1 and self.specials == "none":
            raise ConfigError(f"layout.specials: none leaves no id for the empty cells of {self.name}")

    @property
    def flat(self) -> bool:
        """Whether a step is one id."""
        return self.width == 1

    @property
    def width(self) -> int:
        """Ids in a step."""
        if self.name == "grouped":
            return self.group
        return self.n_q if self.name in ("delay", "parallel", "depth", "ar_nar") else 1


@dataclass(frozen=True)
class DepthConfig:
    """The inner model of the layout `depth`, which predicts the codes of one step after each other."""

    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    dim: int = 256
    """Width of the residual stream."""

    def __post_init__(self):
        if min(self.layers, self.heads, self.dim) < 1 or self.dim % self.heads:
            raise ConfigError("model.depth: layers, heads and dim must be at least 1, and dim divisible by heads")


@dataclass(frozen=True)
class RopeScalingConfig:
    """How LLaMA 3.1 and its successors turn slow pairs of rotary positions slower still; factor 1 leaves them alone."""

    factor: float = 1.0
    """How much slower the slowest pairs turn."""
    low_frequency: float = 1.0
    """Pairs that turn less often than this within `original_positions` are the slowest."""
    high_frequency: float = 4.0
    """Pairs that turn more often than this are left alone; between the two it is a mixture."""
    original_positions: int = 8192
    """Positions that the model was trained on before."""

    def __post_init__(self):
        if not self.factor >= 1 or not 0 < self.low_frequency < self.high_frequency or self.original_positions < 1:
            raise ConfigError(
                "model.rope_scaling needs factor >= 1, 0 < low_frequency < high_frequency, original_positions >= 1"
            )


@dataclass(frozen=True)
class GPTConfig:
    """A decoder in the shape of GPT-2 or LLaMA."""

    arch: Literal["gpt2", "llama"] = "gpt2"
    """`gpt2`: learned positions, layer norm, GELU; `llama`: rotary positions, RMS norm, SwiGLU, no biases."""
    layers: int = 24
    """Transformer blocks."""
    heads: int = 16
    """Attention heads."""
    kv_heads: int = 0
    """Heads of keys and values; 0 for as many as `heads`. Fewer make the cache smaller (`llama` only)."""
    dim: int = 1024
    """Width of the residual stream."""
    mlp_dim: int = 0
    """Hidden width of the feed-forward layers; 0 for 4 * dim."""
    block: int = 4096
    """Longest sequence in steps; positions = block + prefix + bos where there is one."""
    dropout: float = 0.0
    """Dropout on embeddings, attention and residual branches."""
    bias: bool = True
    """Biases in linear layers and layer norms, as GPT-2 has; `llama` has none either way."""
    rope_base: float = 10_000.0
    """Base of the rotary positions of `llama`."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Their scaling, as LLaMA 3.1 and its successors have it."""
    norm_eps: float = 1e-5
    """What norms add to a variance."""
    tied: bool = True
    """The embedding is the output matrix, too."""
    recompute: bool = False
    """Gradient checkpointing: keep no activations of the blocks, compute them again in the backward pass."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """Token layout and vocabulary."""
    depth: DepthConfig = field(default_factory=DepthConfig)
    """Inner model, where the layout is `depth`."""

    def __post_init__(self):
        for name in ("layers", "heads", "dim", "block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout must lie in [0, 1), got {self.dropout}")
        if self.layout.width == 1 and self.block < self.layout.n_q:
            raise ConfigError(f"model.block {self.block} does not hold one frame of {self.layout.n_q} codes")
        if self.dim % self.heads:
            raise ConfigError(f"model.dim {self.dim} is not divisible by model.heads {self.heads}")
        if self.kv_heads and (self.arch != "llama" or self.kv_heads < 0 or self.heads % self.kv_heads):
            raise ConfigError(
                f"model.kv_heads {self.kv_heads} must divide model.heads {self.heads}, in arch llama",
                "0 gives every head its own keys and values",
            )
        if self.arch == "llama" and self.dim // self.heads % 2:
            raise ConfigError(f"rotary positions need heads of even width, got {self.dim // self.heads}")
        if self.mlp_dim < 0:
            raise ConfigError(f"model.mlp_dim must be at least 0, got {self.mlp_dim}")

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.dim // self.heads


@dataclass(frozen=True)
class LMDataConfig:
    """Token stores and batches. Batches are counted in codes, over all devices and accumulated micro-batches."""

    tokens: tuple[str, ...] = ()
    """Token stores made by `data tokenize`, all with one codec."""
    batch_codes: int = 81_920
    """Codes in one optimizer step, over all devices; rows that are not full count as full ones."""
    micro_batch_codes: int = 16_384
    """Codes that one device takes at once; the rest is accumulated."""
    eval_batches: int = 20
    """Micro-batches of the dev split in one validation; fewer if the split is smaller."""
    pack: bool = True
    """Put several short recordings into a row; they do not see each other."""

    def __post_init__(self):
        for name in ("batch_codes", "micro_batch_codes", "eval_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class LMRunConfig(RunConfig):
    """How a run is kept and computed."""

    compile: bool = False
    """Compile the model: faster on a GPU after a minute of compiling."""
    shard: bool = False
    """Spread weights, gradients and optimizer states over the devices (FSDP2), for models that do not fit one."""
    samples: int = 2
    """Continuations of dev recordings that are written as audio at every validation, where the task can decode them."""
    sample_s: float = 6.0
    """Their length beyond a prompt of half as long."""


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
    run: LMRunConfig = field(default_factory=LMRunConfig)
    """Seed, intervals, precision, devices, tracker."""
    init: str = ""
    """A finished run, or model folder, whose weights training starts from. Empty: fresh weights."""

    def __post_init__(self):
        if self.model.layout.flat and self.data.batch_codes < self.model.block:
            raise ConfigError(f"data.batch_codes {self.data.batch_codes} is below model.block {self.model.block}")
        if self.model.layout.name == "ar_nar":
            raise ConfigError(
                "layout ar_nar is of the speech models, whose second part sees all frames at once",
                "choose a layout that is decoded step by step",
            )
        if self.run.shard and self.optim.name != "adamw":
            raise ConfigError(f"optim.name {self.optim.name} needs whole matrices, but run.shard spreads them")
