"""Convolutional stacks on either side of the quantizer that carry the teacher's features.

Parameter names are those of `transformers.XcodecModel`. Source: arXiv 2408.17175, section 3.3.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.configs.codec import SemanticConfig


class ResidualUnit(nn.Module):
    """ELU, convolution, ELU, pointwise convolution, skip; no biases."""

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv1 = nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


class EncoderBlock(nn.Module):
    """Residual units, then a convolution that may change width and rate."""

    def __init__(self, config: SemanticConfig, width: int, out: int, stride: int):
        super().__init__()
        self.res_units = nn.ModuleList(ResidualUnit(width, config.unit_kernel_size, d) for d in config.block_dilations)
        kernel = 3 if stride == 1 else 2 * stride
        self.conv = nn.Conv1d(width, out, kernel, stride, padding=(kernel - 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D', T / stride)."""
        for unit in self.res_units:
            x = unit(x)
        return self.conv(x)


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

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D', T * stride)."""
        x = self.conv(x)
        for unit in self.res_units:
            x = unit(x)
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

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        x = self.conv(features)
        for block in self.conv_blocks:
            x = block(x)
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

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        x = self.conv1(x)
        for block in self.conv_blocks:
            x = block(x)
        return self.conv2(x)
