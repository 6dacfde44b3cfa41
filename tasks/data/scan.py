"""From a folder of recordings to a manifest."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import soundfile as sf

from xcodec_lm.codec.clips import relative_audio, write_manifest
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import UsageError, XcodecLMError

READABLE = frozenset({
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ".sph",
})  # fmt: skip
"""Endings of the formats that libsndfile reads."""
UNREADABLE = frozenset((".m4a", ".aac", ".mp4", ".wma", ".ac3", ".amr", ".ape", ".wv", ".mka", ".webm", ".ra"))
"""Endings of audio that libsndfile does not read; listed, so that nobody misses them later."""
LONGEST_S = 1e8
"""Beyond this a header does not state a length at all: libsndfile then reports the largest integer."""


@dataclass(frozen=True)
class ScanResult:
    """What a scan found.

    Attributes:
        manifest: the file that was written.
        rows: its rows.
        unreadable: audio files that are not in it -> why.
        ignored: files that are no audio by their ending, or hidden.
    """

    manifest: Path
    rows: list[dict[str, Any]]
    unreadable: dict[str, str] = field(default_factory=dict)
    ignored: int = 0

    @property
    def duration_s(self) -> float:
        """Seconds of audio in the manifest."""
        return sum(row["duration"] for row in self.rows)

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split; empty when no split was asked for."""
        return dict(Counter(row["split"] for row in self.rows if "split" in row))


def scan(
    folder: str | Path,
    out: str | Path,
    dev: float = 0.05,
    test: float = 0.05,
    split_by: Literal["file", "folder"] = "file",
) -> ScanResult:
    """Writes a manifest of all audio files under a folder, sorted by path. Only headers are read.

    The id of a file is its path in the folder without the ending; with it where two files differ in nothing else.
    The split of a file depends on its id alone, so files that come later move no other file from train to test.

    Args:
        folder: searched with its subfolders; links are followed.
        out: the manifest; `audio` is written relative to it.
        dev: share of files for the dev split, 0..1.
        test: share of files for the test split, 0..1. With both 0 the rows have no split, which counts as train.
        split_by: `folder` keeps the files of one subfolder in one split, for folders named after speakers or albums.

    Raises:
        UsageError: the shares are no shares.
        XcodecLMError: not a folder, no readable audio in it, or the manifest cannot be written.
    """
    folder, out = Path(folder), Path(out)
    check_shares(dev, test)
    if split_by not in ("file", "folder"):
        raise UsageError(f"split_by must be file or folder, got {split_by!r}")
    if not folder.is_dir():
        raise XcodecLMError(f"{folder} is not a folder", "give the folder that holds the recordings")
    rows, audio, ignored = [], [], 0
    unreadable: dict[str, str] = {}
    for path in sorted(_walk(folder, unreadable)):
        suffix = path.suffix.lower()
        if path.name.startswith(".") or suffix not in READABLE | UNREADABLE:
            ignored += 1
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
        if dev or test:
            row["split"] = split_of(str(Path(name).parent) if split_by == "folder" else name, dev, test)
        rows.append(row | {"sample_rate": info.samplerate, "channels": info.channels})
    if not rows:
        first = next(iter(unreadable.items()), None)
        why = f"; {len(unreadable)} files cannot be read, such as {first[0]}: {first[1]}" if first else ""
        raise XcodecLMError(f"{folder} holds no audio that can be read{why}", "WAV, FLAC, OGG and MP3 files are read")
    write_manifest(rows, out)
    return ScanResult(out, rows, unreadable, ignored)


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


def check_shares(dev: float, test: float) -> None:
    """Refuses shares of dev and test that leave nothing for train.

    Raises:
        UsageError: they are no shares.
    """
    if min(dev, test) < 0 or not dev + test < 1:
        raise UsageError(f"dev {dev} and test {test} must be shares of 0 or more that leave something for train")


def _walk(folder: Path, unreadable: dict[str, str]) -> Iterator[Path]:
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


def split_of(key: str, dev: float, test: float) -> str:
    """The split of a recording, or of all that share a key; it depends on nothing but the key."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "dev" if place < test + dev else "train"
