"""The end of every scan: what is left out, the manifest, and what is to be said of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError


@dataclass(frozen=True)
class Wanted:
    """Which recordings a manifest takes.

    Attributes:
        min_s: shortest, in seconds.
        max_s: longest, in seconds.
        text: only those with a text.
    """

    min_s: float = 0.0
    max_s: float = math.inf
    text: bool = False

    def __post_init__(self):
        if not 0 <= self.min_s <= self.max_s:
            raise UsageError(f"no recording has {self.min_s} to {self.max_s} seconds", "give 0 <= min-s <= max-s")

    def refusal(self, row: dict[str, Any]) -> str:
        """Why a row is left out; "" if it is not."""
        if row["duration"] < self.min_s:
            return f"shorter than {self.min_s:g} s"
        if row["duration"] > self.max_s:
            return f"longer than {self.max_s:g} s"
        return "no text" if self.text and not has_text(row) else ""


@dataclass(frozen=True)
class ScanResult:
    """What a scan found.

    Attributes:
        manifest: the file that was written.
        rows: its rows.
        unreadable: audio files that are not in it -> why.
        ignored: files that are no audio by their ending, or hidden.
        left_out: ids of recordings that were not wanted -> why; also in the file `left_out_list`.
        without_text: ids of rows without a text, where others have one.
        notes: what else the user should know.
        missing: ids of recordings that the corpus lists and that are not there; also in the file `missing_list`.
    """

    manifest: Path
    rows: list[dict[str, Any]]
    unreadable: dict[str, str] = field(default_factory=dict)
    ignored: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    without_text: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """Seconds of audio in the manifest."""
        return sum(row["duration"] for row in self.rows)

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split; empty when no split was asked for."""
        return dict(Counter(row["split"] for row in self.rows if "split" in row))

    @property
    def left_out_list(self) -> Path:
        """JSON lines with `id`, `audio`, `duration` and `why` of what was left out; no file where nothing was."""
        return beside(self.manifest, "left-out").with_suffix(".jsonl")

    @property
    def missing_list(self) -> Path:
        """JSON lines of what is missing, as the corpus lists it; no file where nothing is."""
        return beside(self.manifest, "missing").with_suffix(".jsonl")


def finish(
    rows: Sequence[dict[str, Any]],
    out: Path,
    wanted: Wanted,
    unreadable: dict[str, str],
    ignored: int = 0,
    notes: Sequence[str] = (),
) -> ScanResult:
    """Writes the manifest of the rows that are wanted, and beside it the list of the others.

    Raises:
        XcodecLMError: none is wanted, or a file cannot be written.
    """
    refused = [(row, wanted.refusal(row)) for row in rows]
    kept = [row for row, why in refused if not why]
    left_out = {row["id"]: why for row, why in refused if why}
    notes = list(notes)
    if left_out:
        counts = ", ".join(f"{count} {why}" for why, count in Counter(left_out.values()).most_common())
        if not kept:
            raise XcodecLMError(f"none of {len(rows)} recordings is left: {counts}", "widen --min-s and --max-s")
        notes.append(f"{len(left_out)} of {len(rows)} recordings are left out: {counts}")
    silent = [row["id"] for row in kept if not has_text(row)]
    if len(silent) == len(kept):
        silent = []  # recordings for a codec have no texts
    if silent:
        named = ", ".join(silent[:5]) + (", ..." if len(silent) > 5 else "")
        notes.append(f"{len(silent)} of {len(kept)} recordings have no text: {named}; --need-text leaves them out")
    result = ScanResult(out, kept, unreadable, ignored, left_out, silent, notes)
    write_manifest(kept, out)
    try:
        result.left_out_list.unlink(missing_ok=True)
    except OSError as error:
        raise XcodecLMError(f"cannot write {result.left_out_list}: {error.strerror}", "choose another --out") from None
    if left_out:
        listed = ({key: row[key] for key in ("id", "audio", "duration")} | {"why": why} for row, why in refused if why)
        write_manifest(listed, result.left_out_list)
    return result


def list_missing(found: ScanResult, missing: Sequence[dict[str, Any]]) -> ScanResult:
    """Writes the list of recordings that are not there, and notes how many they are.

    Args:
        found: of the recordings that are there.
        missing: rows with `id`.

    Raises:
        XcodecLMError: the list cannot be written.
    """
    try:
        found.missing_list.unlink(missing_ok=True)
    except OSError as error:
        raise XcodecLMError(f"cannot write {found.missing_list}: {error.strerror}", "choose another --out") from None
    if not missing:
        return found
    write_manifest(missing, found.missing_list)
    total = len(missing) + len(found.rows) + len(found.unreadable) + len(found.left_out)
    note = f"the audio of {len(missing)} of {total} recordings is not there; they are listed in {found.missing_list}"
    return replace(found, missing=[row["id"] for row in missing], notes=[*found.notes, note])


def has_text(row: dict[str, Any]) -> bool:
    """Whether a manifest row says what is spoken."""
    return bool(str(row.get("text") or "").strip())


def beside(out: Path, what: str) -> Path:
    """A place beside a manifest for what belongs to it: MANIFEST-WHAT."""
    return out.with_name(f"{out.stem}-{what}")
