"""Finite scalar quantizer: a few dimensions, each squashed and rounded to a few levels.

There is no codebook to learn, no commitment loss and no dead code. Parameter names are those of
`transformers.Xcodec2Model`. Source: arXiv 2309.15505.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.xcodec2 import FSQConfig

MARGIN = 1e-3
"""The squashed range reaches this share beyond the outermost levels, so that they are met with a gradient."""


class FiniteScalarQuantizer(nn.Module):
    """Projection to few dimensions, rounding, and projection back; always in fp32.

    Args:
        config: levels of each dimension.
        dim: D of the vectors on both sides.
    """

    def __init__(self, config: FSQConfig, dim: int):
        super().__init__()
        self.config = config
        self.codebook_size = math.prod(config.levels)
        self.project_in = nn.Linear(dim, len(config.levels))
        self.project_out = nn.Linear(len(config.levels), dim)
        levels = torch.tensor(config.levels)
        self.levels: Tensor
        self.basis: Tensor
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", levels.cumprod(0) // levels, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantizes with a straight-through gradient.

        Args:
            x: (B, T, D).

        Returns:
            vectors (B, T, D) and codes (B, T) int64.
        """
        with torch.autocast(x.device.type, enabled=False):
            values = self._squashed(x.float())
            rounded = values.round()
            through = values + (rounded - values).detach()
            return self.project_out(through / (self.levels // 2)), self.to_codes(rounded.detach())

    def spread_loss(self, x: Tensor) -> Tensor:
        """How far the dimensions are from uncorrelated ones that use their levels evenly.

        The squared distance of their covariance from that of even use, over the number of dimensions. Without it a
        short run makes all dimensions say the same, the loudness. Ours; the paper has no such term.

        Args:
            x: (B, T, D).
        """
        with torch.autocast(x.device.type, enabled=False):
            values = self._squashed(x.float()).flatten(0, 1)  # (B T, C)
            values = (values - values.mean(dim=0)) / ((self.levels**2 - 1) / 12).sqrt()  # of even use: deviation 1
            covariance = values.T @ values / len(values)
            return (covariance - torch.eye(len(self.levels), device=x.device)).square().sum() / len(self.levels)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, T) of vectors (B, T, D)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.to_codes(self._squashed(x.float()).round())

    def decode(self, codes: Tensor) -> Tensor:
        """Vectors (B, T, D) of codes (B, T)."""
        with torch.autocast(codes.device.type, enabled=False):
            return self.project_out(self.to_digits(codes) / (self.levels // 2))

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Lets every dimension begin as a principal direction of the vectors, with about all its levels in use.

        Random projections of what an untrained encoder gives are nearly copies of each other: of 65,536 codes a run
        then used 44.

        Args:
            vectors: (N, D) of the first batch. With fewer than two of them, or no spread, nothing is changed.
        """
        vectors = vectors.detach().double()
        dimensions = len(self.levels)
        mean = vectors.mean(dim=0)
        spread, directions = torch.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))
        spread, directions = spread[-dimensions:].flip(0), directions[:, -dimensions:].flip(1)
        if len(spread) < dimensions or spread[0] <= 0:
            return
        weight = (directions / spread.clamp(min=1e-8 * float(spread[0])).sqrt()).T  # (C, D), unit variances
        self.project_in.weight.copy_(weight)
        self.project_in.bias.copy_(self._middle() - weight @ mean)

    def _middle(self) -> Tensor:
        """(C,) of values that are squashed to the middle of each dimension's levels."""
        half_range = (self.levels - 1) * (1 + MARGIN) / 2
        offset = (self.levels % 2 == 0) * 0.5
        middle = -(offset / half_range).atanh()
        if self.config.bound_twice:
            middle = ((middle + offset) / half_range).atanh() - (offset / half_range).atanh()
        return middle

    def to_codes(self, digits: Tensor) -> Tensor:
        """Codes (...) int64 of rounded values (..., C); each runs from -(levels // 2)."""
        return ((digits.long() + self.levels // 2) * self.basis).sum(dim=-1)

    def to_digits(self, codes: Tensor) -> Tensor:
        """Rounded values (..., C) of codes (...).

        Raises:
            TokenError: a code outside 0..codebook_size - 1.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            worst = codes.min() if codes.min() < 0 else codes.max()
            raise TokenError(f"code {int(worst)} is outside 0..{self.codebook_size - 1}")
        return (codes[..., None] // self.basis % self.levels - self.levels // 2).float()

    def _squashed(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C), each within half a step of its levels."""
        values = self._bound(self.project_in(x))
        return self._bound(values) if self.config.bound_twice else values

    def _bound(self, values: Tensor) -> Tensor:
        """A tanh as wide as the levels; an even number of them has no level at 0, so it is moved by half a step."""
        half_range = (self.levels - 1) * (1 + MARGIN) / 2
        offset = (self.levels % 2 == 0) * 0.5
        return (values + (offset / half_range).atanh()).tanh() * half_range - offset
