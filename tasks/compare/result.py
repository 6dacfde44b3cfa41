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
    groups = {codec: [by_key[codec, number] for number in seeds] for codec in codecs}
    metrics = METRICS[task]
    first = found[0]
    warnings = _warnings(groups, metrics, seed)
    lost = _lost(groups, seed)
    pairs = [_pair(codecs[0], other, groups, lost, seed) for other in codecs[1:]]
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
        "rows": _rows(groups, metrics, seed),
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


def _statistics(group: Sequence[Replication], metric: str, system: str, seed: int) -> list[Statistic] | None:
    found = [statistic(one, metric, system, seed) for one in group]
    return None if any(one is None for one in found) else found  # type: ignore[return-value]


def _rows(groups: dict[str, list[Replication]], metrics: Sequence[Metric], seed: int) -> list[dict[str, Any]]:
    rows = []
    for codec, group in groups.items():
        rows += [_row(codec, system, group, metrics, seed) for system in SYSTEMS]
    any_group = next(iter(groups.values()))
    rows += [_row("", system, any_group, metrics, seed) for system in COMMON]
    return [row for row in rows if row["figures"]]


def _row(codec: str, system: str, group: Sequence[Replication], metrics: Sequence[Metric], seed: int) -> dict[str, Any]:
    figures = {}
    for metric in metrics:
        statistics = _statistics(group, metric.name, system, seed)
        if statistics:
            figures[metric.name] = estimate(statistics, seed).to_dict()
        elif metric.name == "bits_per_s" and system == MODEL and group[0].facts.get("bits_per_s") is not None:
            values = [one.facts["bits_per_s"] for one in group]  # of the dev split: no items
            figures[metric.name] = {"value": float(np.mean(values)), "low": None, "high": None, "by_seed": values}
    return {"codec": codec, "system": system, "figures": figures}


def _pair(
    one: str, other: str, groups: dict[str, list[Replication]], lost: dict[str, str], seed: int
) -> dict[str, Any]:
    task = groups[one][0].task
    unit = UNIT_KINDS[task]
    judged: dict[str, Difference] = {}
    labels: dict[str, str] = {}
    for metric in METRICS[task]:
        sides = [_statistics(groups[name], metric.name, MODEL, seed) for name in (one, other)]
        if sides[0] is None or sides[1] is None:
            continue
        doubt = doubt_of([*groups[one], *groups[other]], metric.name)
        judged[metric.name] = judge(difference(sides[0], sides[1], seed), metric, doubt, unit)
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


def _lost(groups: dict[str, list[Replication]], seed: int) -> dict[str, str]:
    """Codecs whose model is not shown to beat its own controls by any primary metric -> what tells so."""
    lost = {}
    for codec, group in groups.items():
        reasons, beats = [], False
        for metric in (one for one in METRICS[group[0].task] if one.name in PRIMARY[group[0].task]):
            model = _statistics(group, metric.name, MODEL, seed)
            for system in MUST_BEAT[group[0].task]:
                anchor = _statistics(group, metric.name, system, seed)
                if model is None or anchor is None:
                    continue
                found = difference(model, anchor, seed)
                sign = 1 if metric.lower_is_better else -1
                worst = max(sign * found.low, sign * found.high)
                if math.isnan(worst) or worst >= 0:
                    reasons.append(f"{metric.label} of {codec} is not shown to be better than {system}")
                    break
            else:
                beats = beats or model is not None
        if reasons and not beats:
            lost[codec] = "; ".join(reasons)
    return lost


def _warnings(groups: dict[str, list[Replication]], metrics: Sequence[Metric], seed: int) -> list[str]:
    """What a reader must know: models that did not learn, seconds of audio that differ, one seed."""
    warnings = [f"note: {why}" for why in _lost(groups, seed).values()]
    seen = {codec: float(np.mean([one.facts["audio_s"] for one in group])) for codec, group in groups.items()
            if all(one.facts.get("audio_s") for one in group)}  # fmt: skip
    if seen and max(seen.values()) > 1.02 * min(seen.values()):
        told = ", ".join(f"{codec} {value:.0f} s" for codec, value in seen.items())
        warnings.append(f"the models saw different amounts of audio: {told}")
    if len(next(iter(groups.values()))) == 1:
        warnings.append("one training seed: intervals are over units alone; --seeds 0 1 2 tells how trainings differ")
    return warnings
