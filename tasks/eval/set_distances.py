"""Distances between sets of clips, with intervals over what the clips are of: Fréchet distance and KID.

Both are given feature vectors that were projected on few axes, see `frechet.Projection`. Two systems that made clips
for the same rows are compared in the same draws, so their difference has an interval of its own.

A draw with replacement holds some clips several times, which makes either set look narrower and a Fréchet distance
larger. Draws are therefore moved as a whole, so that their mean is the distance itself: what is used is their spread.

Sources: Heusel et al. 2017 (arXiv 1706.08500); Bińkowski et al. 2018 (arXiv 1801.01401) for KID, its unbiased form with
the cubic kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcodec_lm.tasks.eval.frechet import frechet_distance
from xcodec_lm.tasks.eval.intervals import Estimate, draw_weights, percentiles

MOST_DIMS, ROWS_PER_DIM = 16, 3
"""Axes at most, and clips that there are for each at least."""


@dataclass(frozen=True)
class Drawn:
    """A statistic of a set, and its values in the draws over units.

    Attributes:
        value: of the set itself.
        draws: (DRAWS,), with the set's value as their mean.
        units: that were drawn.
        rows: of the set.
    """

    value: float
    draws: np.ndarray
    units: int
    rows: int

    def estimate(self) -> Estimate:
        """The value with its interval."""
        low, high = percentiles(self.draws) if self.units > 1 else (np.nan, np.nan)
        return Estimate(self.value, low, high, self.units, self.rows)

    def minus(self, other: Drawn) -> Estimate:
        """The difference to another set for the same rows, draw by draw."""
        return Drawn(self.value - other.value, self.draws - other.draws, self.units, self.rows).estimate()


def dims_for(rows: int) -> int:
    """On how many axes sets of so many clips are compared."""
    return max(1, min(MOST_DIMS, rows // ROWS_PER_DIM))


def frechet_drawn(sets: Sequence[np.ndarray], reference: np.ndarray, units: Sequence[str], seed: int = 0) -> Drawn:
    """Fréchet distance of sets to a reference; of several, their mean: sets are never joined, so that all are equal.

    Args:
        sets: (R, d) each, a clip for every row of the reference.
        reference: (R, d), R at least 2.
        units: of the rows.
        seed: of the draws.
    """
    weights, count = _weights(units, seed)
    reference_moments = _moments(reference, weights)
    draws = [_frechet(_moments(rows, weights), reference_moments) for rows in sets]
    value = float(np.mean([frechet_distance(rows, reference) for rows in sets]))
    return _drawn(value, np.mean(draws, axis=0), count, len(reference))


def kid_drawn(sets: Sequence[np.ndarray], reference: np.ndarray, units: Sequence[str], seed: int = 0) -> Drawn:
    """Kernel distance (squared MMD, kernel (x·y/d + 1)^3) of sets to a reference; arguments as `frechet_drawn`.

    It has no bias, so it can be below 0 where the sets are alike.
    """
    weights, count = _weights(units, seed)
    ones = np.ones((1, len(reference)))
    draws = [_kid(rows, reference, weights) for rows in sets]
    value = float(np.mean([_kid(rows, reference, ones)[0] for rows in sets]))
    return _drawn(value, np.mean(draws, axis=0), count, len(reference))


def _drawn(value: float, draws: np.ndarray, units: int, rows: int) -> Drawn:
    return Drawn(value, draws - np.nanmean(draws) + value, units, rows)


def _weights(units: Sequence[str], seed: int) -> tuple[np.ndarray, int]:
    """(DRAWS, R) how often each row is in each draw, and the number of units."""
    names, index = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    return draw_weights(len(names), seed)[:, index], len(names)


def _moments(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (DRAWS, d) and covariances (DRAWS, d, d) of rows that count several times."""
    rows = rows.astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    means = weights @ rows / total
    products = (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)
    squares = (weights @ products).reshape(-1, rows.shape[1], rows.shape[1])
    spread = squares - total[:, :, None] * means[:, :, None] * means[:, None, :]
    return means, spread / (total[:, :, None] - 1).clip(1)


def _frechet(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    (mean, spread), (mean_other, spread_other) = one, other
    values, vectors = np.linalg.eigh(spread)
    roots = (vectors * np.sqrt(values.clip(0))[:, None]) @ np.swapaxes(vectors, 1, 2)
    shared = np.sqrt(np.linalg.eigvalsh(roots @ spread_other @ roots).clip(0)).sum(axis=1)
    traces = np.trace(spread, axis1=1, axis2=2) + np.trace(spread_other, axis1=1, axis2=2)
    return np.square(mean - mean_other).sum(axis=1) + traces - 2 * shared


def _kid(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(DRAWS,): clips are never compared with themselves, however often a draw holds them."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    within, between = 0.0, (x @ y.T / x.shape[1] + 1) ** 3
    pairs = weights.sum(axis=1) ** 2 - np.square(weights).sum(axis=1)
    pairs = np.where(pairs > 0, pairs, np.nan)  # a draw that holds one clip alone has no value
    for rows in (x, y):
        kernel = (rows @ rows.T / rows.shape[1] + 1) ** 3
        np.fill_diagonal(kernel, 0)
        within = within + ((weights @ kernel) * weights).sum(axis=1) / pairs
    # A row and its counterpart are of one recording; leaving the pair out keeps the three terms alike.
    np.fill_diagonal(between, 0)
    return within - 2 * ((weights @ between) * weights).sum(axis=1) / pairs
