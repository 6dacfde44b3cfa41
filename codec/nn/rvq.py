"""Residual vector quantization with codebooks kept by moving averages.

Encoding is the arithmetic of `transformers.XcodecModel`, operation by operation, so that codes are the same. Training
differs from the public code where that is broken:

- residuals are detached and one straight-through estimator spans the sum, so every layer's commitment has a gradient
  (per-layer straight-through cancels it beyond layer 1);
- the moving averages are updated once per optimizer step, over all micro-batches and processes, after the step;
- a code is dead relative to the frames per code, and its averages restart with it.

Source: SoundStream, arXiv 2107.03312, algorithm 1; EnCodec, arXiv 2210.13438, for the moving averages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.configs.codec import QuantizerConfig

ROWS_AT_ONCE = 16_384
"""Vectors whose distances to a codebook are held in memory at once."""
KMEANS_ROWS = 10_000
"""Vectors that k-means looks at."""


@dataclass
class QuantizerOutput:
    """What training needs of a quantizer's forward pass.

    Attributes:
        quantized: (B, D, T) sum of the chosen codes; its gradient passes straight to the latents.
        codes: (B, n_q, T) int64.
        commitment: mean squared distance of the latents to their codes, mean over the layers used.
    """

    quantized: Tensor
    codes: Tensor
    commitment: Tensor


class Codebook(nn.Module):
    """One codebook: `embed` (K, D), and the averages that move it."""

    embed: Tensor
    embed_avg: Tensor
    cluster_size: Tensor
    inited: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("inited", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(size))
        self.register_buffer("embed", torch.zeros(size, dim))
        self.register_buffer("embed_avg", torch.zeros(size, dim))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code of each of (R, D) vectors, (R,) int64."""
        codes = self.embed.t()  # (D, K)
        norms = codes.pow(2).sum(0, keepdim=True)
        parts = [
            (-(part.pow(2).sum(1, keepdim=True) - 2 * part @ codes + norms)).max(dim=-1).indices
            for part in vectors.split(ROWS_AT_ONCE)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def restart(self, embed: Tensor, rows: Tensor | slice, count: float) -> None:
        """Sets codes, and their averages as if each had been chosen `count` times a step."""
        self.embed[rows] = embed
        self.embed_avg[rows] = embed * count
        self.cluster_size[rows] = count


class Layer(nn.Module):
    """Holds a codebook under the name that transformers uses."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.codebook = Codebook(size, dim)


class ResidualVectorQuantizer(nn.Module):
    """A stack of codebooks, each quantizing what the ones before left over.

    Args:
        config: sizes, decay, thresholds.
    """

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        self.config = config
        self.quantizers = nn.ModuleList(Layer(config.codebook_size, config.dim) for _ in range(config.n_q))
        self._pending: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(config.n_q)]

    def codebooks(self, n_q: int | None = None) -> list[Codebook]:
        """The first `n_q` codebooks, or all."""
        return [cast(Layer, layer).codebook for layer in self.quantizers][:n_q]

    def encode(self, latents: Tensor, n_q: int | None = None) -> Tensor:
        """Codes (B, n_q, T) of latents (B, D, T)."""
        residual = latents.permute(0, 2, 1)  # (B, T, D)
        indices = []
        for book in self.codebooks(n_q):
            codes = book.nearest(residual.reshape(-1, residual.shape[-1])).view(residual.shape[:2])
            residual = residual - F.embedding(codes, book.embed)
            indices.append(codes)
        return torch.stack(indices, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum of the codes' vectors (B, D, T) for codes (B, n_q, T), n_q at most Q."""
        books = self.codebooks(codes.shape[1])
        total = torch.zeros((), device=codes.device)
        for index, book in enumerate(books):
            total = total + F.embedding(codes[:, index], book.embed).permute(0, 2, 1)
        return total

    def forward(self, latents: Tensor, n_q: int) -> QuantizerOutput:
        """Quantizes for training and remembers what the moving averages need.

        Args:
            latents: (B, D, T), computed in fp32 whatever the autocast.
            n_q: layers used.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            flat = latents.permute(0, 2, 1).reshape(-1, latents.shape[1])  # (B*T, D)
            taken = torch.zeros_like(flat)
            commitment = flat.new_zeros(())
            indices = []
            for layer, book in enumerate(self.codebooks(n_q)):
                residual = flat - taken
                codes = book.nearest(residual.detach())
                chosen = F.embedding(codes, book.embed)
                if self.training:
                    self._pending[layer].append((residual.detach(), codes))
                commitment = commitment + F.mse_loss(residual, chosen)
                taken = taken + chosen
                indices.append(codes)
            shape = (latents.shape[0], latents.shape[2])
            quantized = taken.view(*shape, -1).permute(0, 2, 1)
            quantized = latents + (quantized - latents).detach()
            codes = torch.stack([index.view(shape) for index in indices], dim=1)
            return QuantizerOutput(quantized, codes, commitment / n_q)

    @torch.no_grad()
    def initialize(self, latents: Tensor, seed: int) -> None:
        """Fills the codebooks by k-means on the first global batch, layer by layer on what is left over.

        Args:
            latents: (R, D) vectors of all processes, in the same order on each.
            seed: of the starting points and the sample.
        """
        for layer, book in enumerate(self.codebooks()):
            rng = generator(seed, "kmeans", layer)
            rows = torch.randperm(len(latents), generator=rng)[:KMEANS_ROWS].to(latents.device)
            centers = kmeans(latents[rows], self.config.codebook_size, self.config.kmeans_iterations, rng)
            book.restart(centers, slice(None), len(latents) / self.config.codebook_size)
            latents = latents - F.embedding(book.nearest(latents), book.embed)

    @torch.no_grad()
    def update_codebooks(self, seed: int, step: int) -> list[int]:
        """Moves the codebooks by all that `forward` saw since the last call, over all processes.

        Args:
            seed: of the choice of new vectors for dead codes.
            step: optimizer step, likewise.

        Returns:
            How many dead codes each layer in use replaced.
        """
        replaced = []
        for layer, (book, seen) in enumerate(zip(self.codebooks(), self._pending, strict=True)):
            if not seen:
                continue
            residual = torch.cat([vectors for vectors, _ in seen])  # (R, D)
            codes = torch.cat([index for _, index in seen])
            seen.clear()
            counts = torch.bincount(codes, minlength=self.config.codebook_size).to(residual.dtype)
            sums = torch.zeros_like(book.embed).index_add_(0, codes, residual)
            _sum_over_processes(counts)
            _sum_over_processes(sums)
            decay = self.config.decay
            book.cluster_size.lerp_(counts, 1 - decay)
            book.embed_avg.lerp_(sums, 1 - decay)
            book.embed.copy_(book.embed_avg / book.cluster_size.clamp_min(1e-5)[:, None])
            frames_per_code = float(counts.sum()) / self.config.codebook_size
            dead = (book.cluster_size < self.config.dead_fraction * frames_per_code).nonzero().flatten()
            if len(dead):
                fresh = _draw_rows(residual, len(dead), generator(seed, "dead", step, layer))
                book.restart(fresh, dead, frames_per_code)
            replaced.append(len(dead))
        return replaced


@torch.no_grad()
def kmeans(vectors: Tensor, clusters: int, iterations: int, rng: torch.Generator) -> Tensor:
    """Centers (K, D) of (R, D) vectors by Lloyd's algorithm, distances by matrix products in blocks.

    A cluster that loses all its vectors keeps its center. With fewer vectors than clusters, the rest are repeated with
    a little noise, so that no two centers are equal.

    Args:
        vectors: (R, D).
        clusters: K.
        iterations: passes over the vectors.
        rng: CPU generator of the starting points.
    """
    book = Codebook(clusters, vectors.shape[1]).to(vectors.device)
    start = torch.randperm(len(vectors), generator=rng)[:clusters]
    if len(start) < clusters:
        more = torch.randint(len(vectors), (clusters - len(start),), generator=rng)
        noise = torch.randn(len(more), vectors.shape[1], generator=rng).to(vectors.device)
        spread = vectors.std(dim=0, unbiased=False).mean().clamp_min(1e-3)
        book.embed.copy_(
            torch.cat([vectors[start.to(vectors.device)], vectors[more.to(vectors.device)] + 0.01 * spread * noise])
        )
    else:
        book.embed.copy_(vectors[start.to(vectors.device)])
    for _ in range(iterations):
        codes = book.nearest(vectors)
        counts = torch.bincount(codes, minlength=clusters)
        sums = torch.zeros_like(book.embed).index_add_(0, codes, vectors)
        used = counts > 0
        book.embed[used] = sums[used] / counts[used, None]
    return book.embed.clone()


def _sum_over_processes(tensor: Tensor) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)


def _draw_rows(local: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` rows drawn from the vectors of all processes; each process holds equally many."""
    parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    world, rank = (dist.get_world_size(), dist.get_rank()) if parallel else (1, 0)
    picks = torch.randint(world * len(local), (count,), generator=rng)
    mine = (picks // len(local) == rank).to(local.device)
    rows = local[(picks % len(local)).to(local.device)] * mine[:, None]
    _sum_over_processes(rows)
    return rows
