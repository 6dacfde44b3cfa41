"""Settings of CLAP: two towers, for sounds and for captions, whose embeddings meet.

The architecture is that of transformers' `ClapModel` (HTSAT and RoBERTa), at any size.
Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining", arXiv 2211.06687.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.evaluators import AugmentConfig
from xcodec_lm.configs.run import OptimConfig, RunConfig

LEAST_VOCABULARY = 261
"""256 bytes and five special tokens: with so many ids no two bytes are merged."""


@dataclass(frozen=True)
class ClapAudioTowerConfig:
    """What is heard, and the HTSAT that hears it. The defaults are HTSAT-tiny at 48 kHz."""

    sample_rate: int = 48_000
    """Samples per second of the audio."""
    window_s: int = 10
    """Seconds that are embedded at once; longer audio is the mean of several windows."""
    hop_samples: int = 480
    """Samples between two spectra."""
    fft_samples: int = 1024
    """Samples of a spectrum."""
    mel_bands: int = 64
    """Mel bands."""
    lowest_hz: int = 50
    """Lower end of the lowest band."""
    highest_hz: int = 14_000
    """Upper end of the highest band."""
    image_size: int = 256
    """Side of the square that the spectrogram is folded into: `image_size / mel_bands` stretches, one above another."""
    patch_size: int = 4
    """Side of a patch of that square."""
    attention_window: int = 8
    """Side of the windows of patches within which attention looks."""
    width: int = 96
    """Features of a patch in the first stage; each further stage has twice as many."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""

    @property
    def frames(self) -> int:
        """Spectra of one window."""
        return self.window_s * self.sample_rate // self.hop_samples + 1

    def __post_init__(self):
        if self.sample_rate < 8000 or self.window_s < 1 or not 0 < self.hop_samples <= self.fft_samples:
            raise ConfigError("audio: sample_rate must be at least 8000, window_s 1, and hop_samples 1..fft_samples")
        if not 0 <= self.lowest_hz < self.highest_hz <= self.sample_rate / 2:
            raise ConfigError(
                f"audio.lowest_hz {self.lowest_hz} and audio.highest_hz {self.highest_hz} must lie in order in "
                f"0..{self.sample_rate // 2}"
            )
        if not 0 < len(self.depths) == len(self.heads):
            raise ConfigError("audio.depths and audio.heads must have the same length")
        if self.mel_bands < 1 or self.image_size % self.mel_bands:
            raise ConfigError(f"audio.image_size {self.image_size} is not a multiple of mel_bands {self.mel_bands}")
        last = self.patch_size * 2 ** (len(self.depths) - 1) * self.attention_window
        if self.image_size % last:
            raise ConfigError(
                f"audio.image_size {self.image_size} is not a multiple of {last}, the side in pixels of one window of "
                "attention in the last stage"
            )
        folded = self.image_size * self.image_size // self.mel_bands
        if self.frames > folded:
            raise ConfigError(
                f"audio: a window has {self.frames} spectra, but the square holds {folded}",
                "raise hop_samples or image_size, or lower window_s",
            )
        for stage, heads in enumerate(self.heads):
            if self.width * 2**stage % heads:
                raise ConfigError(f"audio.heads[{stage}] {heads} does not divide {self.width * 2**stage} features")


@dataclass(frozen=True)
class ClapTextTowerConfig:
    """The RoBERTa that reads captions, and its tokens: bytes, and merges of them learnt from the training captions."""

    vocab_size: int = 512
    """Ids in all; at 261 every byte is a token of its own. Every script can be written in bytes."""
    longest: int = 77
    """Tokens of a caption; what follows is cut."""
    width: int = 768
    """Features of a token."""
    layers: int = 12
    """Transformer layers."""
    heads: int = 12
    """Attention heads."""
    inner: int = 3072
    """Width of the feed-forward layers."""

    def __post_init__(self):
        if self.vocab_size < LEAST_VOCABULARY:
            raise ConfigError(f"text.vocab_size must be at least {LEAST_VOCABULARY}, got {self.vocab_size}")
        if self.longest < 8:
            raise ConfigError(f"text.longest must be at least 8, got {self.longest}")
        if self.width % self.heads:
            raise ConfigError(f"text.width {self.width} is not divisible by text.heads {self.heads}")


