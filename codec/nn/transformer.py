"""Decoder of X-Codec 2: vectors to audio through a transformer between ResNet blocks, and an inverse STFT.

One class, two variants. The published one sees the whole clip: attention and the ResNet blocks' GroupNorm are global.
The causal one, for streaming, has the same parameters under the same names, so it can start from the other's weights:
convolutions pad on the left, attention sees a window of past frames, and norms act on the channels of one frame.

Parameter names are those of `transformers.Xcodec2Model`. Source: arXiv 2502.04128, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.codec.nn.istft_head import ISTFTHead
from xcodec_lm.configs.xcodec2 import GROUPS, Xcodec2DecoderConfig

EPS = 1e-6
ROPE_BASE = 10_000.0
ATTENTION_BLOCK = 256
"""Frames whose windowed attention is computed at once; memory is linear in the length."""


class FrameConv(nn.Conv1d):
    """A convolution over frames that keeps their number; a causal one sees no later frame."""

    def __init__(self, dim: int, kernel_size: int, causal: bool):
        super().__init__(dim, dim, kernel_size)
        self.pads = (kernel_size - 1, 0) if causal else (kernel_size // 2, kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        return super().forward(F.pad(x, self.pads))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each frame."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ResNetBlock(nn.Module):
    """Twice norm, SiLU and convolution of 3, around a skip."""

    def __init__(self, dim: int, config: Xcodec2DecoderConfig):
        super().__init__()
        self.norm1, self.norm2 = (
            ChannelNorm(dim, eps=EPS) if config.causal else nn.GroupNorm(GROUPS, dim, eps=EPS) for _ in range(2)
        )
        self.conv1, self.conv2 = (FrameConv(dim, 3, config.causal) for _ in range(2))
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = F.dropout(F.silu(self.norm2(hidden)), self.dropout, self.training)
        return x + self.conv2(hidden)


class Attention(nn.Module):
    """Multi-head attention over all frames, or over a window of past ones.

    In the published weights the rotary angle depends on the head where it should depend on the frame. One head's
    queries and keys are then turned by one angle, which their products do not notice: `rope: head` turns nothing.
    """

    def __init__(self, dim: int, config: Xcodec2DecoderConfig):
        super().__init__()
        self.config = config
        width = config.heads * config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, D) -> (B, T, D); rotation is cosine and sine (T, head_dim), or None."""
        heads = (self.config.heads, self.config.head_dim)
        q, k, v = (p(x).unflatten(2, heads).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if rotation is not None:
            q, k = _rotate(q, *rotation), _rotate(k, *rotation)  # (B, heads, T, head_dim)
        seen = _windowed(q, k, v, self.config.attention_window) if self.config.causal else _attend(q, k, v)
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.fc2(F.silu(self.fc1(x)))


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP, each around a skip."""

    def __init__(self, dim: int, config: Xcodec2DecoderConfig):
        super().__init__()
        self.self_attn = Attention(dim, config)
        self.mlp = MLP(dim, config.mlp_dim)
        self.input_layernorm = nn.RMSNorm(dim, eps=EPS)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=EPS)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Quantized vectors to audio.

    Args:
        config: the decoder's own settings.
        quantizer_dim: width of the vectors that come in.
        dim: width inside.
        hop_samples: samples that a frame becomes.
    """

    def __init__(self, config: Xcodec2DecoderConfig, quantizer_dim: int, dim: int, hop_samples: int):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(quantizer_dim, dim)
        self.embed = FrameConv(dim, 7, config.causal)
        self.prior_net = nn.ModuleList(ResNetBlock(dim, config) for _ in range(2))
        self.layers = nn.ModuleList(TransformerLayer(dim, config) for _ in range(config.layers))
        self.post_net = nn.ModuleList(ResNetBlock(dim, config) for _ in range(2))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = ISTFTHead(dim, hop_samples)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, T, D) -> (B, 1, T * hop)."""
        x = self.embed(self.fc(vectors).transpose(1, 2))  # (B, D, T)
        for block in self.prior_net:
            x = block(x)
        x = x.transpose(1, 2)  # (B, T, D)
        rotation = None if self.config.rope == "head" else _rotation(x.shape[1], self.config.head_dim, x)
        for layer in self.layers:
            x = layer(x, rotation)
        x = x.transpose(1, 2)
        for block in self.post_net:
            x = block(x)
        return self.head(self.norm(x.transpose(1, 2)))

    def init(self, std: float | None) -> None:
        """Truncated normals of this deviation and zero biases; None leaves PyTorch's own."""
        if std is not None:
            for layer in self.modules():
                if isinstance(layer, (nn.Linear, nn.Conv1d)):
                    nn.init.trunc_normal_(layer.weight, std=std)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    @property
    def context_frames(self) -> int:
        """Past frames that can reach a causal decoder's sample; nothing earlier does."""
        convolutions = 6 + 2 * len([*self.prior_net, *self.post_net]) * 2
        attention = len(self.layers) * (self.config.attention_window - 1)
        return convolutions + attention + 3  # the head's frames begin 1.5 hops early and are 4 hops long


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention (B, heads, T, head_dim) in which frame t sees frames t - window + 1 to t."""
    total = q.shape[2]
    time = torch.arange(total, device=q.device)
    parts = []
    for start in range(0, total, ATTENTION_BLOCK):
        stop, left = min(total, start + ATTENTION_BLOCK), max(0, start - window + 1)
        age = time[start:stop, None] - time[left:stop]  # (queries, keys)
        mask = (age >= 0) & (age < window)
        parts.append(_attend(q[:, :, start:stop], k[:, :, left:stop], v[:, :, left:stop], mask))
    return torch.cat(parts, dim=2)


def _rotation(frames: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, head_dim) of the rotary angles. Source: RoFormer, arXiv 2104.09864, half-split layout."""
    speed = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim)
    angle = torch.arange(frames, device=like.device)[:, None] * speed.repeat(2)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=3)
    return x * cosine + torch.cat([-second, first], dim=3) * sine
