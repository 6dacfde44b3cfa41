"""Fréchet distance between two sets of feature vectors: of any width, from arrays or from streamed moments.

With few clips a covariance of many dimensions is singular and the distance mostly counts clips: sets are compared at
equal N, and never across N. Where intervals are wanted, vectors are first projected on few principal axes
(`Projection`, `set_distances`).

The trace term tr((S1 S2)^(1/2)) is computed in one of two ways, both in float64 and without a matrix square root of a
product: by eigenvalues of a symmetric product, or, with fewer rows than dimensions, as the nuclear norm of the product
of the centred rows, which is exact and many times as fast.

Source: Heusel et al. 2017 (arXiv 1706.08500) for the distance; Chan et al. 1979, "Updating formulae and a pairwise
algorithm for computing sample variances", for merging moments.
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
        return Projection._of(mean, scales, axes, dims)

    @staticmethod
    def of_moments(moments: Moments, dims: int = 16) -> Projection:
        """The same from moments, which have seen the vectors one after the other."""
        if moments.rows is not None:
            return Projection.fit(np.stack(moments.rows), dims)
        values, vectors = np.linalg.eigh(moments.covariance)
        order = np.argsort(values)[::-1]
        return Projection._of(moments.mean, np.sqrt(values[order].clip(0)), vectors[:, order].T, dims)

    @staticmethod
    def _of(mean: np.ndarray, scales: np.ndarray, axes: np.ndarray, dims: int) -> Projection:
        """Axes (r, D) with their deviations (r,), the largest first."""
        kept = int(min(dims, (scales > 1e-6 * max(scales[0], 1e-12)).sum()))
        return Projection(mean, (axes[:kept] / scales[:kept, None]).T)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(R, D) -> (R, d)."""
        return (vectors - self.mean) @ self.axes


class Moments:
    """Mean and covariance of vectors that are seen once, in blocks, in float64.

    Memory is at most D x D numbers however many vectors there are: up to D vectors are kept as they are, which is
    smaller and lets the distance take its short way; with more, they become a matrix of products.

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        self.dim, self.count = dim, 0
        self.rows: list[np.ndarray] | None = []
        self._mean = np.zeros(dim)
        self._scatter: np.ndarray | None = None

    def update(self, vectors: np.ndarray) -> Moments:
        """Adds (R, D) vectors; returns itself.

        Raises:
            ValueError: another width, or values that are not finite.
        """
        vectors = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
        if vectors.shape[1] != self.dim or not np.isfinite(vectors).all():
            raise ValueError(f"need finite vectors of width {self.dim}, got shape {vectors.shape}")
        if self.rows is not None and self.count + len(vectors) <= self.dim:
            self.rows += list(vectors)
            self.count += len(vectors)
            return self
        self._condense()
        if len(vectors):
            mean = vectors.mean(axis=0)
            self._add(len(vectors), mean, (vectors - mean).T @ (vectors - mean))
        return self

    def merge(self, other: Moments) -> Moments:
        """Adds what another has seen; returns itself. The other stays as it is."""
        if other.rows is not None:
            return self.update(np.stack(other.rows)) if other.rows else self
        self._condense()
        assert other._scatter is not None
        self._add(other.count, other._mean, other._scatter)
        return self

    @property
    def mean(self) -> np.ndarray:
        """(D,)."""
        return np.mean(self.rows, axis=0) if self.rows else self._mean

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), divided by N - 1.

        Raises:
            ValueError: fewer than two vectors.
        """
        _need_two(self.count)
        if self.rows is not None:
            return np.atleast_2d(np.cov(np.stack(self.rows), rowvar=False))
        assert self._scatter is not None
        return self._scatter / (self.count - 1)

    def _condense(self) -> None:
        """From kept rows to their products."""
        if self.rows is None:
            return
        rows, self.rows, self.count = self.rows, None, 0
        self._scatter = np.zeros((self.dim, self.dim))
        if rows:
            block = np.stack(rows)
            mean = block.mean(axis=0)
            self._add(len(block), mean, (block - mean).T @ (block - mean))

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        assert self._scatter is not None
        total, shift = self.count + count, mean - self._mean
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians fitted to (R, D) and (S, D) vectors, each of at least two rows.

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    if len(x) < 2 or len(y) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"need two rows or more of equal width, got {x.shape} and {y.shape}")
    x, y = x.astype(np.float64), y.astype(np.float64)
    if min(len(x), len(y)) < x.shape[1]:
        return _of_rows(x, y)
    return _of_covariances(
        x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)), y.mean(axis=0), np.atleast_2d(np.cov(y, rowvar=False))
    )


def frechet_of_moments(x: Moments, y: Moments) -> float:
    """The same from moments.

    Raises:
        ValueError: fewer than two vectors, or different widths.
    """
    if x.dim != y.dim:
        raise ValueError(f"vectors of width {x.dim} and {y.dim} cannot be compared")
    for moments in (x, y):
        _need_two(moments.count)
    if x.rows is not None and y.rows is not None:
        return frechet_distance(np.stack(x.rows), np.stack(y.rows))
    return _of_covariances(x.mean, x.covariance, y.mean, y.covariance)


def _of_rows(x: np.ndarray, y: np.ndarray) -> float:
    """By the nuclear norm of the product of the centred rows, (R, S)."""
    cx, cy = x - x.mean(axis=0), y - y.mean(axis=0)
    trace = np.linalg.svd(cx @ cy.T, compute_uv=False).sum() / np.sqrt((len(x) - 1) * (len(y) - 1))
    shift = x.mean(axis=0) - y.mean(axis=0)
    spread = np.square(cx).sum() / (len(x) - 1) + np.square(cy).sum() / (len(y) - 1)
    return float(shift @ shift + spread - 2 * trace)


def _of_covariances(mean_x: np.ndarray, sx: np.ndarray, mean_y: np.ndarray, sy: np.ndarray) -> float:
    values, vectors = np.linalg.eigh(sx)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ sy @ root).clip(0)).sum()
    shift = mean_x - mean_y
    return float(shift @ shift + np.trace(sx) + np.trace(sy) - 2 * trace)


def _need_two(count: int) -> None:
    if count < 2:
        raise ValueError(f"a covariance needs two vectors or more, got {count}")
