"""Results as JSON of other commands, as sections: rows of figures, comparisons of codecs, tables made again.

Rows are the plainest of them, which any program can write:

    {"title": "...", "rows": [{"system": ..., "metric": ..., "value": ...}, ...],
     "ours": "X-Codec", "twin": "baseline",           a verdict table of these two (rows "difference" hold differences)
     "table": 3, "paper": {"X-Codec": {"FD": 12.66}},  a replica of one of the paper's tables
     "items": [{"id": ..., "errors": ..., "marks": [["equal", "a", "a"], ...]}], "best": {"errors": "lower"},
     "worst_first": "errors", "notes": ["..."]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcodec_lm.tasks.report.document import Block, Cell, Note, Section, Table, Text
from xcodec_lm.tasks.report.results import items_table, measure_of, paper_table, results_table, verdict_table

Row = dict[str, Any]


def of_rows(data: Mapping[str, Any], folder: Path) -> list[Section]:
    """Sections of a result that consists of rows; all other keys may be missing.

    Raises:
        ReportError: a row cannot be read.
    """
    rows, formats = data["rows"], data.get("formats")
    systems = {row.get("system") for row in rows if isinstance(row, Mapping)}
    ours, twin = data.get("ours", "ours"), data.get("twin", "twin")
    blocks: list[Block] = [Note(str(note)) for note in data.get("notes") or []]
    if {ours, twin} <= systems:
        blocks.append(verdict_table(rows, ours=ours, twin=twin, formats=formats))
    rows = [row for row in rows if not (isinstance(row, Mapping) and row.get("system") == "difference")]
    if data.get("table") and data.get("paper"):
        blocks.append(paper_table(data["table"], rows, data["paper"], str(data.get("title") or ""), formats=formats))
    else:
        blocks.append(results_table(rows, str(data.get("title") or "Figures"), formats))
    sections = [Section("Figures", blocks)]
    if data.get("items"):
        table = items_table(data["items"], "Every item", data.get("best"), formats, data.get("worst_first"))
        sections.append(Section("Every item", [table]))
    return sections


def of_comparison(data: Mapping[str, Any], folder: Path) -> list[Section]:
    """Sections of what `compare` wrote: a verdict table for each pair of codecs, and all figures."""
    metrics = {metric["name"]: metric for metric in data["metrics"]}
    formats = {metric["label"]: metric["format"] for metric in data["metrics"]}
    blocks: list[Block] = [Note(str(text), "warning") for text in data.get("warnings") or []]
    for pair in data["pairs"]:
        rows: list[Row] = []
        for name, found in pair["metrics"].items():
            metric = metrics[name]
            for codec, label in ((pair["a"], "a"), (pair["b"], "b")):
                model = next((row for row in data["rows"] if row["codec"] == codec), None)
                figure = (model or {"figures": {}})["figures"].get(name) or {}
                rows.append(_row(pair[label], metric, figure, data))
            verdict = found.get("verdict") or "shown, never a verdict"
            rows.append({**_row("difference", metric, found, data), "verdict": verdict})
        blocks.append(Text(f"{pair['sentence'][:1].upper()}{pair['sentence'][1:]}."))
        if pair.get("needed"):
            blocks.append(Text(f"What would change it: {pair['needed']}."))
        if rows:
            caption = f"{data['task']}: {pair['a']} against {pair['b']}"
            blocks.append(verdict_table(rows, caption, pair["a"], pair["b"], formats=formats))
    every = [
        _row(": ".join(part for part in (row["codec"], row["system"]) if part), metrics[name], figure, data)
        for row in data["rows"]
        for name, figure in row["figures"].items()
        if name in metrics
    ]
    return [Section("Verdict", blocks), Section("Figures", [results_table(every, "Models and anchors", formats)])]


def _row(system: str, metric: Mapping[str, Any], figure: Mapping[str, Any], data: Mapping[str, Any]) -> Row:
    scale, lower = metric["scale"], metric["lower_is_better"]
    scaled = {key: None if figure.get(key) is None else scale * figure[key] for key in ("value", "low", "high")}
    direction = "" if lower is None else "lower" if lower else "higher"
    count = figure.get("units", data.get("units"))
    return {"system": system, "metric": metric["label"], **scaled, "n": count, "unit": f"{data['unit']}s",
            "direction": direction}  # fmt: skip


def of_reproduction(data: Mapping[str, Any], folder: Path) -> list[Section]:
    """Sections of what `reproduce` wrote for a table: the replica, differences, protocol."""
    heads = {metric["key"]: metric for metric in data["metrics"]}
    printed_heads = data["paper"]["columns"]
    names: dict[str, str] = {}
    rows: list[Row] = []
    for item in data["rows"]:
        system = ", ".join(part for part in (item["system"], item.get("part")) if part)
        if item.get("paper"):
            names[system] = item["paper"]
        for key, cell in item["cells"].items():
            metric = heads[key]
            if metric.get("stands_for_paper", True) and key in printed_heads:
                names[metric["head"]] = printed_heads[key]
            direction = {"min": "lower", "max": "higher"}.get(metric["best"], "")
            rows.append({**{name: cell.get(name) for name in ("value", "low", "high")}, "n": cell.get("units"),
                         "unit": "units", "system": system, "metric": metric["head"], "direction": direction,
                         "note": cell.get("reason") or ""})  # fmt: skip
    taken: dict[str, str] = {}  # two of our rows may stand for one of the paper's: the first takes its name
    for system in [name for name in names if name in {row["system"] for row in rows}]:
        if names[system] in taken.values():
            del names[system]
        else:
            taken[system] = names[system]
    printed = {
        system: {printed_heads[key]: value for key, value in figures.items()}
        for system, figures in data["paper"]["rows"].items()
    }
    best = {printed_heads[key]: metric["best"] for key, metric in heads.items() if key in printed_heads}
    formats = {metric["head"]: metric["format"] for metric in data["metrics"]}
    blocks: list[Block] = []
    if data.get("not_comparable"):
        blocks.append(Note(f"Not comparable with the paper because {'; '.join(data['not_comparable'])}.", "warning"))
    stand = [f"{there} is {ours} here" for ours, there in names.items() if ours != there]
    footnote = " ".join([*data.get("notes", []), *([f"Names: {'; '.join(stand)}."] if stand else [])])
    table = paper_table(data["table"], rows, printed, data["title"], names, best, formats, footnote=footnote)
    blocks.append(table)
    if data.get("differences"):
        lines: list[list[Cell]] = [
            [heads[item["metric"]]["head"], item["a"], item["b"], measure_of(item), item["verdict"],
             item.get("doubt") or item.get("units")]
            for item in data["differences"]
        ]  # fmt: skip
        caption = "Paired differences, with 95 % intervals"
        blocks.append(Table(["measure", "one", "other", "one − other", "one is", "decided by (units)"], lines, caption))
    sections = [Section(f"Table {data['table']}", blocks)]
    if data.get("settings") and isinstance(data["settings"], list):
        table = Table(["setting", "the paper", "here"], data["settings"], "Settings that differ")
        sections.append(Section("Protocol", [table]))
    return sections
