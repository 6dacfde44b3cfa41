"""Convolutional stacks on either side of the quantizer that carry the teacher's features.

Parameter names are those of `transformers.XcodecModel`. Source: arXiv 2408.17175, section 3.3.

A mask (B, 1, T), 1 on valid frames, keeps what lies beyond a row's end out of every convolution that reaches over it,
so that each row of a padded batch gets what it would get alone. Without one nothing is multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.configs.codec import SemanticConfig


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x, zero where the mask is."""
    return x if mask is None else x * mask


def mask_after(conv: nn.Module, mask: Tensor | None, frames: int) -> Tensor | None:
    """The mask (B, 1, frames) of a convolution's output: the frames that each row alone would have."""
    if mask is None or frames == mask.shape[2]:
        return mask
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    lengths = mask.sum(dim=2, keepdim=True)  # (B, 1, 1)
    if isinstance(conv, nn.ConvTranspose1d):
        lengths = (lengths - 1) * stride - 2 * padding + kernel + conv.output_padding[0]
    else:
        lengths = (lengths + 2 * padding - kernel).div(stride, rounding_mode="floor") + 1
    return (torch.arange(frames, device=mask.device) < lengths).to(mask.dtype)


class ResidualUnit(nn.Module):
    """ELU, convolution, ELU, pointwise convolution, skip; no biases."""

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv1 = nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        return x + self.conv2(F.elu(self.conv1(masked(F.elu(x), mask))))


class EncoderBlock(nn.Module):
    """Residual units, then a convolution that may change width and rate."""

    def __init__(self, config: SemanticConfig, width: int, out: int, stride: int):
        super().__init__()
        self.res_units = nn.ModuleList(ResidualUnit(width, config.unit_kernel_size, d) for d in config.block_dilations)
        kernel = 3 if stride == 1 else 2 * stride
        self.conv = nn.Conv1d(width, out, kernel, stride, padding=(kernel - 1) // 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D, T) -> (B, D', T / stride)."""
        for unit in self.res_units:
            x = unit(x, mask)
        return self.conv(masked(x, mask))


class DecoderBlock(nn.Module):
    """A convolution that may change width and rate, then residual units."""

    def __init__(self, config: SemanticConfig, width: int, out: int, stride: int):
        super().__init__()
        if stride == 1:
            self.conv: nn.Module = nn.Conv1d(width, out, 3, padding=1)
        else:
            self.conv = nn.ConvTranspose1d(
                width, out, 2 * stride, stride, padding=(stride + 1) // 2, output_padding=stride % 2, bias=False
            )
        self.res_units = nn.ModuleList(ResidualUnit(out, config.unit_kernel_size, d) for d in config.block_dilations)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D, T) -> (B, D', T * stride)."""
        x = self.conv(masked(x, mask))
        mask = mask_after(self.conv, mask, x.shape[2])
        for unit in self.res_units:
            x = unit(x, mask)
        return x


class SemanticEncoder(nn.Module):
    """The teacher's features on their way to the quantizer."""

    def __init__(self, config: SemanticConfig):
        super().__init__()
        widths = [config.dim, *(int(config.dim * ratio) for ratio in config.channel_ratios)]
        self.conv = nn.Conv1d(config.dim, config.dim, config.kernel_size, padding=config.kernel_size // 2, bias=False)
        self.conv_blocks = nn.ModuleList(
            EncoderBlock(config, widths[i], widths[i + 1], stride) for i, stride in enumerate(config.strides)
        )

    @property
    def halo_frames(self) -> int | None:
        """Frames to either side that a latent depends on; None where strides give frames another rate."""
        convs = [module for module in self.modules() if isinstance(module, nn.Conv1d)]
        if any(conv.stride[0] > 1 for conv in convs):
            return None
        return sum((conv.kernel_size[0] - 1) // 2 * conv.dilation[0] for conv in convs)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D, T) -> (B, D, T); mask (B, 1, T) of valid frames, beyond which the result means nothing."""
        x = self.conv(masked(features, mask))
        for block in self.conv_blocks:
            x = block(x, mask)
            mask = mask_after(block.conv, mask, x.shape[2])
        return x


class SemanticDecoder(nn.Module):
    """Quantized vectors back to the teacher's features."""

    def __init__(self, config: SemanticConfig):
        super().__init__()
        widths = [*(int(config.dim * ratio) for ratio in config.channel_ratios), config.dim]
        padding = config.kernel_size // 2
        self.conv1 = nn.Conv1d(config.dim, widths[0], config.kernel_size, padding=padding, bias=False)
        self.conv_blocks = nn.ModuleList(
            DecoderBlock(config, widths[i], widths[i + 1], stride) for i, stride in enumerate(config.strides)
        )
        self.conv2 = nn.Conv1d(config.dim, config.dim, config.kernel_size, padding=padding, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D, T) -> (B, D, T); mask (B, 1, T) of valid frames, beyond which the result means nothing."""
        x = self.conv1(masked(x, mask))
        for block in self.conv_blocks:
            x = block(x, mask)
            mask = mask_after(block.conv, mask, x.shape[2])
        return self.conv2(masked(x, mask))
