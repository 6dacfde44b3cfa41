"""Self-contained HTML reports: describe one with the blocks below, write it with `render`.

report = Report("A run", [Section("Loss", [Curves({"train": points}, "step", "loss", "Training loss")])])
render(report, run / "report.html")
"""

from xcodec_lm.tasks.report.document import (
    Bars,
    Block,
    Cell,
    Column,
    Commands,
    Curves,
    Download,
    Empty,
    KeyValues,
    Measure,
    NoPlayer,
    Note,
    Player,
    PlayerRow,
    Players,
    Report,
    ReportError,
    Section,
    Table,
    Text,
)
from xcodec_lm.tasks.report.render import render, render_html

__all__ = [
    "Bars",
    "Block",
    "Cell",
    "Column",
    "Commands",
    "Curves",
    "Download",
    "Empty",
    "KeyValues",
    "Measure",
    "NoPlayer",
    "Note",
    "Player",
    "PlayerRow",
    "Players",
    "Report",
    "ReportError",
    "Section",
    "Table",
    "Text",
    "render",
    "render_html",
]
