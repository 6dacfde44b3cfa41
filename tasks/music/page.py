"""The page of `music eval`: bits per second beside anchors, code entropy, continuations to listen to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile as sf

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.configs.errors import AudioError
from xcodec_lm.tasks.report import (
    Bars,
    Block,
    Cell,
    Column,
    KeyValues,
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

SHOWN = 6
"""Prompts with players, of different pieces as far as there are so many."""
LABELS = {
    "prompt": "prompt",
    "reference": "what follows",
    "resynthesis": "its resynthesis",
    "continuation": "continued",
}


def write_page(data: Mapping[str, Any], out: Path, provenance: list[Any]) -> Path:
    """Writes `out/report.html`.

    Args:
        data: of `evaluate_music`.
        out: where the sets of audio lie.
        provenance: blocks that say how it was measured.
    """
    subtitle = (
        f"{data['layout']} of {data['n_q']} codebook(s) of {data['codec']}; {data['recordings']} recordings of split "
        f"{data['split']}, {data['seconds']:.0f} s"
    )
    return render(Report("Music continuation", music_sections(data, out), subtitle, provenance), out / "report.html")


def music_sections(data: Mapping[str, Any], out: Path) -> list[Section]:
    """What there is to see and hear of a result of `evaluate_music`.

    Args:
        data: of `evaluate_music`.
        out: where the sets of audio lie.
    """
    rows: list[list[Cell]] = []
    for name, system in data["bits"].items():
        difference = system["model_minus_this"]
        rows.append([name, measure_of(system["bits_per_s"]), measure_of(difference, reason="this is the model")])
    table = Table(
        ["system", Column("bits per second", ".1f", "min"), Column("model − this", ".1f")], rows,
        f"Bits per second of unseen music: {data['recordings']} recordings",
        "Comparable between models of one codec only, and no measure of a codec: one with little to say has few bits.",
        references=range(1, len(rows)),
    )  # fmt: skip
    books = [str(book + 1) for book in range(data["n_q"])]
    series = {name: system["bits_per_code"] for name, system in data["bits"].items() if name != "untrained"}
    series["entropy of these codes"] = data["code_entropy"]["bits"]
    bars = Bars(books, series, "codebook", "bits per code", "Bits per code, by codebook")
    figures: list[Block] = [table, bars]
    if data.get("resynthesis"):
        lines: list[list[Cell]] = [
            ["codec, real tokens", measure_of(data["resynthesis"]["mel"])],
            ["noise of the recording's own envelope", measure_of(data["resynthesis"]["mel_shaped_noise"])],
        ]
        caption = "What the tokens alone sound like: mel distance to the recordings"
        figures.append(Table(["signal", Column("mel distance", ".3f", "min")], lines, caption))
    return [Section("Figures", figures), Section("Listening", _listening(data, out))]


def _listening(data: Mapping[str, Any], out: Path) -> list[Block]:
    listed = out / "sets.jsonl"
    if "sets" not in data or not listed.is_file():
        return [Note("No continuations were written: music eval -o FOLDER writes them.")]
    rows = [json.loads(line) for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    first = list({row["piece"]: row for row in reversed(rows)}.values())[::-1]
    chosen = (first + [row for row in rows if row not in first])[:SHOWN]
    players = []
    for row in chosen:
        items: list[Player | NoPlayer] = []
        for name, label in LABELS.items():
            try:
                audio = load_audio(out / row[name], _rate_of(out / row[name]))
            except AudioError as error:
                items.append(NoPlayer(label, error.message))
                continue
            items.append(Player(label, audio.wav[0].numpy(), audio.sample_rate))
        players.append(PlayerRow(str(row["source"]), items, note=f"from {row['start']:g} s"))
    cut = data["sets"]
    caption = f"{cut['prompt_s']:g} s of prompt, {cut['continuation_s']:g} s of continuation"
    return [Players(players, caption), KeyValues({"prompts in all": cut["prompts"]})]


def _rate_of(path: Path) -> int:
    """Hz of a file; of one that cannot be read any rate will do, as reading says what is wrong with it."""
    try:
        return sf.info(str(path)).samplerate
    except (OSError, sf.LibsndfileError):
        return 16_000
