"""From a folder of recordings to a manifest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import soundfile as sf

from xcodec_lm.codec.clips import relative_audio
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data.scan_result import ScanResult, Wanted, finish
from xcodec_lm.tasks.data.splits import assign_splits, check_shares, split_of

READABLE = frozenset({
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ".sph",
})  # fmt: skip
"""Endings of the formats that libsndfile reads."""
UNREADABLE = frozenset((".m4a", ".aac", ".mp4", ".wma", ".ac3", ".amr", ".ape", ".wv", ".mka", ".webm", ".ra"))
"""Endings of audio that libsndfile does not read; listed, so that nobody misses them later."""
SplitBy = Literal["file", "folder", "speaker"]
LONGEST_S = 1e8
"""Beyond this a header does not state a length at all: libsndfile then reports the largest integer."""


def scan(
    folder: str | Path,
    out: str | Path,
    dev: float = 0.05,
    test: float = 0.05,
    split_by: SplitBy = "file",
    wanted: Wanted | None = None,
) -> ScanResult:
    """Writes a manifest of all audio files under a folder, sorted by path. Only headers are read.

    The text of NAME.wav is what NAME.txt beside it holds, where there is one.

    The id of a file is its path in the folder without the ending; with it where two files differ in nothing else.
    The split of a file depends on its id alone, so files that come later move no other file from train to test.

    Args:
        folder: searched with its subfolders; links are followed.
        out: the manifest; `audio` is written relative to it.
        dev: share of files for the dev split, 0..1.
        test: share of files for the test split, 0..1. With both 0 the rows have no split, which counts as train.
        split_by: `folder` keeps the files of one subfolder in one split, for folders named after albums; `speaker` does
            the same for folders named after speakers and makes their names `speaker`.
        wanted: which recordings are taken; all by default.

    Raises:
        UsageError: the shares are no shares.
        XcodecLMError: not a folder, no readable audio in it, none of it wanted, or the manifest cannot be written.
    """
    folder, out = Path(folder), Path(out)
    check_shares(dev, test)
    if split_by not in get_args(SplitBy):
        raise UsageError(f"split_by must be one of {', '.join(get_args(SplitBy))}, got {split_by!r}")
    if not folder.is_dir():
        raise XcodecLMError(f"{folder} is not a folder", "give the folder that holds the recordings")
    rows, audio, ignored, texts = [], [], set[Path](), set[Path]()
    unreadable: dict[str, str] = {}
    for path in sorted(walk(folder, unreadable)):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix not in READABLE | UNREADABLE:
            ignored.add(path)
        elif suffix in UNREADABLE:
            unreadable[str(path)] = f"libsndfile does not read {suffix}; convert it, for example with ffmpeg to .flac"
        else:
            audio.append(path)
    names = _ids([path.relative_to(folder) for path in audio])
    for path, name in track(zip(audio, names, strict=True), "scan", len(audio)):
        info = read_header(path)
        if isinstance(info, str):
            unreadable[str(path).encode(errors="backslashreplace").decode()] = info
            continue
        row: dict[str, Any] = {
            "id": name,
            "audio": relative_audio(path, out),
            "duration": round(info.frames / info.samplerate, 6),
        }
        parent = Path(name).parent.as_posix()
        if split_by == "folder" and (dev or test):
            row["split"] = split_of(str(Path(name).parent), dev, test)
        if split_by == "speaker" and parent != ".":
            row["speaker"] = parent
        text = path.with_suffix(".txt")
        if text in ignored:
            texts.add(text)
            row["text"] = _text(text, unreadable)
        rows.append(row | {"sample_rate": info.samplerate, "channels": info.channels})
    if not rows:
        first = next(iter(unreadable.items()), None)
        why = f"; {len(unreadable)} files cannot be read, such as {first[0]}: {first[1]}" if first else ""
        raise XcodecLMError(f"{folder} holds no audio that can be read{why}", "WAV, FLAC, OGG and MP3 files are read")
    splits, notes = assign_splits([(row["id"], row.get("speaker"), row.get("split")) for row in rows], dev, test)
    rows = [row if split is None else row | {"split": split} for row, split in zip(rows, splits, strict=True)]
    return finish(rows, out, wanted or Wanted(), unreadable, len(ignored - texts), notes)


def _text(path: Path, unreadable: dict[str, str]) -> str:
    """The words of a text beside a recording; one that cannot be read is none, and named."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        unreadable[str(path)] = f"the recording is listed without this text: {error}"
        return ""


def read_header(path: Path) -> Any:
    """soundfile's info of a recording, or in words why it cannot be used."""
    try:
        str(path).encode()
        info = sf.info(path)
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    except (sf.LibsndfileError, RuntimeError, OSError) as error:
        return f"not readable as audio: {str(error).rstrip('.')}"
    if not 0 < info.frames / info.samplerate < LONGEST_S:
        return "it has no samples" if info.frames <= 0 else "its header states no length"
    return info


def walk(folder: Path, unreadable: dict[str, str]) -> Iterator[Path]:
    """All files below `folder`, each folder once; those that cannot be opened go to `unreadable`."""

    def refuse(error: OSError) -> None:
        unreadable[str(error.filename)] = f"folder cannot be opened: {error.strerror}"

    seen = set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.path.realpath(root)
        if here in seen:  # a link that leads back up, or to what another name has shown
            folders.clear()
            continue
        seen.add(here)
        folders.sort()  # which of two names comes first must not depend on the file system
        yield from (Path(root) / name for name in files)


def _ids(paths: list[Path]) -> list[str]:
    """Paths without their ending; whole where that would not be unique."""
    stems = Counter(path.with_suffix("").as_posix() for path in paths)
    whole = {path.as_posix() for path in paths}
    ids = []
    for path in paths:
        stem = path.with_suffix("").as_posix()
        ids.append(path.as_posix() if stems[stem] > 1 or stem in whole else stem)
    return ids
