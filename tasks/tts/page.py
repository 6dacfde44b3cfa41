"""The page of a TTS evaluation: the table, what to listen to, how every utterance ended and what was heard of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.tasks.report import (
    Column,
    Download,
    Empty,
    KeyValues,
    Marked,
    NoPlayer,
    Note,
    Player,
    PlayerRow,
    Players,
    Report,
    Section,
    Table,
    measure_of,
    render,
)
from xcodec_lm.tasks.tts.speech import ENDINGS

SHOWN = 6
"""Utterances with players: the first of the list, and as many of the worst."""
RATE = 16_000


def write_page(
    data: dict[str, Any], manifest: Path, out: Path, path: Path | None = None, pages: Mapping[str, str] | None = None
) -> Path:
    """Writes a page from the result of `evaluate_tts` and the audio in `out`.

    Args:
        data: of `evaluate_tts`, with its items.
        manifest: the list that was spoken.
        out: where the audio of every system lies.
        path: the page; `out/report.html` without it.
        pages: name -> file of the pages beside it that it links to.
    """
    report = Report(
        "Zero-shot speech",
        tts_sections(data, manifest, out),
        subtitle=f"{data['rows']} utterances of {data['speakers']} speaker(s)",
        provenance=[listeners(data)],
        pages=pages or {},
    )
    return render(report, path or out / "report.html")


def listeners(data: dict[str, Any]) -> KeyValues:
    """Who listened, as the provenance of the figures."""
    return KeyValues({name: str(value or "none") for name, value in data["judges"].items()}, "Who listened")


def tts_sections(data: dict[str, Any], manifest: Path | None, out: Path) -> list[Section]:
    """What there is to see and hear of a result of `evaluate_tts`.

    Args:
        data: of `evaluate_tts`, with its items.
        manifest: the list that was spoken; None where it is not known, then prompts are not heard.
        out: where the audio of every system lies.
    """
    systems = [row["system"] for row in data["systems"]]
    last = next((name for name in systems if name.endswith("AR+NAR")), systems[-1])
    items = data["items"]
    grids = [Players([_players(item, systems, manifest, out) for item in items[:SHOWN]], "The first of the list")]
    intro = "Under each: how it ended."
    if data["judges"]["recogniser"] is not None:
        intro = (
            "Under each: what the recogniser heard, and how it ended. Struck out: a word that is missing, or was heard "
            "as the underlined one behind it; underlined alone: a word too many."
        )
        if len(items) > SHOWN:
            worst = sorted(
                items, key=lambda item: -item["systems"][last]["errors"] / max(1, item["systems"][last]["words"])
            )
            rows = [_players(item, systems, manifest, out) for item in worst[:SHOWN]]
            grids.append(Players(rows, f"The worst of {last}"))
    return [
        Section("Figures", [*_notes(data), _table(data), *_differences(data)]),
        Section("Listening", grids, intro=intro),
        Section("Every utterance", [_items(items, systems), Download("items.json", items)]),
    ]


def _notes(data: dict[str, Any]) -> list[Note]:
    notes = []
    if data["speakers"] < 10:
        notes.append(Note(f"{data['speakers']} speaker(s): intervals go over utterances and are of these speakers."))
    if data["judges"]["recogniser"] is None:
        notes.append(Note("No recogniser listened: no words are marked, and there are no word errors."))
    elif not data["spoken"]:
        notes.append(Note("There are no recordings of these texts: the figures give no verdict."))
    elif not data["trusted"]:
        notes.append(Note("The recogniser errs too often on real recordings: its figures give no verdict.", "warning"))
    return notes


def _table(data: dict[str, Any]) -> Table:
    rows = []
    for row in data["systems"]:
        like, total = row.get("similarity"), sum(row["ended"].values())
        own, others = (measure_of(like[name]) if like else Empty("not judged") for name in ("own", "others"))
        ended = f"{row['ended']['eos']} of {total}" if total else ""
        rows.append([row["system"], measure_of(row["wer"], 100), own, others, ended])
    return Table(
        ["system", Column("WER in %", ".1f"), Column("like own prompt", ".3f"), Column("like others", ".3f"),
         "ended by itself"],
        rows, "Word errors and likeness of the voice",
        footnote="Likeness: cosine of speaker embeddings, at one level and bandwidth.",
    )  # fmt: skip


def _differences(data: dict[str, Any]) -> list[Table]:
    rows = [[row["a"], row["b"], measure_of(row["wer"], 100), row["verdict"]] for row in data["differences"]]
    caption = "Differences in WER, paired"
    return [Table(["a", "b", Column("a - b in points", ".1f"), "a is"], rows, caption)] if rows else []


def _players(item: dict[str, Any], systems: list[str], manifest: Path | None, out: Path) -> PlayerRow:
    players: list[Player | NoPlayer] = []
    if item.get("prompt") and manifest is not None and (manifest.parent / item["prompt"]).is_file():
        wav = load_audio(manifest.parent / item["prompt"], RATE, duration_s=item.get("prompt_s")).wav[0].numpy()
        players.append(Player("prompt", wav, RATE, spectrogram=False, note=item.get("prompt_text") or ""))
    for name in systems:
        path = out / system_folder(name) / f"{item['id']}.flac"
        if not path.is_file():
            players.append(NoPlayer(name, "not written"))
            continue
        wav = load_audio(path, RATE).wav[0].numpy()
        players.append(Player(name, wav, RATE, note=_remark(item["systems"][name])))
    return PlayerRow(item["text"], players, note=item["id"])


def _items(items: list[dict[str, Any]], systems: list[str]) -> Table:
    spoken = [name for name in systems if name.endswith((" AR", "AR+NAR"))] or systems
    columns: list[Column | str] = ["id", "text"]
    heard = any("marked" in item["systems"][name] for item in items for name in spoken)
    for name in spoken:
        columns += [Column(f"errors, {name}", "d", "min"), f"heard, {name}"] if heard else []
        columns.append(f"end, {name}")
    rows: list[list[Any]] = []
    for item in items:
        row: list[Any] = [item["id"], item["text"]]
        for facts in (item["systems"][name] for name in spoken):
            row += [facts["errors"], _heard(facts)] if heard else []
            row.append(ENDINGS[facts["ended"]] if "ended" in facts else None)
        rows.append(row)
    caption = "What was heard of each, and how it ended" if heard else "How each ended"
    return Table(columns, rows, caption, contest=False, sortable=True)


def _heard(facts: dict[str, Any], after: str = "") -> Marked | str:
    """What was heard of an utterance; as plain text in results that hold no marks."""
    if "marks" in facts:
        return Marked(facts["marks"], after)
    return "; ".join(part for part in (facts["marked"] or "(nothing)", after) if part)


def _remark(facts: dict[str, Any]) -> Marked | str:
    """What was heard of an utterance, and how it ended, as far as either is known."""
    ended = ENDINGS[facts["ended"]] if "ended" in facts else ""
    return _heard(facts, ended) if "marked" in facts else ended


def system_folder(name: str) -> str:
    """The folder of a system's audio."""
    return name.replace(": ", "-").replace(" ", "-").replace("+", "-").lower()
