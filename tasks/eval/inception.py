"""Inception score of a set of clips, from a classifier's logits: are clips unlike each other, and each of one class?

Softmax of a tagger's outputs is a convention, since a tagger's classes do not exclude each other. The score of a split
is at most its number of clips and at most the number of classes, so scores of different N or splits do not compare.

Source: Salimans et al. 2016 (arXiv 1606.03498), exp(E_x KL(p(y|x) || p(y))).
"""

from __future__ import annotations

import math

import numpy as np

from xcodec_lm.codec.runtime.order import derive_seed

SPLITS = 10


def inception_score(logits: np.ndarray, splits: int = SPLITS, seed: int = 0) -> tuple[float, float]:
    """Mean and deviation over splits of the inception score.

    Args:
        logits: (N, K) before softmax.
        splits: parts that the set is divided into, after shuffling; one takes it whole.
        seed: of the shuffling.

    Returns:
        The mean, between 1 and min(K, N / splits), and the deviation over splits (0 for one).

    Raises:
        ValueError: fewer clips than splits, or logits that are not finite.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or splits < 1 or len(logits) < splits or not np.isfinite(logits).all():
        raise ValueError(f"need finite logits (N, K) with N at least {splits}, got shape {logits.shape}")
    order = np.random.default_rng(derive_seed(seed, "inception score", len(logits))).permutation(len(logits))
    log_p = log_softmax(logits[order])
    scores = []
    for part in np.array_split(log_p, splits):
        peak = part.max(axis=0)
        log_mean = peak + np.log(np.exp(part - peak).mean(axis=0))  # ln p(y)
        scores.append(math.exp(float((np.exp(part) * (part - log_mean)).sum(axis=1).mean())))
    return float(np.mean(scores)), float(np.std(scores))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) logarithms of probabilities, in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
