"""Decoder head: a spectrogram from vectors, and audio from it.

Source: Vocos, arXiv 2306.00814; "same" padding after https://github.com/gemelo-ai/vocos. Parameter names are those of
`transformers.Xcodec2Model`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERLAP = 4
"""Frames that meet in a sample: the transform is this many hops long."""
LARGEST = 100.0
"""Magnitudes are clipped here."""


class ISTFTHead(nn.Module):
    """Log magnitude and phase of every frame by one linear map, then overlap-add.

    Frame t covers samples (t - 1.5) hop to (t + 2.5) hop. So a sample needs frames up to 1.5 hops after it, and T
    frames give T hops, with 1.5 hops cut off at both ends.

    Args:
        dim: D of the vectors.
        hop_samples: even.
    """

    def __init__(self, dim: int, hop_samples: int):
        super().__init__()
        self.hop_samples = hop_samples
        self.n_fft = OVERLAP * hop_samples
        self.lookahead_samples = (self.n_fft - hop_samples) // 2
        self.linear = nn.Linear(dim, self.n_fft + 2)
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, 1, T * hop)."""
        magnitude, phase = self.linear(x).float().chunk(2, dim=2)  # (B, T, n_fft / 2 + 1) each
        spectrum = torch.polar(magnitude.exp().clamp(max=LARGEST), phase)
        frames = torch.fft.irfft(spectrum, self.n_fft) * self.window  # (B, T, n_fft)
        envelope = self._overlap_add(self.window.square().expand(1, x.shape[1], -1))
        return (self._overlap_add(frames) / envelope.clamp(min=1e-11))[:, None]

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(B, T, n_fft) -> (B, T * hop), cut at both ends."""
        quarters = frames.unflatten(2, (OVERLAP, self.hop_samples))  # (B, T, 4, hop)
        joined = sum(F.pad(quarters[:, :, i], (0, 0, i, OVERLAP - 1 - i)) for i in range(OVERLAP))
        assert isinstance(joined, Tensor)
        return joined.flatten(1)[:, self.lookahead_samples : -self.lookahead_samples]
