"""Paired differences between codecs, with intervals over units and training seeds, and what they allow to say.

Every codec's model stands for the same items, so a difference is taken item by item and draw by draw. Two things vary:
which units (speakers, pieces, recordings) happen to be in the test set, and which training seeds were used. They are
crossed: every seed has every unit. So each draw takes units with replacement and seeds with replacement, and weighs the
difference of every seed by both.

Of S seeds a draw takes S - 1: with as many as there are, the spread over few seeds would come out too small by the
factor (S - 1) / S. With one seed the interval is over units alone, and speaks of these trainings only.

Sources: Davison and Hinkley 1997, "Bootstrap methods and their application", section 3.8 for resampling of several
levels; Rao and Wu 1988 (JASA 83:231) for S - 1 draws of few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.tasks.eval.intervals import DRAWS, LEAST_UNITS, UNDECIDABLE, draw_weights, percentiles

Z_LEVEL, Z_POWER = 1.96, 0.84
"""Normal quantiles of a two-sided test at 5 %, and of a power of 80 %."""
SAME = "no difference shown"
MOST_NEEDED = 100_000
"""Units or seeds beyond which an estimate says no number."""


@dataclass(frozen=True)
class Metric:
    """What is compared.

    Attributes:
        name: key.
        label: in tables.
        lower_is_better: which way is better; None shows the figure and never gives a verdict.
        scale: factor for display.
        format: of a number.
    """

    name: str
    label: str
    lower_is_better: bool | None
    scale: float = 1.0
    format: str = ".3f"


@dataclass(frozen=True)
class Statistic:
    """A metric of one codec and seed.

    Attributes:
        value: over all units.
        draws: (DRAWS,) over units; NaN where a draw has no value.
        units: how many.
        items: that were scored.
    """

    value: float
    draws: np.ndarray
    units: int
    items: int


def ratio_statistic(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, units: Sequence[str], seed: int = 0
) -> Statistic:
    """A ratio of sums over items, such as word errors per word; with ones below, a mean.

    Args:
        above: one an item; NaN where it could not be judged, which leaves the item out.
        below: one an item.
        units: of each item. Codecs are paired by unit: every one needs the same.
        seed: of the draws.
    """
    tops, bottoms = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    names, index = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    kept = ~np.isnan(tops)
    if not kept.any():
        return Statistic(math.nan, np.full(DRAWS, math.nan), 0, 0)
    sums = np.bincount(index[kept], weights=tops[kept], minlength=len(names))
    counts = np.bincount(index[kept], weights=bottoms[kept], minlength=len(names))
    weights = draw_weights(len(names), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = (weights @ sums) / (weights @ counts)
    scored = len(set(index[kept].tolist()))
    return Statistic(float(sums.sum() / counts.sum()), draws, scored, int(kept.sum()))


@dataclass(frozen=True)
class Difference:
    """One codec minus another, over seeds and units.

    Attributes:
        value: mean over seeds; NaN without a value.
        low: lower end of the 95 % interval; NaN where there is none.
        high: upper end.
        units: fewest units of any seed.
        seeds: how many.
        by_seed: the difference of each seed.
        spread_units: variance of `value` from units alone.
        spread_seeds: variance from seeds; NaN with one.
        verdict: of the first codec: `better`, `worse`, `no difference shown`, `not decidable`, or "" for a metric that
            gives none.
        why: why not decidable.
        needed: what would change it, in words.
    """

    value: float
    low: float
    high: float
    units: int
    seeds: int
    by_seed: list[float]
    spread_units: float
    spread_seeds: float
    verdict: str = ""
    why: str = ""
    needed: str = ""

    @property
    def half_width(self) -> float:
        """Of a normal interval with the same spread."""
        return Z_LEVEL * math.sqrt(self.variance)

    @property
    def variance(self) -> float:
        """Of `value`."""
        return self.spread_units + (0.0 if math.isnan(self.spread_seeds) else self.spread_seeds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not a number is None."""
        return {name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in asdict(self).items()}  # fmt: skip


def difference(one: Sequence[Statistic], other: Sequence[Statistic], seed: int = 0) -> Difference:
    """The paired difference of two codecs.

    Args:
        one: statistic of each seed.
        other: of the same seeds in the same order, drawn over the same units.
        seed: of the draws of seeds.
    """
    if len(one) != len(other) or not one:
        raise ValueError(f"{len(one)} and {len(other)} seeds cannot be paired")
    by_seed = np.array([a.value - b.value for a, b in zip(one, other, strict=True)])
    draws = np.stack([a.draws - b.draws for a, b in zip(one, other, strict=True)], axis=1)  # (DRAWS, S)
    seeds, units = len(by_seed), min(min(a.units, b.units) for a, b in zip(one, other, strict=True))
    spread_units = float(np.nanvar(draws.mean(axis=1))) if units > 1 else math.nan
    spread_seeds = float(by_seed.var(ddof=1) / seeds) if seeds > 1 else math.nan
    value = float(by_seed.mean())
    low = high = math.nan
    if units > 1 and not math.isnan(value):
        low, high = percentiles((draws * seed_weights(seeds, seed)).sum(axis=1))
    return Difference(value, low, high, units, seeds, by_seed.tolist(), spread_units, spread_seeds)


