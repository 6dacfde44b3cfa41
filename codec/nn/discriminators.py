"""The mel-spectrogram multi-frequency discriminator of X-Codec's public training code.

One small 2-D network per time-frequency resolution looks at a mel spectrogram in two channels, linear and in decibels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.codec.nn.acoustic import add_weight_norm
from xcodec_lm.codec.nn.losses import Maps
from xcodec_lm.codec.nn.spectra import mel_filters, stft_magnitude

STRIDES = (1, 2, 1, 2, 1, 2, 1)
REFERENCE_DB = 20.0
RANGE_DB = 100.0


class MelDiscriminator(nn.Module):
    """A network at one resolution.

    Args:
        sample_rate: in Hz.
        hop: of the spectrogram; its transform is four hops long and has n_fft / 2 + 1 mel bands.
        channels: of the widest layer; the layers before it halve.
    """

    def __init__(self, sample_rate: int, hop: int, channels: int):
        super().__init__()
        self.sample_rate, self.hop, self.n_fft = sample_rate, hop, 4 * hop
        widths = [2, *(max(1, channels // 2**i) for i in (5, 4, 3, 2, 1, 0)), 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride, padding=1, padding_mode="reflect")
            for a, b, stride in zip(widths[:-1], widths[1:], STRIDES, strict=True)
        )

    def spectrogram(self, wav: Tensor) -> Tensor:
        """Linear and decibel mel spectrogram (B, 2, bands, frames) of wav (B, N)."""
        magnitude = stft_magnitude(wav, self.n_fft, self.hop, self.n_fft, normalized=True)
        mel = mel_filters(self.sample_rate, self.n_fft, self.n_fft // 2 + 1, wav.device, False) @ magnitude
        decibels = 20 * mel.clamp_min(1e-5).log10() - REFERENCE_DB
        return torch.stack([mel, (decibels / RANGE_DB + 1).clamp(0, 1)], dim=1)

    def forward(self, wav: Tensor) -> list[Tensor]:
        """Feature maps of wav (B, N); the last is the verdict (B, 1, bands', frames')."""
        x = self.spectrogram(wav)
        maps = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            maps.append(x)
        return [*maps, self.layers[-1](x)]


class MultiFrequencyDiscriminator(nn.Module):
    """Mel discriminators at several resolutions.

    Args:
        sample_rate: in Hz.
        hops: hop of each.
        channels: widest layer of each.
    """

    def __init__(self, sample_rate: int, hops: tuple[int, ...], channels: tuple[int, ...]):
        super().__init__()
        self.discriminators = nn.ModuleList(
            MelDiscriminator(sample_rate, hop, width) for hop, width in zip(hops, channels, strict=True)
        )
        add_weight_norm(self)

    def forward(self, wav: Tensor) -> Maps:
        """Feature maps of every resolution for wav (B, 1, N)."""
        return [discriminator(wav[:, 0]) for discriminator in self.discriminators]
