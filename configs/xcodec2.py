"""Settings of X-Codec 2 and its relatives: the model, its semantic branch, and how it is trained.

Defaults are the sizes of the published model. NeuCodec is the same with `output_sample_rate: 24000` and
`semantic.pad_samples: 0`; the streaming variant is `decoder.causal: true`.
Source: arXiv 2502.04128, section 3.1; https://huggingface.co/HKUSTAudio/xcodec2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from xcodec_lm.configs.codec import CodecDataConfig, CodecLossConfig
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.run import OptimConfig, RunConfig

GROUPS = 32
"""Groups of the norms in the decoder's ResNet blocks."""


@dataclass(frozen=True)
class FSQConfig:
    """Finite scalar quantizer: every dimension is rounded to a few levels, and their product is the codebook."""

    levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4, 4, 4)
    """Levels of each dimension; 4^8 = 65,536 codes."""
    bound_twice: bool = True
    """Squash the values twice before rounding, as the published weights were trained."""


@dataclass(frozen=True)
class Xcodec2DecoderConfig:
    """Transformer between ResNet blocks, and a head that predicts a spectrogram."""

    layers: int = 12
    """Transformer layers."""
    heads: int = 16
    """Attention heads."""
    head_dim: int = 64
    """Width of a head; even."""
    mlp_dim: int = 4096
    """Hidden width of a transformer layer's two linear maps."""
    dropout: float = 0.1
    """Dropout inside the ResNet blocks, in training."""
    rope: str = "time"
    """What rotary positions count: `time`, or `head` as the published weights have it, which tells no order at all."""
    causal: bool = False
    """Streaming: nothing but the head looks ahead, and its look-ahead is one and a half frames."""
    attention_window: int = 0
    """Frames that attention sees, the present one included; a causal decoder needs it, others see the whole (0)."""


@dataclass(frozen=True)
class Xcodec2ModelConfig:
    """Acoustic encoder, quantizer and decoder."""

    sample_rate: int = 16_000
    """Samples per second of the audio that is encoded."""
    output_sample_rate: int = 16_000
    """Samples per second of the audio that is decoded."""
    encoder_channels: int = 48
    """Channels after the first convolution; doubled by every stride."""
    encoder_strides: tuple[int, ...] = (2, 2, 4, 4, 5)
    """Down-sampling factors in order; their product is the hop."""
    dim: int = 1024
    """Width of the acoustic latents and of the decoder."""
    quantizer_dim: int = 2048
    """Width of the vectors before and after the quantizer's projections; equal with and without semantics."""
    quantizer: FSQConfig = field(default_factory=FSQConfig)
    """The finite scalar quantizer."""
    decoder: Xcodec2DecoderConfig = field(default_factory=Xcodec2DecoderConfig)
    """The decoder."""
    weight_norm: bool = True
    """Train the encoder's convolutions with weight normalisation; it is folded on export."""
    init_std: float | None = 0.02
    """Standard deviation of initial weights; null keeps the variance of signals in the encoder, and PyTorch's own
    initialisation elsewhere."""
    start_from: str = ""
    """A trained codec of this family whose weights a run starts from. Empty: fresh weights."""
    freeze_encoder: bool = False
    """Train the decoder alone, on the codes of `start_from`, which stay the same: for a streaming decoder or another
    output rate."""

    def __post_init__(self):
        decoder, levels = self.decoder, self.quantizer.levels
        if not levels or min(levels) < 2:
            raise ConfigError(f"quantizer.levels {levels} must be numbers of at least 2")
        if decoder.rope not in ("time", "head"):
            raise ConfigError(f"decoder.rope is {decoder.rope!r}; it must be time or head")
        if decoder.head_dim % 2:
            raise ConfigError(f"decoder.head_dim is {decoder.head_dim}; rotary positions need an even number")
        if decoder.causal != (decoder.attention_window > 0):
            raise ConfigError(
                f"decoder.causal is {decoder.causal} and decoder.attention_window {decoder.attention_window}; "
                "a causal decoder needs a window above 0, any other has none"
            )
        if not decoder.causal and (self.dim % GROUPS or self.dim == GROUPS):
            # One channel a group would leave a clip of one frame without a variance.
            raise ConfigError(
                f"dim is {self.dim}; the decoder's norms need a multiple of {GROUPS}, {2 * GROUPS} or more"
            )
        if self.hop_samples * self.output_sample_rate % (2 * self.sample_rate):
            raise ConfigError(
                f"a frame of {self.hop_samples} samples at {self.sample_rate} Hz is not an even number of samples at "
                f"output_sample_rate {self.output_sample_rate}, as the decoder's head needs"
            )

    @property
    def hop_samples(self) -> int:
        """Samples per frame at `sample_rate`."""
        return math.prod(self.encoder_strides)

    @property
    def output_hop_samples(self) -> int:
        """Samples per frame at `output_sample_rate`."""
        return self.hop_samples * self.output_sample_rate // self.sample_rate


@dataclass(frozen=True)
class Xcodec2SemanticConfig:
    """The frozen teacher and what it is shown. Only keys of this group differ from a twin's without semantics."""

    teacher: str = "none"
    """`none`, `random:SEED` (a tiny untrained HuBERT), a shipped name, a model folder or a hub id; the published models
    have a w2v-BERT 2.0."""
    layers: Literal["mean"] | int = 16
    """What of the teacher is used: one of its hidden states, or the mean of all. Later layers of a w2v-BERT are left
    out of the codec."""
    dim: int = 1024
    """Width of the teacher's hidden states."""
    pad_samples: int = 160
    """Zeros on both sides of what the teacher is shown: 160, half a hop, in X-Codec 2. With 0, as in NeuCodec, its
    frames lie half a frame later, and the last one needs a frame of zeros after the audio."""
    loss_weight: float = 5.0
    """Weight of the squared error of the reconstructed teacher features."""
    window_s: float = 60.0
    """Longest stretch that the teacher sees at once (WavLM and w2v-BERT: at most 20 s); longer audio is windowed."""


@dataclass(frozen=True)
class Xcodec2TrainConfig:
    """Everything that decides a training run of an X-Codec 2 or a relative."""

    model: Xcodec2ModelConfig = field(default_factory=Xcodec2ModelConfig)
    """Acoustic encoder, quantizer, decoder."""
    semantic: Xcodec2SemanticConfig = field(default_factory=Xcodec2SemanticConfig)
    """Teacher and semantic branch."""
    data: CodecDataConfig = field(default_factory=CodecDataConfig)
    """Manifests and batches."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Generator's optimizer; the discriminators share all but the rate."""
    loss: CodecLossConfig = field(default_factory=CodecLossConfig)
    """Losses and discriminators; there is no commitment."""
    run: RunConfig = field(default_factory=RunConfig)
    """Seed, intervals, tracker."""

    def __post_init__(self):
        self.optim.require_adamw()
        self.data.check_crop(self.model.sample_rate, self.model.hop_samples)
