"""Line and bar charts as inline SVG.

Series differ in colour, dash and, for bars, in order, so that they are told apart without colour vision and in print.
Colours are named by class (`series-0` ...) and set by the page; the attributes here are what shows outside of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, PLOT_HEIGHT = 600, 250
CHAR_WIDTH = 6.4
"""Mean width of a character at the 12 px of the labels; only the room kept for text depends on it."""
COLOURS = ("#0b66a3", "#c2510a", "#0a7d5a", "#a3488a", "#8a6a00", "#5b6470")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2 1 2")
LARGEST_POINTS = 600
"""A longer line is thinned to the least and greatest value of each stretch, which keeps every spike."""

LARGEST_VALUE = 1e100
"""What lies beyond is drawn no more than infinity is; within, no step of the arithmetic overflows."""

Point = tuple[float, float]


def curves_svg(
    series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, log_y: bool = False, title: str = ""
) -> str:
    """A line chart.

    Args:
        series: name -> points (x, y), drawn in their order; points that cannot be drawn break the line.
        x_label: with the unit.
        y_label: with the unit.
        log_y: logarithmic vertical axis.
        title: what it shows, for screen readers.

    Returns:
        An `<svg>` element, or an empty string when no point can be drawn.
    """
    runs = {name: _runs(points, log_y) for name, points in series.items()}
    drawn = [point for parts in runs.values() for part in parts for point in part]
    if not drawn:
        return ""
    scale = math.log10 if log_y else float
    x_low, x_high = _span([x for x, _ in drawn])
    y_low, y_high = _span([scale(y) for _, y in drawn], margin=0.04)
    y_marks = _labelled(log_ticks(10**y_low, 10**y_high) if log_y else nice_ticks(y_low, y_high))
    x_marks = _labelled(nice_ticks(x_low, x_high, 7))
    frame = _Frame(x_label, y_label, [text for _, text in y_marks], list(series))

    def place(x: float, y: float) -> Point:
        return frame.x((x - x_low) / (x_high - x_low)), frame.y((scale(y) - y_low) / (y_high - y_low))

    parts = frame.axes(
        [(place(x_low, value)[1], text) for value, text in y_marks],
        [(place(value, drawn[0][1])[0], text) for value, text in x_marks],
    )
    for index, name in enumerate(series):
        for run in runs[name]:
            places = [place(x, y) for x, y in _thin(run)]
            if len(places) == 1:
                x, y = places[0]
                parts.append(f'<circle {_stroke(index)} cx="{x:.1f}" cy="{y:.1f}" r="3" stroke-width="1.6"/>')
            else:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
                parts.append(f'<path {_stroke(index)} d="M{path}" stroke-width="1.6"/>')
    return frame.close(parts, f"{title}. Lines: " + "; ".join(_describe(name, runs[name]) for name in series))


def bars_svg(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    x_label: str,
    y_label: str,
    ceiling: float | None = None,
    title: str = "",
) -> str:
    """A chart of grouped bars from zero, each with its value above it where there is room.

    Args:
        groups: names of the groups.
        series: name -> one value a group; what is None or not finite leaves a gap.
        x_label: what the groups are.
        y_label: with the unit.
        ceiling: drawn as a dashed line.
        title: what it shows, for screen readers.

    Returns:
        An `<svg>` element, or an empty string when there is no value.
    """
    values = {name: [_within(value) for value in row] for name, row in series.items()}
    ceiling = _within(ceiling)
    shown = [value for row in values.values() for value in row if value is not None]
    if not shown:
        return ""
    low, high = _span([0.0, *shown, ceiling or 0.0])
    high += 0.08 * (high - low)  # room for the values above the bars
    y_marks = _labelled(nice_ticks(low, high))
    frame = _Frame(x_label, y_label, [text for _, text in y_marks], list(series) if len(series) > 1 else [], bars=True)

    def place(y: float) -> float:
        return frame.y((y - low) / (high - low))

    slot = (frame.right - frame.left) / len(groups)
    thick = min(46.0, 0.72 * slot / len(series))
    x_marks = [(frame.left + (index + 0.5) * slot, name) for index, name in enumerate(groups)]
    parts = frame.axes([(place(value), text) for value, text in y_marks], x_marks)
    has_room = thick >= CHAR_WIDTH * max(len(format_tick(value)) for value in shown)
    for index, row in enumerate(values.values()):
        for (middle, _), value in zip(x_marks, row, strict=True):
            if value is None:
                continue
            left = middle + (index - len(series) / 2) * thick
            top, bottom = sorted((place(value), place(0)))
            parts.append(_bar(index, left + 1, top, max(0.5, thick - 2), bottom - top))
            if has_room:
                parts.append(_text(left + thick / 2, top - 4, format_tick(value), kind="value"))
    if ceiling is not None:
        parts.append(_rule(frame.left, frame.right, place(ceiling), 'class="ceiling" stroke-dasharray="3 3"'))
        parts.append(_text(frame.right, place(ceiling) - 4, format_tick(ceiling), "end"))
    told = (
        f"{name}: "
        + ", ".join(f"{g} {'none' if v is None else format_tick(v)}" for g, v in zip(groups, row, strict=True))
        for name, row in values.items()
    )
    return frame.close(parts, f"{title}. Bars: " + "; ".join(told))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round, evenly spaced numbers (steps of 1, 2 or 5 times a power of ten) within [low, high].

    Args:
        low: finite, below `high`.
        high: finite.
        count: how many are wanted; there are two at least, and at most 2.5 times as many and one.
    """
    width = high - low
    power = math.floor(math.log10(width / count))
    for exponent, factor in ((power + 1, 1), (power, 5), (power, 2), (power, 1), (power - 1, 5), (power - 1, 2)):
        step = factor * 10.0**exponent
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= max(2, count - 1):
            break
    digits = max(0, -exponent)
    return [round(index * step, digits) + 0.0 for index in range(first, last + 1)]  # + 0.0 turns -0 into 0


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high] for a logarithmic axis: powers of ten, with 2 and 5 between them if need be.

    Args:
        low: positive, below `high`.
        high: positive.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 8))
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found
    return nice_ticks(low, high, 4)


