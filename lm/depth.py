"""The inner model of the layout `depth`: within a step it predicts the codes one after the other.

Slot w sees what the outer model knows of the step and the ids of slots 0 to w - 1. Source: RQ-Transformer, arXiv
2203.01941; for audio UniAudio, arXiv 2310.00704.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.configs.lm import DepthConfig, GPTConfig
from xcodec_lm.lm.blocks import Block, make_norm
from xcodec_lm.lm.cache import KVCache


class DepthModel(nn.Module):
    """A small GPT-2 over the slots of a step.

    Args:
        config: sizes.
        outer_dim: width of the outer model.
        vocab_size: number of ids.
        width: W, slots of a step.
        dropout: as the outer model's.
    """

    def __init__(self, config: DepthConfig, outer_dim: int, vocab_size: int, width: int, dropout: float):
        super().__init__()
        self.sizes = GPTConfig(
            layers=config.layers, heads=config.heads, dim=config.dim, block=width, dropout=dropout, bias=False
        )
        self.width = width
        self.join = nn.Linear(outer_dim, config.dim, bias=False)
        self.wte = nn.Embedding(vocab_size, config.dim)
        self.wpe = nn.Embedding(width, config.dim)
        self.blocks = nn.ModuleList([Block(self.sizes) for _ in range(config.layers)])
        self.ln_f = make_norm(self.sizes)

    def forward(self, hidden: Tensor, steps: Tensor) -> Tensor:
        """Logits (B, L, W, V) of all slots.

        Args:
            hidden: (B, L, D) of the outer model.
            steps: (B, L, W) ids of the steps; the last slot's are not read.
        """
        before = self.wte(steps[..., :-1])  # (B, L, W - 1, D)
        x = F.pad(before, (0, 0, 1, 0)) + self.join(hidden)[:, :, None] + self.wpe.weight
        shape = x.shape
        x = x.flatten(0, 1)  # (B L, W, D)
        for layer, block in enumerate(self.blocks):
            x = block(x, None, None, layer, None)
        return F.linear(self.ln_f(x), self.wte.weight).view(*shape[:3], -1)

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for one step of some rows; reset it for the next."""
        sizes = self.sizes
        return KVCache(sizes.layers, batch, sizes.heads, self.width, sizes.head_dim, self.wte.weight)

    def step(self, joined: Tensor, ids: Tensor | None, cache: KVCache) -> Tensor:
        """Logits (B, V) of the next slot.

        Args:
            joined: (B, D) `join` of what the outer model gave.
            ids: (B,) drawn for the slot before; None for the first slot.
            cache: reset at every step.
        """
        place = cache.begin(1)
        x = joined + self.wpe(place)  # (B, D)
        if ids is not None:
            x = x + self.wte(ids)
        x = x[:, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, None, cache, layer, None)
        return F.linear(self.ln_f(x[:, 0]), self.wte.weight)
