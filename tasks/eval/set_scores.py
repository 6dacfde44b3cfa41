"""From what was heard to figures of whole sets: Fréchet distances, KID, inception score; always at equal N.

Vectors are read from their files one after the other and never held together, but for projections on at most 16 axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.tasks.eval.frechet import Moments, Projection, frechet_of_moments
from xcodec_lm.tasks.eval.hearing import Values, plugin_of
from xcodec_lm.tasks.eval.inception import SPLITS, inception_score
from xcodec_lm.tasks.eval.pairs import TRUTH
from xcodec_lm.tasks.eval.plan import Material, Part
from xcodec_lm.tasks.eval.set_distances import Drawn, dims_for, frechet_drawn, kid_drawn

MOST_DRAWN = 3000
"""Rows up to which KID and its intervals are computed; more are drawn down to that."""
ROWS_PER_SPLIT = 10
"""Below this many rows a split the inception score takes the set whole."""


@dataclass
class SetFigure:
    """One figure of a set.

    Attributes:
        label: its name.
        lower_is_better: which way is better.
        value: the figure; None where the set is too small.
        drawn: its draws over units, where it has an interval.
        about: N, dimensions, floor, splits.
        notes: what a reader must know.
    """

    label: str
    lower_is_better: bool | None
    value: float | None
    drawn: Drawn | None = None
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def set_figures(part: Part, material: Material, seed: int = 0) -> dict[str, SetFigure]:
    """System -> figure of a part, for all systems at once, since they are compared at equal N.

    Args:
        part: a metric of scope `set`.
        material: what was heard.
        seed: of the draws.
    """
    pool = "logits" if part.metric.name == "is" else part.metric.pool
    key = material.key(part, pool)
    needs_reference = "ref_audio" in part.metric.needs
    paired = needs_reference and not material.unpaired
    systems = [name for name in material.pairs.systems if not (paired and name == TRUTH)]
    chosen, notes = _equal_ids(systems, key, material, paired)
    references: list[Values] = []
    if material.unpaired and needs_reference:
        readable = [values for values in map(material.reference, material.unpaired) if key in values.files]
        size = min(len(chosen), len(readable))
        if len(chosen) != len(readable):
            notes.append(f"equal N: {size} drawn with seed {seed} of {len(chosen)} made and {len(readable)} references")
        chosen = _draw(chosen, size, seed, "made")
        references = _draw(readable, size, seed, "references")
    elif paired:
        rows = {row.id: row for row in material.pairs.of(systems[0])} if systems else {}
        references = [material.heard(rows[name], "ref_audio") for name in chosen]
    if len(chosen) < 2:
        few = f"{len(chosen)} rows are there for all systems, and two are needed"
        return {name: SetFigure(part.label, part.metric.lower_is_better, None, notes=[*notes, few]) for name in systems}
    compute = {"is": _inception, "kid": _drawn_distance, "fd16": _drawn_distance}.get(part.metric.name, _frechet)
    reference = _Set(references, key)
    found = {}
    for name in systems:
        rows = {row.id: row for row in material.pairs.of(name)}
        made = _Set([material.heard(rows[each]) for each in chosen], key)
        units = [rows[each].unit for each in chosen] if not material.unpaired else None
        found[name] = compute(part, made, reference, units, plugin_of(material.sources[part.inside]).dim, seed)
        found[name].notes = [*notes, *found[name].notes]
    return found


class _Set:
    """Vectors of clips, read when they are asked for."""

    def __init__(self, values: Sequence[Values], key: str):
        self.files = [each.files[key] for each in values]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (np.atleast_2d(np.load(file, allow_pickle=False)).astype(np.float64) for file in self.files)

    def moments(self, dim: int, files: Sequence[Path] | None = None) -> Moments:
        moments = Moments(dim)
        block: list[np.ndarray] = []
        for vectors in self if files is None else (np.atleast_2d(np.load(file)).astype(np.float64) for file in files):
            block.append(vectors)
            if len(block) == 64:
                moments.update(np.concatenate(block))
                block = []
        return moments.update(np.concatenate(block)) if block else moments

    def projected(self, project: Projection) -> np.ndarray:
        """(N, d)."""
        return np.concatenate([project(vectors.mean(axis=0, keepdims=True)) for vectors in self])

    def part(self, places: np.ndarray) -> _Set:
        other = _Set([], "")
        other.files = [self.files[place] for place in places.tolist()]
        return other


def _frechet(part: Part, made: _Set, reference: _Set, units: list[str] | None, dim: int, seed: int) -> SetFigure:
    x, y = made.moments(dim), reference.moments(dim)
    halves = np.random.default_rng(derive_seed(seed, "halves", len(reference))).permutation(len(reference))
    one, two = (reference.moments(dim, [reference.files[place] for place in half.tolist()])
                for half in np.array_split(halves, 2))  # fmt: skip
    floor = frechet_of_moments(one, two) if min(one.count, two.count) > 1 else None
    notes = []
    if min(x.count, y.count) < dim:
        notes.append(
            f"{min(x.count, y.count)} vectors in {dim} dimensions: the covariance is singular and the figure mostly "
            "counts vectors; read fd16 and kid"
        )
    about = {"rows": len(made), "vectors": x.count, "dim": dim, "floor": floor, "floor_rows": len(reference) // 2}
    value = frechet_of_moments(x, y) if min(x.count, y.count) > 1 else None
    return SetFigure(part.label, True, value, None, about, notes)


def _drawn_distance(part: Part, made: _Set, reference: _Set, units: list[str] | None, dim: int, seed: int) -> SetFigure:
    notes = []
    if len(made) > MOST_DRAWN:
        places = np.sort(
            np.random.default_rng(derive_seed(seed, "rows", len(made))).permutation(len(made))[:MOST_DRAWN]
        )
        notes.append(f"{MOST_DRAWN} of {len(made)} rows, drawn with seed {seed}")
        made, reference = made.part(places), reference.part(places)
        units = None if units is None else [units[place] for place in places.tolist()]
    dims = dims_for(len(made))
    project = Projection.of_moments(reference.moments(dim), dims)
    if not project.axes.shape[1]:
        return SetFigure(part.label, True, None, None, {"rows": len(made)}, [*notes, "all references are the same"])
    x, y = made.projected(project), reference.projected(project)
    measure = kid_drawn if part.metric.name == "kid" else frechet_drawn
    drawn = measure([x], y, units or [str(place) for place in range(len(x))], seed)
    about = {"rows": len(made), "dim": project.axes.shape[1]}
    if units is None:  # the references are no counterparts of the rows, so they are not drawn together
        return SetFigure(part.label, True, drawn.value, None, about, [*notes, "no interval: references are not paired"])
    return SetFigure(part.label, True, drawn.value, drawn, about, notes)


def _inception(part: Part, made: _Set, reference: _Set, units: list[str] | None, dim: int, seed: int) -> SetFigure:
    logits = np.concatenate(list(made))
    splits = SPLITS if len(logits) >= ROWS_PER_SPLIT * SPLITS else 1
    value, deviation = inception_score(logits, splits, seed)
    about = {"rows": len(logits), "splits": splits, "deviation": deviation, "whole": inception_score(logits, 1)[0],
             "most": min(logits.shape[1], len(logits) // splits)}  # fmt: skip
    return SetFigure(part.label, False, value, None, about)


def _equal_ids(systems: Sequence[str], key: str, material: Material, paired: bool) -> tuple[list[str], list[str]]:
    """Ids that every system, and its reference, has a vector of; and what is said where that is not all."""
    everything = material.pairs.ids
    kept = set(everything)
    for name in systems:
        have = {row.id for row in material.pairs.of(name) if key in material.heard(row).files}
        if paired:
            have &= {row.id for row in material.pairs.of(name) if key in material.heard(row, "ref_audio").files}
        kept &= have
    chosen = [name for name in everything if name in kept]
    few = len(chosen) < len(everything)
    return chosen, [f"equal N: {len(chosen)} of {len(everything)} ids, which all sets have"] if few else []


def _draw(items: Sequence[Any], size: int, seed: int, what: str) -> list[Any]:
    if size == len(items):
        return list(items)
    order = np.random.default_rng(derive_seed(seed, "equal N", what, len(items))).permutation(len(items))
    return [items[place] for place in sorted(order[:size].tolist())]
