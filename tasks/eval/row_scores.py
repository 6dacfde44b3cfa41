"""From what was heard to a figure for each row: word errors, likeness, opinions, classes, captions, distances.

A row whose recording is missing or broken counts as bad as can be where a metric has such a value (all words deleted,
likeness 0); elsewhere it is not in the mean and its number stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcodec_lm.tasks.eval.clap_score import clap_score, retrieval, shuffled_score
from xcodec_lm.tasks.eval.hearing import Values, plugin_of
from xcodec_lm.tasks.eval.intervals import Estimate, mean_estimate
from xcodec_lm.tasks.eval.judge_audio import SILENT_RMS
from xcodec_lm.tasks.eval.kl import kl_sigmoid, kl_softmax
from xcodec_lm.tasks.eval.pairs import TRUTH, Row
from xcodec_lm.tasks.eval.plan import Material, Part
from xcodec_lm.tasks.eval.wer import Pair, character_counts, normalise, ratio_estimate, word_counts

MOST_RETRIEVED = 5000
"""Rows up to which captions look for their sounds; the time grows with the square."""


@dataclass
class Column:
    """One figure of all rows of a system.

    Attributes:
        label: its name.
        lower_is_better: None for information.
        values: (N,); NaN where a row has none. For a rate, what is above the line.
        below: (N,) what is below the line of a rate; None for a mean.
        failed: rows whose recording was missing or broken.
        about: more of the whole system: baselines, retrieval.
        details: row number -> more of a row.
    """

    label: str
    lower_is_better: bool | None
    values: np.ndarray
    below: np.ndarray | None = None
    failed: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    details: dict[int, dict[str, Any]] = field(default_factory=dict)

    def row_values(self) -> np.ndarray:
        """(N,) the figure of each row."""
        return self.values if self.below is None else self.values / np.where(self.below > 0, self.below, np.nan)

    def estimate(self, units: list[str], seed: int) -> Estimate:
        """The figure with its interval over units."""
        if self.below is None:
            return mean_estimate(self.values, units, seed)
        kept = np.flatnonzero(~np.isnan(self.values))
        found = ratio_estimate(self.values[kept].tolist(), self.below[kept].tolist(), [units[i] for i in kept], seed)
        return Estimate(found.value, found.low, found.high, found.units, found.scored, len(self.values) - len(kept))

    def minus(self, other: Column, units: list[str], seed: int) -> Estimate:
        """The paired difference to another system's, over rows that both have."""
        if self.below is None:
            return mean_estimate(self.values - other.values, units, seed)
        return Column("", None, self.values - other.values, self.below).estimate(units, seed)


Failures = list[dict[str, Any]]


def row_columns(part: Part, system: str, material: Material, failures: Failures) -> list[Column]:
    """The figures of a system's rows.

    Args:
        part: which metric and plug-in.
        system: whose rows.
        material: what was heard.
        failures: rows that a metric could not judge are added, with the reason.
    """
    if part.metric.kind is None and system == TRUTH:
        return []  # a recording is not compared with itself
    return _SCORERS[part.metric.kind or "signal"](part, material.pairs.of(system), material, failures)


def _words(part: Part, rows: list[Row], material: Material, failures: Failures) -> list[Column]:
    key = material.key(part, "transcript")
    values, below = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    details: dict[int, dict[str, Any]] = {}
    pairs: list[Pair] = []
    places: list[int] = []
    failed = empty = 0
    for place, row in enumerate(rows):
        text = row.fields.get("text") or ""
        if not normalise(text):
            _fail(failures, part, row, f"its text {text!r} has no words" if text else "it has no text")
            continue
        heard, missed = _value(material.heard(row), key, part, row, failures)
        failed += missed
        words = "" if heard is None else str(heard)
        empty += not words
        details[place] = {"heard": words}
        pairs.append(Pair(row.id, text, words, row.unit))
        places.append(place)
    count = word_counts if part.metric.name == "wer" else character_counts
    for place, found in zip(places, count(pairs), strict=True):
        values[place], below[place] = found.errors, found.length
    about: dict[str, Any] = {"empty": empty}
    if pairs:
        about["mean_of_rows"] = float(np.nanmean(values / below))
    return [Column(part.label, True, values, below, failed, about, details)]


def _voices(part: Part, rows: list[Row], material: Material, failures: Failures) -> list[Column]:
    key, other = material.key(part, "voice"), part.metric.needs[0]
    values = np.full(len(rows), np.nan)
    failed = 0
    for place, row in enumerate(rows):
        if row.path(other) is None:
            _fail(failures, part, row, f"it has no {other}")
            continue
        prompt, broken = _value(material.heard(row, other), key, part, row, failures, other)
        if broken:
            continue
        made, missed = _value(material.heard(row), key, part, row, failures)
        failed += missed
        values[place] = 0.0 if made is None or prompt is None else float(made @ prompt)
    return [Column(part.label, False, values, failed=failed)]


