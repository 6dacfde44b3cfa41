"""Transformer blocks of the decoders: GPT-2's and LLaMA's, which differ in norm, feed-forward and positions.

Sources: Radford et al. 2019, "Language models are unsupervised multitask learners"; LLaMA, arXiv 2302.13971; rotary
positions, arXiv 2104.09864.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.configs.lm import GPTConfig, RopeScalingConfig
from xcodec_lm.lm.cache import KVCache

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, (L, D) or (B, 1, L, D) of a head of width D."""


def make_norm(config: GPTConfig) -> nn.Module:
    """The norm of an architecture."""
    if config.arch == "llama":
        return nn.RMSNorm(config.dim, eps=config.norm_eps)
    return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.bias)


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values; causal unless a mask says otherwise."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.head_dim, self.dropout = config.head_dim, config.dropout
        bias = config.bias and config.arch == "gpt2"
        self.qkv = nn.Linear(config.dim, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=bias)

    def forward(self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, layer: int, mask: Any) -> Tensor:
        """x (B, L, D) -> (B, L, D).

        Args:
            x: (B, L, D).
            rotation: of the positions, or None.
            cache: begun for these positions, or None.
            layer: number of this layer in the cache.
            mask: without a cache: None for a causal one, bool (B, 1, L, L), or a `BlockMask` of flex attention.
        """
        batch, length, dim = x.shape
        packed = self.qkv(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = torch.split_with_sizes(packed, sizes, 1)  # (B, heads, L, D / heads)
        if rotation is not None:
            q, k = _rotate(q, rotation), _rotate(k, rotation)
        causal = cache is None and mask is None
        if cache is not None:
            k, v, mask = cache.extend(layer, k, v)
            causal = mask is None and length > 1
        grouped = self.kv_heads != self.heads
        if mask is not None and not isinstance(mask, Tensor):
            from torch.nn.attention.flex_attention import flex_attention

            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
            assert isinstance(y, Tensor)
        else:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
            )
        return self.proj(y.transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual connection."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        hidden = config.mlp_dim or 4 * config.dim
        self.gated = config.arch == "llama"
        bias = config.bias and not self.gated
        self.ln_1, self.ln_2 = make_norm(config), make_norm(config)
        self.attn = Attention(config)
        self.fc = nn.Linear(config.dim, 2 * hidden if self.gated else hidden, bias=bias)
        self.proj = nn.Linear(hidden, config.dim, bias=bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, layer: int, mask: Any) -> Tensor:
        """x (B, L, D) -> (B, L, D), see `Attention.forward`."""
        x = x + self._dropped(self.attn(self.ln_1(x), rotation, cache, layer, mask))
        hidden = self.fc(self.ln_2(x))
        if self.gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * up
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        return x + self._dropped(self.proj(hidden))

    def _dropped(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.training else x  # of one row, the call takes as long as an addition


class Rotary(nn.Module):
    """Rotary positions: pairs (i, i + D/2) of a head turn by an angle proportional to the position.

    Args:
        head_dim: width of a head.
        base: of the angles.
        scaling: of slow pairs.
    """

    def __init__(self, head_dim: int, base: float, scaling: RopeScalingConfig = RopeScalingConfig()):  # noqa: B008
        super().__init__()
        self.head_dim, self.base, self.scaling = head_dim, base, scaling

    def forward(self, positions: Tensor) -> Rotation:
        """Cosines and sines of positions (L,) or (B, L), in fp32."""
        steps = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32)
        rates = self.base ** (-steps / self.head_dim)
        if self.scaling.factor != 1:
            rates = _slowed(rates, self.scaling)
        angles = positions.float()[..., None] * rates
        angles = torch.cat([angles, angles], dim=-1)  # (..., L, D)
        if angles.dim() == 3:
            angles = angles[:, None]  # (B, 1, L, D)
        return angles.cos(), angles.sin()


def _slowed(rates: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """Angles a position of each pair: slow pairs turn `factor` times slower, fast ones as before.

    Source: The Llama 3 Herd of Models, arXiv 2407.21783; the published models' `rope_type: llama3`.
    """
    turns = scaling.original_positions * rates / (2 * math.pi)
    kept = ((turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)).clamp(0, 1)
    return rates * (kept + (1 - kept) / scaling.factor)


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)
