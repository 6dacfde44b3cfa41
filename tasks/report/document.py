"""What a report consists of: plain values, no layout and no knowledge of what is reported.

A report is a list of sections, a section a list of blocks. `xcodec_lm.tasks.report.render` turns it into one HTML file.
Every block says what it is in a caption; whatever is missing says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from xcodec_lm.configs.errors import XcodecLMError

Best = Literal["min", "max"]
MARK_KINDS = ("equal", "substitute", "delete", "insert")


class ReportError(XcodecLMError, ValueError):
    """A report whose parts do not fit together."""


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines. Plain text: nothing in it is markup."""

    text: str


@dataclass(frozen=True)
class Note:
    """A sentence that must not be overlooked, such as a limit on what may be concluded."""

    text: str
    kind: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class Measure:
    """A number in a table.

    Attributes:
        value: the number.
        low: lower end of its interval; both ends or none.
        high: the upper end.
        note: what must be known of it, said below the table; "" for nothing.
        format: its own format where a column holds several quantities; empty takes the column's.
    """

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    format: str = ""

    def __post_init__(self):
        if (self.low is None) != (self.high is None):
            raise ReportError(f"the interval of {self.value} has one end only", "give both low and high, or neither")


@dataclass(frozen=True)
class Empty:
    """A cell without a value, and why it has none."""

    reason: str


@dataclass(frozen=True)
class Marked:
    """What was heard of a text, with the errors marked.

    Attributes:
        marks: (kind, word said, word heard) in order, as in `tasks.eval.wer.Counts.marks`; kind is `equal`,
            `substitute`, `delete` (said, not heard) or `insert` (heard, not said).
        after: words that follow the transcript.
    """

    marks: Sequence[Sequence[str]]
    after: str = ""

    def __post_init__(self):
        for mark in self.marks:
            if len(mark) != 3 or mark[0] not in MARK_KINDS:
                raise ReportError(
                    f"{mark!r} is no mark of a transcript", f"give (kind, said, heard), kind {MARK_KINDS}"
                )

    @cached_property
    def errors(self) -> int:
        """Words that are wrong, missing or too many."""
        return sum(kind != "equal" for kind, _, _ in self.marks)

    @property
    def text(self) -> str:
        """The same in plain text: `[said > heard]`, `[-missing]`, `[+too many]`."""
        words = []
        for kind, said, heard in self.marks:
            words.append(
                {"equal": heard, "substitute": f"[{said} > {heard}]", "delete": f"[-{said}]"}.get(kind, f"[+{heard}]")
            )
        return " ".join(words)

    def __str__(self) -> str:
        return "; ".join(part for part in (self.text or "(nothing)", self.after) if part)


