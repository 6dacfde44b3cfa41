"""Which figures a task has, and how each becomes a statistic of one replication."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xcodec_lm.tasks.compare.replication import MODEL, TRAINING, TRUTH, Replication, Task
from xcodec_lm.tasks.compare.verdict import Metric, Statistic, ratio_statistic
from xcodec_lm.tasks.eval.frechet import Projection
from xcodec_lm.tasks.eval.set_distances import dims_for, frechet_drawn, kid_drawn

METRICS: dict[Task, tuple[Metric, ...]] = {
    "tts": (
        Metric("wer", "WER in %", True, 100, ".1f"),
        Metric("similarity", "likeness of the voice", False),
        Metric("bits_per_s", "bits per second (dev)", None, 1, ".1f"),
    ),
    "music": (
        Metric("frechet", "Frechet distance [texture]", True, 1, ".2f"),
        Metric("kid", "KID [texture]", True),
        Metric("bits_per_s", "bits per second", None, 1, ".1f"),
    ),
    "sound": (
        Metric("class", "class agreement in %", False, 100, ".1f"),
        Metric("clap", "CLAP score", False),
        Metric("frechet", "Frechet distance", True, 1, ".2f"),
        Metric("kid", "KID", True),
        Metric("bits_per_s", "bits per second (dev)", None, 1, ".1f"),
    ),
}
"""In the order of tables. Bits per second are shown beside the rest and never a verdict: a codec that says little has
the fewest."""
PRIMARY: dict[Task, tuple[str, ...]] = {"tts": ("wer",), "music": ("frechet", "kid"), "sound": ("class", "clap")}
"""What the verdict as a whole goes by."""


def statistic(found: Replication, metric: str, system: str = MODEL, seed: int = 0) -> Statistic | None:
    """A figure of one system; None where it was not measured.

    Args:
        found: the replication.
        metric: a name of `METRICS`.
        system: whose.
        seed: of the draws over units, the same for all that is compared.
    """
    if metric in ("frechet", "kid"):
        return _set_statistic(found, metric, system, seed)
    items = found.of(system)
    if metric == "wer":
        heard = [item for item in items if "errors" in item]
        return _ratio(heard, "errors", [item["words"] for item in heard], seed) if heard else None
    if not any(metric in item for item in items):
        return None
    return _ratio(items, metric, [1.0] * len(items), seed)


def _ratio(items: Sequence[dict], name: str, below: Sequence[float], seed: int) -> Statistic:
    # Sorted, so that draws pair the same units whatever order a codec's items have.
    return ratio_statistic([item.get(name, np.nan) for item in items], below, [item["unit"] for item in items], seed)


def _set_statistic(found: Replication, metric: str, system: str, seed: int) -> Statistic | None:
    if system not in found.features or TRUTH not in found.features or system in (TRUTH, TRAINING):
        return None
    units = found.feature_units
    if len(units) < 3:
        return None
    project = Projection.fit(found.features[TRAINING].astype(np.float64), dims_for(len(units)))
    made, real = (project(found.features[name].astype(np.float64)) for name in (system, TRUTH))
    drawn = (frechet_drawn if metric == "frechet" else kid_drawn)([made], real, units, seed)
    return Statistic(drawn.value, drawn.draws, drawn.units, drawn.rows)


def doubt_of(replications: Sequence[Replication], metric: str) -> str:
    """Why the figures of a metric give no verdict; "" if all of them may."""
    return next((one.doubts[metric] for one in replications if one.doubts.get(metric)), "")
