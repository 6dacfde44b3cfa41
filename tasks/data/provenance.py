"""What a model was trained on: rows, licences, and hashes that let others check that nothing held out was among it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xcodec_lm.codec.clips import read_manifest

UNITS = ("speaker", "piece", "recording")
"""Fields that name what must not be on both sides of a split."""


def provenance(manifests: Iterable[str | Path], split: str = "train") -> list[dict[str, Any]]:
    """What one split of each manifest holds.

    Args:
        manifests: JSON-lines files.
        split: which rows; those without a split count as train, as in training.

    Returns:
        One entry a manifest: file name, its sha256, the sha256 of the split's sorted ids, rows, minutes, counts of
        licences and sources, and the sorted names of speakers, pieces and recordings.

    Raises:
        XcodecLMError: a manifest cannot be read.
    """
    entries = []
    for manifest in manifests:
        path = Path(manifest)
        clips = [clip for clip in read_manifest(path) if (clip.split or "train") == split]
        rows = [{**clip.row, "id": clip.id, "duration": clip.duration_s} for clip in clips]
        entry = describe_rows(path.name, rows)
        entries.append({"manifest": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **entry})
    return entries


def describe_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What manifest rows hold, in the terms of `provenance`.

    Args:
        name: of the manifest or token store.
        rows: with `id` and `duration`.
    """
    return {
        "manifest": name,
        "ids_sha256": hash_ids(str(row["id"]) for row in rows),
        "rows": len(rows),
        "minutes": round(sum(float(row["duration"]) for row in rows) / 60, 1),
        "licences": dict(Counter(str(row.get("licence", "not stated")) for row in rows).most_common()),
        "sources": dict(Counter(str(row.get("source", "not stated")) for row in rows).most_common()),
        **{unit: sorted({str(row[unit]) for row in rows if row.get(unit)}) for unit in UNITS},
    }


def hash_ids(ids: Iterable[str]) -> str:
    """sha256 of sorted ids."""
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()