@dataclass(frozen=True)
class ClapModelConfig:
    """Both towers and the space in which they meet."""

    audio: ClapAudioTowerConfig = field(default_factory=ClapAudioTowerConfig)
    """The tower for sounds."""
    text: ClapTextTowerConfig = field(default_factory=ClapTextTowerConfig)
    """The tower for captions."""
    dim: int = 512
    """Size of an embedding."""
    dropout: float = 0.1
    """Dropout in both towers."""

    def __post_init__(self):
        if self.dim < 2:
            raise ConfigError(f"model.dim must be at least 2, got {self.dim}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class ClapDataConfig:
    """Captioned clips, and how batches are drawn from them."""

    manifests: tuple[str, ...] = ()
    """Manifests with `caption` and, where known, `label` and `recording`; split train is trained on."""
    batch_clips: int = 32
    """Clips of one step; each is told from all others."""
    split_seed: int = 0
    """0 keeps the manifest's splits; any other number divides train and dev anew, by recording, for a CLAP that is to
    judge what another one conditions. Rows of split test stay out."""
    dev_share: float = 0.15
    """Share of the recordings that such a division holds out."""
    balance: float = 0.5
    """How far frequent labels are drawn down: 0 draws clips evenly, 1 labels."""
    cached_clips: int = 500
    """Decoded clips that stay in memory."""
    variants: int = 0
    """Variations of each clip, made once, kept for `cached_clips` of them, and drawn from; 0 varies a clip anew
    whenever it is drawn, which for a small model takes as long as the rest of a step."""
    eval_clips: int = 300
    """Clips that each validation looks at."""

    def __post_init__(self):
        if self.batch_clips < 2:
            raise ConfigError(f"data.batch_clips must be at least 2, got {self.batch_clips}")
        if self.split_seed < 0 or not 0 < self.dev_share < 1:
            raise ConfigError("data.split_seed must not be negative, and data.dev_share must lie in (0, 1)")
        if not 0 <= self.balance <= 1:
            raise ConfigError(f"data.balance must lie in [0, 1], got {self.balance}")
        if min(self.cached_clips, self.variants) < 0 or self.eval_clips < 1:
            raise ConfigError("data.cached_clips and data.variants must not be negative, data.eval_clips at least 1")


@dataclass(frozen=True)
class ClapLossConfig:
    """The contrastive loss, and variations that few clips need."""

    temperature: float = 0.07
    """Divisor of the cosines at the start; it is learnt."""
    label_weight: float = 0.5
    """How much a caption of the same label counts as right, beside 1 for the clip's own; 0 tells them apart."""
    mix_share: float = 0.3
    """How often two clips are mixed and their captions joined."""
    mix_db: float = 5.0
    """Their levels differ by at most this."""
    class_share: float = 0.2
    """How often the label stands for the caption."""
    phrase_share: float = 0.3
    """How often a caption is put into a phrase such as "the sound of ..."."""
    mask_share: float = 0.5
    """How often a stretch of time and one of bands are blanked in the spectrogram."""

    def __post_init__(self):
        if not self.temperature >= 0.01:
            raise ConfigError(f"loss.temperature must be at least 0.01, got {self.temperature}")
        for name in ("label_weight", "mix_share", "class_share", "phrase_share", "mask_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"loss.{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class ClapTrainConfig:
    """Everything that decides a CLAP's training."""

    model: ClapModelConfig = field(default_factory=ClapModelConfig)
    """The towers."""
    data: ClapDataConfig = field(default_factory=ClapDataConfig)
    """Clips and captions."""
    augment: AugmentConfig = field(
        default_factory=lambda: AugmentConfig(
            gain_db=10.0, speed=0.1, noise_share=0.2, noise_db=(15.0, 40.0), low_pass_share=0.15, tilt_db=4.0,
            pause_share=0.0,
        )
    )  # fmt: skip
    """Variations of each clip. Their frequencies are those of audio at 16 kHz and scale with the rate."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            steps=1500, lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.05, schedule="cosine", warmup_steps=100,
            clip_norm=1.0, min_lr_ratio=0.02,
        )
    )  # fmt: skip
    """Optimizer and schedule."""
    loss: ClapLossConfig = field(default_factory=ClapLossConfig)
    """What counts as right, and how often clips and captions are varied."""
    run: RunConfig = field(default_factory=lambda: RunConfig(eval_every=250, save_every=250, keep_checkpoints=1))
    """Run folder."""

    def __post_init__(self):
        self.optim.require_adamw()
        if self.optim.ema_decay:
            raise ConfigError("optim.ema_decay: a CLAP exports its weights themselves", "leave it at 0")
