"""Settings of the X-Codec family: the model, its teacher, and how it is trained.

The twin without semantics is the same configuration with `semantic.teacher: none`.
Sizes of the paper: arXiv 2408.17175, sections 4 and 6, and the published checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.run import OptimConfig, RunConfig


@dataclass(frozen=True)
class QuantizerConfig:
    """Residual vector quantizer with codebooks kept by moving averages."""

    n_q: int = 8
    """Number of quantizers."""
    codebook_size: int = 1024
    """Codes in each codebook."""
    dim: int = 1024
    """Width of the vectors that are quantized; equal in X-Codec and its twin."""
    decay: float = 0.99
    """Decay of the moving averages of the codebooks."""
    dead_fraction: float = 0.1
    """A code is dead when its average count falls below this fraction of the frames per code."""
    kmeans_iterations: int = 50
    """Iterations of k-means on the first batch."""
    n_q_choices: tuple[int, ...] = (1, 2, 3, 4, 8)
    """Numbers of quantizers from which each training step draws one."""


@dataclass(frozen=True)
class CodecModelConfig:
    """Acoustic encoder, decoder and quantizer."""

    sample_rate: int = 16_000
    """Samples per second."""
    encoder_channels: int = 64
    """Channels after the first convolution; doubled by every stride."""
    encoder_strides: tuple[int, ...] = (8, 5, 4, 2)
    """Down-sampling factors in order; their product is the hop."""
    latent_dim: int = 256
    """Width of the acoustic latents at both ends."""
    decoder_channels: int = 1024
    """Channels before the first transposed convolution; halved by every stride."""
    decoder_strides: tuple[int, ...] = (8, 5, 4, 2)
    """Up-sampling factors in order."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """The residual vector quantizer."""
    weight_norm: bool = True
    """Train the acoustic convolutions with weight normalisation; it is folded on export."""
    init_std: float | None = 0.02
    """Standard deviation of the acoustic convolutions' initial weights; null keeps the variance of signals."""
    start_from: str = ""
    """A trained codec whose weights a run starts from; a twin can start an X-Codec. Empty: fresh weights."""

    @property
    def hop_samples(self) -> int:
        """Samples per frame."""
        return math.prod(self.encoder_strides)


@dataclass(frozen=True)
class SemanticConfig:
    """The frozen teacher and the convolutional stacks around it. Only keys of this group differ from the twin's."""

    teacher: str = "none"
    """`none` (the twin), `random:SEED` (a tiny untrained HuBERT), a shipped name, a model folder or a hub id."""
    layers: Literal["mean"] | int = "mean"
    """What of the teacher is used: the mean of all hidden states, or one of them (0 is the first layer's input)."""
    dim: int = 768
    """Width of the teacher's hidden states."""
    kernel_size: int = 3
    """Kernel of the first and last convolutions of the semantic encoder and decoder."""
    unit_kernel_size: int = 3
    """Kernel of the residual units."""
    channel_ratios: tuple[int, ...] = (1, 1)
    """Width of each block relative to the teacher's."""
    strides: tuple[int, ...] = (1, 1)
    """Stride of each block."""
    block_dilations: tuple[int, ...] = (1, 1)
    """Dilations of the residual units in a block."""
    loss_weight: float = 100.0
    """Weight of the squared error of the reconstructed teacher features (gamma of the paper)."""
    window_s: float = 60.0
    """Longest stretch of audio that the teacher sees at once (WavLM and w2v-BERT: at most 20 s); longer audio is
    windowed."""


@dataclass(frozen=True)
class CodecDataConfig:
    """Manifests and batches; these are counted in seconds of audio, over all devices and accumulated micro-batches."""

    manifests: tuple[str, ...] = ()
    """JSON-lines manifests; rows with `split: train` (or no split) are trained on, `split: dev` validated on."""
    crop_s: float = 3.0
    """Length of a training crop; shorter recordings are padded with zeros."""
    batch_s: float = 192.0
    """Seconds of audio in one optimizer step, over all devices."""
    micro_batch_s: float = 24.0
    """Seconds of audio that one device takes at once; the rest is accumulated."""
    skip_silence: bool = True
    """Look for another crop where one is below -60 dB. At first silence teaches little; the last steps of a run that is
    started from another should see it, or quiet passages come out too loud."""
    gain: float = 0.95
    """Factor on every training crop."""
    eval_clips: int = 16
    """Validation clips, chosen once by the seed."""
    eval_clip_s: float = 4.0
    """Longest stretch of a validation clip."""
    workers: int = 0
    """Processes that read audio ahead; 0 reads in the training process."""

    def __post_init__(self):
        if self.batch_s < self.crop_s:
            raise ConfigError(f"data.batch_s {self.batch_s} is shorter than one crop of {self.crop_s} s")

    def check_crop(self, sample_rate: int, hop_samples: int) -> None:
        """Refuses crops that are not whole frames of a model."""
        crop = self.crop_s * sample_rate
        if crop < hop_samples or round(crop) % hop_samples:
            raise ConfigError(
                f"data.crop_s {self.crop_s} is not a whole number of frames of {hop_samples} samples "
                f"at {sample_rate} Hz"
            )