Cell = str | int | float | Measure | Empty | Marked | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its name, with the unit in brackets where there is one.
        format: format specification of its numbers, such as `.3f`; empty gives four significant digits, whole integers.
        best: which end is the better one; the best cell is marked. None marks nothing.
    """

    head: str
    format: str = ""
    best: Best | None = None


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        columns: `Column`, or a plain name.
        rows: one sequence of cells a row. `Empty(reason)` is a gap that is explained below the table; None is a gap
            that needs no explanation.
        caption: what it shows; also names its downloads.
        footnote: what a reader must know to read it.
        references: indices of rows that are no contestants (the original, say) and are never marked as best.
        contest: mark the best cell of columns with a better end.
        sortable: let the reader sort by a column, and see the ten worst rows by any column with a better end.
        worst_first: the column by which the ten worst are shown at first; None shows all rows.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    footnote: str = ""
    references: Sequence[int] = ()
    contest: bool = True
    sortable: bool = False
    worst_first: str | None = None

    def __post_init__(self):
        if self.worst_first is not None and not any(
            column.head == self.worst_first and column.best is not None for column in self.heads
        ):
            raise ReportError(f"table {self.caption!r} has no column {self.worst_first!r} with a better end")
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ReportError(
                    f"table {self.caption!r}: row {index} has {len(row)} cells, there are {len(self.columns)} columns"
                )

    @property
    def heads(self) -> tuple[Column, ...]:
        """The columns, plain names included."""
        return tuple(Column(column) if isinstance(column, str) else column for column in self.columns)


@dataclass(frozen=True, eq=False)
class Player:
    """A recording to listen to.

    Attributes:
        label: what is heard ("original"); players of one label share a column of the grid.
        wav: (N,) float in [-1, 1], numpy or torch; axes of size 1 are dropped. What cannot be played (empty, not
            finite) is said in its place.
        sample_rate: in Hz.
        spectrogram: whether to draw one.
        shade_until_s: the beginning that was given as a prompt, in seconds, is veiled in the spectrogram.
        note: a few words below it, or what was heard.
    """

    label: str
    wav: Any
    sample_rate: int
    spectrogram: bool = True
    shade_until_s: float | None = None
    note: str | Marked = ""

    def __post_init__(self):
        if self.sample_rate < 1:
            raise ReportError(f"player {self.label!r} has a sample rate of {self.sample_rate} Hz")


@dataclass(frozen=True)
class NoPlayer:
    """A place in the grid that stays empty, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class PlayerRow:
    """Recordings that are compared with each other: they share one time axis, colour scale and loudness.

    Attributes:
        head: what they have in common ("piece 12").
        items: at most one for each label.
        note: a few words below the head.
    """

    head: str
    items: Sequence[Player | NoPlayer]
    note: str = ""

    def __post_init__(self):
        labels = [item.label for item in self.items]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ReportError(
                f"player row {self.head!r} has several items labelled {twice[0]!r}", "give each its own label"
            )


@dataclass(frozen=True)
class Players:
    """A grid of players: a row for each `PlayerRow`, a column for each label, in order of first appearance."""

    rows: Sequence[PlayerRow]
    caption: str


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis.

    Attributes:
        series: name -> points (x, y). Points that are not finite (or, with `log_y`, not positive) leave a gap, and
            their number is given below the figure.
        x_label: with the unit in brackets.
        y_label: with the unit in brackets.
        caption: what it shows.
        log_y: logarithmic vertical axis.
    """

    series: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    caption: str
    log_y: bool = False


@dataclass(frozen=True)
class Bars:
    """Groups of bars, such as codebook use: a group for each layer, a bar for each codec.

    Attributes:
        groups: names of the groups.
        series: name -> one value a group; None leaves a gap.
        x_label: what the groups are.
        y_label: with the unit in brackets.
        caption: what it shows.
        ceiling: the value that cannot be exceeded, drawn as a line.
    """

    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    x_label: str
    y_label: str
    caption: str
    ceiling: float | None = None

    def __post_init__(self):
        for name, values in self.series.items():
            if len(values) != len(self.groups):
                raise ReportError(
                    f"bars {self.caption!r}: {name!r} has {len(values)} values, there are {len(self.groups)} groups"
                )


@dataclass(frozen=True)
class KeyValues:
    """Names and values, such as settings or versions."""

    items: Mapping[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Commands:
    """Command lines that the reader can copy."""

    lines: Sequence[str]
    caption: str = ""


@dataclass(frozen=True)
class Download:
    """A file inside the report.

    Attributes:
        name: file name; `.json` takes any JSON value, `.csv` a sequence of rows, any other ending a string.
        data: what it holds; numbers that are not finite are written as empty.
        text: what the link says; empty says the name.
    """

    name: str
    data: Any
    text: str = ""


Block = Text | Note | Table | Players | Curves | Bars | KeyValues | Commands | Download


@dataclass(frozen=True)
class Section:
    """A part of a report with an entry in its navigation."""

    title: str
    blocks: Sequence[Block]
    intro: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        title: first heading.
        sections: in reading order.
        subtitle: one sentence below the title.
        provenance: blocks of the last section: commands, versions, weights, seeds, hardware, time.
        pages: name -> file beside this one, linked from the navigation.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    provenance: Sequence[Block] = field(default=())
    pages: Mapping[str, str] = field(default_factory=dict)
