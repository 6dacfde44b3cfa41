"""Fréchet distance between two sets of feature vectors, in few dimensions.

With few clips a covariance of many dimensions is singular and the distance mostly counts clips, so vectors are first
projected on the leading principal axes of training data, at most 16.

Source: Heusel et al. 2017 (arXiv 1706.08500) for the distance; the trace term by eigenvalues of a symmetric product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Projection:
    """Whitening on principal axes.

    Attributes:
        mean: (D,).
        axes: (D, d), each scaled to unit variance on the data that it was fitted on.
    """

    mean: np.ndarray
    axes: np.ndarray

    @staticmethod
    def fit(vectors: np.ndarray, dims: int = 16) -> Projection:
        """The leading `dims` axes of (R, D) vectors, fewer if the vectors span fewer."""
        mean = vectors.mean(axis=0)
        _, scales, axes = np.linalg.svd(vectors - mean, full_matrices=False)
        scales = scales / np.sqrt(max(1, len(vectors) - 1))
        kept = int(min(dims, (scales > 1e-6 * max(scales[0], 1e-12)).sum()))
        return Projection(mean, (axes[:kept] / scales[:kept, None]).T)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(R, D) -> (R, d)."""
        return (vectors - self.mean) @ self.axes


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians fitted to (R, d) and (S, d) vectors, each of at least two rows.

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    if len(x) < 2 or len(y) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"need two rows or more of equal width, got {x.shape} and {y.shape}")
    x, y = x.astype(np.float64), y.astype(np.float64)
    sx, sy = (np.atleast_2d(np.cov(values, rowvar=False)) for values in (x, y))
    values, vectors = np.linalg.eigh(sx)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ sy @ root).clip(0)).sum()
    shift = x.mean(axis=0) - y.mean(axis=0)
    return float(shift @ shift + np.trace(sx) + np.trace(sy) - 2 * trace)
