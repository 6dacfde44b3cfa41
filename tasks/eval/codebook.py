"""How much of its codebooks a codec uses, and how many bits a second that is.

Entropies of few tokens are too small: a codebook of K codes seen N times has about (used - 1) / (2 N ln 2) bits more
than it shows (Miller 1955, "Note on the bias of information estimates"), and below 20 K tokens even that is a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

TOKENS_PER_CODE = 20
"""With fewer tokens for each code of the book, figures are not to be read."""


@dataclass(frozen=True)
class CodebookUse:
    """How one codebook is used.

    Attributes:
        size: K, codes it has.
        tokens: that were counted.
        used: codes that occur.
        entropy_bits: of the codes' distribution, at most log2(K).
        corrected_bits: with Miller's and Madow's correction, at most log2(K).
        top_share: of the most frequent code.
    """

    size: int
    tokens: int
    used: int
    entropy_bits: float
    corrected_bits: float
    top_share: float

    @property
    def perplexity(self) -> float:
        """The number of equally frequent codes that would say as much."""
        return 2**self.entropy_bits

    @property
    def efficiency(self) -> float:
        """Entropy over the most that it could be; 1 for a book of one code."""
        return self.entropy_bits / math.log2(self.size) if self.size > 1 else 1.0

    @property
    def dead(self) -> int:
        """Codes that do not occur."""
        return self.size - self.used

    @property
    def enough(self) -> bool:
        """Whether there are tokens enough to read these figures."""
        return self.tokens >= TOKENS_PER_CODE * self.size


def codebook_use(counts: np.ndarray) -> CodebookUse:
    """From how often each code occurs, (K,) of whole numbers.

    Raises:
        ValueError: no codes, or negative counts.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.ndim != 1 or not len(counts) or (counts < 0).any():
        raise ValueError(f"need counts (K,) of 0 or more, got shape {counts.shape}")
    tokens, used = int(counts.sum()), int((counts > 0).sum())
    bits = entropy_bits(counts)
    more = (used - 1) / (2 * tokens * math.log(2)) if tokens else 0.0
    top = float(counts.max()) / tokens if tokens else 0.0
    return CodebookUse(len(counts), tokens, used, bits, min(math.log2(len(counts)), bits + more), top)


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy of a distribution given by counts, in bits; 0 of nothing."""
    counts = np.asarray(counts)
    if not counts.any():
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def count_codes(codes: np.ndarray, size: int) -> np.ndarray:
    """How often each of `size` codes occurs in codes of any shape, (size,).

    Raises:
        ValueError: a code is out of range.
    """
    codes = np.asarray(codes).reshape(-1)
    if len(codes) and (codes.min() < 0 or codes.max() >= size):
        raise ValueError(f"codes lie in {codes.min()}..{codes.max()}, the book has 0..{size - 1}")
    return np.bincount(codes, minlength=size)


def level_use(counts: np.ndarray, levels: Sequence[int]) -> list[CodebookUse]:
    """How each dimension of an FSQ book is used, from counts (prod(levels),) of whole codes, first dimension fastest.

    Raises:
        ValueError: the counts are not of such a book.
    """
    if len(counts) != math.prod(levels):
        raise ValueError(f"{len(counts)} counts for levels {tuple(levels)}")
    grid = np.asarray(counts).reshape(tuple(reversed(levels)))
    axes = range(grid.ndim)
    return [codebook_use(grid.sum(axis=tuple(a for a in axes if a != axis))) for axis in reversed(axes)]


def bitrate_bps(frame_rate: float | Fraction, sizes: Sequence[int]) -> float:
    """Bits a second of codes of equal length: frames a second times the sum of log2 K."""
    return float(frame_rate) * sum(math.log2(size) for size in sizes)


def tokens_per_s(frame_rate: float | Fraction, n_q: int) -> float:
    """Tokens a second: frames a second times codebooks."""
    return float(frame_rate) * n_q


def entropy_bps(frame_rate: float | Fraction, uses: Sequence[CodebookUse]) -> float:
    """Bits a second of codes that are coded each by its own frequency."""
    return float(frame_rate) * sum(use.entropy_bits for use in uses)
