"""SnakeBeta between a 2x up- and a 2x down-sampler, so that its harmonics do not fold back.

Parameter names are those of `transformers.Xcodec2Model`; the filters are computed, not stored.
Source: BigVGAN, arXiv 2206.04658, section 3.2 and https://github.com/NVIDIA/BigVGAN (the trained exponents).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATIO = 2
TAPS = 12
"""Taps of both low-pass filters."""
REACH = TAPS // RATIO
"""Samples to either side that reach an output sample (an upper bound)."""


class SnakeBeta(nn.Module):
    """x + sin^2(alpha x) / beta with one alpha and one beta per channel, stored as logarithms."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + (beta + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)


class AntiAliasedSnake(nn.Module):
    """SnakeBeta at twice the rate."""

    def __init__(self, channels: int):
        super().__init__()
        self.act = SnakeBeta(channels)
        self.filter: Tensor
        self.register_buffer("filter", low_pass(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T); the ends are continued with their own value."""
        channels = x.shape[1]
        taps = self.filter.to(x.dtype).expand(channels, 1, TAPS)
        pad = TAPS // RATIO - 1
        up = F.conv_transpose1d(F.pad(x, (pad, pad), mode="replicate"), taps, stride=RATIO, groups=channels)
        trim = pad * RATIO + (TAPS - RATIO) // 2
        up = self.act(RATIO * up[:, :, trim:-trim])  # (B, C, 2 T)
        padded = F.pad(up, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(padded, taps, stride=RATIO, groups=channels)


def low_pass() -> Tensor:
    """(1, 1, 12) sinc under a Kaiser window: half the band passes, and a constant keeps its value.

    The window's shape follows Kaiser's rule for the stop-band attenuation that so many taps reach over a transition of
    0.6 / ratio.
    """
    attenuation_db = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * 0.6 / RATIO + 7.95  # 51 dB
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation_db - 8.7))
    time = torch.arange(TAPS) - (TAPS - 1) / 2
    taps = torch.sinc(time / RATIO) / RATIO * window
    return (taps / taps.sum()).view(1, 1, TAPS)
