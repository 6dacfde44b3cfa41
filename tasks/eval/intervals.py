"""Bootstrap intervals over units: speakers, pieces, recordings.

Clips of one speaker are alike, so what is resampled is the unit with all its clips, never the clip. With few units an
interval says little, and a verdict is not given.

Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", percentile intervals of a cluster bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from xcodec_lm.codec.runtime.order import derive_seed

LEAST_UNITS = 10
"""With fewer there is no verdict."""
DRAWS = 2000
LEVEL = 0.95
UNDECIDABLE = "not decidable"


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        value: mean over the scored clips; NaN when there is none.
        low: lower end of the 95 % interval; NaN with fewer than two units.
        high: its upper end.
        units: units with a scored clip.
        scored: clips in the mean.
        unscored: clips that the measure could not judge, which are not in the mean.
    """

    value: float
    low: float
    high: float
    units: int
    scored: int
    unscored: int = 0

    def verdict(self, lower_is_better: bool) -> str:
        """What a difference says: `better`, `worse`, `no difference shown`, or `not decidable` below 10 units."""
        if self.units < LEAST_UNITS or math.isnan(self.low):
            return UNDECIDABLE
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if (self.value < 0) == lower_is_better else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not a number is None."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


def mean_estimate(values: Sequence[float] | np.ndarray, units: Sequence[str], seed: int = 0) -> Estimate:
    """The mean over clips with its interval over units.

    Args:
        values: one a clip; NaN where a measure could not judge it.
        units: the unit of each clip.
        seed: of the draws.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) != len(units):
        raise ValueError(f"{len(numbers)} values for {len(units)} units")
    kept = ~np.isnan(numbers)
    names, index = np.unique(np.asarray(units, dtype=object)[kept].astype(str), return_inverse=True)
    sums = np.bincount(index, weights=numbers[kept], minlength=len(names))
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    unscored = int((~kept).sum())
    if not len(names):
        return Estimate(math.nan, math.nan, math.nan, 0, 0, unscored)
    weights = draw_weights(len(names), seed)
    low, high = percentiles((weights @ sums) / (weights @ counts)) if len(names) > 1 else (math.nan, math.nan)
    return Estimate(float(sums.sum() / counts.sum()), low, high, len(names), int(kept.sum()), unscored)


def difference_estimate(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, units: Sequence[str], seed: int = 0
) -> Estimate:
    """The paired difference a - b over clips; a clip that either side could not be judged on counts as unscored."""
    return mean_estimate(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), units, seed)


@lru_cache(maxsize=8)
def draw_weights(units: int, seed: int) -> np.ndarray:
    """(DRAWS, units): how often each unit is in each draw with replacement."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", units))
    weights = rng.multinomial(units, np.full(units, 1 / units), size=DRAWS).astype(np.float64)
    weights.setflags(write=False)  # kept for the next figure
    return weights


def percentiles(statistics: np.ndarray) -> tuple[float, float]:
    """The ends of the 95 % percentile interval of statistics; NaNs among them are left out."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(statistics, [tail, 100 - tail])
    return float(low), float(high)
