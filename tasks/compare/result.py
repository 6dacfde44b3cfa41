"""From replications to the result of a comparison: figures with intervals, anchors, differences, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcodec_lm.tasks.compare.metrics import METRICS, PRIMARY, doubt_of, statistic
from xcodec_lm.tasks.compare.replication import (
    FIRST_BOOK,
    MODEL,
    NOISE,
    RESYNTHESIS,
    SHUFFLED,
    TRAINING,
    TRUTH,
    UNIT_KINDS,
    UNTRAINED,
    Replication,
    Task,
)
from xcodec_lm.tasks.compare.verdict import Difference, Metric, Statistic, difference, judge, overall
from xcodec_lm.tasks.eval.intervals import DRAWS, UNDECIDABLE

SYSTEMS = (MODEL, FIRST_BOOK, RESYNTHESIS, SHUFFLED, "shuffled codes", UNTRAINED, "unigram", "bigram")
"""Of each codec, in the order of tables."""
MUST_BEAT = {"tts": (SHUFFLED, UNTRAINED), "music": (UNTRAINED,), "sound": (SHUFFLED, UNTRAINED)}
"""Controls that a model must be shown to beat before models are compared. Not shuffled codes of the very recordings,
whose texture is partly theirs."""
COMMON = (TRUTH, TRAINING, NOISE)
"""The same for all codecs."""


class Figures:
    """The statistics of all replications, each computed once.

    Args:
        groups: codec -> replications, one a seed, in the same order for every codec.
        seed: of the draws.
    """

    def __init__(self, groups: dict[str, list[Replication]], seed: int = 0):
        self.groups, self.seed = groups, seed
        self.task: Task = next(iter(groups.values()))[0].task
        self._known: dict[tuple[str, str, str], list[Statistic] | None] = {}

    def of(self, codec: str, metric: str, system: str = MODEL) -> list[Statistic] | None:
        """A figure of a system by seed; None where a seed lacks it."""
        key = (codec, metric, system)
        if key not in self._known:
            found = [statistic(one, metric, system, self.seed) for one in self.groups[codec]]
            self._known[key] = None if any(one is None for one in found) else found  # type: ignore[assignment]
        return self._known[key]


def judge_all(found: Sequence[Replication], data: Sequence[str] = (), seed: int = 0) -> dict[str, Any]:
    """The result of a comparison as plain values.

    Args:
        found: replications of one task, every codec with every seed.
        data: manifests, for the record; none for a synthetic corpus.
        seed: of the intervals.

    Returns:
        `task`, `size`, `codecs`, `seeds`, `unit`, `units`, `items`, `metrics`, `rows` (codec, system, metric ->
        estimate), `pairs` (a, b, metric -> difference with verdict, `verdict`, `why`, `sentence`), `warnings`,
        `facts` of every replication.

    Raises:
        ValueError: a codec lacks a seed.
    """
    task = found[0].task
    codecs = list(dict.fromkeys(one.codec for one in found))
    seeds = list(dict.fromkeys(one.seed for one in found))
    by_key = {(one.codec, one.seed): one for one in found}
    if len(by_key) != len(codecs) * len(seeds):
        raise ValueError("every codec needs every seed")
    figures = Figures({codec: [by_key[codec, number] for number in seeds] for codec in codecs}, seed)
    metrics = METRICS[task]
    first = found[0]
    lost = _lost(figures)
    warnings = _warnings(figures, lost)
    pairs = [_pair(codecs[0], other, figures, lost) for other in codecs[1:]]
    if len(pairs) > 1:
        warnings.append(f"{len(pairs)} comparisons: each interval holds with 95 % by itself, not all together")
    return {
        "task": task,
        "size": first.size,
        "data": list(data) or "synthetic corpus of data synth",
        "codecs": codecs,
        "seeds": seeds,
        "unit": UNIT_KINDS[task],
        "units": len({item["unit"] for item in first.of(MODEL)}),
        "items": len({item["id"] for item in first.of(MODEL)}),
        "metrics": [
            {"name": one.name, "label": _label(one, first), "lower_is_better": one.lower_is_better, "scale": one.scale,
             "format": one.format, "primary": one.name in PRIMARY[task]}
            for one in metrics
        ],
        "rows": _rows(figures, metrics),
        "pairs": pairs,
        "warnings": warnings,
        "doubts": {name: why for name in dict.fromkeys(one.name for one in metrics)
                   if (why := doubt_of(found, name))},
        "judges": first.result.get("judges") or "texture: no trained judge",
        "facts": [one.facts for one in found],
    }  # fmt: skip


def estimate(statistics: Sequence[Statistic], seed: int = 0) -> Difference:
    """The mean of a figure over seeds, with the interval over units and seeds."""
    nothing = Statistic(0.0, np.zeros(DRAWS), max(one.units for one in statistics), 0)
    return difference(statistics, [nothing] * len(statistics), seed)


def _label(metric: Metric, first: Replication) -> str:
    """The name of a metric with that of who measured it."""
    judges = first.result.get("judges") or {}
    if metric.name == "wer":
        return f"WER[{judges.get('recogniser') or 'nobody'}] in %"
    if metric.name == "similarity":
        return f"likeness of the voice[{judges.get('voices') or 'nobody'}]"
    if metric.name == "clap":
        return f"CLAP score[{judges.get('clap') or 'none'}]"
    if first.task == "sound" and metric.name in ("frechet", "kid"):
        return f"{metric.label}[{judges.get('features', 'class')}]"
    return metric.label


def _rows(figures: Figures, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    rows = [_row(codec, codec, system, figures, metrics) for codec in figures.groups for system in SYSTEMS]
    any_codec = next(iter(figures.groups))
    rows += [_row("", any_codec, system, figures, metrics) for system in COMMON]
    return [row for row in rows if row["figures"]]


def _row(shown: str, codec: str, system: str, figures: Figures, metrics: Sequence[Metric]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    facts = [one.facts for one in figures.groups[codec]]
    for metric in metrics:
        statistics = figures.of(codec, metric.name, system)
        if statistics:
            found[metric.name] = estimate(statistics, figures.seed).to_dict()
        elif metric.name == "bits_per_s" and system == MODEL and facts[0].get("bits_per_s") is not None:
            values = [one["bits_per_s"] for one in facts]  # of the dev split: no items
            found[metric.name] = {"value": float(np.mean(values)), "low": None, "high": None, "by_seed": values}
    return {"codec": shown, "system": system, "figures": found}


def _pair(one: str, other: str, figures: Figures, lost: dict[str, str]) -> dict[str, Any]:
    task, groups = figures.task, figures.groups
    judged: dict[str, Difference] = {}
    labels: dict[str, str] = {}
    for metric in METRICS[task]:
        mine, theirs = (figures.of(name, metric.name) for name in (one, other))
        if mine is None or theirs is None:
            continue
        doubt = doubt_of([*groups[one], *groups[other]], metric.name)
        judged[metric.name] = judge(difference(mine, theirs, figures.seed), metric, doubt, UNIT_KINDS[task])
        labels[metric.name] = _label(metric, groups[one][0])
    primary = [name for name in PRIMARY[task] if name in judged]
    verdict, why = overall([judged[name] for name in primary], [labels[name] for name in primary])
    if one in lost and other in lost and verdict != UNDECIDABLE:
        verdict, why = UNDECIDABLE, f"neither model has learnt enough to be compared: {lost[one]}"
    seeds = [replication.seed for replication in groups[one]]
    return {
        "a": one, "b": other, "metrics": {name: found.to_dict() for name, found in judged.items()},
        "verdict": verdict, "why": why, "sentence": sentence(task, one, other, verdict, why, seeds),
        "needed": next((judged[name].needed for name in primary if judged[name].needed), ""),
    }  # fmt: skip


def sentence(task: str, one: str, other: str, verdict: str, why: str, seeds: Sequence[int]) -> str:
    """The verdict in words."""
    lone = f"; one training seed, {seeds[0]}: of these trainings alone" if len(seeds) == 1 else ""
    if verdict in ("better", "worse"):
        return f"{one} makes this {task} model {verdict} than {other} does, {why}{lone}"
    return f"{one} against {other}: {verdict} ({why})"


def _lost(figures: Figures) -> dict[str, str]:
    """Codecs whose model is not shown to beat its own controls by any primary metric -> what tells so."""
    lost = {}
    for codec in figures.groups:
        reasons, beats = [], False
        for metric in (one for one in METRICS[figures.task] if one.name in PRIMARY[figures.task]):
            model = figures.of(codec, metric.name)
            if model is None:
                continue
            for system in MUST_BEAT[figures.task]:
                anchor = figures.of(codec, metric.name, system)
                if anchor is None:
                    continue
                found = difference(model, anchor, figures.seed)
                worst = found.high if metric.lower_is_better else -found.low
                if math.isnan(worst) or worst >= 0:
                    reasons.append(f"{metric.label} of {codec} is not shown to be better than {system}")
                    break
            else:
                beats = True
        if reasons and not beats:
            lost[codec] = "; ".join(reasons)
    return lost


def _warnings(figures: Figures, lost: dict[str, str]) -> list[str]:
    """What a reader must know: models that did not learn, seconds of audio that differ, one seed."""
    groups = figures.groups
    warnings = [f"note: {why}" for why in lost.values()]
    seen = {codec: float(np.mean([one.facts["audio_s"] for one in group])) for codec, group in groups.items()
            if all(one.facts.get("audio_s") for one in group)}  # fmt: skip
    if seen and max(seen.values()) > 1.02 * min(seen.values()):
        told = ", ".join(f"{codec} {value:.0f} s" for codec, value in seen.items())
        warnings.append(f"the models saw different amounts of audio: {told}")
    if len(next(iter(groups.values()))) == 1:
        warnings.append("one training seed: intervals are over units alone; --seeds 0 1 2 tells how trainings differ")
    return warnings
