"""A report as one HTML file that loads nothing: styles, script, sound, pictures and data are inside.

The page forbids the browser any connection (its Content-Security-Policy) and any script but its own (by hash), so it
may be mailed, archived and opened from disk. It reads, and plays, without the script too.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.report import document as doc
from xcodec_lm.tasks.report.audio_embed import data_uri
from xcodec_lm.tasks.report.figures import bars_svg, curves_svg, undrawable
from xcodec_lm.tasks.report.players import player_cells
from xcodec_lm.tasks.report.tables import (
    best_rows,
    format_cell,
    format_interval,
    is_numeric,
    json_text,
    note_of,
    rows_csv,
    sort_key,
    sorts_by_number,
    table_csv,
    table_json,
    why_empty,
    worst_first,
)

WORST = 10
"""Rows that a long table is cut to when only the worst are wanted."""


def render(report: doc.Report, path: str | Path) -> Path:
    """Writes a report as one HTML file, whole or not at all.

    Args:
        report: what to write.
        path: the file; its folder must exist.

    Raises:
        XcodecLMError: the file cannot be written.
        ReportError: parts of the report do not fit together.
    """
    path, text = Path(path), render_html(report)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files that others cannot read
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise XcodecLMError(
            f"cannot write {path}: {error.strerror}", "choose a file in a folder that exists and can be written"
        ) from None
    return path


def render_html(report: doc.Report) -> str:
    """The text of the page."""
    files = resources.files("xcodec_lm.tasks.report")
    read = lambda name: (files / name).read_text(encoding="utf-8")  # noqa: E731
    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = "\n" + read("report.js")
    sections = list(report.sections)
    if report.provenance:
        sections.append(doc.Section("Provenance", report.provenance))
    view = _Viewer()
    shown = [
        {
            "key": f"section-{number}",
            "title": section.title,
            "intro": _paragraphs(section.intro),
            "groups": view.groups(section.blocks),
        }
        for number, section in enumerate(sections, start=1)
    ]
    return (
        environment.get_template("template.html.j2")
        .render(
            title=report.title,
            subtitle=report.subtitle,
            sections=shown,
            pages=list(report.pages.items()),
            has_players=view.has_players,
            style=Markup(read("report.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        .lstrip()
    )


class _Viewer:
    """Turns blocks into the plain values that the template prints; counts tables and figures over the whole page."""

    def __init__(self):
        self.tables = self.figures = 0
        self.has_players = False
        self.views: dict[type, Callable[[Any], dict[str, Any]]] = {
            doc.Text: lambda block: {"paragraphs": _paragraphs(block.text)},
            doc.Note: lambda block: {"text": block.text, "mood": block.kind},
            doc.Table: self.table,
            doc.Players: self.players,
            doc.Curves: self.curves,
            doc.Bars: self.bars,
            doc.KeyValues: lambda block: {
                "items": [(k, _value_text(v)) for k, v in block.items.items()],
                "caption": block.caption,
            },
            doc.Commands: lambda block: {"text": "\n".join(block.lines), "caption": block.caption},
            doc.Download: lambda block: {"links": [_file_link(block.text or block.name, block.name, block.data)]},
        }

    def groups(self, blocks: Sequence[doc.Block]) -> list[dict[str, Any]]:
        """Blocks in order; neighbouring charts form a group, for they stand side by side."""
        groups = []
        for charts, members in groupby(blocks, key=lambda block: isinstance(block, doc.Curves | doc.Bars)):
            groups.append({"charts": charts, "blocks": [self.view(block) for block in members]})
        return groups

    def view(self, block: doc.Block) -> dict[str, Any]:
        if type(block) not in self.views:
            raise doc.ReportError(f"{type(block).__name__} is not a block of a report")
        return {"kind": type(block).__name__, **self.views[type(block)](block)}

    def table(self, table: doc.Table) -> dict[str, Any]:
        self.tables += 1
        best, reasons = best_rows(table), {}
        numeric = [is_numeric(table, place) for place in range(len(table.heads))]
        by_number = [sorts_by_number(table, place) for place in range(len(table.heads))]
        sortable = table.sortable and len(table.rows) > 1
        intervals = [
            [format_interval(row[i], column.format) for row in table.rows] for i, column in enumerate(table.heads)
        ]
        widths = [max(map(len, texts), default=0) for texts in intervals]  # characters kept, so that numbers line up
        rows = []
        for index, row in enumerate(table.rows):
            cells = []
            for place, (cell, column) in enumerate(zip(row, table.heads, strict=True)):
                note = note_of(cell)
                mark = reasons.setdefault(note, _letter(len(reasons))) if note else ""
                cells.append(
                    {
                        "text": format_cell(cell, column),
                        "interval": intervals[place][index],
                        "interval_width": widths[place],
                        "empty": why_empty(cell) is not None,
                        "heard": cell if isinstance(cell, doc.Marked) else None,
                        "mark": mark,
                        "best": index in best.get(place, ()),
                        "numeric": numeric[place],
                        "key": sort_key(cell) if by_number[place] else None,
                    }
                )
            rows.append({"cells": cells, "reference": index in table.references})
        name = _slug(table.caption) or f"table-{self.tables}"
        return {
            "number": self.tables,
            "caption": table.caption,
            "columns": [
                {"head": c.head, "best": c.best, "numeric": numeric[i], "by_number": by_number[i]}
                for i, c in enumerate(table.heads)
            ],
            "rows": rows,
            "reasons": [(mark, reason) for reason, mark in reasons.items()],
            "any_best": bool(best),
            "footnote": table.footnote,
            "sortable": sortable,
            "worst": [
                {
                    "place": place,
                    "way": way,
                    "head": table.heads[place].head,
                    "chosen": table.heads[place].head == table.worst_first,
                }
                for place, way in worst_first(table)
                if sortable and len(table.rows) > WORST
            ],
            "shown": WORST,
            "links": [_link("CSV", f"{name}.csv", table_csv(table)), _link("JSON", f"{name}.json", table_json(table))],
        }

    def players(self, players: doc.Players) -> dict[str, Any]:
        self.figures += 1
        self.has_players = True
        labels = list(dict.fromkeys(item.label for row in players.rows for item in row.items))
        tops: set[float] = set()
        rows = []
        for row in players.rows:
            cells, top_hz = player_cells(row)
            tops |= {top_hz} - {0.0}
            in_order = [cells.get(label, {"missing": "not made"}) for label in labels]
            rows.append({"head": row.head, "note": row.note, "cells": in_order})
        ends = " or ".join(f"{top / 1000:g}" for top in sorted(tops))
        shaded = any(
            cell["picture"] and cell["prompt_s"] for row in rows for cell in row["cells"] if not cell["missing"]
        )
        legend = (
            f"Spectrograms: mel scale to {ends} kHz, 80 dB from dark to light, one time axis and one colour scale a row"
            f"{'; veiled: the prompt' if shaded else ''}."
        )
        return {
            "number": self.figures,
            "caption": players.caption,
            "labels": labels,
            "rows": rows,
            "legend": legend if tops else "",
            "playable": any(not cell["missing"] for row in rows for cell in row["cells"]),
            "has_heads": any(row.head for row in players.rows),
        }

    def curves(self, curves: doc.Curves) -> dict[str, Any]:
        left_out = {name: undrawable(points, curves.log_y) for name, points in curves.series.items()}
        why = "not finite or not positive" if curves.log_y else "not finite"
        gaps = [
            f"{name}: {count} of {len(curves.series[name])} values not drawn ({why})."
            for name, count in left_out.items()
            if count
        ]
        rows = [("series", curves.x_label, curves.y_label)]
        rows += [(name, x, y) for name, points in curves.series.items() for x, y in points]
        svg = curves_svg(curves.series, curves.x_label, curves.y_label, curves.log_y, curves.caption)
        return self._chart(svg, curves.caption, " ".join(gaps), rows)

    def bars(self, bars: doc.Bars) -> dict[str, Any]:
        rows = [(bars.x_label, *bars.series)]
        rows += [(group, *(values[i] for values in bars.series.values())) for i, group in enumerate(bars.groups)]
        svg = bars_svg(bars.groups, bars.series, bars.x_label, bars.y_label, bars.ceiling, bars.caption)
        return self._chart(svg, bars.caption, "", rows)

    def _chart(self, svg: str, caption: str, footnote: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        self.figures += 1
        name = _slug(caption) or f"figure-{self.figures}"
        return {
            "number": self.figures,
            "svg": Markup(svg),
            "caption": caption,
            "footnote": footnote,
            "links": [_link("CSV", f"{name}.csv", rows_csv(rows))],
        }


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def _value_text(value: Any) -> str:
    if value is None or value == "":
        return "not recorded"
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _letter(index: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[index % 26] * (1 + index // 26)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].rstrip("-")


def _file_link(text: str, name: str, data: Any) -> dict[str, str]:
    if name.endswith(".json"):
        return _link(text, name, json_text(data))
    return _link(text, name, rows_csv(data) if name.endswith(".csv") else str(data))


def _link(text: str, name: str, content: str) -> dict[str, str]:
    kinds = {"csv": "text/csv", "json": "application/json"}
    mime = kinds.get(name.rpartition(".")[2], "text/plain")
    return {"text": text, "name": name, "uri": data_uri(content.encode(), f"{mime};charset=utf-8")}