@dataclass(frozen=True)
class CodecLossConfig:
    """Weights and shapes of the training losses; a weight of 0 leaves the term out."""

    adversarial_weight: float = 1.0
    """Least-squares adversarial loss, mean over the discriminators."""
    feature_weight: float = 20.0
    """Feature matching: L1 between the discriminators' feature maps."""
    stft_weight: float = 1.0
    """Multi-resolution STFT loss: spectral convergence and log magnitude."""
    subband_stft_weight: float = 0.0
    """The same on the bands of a six-band PQMF."""
    waveform_weight: float = 0.0
    """L1 between waveforms; aligns low frequencies early, which short runs need."""
    mel_weight: float = 15.0
    """Multi-resolution L1 between log mel spectra."""
    commitment_weight: float = 1.0
    """Commitment of the latents to their codes, mean over the layers in use."""
    spread_weight: float = 0.0
    """X-Codec 2 alone: keeps the dimensions of its quantizer apart and their levels in use, which short runs need."""
    stft_windows: tuple[int, ...] = (480, 960, 1200)
    """Windows of the STFT loss; hop is a quarter of the window, the transform the next power of two."""
    mel_windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Windows of the mel loss; hop is a quarter of the window."""
    mel_bands: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)
    """Mel bands of each window."""
    disc_hops: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Hop of each mel-spectrogram discriminator; its transform is four hops long."""
    disc_channels: tuple[int, ...] = (64, 128, 256, 512, 512, 512)
    """Widest layer of each discriminator."""
    disc_lr: float = 2e-4
    """Learning rate of the discriminators, under the same schedule."""
    disc_start_step: int = 0
    """First step with a discriminator; before it only the reconstruction losses act."""

    def __post_init__(self):
        if len(self.mel_windows) != len(self.mel_bands):
            raise ConfigError("loss.mel_windows and loss.mel_bands must have the same length")
        if len(self.disc_hops) != len(self.disc_channels):
            raise ConfigError("loss.disc_hops and loss.disc_channels must have the same length")


@dataclass(frozen=True)
class CodecTrainConfig:
    """Everything that decides a codec training run."""

    model: CodecModelConfig = field(default_factory=CodecModelConfig)
    """Acoustic encoder, decoder, quantizer."""
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    """Teacher and semantic stacks."""
    data: CodecDataConfig = field(default_factory=CodecDataConfig)
    """Manifests and batches."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Generator's optimizer; the discriminators share all but the rate."""
    loss: CodecLossConfig = field(default_factory=CodecLossConfig)
    """Losses and discriminators."""
    run: RunConfig = field(default_factory=RunConfig)
    """Seed, intervals, tracker."""

    def __post_init__(self):
        self.optim.require_adamw()
        model, quantizer, data = self.model, self.model.quantizer, self.data
        if math.prod(model.encoder_strides) != math.prod(model.decoder_strides):
            raise ConfigError(
                f"model.encoder_strides {model.encoder_strides} and model.decoder_strides {model.decoder_strides} "
                "have different products, so the decoder would not return the encoder's length"
            )
        if bad := [n for n in quantizer.n_q_choices if not 1 <= n <= quantizer.n_q]:
            raise ConfigError(f"model.quantizer.n_q_choices holds {bad[0]}, outside 1..n_q = {quantizer.n_q}")
        if not quantizer.n_q_choices:
            raise ConfigError("model.quantizer.n_q_choices is empty: name at least one number of quantizers")
        data.check_crop(model.sample_rate, model.hop_samples)
