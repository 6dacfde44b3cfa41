"""The page of a TTS evaluation: the table, what to listen to, and what was heard of every utterance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.tasks.report import (
    Column,
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
    Section,
    Table,
    render,
)

SHOWN = 6
"""Utterances with players: the first of the list, and as many of the worst."""
RATE = 16_000


def write_page(data: dict[str, Any], manifest: Path, out: Path) -> Path:
    """Writes `out/report.html` from the result of `evaluate_tts` and the audio in `out`.

    Args:
        data: of `evaluate_tts`, with its items.
        manifest: the list that was spoken.
        out: where the audio of every system lies.
    """
    systems = [row["system"] for row in data["systems"]]
    last = next((name for name in systems if name.endswith("AR+NAR")), systems[-1])
    items = data["items"]
    worst = sorted(items, key=lambda item: -item["systems"][last]["errors"] / max(1, item["systems"][last]["words"]))
    chosen = items[:SHOWN]
    report = Report(
        "Zero-shot speech",
        [
            Section("Figures", [*_notes(data), _table(data), *_differences(data)]),
            Section(
                "Listening",
                [
                    Players([_players(item, systems, manifest, out) for item in chosen], "The first of the list"),
                    Players([_players(item, systems, manifest, out) for item in worst[:SHOWN]], f"The worst of {last}"),
                ],
                intro="Under each: what the recogniser heard; [said > heard] is a wrong word, [-word] a missing one, "
                "[+word] one too many.",
            ),
            Section("Every utterance", [_items(items, systems), Download("items.json", items)]),
        ],
        subtitle=f"{data['rows']} utterances of {data['speakers']} speaker(s)",
        provenance=[KeyValues({name: str(value) for name, value in data["judges"].items()}, "Who listened")],
    )
    return render(report, out / "report.html")


def _notes(data: dict[str, Any]) -> list[Note]:
    notes = []
    if data["speakers"] < 10:
        notes.append(Note(f"{data['speakers']} speaker(s): intervals go over utterances and are of these speakers."))
    if not data["trusted"]:
        notes.append(Note("The recogniser errs too often on real recordings: its figures give no verdict.", "warning"))
    return notes


def _table(data: dict[str, Any]) -> Table:
    rows = []
    for row in data["systems"]:
        like, total = row.get("similarity"), sum(row["ended"].values())
        own, others = (_measure(like[name]) if like else Empty("not judged") for name in ("own", "others"))
        ended = f"{row['ended']['eos']} of {total}" if total else ""
        rows.append([row["system"], _measure(row["wer"], 100), own, others, ended])
    return Table(
        ["system", Column("WER in %", ".1f"), Column("like own prompt", ".3f"), Column("like others", ".3f"),
         "ended by itself"],
        rows, "Word errors and likeness of the voice",
        footnote="Likeness: cosine of speaker embeddings, at one level and bandwidth.",
    )  # fmt: skip


def _differences(data: dict[str, Any]) -> list[Table]:
    rows = [[row["a"], row["b"], _measure(row["wer"], 100), row["verdict"]] for row in data["differences"]]
    caption = "Differences in WER, paired"
    return [Table(["a", "b", Column("a - b in points", ".1f"), "a is"], rows, caption)] if rows else []


def _players(item: dict[str, Any], systems: list[str], manifest: Path, out: Path) -> PlayerRow:
    players: list[Player | NoPlayer] = []
    if item.get("prompt"):
        wav = load_audio(manifest.parent / item["prompt"], RATE, duration_s=item.get("prompt_s")).wav[0].numpy()
        players.append(Player("prompt", wav, RATE, spectrogram=False))
    for name in systems:
        path = out / system_folder(name) / f"{item['id']}.flac"
        if not path.is_file():
            players.append(NoPlayer(name, "not written"))
            continue
        wav = load_audio(path, RATE).wav[0].numpy()
        players.append(Player(name, wav, RATE, note=item["systems"][name]["marked"] or "(nothing)"))
    return PlayerRow(item["text"], players, note=item["id"])


def _items(items: list[dict[str, Any]], systems: list[str]) -> Table:
    spoken = [name for name in systems if name.endswith((" AR", "AR+NAR"))] or systems
    columns: list[Column | str] = ["id", "text"]
    columns += [part for name in spoken for part in (Column(f"errors, {name}", "d"), f"heard, {name}")]
    rows: list[list[Any]] = []
    for item in items:
        row: list[Any] = [item["id"], item["text"]]
        for name in spoken:
            row += [item["systems"][name]["errors"], item["systems"][name]["marked"] or "(nothing)"]
        rows.append(row)
    return Table(columns, rows, "Sort by errors for the worst", sortable=True)


def _measure(estimate: dict[str, Any], scale: float = 1.0) -> Measure | Empty:
    if estimate["value"] is None:
        return Empty("not measured")
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return Measure(scale * estimate["value"])
    return Measure(scale * estimate["value"], scale * low, scale * high)


def system_folder(name: str) -> str:
    """The folder of a system's audio."""
    return name.replace(": ", "-").replace(" ", "-").replace("+", "-").lower()


def marked(marks: tuple[tuple[str, str, str], ...]) -> str:
    """What was heard, with its errors marked; marks are those of `tasks.eval.wer.Counts`."""
    words = []
    for _, said, heard in marks:
        if said == heard:
            words.append(heard)
        else:
            words.append(f"[{said} > {heard}]" if said and heard else f"[-{said}]" if said else f"[+{heard}]")
    return " ".join(words)
