"""Snake activation, and its fast form for a CPU.

Source: arXiv 2006.08195.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

BLOCK = 32_768
"""Numbers of a thread that one pass of the CPU form works on; a few such blocks stay in a core's second-level cache."""


class Snake1d(nn.Module):
    """x + sin^2(alpha x) / alpha with one alpha per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T); also (B, C, 1, T) with channels last, as on a CPU."""
        if x.dim() == 4:
            return cast(Tensor, _BlockedSnake.apply(x, self.alpha))
        scale = (self.alpha + 1e-9).reciprocal()
        if torch.is_grad_enabled():
            return x + scale * torch.sin(self.alpha * x).pow(2)
        return (self.alpha * x).sin_().square_().mul_(scale).add_(x)  # the same to the bit, and one tensor, not five


class _BlockedSnake(torch.autograd.Function):
    """Snake on channels-last memory, block by block.

    Written as usual it is a dozen passes over memory, which cost more than the convolutions around it. Here each block
    is finished while it is in the cache, and only the input is kept for the gradient. sin^2(u) is (1 - cos(2u)) / 2.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:  # type: ignore[override]
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, alpha)
        out = torch.empty_like(x)
        double, half = _tiled(alpha, x.numel())
        for part, result in zip(_blocks(x), _blocks(out), strict=True):
            size = len(part)
            torch.mul(part, double[:size], out=result).cos_()
            torch.addcmul(half[:size], half[:size], result, value=-1, out=result).add_(part)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, alpha = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        double, half = _tiled(alpha, x.numel())
        moved, rest = torch.zeros_like(double), torch.zeros_like(double)
        for part, above, result in zip(_blocks(x), _blocks(grad), _blocks(out), strict=True):
            size = len(part)
            angle = part * double[:size]
            torch.sin(angle, out=result).mul_(above)  # above * sin(2 alpha x)
            moved[:size].addcmul_(result, part)
            rest[:size].add_(above).addcmul_(above, angle.cos_(), value=-1)
            result.add_(above)
        channels = alpha.shape[1]
        scale = half[:channels]
        grad_alpha = 2 * scale * moved.view(-1, channels).sum(0) - 2 * scale.square() * rest.view(-1, channels).sum(0)
        return out, grad_alpha.view_as(alpha)


def _block() -> int:
    return BLOCK * torch.get_num_threads()


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Channels-last memory in its order, without a copy, in blocks of whole (batch, time) positions."""
    return x.permute(0, 2, 3, 1).view(-1).split(max(1, _block() // x.shape[1]) * x.shape[1])


def _tiled(alpha: Tensor, numbers: int) -> tuple[Tensor, Tensor]:
    """2 alpha and 1 / (2 alpha), repeated to the length of a block of a tensor of so many numbers."""
    alpha = alpha.detach().view(-1)
    repeats = max(1, min(_block(), numbers) // len(alpha))
    return (2 * alpha).repeat(repeats), (0.5 * (alpha + 1e-9).reciprocal()).repeat(repeats)
