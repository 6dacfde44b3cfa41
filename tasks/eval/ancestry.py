"""Whether a judge may judge: it must not share weights, targets or data with what it judges.

What is known of a model is plain values: `fingerprints` of the models that went into it, and an ancestry as judges
carry it. Unknown ancestry is not taken for a relation; it is shown, so that a reader sees what is not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.data.provenance import UNITS

SAME = ("trained_on", "weights_from", "seed", "split_seed")
"""Entries of an ancestry that tell two models apart: how long they were trained does not."""


@dataclass(frozen=True)
class Origin:
    """What a system was made with.

    Attributes:
        fingerprints: of every model that took part: language model, codec, teacher, conditioner.
        ancestry: as a judge's.
    """

    fingerprints: frozenset[str] = frozenset()
    ancestry: dict[str, Any] = field(default_factory=dict)


def related(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two ancestries are one: the same data, seed and first weights; unknown ones are not."""
    facts = [json.dumps({key: origin.get(key) for key in SAME}, sort_keys=True) for origin in (one, other)]
    known = any(one.get(key) is not None for key in SAME)
    return known and facts[0] == facts[1]


def has_heard(ancestry: dict[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """What tells that a judge was trained on what it is to judge; "" if nothing does.

    Args:
        ancestry: of the judge.
        rows: of manifests, with `speaker`, `piece` or `recording`.
    """
    rows = list(rows)
    for unit in UNITS:
        known = {str(name) for origin in ancestry.get("trained_on") or () for name in origin.get(unit) or ()}
        both = sorted({str(row[unit]) for row in rows if row.get(unit)} & known)
        if both:
            return f"was trained on {len(both)} of the tested {unit}s, such as {both[0]}"
    return ""


def shared(name: str, fingerprint: str, ancestry: dict[str, Any], origins: Mapping[str, Origin]) -> str:
    """Why a judge shares ancestry with one of the systems; "" if nothing tells so.

    Args:
        name: of the judge.
        fingerprint: of the judge.
        ancestry: of the judge; its `fingerprints` are models that went into it.
        origins: what the systems were made with, by name.
    """
    own = {fingerprint, *map(str, ancestry.get("fingerprints") or ())} - {""}
    for system, origin in origins.items():
        if own & origin.fingerprints:
            return f"{name} shares a model with what made {system}"
        if related(ancestry, origin.ancestry):
            return f"{name} has the ancestry of what made {system}"
    return ""


def read_origin(path: str | Path) -> Origin:
    """What a run, a model folder or a JSON file says of a model: every fingerprint in it, and its ancestry.

    Raises:
        UsageError: nothing is there that can be read.
    """
    path = Path(path)
    places = (path,) if path.is_file() else (path / "model" / "config.json", path / "config.json",
                                             path / "ar" / "model" / "config.json")  # fmt: skip
    for place in places:
        if place.is_file():
            try:
                data = json.loads(place.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UsageError(f"{place} cannot be read as JSON: {error}") from None
            own = data.get("ancestry") or data.get("xcodec_lm", {}).get("ancestry") or {}
            return Origin(frozenset(_fingerprints(data)), own if isinstance(own, dict) else {})
    raise UsageError(f"{path} is no run, no model folder and no JSON file", "give what made the system")


def _fingerprints(data: Any, key: str = "") -> Iterable[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _fingerprints(value, str(name))
    elif isinstance(data, list):
        for value in data:
            yield from _fingerprints(value, key)
    elif isinstance(data, str) and data and "fingerprint" in key:
        yield data