def _opinions(part: Part, rows: list[Row], material: Material, failures: Failures) -> list[Column]:
    key, names = material.key(part, "mos"), plugin_of(material.sources[part.inside]).scores
    table = np.full((len(rows), len(names)), np.nan)
    failed = 0
    for place, row in enumerate(rows):
        found, missed = _value(material.heard(row), key, part, row, failures)
        failed += missed
        if found is not None:
            table[place] = found
    name = part.metric.name
    labels = [f"{name if len(names) == 1 or score == name else f'{name}_{score}'}[{part.inside}]" for score in names]
    return [Column(label, False, table[:, index], failed=failed) for index, label in enumerate(labels)]


def _classes(part: Part, rows: list[Row], material: Material, failures: Failures) -> list[Column]:
    key, name = material.key(part, "logits"), part.metric.name
    values = np.full(len(rows), np.nan)
    known = tuple(getattr(plugin_of(material.sources[part.inside]), "classes", ()))
    failed = 0
    for place, row in enumerate(rows):
        if name != "class" and row.path("ref_audio") is None:
            _fail(failures, part, row, "it has no ref_audio")
            continue
        made, missed = _value(material.heard(row), key, part, row, failures)
        failed += missed
        if name == "class":
            label = row.fields.get("label")
            if label not in known:
                continue
            silent = is_silent_row(material, row)
            values[place] = 0.0 if made is None or silent else float(known[int(np.argmax(made))] == label)
            continue
        reference, broken = _value(material.heard(row, "ref_audio"), key, part, row, failures, "ref_audio")
        if made is not None and reference is not None and not broken:
            divergence = kl_softmax if name == "kl_softmax" else kl_sigmoid
            values[place] = divergence(made[None], reference[None])[0]
    return [Column(part.label, part.metric.lower_is_better, values, failed=failed)]


def _captions(part: Part, rows: list[Row], material: Material, failures: Failures) -> list[Column]:
    key = material.key(part, "caption")
    values = np.full(len(rows), np.nan)
    vectors: list[np.ndarray] = []
    places: list[int] = []
    failed = 0
    for place, row in enumerate(rows):
        if not str(row.fields.get("caption") or "").strip():
            _fail(failures, part, row, "it has no caption")
            continue
        found, missed = _value(material.heard(row), key, part, row, failures)
        failed += missed
        if found is not None and not is_silent_row(material, row):
            vectors.append(found)
            places.append(place)
    about: dict[str, Any] = {}
    if places:
        captions = [rows[place].fields["caption"] for place in places]
        unique = list(dict.fromkeys(captions))
        embedded = plugin_of(material.sources[part.inside]).embed_texts(unique).numpy()
        texts = embedded[[unique.index(caption) for caption in captions]]
        audio = np.stack(vectors)
        values[places] = clap_score(audio, texts)
        others = shuffled_score(audio, texts, captions)
        if not np.isnan(others).all():
            about["other_captions"] = float(np.nanmean(others))
        if len(places) <= MOST_RETRIEVED:
            about |= retrieval(audio, texts, captions)
    return [Column(part.label, False, values, failed=failed, about=about)]


def _signals(part: Part, rows: list[Row], material: Material, failures: Failures) -> list[Column]:
    values = np.full(len(rows), np.nan)
    failed = 0
    for place, row in enumerate(rows):
        if row.audio is not None and row.path("ref_audio") is None:
            _fail(failures, part, row, "it has no ref_audio")
            continue
        if material.heard(row).error:
            failed += 1
            continue
        found, missed = _value(material.measured(row), part.label, part, row, failures, "ref_audio")
        failed += missed
        if found is not None:
            values[place] = float(found)
    return [Column(part.label, part.metric.lower_is_better, values, failed=failed)]


_SCORERS: dict[str, Callable[[Part, list[Row], Material, Failures], list[Column]]] = {
    "transcriber": _words, "speaker": _voices, "mos": _opinions, "embedder": _classes, "clap": _captions,
    "signal": _signals,
}  # fmt: skip


def is_silent_row(material: Material, row: Row) -> bool:
    """Whether a row's recording is below -60 dBFS."""
    level = material.heard(row).get("level")
    return level is not None and float(level) < SILENT_RMS


def _value(
    values: Values, key: str, part: Part, row: Row, failures: Failures, what: str = "audio"
) -> tuple[np.ndarray | None, bool]:
    """A value, and whether it is missing. A recording that could not be read is listed once, by the caller's caller."""
    if values.error:
        if what != "audio":
            _fail(failures, part, row, f"{what}: {values.error}")
        return None, True
    if key in values.errors:
        _fail(failures, part, row, f"{what}: {values.errors[key]}")
        return None, True
    return values.get(key), False


def _fail(failures: Failures, part: Part, row: Row, why: str) -> None:
    failures.append({"id": row.id, "system": row.system, "metric": part.label, "why": why})
