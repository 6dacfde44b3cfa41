"""The result of a comparison as text for a terminal."""

from __future__ import annotations

from typing import Any

from xcodec_lm.tasks.eval.intervals import UNDECIDABLE


def format_result(result: dict[str, Any]) -> str:
    """The table, the paired differences, what would change them, and the verdict last."""
    measured = {name for row in result["rows"] for name in row["figures"]}
    metrics = [metric for metric in result["metrics"] if metric["name"] in measured]
    head, *lines = _grid(
        [["", *(metric["label"] for metric in metrics)]]
        + [[_name(row), *(_figure(row["figures"].get(metric["name"]), metric) for metric in metrics)]
           for row in result["rows"]]
    )  # fmt: skip
    seeds = result["seeds"]
    text = [
        f"{result['task']}, size {result['size']}: {result['items']} items of {result['units']} {result['unit']}s, "
        f"training seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; intervals over "
        f"{result['unit']}s{' and seeds' if len(seeds) > 1 else ''}",
        "",
        head,
        *lines,
        "",
        "what each model was trained with, mean seconds of a replication last:",
        *_facts(result),
    ]
    for pair in result["pairs"]:
        text += ["", f"{pair['a']} - {pair['b']}, paired (* decides):"]
        for metric in metrics:
            found = pair["metrics"].get(metric["name"])
            if found:
                text += _difference(found, metric)
    text += ["", *result["warnings"]] if result["warnings"] else []
    text += ["", *(f"VERDICT  {pair['sentence']}" for pair in result["pairs"])]
    needed = [f"what would change it: {pair['needed']}" for pair in result["pairs"] if pair["needed"]]
    return "\n".join([*text, *dict.fromkeys(needed)])


def _name(row: dict[str, Any]) -> str:
    return f"{row['codec']}: {row['system']}" if row["codec"] else row["system"]


def _number(value: float | None, metric: dict[str, Any], sign: str = "") -> str:
    return "-" if value is None else format(metric["scale"] * value, sign + metric["format"])


def interval(found: dict[str, Any], metric: dict[str, Any]) -> str:
    """` [low, high]`, or nothing."""
    if found.get("low") is None or found.get("high") is None:
        return ""
    return f" [{_number(found['low'], metric)}, {_number(found['high'], metric)}]"


def _figure(found: dict[str, Any] | None, metric: dict[str, Any]) -> str:
    return "" if found is None else _number(found["value"], metric) + interval(found, metric)


def _difference(found: dict[str, Any], metric: dict[str, Any]) -> list[str]:
    name = metric["label"] + (" *" if metric["primary"] else "")
    by_seed = ", ".join(_number(value, metric, "+") for value in found["by_seed"])
    seeds = f" (by seed: {by_seed})" if len(found["by_seed"]) > 1 else ""
    value = f"{_number(found['value'], metric, '+')}{interval(found, metric)}{seeds}"
    if metric["lower_is_better"] is None:
        return [f"  {name}: {value}: shown, never a verdict"]
    why = f" ({found['why']})" if found["why"] and found["verdict"] == UNDECIDABLE else ""
    lines = [f"  {name}: {value}: {found['verdict']}{why}"]
    return lines + ([f"    {found['needed']}"] if found["needed"] else [])


def _facts(result: dict[str, Any]) -> list[str]:
    """What the trainings were, a line a codec."""
    rows = [["  ", "frames/s", "codebooks", "codes/s", "steps", "audio seen", "parameters", "codes/s in training",
             "wall", "processor"]]  # fmt: skip
    for codec in result["codecs"]:
        own = [facts for facts in result["facts"] if facts["codec"] == codec]
        one = own[0]
        stages = [stage for facts in own for stage in facts["stages"].values()]
        wall, cpu = (sum(stage[name] for stage in stages) for name in ("wall_s", "cpu_s"))
        seen, speed = one.get("audio_s"), one.get("codes_per_s")
        rows.append([
            f"  {codec}", f"{one['frame_rate']:g}", str(one["n_q"]), f"{one['code_rate']:g}", str(one["steps"]),
            "-" if seen is None else f"{seen:.0f} s", f"{one['parameters'] / 1e6:.2f} M",
            "-" if speed is None else f"{speed:.0f}", f"{wall / len(own):.0f} s", f"{cpu / len(own):.0f} s",
        ])  # fmt: skip
    return _grid(rows)


def _grid(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
