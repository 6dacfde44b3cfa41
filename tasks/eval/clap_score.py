"""CLAP score: does a sound match its caption, more than other captions, and is it found by it?

A cosine alone says little; the same sounds with other rows' captions stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RANKS = (1, 5, 10)


def clap_score(audio: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of each sound with its caption, (N,) in [-1, 1]; 0 where a vector is 0.

    Args:
        audio: (N, D), of any length.
        texts: (N, D), row by row.

    Raises:
        ValueError: shapes differ.
    """
    if np.shape(audio) != np.shape(texts) or np.ndim(audio) != 2:
        raise ValueError(f"need vectors (N, D) of the same rows, got {np.shape(audio)} and {np.shape(texts)}")
    return (_unit(audio) * _unit(texts)).sum(axis=1)


def shuffled_score(audio: np.ndarray, texts: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Mean cosine of each sound with the captions of rows that say something else, (N,); NaN where none does.

    This is what dealing the captions out anew gives on average, without any draw. Memory is of the order of N x D.
    """
    a, t = _unit(audio), _unit(texts)
    total = t.sum(axis=0)
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for caption, vector in zip(captions, t, strict=True):
        sums[caption] = sums.get(caption, 0) + vector
        counts[caption] = counts.get(caption, 0) + 1
    others = np.stack([total - sums[caption] for caption in captions]) if len(a) else np.zeros((0, 1))
    number = np.array([len(t) - counts[caption] for caption in captions], dtype=np.float64)
    return np.where(number > 0, (a * others).sum(axis=1) / np.maximum(number, 1), np.nan)


def retrieval(audio: np.ndarray, texts: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Share of captions whose sound is among the nearest: `r@1`, `r@5`, `r@10`.

    Any sound of a row with the same caption counts as found. Of equally near sounds half are taken to be nearer.
    """
    a, t = _unit(audio), _unit(texts)
    names = np.asarray(captions, dtype=object)
    hits = dict.fromkeys(RANKS, 0)
    for row, vector in enumerate(t):
        near = a @ vector
        best = near[names == names[row]].max()
        ahead = (near > best).sum() + 0.5 * ((near == best) & (names != names[row])).sum()
        for rank in RANKS:
            hits[rank] += ahead < rank
    return {f"r@{rank}": float(count) / max(1, len(t)) for rank, count in hits.items()}


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
