"""Corpora that are lists of files: Kaldi data folders, and JSON lines with other key names than ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data.source_items import SPLIT_NAMES, Item

USUAL_KEYS = {
    "id": ("id", "utt_id", "utterance_id", "uid", "utt", "key", "ID", "ytid", "track_id"),
    "audio": (
        "audio", "audio_filepath", "audio_path", "wav", "wav_path", "path", "file", "file_path", "filepath",
        "file_name", "filename", "location",
    ),
    "split": ("split", "subset", "set"),
    "text": ("text", "transcript", "transcription", "sentence", "normalized_text", "text_normalized", "txt"),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "speaker_name", "client_id"),
    "caption": ("caption", "description", "prompt", "main_caption"),
    "label": ("label", "category", "class", "genre"),
}  # fmt: skip
"""Our keys, and what other lists call them; the first that a row has is taken."""


def kaldi_items(root: Path) -> Iterator[Item]:
    """A data folder (`wav.scp`, with `text`, `utt2spk` and `segments` if there are any), or a folder of such folders.

    Parts named by `segments` are cut out of their recordings. Relative paths are looked for from the current folder, as
    Kaldi does, then from the data folder and the two above it.

    Raises:
        XcodecLMError: no `wav.scp`, a line that is no pair, or a pipe: the commands in such lists are never run.

    Source: https://kaldi-asr.org/doc/data_prep.html.
    """
    folders = [root] if (root / "wav.scp").is_file() else sorted(path.parent for path in root.glob("*/wav.scp"))
    if not folders:
        raise XcodecLMError(f"{root} is no Kaldi data folder: it has no wav.scp", "give the folder that holds wav.scp")
    for folder in folders:
        split = SPLIT_NAMES.get(folder.absolute().name.replace("-", "_").split("_")[0])
        files = {name: _audio(folder, name, value) for name, value in _pairs(folder / "wav.scp").items()}
        texts, speakers = (_pairs(folder / name) if (folder / name).is_file() else {} for name in ("text", "utt2spk"))
        parts: dict[str, tuple[str, tuple[float, float | None] | None]] = {name: (name, None) for name in files}
        if (folder / "segments").is_file():
            parts = {name: _segment(folder, name, value) for name, value in _pairs(folder / "segments").items()}
        for name, (recording, part) in parts.items():
            keys = {"text": texts.get(name), "speaker": speakers.get(name)}
            if part is not None:
                keys["recording"] = recording
            path = files.get(recording)
            problem = "" if path else f"segments names the recording {recording!r}, which wav.scp does not have"
            yield Item(name, path or folder / "wav.scp", split, keys, part, problem)


def _audio(folder: Path, name: str, value: str) -> Path:
    if value.endswith("|") or value.startswith("|"):
        raise XcodecLMError(
            f"{folder / 'wav.scp'}: {name!r} is a pipe ({value[:60]}), and commands in lists are not run",
            "run the command yourself, keep what it writes as a WAV or FLAC file, and name that file",
        )
    places = (Path(), folder, *folder.absolute().parents[:2])
    return next((place / value for place in places if (place / value).is_file()), folder / value).absolute()


def _segment(folder: Path, name: str, value: str) -> tuple[str, tuple[float, float | None]]:
    words = value.split()
    try:
        return words[0], (float(words[1]), float(words[2]))
    except (IndexError, ValueError):
        raise XcodecLMError(
            f"{folder / 'segments'}: {name!r} is not followed by recording, start and end: {value[:60]!r}",
            "write UTTERANCE RECORDING START END",
        ) from None


def _pairs(path: Path) -> dict[str, str]:
    """Lines of a name and the rest."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}", "Kaldi's lists are text in UTF-8") from None
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.strip().split(maxsplit=1)
        if len(words) == 1 and path.name != "text":  # an utterance may have no words
            raise XcodecLMError(f"{path} line {number}: nothing stands after {words[0]!r}", "write a NAME and a value")
        if words:
            pairs[words[0]] = words[1] if len(words) == 2 else ""
    return pairs


def jsonl_items(path: Path, keys: dict[str, str]) -> Iterator[Item]:
    """JSON lines with an audio path in each, by whatever key; paths are relative to the file.

    A row with a start (`offset`) and a `duration`, as NeMo writes them, is a part of its file and is cut out.

    Args:
        path: the file.
        keys: our key -> theirs, for names that are not among `USUAL_KEYS`.

    Raises:
        XcodecLMError: not JSON lines, or a row without an audio path.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}", "give a text file of JSON lines, in UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not an object")
        except ValueError as error:
            raise XcodecLMError(
                f"{path} line {number} is not JSON of its own: {error}", "write one object a line"
            ) from None
        found, rest = rename(row, keys, f"{path} line {number}")
        audio = found.pop("audio", None)
        audio = audio.get("path") if isinstance(audio, dict) else audio
        if not isinstance(audio, str) or not audio:
            raise XcodecLMError(
                f"{path} line {number} has no path of audio; its keys are {', '.join(row)}",
                "name the key: --keys audio=THEIR_KEY",
            )
        name = str(found.pop("id", None) or Path(audio).with_suffix("").as_posix().lstrip("./"))
        split, part = found.pop("split", None), _part(rest)
        if part is not None:
            rest["recording"] = Path(audio).stem
            name = name if "id" in keys or any(key in row for key in USUAL_KEYS["id"]) else f"{name}@{part[0]:g}"
        known = SPLIT_NAMES.get(str(split).lower()) if split is not None else None
        yield Item(name, path.absolute().parent / audio, known, rest | found, part)


def rename(row: dict[str, Any], keys: dict[str, str], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row's values under our keys, and the rest of the row.

    Args:
        row: as another list has it.
        keys: our key -> theirs; they go before the usual names.
        where: for the message.

    Raises:
        UsageError: a named key is not in the row.
    """
    absent = [theirs for theirs in keys.values() if theirs not in row]
    if absent:
        raise UsageError(f"{where} has no key {absent[0]!r}; it has {', '.join(row)}", "correct --keys")
    names = dict(keys)
    for ours, usual in USUAL_KEYS.items():
        free = (name for name in usual if name not in names.values() and row.get(name) not in (None, ""))
        if ours not in names and (name := next(free, None)) is not None:
            names[ours] = name
    rest = {key: value for key, value in row.items() if key not in names.values()}
    return {ours: row[theirs] for ours, theirs in names.items()}, rest


def _part(rest: dict[str, Any]) -> tuple[float, float | None] | None:
    """Start and end of a row that is a part of its file. The keys leave the row: what is cut out has its own length."""
    length, start = rest.pop("duration", None), rest.pop("offset", None)
    if not isinstance(start, int | float):
        return None
    return float(start), float(start) + float(length) if isinstance(length, int | float) else None
