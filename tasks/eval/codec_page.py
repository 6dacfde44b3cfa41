"""The sections of a page on what `codec_compare` measured: figures by domain, codebook use, probes, ABX, cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcodec_lm.tasks.eval.codec_text import DECIMALS, TITLES
from xcodec_lm.tasks.eval.intervals import LEAST_UNITS
from xcodec_lm.tasks.eval.reconstruction import LOWER_IS_BETTER
from xcodec_lm.tasks.report import (
    Bars,
    Block,
    Cell,
    Column,
    Empty,
    KeyValues,
    Measure,
    Note,
    Report,
    Section,
    Table,
    measure_of,
    render,
)

FEW = "too few units for an interval"


def write_page(data: Mapping[str, Any], out: Path, grids: list[Any], provenance: list[Any]) -> Path:
    """Writes `out/report.html`.

    Args:
        data: of `codec_compare.compare`.
        out: folder.
        grids: of `report.reconstruct_clips`.
        provenance: blocks that say how it was measured.
    """
    listening = [Section("Listening", grids)] if grids else []
    report = Report(
        "How well a codec reconstructs",
        [*codec_sections(data), *listening],
        subtitle=" against ".join(role_names(data).values()),
        provenance=provenance,
    )
    return render(report, out / "report.html")


def role_names(data: Mapping[str, Any]) -> dict[str, str]:
    """Role -> name of the codec; the role stands with it where both have one name."""
    names = {role: str(info["name"]) for role, info in data["codecs"].items()}
    if len(set(names.values())) < len(names):
        names = {role: f"{name} ({role})" for role, name in names.items()}
    return names


def codec_sections(data: Mapping[str, Any]) -> list[Section]:
    """What there is to see of a result of `codec_compare.compare`."""
    names = role_names(data)
    sections = [
        Section(f"Reconstruction of {name}", _domain(name, domain, names)) for name, domain in data["domains"].items()
    ]
    inside: list[Block] = []
    if data.get("probes"):
        inside.append(
            _rows(data["probes"], names, "task", "Linear probes: accuracy in %, tested on unseen units", "max")
        )
    if data.get("abx"):
        caption = f"ABX errors in %, chance 50; items: {data['abx_items']}"
        inside.append(_rows(data["abx"], names, "mode", caption, "min"))
    if inside:
        sections.append(Section("What the vectors tell", inside))
    what: list[Block] = [
        KeyValues({key: value for key, value in info.items() if key != "name"}, names[role])
        for role, info in data["codecs"].items()
    ]
    if data.get("encoding"):
        what.insert(0, _encoding(data["encoding"], names))
    return [*sections, Section("Codecs and cost", what)]


def _domain(name: str, data: Mapping[str, Any], names: Mapping[str, str]) -> list[Block]:
    unit, measures = data["unit"], data["measures"]
    blocks: list[Block] = []
    if data["units"] < LEAST_UNITS:
        blocks.append(Note(f"{data['units']} {unit}s: differences are shown, not decided (that takes {LEAST_UNITS})."))
    heads = [_column(measure) for measure in measures]
    rows: list[list[Cell]] = [
        [f"{names[role]}, {label}", *(measure_of(values[m], reason="no score") for m in measures)]
        for role in names
        for label, values in data[role].items()
    ]
    anchors = range(len(rows), len(rows) + len(data["anchors"]))
    rows += [[label, *(measure_of(v[m], reason="no score") for m in measures)] for label, v in data["anchors"].items()]
    caption = f"{data['clips']} clips, {data['seconds']:.1f} s of {name}, {data['units']} {unit}s"
    blocks.append(Table(["signal", *heads], rows, caption, f"95 % intervals over {unit}s.", list(anchors)))
    if "difference" in data:
        lines: list[list[Cell]] = [
            [label, TITLES[m], _figure(found[m], f".{DECIMALS[m]}f"), found[m]["verdict"], found[m]["units"]]
            for label, found in data["difference"].items()
            for m in measures
        ]
        head = f"{names['codec']} − {names['against']}"
        blocks.append(
            Table(
                ["layers", "measure", head, f"{names['codec']} is", unit + "s"], lines, f"Differences on {name}, paired"
            )
        )
    layers = max(len(codes["used"]) for codes in data["codes"].values())
    series = {names[role]: _padded(codes["used"], layers) for role, codes in data["codes"].items()}
    books = [str(layer + 1) for layer in range(layers)]
    blocks.append(Bars(books, series, "codebook", "codes in use", f"Codebook use on {name}"))
    return blocks


def _padded(values: list[float], length: int) -> list[float | None]:
    return [*values, *[None] * (length - len(values))]


def _column(measure: str) -> Column:
    return Column(TITLES[measure], f".{DECIMALS[measure]}f", "min" if LOWER_IS_BETTER[measure] else "max")


def _figure(estimate: Mapping[str, Any], spec: str) -> Measure | Empty:
    low, high = estimate.get("low"), estimate.get("high")
    if estimate["value"] is None:
        return Empty("no score")
    return Measure(estimate["value"], low, high, "" if low is not None else FEW, spec)


def _rows(rows: list[dict[str, Any]], names: Mapping[str, str], kind: str, caption: str, best: Any) -> Table:
    """Probes or ABX: a line for each task or mode and feature."""
    two = len(names) == 2
    heads: list[Column | str] = [kind, "feature", *names.values(), *(["difference", "verdict"] if two else [])]
    lines: list[list[Cell]] = []
    for row in rows:
        cells: list[Cell] = [
            _figure(row[role], ".1f") if row.get(role) else Empty("this codec has no such feature") for role in names
        ]
        if two:
            difference = row.get("difference")
            cells += [_figure(difference, ".1f"), difference["verdict"]] if difference else [None, None]
        lines.append([row[kind], row["feature"] + ("" if row["n_q"] is None else f", n_q {row['n_q']}"), *cells])
    better = "lower" if best == "min" else "higher"
    return Table(heads, lines, f"{caption}; {better} is better")


def _encoding(data: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    rows: list[list[Cell]] = [[name, data[role]["seconds_per_second"]] for role, name in names.items()]
    footnote = f"{data['audio_s']:.1f} s of audio, median of {len(data['codec']['repeats'])} runs in turn."
    if "ratio" in data:
        ratio = data["ratio"]
        footnote += f" The first takes {ratio['value']:.2f} times as long ({ratio['low']:.2f} to {ratio['high']:.2f})."
    head = Column("seconds per second of audio", ".4f", "min")
    return Table(["codec", head], rows, f"Encoding on {data['device']}, {data['threads']} thread(s)", footnote)
