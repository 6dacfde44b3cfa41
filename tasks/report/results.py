"""Rows of figures as tables: verdicts beside the twin and the paper, replicas of the paper's tables, per-item tables.

A row is a dictionary: `system`, `metric`, `value`, `low`, `high`, `n`, `unit`, `direction`, `paper`, `note`. Only the
first two must be there. `n` counts the units of resampling, `unit` names them ("speakers"); `direction` is `lower` or
`higher`, whichever is better; `paper` is the paper's figure; `note` says why a value is missing, or why it cannot be
compared with the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xcodec_lm.tasks.eval.intervals import LEAST_UNITS, Estimate
from xcodec_lm.tasks.report.document import Best, Cell, Column, Empty, Marked, Measure, ReportError, Table
from xcodec_lm.tasks.report.tables import common_format

DIRECTIONS: Mapping[str, Best | None] = {"lower": "min", "higher": "max", "min": "min", "max": "max", "": None}
NUMBERS = ("value", "low", "high", "paper")
NOT_MEASURED, NOT_IN_PAPER = "not measured", "the paper has no such figure"
NOT_RUN = "this system was not run"


@dataclass(frozen=True)
class ResultRow:
    """A figure of a system; see the module's text. `verdict` is one that was reached already, "" for none."""

    system: str
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    best: Best | None = None
    paper: float | None = None
    note: str = ""
    verdict: str = ""

    @staticmethod
    def read(row: Mapping[str, Any]) -> ResultRow:
        """A row from a dictionary; unknown keys are left out, what is not finite counts as missing.

        Raises:
            ReportError: `system` or `metric` is missing, a number is none, or the direction is not known.
        """
        for name in ("system", "metric"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise ReportError(f"a row of results has no {name}: {dict(row)!r}", "give system and metric as text")
        where = f"row {row['system']!r}, {row['metric']!r}"
        numbers = {name: _number(row.get(name), f"{where}: {name}") for name in NUMBERS}
        if (numbers["low"] is None) != (numbers["high"] is None):
            numbers["low"] = numbers["high"] = None
        direction = row.get("direction") or ""
        if direction not in DIRECTIONS:
            raise ReportError(f"{where}: direction is {direction!r}", "give lower, higher, or nothing")
        count = _number(row.get("n"), f"{where}: n")
        unit, note, verdict = (str(row.get(name) or "") for name in ("unit", "note", "verdict"))
        return ResultRow(
            row["system"], row["metric"], numbers["value"], numbers["low"], numbers["high"],
            None if count is None else int(count), unit, DIRECTIONS[direction], numbers["paper"], note, verdict,
        )  # fmt: skip

    def cell(self, spec: str = "", noted: bool = False) -> Measure | Empty:
        """The value with its interval, in a format of its own if one is given, or why there is none.

        Args:
            spec: format specification; empty leaves it to the column.
            noted: with its note.
        """
        if self.value is None:
            return Empty(self.note or NOT_MEASURED)
        return Measure(self.value, self.low, self.high, self.note if noted else "", spec)

    @property
    def count(self) -> str:
        """How many units there are, such as `12 speakers`; empty if it is not known."""
        return "" if self.n is None else f"{self.n} {self.unit}".strip()

    def decided(self) -> str:
        """What an interval of a difference says from the first system's side; a given verdict goes first."""
        if self.verdict:
            return self.verdict
        if self.value is None or self.best is None or self.n is None:
            return ""
        low, high = (math.nan if end is None else end for end in (self.low, self.high))
        return Estimate(self.value, low, high, self.n, self.n).verdict(self.best == "min")


def read_rows(rows: Sequence[Mapping[str, Any] | ResultRow]) -> list[ResultRow]:
    """Rows of results; those that are `ResultRow` already stay.

    Raises:
        ReportError: a row cannot be read.
    """
    return [row if isinstance(row, ResultRow) else ResultRow.read(row) for row in rows]


def measure_of(
    estimate: Mapping[str, Any] | None, scale: float = 1.0, reason: str = NOT_MEASURED, note: str = ""
) -> Measure | Empty:
    """A cell from `Estimate.to_dict`.

    Args:
        estimate: with `value` and perhaps `low` and `high`; None where nothing was measured.
        scale: factor on all three, 100 for percent.
        reason: why there is no value.
        note: what must be known of the value.
    """
    if estimate is None or estimate.get("value") is None:
        return Empty(reason)
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return Measure(scale * estimate["value"], note=note)
    return Measure(scale * estimate["value"], scale * low, scale * high, note)


# ---------------------------------------------------------------------- verdicts


def verdict_table(
    rows: Sequence[Mapping[str, Any] | ResultRow], caption: str = "Verdicts", ours: str = "ours", twin: str = "twin",
    difference: str = "difference", formats: Mapping[str, str] | None = None, footnote: str = "",
) -> Table:  # fmt: skip
    """One line a metric: ours | the other | difference with interval | verdict | n | the paper's figures | remark.

    Args:
        rows: of all three systems; other systems are left out. The row of the difference (ours - twin, paired)
            carries its interval and `n`, and may carry a `verdict`; else the interval gives it, as everywhere:
            below 10 units it is "not decidable". A `note` of our row says why it is not comparable with the paper's.
        caption: of the table.
        ours: name of our system among the rows, which is also the column's head.
        twin: the name of the other.
        difference: the name of rows that hold differences.
        formats: metric -> format specification.
        footnote: what else must be known.

    Raises:
        ReportError: a row cannot be read, or the first two systems have no row.
    """
    read = read_rows(rows)
    found = {(row.system, row.metric): row for row in read}
    metrics = list(dict.fromkeys(row.metric for row in read if row.system in (ours, twin, difference)))
    if not metrics:
        named = ", ".join(dict.fromkeys(row.system for row in read)) or "none"
        raise ReportError(f"no row of {ours!r} or {twin!r}", f"the systems of the rows are: {named}")
    lines: list[list[Cell]] = []
    for metric in metrics:
        first, second, third = (found.get((name, metric)) for name in (ours, twin, difference))
        spec = (formats or {}).get(metric) or _format([first, second, third])
        of = next(row for row in (third, first, second) if row is not None)
        best = next((row.best for row in (third, first, second) if row is not None and row.best), None)
        lines.append([
            metric + {"min": " ↓", "max": " ↑", None: ""}[best],
            _shown(first, spec), _shown(second, spec),
            _shown(third, spec, "no paired difference was computed"),
            (third.decided() if third else "") or Empty("no verdict without an interval and a direction"),
            of.count or Empty("not recorded"),
            _paper(first, spec), _paper(second, spec),
            _remark(first, second),
        ])  # fmt: skip
    heads = ["metric", ours, twin, f"{ours} − {twin}", f"{ours} is", "n", f"paper: {ours}", f"paper: {twin}",
             "beside the paper"]  # fmt: skip
    return Table(
        heads, lines, caption,
        footnote=f"↓ lower is better, ↑ higher is better. Brackets: 95 % intervals. A verdict takes {LEAST_UNITS} "
        f"units at least. {footnote}".strip(),
    )  # fmt: skip


def _shown(row: ResultRow | None, spec: str, reason: str = NOT_MEASURED) -> Cell:
    return Empty(reason) if row is None else row.cell(spec)


def _paper(row: ResultRow | None, spec: str) -> Cell:
    return Empty(NOT_IN_PAPER) if row is None or row.paper is None else Measure(row.paper, format=spec)


def _remark(*rows: ResultRow | None) -> Cell:
    """Why figures cannot be laid beside the paper's."""
    papers = [row for row in rows if row is not None and row.paper is not None]
    notes = list(dict.fromkeys(row.note for row in rows if row is not None and row.note and row.value is not None))
    if notes:
        text = "; ".join(notes)
        return text if text.startswith("not comparable") or not papers else f"not comparable because {text}"
    return "comparable" if any(row.value is not None for row in papers) else None


# ---------------------------------------------------------------------- tables of systems


def results_table(
    rows: Sequence[Mapping[str, Any] | ResultRow], caption: str, formats: Mapping[str, str] | None = None,
    references: Sequence[str] = (), paper: bool = True, footnote: str = "",
) -> Table:  # fmt: skip
    """A line a system, a column a metric, both in order of appearance.

    Args:
        rows: of results. What a system lacks is a dash with its reason.
        caption: of the table.
        formats: metric -> format specification.
        references: systems that are no contestants.
        paper: add a line of the paper's figures below each system that has some.
        footnote: what else must be known.

    Raises:
        ReportError: a row cannot be read.
    """
    read = read_rows(rows)
    systems = list(dict.fromkeys(row.system for row in read))
    metrics = list(dict.fromkeys(row.metric for row in read))
    return _pivot(read, systems, metrics, caption, formats or {}, references, paper, footnote)


def paper_table(
    number: int, rows: Sequence[Mapping[str, Any] | ResultRow], paper: Mapping[str, Mapping[str, float]],
    title: str = "", names: Mapping[str, str] | None = None, best: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None, references: Sequence[str] = (), footnote: str = "",
) -> Table:  # fmt: skip
    """A replica of one of the paper's tables: our figures, and the paper's below each.

    Args:
        number: of the paper's table.
        rows: of results. What the paper has and the rows lack is a dash with its reason. A row's own `paper` goes
            before the printed figure; its `note` is said below the table.
        paper: the table as printed, system -> metric -> figure.
        title: what the table shows.
        names: system or metric of the rows -> what the paper calls it, where these differ. Metrics that another
            evaluator measured have no name there and get columns of their own.
        best: metric of the paper -> `lower` or `higher`, where the rows do not tell.
        formats: metric -> format specification; else as many decimals as the paper gives.
        references: systems that are no contestants.
        footnote: what else must be known.

    Raises:
        ReportError: a row cannot be read.
    """
    names, printed = names or {}, list(dict.fromkeys(metric for figures in paper.values() for metric in figures))
    read = []
    for row in read_rows(rows):
        system, metric = names.get(row.system, row.system), names.get(row.metric, row.metric)
        known = paper.get(system, {}).get(metric) if row.paper is None else row.paper
        way = row.best or DIRECTIONS.get((best or {}).get(metric, ""))
        read.append(replace(row, system=system, metric=metric, best=way, paper=known))
    there, ran = {(row.system, row.metric) for row in read}, {row.system for row in read}
    for system, figures in paper.items():
        reason = NOT_MEASURED if system in ran else NOT_RUN
        for metric in printed:
            if (system, metric) not in there:
                way = DIRECTIONS.get((best or {}).get(metric, ""))
                read.append(ResultRow(system, metric, best=way, paper=figures.get(metric), note=reason))
    systems, metrics = ([*dict.fromkeys([*known, *of])] for known, of in (
        (paper, [row.system for row in read]), (printed, [row.metric for row in read]),
    ))  # fmt: skip
    caption = f"The paper's Table {number}, made again{f': {title}' if title else ''}"
    decimals = {metric: _decimals(figures.get(metric) for figures in paper.values()) for metric in printed}
    return _pivot(read, systems, metrics, caption, {**decimals, **(formats or {})}, references, True, footnote)


def _pivot(
    rows: Sequence[ResultRow], systems: Sequence[str], metrics: Sequence[str], caption: str,
    formats: Mapping[str, str], references: Sequence[str], paper: bool, footnote: str,
) -> Table:  # fmt: skip
    found = {(row.system, row.metric): row for row in rows}
    best = {metric: next((r.best for r in rows if r.metric == metric and r.best), None) for metric in metrics}
    lines: list[list[Cell]] = []
    aside = []
    for system in systems:
        cells = [found.get((system, metric)) for metric in metrics]
        if system in references:
            aside.append(len(lines))
        lines.append([system, *(Empty(NOT_MEASURED) if cell is None else cell.cell(noted=True) for cell in cells)])
        if paper and any(cell is not None and cell.paper is not None for cell in cells):
            aside.append(len(lines))
            figures = [Empty(NOT_IN_PAPER) if c is None or c.paper is None else c.paper for c in cells]
            lines.append([f"{system}, in the paper", *figures])
    specs = {metric: formats.get(metric) or _format([r for r in rows if r.metric == metric]) for metric in metrics}
    columns = [Column("system"), *(Column(metric, specs[metric], best[metric]) for metric in metrics)]
    return Table(columns, lines, caption, f"{footnote} {_counts(rows, metrics)}".strip(), aside)


def _counts(rows: Sequence[ResultRow], metrics: Sequence[str]) -> str:
    """How many units the figures go over: once where all are alike, else for each metric."""
    by_metric = {
        metric: list(dict.fromkeys(row.count for row in rows if row.metric == metric and row.count))
        for metric in metrics
    }
    counts = {" or ".join(values) for values in by_metric.values() if values}
    if not counts:
        return ""
    if len(counts) == 1:
        return f"n: {counts.pop()}."
    return "n: " + "; ".join(f"{metric} {' or '.join(values)}" for metric, values in by_metric.items() if values) + "."


def _format(rows: Sequence[ResultRow | None]) -> str:
    """One format for the figures of a metric, and their intervals."""
    return common_format(
        number for row in rows if row is not None for number in (row.value, row.low, row.high, row.paper)
    )


def _decimals(figures: Iterable[float | None]) -> str:
    """As many decimals as the paper's figures have."""
    texts = [f"{figure:g}" for figure in figures if figure is not None]
    return f".{max(len(text.partition('.')[2]) for text in texts)}f"


# ---------------------------------------------------------------------- items


def items_table(
    items: Sequence[Mapping[str, Any]], caption: str, best: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None, worst_first: str | None = None, columns: Sequence[str] | None = None,
    footnote: str = "",
) -> Table:  # fmt: skip
    """A line an item, sortable by any column and to the worst ten.

    Args:
        items: values by column, as read from JSON lines: texts, numbers, `Measure`, `Empty`, `Marked`, estimates
            (dictionaries with `value`), or a list of marks as `tasks.eval.wer` makes them, which becomes a transcript.
        caption: of the table.
        best: column -> `lower` or `higher`.
        formats: column -> format specification.
        worst_first: column by which the ten worst are shown at first.
        columns: which to show, in this order; None takes all, in order of appearance.
        footnote: what must be known.

    Raises:
        ReportError: a direction is not known, or a value is none that a table can show.
    """
    names = list(columns or dict.fromkeys(name for item in items for name in item))
    if not set((best or {}).values()) <= set(DIRECTIONS):
        raise ReportError(f"table {caption!r}: directions are {dict(best or {})!r}", "give lower or higher")
    ways = {name: DIRECTIONS[way] for name, way in (best or {}).items()}
    heads = [Column(name, (formats or {}).get(name, ""), ways.get(name)) for name in names]
    rows = [[_item_cell(item.get(name), f"{caption!r}, {name}") for name in names] for item in items]
    chosen = worst_first if any(head.head == worst_first and head.best for head in heads) else None
    return Table(heads, rows, caption, footnote, contest=False, sortable=True, worst_first=chosen)


def _item_cell(value: Any, where: str) -> Cell:
    if value is None or isinstance(value, Measure | Empty | Marked):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping) and "value" in value:
        return measure_of(value)
    if isinstance(value, list | tuple):
        if all(isinstance(part, list | tuple) and len(part) == 3 for part in value):
            return Marked([[str(word) for word in part] for part in value])
        if all(isinstance(part, str | int | float) for part in value):
            return ", ".join(str(part) for part in value)
    raise ReportError(f"{where}: {type(value).__name__} cannot be shown in a table", "give text or a number")


def _number(value: Any, where: str) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportError(f"{where} is {value!r}", "give a number, or nothing")
    return float(value) if math.isfinite(value) else None
