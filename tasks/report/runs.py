"""What a run folder tells: its curves, its provenance, and in what two runs' configurations differ."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from xcodec_lm import configs
from xcodec_lm.codec.runtime.run import dotted, read_metrics
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.tasks.report.document import Bars, Block, Cell, Commands, Curves, Empty, KeyValues, Note, Table

EVAL = "eval/"
ASIDE = ("step", "n_q", "time")
"""Keys of metrics.jsonl that are no curve."""
LAST = ("lr", "grad_norm", "speed/")
"""Beginnings of keys whose curves come last."""
PLACES = ("data.manifests", "data.tokens", "data.cache", "run.threads", "data.workers")
"""Settings that say where things lie and how fast they go, not what is trained."""
TWIN_GROUP = "semantic."
"""X-Codec and its twin differ in this group of settings alone."""


def run_curves(runs: Mapping[str, Path | Sequence[Mapping[str, float]]], of: Sequence[str] = ()) -> list[Curves]:
    """A chart for every quantity in metrics.jsonl; runs share charts, and validation stands beside training.

    Quantities of each codebook (`bits_q1`, `eval/mel_nq8`) share charts of their own when there is one run. What was
    written once is no curve: `last_values` has it.

    Args:
        runs: name -> run folder, or the rows of its metrics.jsonl.
        of: quantities to draw, without `eval/`; empty draws all.
    """
    rows = _rows_of(runs)
    keys = _keys(rows)
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key in keys:
        chart, words = key.removeprefix(EVAL), []
        if of and chart not in of:
            continue
        numbered = re.fullmatch(r"(.+?)_(nq|q|)(\d+)", chart) if len(rows) == 1 else None
        if numbered:
            chart = f"{numbered[1]}, {'validation' if key.startswith(EVAL) else 'training'}"
            words = [f"{'codebook' if numbered[2] != 'nq' else 'n_q'} {numbered[3]}"]
        elif key.startswith(EVAL) or EVAL + chart in keys:
            words = ["validation" if key.startswith(EVAL) else "training"]
        for name, run in rows.items():
            points = [(row["step"], row[key]) for row in run if isinstance(row.get(key), int | float) and "step" in row]
            if points:
                charts.setdefault(chart, {})[", ".join([name] * (len(rows) > 1) + words) or chart] = points
    kept = {chart: series for chart, series in charts.items() if any(len(points) > 1 for points in series.values())}
    order = sorted(kept, key=lambda chart: chart.startswith(LAST))
    return [Curves(kept[chart], "step", chart, _title(chart), _spans(kept[chart])) for chart in order]


def last_values(runs: Mapping[str, Path | Sequence[Mapping[str, float]]], caption: str = "Last values") -> Table:
    """The last value of every quantity in metrics.jsonl.

    Args:
        runs: as of `run_curves`.
        caption: of the table.
    """
    rows, lines = _rows_of(runs), []
    for key in _keys(rows):
        cells: list[Cell] = []
        for run in rows.values():
            found = [row[key] for row in run if isinstance(row.get(key), int | float)]
            cells.append(found[-1] if found else Empty("this run does not log it"))
        lines.append([key, *cells])
    return Table(["quantity", *rows], lines, caption)


def codebook_use(runs: Mapping[str, Path | Sequence[Mapping[str, float]]], caption: str = "Codebook use") -> list[Bars]:
    """Codes in use by codebook at the last validation, of codec runs; nothing where none was logged.

    Args:
        runs: as of `run_curves`.
        caption: of the figure.
    """
    found: dict[str, dict[int, float]] = {}
    for name, run in _rows_of(runs).items():
        for row in run:
            for key, value in row.items():
                if numbered := re.fullmatch(EVAL + r"codes_used_(\d+)", key):
                    found.setdefault(name, {})[int(numbered[1])] = value
    books = sorted({book for used in found.values() for book in used})
    series = {name: [used.get(book) for book in books] for name, used in found.items()}
    return [Bars([str(book) for book in books], series, "codebook", "codes in use", caption)] if books else []


def _rows_of(runs: Mapping[str, Path | Sequence[Mapping[str, float]]]) -> dict[str, list[Mapping[str, float]]]:
    return {name: [*read_metrics(run)] if isinstance(run, Path) else list(run) for name, run in runs.items()}


def _keys(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    return list(dict.fromkeys(key for run in rows.values() for row in run for key in row if key not in ASIDE))


def _title(key: str) -> str:
    words = key.replace("/", ": ").replace("_", " ")
    return words[0].upper() + words[1:]


def _spans(series: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    """Whether a logarithmic axis is due: all values positive, over a factor of more than thirty."""
    values = [y for points in series.values() for _, y in points]
    return min(values) > 0 and max(values) > 30 * min(values)


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run folder, or of a YAML file, as dotted keys.

    Raises:
        XcodecLMError: the folder has no config.yaml that can be read.
    """
    path = run / "config.yaml" if run.is_dir() else run
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise XcodecLMError(f"cannot read {path}: {error}", "give a run folder that a train command wrote") from None
    if not isinstance(tree, dict):
        raise XcodecLMError(f"{path} holds no settings", "give a run folder that a train command wrote")
    if not run.is_dir():  # a preset: what it leaves out stands in its base and in the defaults
        for cls in dict.fromkeys(configs.FAMILIES.values()):
            with contextlib.suppress(ConfigError):
                return dotted(configs.to_dict(configs.load(path, cls)))
    return dotted(tree)


