"""Self-contained HTML reports: describe one with the blocks below, write it with `render`.

report = Report("A run", [Section("Loss", [Curves({"train": points}, "step", "loss", "Training loss")])])
render(report, run / "report.html")

Blocks from plain values: `verdict_table`, `results_table`, `paper_table`, `items_table` and `measure_of` (results.py);
`run_curves`, `last_values`, `codebook_use`, `config_difference`, `run_provenance` and `provenance` (runs.py);
`reconstruction_grid` and `reconstruct_clips` (reconstructions.py).
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
    Marked,
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
from xcodec_lm.tasks.report.reconstructions import reconstruct_clips, reconstruction_grid
from xcodec_lm.tasks.report.render import render, render_html
from xcodec_lm.tasks.report.results import items_table, measure_of, paper_table, results_table, verdict_table
from xcodec_lm.tasks.report.runs import (
    codebook_use,
    config_difference,
    last_values,
    provenance,
    run_curves,
    run_provenance,
)

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
    "Marked",
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
    "codebook_use",
    "config_difference",
    "items_table",
    "last_values",
    "measure_of",
    "paper_table",
    "provenance",
    "reconstruct_clips",
    "reconstruction_grid",
    "render",
    "render_html",
    "results_table",
    "run_curves",
    "run_provenance",
    "verdict_table",
]
