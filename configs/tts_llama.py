"""Settings of the single-stream speech model: one decoder over text and speech in one vocabulary, as LLaSA has it.

Source: LLaSA, arXiv 2502.04128; https://github.com/zhenye234/LLaSA_training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig, LMRunConfig
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.configs.tts import SpeechDataConfig

LAYOUTS = ("single", "first", "flatten")
"""Layouts of one id a step, frame by frame."""
LORA_TARGETS = ("qkv", "proj", "fc")
"""Linear layers of a block: queries, keys and values; outputs of attention and feed-forward; its inputs."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of the whole model (arXiv 2106.09685); needs the extra [lora]."""

    rank: int = 0
    """Rank of the adapters; 0 trains the whole model."""
    alpha: int = 32
    """Their effect is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout in front of them."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Layers that get one: `qkv`, `proj`, `fc`."""
    embedding: bool = False
    """Train the embedding, and the head if there is one, beside them: needed where the ids of speech are new."""

    def __post_init__(self):
        if self.rank < 0 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ConfigError("lora.rank must be at least 0, lora.alpha at least 1, lora.dropout in [0, 1)")
        if not self.targets or set(self.targets) - set(LORA_TARGETS):
            raise ConfigError(f"lora.targets is {self.targets}", f"known are {', '.join(LORA_TARGETS)}")


@dataclass(frozen=True)
class LlamaTTSTrainConfig:
    """Everything that decides the training of the single-stream speech model."""

    model: GPTConfig = field(
        default_factory=lambda: GPTConfig(arch="llama", block=2048, layout=LayoutConfig(name="single"))
    )
    """The decoder. `layout.first_id` is the number of text ids, 0 for as many as there are; `block` is the length of a
    row, text and speech together."""
    text: TextConfig = field(default_factory=TextConfig)
    """How text becomes ids; a `transformers` model in `init` brings its tokenizer instead."""
    data: SpeechDataConfig = field(default_factory=SpeechDataConfig)
    """Token stores and batches; `prompt_mode` and `prompt_s` are VALL-E's alone."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=100_000, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", warmup_steps=1000, clip_norm=1.0
        )
    )
    """Optimizer and schedule."""
    run: LMRunConfig = field(default_factory=LMRunConfig)
    """Seed, intervals, precision, devices, tracker."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""
    init: str = ""
    """Where training starts from: a finished run of this kind, or the folder of a `transformers` LLaMA, whose sizes
    replace those in `model`. Empty: fresh weights."""

    def __post_init__(self):
        model = self.model
        if model.arch != "llama":
            raise ConfigError(f"model.arch is {model.arch}, but this model is a llama", "leave out model.arch")
        if model.layout.name not in LAYOUTS:
            raise ConfigError(
                f"model.layout.name is {model.layout.name}, which is not one stream of frames",
                f"choose one of {', '.join(LAYOUTS)}",
            )
        if model.layout.specials != "standard":
            raise ConfigError(
                "model.layout.specials: none leaves no ids for the begin and the end of speech", "leave it out"
            )
        for name in ("batch_codes", "micro_batch_codes"):
            if getattr(self.data, name) < model.block:
                raise ConfigError(f"data.{name} {getattr(self.data, name)} is below model.block {model.block}, one row")
        if self.run.shard and self.optim.name != "adamw":
            raise ConfigError(f"optim.name {self.optim.name} needs whole matrices, but run.shard spreads them")
        if self.run.shard and self.lora.rank:
            raise ConfigError("run.shard is for models that are trained whole, lora.rank for adapters", "leave one out")
