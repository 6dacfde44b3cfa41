"""The results of `eval run`, and the list of metrics, as tables for a terminal."""

from __future__ import annotations

from typing import Any

from xcodec_lm.tasks.eval.intervals import LEAST_UNITS
from xcodec_lm.tasks.eval.metric_table import METRICS, Metric
from xcodec_lm.tasks.eval.registry import Entry, entries

RATES = ("wer", "cer", "class")
"""Figures that are shown in per cent."""
MOST_FAILURES = 5
LIBRARIES = (
    "libraries: jiwer Apache-2.0, pystoi MIT, pesq MIT. No code of ARCH (CC BY-NC-SA 4.0) or UniSpeech (CC BY-SA 3.0) "
    "is used."
)


def format_run(data: dict[str, Any]) -> str:
    """A result of `run_eval`."""
    few = f"; fewer than {LEAST_UNITS}, so no verdict" if data["units"] < LEAST_UNITS else ""
    lines = [
        f"suite {data['suite']}: {data['rows']} ids of {data['units']} {data['unit']}s; 95 % intervals over "
        f"{data['unit']}s{few}",
        "",
    ]
    width = max(len(system["system"]) for system in data["systems"])
    for label in _labels(data):
        first = next(one["figures"][label] for one in data["systems"] if label in one["figures"])
        arrow = {True: "lower is better", False: "higher is better", None: "for information"}[first["lower_is_better"]]
        lines.append(f"{label}{' in %' if _is_rate(label) else ''}, {arrow}")
        for system in data["systems"]:
            figure = system["figures"].get(label)
            if figure is None:
                continue
            name = system["system"] + (" *" if system["anchor"] else "")
            lines.append(f"  {name:<{width + 2}} {_number(figure['value'], label):>9} {_interval(figure, label):<20}"
                         f"{_remarks(figure, label)}".rstrip())  # fmt: skip
    if any(system["anchor"] for system in data["systems"]):
        lines.append("* an anchor: read others by where they stand between these")
    troubled = [f"{one['system']}: {one['failed']} failed, {one['silent']} silent" for one in data["systems"]
                if one["failed"] or one["silent"]]  # fmt: skip
    if data["differences"]:
        lines += ["", "differences, paired:"]
        for row in data["differences"]:
            found, label = row["difference"], row["metric"]
            lines.append(f"  {label}: {row['a']} - {row['b']}: {_number(found['value'], label)} "
                         f"{_interval(found, label)}: {row['verdict']}")  # fmt: skip
    lines += ["", *troubled] if troubled else []
    lines += [f"no verdict by {name}: {why}" for name, why in data["doubts"].items()]
    lines += [f"note: {note}" for note in data["notes"]]
    lines += [f"not measured: {name}: {why}" for name, why in data["not_measured"].items()]
    failures = data["failures"]
    for row in failures[:MOST_FAILURES]:
        lines.append(
            f"failed: {row['system']}, {row['id']}{', ' + row['metric'] if row['metric'] else ''}: {row['why']}"
        )
    if len(failures) > MOST_FAILURES:
        lines.append(f"failed: {len(failures) - MOST_FAILURES} more")
    return "\n".join(lines)


def _labels(data: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(label for system in data["systems"] for label in system["figures"]))


def _is_rate(label: str) -> bool:
    return label.partition("[")[0] in RATES


def _number(value: float | None, label: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if _is_rate(label) else f"{value:.3f}"


def _interval(figure: dict[str, Any], label: str) -> str:
    if figure.get("low") is None:
        return ""
    return f"[{_number(figure['low'], label)}, {_number(figure['high'], label)}]"


def _remarks(figure: dict[str, Any], label: str) -> str:
    found = []
    if figure.get("failed"):
        found.append(f"{figure['failed']} failed")
    if figure.get("unscored"):
        found.append(f"{figure['unscored']} without a value")
    if figure.get("empty"):
        found.append(f"{figure['empty']} empty")
    if figure.get("floor") is not None:
        found.append(f"two halves of the references: {figure['floor']:.3f}")
    if figure.get("other_captions") is not None:
        found.append(f"other captions: {figure['other_captions']:.3f}")
    if figure.get("splits"):
        found.append(f"{figure['splits']} split(s), at most {figure['most']}")
    return ", ".join(found)


# ------------------------------------------------------------------ the list


def list_metrics() -> list[dict[str, Any]]:
    """The matrix of metrics: one entry each, with what stands in for it offline and what is missing."""
    known = {entry.name: entry for entry in entries()}
    rows = []
    for metric in METRICS:
        plugins = [known[name] for name in metric.plugins]
        missing, install = _state(metric, plugins)
        rows.append({
            "metric": metric.name,
            "needs": list(metric.needs),
            "backbone": metric.paper,
            "unit": metric.unit,
            "published": [entry.name for entry in plugins if entry.tier == "published"],
            "offline": [entry.name for entry in plugins if entry.tier != "published"] or list(metric.presets),
            "better": {True: "low", False: "high", None: "info"}[metric.lower_is_better],
            "guard": metric.guard,
            "licence": metric.licence or "Apache-2.0",
            "state": missing,
            "install": install,
            "command": metric.command or "eval run",
        })  # fmt: skip
    return rows


def list_plugins() -> list[dict[str, Any]]:
    """All plug-ins: what each is, and what is missing for it."""
    rows = []
    for entry in entries():
        missing = entry.missing()
        state = "installed" if not missing else f"needs {', '.join(missing)}"
        if entry.weights and not missing:
            state = f"--weights {entry.name}=PATH ({entry.weights})"
        rows.append({
            "name": entry.name, "kind": entry.kind, "tier": entry.tier, "what": entry.what, "licence": entry.licence,
            "state": state, "install": entry.install if missing else "", "origin": entry.origin,
        })  # fmt: skip
    return rows


def format_list(licences: bool = False) -> str:
    """The list as tables."""
    lines = [f"{'metric':<12}{'needs':<20}{'backbone of the field':<38}{'offline':<28}{'better':<8}state"]
    for row in list_metrics():
        lines.append(
            f"{row['metric']:<12}{', '.join(row['needs']) or '-':<20}{row['backbone'] or '-':<38.37}"
            f"{', '.join(row['offline']) or 'always':<28.27}{row['better']:<8}{row['state']}"
        )
        if row["install"]:
            lines.append(f"{'':<12}{row['install']}")
    lines += ["", f"{'plug-in':<14}{'kind':<13}{'what it is':<44}{'licence' if licences else 'state'}"]
    for row in list_plugins():
        last = row["licence"] if licences else row["state"]
        lines.append(f"{row['name']:<14}{row['kind']:<13}{row['what']:<44.43}{last}")
        if row["install"] and not licences:
            lines.append(f"{'':<14}{row['install']}")
    if licences:
        lines += ["", LIBRARIES]
    return "\n".join(lines)


def _state(metric: Metric, plugins: list[Entry]) -> tuple[str, str]:
    """What is there for a metric, and the line that brings what is not."""
    import importlib.util

    if metric.package and importlib.util.find_spec(metric.package) is None:
        return f"needs {metric.package}", metric.install
    if metric.scope == "elsewhere":
        return f"see {metric.command}", ""
    if not plugins:
        return "installed", ""
    free = [entry.name for entry in plugins if not entry.weights and not entry.missing()]
    if free:
        return f"installed ({free[0]})", ""
    given = [entry.name for entry in plugins if not entry.missing()]
    package = next((entry.install for entry in plugins if entry.tier == "package" and entry.install), "")
    return f"needs weights ({', '.join(given)})" if given else "needs a plug-in", package
