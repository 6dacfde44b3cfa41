"""What codes say before any model is trained on them: use, entropy, and the bits that counting models need.

Entropy is what a model that ignores all context needs at best; the unigram and the bigram are fitted on other
recordings and measured on these, so few recordings make them dear: read two codecs beside each other.
Fewer bits are not better: a codec that has collapsed has the fewest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.lm.anchors import BigramModel, UnigramModel, mean_bits


def code_statistics(spec: TokenSpec, fitted: Sequence[Tensor], measured: Sequence[Tensor]) -> dict[str, Any]:
    """Figures of each codebook.

    Args:
        spec: of the codec.
        fitted: codes (Q, T) of the recordings that counts come from.
        measured: codes of other recordings.

    Returns:
        `frames` and `fitted_frames`; `books`, one a codebook: `size`, `used` (codes that occur in either), `dead`,
        `top` (share of the most frequent code), `perplexity`, and bits per second of audio: `capacity` (log2 of its
        size), `entropy` (of all codes, corrected for few of them), `unigram`, `bigram_before` (given the code of the
        same codebook one frame earlier), `bigram_above` (given the code before it in the frame; the first codebook's
        is the last one's of the frame before); and `totals` of these bits. `chance` is, for each codebook, how often
        two frames drawn at random have the same code.
    """
    sizes, rate = tuple(spec.codebook_sizes), float(spec.frame_rate)
    unigram = UnigramModel(sizes).fit(fitted)
    costs = {
        "unigram": mean_bits(unigram, measured),
        "bigram_before": mean_bits(BigramModel(sizes, lag=len(sizes)).fit(fitted), measured),
        "bigram_above": mean_bits(BigramModel(sizes, lag=1).fit(fitted), measured),
    }
    books, chance = [], []
    for place, size in enumerate(sizes):
        counts = np.zeros(size, np.int64)
        for codes in (*fitted, *measured):
            counts += np.bincount(codes[place].numpy().astype(np.int64), minlength=size)
        entropy = entropy_bits(counts)
        shares = counts / counts.sum()
        chance.append(float((shares**2).sum()))
        books.append({
            "size": size, "used": int((counts > 0).sum()), "dead": int((counts == 0).sum()),
            "top": float(shares.max()), "perplexity": 2**entropy, "capacity": rate * math.log2(size),
            "entropy": rate * entropy, **{name: rate * float(bits[place]) for name, bits in costs.items()},
        })  # fmt: skip
    names = ("capacity", "entropy", *costs)
    return {
        "frames": sum(codes.shape[1] for codes in measured),
        "fitted_frames": sum(codes.shape[1] for codes in fitted),
        "books": books, "chance": chance, "totals": {name: sum(book[name] for book in books) for name in names},
    }  # fmt: skip


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy of a distribution in bits from counts, with Miller and Madow's correction for few of them.

    Source: Miller 1955, "Note on the bias of information estimates": (codes seen - 1) / 2N nats more.
    """
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    plain = float(-(shares * np.log2(shares)).sum())
    return min(math.log2(len(counts)), plain + (len(shares) - 1) / (2 * total * math.log(2)))
