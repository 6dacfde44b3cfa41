"""What is measured, computed from a data set and a seed and kept as text: utterances, crops, captions.

Every list is sorted or numbered, holds names and no paths, and is locked by its stage (`files.sha256`), so that two
machines can show that they measured the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.configs.errors import XcodecLMError

Crop = tuple[str, float]
"""Recording and start in seconds."""


def draw_clips(clips: Sequence[Clip], count: int, seed: int) -> list[Clip]:
    """`count` different clips, or all where there are fewer, in the order of their ids."""
    ordered = sorted(clips, key=lambda clip: clip.id)
    if len(ordered) <= count:
        return ordered
    rng = np.random.default_rng(derive_seed(seed, "reproduce", "clips"))
    return [ordered[index] for index in sorted(rng.choice(len(ordered), count, replace=False))]


def draw_crops(tracks: Sequence[tuple[str, float]], count: int, crop_s: float, seed: int) -> list[Crop]:
    """Crops of tracks: each of a track drawn evenly, from a start drawn evenly, in whole milliseconds.

    Args:
        tracks: name and length in seconds; shorter ones than a crop are passed over.
        count: of crops.
        crop_s: their length.
        seed: of the draws.

    Raises:
        XcodecLMError: no track is long enough.
    """
    long = sorted((name, length) for name, length in tracks if length >= crop_s)
    if not long:
        raise XcodecLMError(f"none of {len(tracks)} tracks lasts {crop_s:g} s", "give whole recordings")
    rng = np.random.default_rng(derive_seed(seed, "reproduce", "crops", int(1000 * crop_s)))
    crops = []
    for _ in range(count):
        name, length = long[int(rng.integers(len(long)))]
        latest = int((length - crop_s) * 1000)
        crops.append((name, int(rng.integers(latest + 1)) / 1000))
    return crops


def draw_captions(rows: Sequence[dict[str, Any]], seed: int) -> list[tuple[str, str]]:
    """One caption for each clip, of those that it has, sorted by id: (id, caption)."""
    chosen = []
    for row in sorted(rows, key=lambda row: row["id"]):
        captions = row.get("captions") or [row["caption"]]
        rng = np.random.default_rng(derive_seed(seed, "reproduce", "caption", row["id"]))
        chosen.append((row["id"], captions[int(rng.integers(len(captions)))]))
    return chosen


def write_lines(path: Path, head: str, rows: Sequence[Sequence[object]]) -> None:
    """Writes a list: a first line of column names after `#`, then one row a line, columns set apart by tabs."""
    lines = [f"#{head}", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[list[str]]:
    """The rows of `write_lines`."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.split("\t") for line in lines[1:] if line]