def seed_weights(seeds: int, seed: int = 0) -> np.ndarray:
    """(DRAWS, S): weight of each training seed in each draw; rows sum to 1."""
    if seeds == 1:
        return np.ones((DRAWS, 1))
    rng = np.random.default_rng(derive_seed(seed, "seeds", seeds))
    return rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=DRAWS) / (seeds - 1)


def judge(found: Difference, metric: Metric, doubt: str = "", unit: str = "unit") -> Difference:
    """A difference with its verdict, from the first codec's side, and with what would change it.

    Args:
        found: of `difference`.
        metric: what it is of.
        doubt: why the figure may give no verdict; "" if it may.
        unit: what a unit is called.
    """
    if metric.lower_is_better is None:
        return found
    if math.isnan(found.value) or math.isnan(found.low):
        return replace(found, verdict=UNDECIDABLE, why=doubt or "there is nothing to compare")
    needed = what_it_takes(found, metric, unit)
    if doubt:
        return replace(found, verdict=UNDECIDABLE, why=doubt)
    if found.units < LEAST_UNITS:
        few = f"{found.units} {unit}s, fewer than {LEAST_UNITS}"
        return replace(found, verdict=UNDECIDABLE, why=few, needed=needed)
    if found.low <= 0 <= found.high:
        return replace(found, verdict=SAME, needed=needed)
    verdict = "better" if (found.value < 0) == metric.lower_is_better else "worse"
    one = "one training seed: it is of these trainings alone" if found.seeds == 1 else ""
    return replace(found, verdict=verdict, needed=one)


def what_it_takes(found: Difference, metric: Metric, unit: str = "unit") -> str:
    """How many units, or seeds, would show the observed difference in four of five repetitions, were it the true one.

    The variance of a mean over U units falls as 1 / U, that over S seeds as 1 / S.
    """
    show = metric.scale
    smallest = (Z_LEVEL + Z_POWER) * math.sqrt(found.variance)
    seen = f"a difference of {show * smallest:{metric.format}} would mostly be seen"
    fewest = f"at least {LEAST_UNITS} {unit}s" if found.units < LEAST_UNITS else ""
    if found.value == 0 or found.variance == 0:
        return fewest or f"as it stands, {seen}"
    wanted = (found.value / (Z_LEVEL + Z_POWER)) ** 2
    of_seeds = 0.0 if math.isnan(found.spread_seeds) else found.spread_seeds
    parts = []
    if wanted > of_seeds:
        units = max(LEAST_UNITS, math.ceil(found.units * found.spread_units / (wanted - of_seeds)))
        if units <= MOST_NEEDED:
            parts.append(f"about {units} {unit}s" + (f" with these {found.seeds} seeds" if found.seeds > 1 else ""))
    if found.seeds > 1 and wanted > found.spread_units:
        seeds = max(2, math.ceil(found.seeds * of_seeds / (wanted - found.spread_units)))
        if seeds <= MOST_NEEDED:
            parts.append(f"about {seeds} seeds with these {found.units} {unit}s")
    elif found.seeds > 1:
        factor = math.ceil(found.variance / wanted)
        if factor * found.units <= MOST_NEEDED:
            parts.append(f"{factor} times as many {unit}s and seeds")
    text = ", or ".join(dict.fromkeys(parts)) or "more than can be estimated"
    lone = "; more seeds would tell how much trainings differ" if found.seeds == 1 else ""
    return f"to show {show * found.value:+{metric.format}}: {text}{lone}; as it stands, {seen}"


def overall(judged: Sequence[Difference], labels: Sequence[str]) -> tuple[str, str]:
    """One verdict from the primary metrics, and why it is that.

    The first that can be decided counts, unless another says the opposite.
    """
    decided = [(one.verdict, label) for one, label in zip(judged, labels, strict=True)
               if one.verdict in ("better", "worse")]  # fmt: skip
    if len({verdict for verdict, _ in decided}) > 1:
        return UNDECIDABLE, "; ".join(f"{verdict} by {label}" for verdict, label in decided)
    if decided:
        return decided[0][0], f"by {' and '.join(label for _, label in decided)}"
    shown = [label for one, label in zip(judged, labels, strict=True) if one.verdict == SAME]
    if shown:
        return SAME, f"by {' or '.join(shown)}"
    reasons = dict.fromkeys(one.why for one in judged if one.why)
    return UNDECIDABLE, "; ".join(reasons) or "there is nothing to compare"
