"""Manifests: JSON-lines files that list recordings, one object a line.

Keys that mean something here: `id` (unique text), `audio` (path relative to the manifest), `duration` (seconds) and
the optional `split` (train, dev or test). Every other key is kept in `Clip.row` for the tasks: `text`, `speaker`,
`caption`, `label`, `piece`, `recording` and whatever the user adds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from xcodec_lm.configs.errors import XcodecLMError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
CHECK_HINT = "run `xcodec-lm data check {path}` for a list of everything that is wrong with it"


class ManifestError(XcodecLMError):
    """A manifest that cannot be read or written."""


@dataclass(frozen=True)
class Clip:
    """One recording of a manifest.

    Attributes:
        id: unique name of the recording.
        path: absolute path of the audio file.
        duration_s: length in seconds, as the manifest states it.
        split: `train`, `dev`, `test`, or None when the manifest says nothing.
        row: all keys of the manifest's line, as they stand there.
        line: line of the manifest, counted from 1; 0 when the clip comes from elsewhere.
    """

    id: str
    path: Path
    duration_s: float
    split: str | None
    row: dict[str, Any]
    line: int = 0


@dataclass(frozen=True)
class LineError:
    """A line of a manifest that is not a clip.

    Attributes:
        line: counted from 1.
        id: the row's id, or "" where it has none.
        what: what is wrong with it.
    """

    line: int
    id: str
    what: str


def read_manifest(path: str | Path) -> list[Clip]:
    """All clips of a manifest, in its order. The audio files are not opened.

    Raises:
        ManifestError: the file cannot be read or has no rows, or a line is not a JSON object with a unique `id`, an
            `audio` path, a positive `duration` and a known `split`; names the first such line.
    """
    clips, errors = parse_manifest(path)
    if errors:
        first = errors[0]
        named = f" (id {first.id!r})" if first.id else ""
        raise ManifestError(f"{path} line {first.line}{named}: {first.what}", CHECK_HINT.format(path=path))
    return clips


def parse_manifest(path: str | Path) -> tuple[list[Clip], list[LineError]]:
    """The clips of a manifest and, apart, the lines that are none; `read_manifest` for those who want all of them.

    Raises:
        ManifestError: the file cannot be read, or has no rows.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"{path}: file not found", "make a manifest with `xcodec-lm data scan FOLDER`") from None
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path} is not a text file in UTF-8 (byte {error.start})", "a manifest is JSON lines"
        ) from None
    except OSError as error:
        raise ManifestError(
            f"cannot read {path}: {error.strerror}", "give the manifest, a file of JSON lines"
        ) from None
    clips, errors, first_line = [], [], dict[str, int]()
    # not splitlines(): it also breaks at characters such as U+2028, which JSON allows inside strings
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        result = _parse_line(content, line, path.absolute().parent)
        if isinstance(result, Clip) and result.id in first_line:
            what = f"duplicate id, first used in line {first_line[result.id]}"
            result = LineError(line, result.id, what)
        if isinstance(result, Clip):
            first_line[result.id] = line
            clips.append(result)
        else:
            errors.append(result)
    if not clips and not errors:
        raise ManifestError(f"{path} has no rows", "make a manifest with `xcodec-lm data scan FOLDER`")
    return clips, errors


def read_manifests(paths: Sequence[str | Path], split: Split | None = None) -> list[Clip]:
    """The clips of several manifests, one after the other.

    Args:
        paths: the manifests; ids are unique over all of them.
        split: keep the clips of this split only; a clip without a split counts as `train`. None keeps all.

    Raises:
        ManifestError: as `read_manifest`, or two manifests use the same id.
    """
    clips, owner = [], dict[str, Path]()
    for path in map(Path, paths):
        for clip in read_manifest(path):
            if clip.id in owner:
                raise ManifestError(
                    f"{path} line {clip.line}: id {clip.id!r} is also in {owner[clip.id]}",
                    "ids are unique over all manifests of a run: rename one, or name each manifest once",
                )
            owner[clip.id] = path
            clips.append(clip)
    return [clip for clip in clips if split is None or (clip.split or "train") == split]


def write_manifest(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Writes rows as JSON lines, whole or not at all.

    Args:
        rows: keys as in the module's docstring; `audio` already relative to the manifest (see `relative_audio`).
        path: the manifest; missing folders are made.

    Raises:
        ManifestError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.replace(path)
    except OSError as error:
        raise ManifestError(f"cannot write {path}: {error.strerror}", "choose a folder that can be written") from None


def relative_audio(audio: Path, manifest: Path) -> str:
    """The `audio` entry for a file: its path relative to the manifest's folder, with forward slashes."""
    return Path(os.path.relpath(audio.absolute(), manifest.absolute().parent)).as_posix()


def _parse_line(content: str, line: int, folder: Path) -> Clip | LineError:
    try:
        row = json.loads(content)
    except ValueError as error:
        return LineError(line, "", f"not JSON: {error}")
    if not isinstance(row, dict):
        return LineError(line, "", f"not a JSON object but a {type(row).__name__}")
    name = row.get("id")
    if not isinstance(name, str) or not name:
        return LineError(
            line, "", "no `id`; every row needs a unique text" if name is None else f"`id` is {name!r}, not a text"
        )
    audio = row.get("audio")
    if not isinstance(audio, str) or not audio:
        return LineError(line, name, "no `audio`; every row needs the path of its recording")
    duration = row.get("duration")
    if not isinstance(duration, int | float) or isinstance(duration, bool) or not 0 < duration < math.inf:
        return LineError(line, name, f"`duration` is {duration!r}, not a positive number of seconds")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        return LineError(line, name, f"unknown `split` {split!r}; known are {', '.join(SPLITS)}")
    return Clip(name, folder / audio, float(duration), split, row, line)