def format_tick(value: float, digits: int = 5) -> str:
    """A number for a person: thousands apart, no trailing zeros, powers of ten when very large or small."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    else:
        text = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−", 1) if value < 0 else text


def undrawable(points: Sequence[Point], log_y: bool = False) -> int:
    """How many points a line chart leaves out: not finite or, on a logarithmic axis, not positive."""
    return sum(not _drawable(point, log_y) for point in points)


class _Frame:
    """The rectangle of a chart, and what stands around it: axes, labels, legend."""

    def __init__(self, x_label: str, y_label: str, y_texts: Sequence[str], legend: Sequence[str], bars: bool = False):
        self.x_label, self.y_label, self.legend, self.bars = x_label, y_label, legend, bars
        self.left = 34 + CHAR_WIDTH * max(len(text) for text in y_texts)
        self.right = WIDTH - 12.0
        self.rows = self._legend_rows()
        # A row is kept even without a legend, so that neighbours line up.
        self.top = 12.0 + 20 * (1 + max((row for row, _ in self.rows), default=0))
        self.bottom = self.top + PLOT_HEIGHT
        self.height = self.bottom + (46 if x_label else 28)

    def _legend_rows(self) -> list[tuple[int, float]]:
        """Row and left end of each entry, wrapped at the right edge."""
        places, row, left = [], 0, self.left
        for name in self.legend:
            need = 34 + CHAR_WIDTH * len(name) + 18
            if left + need > WIDTH and left > self.left:
                row, left = row + 1, self.left
            places.append((row, left))
            left += need
        return places

    def x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        return self.bottom - share * (self.bottom - self.top)

    def axes(self, y_marks: Sequence[tuple[float, str]], x_marks: Sequence[tuple[float, str]]) -> list[str]:
        """Grid lines, marks and labels; marks are places with their texts."""
        width = self.right - self.left
        parts = []
        for place, text in y_marks:
            parts.append(_rule(self.left, self.right, place, 'stroke-opacity="0.15"'))
            parts.append(_text(self.left - 7, place + 4, text, "end"))
        widest = max((CHAR_WIDTH * len(text) + 8 for _, text in x_marks), default=0)
        every = max(1, math.ceil(len(x_marks) * widest / width))  # leave some out rather than let them overlap
        parts += [_text(place, self.bottom + 17, text) for place, text in x_marks[::every]]
        parts.append(_rule(self.left, self.right, self.bottom))
        turn = f'transform="translate(13 {(self.top + self.bottom) / 2:.1f}) rotate(-90)"'
        parts.append(f'<text class="label" {turn} text-anchor="middle">{escape(self.y_label)}</text>')
        parts.append(_text(self.left + width / 2, self.bottom + 38, self.x_label, kind="label"))
        return parts

    def close(self, parts: list[str], told: str) -> str:
        """The whole element: what was drawn, the legend, and the text for screen readers."""
        for index, (name, (row, left)) in enumerate(zip(self.legend, self.rows, strict=True)):
            y = 10 + 20 * row
            if self.bars:
                parts.append(_bar(index, left + 13, y - 6, 12, 12))
            else:
                parts.append(f'<path {_stroke(index)} d="M{left:.1f} {y}h26" stroke-width="2"/>')
            parts.append(_text(left + 32, y + 4, name, "start"))
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-label="{escape(told.lstrip(". "))}" '
            f'font-size="12" fill="currentColor">{"".join(parts)}</svg>'
        )


def _stroke(index: int) -> str:
    index %= len(COLOURS)
    dash = f' stroke-dasharray="{DASHES[index]}"' if DASHES[index] else ""
    return f'class="series-{index}" stroke="{COLOURS[index]}" fill="none"{dash}'


def _bar(index: int, x: float, y: float, width: float, height: float) -> str:
    index %= len(COLOURS)
    style = f'class="bar series-{index}" fill="{COLOURS[index]}"'
    return f'<rect {style} x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _rule(left: float, right: float, y: float, style: str = "") -> str:
    return f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="currentColor" {style}/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "mark") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _within(value: float | None) -> float | None:
    return value if value is not None and abs(value) <= LARGEST_VALUE else None  # NaN is not


def _drawable(point: Point, log_y: bool) -> bool:
    x, y = point
    return (
        abs(x) <= LARGEST_VALUE and abs(y) <= LARGEST_VALUE and (not log_y or y >= 1 / LARGEST_VALUE)
    )  # NaN is neither


def _runs(points: Sequence[Point], log_y: bool) -> list[list[Point]]:
    """The stretches of a line between points that cannot be drawn."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if _drawable(point, log_y):
            runs[-1].append((float(point[0]), float(point[1])))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thin(run: list[Point]) -> list[Point]:
    if len(run) <= LARGEST_POINTS:
        return run
    size = math.ceil(len(run) / (LARGEST_POINTS // 2))
    thinned = [run[0]]
    for start in range(0, len(run), size):
        stretch = range(start, min(start + size, len(run)))
        least, greatest = min(stretch, key=lambda i: run[i][1]), max(stretch, key=lambda i: run[i][1])
        thinned += [run[index] for index in sorted({least, greatest})]
    return [*thinned, run[-1]]


def _span(values: Sequence[float], margin: float = 0.0) -> Point:
    """The ends of an axis: never equal, with a margin at both."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = 0.5 * abs(low) or 0.5
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)


def _labelled(marks: Sequence[float]) -> list[tuple[float, str]]:
    """Marks with their texts, with as many digits as it takes to tell them apart."""
    for digits in range(5, 17):
        texts = [format_tick(value, digits) for value in marks]
        if len(set(texts)) == len(texts):
            break
    return list(zip(marks, texts, strict=True))


def _describe(name: str, runs: list[list[Point]]) -> str:
    points = [point for run in runs for point in run]
    if not points:
        return f"{name}: no points"
    (x0, y0), (x1, y1) = points[0], points[-1]
    least = min(y for _, y in points)
    course = f"from {format_tick(y0)} at {format_tick(x0)} to {format_tick(y1)} at {format_tick(x1)}"
    return f"{name} {course}, least {format_tick(least)}"
