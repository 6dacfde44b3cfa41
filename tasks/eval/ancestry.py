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


FAMILIES = ("wavlm", "hubert", "wav2vec2", "mert", "clap", "whisper")
"""Models that others are tuned from or distilled from."""


@dataclass(frozen=True)
class Origin:
    """What a system was made with.

    Attributes:
        fingerprints: of every model that took part: language model, codec, teacher, conditioner.
        ancestry: as a judge's.
        families: those of `FAMILIES` that are named, such as a codec's teacher.
    """

    fingerprints: frozenset[str] = frozenset()
    ancestry: dict[str, Any] = field(default_factory=dict)
    families: frozenset[str] = frozenset()


def related(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two ancestries are one: the same data, seed and first weights; unknown ones are not.

    That both began with random weights tells nothing by itself: a seed must be stated with it.
    """
    facts = [json.dumps({key: origin.get(key) for key in SAME}, sort_keys=True) for origin in (one, other)]
    stated = {key for key in SAME if one.get(key) is not None}
    if str(one.get("weights_from")).startswith("none"):
        stated.discard("weights_from")
    return bool(stated) and facts[0] == facts[1]


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


def same_family(name: str, ancestry: dict[str, Any], origins: Mapping[str, Origin]) -> str:
    """What is to be said of a judge that is of the family of a teacher, whose weights may or may not be the same.

    The family alone does not forbid a verdict: a HuBERT that was trained here has nothing of a published one.
    """
    own = _families({"model_type": json.dumps(ancestry)})
    for system, origin in origins.items():
        if both := sorted(own & origin.families):
            return f"{name} is made from {both[0]}, as is a part of {system}: look whether they share weights"
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
            known = own if isinstance(own, dict) else {}
            return Origin(frozenset(_fingerprints(data)), known, frozenset(_families(data)))
    raise UsageError(f"{path} is no run, no model folder and no JSON file", "give what made the system")


def _families(data: Any, key: str = "") -> set[str]:
    """The families that stand under `model_type`, `teacher`, `base` or `weights_from`."""
    if isinstance(data, dict):
        return {name for key, value in data.items() for name in _families(value, str(key))}
    if isinstance(data, list):
        return {name for value in data for name in _families(value, key)}
    if not isinstance(data, str) or key not in ("model_type", "teacher", "base", "weights_from"):
        return set()
    text = data.lower().replace("wav2vec 2.0", "wav2vec2")
    return {name for name in FAMILIES if name in text}


def _fingerprints(data: Any, key: str = "") -> Iterable[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _fingerprints(value, str(name))
    elif isinstance(data, list):
        for value in data:
            yield from _fingerprints(value, key)
    elif isinstance(data, str) and data and "fingerprint" in key:
        yield data
