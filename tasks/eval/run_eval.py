"""`eval run`: rows in, figures with intervals, paired differences and verdicts out.

Everything in a result is plain values. What could not be read or judged is listed; a verdict is withheld where a judge
shares ancestry with what it judges, has heard the tested speakers or recordings, or a recogniser errs on more than 10 %
of the words of real recordings.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.tasks.eval.ancestry import Origin, has_heard, same_family, shared
from xcodec_lm.tasks.eval.hearing import PAIR_RATE, Source, common_lag, describe, hear, plugin_of
from xcodec_lm.tasks.eval.intervals import Estimate
from xcodec_lm.tasks.eval.metric_table import parse_metrics
from xcodec_lm.tasks.eval.pairs import ANCHORS, TRUTH, Pairs
from xcodec_lm.tasks.eval.plan import Material, choose
from xcodec_lm.tasks.eval.row_scores import Column, Failures, is_silent_row, row_columns
from xcodec_lm.tasks.eval.set_scores import SetFigure, set_figures
from xcodec_lm.tasks.eval.wer import NORMALISATION

MOST_WER = 0.10
"""A recogniser that errs more on real recordings gives no verdict."""
PACKAGES = ("xcodec-lm", "torch", "transformers", "numpy", "soxr", "jiwer", "pystoi", "pesq", "pocketsphinx",
            "Resemblyzer", "speechmos", "onnxruntime")  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        suite: a key of `metric_table.SUITES`.
        metrics: in place of the suite's; with or without brackets.
        sources: plug-ins that weights were given for.
        origins: what systems were made with.
        references: recordings that sets are compared with in place of `ref_audio`.
        cache: folder of what was heard.
        workers: processes.
        seed: of draws.
        device: of plug-ins that need no weights.
    """

    suite: str
    cache: Path
    metrics: tuple[str, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    references: tuple[Path, ...] = ()
    workers: int = 1
    seed: int = 0
    device: str = "cpu"


def run_eval(pairs: Pairs, request: Request) -> dict[str, Any]:
    """Measures pairs.

    Returns:
        `systems` (each with `figures`: label -> estimate), `differences`, `doubts` (plug-in -> why it gives no
        verdict), `not_measured` (metric -> why), `failures`, `items`, `plugins`, `notes`, `settings`.

    Raises:
        UsageError: nothing can be measured, or a metric that was asked for cannot.
        XcodecLMError: a plug-in cannot be loaded.
    """
    wanted = parse_metrics(request.suite, request.metrics)
    sources = dict(request.sources)
    parts, missing = choose(wanted, sources, pairs, bool(request.references), request.device)
    used = {name: source for name, source in sources.items() if name in {part.inside for part in parts}}
    plugin_of.cache_clear()  # a folder may hold other weights than at the last call
    for source in used.values():
        plugin_of(source)  # what cannot be loaded is said before hours of work
    pairwise = any(part.metric.kind is None for part in parts)
    lags = {name: _lag(pairs, name) for name in pairs.systems if name != TRUTH} if pairwise else {}
    material = Material(pairs, parts, used, request.references, lags)
    material.fill(hear(material.jobs, request.cache, request.workers))
    failures: Failures = _unread(material)
    columns = {
        name: {column.label: column for part in parts if part.metric.scope == "row"
               for column in row_columns(part, name, material, failures)}
        for name in pairs.systems
    }  # fmt: skip
    sets = {part.label: set_figures(part, material, request.seed) for part in parts if part.metric.scope == "set"}
    doubts = _doubts(material, used, request.origins, columns)
    silent = {name: sum(is_silent_row(material, row) for row in pairs.of(name)) for name in pairs.systems}
    data = {
        "suite": request.suite,
        "rows": len(pairs.ids),
        "unit": pairs.unit,
        "units": len({row.unit for row in pairs.of(pairs.systems[0])}),
        "seed": request.seed,
        "systems": [_system(name, material, columns[name], sets, silent[name], failures, request.seed)
                    for name in pairs.systems],
        "differences": _differences(material, columns, sets, doubts, silent, request.seed),
        "doubts": doubts,
        "not_measured": missing,
        "notes": [*pairs.notes, *_set_notes(sets), *_kin(used, request.origins)],
        "plugins": describe(used),
        "settings": _settings(),
        "failures": failures,
        "items": _items(material, columns),
    }  # fmt: skip
    return data


def write_results(data: dict[str, Any], out: Path) -> None:
    """Writes results.json, items.jsonl and failed.jsonl (empty where nothing failed).

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    whole = {key: value for key, value in data.items() if key not in ("items", "failures")}
    texts = {
        "results.json": json.dumps(whole, indent=1, ensure_ascii=False, default=str) + "\n",
        "items.jsonl": _json_lines(data["items"]),
        "failed.jsonl": _json_lines(data["failures"]),
    }
    writers = {name: lambda path, text=text: path.write_text(text, encoding="utf-8") for name, text in texts.items()}
    write_files(out, writers)


# ------------------------------------------------------------------ systems


def _system(
    name: str, material: Material, columns: Mapping[str, Column], sets: Mapping[str, Mapping[str, SetFigure]],
    silent: int, failures: Failures, seed: int,
) -> dict[str, Any]:  # fmt: skip
    units = [row.unit for row in material.pairs.of(name)]
    figures: dict[str, Any] = {}
    for label, column in columns.items():
        figures[label] = {
            **column.estimate(units, seed).to_dict(), "failed": column.failed,
            "lower_is_better": column.lower_is_better, **column.about,
        }  # fmt: skip
    for label, by_system in sets.items():
        if name in by_system:
            figures[label] = _set_figure(by_system[name])
    return {
        "system": name,
        "anchor": name in ANCHORS,
        "failed": len({row["id"] for row in failures if row["system"] == name and not row["metric"]}),
        "silent": silent,
        "lag_samples": material.lags.get(name),
        "figures": figures,
    }


def _set_figure(figure: SetFigure) -> dict[str, Any]:
    if figure.drawn is not None:
        plain = figure.drawn.estimate().to_dict()
    else:
        plain = {"value": figure.value, "low": None, "high": None}
    return plain | {"lower_is_better": figure.lower_is_better, **figure.about, "notes": figure.notes}


def _lag(pairs: Pairs, system: str) -> int:
    lag = common_lag(
        (row.audio, row.fields["ref_audio"]) for row in pairs.of(system) if row.audio and row.fields.get("ref_audio")
    )
    if lag:
        say(f"note: {system} is {lag} samples at {PAIR_RATE} Hz late; that is taken out before comparing")
    return lag


def _unread(material: Material) -> Failures:
    """Rows whose recording is missing or cannot be read; the ground truth's are listed as what they are."""
    failures: Failures = []
    for system in material.pairs.systems:
        for row in material.pairs.of(system):
            if error := material.heard(row).error:
                failures.append({"id": row.id, "system": system, "metric": "", "why": error})
    for path in material.unpaired:
        if error := material.reference(path).error:
            failures.append({"id": path.name, "system": "references", "metric": "", "why": error})
    return failures


def _set_notes(sets: Mapping[str, Mapping[str, SetFigure]]) -> list[str]:
    notes = [f"{label}: {note}" for label, found in sets.items() for one in found.values() for note in one.notes]
    return list(dict.fromkeys(notes))


def _kin(used: Mapping[str, Source], origins: Mapping[str, Origin]) -> list[str]:
    told = (same_family(name, plugin_of(source).ancestry, origins) for name, source in used.items())
    return [note for note in told if note]


# ------------------------------------------------------------------ verdicts


def _doubts(
    material: Material, used: Mapping[str, Source], origins: Mapping[str, Origin],
    columns: Mapping[str, Mapping[str, Column]],
) -> dict[str, str]:  # fmt: skip
    """Plug-in -> why it gives no verdict."""
    doubts: dict[str, str] = {}
    tested = [row.fields for row in material.pairs.of(material.pairs.systems[0])]
    for name, source in used.items():
        plugin = plugin_of(source)
        why = shared(name, plugin.fingerprint, plugin.ancestry, origins)
        if not why and (heard := has_heard(plugin.ancestry, tested)):
            why = f"{name} {heard}"
        if why:
            doubts[name] = why
    for part in material.parts:
        if part.metric.kind != "transcriber" or part.inside in doubts:
            continue
        truth = columns.get(TRUTH, {}).get(part.label)
        if truth is None:
            doubts[part.inside] = f"{part.inside} was not heard on ground truth: its error rate there is not known"
            continue
        rate = truth.estimate([row.unit for row in material.pairs.of(TRUTH)], 0).value
        if not rate <= MOST_WER:
            doubts[part.inside] = f"{part.inside} errs on {rate:.1%} of the ground truth ({part.label})"
    return doubts


def _differences(
    material: Material, columns: Mapping[str, Mapping[str, Column]], sets: Mapping[str, Mapping[str, SetFigure]],
    doubts: Mapping[str, str], silent: Mapping[str, int], seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """The first system against each other one, and every system against every anchor."""
    pairs = material.pairs
    named = pairs.contestants
    compared = [(named[0], other) for other in named[1:]] if named else []
    compared += [(one, anchor) for one in named for anchor in ANCHORS if anchor in pairs.systems]
    by_label = {part.label: part.inside for part in material.parts}
    rows: list[dict[str, Any]] = []
    for one, other in compared:
        units = [row.unit for row in pairs.of(one)]
        for label, column in columns[one].items():
            if label in columns[other] and column.lower_is_better is not None:
                found = column.minus(columns[other][label], units, seed)
                inside = by_label.get(label) or label.partition("[")[2].rstrip("]")
                rows.append(_difference(label, one, other, found, column.lower_is_better, doubts.get(inside, "")))
        for label, by_system in sets.items():
            a, b = by_system.get(one), by_system.get(other)
            if a is None or b is None or a.drawn is None or b.drawn is None or a.lower_is_better is None:
                continue
            quiet = [name for name in (one, other) if silent[name] == len(pairs.ids)]
            why = doubts.get(by_label[label], "")
            if quiet and not why:
                why = f"everything that {quiet[0]} made is silent"
            rows.append(_difference(label, one, other, a.drawn.minus(b.drawn), a.lower_is_better, why))
    return rows


def _difference(label: str, one: str, other: str, found: Estimate, lower_is_better: bool, doubt: str) -> dict[str, Any]:
    verdict = f"withheld: {doubt}" if doubt else found.verdict(lower_is_better)
    return {"metric": label, "a": one, "b": other, "difference": found.to_dict(), "verdict": verdict}


# ------------------------------------------------------------------ rows and settings


def _items(material: Material, columns: Mapping[str, Mapping[str, Column]]) -> list[dict[str, Any]]:
    items = []
    per_row = {
        name: {label: column.row_values() for label, column in by_label.items()} for name, by_label in columns.items()
    }
    for place, name in enumerate(material.pairs.ids):
        for system in material.pairs.systems:
            row = material.pairs.rows[system, name]
            values = {label: float(value[place]) for label, value in per_row[system].items()}
            item: dict[str, Any] = {"id": name, "system": system, "unit": row.unit}
            item |= {key: row.fields[key] for key in ("text", "caption", "label") if key in row.fields}
            item["values"] = {label: None if value != value else value for label, value in values.items()}
            for label, column in columns[system].items():
                if place in column.details:
                    item.setdefault("details", {})[label] = column.details[place]
            items.append(item)
    return items


def _settings() -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"normalisation": NORMALISATION, "pair_rate": PAIR_RATE, "resampler": "soxr HQ", "versions": versions}


def _json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
