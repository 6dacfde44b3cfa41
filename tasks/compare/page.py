"""The page of a comparison: verdict, figures, differences, what to listen to, every item, how it was made."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.tasks.compare.replication import FIRST_BOOK, MODEL, RESYNTHESIS, TRUTH, Replication
from xcodec_lm.tasks.report import (
    Block,
    Cell,
    Column,
    Commands,
    Curves,
    Download,
    KeyValues,
    Note,
    Player,
    PlayerRow,
    Players,
    Report,
    Section,
    Table,
    Text,
    measure_of,
    render,
)
from xcodec_lm.tasks.sound.evaluate import sound_file
from xcodec_lm.tasks.tts.page import system_folder

SHOWN = 4
"""Items with players."""
MOST_ITEMS = 400
RATE = 16_000
"""Of what is played."""


def write_page(result: dict[str, Any], found: Sequence[Replication], out: Path, command: str = "") -> Path:
    """Writes `out/report.html`.

    Args:
        result: of `judge_all`.
        found: the replications.
        out: folder.
        command: that made it.
    """
    seeds = ", ".join(map(str, result["seeds"]))
    report = Report(
        f"Does this codec make the {result['task']} model better?",
        [
            Section("Verdict", _verdict(result)),
            Section("Figures", [_figures(result)]),
            Section("Listening", [Players(_listening(found), "The first items, by the first seed")]),
            Section("Training", _training(result, found)),
            Section("Every item", [_items(found), Download("compare.json", result)]),
        ],
        subtitle=f"{', '.join(result['codecs'])}; {result['items']} items of {result['units']} {result['unit']}s; "
        f"training seeds {seeds}",
        provenance=[
            *([Commands([command])] if command else []),
            KeyValues({"data": result["data"], "size": result["size"]}, "What was compared"),
            KeyValues(_plain(result["judges"]), "Who listened"),
        ],
    )
    return render(report, out / "report.html")


def _verdict(result: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [Text(pair["sentence"][:1].upper() + pair["sentence"][1:] + ".") for pair in result["pairs"]]
    blocks += [Text(f"What would change it: {pair['needed']}.") for pair in result["pairs"] if pair["needed"]]
    blocks += [Note(text, "warning" if text.startswith("note: ") else "info") for text in result["warnings"]]
    blocks += [Note(f"No verdict by {name}: {why}.", "warning") for name, why in result["doubts"].items()]
    for pair in result["pairs"]:
        rows: list[list[Cell]] = []
        for metric in result["metrics"]:
            one = pair["metrics"].get(metric["name"])
            if one is None or one["value"] is None:
                continue
            by_seed = ", ".join(format(metric["scale"] * value, "+" + metric["format"]) for value in one["by_seed"])
            verdict = one["verdict"] or "shown, never a verdict"
            rows.append([metric["label"] + (" (primary)" if metric["primary"] else ""),
                         measure_of(one, metric["scale"]), by_seed, verdict, one["why"] or one["needed"]])  # fmt: skip
        columns: list[Column | str] = [
            "metric",
            "difference",
            "by seed",
            f"{pair['a']} is",
            "why, or what would change it",
        ]
        blocks.append(Table(columns, rows, f"{pair['a']} minus {pair['b']}, paired",
                            footnote="Intervals of 95 % over units and, where there are several, seeds."))  # fmt: skip
    return blocks


def _figures(result: dict[str, Any]) -> Table:
    metrics = [one for one in result["metrics"] if any(one["name"] in row["figures"] for row in result["rows"])]
    best = {True: "min", False: "max", None: None}
    columns: list[Column | str] = ["codec", "system"]
    columns += [Column(one["label"], one["format"], best[one["lower_is_better"]]) for one in metrics]  # type: ignore[arg-type]
    rows: list[list[Cell]] = []
    for row in result["rows"]:
        cells: list[Cell] = [row["codec"] or "", row["system"]]
        for metric in metrics:
            figure = row["figures"].get(metric["name"])
            cells.append(measure_of(figure, metric["scale"]))
        rows.append(cells)
    others = [index for index, row in enumerate(result["rows"]) if row["system"] != MODEL]
    return Table(columns, rows, "Models and anchors", references=others,
                 footnote="Only models are compared; the other rows are what they cannot beat, or must.")  # fmt: skip


# ------------------------------------------------------------------ what is heard


def _listening(found: Sequence[Replication]) -> list[PlayerRow]:
    seed = found[0].seed
    group = [one for one in found if one.seed == seed]
    shown = {"tts": _said, "music": _continued, "sound": _made}[group[0].task]
    return shown(group)


def _player(label: str, path: Path, note: str = "") -> list[Player]:
    if not path.is_file():
        return []
    return [Player(label, load_audio(path, RATE).wav[0].numpy(), RATE, note=note)]


def _said(group: list[Replication]) -> list[PlayerRow]:
    rows = []
    names = {RESYNTHESIS: "resynthesis", FIRST_BOOK: "AR", MODEL: "AR+NAR"}
    for item in group[0].of(TRUTH)[:SHOWN]:
        players = _player(TRUTH, group[0].folder / "audio" / system_folder("ground truth") / f"{item['id']}.flac")
        for one in group:
            audio = one.folder / "audio"
            for system, name in names.items():
                own = [row for row in one.of(system) if row["id"] == item["id"]]
                players += _player(f"{one.codec}: {system}",
                                   audio / system_folder(f"{one.codec}: {name}") / f"{item['id']}.flac",
                                   own[0].get("marked", "") if own else "")  # fmt: skip
        rows.append(PlayerRow(item["text"], players, note=item["id"]))
    return rows


def _continued(group: list[Replication]) -> list[PlayerRow]:
    rows = []
    listed = (group[0].folder / "sets" / "sets.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, listed[:SHOWN]):
        sets = group[0].folder / "sets"
        players = _player("prompt", sets / row["prompt"]) + _player("what follows", sets / row["reference"])
        for one in group:
            for system, name in ((RESYNTHESIS, "resynthesis"), (MODEL, "continuation")):
                players += _player(f"{one.codec}: {system}", one.folder / "sets" / name / f"{row['id']}.flac")
        rows.append(PlayerRow(row["source"], players, note=f"from {row['start']:g} s"))
    return rows


def _made(group: list[Replication]) -> list[PlayerRow]:
    rows = []
    for item in group[0].of(MODEL)[:SHOWN]:
        players: list[Player] = []
        for one in group:
            for system, name in ((RESYNTHESIS, "resynthesis"), (MODEL, "made")):
                path = sound_file(one.folder / "audio", f"{one.codec}: {name}", item["id"])
                own = [row for row in one.of(system) if row["id"] == item["id"]]
                players += _player(f"{one.codec}: {system}", path, str(own[0].get("heard") or "") if own else "")
        rows.append(PlayerRow(item["caption"], players, note=item["id"]))
    return rows


# ------------------------------------------------------------------ how it was made


def _training(result: dict[str, Any], found: Sequence[Replication]) -> list[Block]:
    rows: list[list[Cell]] = []
    for one in found:
        facts = one.facts
        wall, cpu = (sum(stage[name] for stage in facts["stages"].values()) for name in ("wall_s", "cpu_s"))
        rows.append([one.codec, one.seed, facts["frame_rate"], facts["n_q"], facts["code_rate"], facts["steps"],
                     facts["rows_per_step"], facts["row_s"], facts.get("audio_s"), facts["parameters"],
                     facts["bits_per_s"],
                     facts.get("codes_per_s"), wall, cpu])  # fmt: skip
    heads: list[Column | str] = [
        "codec", "seed", "frames/s", "codebooks", "codes/s", "steps", "rows a step", "seconds a row", "audio seen (s)",
        "parameters", Column("bits per second", ".1f"), Column("codes/s in training", ".0f"),
        Column("wall (s)", ".0f"), Column("processor (s)", ".0f"),
    ]  # fmt: skip
    footnote = "Rows and steps are equal in seconds of audio; codebooks and frames are the codec's."
    table = Table(heads, rows, "What every model was trained with", footnote=footnote)
    return [table, *_curves(found)]


def _curves(found: Sequence[Replication]) -> list[Block]:
    """Training curves in bits per code, of each codec's first seed, one figure for each part of a model."""
    by_part: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    seed = found[0].seed
    for one in (one for one in found if one.seed == seed):
        for path in sorted(one.run.glob("**/metrics.jsonl")):
            part = path.parent.relative_to(one.run).as_posix()
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            points = [(row["step"], row["bits"]) for row in rows if "bits" in row]
            by_part["" if part == "." else part][one.codec] = points
    return [Curves(series, "step", "bits per code", f"Training{f' of the {part.upper()}' if part else ''}")
            for part, series in by_part.items()]  # fmt: skip


def _items(found: Sequence[Replication]) -> Table:
    """A row for every item of the models, with its figures by codec and seed."""
    names = ("errors", "words", "similarity", "bits_per_s", "class", "clap")
    rows: list[list[Cell]] = []
    used = [name for name in names if any(name in item for one in found for item in one.of(MODEL))]
    for one in found:
        for item in one.of(MODEL):
            said = item.get("marked") if "marked" in item else item.get("heard")
            rows.append([one.codec, one.seed, item["id"], item["unit"], *(item.get(name) for name in used), said or ""])
    caption = "Items of the models; sort by a figure for the worst"
    left = f" The first {MOST_ITEMS} of {len(rows)}; items.jsonl has all." if len(rows) > MOST_ITEMS else ""
    return Table(["codec", "seed", "id", "unit", *used, "heard"], rows[:MOST_ITEMS], caption, footnote=left.strip(),
                 sortable=True)  # fmt: skip


def _plain(judges: Any) -> dict[str, str]:
    if not isinstance(judges, dict):
        return {"judges": str(judges)}
    return {name: json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
            for name, value in judges.items()}  # fmt: skip
