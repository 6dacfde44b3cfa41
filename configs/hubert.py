"""Settings of HuBERT-General-Audio: masked prediction of a codec's first codes.

The paper's recipe: arXiv 2408.17175, section 4.2.1. What it leaves open is taken from HuBERT, arXiv 2106.07447.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.run import OptimConfig, RunConfig


@dataclass(frozen=True)
class HubertModelConfig:
    """Sizes of the model; those of the same name go to `transformers.HubertConfig` as they stand."""

    sample_rate: int = 16_000
    """Samples per second of the audio."""
    hidden_size: int = 768
    """Width of the transformer, and of the features that it gives as a teacher."""
    num_hidden_layers: int = 12
    """Transformer layers."""
    num_attention_heads: int = 12
    """Attention heads."""
    intermediate_size: int = 3072
    """Width of the feed-forward layers."""
    conv_dim: tuple[int, ...] = (512,) * 7
    """Channels of each convolution of the front end."""
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Kernels of the front end."""
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Strides of the front end; their product is the hop."""
    conv_bias: bool = False
    """Biases in the front end."""
    feat_extract_norm: Literal["group", "layer"] = "group"
    """`group`: one norm over time after the first convolution; `layer`: a norm over channels after each."""
    do_stable_layer_norm: bool = False
    """Norms before the transformer's sub-layers (HuBERT large) instead of after them (base)."""
    num_conv_pos_embeddings: int = 128
    """Kernel of the convolution that gives positions, in frames."""
    num_conv_pos_embedding_groups: int = 16
    """Groups of that convolution."""
    dropout: float = 0.1
    """Dropout on projected features, attention and residual branches."""
    projection_dim: int = 256
    """Width in which predictions and label embeddings are compared; left out of the exported model."""

    @property
    def hop_samples(self) -> int:
        """Samples per frame."""
        return math.prod(self.conv_stride)


@dataclass(frozen=True)
class HubertTargetsConfig:
    """Where the labels come from."""

    codec: str = ""
    """Codec whose first layer of codes is predicted: a run folder, a model folder, a shipped name or a hub id."""


@dataclass(frozen=True)
class HubertDataConfig:
    """Manifests and batches; these are counted in seconds of audio, over all devices and accumulated micro-batches."""

    manifests: tuple[str, ...] = ()
    """JSON-lines manifests; rows with `split: train` (or no split) are trained on, `split: dev` validated on."""
    crop_s: float = 4.0
    """Longest training crop; shorter recordings share its place with others of their length."""
    batch_s: float = 32.0
    """Seconds of audio in one optimizer step, over all devices."""
    micro_batch_s: float = 32.0
    """Seconds of audio that one device takes at once; the rest is accumulated."""
    eval_clips: int = 48
    """Validation clips, chosen once by the seed."""
    eval_clip_s: float = 6.0
    """Longest stretch of a validation clip."""

    def __post_init__(self):
        for name in ("crop_s", "batch_s", "micro_batch_s", "eval_clip_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"data.{name} must be above 0, got {getattr(self, name)}")
        if self.eval_clips < 1:
            raise ConfigError(f"data.eval_clips must be at least 1, got {self.eval_clips}")


@dataclass(frozen=True)
class HubertLossConfig:
    """Masking, and what counts."""

    mask_time_prob: float = 0.8
    """Share of the frames that masked spans would cover if none overlapped; HuBERT's 8 % of starts, ten frames each."""
    mask_time_length: int = 10
    """Frames in a masked span."""
    temperature: float = 0.1
    """Divisor of the cosine similarity between predictions and label embeddings."""
    masked_weight: float = 1.0
    """Weight of the cross entropy on masked frames."""
    unmasked_weight: float = 0.0
    """Weight of the cross entropy on the frames that the model sees; above 0 it also learns to copy the codec."""

    def __post_init__(self):
        if not 0 < self.mask_time_prob <= 1:
            raise ConfigError(f"loss.mask_time_prob must lie in (0, 1], got {self.mask_time_prob}")
        if self.mask_time_length < 1:
            raise ConfigError(f"loss.mask_time_length must be at least 1, got {self.mask_time_length}")
        if not self.temperature > 0:
            raise ConfigError(f"loss.temperature must be above 0, got {self.temperature}")
        if not (self.masked_weight > 0 and self.unmasked_weight >= 0):
            raise ConfigError("loss.masked_weight must be above 0, and loss.unmasked_weight not below 0")


@dataclass(frozen=True)
class HubertTrainConfig:
    """Everything that decides a pre-training run."""

    model: HubertModelConfig = field(default_factory=HubertModelConfig)
    """The model."""
    targets: HubertTargetsConfig = field(default_factory=HubertTargetsConfig)
    """The labels."""
    data: HubertDataConfig = field(default_factory=HubertDataConfig)
    """Manifests and batches."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=325_000,
            lr=3e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            schedule="inverse_sqrt",
            warmup_steps=32_000,
            clip_norm=10.0,
        )
    )
    """Optimizer and schedule."""
    loss: HubertLossConfig = field(default_factory=HubertLossConfig)
    """Masking and weights."""
    run: RunConfig = field(default_factory=RunConfig)
    """Seed, intervals, tracker."""

    def __post_init__(self):
        self.optim.require_adamw()
        model, data = self.model, self.data
        if not len(model.conv_dim) == len(model.conv_kernel) == len(model.conv_stride) > 0:
            raise ConfigError("model.conv_dim, model.conv_kernel and model.conv_stride must have the same length")
        if model.hidden_size % model.num_attention_heads:
            raise ConfigError(
                f"model.hidden_size {model.hidden_size} is not divisible by "
                f"model.num_attention_heads {model.num_attention_heads}"
            )
        if model.hidden_size % model.num_conv_pos_embedding_groups:
            raise ConfigError(
                f"model.hidden_size {model.hidden_size} is not divisible by "
                f"model.num_conv_pos_embedding_groups {model.num_conv_pos_embedding_groups}"
            )
        if not 0 <= model.dropout < 1:
            raise ConfigError(f"model.dropout must lie in [0, 1), got {model.dropout}")
        crop = data.crop_s * model.sample_rate
        if crop < model.hop_samples or round(crop) % model.hop_samples:
            raise ConfigError(
                f"data.crop_s {data.crop_s} is not a whole number of frames of {model.hop_samples} samples "
                f"at {model.sample_rate} Hz"
            )
        if min(data.batch_s, data.micro_batch_s) < data.crop_s:
            raise ConfigError(
                f"data.batch_s {data.batch_s} and data.micro_batch_s {data.micro_batch_s} must hold one crop "
                f"of {data.crop_s} s"
            )
