"""Tables for a terminal of what `codec_compare` measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xcodec_lm.tasks.eval.intervals import LEAST_UNITS, UNDECIDABLE

TITLES = {"mel": "mel", "stft": "STFT", "si_sdr": "SI-SDR dB", "stoi": "STOI", "pesq": "PESQ"}
DECIMALS = {"mel": 3, "stft": 3, "si_sdr": 2, "stoi": 3, "pesq": 2}


def format_comparison(data: dict[str, Any]) -> str:
    """All tables of one codec, or of two and their differences."""
    names = {role: info["name"] for role, info in data["codecs"].items()}
    if len(set(names.values())) < len(names):  # two codecs of one name
        names = {role: f"{name} ({role})" for role, name in names.items()}
    blocks = [_domain(name, domain, names) for name, domain in data["domains"].items()]
    if len(names) == 2:
        rates = ", ".join(f"{names[role]} {info['bitrate_kbps']:.2f} kbps" for role, info in data["codecs"].items())
        blocks.insert(0, [f"{names['codec']} against {names['against']}; difference = first - second; {rates}"])
    if data.get("probes"):
        blocks.append(_probes(data["probes"], names))
    if data.get("abx"):
        blocks.append(_abx(data["abx"], data["abx_items"], names))
    if data.get("encoding"):
        blocks.append(_encoding(data["encoding"], names))
    if data["missing"]:
        what = " and ".join(data["missing"])
        blocks.append([f"STOI and PESQ need {what}, which are not installed: pip install 'xcodec-lm[eval]'"])
    return "\n\n".join("\n".join(block) for block in blocks)


def _domain(name: str, data: dict[str, Any], names: dict[str, str]) -> list[str]:
    unit = data["unit"]
    lines = [
        f"{data['clips']} clips, {data['seconds']:.1f} s of {name}, {data['units']} {unit}s; "
        f"means with 95 % intervals over {unit}s"
    ]
    measures = data["measures"]
    lower, higher = ([TITLES[m] for m in measures if (m in ("mel", "stft")) is low] for low in (True, False))
    lines.append(f"{' and '.join(lower)} are distances, lower is nearer; {', '.join(higher)}: higher is nearer")
    if "against" in names:
        lines += _paired(data, measures, names)
    else:
        rows = [(label, values) for label, values in data["codec"].items()] + list(data["anchors"].items())
        table = [[label, *(_figure(values[m], DECIMALS[m]) for m in measures)] for label, values in rows]
        lines += _align([["", *(TITLES[m] for m in measures)], *table])
    lines += _unscored(data, names)
    for role, codes in data["codes"].items():
        whose = f" ({names[role]})" if len(names) > 1 else ""
        lines.append(f"codes in use by layer{whose}: {' '.join(map(str, codes['used']))}; {codes['frames']} frames")
        lines.append(f"perplexity by layer{whose}:   {' '.join(f'{value:.0f}' for value in codes['perplexity'])}")
        if data["delay_samples"][role]:
            lines.append(f"delay{whose}: {data['delay_samples'][role]} samples, taken out before measuring")
    if data["units"] < LEAST_UNITS:
        lines.append(f"{data['units']} {unit}s are too few for a verdict, which takes {LEAST_UNITS}: {UNDECIDABLE}")
    return lines


def _paired(data: dict[str, Any], measures: Sequence[str], names: dict[str, str]) -> list[str]:
    table = [["", "", names["codec"], names["against"], "difference", "verdict"]]
    for label in data["codec"]:
        for measure in measures:
            digits, difference = DECIMALS[measure], data["difference"][label][measure]
            figures = [_figure(data[role][label][measure], digits) for role in ("codec", "against")]
            first = label if measure == measures[0] else ""
            table.append([first, TITLES[measure], *figures, _figure(difference, digits), difference["verdict"]])
    for anchor, values in data["anchors"].items():
        for measure in measures:
            first = anchor if measure == measures[0] else ""
            table.append([first, TITLES[measure], _figure(values[measure], DECIMALS[measure]), "", "", ""])
    return _align(table)


def _unscored(data: dict[str, Any], names: dict[str, str]) -> list[str]:
    """One line for each measure that could not judge some clips."""
    lines = []
    for measure in data["measures"]:
        counts = {
            f"{names[role]} {label}" if len(names) > 1 else label: values[measure]["unscored"]
            for role in names
            for label, values in data[role].items()
        } | {label: values[measure]["unscored"] for label, values in data["anchors"].items()}
        if listed := [f"{label} {count}" for label, count in counts.items() if count]:
            lines.append(f"clips that {TITLES[measure]} could not judge, not in its means: {', '.join(listed)}")
    return lines


def _probes(rows: list[dict[str, Any]], names: dict[str, str]) -> list[str]:
    lines = [
        "linear probes of features pooled over time: accuracy in percent, higher is better; tested on unseen units"
    ]
    table = [["task", "feature", *names.values(), *(["difference", "verdict"] if len(names) == 2 else [])]]
    task = None
    for row in rows:
        table.append([row["task"] if row["task"] != task else "", _feature(row), *_roles(row, names)])
        task = row["task"]
    lines += _align(table)
    for row in {row["task"]: row for row in rows}.values():
        lines.append(
            f"{row['task']}: {row['classes']} classes, {row['clips']} clips of all splits, {row['units']} units "
            f"({row['unit']}), most frequent label {row['chance']:.1f}"
        )
    return lines


def _abx(rows: list[dict[str, Any]], items: str, names: dict[str, str]) -> list[str]:
    lines = [f"ABX errors in percent, lower is better, chance 50; items: {items}; intervals over speakers"]
    table = [["", "feature", *names.values(), *(["difference", "verdict"] if len(names) == 2 else [])]]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        chosen = [row for row in rows if row["mode"] == mode]
        for index, row in enumerate(chosen):
            table.append([mode if index == 0 else "", _feature(row), *_roles(row, names)])
    lines += _align(table)
    for mode, row in {row["mode"]: row for row in rows}.items():
        draws = max(len(seeds) for seeds in row["by_seed"].values())
        sampled = f", mean of {draws} samples of them" if draws > 1 else ""
        lines.append(f"{mode}: {row['items']} items, {row['cells']} cells{sampled}, {row[_one(row)]['units']} speakers")
    return lines


def _encoding(data: dict[str, Any], names: dict[str, str]) -> list[str]:
    lines = [
        f"encoding, seconds per second of audio ({data['audio_s']:.1f} s, median of "
        f"{len(data['codec']['repeats'])} runs in turn, {data['device']}, {data['threads']} threads)"
    ]
    lines += _align([[name, f"{data[role]['seconds_per_second']:.4f}"] for role, name in names.items()])
    if "ratio" in data:
        ratio = data["ratio"]
        lines.append(f"{ratio['value']:.2f} times the other's [{ratio['low']:.2f}, {ratio['high']:.2f}]")
    return lines


def _roles(row: dict[str, Any], names: dict[str, str]) -> list[str]:
    cells = [_figure(row[role], 1) if row.get(role) else "" for role in names]
    if len(names) == 2:
        cells += [_figure(row["difference"], 1), row["difference"]["verdict"]] if row.get("difference") else ["", ""]
    return cells


def _one(row: dict[str, Any]) -> str:
    return next(role for role in ("codec", "against") if row.get(role))


def _feature(row: dict[str, Any]) -> str:
    return row["feature"] if row["n_q"] is None else f"{row['feature']} n_q {row['n_q']}"


def _figure(figure: dict[str, Any], decimals: int) -> str:
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "no score"
    text = f"{value:.{decimals}f}"
    return text if low is None else f"{text} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
