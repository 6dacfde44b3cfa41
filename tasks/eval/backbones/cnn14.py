"""PANNs' Cnn14: one vector of 2048 features a clip, and logits of AudioSet's 527 classes.

A clip loses its mean, and one below 2 s gets zeros behind it; nothing else is done to its level. The vector is what
`fc1` makes of the maximum plus the mean over time, after its ReLU. Both published rates are read: 16 kHz (the codecs'
own; the default of the field's tools) and 32 kHz. A resampler moves distances between sets by tens, so one rate and
one resampler for all.

Sources: Kong et al. 2020 (arXiv 1912.10211), https://github.com/qiuqiangkong/audioset_tagging_cnn for the network and
the names of its weights; https://github.com/haoheliu/audioldm_eval for what is done to clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.codec.convert.state_dicts import shape_of
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.backbones.mel import slaney_filters
from xcodec_lm.tasks.eval.backbones.ssl_models import device_of, lengthen
from xcodec_lm.tasks.eval.backbones.weights import fill, read_published
from xcodec_lm.tasks.eval.judge_audio import check_clips
from xcodec_lm.tasks.eval.judge_files import module_fingerprint
from xcodec_lm.tasks.eval.plugins import EmbedderBase

BLOCKS = 6
SHORTEST_S = 2.0
FLOOR = 1e-10
"""Least mel power before the logarithm: -100 dB."""
STFT = "spectrogram_extractor.stft."
MEL = "logmel_extractor.melW"
CLOSE = 1e-3
"""How near the filters of a file must be to those computed here; float32 leaves differences of some 1e-6."""


@dataclass(frozen=True)
class Front:
    """Spectrum of a published model.

    Attributes:
        window: samples of the Hann window and of the transform.
        hop: samples between frames, 10 ms.
        lowest_hz: where the mel filters begin.
        highest_hz: where they end.
        file: what the file is called where it is published.
    """

    window: int
    hop: int
    lowest_hz: float
    highest_hz: float
    file: str


FRONTS = {
    16_000: Front(512, 160, 50, 8000, "Cnn14_16k_mAP=0.438.pth"),
    32_000: Front(1024, 320, 50, 14_000, "Cnn14_mAP=0.431.pth"),
}


class ConvBlock(nn.Module):
    """Two convolutions of 3 x 3 with batch norms, then the mean over `pool` x `pool` cells."""

    def __init__(self, channels_in: int, channels: int, pool: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, F) -> (B, C', T // pool, F // pool)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


class Cnn14(nn.Module):
    """The network, with the names of the published files.

    Args:
        bands: mel bands.
        channels: of the six blocks; 64, 128, ... 2048 as published.
        dim: of the vector.
        classes: of the last layer.
    """

    def __init__(self, bands: int, channels: tuple[int, ...], dim: int, classes: int):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(bands)
        for index, (before, after) in enumerate(zip((1, *channels), channels, strict=False), start=1):
            setattr(self, f"conv_block{index}", ConvBlock(before, after, 2 if index < BLOCKS else 1))
        self.fc1 = nn.Linear(channels[-1], dim)
        self.fc_audioset = nn.Linear(dim, classes)

    def vectors(self, log_mel: Tensor) -> Tensor:
        """(B, T, bands) in dB -> (B, dim)."""
        x = self.bn0(log_mel.transpose(1, 2)[..., None])  # (B, bands, T, 1): the norm is over bands
        x = x.permute(0, 3, 2, 1)  # (B, 1, T, bands)
        for index in range(1, BLOCKS + 1):
            x = getattr(self, f"conv_block{index}")(x)
        x = x.mean(dim=3)  # (B, C, T')
        return F.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))

    def logits(self, vectors: Tensor) -> Tensor:
        """(B, dim) -> (B, classes)."""
        return self.fc_audioset(vectors)


class Cnn14Embedder(EmbedderBase):
    """`Cnn14` as a plug-in with classes, whose names the published files do not hold.

    Args:
        model: in eval mode.
        mel: (bins, bands) filters of the file.
        sample_rate: a key of `FRONTS`.
        weights_from: name of the file.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, model: Cnn14, mel: Tensor, sample_rate: int, weights_from: str):
        self.model, self.mel, self.front = model, mel, FRONTS[sample_rate]
        super().__init__(
            f"cnn14-{sample_rate // 1000}k", model.fc1.out_features, sample_rate,
            module_fingerprint(model, {"mel": mel.tolist(), "sample_rate": sample_rate, "shortest_s": SHORTEST_S}),
            {"weights_from": weights_from, "base": "PANNs Cnn14, trained on AudioSet"},
        )  # fmt: skip

    def frames(self, wav: np.ndarray) -> np.ndarray:
        """(1, 2048): a clip has one vector."""
        return self.clip(wav)[None]

    def clip(self, wav: np.ndarray) -> np.ndarray:
        """(2048,), see `plugins.Embedder`."""
        return self._vector(wav)[0].cpu().numpy()

    @torch.inference_mode()
    def class_logits(self, wav: np.ndarray) -> np.ndarray:
        """(527,), see `plugins.Classifier`; the network was trained with sigmoids, a softmax is a convention of IS."""
        return self.model.logits(self._vector(wav))[0].cpu().numpy()

    @torch.inference_mode()
    def _vector(self, wav: np.ndarray) -> Tensor:
        (clip,) = check_clips([wav])
        clip = lengthen(clip - clip.mean(), round(SHORTEST_S * self.sample_rate))
        return self.model.vectors(log_mel(clip.to(device_of(self.model)), self.front, self.mel)[None])


