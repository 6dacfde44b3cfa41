"""What VALL-E's two decoders share: sinusoidal positions, blocks with plain or adaptive norms, masks, initial weights.

Both read a text and frames of audio behind it, each counted from 0 by positions of its own. Blocks are pre-norm with
ReLU and biases; in the NAR model every norm is adaptive, its scale and shift a linear function of the stage.

We differ from the published runs, which began with PyTorch's initial weights, in where training starts. All weights are
N(0, 1 / inputs), residual branches are divided by sqrt(2 layers), and adaptive norms begin as nearly plain ones.
Embeddings are N(0, 1 / D) and multiplied by sqrt(D) where they are read, as in "Attention is all you need", section
3.4: what blocks read is N(0, 1), as theirs, but a tied output head gives logits of a deviation of 1 instead of sqrt(D).

Sources: VALL-E, arXiv 2301.02111, section 4; arXiv 1706.03762, section 3.5, for positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xcodec_lm.configs.lm import GPTConfig
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.blocks import Attention
from xcodec_lm.lm.cache import KVCache

Condition = tuple[Tensor, Tensor]
"""What adaptive norms listen to: vectors (N, D), and which of them each position has, (B, L), (B, 1) or (1, 1)."""


def sinusoid(places: Tensor, dim: int) -> Tensor:
    """Sinusoidal positions (...) -> (..., D) in fp32, sines and cosines in turn; for any place from 0."""
    steps = torch.arange(0, dim, 2, device=places.device, dtype=torch.float32)
    angles = places.float()[..., None] * torch.exp(steps * (-math.log(10_000.0) / dim))  # (..., D / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class Positions(nn.Module):
    """Sinusoidal positions with a learned scale, which begins at 1.

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim, self.alpha = dim, nn.Parameter(torch.ones(1))

    def forward(self, places: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        return self.alpha * sinusoid(places, self.dim).to(self.alpha.dtype)


class AdaLN(nn.Module):
    """Layer norm whose scale and shift depend on the stage: w(stage) * LN(x) + b(stage).

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.project = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        vectors, index = condition
        weight, bias = F.embedding(index, self.project(vectors)).chunk(2, dim=-1)  # projected once, not per position
        return weight * self.norm(x) + bias


class ValleBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual connection.

    Args:
        config: sizes.
        adaptive: norms that listen to a condition.
    """

    def __init__(self, config: ValleConfig, adaptive: bool):
        super().__init__()
        sizes = GPTConfig(heads=config.heads, dim=config.dim, block=config.block, dropout=config.dropout)
        self.norm_1, self.norm_2 = _make_norm(config, adaptive), _make_norm(config, adaptive)
        self.attn = Attention(sizes)
        self.fc = nn.Linear(config.dim, config.mlp_dim)
        self.proj = nn.Linear(config.mlp_dim, config.dim)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int, mask: Any, condition: Condition | None) -> Tensor:
        """x (B, L, D) -> (B, L, D); `cache`, `layer` and `mask` as `Attention.forward` has them."""
        x = x + self.drop(self.attn(_normed(self.norm_1, x, condition), None, cache, layer, mask))
        return x + self.drop(self.proj(F.relu(self.fc(_normed(self.norm_2, x, condition)))))


def _make_norm(config: ValleConfig, adaptive: bool) -> nn.Module:
    return AdaLN(config.dim) if adaptive else nn.LayerNorm(config.dim, eps=1e-5)


def _normed(norm: nn.Module, x: Tensor, condition: Condition | None) -> Tensor:
    return norm(x) if condition is None else norm(x, condition)


class Trunk(nn.Module):
    """The blocks and the final norm.

    Args:
        config: sizes.
        adaptive: norms that listen to a condition.
    """

    def __init__(self, config: ValleConfig, adaptive: bool):
        super().__init__()
        self.recompute = config.recompute
        self.blocks = nn.ModuleList([ValleBlock(config, adaptive) for _ in range(config.layers)])
        self.norm = _make_norm(config, adaptive)

    def forward(
        self, x: Tensor, cache: KVCache | None = None, mask: Any = None, condition: Condition | None = None
    ) -> Tensor:
        """x (B, L, D) -> (B, L, D).

        Args:
            x: embeddings with positions.
            cache: begun for these positions, or None.
            mask: without a cache: None for a causal one, or bool that broadcasts to (B, 1, L, L).
            condition: of adaptive norms; None where they are plain.
        """
        for layer, block in enumerate(self.blocks):
            if self.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, cache, layer, mask, condition, use_reentrant=False)
                assert isinstance(x, Tensor)
            else:
                x = block(x, cache, layer, mask, condition)
        return _normed(self.norm, x, condition)


@torch.no_grad()
def init_weights(model: nn.Module, layers: int) -> None:
    """Sets the weights that training starts from, see the module's docstring."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
            if name.endswith("proj"):
                module.weight.div_(math.sqrt(2 * layers))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, AdaLN):
            module.project.bias[: len(module.project.bias) // 2] = 1


def prefix_mask(document: Tensor, text: Tensor) -> Tensor:
    """What positions of packed rows may attend to in the AR model: the text of their own document, and, for audio, the
    audio up to themselves.

    Args:
        document: (B, L) int64 number of the document within the row; -1 is padding, a document of its own, so that no
            row of the mask is empty (softmax would give NaN).
        text: (B, L) bool, whether a position holds text; a document's text stands before its audio.

    Returns:
        (B, 1, L, L) bool, True where a query (third axis) may see a key (fourth).
    """
    length = document.shape[1]
    behind = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
    seen = text[:, None, :] | (behind & ~text[:, :, None])  # (B, L, L)
    return (seen & (document[:, :, None] == document[:, None, :]))[:, None]


def full_mask(document: Tensor) -> Tensor:
    """What positions of packed rows may attend to in the NAR model: all of their own document.

    Args:
        document: (B, L), see `prefix_mask`.

    Returns:
        (B, 1, L, L) bool.
    """
    return (document[:, :, None] == document[:, None, :])[:, None]
