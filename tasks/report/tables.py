"""Tables as text: numbers in their format, the best of a column, explained gaps, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import Any

from xcodec_lm.tasks.report.document import Cell, Column, Empty, Marked, Measure, Table


def number_of(cell: Cell) -> float | None:
    """The finite number in a cell, or None."""
    value = cell.value if isinstance(cell, Measure) else cell
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def sort_key(cell: Cell) -> float | None:
    """By what a cell is sorted among numbers: its number, or the errors of a transcript."""
    return cell.errors if isinstance(cell, Marked) else number_of(cell)


def note_of(cell: Cell) -> str:
    """What is said below the table of a cell: why it is empty, or what must be known of its number."""
    return why_empty(cell) or (cell.note if isinstance(cell, Measure) else "")


def why_empty(cell: Cell) -> str | None:
    """Why a cell shows no value: None if it shows one, an empty string if no reason is given."""
    if cell is None:
        return ""
    if isinstance(cell, Empty):
        return cell.reason
    value = cell.value if isinstance(cell, Measure) else cell
    return "the result is not a finite number" if isinstance(value, float) and not math.isfinite(value) else None


def format_number(value: float, spec: str = "") -> str:
    """A number in its format, with a true minus sign; four significant digits, or whole integers, by default."""
    text = format(value, spec or ("d" if isinstance(value, int) else ".4g"))
    return text.replace("-", "−", 1) if text.startswith("-") else text


def common_format(values: Iterable[float | None]) -> str:
    """One format for figures that stand together: three digits of the largest, but one decimal at least."""
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    if largest == 0:
        return ".3f"
    if not 1e-4 <= largest < 1e7:
        return ".3g"
    return f".{min(6, max(1, 2 - math.floor(math.log10(largest))))}f"


def format_interval(cell: Cell, spec: str = "") -> str:
    """The interval of a measure as `[low, high]`, or an empty string."""
    if not isinstance(cell, Measure) or cell.low is None or cell.high is None:
        return ""
    spec = cell.format or spec
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return ""
    return f"[{format_number(cell.low, spec)}, {format_number(cell.high, spec)}]"


def format_cell(cell: Cell, column: Column) -> str:
    """The text of a cell, without its interval; empty for a gap."""
    if why_empty(cell) is not None:
        return ""
    value, own = number_of(cell), cell.format if isinstance(cell, Measure) else ""
    return str(cell) if value is None else format_number(value, own or column.format)


def best_rows(table: Table) -> dict[int, set[int]]:
    """For each column with a better end, the rows that hold its best value.

    Values that read the same in the column's format are equally good. A column with fewer than two contestants, or
    whose values are all alike, has no best.
    """
    best: dict[int, set[int]] = {}
    if not table.contest:
        return best
    contestants = [index for index in range(len(table.rows)) if index not in set(table.references)]
    for place, column in enumerate(table.heads):
        values = {row: value for row in contestants if (value := number_of(table.rows[row][place])) is not None}
        if column.best is None or len(values) < 2:
            continue
        leader = (min if column.best == "min" else max)(values.values())
        shown = format_number(leader, column.format)
        rows = {row for row, value in values.items() if format_number(value, column.format) == shown}
        if len(rows) < len(values):
            best[place] = rows
    return best


def worst_first(table: Table) -> list[tuple[int, str]]:
    """Columns by which rows can be called worst, and how: (place, `ascending` or `descending`)."""
    ways = {"min": "descending", "max": "ascending"}
    return [
        (place, ways[column.best])
        for place, column in enumerate(table.heads)
        if column.best is not None and any(sort_key(row[place]) is not None for row in table.rows)
    ]


def sorts_by_number(table: Table, place: int) -> bool:
    """Whether a column is sorted by number, not by text."""
    cells = [row[place] for row in table.rows if why_empty(row[place]) is None]
    return bool(cells) and all(sort_key(cell) is not None for cell in cells)


def is_numeric(table: Table, place: int) -> bool:
    """Whether a column holds numbers only, and so is set flush right."""
    cells = [row[place] for row in table.rows if why_empty(row[place]) is None]
    return bool(cells) and all(number_of(cell) is not None for cell in cells)


def table_csv(table: Table) -> str:
    """All digits, one row a line; a column with intervals gets two more, low and high."""
    ranged = [any(_has_interval(row[i]) for row in table.rows) for i in range(len(table.heads))]
    heads: list[str] = []
    for column, has_range in zip(table.heads, ranged, strict=True):
        heads += [column.head, f"{column.head} low", f"{column.head} high"] if has_range else [column.head]
    rows = [heads]
    for row in table.rows:
        values: list[Any] = []
        for cell, has_range in zip(row, ranged, strict=True):
            values.append("" if why_empty(cell) is not None else _plain(cell))
            if has_range:
                values += [cell.low, cell.high] if isinstance(cell, Measure) else ["", ""]
        rows.append(values)
    return rows_csv(rows)


def table_json(table: Table) -> str:
    """All digits, with intervals and the reasons of gaps."""

    def plain(cell: Cell) -> Any:
        reason = why_empty(cell)
        if reason is not None:
            return {"value": None, "reason": reason} if reason else None
        if isinstance(cell, Measure):
            noted = {"note": cell.note} if cell.note else {}
            return {"value": cell.value, "low": cell.low, "high": cell.high, **noted}
        return _plain(cell)

    heads = [column.head for column in table.heads]
    return json_text(
        {"caption": table.caption, "columns": heads, "rows": [[plain(cell) for cell in row] for row in table.rows]}
    )


def rows_csv(rows: Any) -> str:
    """Rows as CSV; what is None or not finite is left empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if isinstance(value, float) and not math.isfinite(value) else value for value in row])
    return buffer.getvalue()


def json_text(value: Any) -> str:
    """Strict JSON: what is not finite becomes null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(cell: Cell) -> Any:
    """The value of a cell that has one; transcripts as text."""
    return cell.value if isinstance(cell, Measure) else str(cell) if isinstance(cell, Marked) else cell


def _has_interval(cell: Cell) -> bool:
    return isinstance(cell, Measure) and cell.low is not None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