def log_mel(wav: Tensor, front: Front, mel: Tensor) -> Tensor:
    """(N,) -> (1 + N // hop, bands) mel power in dB, of centred windows with mirrored ends."""
    window = torch.hann_window(front.window, device=wav.device)
    spectrum = torch.stft(wav, front.window, front.hop, window=window, return_complex=True).abs().square()
    return 10 * (spectrum.T @ mel.to(wav.device)).clamp_min(FLOOR).log10()


# ------------------------------------------------------------------ files


def load_16k(source: str | Path | None, device: str | torch.device = "cpu") -> Cnn14Embedder:
    """Cnn14 at 16 kHz from its file, see `load`."""
    return load(source, device, 16_000)


def load_32k(source: str | Path | None, device: str | torch.device = "cpu") -> Cnn14Embedder:
    """Cnn14 at 32 kHz from its file, see `load`."""
    return load(source, device, 32_000)


def load(source: str | Path | None, device: str | torch.device, sample_rate: int) -> Cnn14Embedder:
    """Cnn14 from its published file.

    Args:
        source: the file.
        device: where it computes.
        sample_rate: 16,000 or 32,000.

    Raises:
        XcodecLMError: no file, one of another model or rate, or one that is damaged.
    """
    front = FRONTS[sample_rate]
    path, tensors = read_published(source, f"PANNs' {front.file}")
    model, mel = cnn14_from_published(tensors, sample_rate, path)
    return Cnn14Embedder(model.to(device), mel, sample_rate, path.name)


def cnn14_from_published(tensors: Mapping[str, Tensor], sample_rate: int, where: str | Path) -> tuple[Cnn14, Tensor]:
    """The network and its mel filters.

    Args:
        tensors: by the file's names: the network, and the spectrum as convolutions.
        sample_rate: a key of `FRONTS`.
        where: the file, for errors.

    Raises:
        XcodecLMError: a tensor is missing, unknown or of another shape, or the spectrum is another one.
    """
    weights = dict(tensors)
    bins, bands = shape_of(weights, MEL, str(where))
    rates = {front.window // 2 + 1: rate for rate, front in FRONTS.items()}
    if rates.get(bins) != sample_rate:
        kind = f"the model at {rates[bins] // 1000} kHz" if bins in rates else f"a model with {bins} bins"
        raise XcodecLMError(f"{where} is {kind}, not Cnn14 at {sample_rate // 1000} kHz", FRONTS[sample_rate].file)
    for key, expected in _filters(sample_rate, bands).items():
        shape_of(weights, key, str(where))
        found = weights.pop(key) if key != MEL else weights[key]
        if found.shape != expected.shape or float((found.double() - expected).abs().max()) > CLOSE:
            raise XcodecLMError(
                f"{where}: {key} is not the filter of Cnn14 at {sample_rate // 1000} kHz",
                "a model with another spectrum would need its own front end",
            )
    mel = weights.pop(MEL).float()
    widths = tuple(shape_of(weights, f"conv_block{n}.conv1.weight", str(where))[0] for n in range(1, BLOCKS + 1))
    classes, dim = shape_of(weights, "fc_audioset.weight", str(where))
    with torch.device("meta"):
        model = Cnn14(bands, widths, dim, classes)
    fill(model, weights, where)
    return model, mel


def _filters(sample_rate: int, bands: int) -> dict[str, Tensor]:
    """The spectrum of a published file: windowed cosines and sines (bins, 1, window), and mel filters (bins, bands)."""
    front = FRONTS[sample_rate]
    bins = front.window // 2 + 1
    time = torch.arange(front.window, dtype=torch.float64)
    phase = 2 * math.pi / front.window * torch.outer(torch.arange(bins, dtype=torch.float64), time)
    window = torch.hann_window(front.window, dtype=torch.float64)
    return {
        f"{STFT}conv_real.weight": (phase.cos() * window)[:, None],
        f"{STFT}conv_imag.weight": (-phase.sin() * window)[:, None],
        MEL: slaney_filters(np.fft.rfftfreq(front.window, 1 / sample_rate), bands, front.lowest_hz, front.highest_hz),
    }
