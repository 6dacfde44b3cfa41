"""The page "text to sound": captions, what was made of them, scores, and the training clip that comes nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import read_manifests
from xcodec_lm.configs.errors import AudioError
from xcodec_lm.tasks.eval.intervals import LEAST_UNITS
from xcodec_lm.tasks.report import (
    Column,
    Download,
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
from xcodec_lm.tasks.sound.evaluate import sound_file
from xcodec_lm.tasks.sound.scoring import LOWER_IS_BETTER, REAL

SHOWN = 8
"""Captions with players: of different classes, as far as there are so many."""
LONGEST_S = 10.0
"""Of a player."""
NAMES = {"class": "class agreement", "clap": "CLAP score", "frechet": "Fréchet distance", "kid": "KID"}


@dataclass(frozen=True)
class Sounding:
    """A sound to listen to.

    Attributes:
        label: what made it.
        wav: (N,), or why there is none.
        sample_rate: in Hz.
        note: what was heard of it.
    """

    label: str
    wav: np.ndarray | str
    sample_rate: int = 0
    note: str = ""


@dataclass(frozen=True)
class Captioned:
    """A caption and the sounds that belong to it.

    Attributes:
        caption: as it was given.
        sounds: made and compared with.
        note: a few words below the caption.
    """

    caption: str
    sounds: Sequence[Sounding] = field(default_factory=list)
    note: str = ""


def caption_players(rows: Sequence[Captioned], title: str) -> Players:
    """A row of players with spectrograms for each caption."""
    made = []
    for row in rows:
        items = [
            NoPlayer(one.label, one.wav)
            if isinstance(one.wav, str)
            else Player(one.label, one.wav, one.sample_rate, note=one.note)
            for one in row.sounds
        ]
        made.append(PlayerRow(row.caption, items, note=row.note))
    return Players(made, title)


def write_page(data: Mapping[str, Any], manifests: Sequence[Path], out: Path) -> Path:
    """Writes `out/report.html` from the result of `evaluate_sound` and the sounds in `out`.

    Args:
        data: of `evaluate_sound`, with its items.
        manifests: whose rows were tested and trained on.
        out: where the sounds of every system lie.
    """
    report = Report(
        "Text to sound",
        sound_sections(data, manifests, out),
        subtitle=f"{data['rows']} captions of {data['recordings']} recordings of split {data['split']}, "
        f"{data['samples']} sound(s) of {data['seconds']:g} s each",
        provenance=judges_and_runs(data),
    )
    return render(report, out / "report.html")


def judges_and_runs(data: Mapping[str, Any]) -> list[KeyValues]:
    """Who judged, and what the runs are, as the provenance of the figures."""
    runs = [KeyValues({key: str(value) for key, value in facts.items()}, name) for name, facts in data["runs"].items()]
    return [KeyValues({name: str(value) for name, value in data["judges"].items()}, "Who judged"), *runs]


def sound_sections(data: Mapping[str, Any], manifests: Sequence[Path], out: Path) -> list[Section]:
    """What there is to see and hear of a result of `evaluate_sound`.

    Args:
        data: of `evaluate_sound`, with its items.
        manifests: whose rows were tested and trained on; without them recordings are not heard.
        out: where the sounds of every system lie.
    """
    paths = {clip.id: clip.path for clip in read_manifests(list(manifests))} if manifests else {}
    shown = choose_rows(data["items"])
    systems = [row["system"] for row in data["systems"]]
    made = [name for name in systems if name.endswith(": made")]
    rest = [name for name in systems if name not in made and name not in (REAL, "training recordings")]
    return [
        Section("Figures", [*_notes(data), *_systems(data), *_differences(data)]),
        Section(
            "Listening",
            [
                caption_players([_listening(item, data, paths, out, [REAL, *made]) for item in shown],
                                "What the captions say, and what was made of them"),
                caption_players([_listening(item, data, paths, out, rest) for item in shown],
                                "The same captions: codec, controls, noise"),
            ],
            intro="Under each sound: the class that the judge hears, and the CLAP score with the caption above.",
        ),
        Section(
            "Is it a copy?",
            [_nearest(data),
             caption_players([_copies(item, data, paths, out, made) for item in shown],
                             "The training clip with the most alike mel spectrogram")],
            intro="Correlation, over all shifts in time, of how the bands of mel spectrograms rise and fall. A "
            "copy is as near as training clips that went through the codec; real recordings cannot be copies.",
        ),
        Section("Every caption", [_items(data, made), Download("items.json", data["items"])]),
    ]  # fmt: skip


def choose_rows(items: Sequence[dict[str, Any]], count: int = SHOWN) -> list[dict[str, Any]]:
    """The first row of each class, then more, at most `count`; in the order of the list."""
    seen, first, more = set[str](), [], []
    for item in items:
        kind = item["class"] or item["caption"]
        (more if kind in seen else first).append(item)
        seen.add(kind)
    chosen = {item["id"] for item in [*first, *more][:count]}
    return [item for item in items if item["id"] in chosen]


def _notes(data: Mapping[str, Any]) -> list[Note]:
    notes = []
    if data["recordings"] < LEAST_UNITS:
        notes.append(Note(f"{data['recordings']} recordings: differences are shown, not decided "
                          f"(that takes {LEAST_UNITS})."))  # fmt: skip
    if "clap" not in data["judges"]:
        notes.append(Note("No CLAP judged: there are no CLAP scores, and distances are those of the judge of classes."))
    reasons: dict[str, list[str]] = {}
    for name, why in data["trusted"].items():
        if why:
            reasons.setdefault(why, []).append(NAMES[name])
    notes += [Note(f"No verdict by {', '.join(names)}: {why}.", "warning") for why, names in reasons.items()]
    return notes


def _systems(data: Mapping[str, Any]) -> list[Table]:
    heard, distances = [], []
    reason = "the others are compared with these"
    for row in data["systems"]:
        chance = row.get("class_chance")
        heard.append([
            row["system"], measure_of(row.get("class"), 100), 100 * chance["value"] if chance else None,
            measure_of(row.get("clap")), measure_of(row.get("clap_margin")), row["silent"] or None,
        ])  # fmt: skip
        distances.append([row["system"], measure_of(row["frechet"], 1, reason), measure_of(row["kid"], 1, reason)])
    judge = f"{data['judges']['clap']}'s audio side" if data["judges"]["features"] == "clap" else "the judge of classes"
    others = tuple(index for index, row in enumerate(data["systems"]) if ": made" not in row["system"])
    return [
        Table(
            ["system", Column("class agreement in %", ".1f"), Column("by chance", ".1f"), Column("CLAP score", ".3f"),
             Column("above other captions", ".3f"), Column("silent", "d")],
            heard, "What is heard of every system on the same captions, with 95 % intervals over recordings",
            footnote=f"Class agreement: what a judge of {len(data['classes'])} classes hears is the caption's class; "
            "on the real recordings that is the judge's accuracy. By chance: the same sounds dealt out anew. Training "
            "recordings are of the same classes: what a perfect model would give.",
            references=others,
        ),
        Table(
            ["system", Column("Fréchet distance", ".2f"), Column("KID", ".3f")], distances,
            "Distance of every system's sounds to the real recordings, with 95 % intervals over recordings",
            footnote=f"Embeddings of {judge}, in {data['dims']} dimensions fitted on training clips.",
            references=others,
        ),
    ]  # fmt: skip


def _differences(data: Mapping[str, Any]) -> list[Table]:
    tables = []
    for measure, lower in LOWER_IS_BETTER.items():
        scale = 100 if measure == "class" else 1
        rows = [[row["a"], row["b"], measure_of(row["difference"], scale), row["verdict"]]
                for row in data["differences"] if row["measure"] == measure]  # fmt: skip
        if rows:
            unit = " in points" if measure == "class" else ""
            head = Column(f"a - b{unit}", ".1f" if measure == "class" else ".3f")
            name = NAMES[measure][0].upper() + NAMES[measure][1:]
            caption = f"{name}, paired differences; {'lower' if lower else 'higher'} is better"
            tables.append(Table(["a", "b", head, "a is"], rows, caption))
    return tables


def _listening(
    item: Mapping[str, Any], data: Mapping[str, Any], paths: Mapping[str, Path], out: Path, systems: Sequence[str]
) -> Captioned:
    sounds = []
    for name in systems:
        for number, entry in enumerate(item["systems"].get(name, [])):
            path = paths.get(item["id"]) if name == REAL else sound_file(out, name, item["id"], number)
            label = name if number == 0 else f"{name} ({number + 1})"
            sounds.append(_sounding(label, path, data["sample_rate"], _heard(entry), data["seconds"]))
    return Captioned(item["caption"], sounds, " · ".join(text for text in (item["class"], item["id"]) if text))


def _copies(
    item: Mapping[str, Any], data: Mapping[str, Any], paths: Mapping[str, Path], out: Path, made: Sequence[str]
) -> Captioned:
    sounds = []
    for name in made:
        near = item["systems"][name][0]["nearest"]
        path, rate = sound_file(out, name, item["id"]), data["sample_rate"]
        sounds.append(_sounding(name, path, rate, "", data["seconds"]))
        note = f"{near['id']}: mel {near['mel']:.2f}, waveform {near['waveform']:.2f}"
        sounds.append(_sounding(f"nearest to {name}", paths.get(near["id"]), rate, note, LONGEST_S))
    return Captioned(item["caption"], sounds, item["id"])


def _sounding(label: str, path: Path | None, rate: int, note: str, longest_s: float) -> Sounding:
    if path is None:
        return Sounding(label, "its manifest is not known here")
    try:
        return Sounding(label, load_audio(path, rate, duration_s=min(longest_s, LONGEST_S)).wav[0].numpy(), rate, note)
    except AudioError as error:
        return Sounding(label, error.message)


def _heard(entry: Mapping[str, Any]) -> str:
    parts = [f"{entry['heard']} ({entry['share']:.0%})"] if "heard" in entry else []
    return "silence" if entry["silent"] else ", ".join(
        parts + ([f"CLAP {entry['clap']:.2f}"] if "clap" in entry else [])
    )  # fmt: skip


def _nearest(data: Mapping[str, Any]) -> Table:
    rows = [[name, row["sounds"], row["median"], row["highest"], row.get("copies")]
            for name, row in data["nearest"].items()]  # fmt: skip
    return Table(
        ["sounds", Column("number", "d"), Column("median", ".2f"), Column("highest", ".2f"),
         Column("as near as a copy", "d")],
        rows, "How near the nearest training clip is",
        footnote="As near as a copy: nearer than nine of ten training clips come to themselves through the codec.",
    )  # fmt: skip


def _items(data: Mapping[str, Any], made: Sequence[str]) -> Table:
    columns: list[Column | str] = ["id", "caption", "class"]
    for name in made:
        columns += [f"heard, {name}", Column(f"CLAP, {name}", ".3f", "max"), f"nearest, {name}"]
        columns.append(Column(f"mel, {name}", ".2f", "min"))  # nearer is worse: it may be a copy
    rows: list[list[Any]] = []
    for item in data["items"]:
        row: list[Any] = [item["id"], item["caption"], item["class"]]
        for name in made:
            entry = item["systems"][name][0]
            near = entry["nearest"]
            row += ["silence" if entry["silent"] else entry.get("heard"), entry.get("clap"), near["id"], near["mel"]]
        rows.append(row)
    return Table(columns, rows, "The first sound of each caption", contest=False, sortable=True)
