"""What `eval run` measures: rows that pair a made recording with what it is held against, always by id.

A pairs file is JSON lines. Keys: `id`; `audio` (what is judged; null where nothing was made); `system` (who made it;
one of `ANCHORS` for anchors); `ref_audio`, `prompt_audio` (with `prompt_s`, its first so many seconds), `text`,
`caption`, `label`, `prompt_resynthesis` as metrics need them; `unit`, or `speaker`, `piece`, `recording`, over which
intervals go. Paths are relative to the file. What one system's row of an id lacks is taken from another row of that id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data.check import GROUPS

TRUTH = "ground truth"
ANCHORS = (TRUTH, "resynthesis", "noise", "shuffled")
"""Names of systems between which others are read; a pairs file need not have them."""
PATHS = ("audio", "ref_audio", "prompt_audio", "prompt_resynthesis")
TEXTS = ("text", "caption", "label")
SHARED = (*PATHS[1:], *TEXTS, "prompt_s", "unit", *GROUPS)
"""Fields that belong to an id, not to a system."""
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
DEFAULT_SYSTEM = "made"


@dataclass(frozen=True)
class Row:
    """One recording to be judged.

    Attributes:
        id: the same for every system.
        system: who made it.
        audio: the recording; None where there is none.
        unit: that intervals are drawn over.
        fields: everything else that is known of the id; paths are absolute.
        why: why there is no recording; "" where there is one.
    """

    id: str
    system: str
    audio: Path | None
    unit: str
    fields: dict[str, Any] = field(default_factory=dict)
    why: str = ""

    def path(self, name: str) -> Path | None:
        """The recording of a field of `PATHS`, or None."""
        return self.audio if name == "audio" else self.fields.get(name)


@dataclass(frozen=True)
class Pairs:
    """All rows.

    Attributes:
        ids: in the order of the file.
        systems: in order of appearance, anchors last.
        rows: (system, id) -> row; every system has every id.
        unit: what the units are: speaker, piece, recording, unit or id.
        notes: what a reader must know.
    """

    ids: list[str]
    systems: list[str]
    rows: dict[tuple[str, str], Row]
    unit: str
    notes: list[str] = field(default_factory=list)

    @property
    def contestants(self) -> list[str]:
        """Systems that are no anchors."""
        return [name for name in self.systems if name not in ANCHORS]

    def of(self, system: str) -> list[Row]:
        """The rows of a system, in the order of the ids."""
        return [self.rows[system, name] for name in self.ids]


def read_pairs(path: str | Path) -> Pairs:
    """A pairs file.

    Raises:
        UsageError: it cannot be read or is empty, a line is no row, an id of a system comes twice, or rows of one id
            contradict each other; names the line.
    """
    path = Path(path)
    rows = []
    for number, content in enumerate(_lines(path), start=1):
        if not content.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(content)
        except ValueError as error:
            raise UsageError(f"{where}: not JSON: {error}", "a pairs file is JSON lines") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where}: not a JSON object but a {type(row).__name__}")
        rows.append((where, row))
    return make_pairs(rows, path.absolute().parent, str(path))


def pair_sets(reference: str | Path, made: Mapping[str, str | Path]) -> Pairs:
    """Two or more folders or manifests, paired by id: that of a manifest's row, or a file's path without its ending.

    Args:
        reference: folder or manifest of the true recordings; texts, captions, labels and units are taken from it.
        made: system -> folder or manifest.

    Raises:
        UsageError: nothing is there, or no id is in both.
    """
    truth = _listed(reference)
    rows: list[tuple[str, dict[str, Any]]] = []
    notes = []
    for system, place in made.items():
        found = _listed(place)
        both = [name for name in truth if name in found]
        if not both:
            raise UsageError(
                f"no id of {reference} is in {place}: {next(iter(truth))!r} and {next(iter(found))!r} are their first",
                "recordings are paired by the ids of manifests, or by file names; never by their order",
            )
        if extra := [name for name in found if name not in truth]:
            notes.append(f"{system}: {len(extra)} recordings have no reference and are left out, such as {extra[0]}")
        for name, row in truth.items():
            about = {key: value for key, value in row.items() if key in SHARED}
            audio = found[name].get("audio") if name in found else None
            rows.append((f"{place}: {name}", {**about, "ref_audio": row.get("audio"), "id": name, "system": system,
                                              "audio": audio}))  # fmt: skip
    pairs = make_pairs(rows, Path(), str(reference))
    return replace(pairs, notes=[*pairs.notes, *notes])


def make_pairs(rows: Sequence[tuple[str, dict[str, Any]]], folder: Path, source: str) -> Pairs:
    """Rows as pairs.

    Args:
        rows: where each stands, for messages, and its values.
        folder: that paths are relative to.
        source: for messages.

    Raises:
        UsageError: as `read_pairs`.
    """
    if not rows:
        raise UsageError(f"{source} has no rows", "a pairs file has a JSON object a line: id, audio, ref_audio, text")
    own: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    shared: dict[str, dict[str, tuple[str, Any]]] = {}
    for where, row in rows:
        _check_row(where, row)
        key = str(row.get("system") or DEFAULT_SYSTEM), row["id"]
        if key in own:
            raise UsageError(f"{where}: id {key[1]!r} of system {key[0]!r} is already in {own[key][0]}",
                             "ids are unique within a system")  # fmt: skip
        own[key] = where, row
        known = shared.setdefault(row["id"], {})
        for name in SHARED:
            value = row.get(name)
            if value is None:
                continue
            first, other = known.setdefault(name, (where, value))
            if other != value:
                raise UsageError(f"{where}: {name} of id {row['id']!r} is {value!r}, and {other!r} in {first}",
                                 "systems are compared on the same references")  # fmt: skip
    systems = list(dict.fromkeys(system for system, _ in own))
    systems = [name for name in systems if name not in ANCHORS] + [name for name in ANCHORS if name in systems]
    about = {name: _about(known, folder) for name, known in shared.items()}
    if TRUTH not in systems and any("ref_audio" in values for values in about.values()):
        systems.append(TRUTH)
        for name, values in about.items():
            own[TRUTH, name] = f"{source}: ref_audio", {"id": name, "audio": values.get("ref_audio")}
    kind = next((kind for kind in ("unit", *GROUPS) if any(kind in values for values in about.values())), "id")
    made: dict[tuple[str, str], Row] = {}
    for system in systems:
        for name, values in about.items():
            unit = str(values[kind]) if kind in values else name
            if (system, name) not in own:
                made[system, name] = Row(name, system, None, unit, values, "no row for this id")
                continue
            audio = own[system, name][1].get("audio")
            path = None if audio is None else folder / audio
            why = "nothing was made" if path is None else "" if path.is_file() else f"{path}: file not found"
            made[system, name] = Row(name, system, None if why else path, unit, values, why)
    return Pairs(list(about), systems, made, kind)


def read_set(source: str | Path) -> list[Path]:
    """The recordings of a folder or manifest, sorted by id; for references that are not paired.

    Raises:
        UsageError: nothing is there.
    """
    return [Path(row["audio"]) for _, row in sorted(_listed(source).items())]


def _check_row(where: str, row: dict[str, Any]) -> None:
    if not isinstance(row.get("id"), str) or not row["id"]:
        raise UsageError(f"{where}: no `id`", "every row needs an id, a text that all systems share")
    for name in (*PATHS, *TEXTS, "system"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise UsageError(f"{where}: `{name}` is {row[name]!r}, not a text")
    seconds = row.get("prompt_s")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0):
        raise UsageError(f"{where}: `prompt_s` is {seconds!r}, not a positive number of seconds")


def _about(known: dict[str, tuple[str, Any]], folder: Path) -> dict[str, Any]:
    values = {name: value for name, (_, value) in known.items()}
    return values | {name: folder / values[name] for name in PATHS if name in values}


def _listed(source: str | Path) -> dict[str, dict[str, Any]]:
    """Id -> row with an absolute `audio`."""
    source = Path(source)
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SOUNDS)
        found: dict[str, dict[str, Any]] = {}
        for path in files:
            name = path.relative_to(source).with_suffix("").as_posix()
            if name in found:
                raise UsageError(f"{source} has {name} in two formats: {found[name]['audio']} and {path}")
            found[name] = {"audio": str(path.absolute())}
    else:
        from xcodec_lm.codec.clips import read_manifest

        try:
            found = {clip.id: {**clip.row, "audio": str(clip.path)} for clip in read_manifest(source)}
        except XcodecLMError as error:
            raise UsageError(error.message, error.hint) from None
    if not found:
        raise UsageError(f"{source} holds no recordings", f"endings that are known: {', '.join(SOUNDS)}")
    return found


def _lines(path: Path) -> Iterable[str]:
    try:
        # not splitlines(): it also breaks at characters such as U+2028, which JSON allows inside strings
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UsageError(f"{path}: file not found", "give a pairs file, JSON lines with id and audio") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "a pairs file is JSON lines in UTF-8") from None
