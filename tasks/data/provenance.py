"""What a model was trained on: rows, licences, and hashes that let others check that nothing held out was among it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
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
        entries.append(
            {
                "manifest": path.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "ids_sha256": hash_ids(clip.id for clip in clips),
                "rows": len(clips),
                "minutes": round(sum(clip.duration_s for clip in clips) / 60, 1),
                "licences": dict(Counter(str(clip.row.get("licence", "not stated")) for clip in clips).most_common()),
                "sources": dict(Counter(str(clip.row.get("source", "not stated")) for clip in clips).most_common()),
                **{unit: sorted({str(clip.row[unit]) for clip in clips if clip.row.get(unit)}) for unit in UNITS},
            }
        )
    return entries


def hash_ids(ids: Iterable[str]) -> str:
    """sha256 of sorted ids."""
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()
