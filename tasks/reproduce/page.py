"""A table's report: as text for a terminal, as JSON and as a page, our figures beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xcodec_lm.tasks.report import (
    Block,
    Column,
    Commands,
    Download,
    Empty,
    KeyValues,
    Note,
    Report,
    Section,
    Table,
    Text,
    measure_of,
    render,
)
from xcodec_lm.tasks.report.document import Cell
from xcodec_lm.tasks.report.tables import format_cell, format_interval, why_empty
from xcodec_lm.tasks.reproduce.paper import PaperTable
from xcodec_lm.tasks.reproduce.stages import Done, Place, write_json

NOT_IN_PAPER = "the paper does not measure this"


def write_report(
    place: Place, paper: PaperTable, scores: Mapping[str, Any], stages: Sequence[Done], settings: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Writes OUT/tableN.json and OUT/tableN.html.

    Args:
        place: of the table.
        paper: its table.
        scores: of the score stage.
        stages: those before, with their times.
        settings: that the table is made of.
        command: that makes it.

    Returns:
        `text` for a terminal, and the names of the two files.
    """
    ours, printed = our_table(paper, scores), paper_table(paper)
    data = {
        "table": paper.number, "title": paper.title, "settings": settings, "command": command, **scores,
        "paper": {"columns": {key: column.head for key, column in paper.columns.items()}, "rows": paper.rows},
        "silent": paper.silent, "cautions": list(paper.cautions),
        "stages": [vars(done) | {"facts": None} for done in stages],
    }  # fmt: skip
    data["stages"] = [{key: value for key, value in stage.items() if key != "facts"} for stage in data["stages"]]
    json_file, page = place.out / f"table{paper.number}.json", place.out / f"table{paper.number}.html"
    write_json(json_file, data)
    render(_document(paper, scores, ours, printed, stages, settings, command, data), page)
    return {"text": as_text(paper, scores, ours, stages), "json": place.name(json_file), "page": place.name(page)}


# ---------------------------------------------------------------------- tables


def our_table(paper: PaperTable, scores: Mapping[str, Any]) -> Table:
    """Our rows, and below each that has one the paper's row, where both measure the same."""
    metrics = scores["metrics"]
    columns: list[Column | str] = ["system"]
    columns += [Column(metric["head"], metric["format"], metric["best"]) for metric in metrics]
    rows: list[list[Cell]] = []
    references = []
    for item in scores["rows"]:
        if item["reference"]:
            references.append(len(rows))
        rows.append([title_of(item), *(_cell(item["cells"].get(metric["key"])) for metric in metrics)])
        known = paper.rows.get(item["paper"])
        if known is None:
            continue
        shown: list[Cell] = []
        for metric in metrics:
            key = metric["key"]
            if key not in paper.columns:
                shown.append(Empty(NOT_IN_PAPER))
            elif not metric["stands_for_paper"]:
                shown.append(Empty(f"the paper's {paper.columns[key].head} is by another evaluator, see below"))
            else:
                shown.append(known[key])
        if any(isinstance(cell, float) for cell in shown):
            references.append(len(rows))
            rows.append([f"    the paper's {item['paper']}", *shown])
    return Table(columns, rows, f"Table {paper.number}, ours: {paper.title}", " ".join(scores["notes"]), references)


def paper_table(paper: PaperTable) -> Table:
    """The table as printed."""
    columns: list[Column | str] = ["system"]
    columns += [Column(column.head, column.format, column.best) for column in paper.columns.values()]
    rows: list[list[Cell]] = [[name, *(values[key] for key in paper.columns)] for name, values in paper.rows.items()]
    return Table(columns, rows, f"Table {paper.number} as the paper prints it",
                 "The paper gives no intervals.",
                 tuple(i for i, name in enumerate(paper.rows) if name == "GT"))  # fmt: skip


def title_of(item: Mapping[str, Any]) -> str:
    """A row's name."""
    return f"{item['system']}, {item['part']}" if item["part"] else item["system"]


def _cell(data: Mapping[str, Any] | None) -> Cell:
    return None if data is None else measure_of(data, reason=data.get("reason") or "nothing could be scored")


def _differences(scores: Mapping[str, Any]) -> Table | None:
    if not scores["differences"]:
        return None
    formats = {metric["key"]: metric for metric in scores["metrics"]}
    rows: list[list[Cell]] = [
        [formats[item["metric"]]["head"], item["a"], item["b"], _difference_text(item, formats), item["verdict"],
         item["doubt"] or f"{item['units']} units"]
        for item in scores["differences"]
    ]  # fmt: skip
    return Table(["measure", "one", "other", "one - other", "one is", "decided by"], rows,
                 "Paired differences, with 95 % intervals over speakers, pieces or recordings")  # fmt: skip


