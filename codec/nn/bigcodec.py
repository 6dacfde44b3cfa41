"""Acoustic encoder of X-Codec 2: BigCodec's convolutional stack, with anti-aliased activations.

Parameter names are those of `transformers.Xcodec2Model`. Source: BigCodec, arXiv 2409.05377, section 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from xcodec_lm.codec.nn.acoustic import DILATIONS, WAVEFORM_STD, init_convolutions
from xcodec_lm.codec.nn.antialias import RATIO, REACH, AntiAliasedSnake


class ResidualUnit(nn.Module):
    """Activation, dilated convolution of 7, activation, pointwise convolution, skip."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.snake1 = AntiAliasedSnake(channels)
        self.conv1 = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = AntiAliasedSnake(channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class EncoderBlock(nn.Module):
    """Three residual units, then a strided convolution that doubles the channels."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(channels, d) for d in DILATIONS)
        self.snake1 = AntiAliasedSnake(channels)
        self.conv1 = nn.Conv1d(channels, 2 * channels, 2 * stride, stride, padding=math.ceil(stride / 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, 2 C, T / stride)."""
        return self.conv1(self.snake1(self.res_unit3(self.res_unit2(self.res_unit1(x)))))


class Encoder(nn.Module):
    """Waveform to acoustic latents.

    Args:
        channels: after the first convolution.
        strides: down-sampling factors in order.
        dim: D of the latents.
    """

    def __init__(self, channels: int, strides: tuple[int, ...], dim: int):
        super().__init__()
        self.strides = strides
        self.conv1 = nn.Conv1d(1, channels, 7, padding=3)
        self.block = nn.ModuleList(EncoderBlock(channels * 2**i, stride) for i, stride in enumerate(strides))
        width = channels * 2 ** len(strides)
        self.snake1 = AntiAliasedSnake(width)
        self.conv2 = nn.Conv1d(width, dim, 3, padding=1)

    def forward(self, wav: Tensor) -> Tensor:
        """(B, 1, N) -> (B, D, N / hop)."""
        x = self.conv1(wav)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))

    def init(self, std: float | None) -> None:
        """Initial weights: truncated normals of this deviation, or with None such that signals keep their variance."""
        init_convolutions(self, std)
        if std is None:
            with torch.no_grad():
                self.conv1.weight /= WAVEFORM_STD
                for unit in self.modules():
                    if isinstance(unit, ResidualUnit):
                        unit.conv2.weight *= 0.3  # three units a block would otherwise double the signal

    @property
    def halo_frames(self) -> int:
        """Frames to either side beyond which a sample cannot reach a latent (an upper bound)."""
        reach, rate = 3, 1
        for stride in self.strides:
            reach += (3 * sum(DILATIONS) + 7 * REACH + 2 * stride) * rate  # each block has seven activations
            rate *= stride
        return math.ceil((reach + (REACH + 1) * rate) / rate)

    @property
    def floats_per_frame(self) -> int:
        """Size of the widest activation, per frame."""
        return RATIO * self.conv1.out_channels * math.prod(self.strides)
