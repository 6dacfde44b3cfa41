"""Acoustic encoder and decoder of X-Codec: DAC's convolutional stacks with two differences.

The decoder has no tanh, and its transposed convolutions pad their output so that every frame becomes exactly
`hop_samples` samples. Parameter names are those of `transformers.XcodecModel`, so both load each other's weights.

Source: arXiv 2408.17175, section 6 (the strides it prints are reversed: the published weights have [8, 5, 4, 2]);
DAC: arXiv 2306.06546.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from xcodec_lm.codec.batching import keep
from xcodec_lm.codec.nn.snake import Snake1d

DILATIONS = (1, 3, 9)
WAVEFORM_STD = 0.08
"""Level of ordinary recordings, by which initial weights bring signals inside the stacks to unit variance."""
UNIT_REACH = 3 * sum(DILATIONS)
"""Samples to either side that the three kernel-7 residual units of a block see, at the block's rate."""


def to_image(x: Tensor) -> Tensor:
    """(B, C, T) as (B, C, 1, T) with channels last in memory.

    On a CPU this layout takes half the time: oneDNN's convolutions and their gradients are slow on rows. The encoder
    keeps to rows at inference, whose arithmetic is bit for bit that of transformers: then no code can differ.
    """
    return x[:, :, None].contiguous(memory_format=torch.channels_last)


class Conv1d(nn.Conv1d):
    """A convolution over time of (B, C, T), or of (B, C, 1, T) as `to_image` gives."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T') in the layout that came in."""
        if x.dim() == 3:
            return super().forward(x)
        stride, padding, dilation = (1, self.stride[0]), (0, int(self.padding[0])), (1, self.dilation[0])
        return F.conv2d(x, self.weight[:, :, None], self.bias, stride, padding, dilation)


class ConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution over time of (B, C, T), or of (B, C, 1, T) as `to_image` gives."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, T) -> (B, C', T * stride) in the layout that came in."""
        if x.dim() == 3:
            return super().forward(x, output_size)
        stride, padding, extra = (1, self.stride[0]), (0, int(self.padding[0])), (0, self.output_padding[0])
        return F.conv_transpose2d(x, self.weight[:, :, None], self.bias, stride, padding, extra)


