"""Everything that is wrong with a manifest and its recordings, found before training rather than during it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import soundfile as sf

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, parse_manifest
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import AudioError

DURATION_TOLERANCE_S = 0.05
GROUPS = ("speaker", "piece", "recording")
"""Keys whose values ought to stay in one split, or a test measures what training has heard."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the manifest.
        line: its line, counted from 1.
        id: id of the row, or "" where it has none.
        what: what is wrong.
        kind: an `error` makes the row unusable, or the splits dishonest; a `warning` may be meant.
    """

    file: Path
    line: int
    id: str
    what: str
    kind: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.kind}: {self.file} line {self.line}{f' ({self.id})' if self.id else ''}: {self.what}"


@dataclass(frozen=True)
class _Heard:
    """What decoding a recording told: its length and the hash of its samples, or why it cannot be used."""

    duration_s: float = 0.0
    digest: str = ""
    silent: bool = False
    error: str = ""


def check(*manifests: str | Path) -> list[Problem]:
    """Reads manifests and decodes every recording whole.

    Errors: lines that are no rows, duplicate ids, files that are missing, unreadable, truncated, empty, not finite or
    not on the scale of [-1, 1], durations that are off, the same audio in two splits. Warnings: the same audio twice
    in one split, nothing but digital silence, a speaker, piece or recording in more than one split.

    Args:
        manifests: checked together, so that what stands in two of them is found.

    Returns:
        Problems by manifest and line; empty when all is well.

    Raises:
        ManifestError: a manifest cannot be read at all, or has no rows.
    """
    problems: list[Problem] = []
    rows: list[tuple[Path, Clip]] = []
    owner: dict[str, tuple[Path, int]] = {}
    for manifest in map(Path, manifests):
        clips, errors = parse_manifest(manifest)
        problems += [Problem(manifest, error.line, error.id, error.what) for error in errors]
        for clip in clips:
            if clip.id in owner:
                other, line = owner[clip.id]
                problems.append(Problem(manifest, clip.line, clip.id, f"duplicate id, also in {other} line {line}"))
            owner.setdefault(clip.id, (manifest, clip.line))
            rows.append((manifest, clip))
    # decoding leaves Python's lock, so threads do run side by side
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        heard = list(track(pool.map(_hear, (clip.path for _, clip in rows)), "check", len(rows)))
    for (manifest, clip), result in zip(rows, heard, strict=True):
        if result.error:
            problems.append(Problem(manifest, clip.line, clip.id, result.error))
            continue
        if abs(result.duration_s - clip.duration_s) > DURATION_TOLERANCE_S:
            what = f"`duration` is {clip.duration_s:g} s, but the file has {result.duration_s:.3f} s"
            problems.append(Problem(manifest, clip.line, clip.id, what))
        if result.silent:
            problems.append(Problem(manifest, clip.line, clip.id, "nothing but digital silence", "warning"))
    problems += _same_audio(rows, heard)
    problems += _shared_groups(rows)
    order = {Path(manifest): index for index, manifest in enumerate(manifests)}
    return sorted(problems, key=lambda problem: (order[problem.file], problem.line, problem.kind))


def _hear(path: Path) -> _Heard:
    try:
        rate = sf.info(path).samplerate  # the file's own, so that nothing is resampled
    except (sf.LibsndfileError, RuntimeError, OSError):
        rate = 16_000  # load_audio will say what is wrong
    try:
        wav = load_audio(path, rate).wav
    except AudioError as error:
        return _Heard(error=error.message.removeprefix(f"{path}: "))
    samples = wav.numpy()
    digest = hashlib.sha256(str(rate).encode() + samples.tobytes()).hexdigest()
    return _Heard(wav.shape[1] / rate, digest, silent=not samples.any())


def _same_audio(rows: list[tuple[Path, Clip]], heard: list[_Heard]) -> Iterable[Problem]:
    first: dict[str, tuple[Path, Clip]] = {}
    for (manifest, clip), result in zip(rows, heard, strict=True):
        if result.error or result.silent:
            continue
        if result.digest not in first:
            first[result.digest] = (manifest, clip)
            continue
        other_manifest, other = first[result.digest]
        where = f"{other.id!r} in {'' if other_manifest == manifest else f'{other_manifest} '}line {other.line}"
        ours, theirs = clip.split or "train", other.split or "train"
        if ours == theirs:
            yield Problem(manifest, clip.line, clip.id, f"the same audio as {where}", "warning")
        else:
            yield Problem(manifest, clip.line, clip.id, f"{ours} has the same audio as {theirs}: {where}")


def _shared_groups(rows: list[tuple[Path, Clip]]) -> Iterable[Problem]:
    """One warning for each value and each further split that it turns up in."""
    for key in GROUPS:
        splits: dict[str, dict[str, str]] = {}
        for manifest, clip in rows:
            value, split = clip.row.get(key), clip.split or "train"
            if value is None:
                continue
            seen = splits.setdefault(str(value), {})
            if seen and split not in seen:
                what = f"{key} {value!r} is in {split} and in {', '.join(seen)} (such as {next(iter(seen.values()))!r})"
                yield Problem(manifest, clip.line, clip.id, what, "warning")
            seen.setdefault(split, clip.id)