def _difference_text(item: Mapping[str, Any], formats: Mapping[str, Any]) -> str:
    spec = formats[item["metric"]]["format"]
    cell = _cell(item)
    return f"{format_cell(cell, Column('', spec))} {format_interval(cell, spec)}".strip()


# ---------------------------------------------------------------------- page


def _document(
    paper: PaperTable, scores: Mapping[str, Any], ours: Table, printed: Table, stages: Sequence[Done],
    settings: Mapping[str, Any], command: str, data: Mapping[str, Any],
) -> Report:  # fmt: skip
    blocks: list[Block] = []
    if scores["not_comparable"]:
        blocks.append(
            Note("Not comparable with the paper because " + "; ".join(scores["not_comparable"]) + ".", "warning")
        )
    blocks.append(ours)
    if (differences := _differences(scores)) is not None:
        blocks.append(differences)
    blocks.append(printed)
    protocol: list[Block] = []
    if scores["settings"]:
        protocol.append(Table(["setting", "the paper", "here"], scores["settings"], "Settings that differ"))
    protocol.append(KeyValues(paper.silent, "Where the paper is silent: our choice"))
    if paper.cautions:
        protocol.append(Text("\n\n".join(f"Mind: {caution}." for caution in paper.cautions)))
    judges: list[Block] = [
        KeyValues(_ancestry(facts) or {"made from": "nothing: a formula"}, name)
        for name, facts in scores["evaluators"].items()
    ]  # fmt: skip
    times: list[list[Cell]] = [[done.name, done.wall_s, done.cpu_s] for done in stages]
    return Report(
        f"Table {paper.number}: {paper.title}",
        [Section("Figures", blocks), Section("Protocol", protocol), Section("Evaluators", judges)],
        subtitle="X-Codec, arXiv 2408.17175, measured again with xcodec-lm.",
        provenance=[
            Commands([command], "Command"),
            KeyValues(_given(settings), "Settings"),
            Table(["stage", Column("wall time (s)", ".1f"), Column("processor time (s)", ".1f")], times, "Stages"),
            Download(f"table{paper.number}.json", data, "everything as JSON"),
        ],
    )  # fmt: skip


def _ancestry(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a judge descends from, without the names of all recordings: those are in the JSON file."""
    shown = _given(facts)
    if isinstance(shown.get("trained_on"), list):
        shown["trained_on"] = [f"{entry['manifest']} ({entry['rows']} rows)" for entry in shown["trained_on"]]
    return shown


def _given(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not set."""
    return {key: value for key, value in facts.items() if value not in (None, "", [], {}, False)}


# ---------------------------------------------------------------------- text


def as_text(paper: PaperTable, scores: Mapping[str, Any], ours: Table, stages: Sequence[Done]) -> str:
    """The report for a terminal."""
    lines = [ours.caption, *_text_of(ours)]
    if ours.footnote:
        lines.append(ours.footnote)
    if (differences := _differences(scores)) is not None:
        lines += ["", differences.caption, *_text_of(differences)]
    if scores["settings"]:
        lines += ["", "settings that differ from the paper's:"]
        lines += [f"  {what}: {theirs} there, {here} here" for what, theirs, here in scores["settings"]]
    if scores["not_comparable"]:
        lines += ["", "not comparable with the paper because:", *(f"  {why}" for why in scores["not_comparable"])]
    printed = paper_table(paper)
    lines += ["", printed.caption, *_text_of(printed)]
    if stages:
        times = ", ".join(f"{done.name} {done.wall_s:.0f} s" for done in stages)
        lines += ["", f"stages, when they were made: {times}"]
    return "\n".join(lines)


def _text_of(table: Table) -> list[str]:
    """A table in columns, gaps explained below by letters."""
    reasons: dict[str, str] = {}
    rows = [[column.head for column in table.heads]]
    for row in table.rows:
        cells = []
        for cell, column in zip(row, table.heads, strict=True):
            reason = why_empty(cell)
            if reason:
                mark = reasons.setdefault(reason, "abcdefghijklmnopqrstuvwxyz"[len(reasons) % 26])
                cells.append(f"({mark})")
            else:
                cells.append(f"{format_cell(cell, column)} {format_interval(cell, column.format)}".rstrip())
        rows.append(cells)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + [f"({mark}) {reason}" for reason, mark in reasons.items()]