class ResidualUnit(nn.Module):
    """Snake, dilated convolution of 7, Snake, pointwise convolution, skip."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.snake1 = Snake1d(channels)
        self.conv1 = Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake1d(channels)
        self.conv2 = Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return self.conv2(self.snake2(self.conv1(self.snake1(x)))).add_(x)


class EncoderBlock(nn.Module):
    """Three residual units, then a strided convolution that doubles the channels."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(channels, d) for d in DILATIONS)
        self.snake1 = Snake1d(channels)
        self.conv1 = Conv1d(channels, 2 * channels, 2 * stride, stride, padding=math.ceil(stride / 2))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, 2 C, T / stride); `lengths` (B,) of rows that are padded, zero beyond them."""
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = keep(unit(x), lengths)
        return self.conv1(self.snake1(x))


class Encoder(nn.Module):
    """Waveform to acoustic latents.

    Args:
        channels: after the first convolution.
        strides: down-sampling factors in order.
        latent_dim: D of the latents.
    """

    def __init__(self, channels: int, strides: tuple[int, ...], latent_dim: int):
        super().__init__()
        self.strides = strides
        self.conv1 = Conv1d(1, channels, 7, padding=3)
        self.block = nn.ModuleList(EncoderBlock(channels * 2**i, stride) for i, stride in enumerate(strides))
        width = channels * 2 ** len(strides)
        self.snake1 = Snake1d(width)
        self.conv2 = Conv1d(width, latent_dim, 3, padding=1)

    def forward(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, 1, N) -> (B, D, N / hop).

        Args:
            wav: zero beyond each row's length.
            lengths: (B,) samples, whole hops; every row's result is then that of the row alone. None: all are full.
        """
        image = self.training and wav.device.type == "cpu"
        x = keep(self.conv1(to_image(wav) if image else wav), lengths)  # (B, C, N)
        for block, stride in zip(self.block, self.strides, strict=True):
            x = block(x, lengths)
            lengths = None if lengths is None else (lengths + 2 * math.ceil(stride / 2) - 2 * stride) // stride + 1
            x = keep(x, lengths)
        x = self.conv2(self.snake1(x))
        return x[:, :, 0] if image else x

    def out_length(self, samples: int) -> int:
        """Frames that `samples` samples become."""
        for stride in self.strides:
            samples = (samples + 2 * math.ceil(stride / 2) - 2 * stride) // stride + 1
        return samples

    @property
    def halo_frames(self) -> int:
        """Frames to either side whose samples reach a latent."""
        first, last = -1, 1  # of the last convolution, for frame 0
        for stride in reversed(self.strides):
            padding = math.ceil(stride / 2)
            first, last = first * stride - padding, last * stride - padding + 2 * stride - 1
            first, last = first - UNIT_REACH, last + UNIT_REACH
        hop = math.prod(self.strides)
        return max(math.ceil((3 - first) / hop), (last + 3) // hop)

    @property
    def floats_per_frame(self) -> int:
        """Size of the widest activation, per frame."""
        return self.conv1.out_channels * math.prod(self.strides)


class DecoderBlock(nn.Module):
    """A transposed convolution that halves the channels, then three residual units."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        out = channels // 2
        self.snake1 = Snake1d(channels)
        self.conv_t1 = ConvTranspose1d(
            channels, out, 2 * stride, stride, padding=math.ceil(stride / 2), output_padding=stride % 2
        )
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(out, d) for d in DILATIONS)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C / 2, T * stride); `lengths` (B,) after the stride, of rows that are padded."""
        x = keep(self.conv_t1(self.snake1(x)), lengths)
        for unit in (self.res_unit1, self.res_unit2, self.res_unit3):
            x = keep(unit(x), lengths)
        return x


class Decoder(nn.Module):
    """Acoustic latents to waveform; the output is not bounded.

    Args:
        latent_dim: D of the latents.
        channels: after the first convolution.
        strides: up-sampling factors in order.
    """

    def __init__(self, latent_dim: int, channels: int, strides: tuple[int, ...]):
        super().__init__()
        self.strides = strides
        self.conv1 = Conv1d(latent_dim, channels, 7, padding=3)
        self.block = nn.ModuleList(DecoderBlock(channels // 2**i, stride) for i, stride in enumerate(strides))
        width = channels // 2 ** len(strides)
        self.snake1 = Snake1d(width)
        self.conv2 = Conv1d(width, 1, 7, padding=3)

    def forward(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, D, T) -> (B, 1, T * hop).

        Args:
            latents: any values beyond a row's length.
            lengths: (B,) frames; every row's result is then that of the row alone. None: all are full.
        """
        image = latents.device.type == "cpu" and not torch.compiler.is_compiling()
        latents = keep(latents, lengths)
        x = keep(self.conv1(to_image(latents) if image else latents), lengths)
        for block, stride in zip(self.block, self.strides, strict=True):
            lengths = None if lengths is None else lengths * stride
            x = block(x, lengths)
        x = self.conv2(self.snake1(x))
        return x[:, :, 0] if image else x

    @property
    def halo_frames(self) -> int:
        """Frames to either side whose latents reach a frame's samples."""
        first, last = -3, math.prod(self.strides) - 1 + 3  # samples that the last convolution sees for frame 0
        for stride in reversed(self.strides):
            first, last = first - UNIT_REACH, last + UNIT_REACH
            padding = math.ceil(stride / 2)
            first, last = -((2 * stride - 1 - padding - first) // stride), (last + padding) // stride
        return max(3 - first, last + 3)

    @property
    def floats_per_frame(self) -> int:
        """Size of the widest activation, per frame."""
        rate, width, widest = 1, self.conv1.out_channels, self.conv1.out_channels
        for stride in self.strides:
            rate, width = rate * stride, width // 2
            widest = max(widest, rate * width)
        return widest


def init_convolutions(module: nn.Module, std: float | None) -> None:
    """Initial weights and zero biases of every convolution.

    Args:
        module: whose convolutions are initialised.
        std: of DAC's truncated normals; transposed convolutions then keep PyTorch's own. None keeps the variance of
            signals instead, which narrow stacks need: small weights shrink a signal until Snake no longer bends it.
    """
    for layer in module.modules():
        if not isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
            continue
        if std is None:
            taps = layer.kernel_size[0] / (layer.stride[0] if isinstance(layer, nn.ConvTranspose1d) else 1)
            nn.init.normal_(layer.weight, std=(layer.in_channels * taps) ** -0.5)
        elif isinstance(layer, nn.Conv1d):
            nn.init.trunc_normal_(layer.weight, std=std)
        if layer.bias is not None and (std is None or isinstance(layer, nn.Conv1d)):
            nn.init.zeros_(layer.bias)
    if std is None:
        with torch.no_grad():
            for unit in module.modules():
                if isinstance(unit, ResidualUnit):
                    unit.conv2.weight *= 0.3  # three units a block would otherwise double the signal
                elif isinstance(unit, Encoder):
                    unit.conv1.weight /= WAVEFORM_STD
                elif isinstance(unit, Decoder):
                    unit.conv2.weight *= WAVEFORM_STD


def add_weight_norm(module: nn.Module) -> None:
    """Splits every convolution's weight into direction and length, for training."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d)) and not parametrize.is_parametrized(layer):
            weight_norm(layer)


def folded_state(module: nn.Module, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """A module's state dict in which the weight norms of some parts are joined to plain weights again.

    Args:
        module: left as it is.
        parts: names of its children whose convolutions are folded.
    """
    state = {}
    for key, value in module.state_dict().items():
        owner, _, entry = key.partition(".parametrizations.weight.")
        if entry and key.startswith(parts):
            state[f"{owner}.weight"] = module.get_submodule(owner).weight.detach()
        else:
            state[key] = value
    return state