def config_difference(
    runs: Mapping[str, Path | Mapping[str, Any]], twins: bool = False, caption: str = ""
) -> list[Block]:
    """The settings in which runs differ, and no others.

    Args:
        runs: name -> run folder or YAML file, or nested settings.
        twins: the runs should differ in the semantic path alone; a caution says what else differs.
        caption: of the table.

    Raises:
        XcodecLMError: a configuration cannot be read.
    """
    flat = {name: read_config(run) if isinstance(run, Path) else dotted(dict(run)) for name, run in runs.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    missing = Empty("this run has no such setting")
    differing = [key for key in keys if len({_text(s[key]) if key in s else None for s in flat.values()}) > 1]
    rows = [[key, *(_text(s[key]) if key in s else missing for s in flat.values())] for key in differing]
    title = caption or f"Settings in which {' and '.join(flat)} differ"
    equal = len(keys) - len(differing)
    if not rows:
        return [Note(f"{' and '.join(flat)} have equal configurations ({equal} settings).")]
    footnote = f"The other {equal} settings are equal."
    blocks: list[Block] = [Table(["setting", *flat], rows, title, footnote)]
    odd = [key for key in differing if not key.startswith(TWIN_GROUP) and key not in PLACES]
    if twins and odd:
        blocks.insert(
            0,
            Note(f"These are no twins: beyond the semantic path they differ in {', '.join(odd)}, so a difference "
                 "between them may come from that.", "warning"),
        )  # fmt: skip
    return blocks


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "(empty)"
    return str(value) if value not in (None, "") else "(none)"


# ---------------------------------------------------------------------- provenance


def run_provenance(run: Path, name: str = "") -> list[Block]:
    """How a run was made: command, versions, source revision, machine, seed, steps, fingerprints, when it ended.

    What the folder does not hold is said to be not recorded.
    """
    command, environment = _read_text(run / "command.txt").strip(), _read_json(run / "env.json")
    settings = read_config(run) if (run / "config.yaml").is_file() else {}
    rows = read_metrics(run)
    facts: dict[str, Any] = {
        "seed": settings.get("run.seed"),
        "steps": f"{rows[-1]['step']:.0f} of {settings.get('optim.steps', 'unknown')}" if rows else None,
        "last written": _written(run / "metrics.jsonl"),
        "source revision": environment.get("git"),
        "device": environment.get("device"),
        "threads": environment.get("threads"),
        "python": environment.get("python"),
        "platform": environment.get("platform"),
        **(environment.get("versions") or {}),
        **_model_facts(run / "model"),
    }
    title = name or run.resolve().name
    return [Commands([command] if command else [], f"{title}: command"), KeyValues(facts, f"{title}: environment")]


def provenance(
    commands: Sequence[str] = (), files: Mapping[str, Path] | None = None, seeds: Mapping[str, int] | None = None,
    seconds: float | None = None, facts: Mapping[str, Any] | None = None, environment: bool = True,
) -> list[Block]:  # fmt: skip
    """How figures were made.

    Args:
        commands: lines that make them again.
        files: name -> manifest, list or weights; each is shown with the first 16 digits of its sha256.
        seeds: name -> seed.
        seconds: that it took.
        facts: what else is known: fingerprints, evaluators and their ancestry, cache hits.
        environment: add this process's versions, machine and source revision.
    """
    values: dict[str, Any] = {f"seed of {name}": seed for name, seed in (seeds or {}).items()}
    values |= {f"{name} (sha256)": file_hash(path) for name, path in (files or {}).items()}
    if seconds is not None:
        values["time"] = duration_text(seconds)
    values |= {name: _fact(value) for name, value in (facts or {}).items()}
    if environment:
        from xcodec_lm.codec.runtime.run import environment as here

        found = here("cpu")
        values |= {"source revision": found["git"], "python": found["python"], "platform": found["platform"]}
        values |= {"threads": found["threads"], **found["versions"]}
    return [Commands(list(commands), "Commands"), KeyValues(values, "Conditions")]


def duration_text(seconds: float) -> str:
    """A time for a person: `48 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def file_hash(path: Path) -> str:
    """The first 16 digits of a file's sha256, or that it is not there."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return digest.hexdigest()[:16]


def _fact(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value


def _model_facts(folder: Path) -> dict[str, Any]:
    """Fingerprints that a model's config.json states, and the hash of its weights."""
    config = _read_json(folder / "config.json")
    facts = {}
    if own := (config.get("xcodec_lm") or {}).get("fingerprint"):
        facts["codec fingerprint"] = own
    codec = config.get("codec")
    if isinstance(codec, dict) and codec.get("fingerprint"):
        facts["speaks the tokens of"] = f"{(codec.get('spec') or {}).get('name', 'a codec')}, {codec['fingerprint']}"
    weights = folder / "model.safetensors"
    if weights.is_file():
        facts["weights (sha256)"] = file_hash(weights)
    return facts


def _written(path: Path) -> str | None:
    if not path.is_file():
        return None
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
