"""ABX discriminability: are two takes of one phone or word nearer to each other than to another phone or word?

For items a and x of one label and b of another, all in the same context, the error is the share of triplets in which
x is nearer to b than to a; a tie counts half. Chance is 50 %. `within`: all three are of one speaker. `across`: a and b
are of one speaker, x of another. Errors are averaged over contexts (and x's speakers), then over speakers, then over
pairs of labels, every cell alike.

The distance of two items is the cheapest warping path's mean frame distance (`warping`), and that of two frames the
angle between them as a share of pi or, of codes, the share that differ.

Source: Schatz et al. 2013, "Evaluating speech features with the minimal-pair ABX task"; caps as in Kahn et al. 2020
(arXiv 1912.07875). Its code leaves out the last frame of every item: `slice_rule` of `abx_items`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.tasks.eval.abx_items import Item
from xcodec_lm.tasks.eval.intervals import Estimate, draw_weights, percentiles
from xcodec_lm.tasks.eval.warping import Distance, pair_distances

Mode = Literal["within", "across"]
MOST_DISTANCES = 1_000_000
"""Item distances that are computed without drawing a sample."""
MOST_ITEMS, MOST_X_SPEAKERS = 10, 5
"""Caps of the published evaluations: items of a group, speakers of x."""
SEEDS = (0, 1, 2)

Group = tuple[str, str, str, str]  # before, after, label, speaker
Triple = tuple[Group, Group, Group]  # groups of a, b and x


@dataclass(frozen=True)
class AbxResult:
    """Errors of one set of features.

    Attributes:
        error: mean, in percent; NaN when no triplet can be made.
        errors: (label of a, label of b) -> speaker of a and b -> error in percent, mean over contexts and x's speakers.
        cells: how many (labels, context, speakers) were measured.
        distances: how many distances of items were computed.
        by_seed: error of each draw of a sample; one number when nothing had to be left out.
    """

    error: float
    errors: dict[tuple[str, str], dict[str, float]]
    cells: int
    distances: int
    by_seed: list[float] = field(default_factory=list)

    def estimate(self, seed: int = 0) -> Estimate:
        """The error with its interval over speakers."""
        return _estimate(self.errors, seed)

    def minus(self, other: AbxResult, seed: int = 0) -> Estimate:
        """The paired difference of errors, over what both have measured."""
        shared = {
            pair: {name: error - other.errors[pair][name] for name, error in row.items() if name in other.errors[pair]}
            for pair, row in self.errors.items()
            if pair in other.errors
        }
        return _estimate({pair: row for pair, row in shared.items() if row}, seed)


def abx(
    items: Sequence[Item],
    vectors: Sequence[Tensor | None],
    mode: Mode,
    seeds: Sequence[int] = SEEDS,
    most_distances: int = MOST_DISTANCES,
    most_items: int = MOST_ITEMS,
    most_x_speakers: int = MOST_X_SPEAKERS,
    distance: Distance = "angular",
) -> AbxResult:
    """The error over all triplets or, where they are too many, over seeded samples of them.

    Args:
        items: what each stretch is.
        vectors: (T, D) of each item; items with None are left out.
        mode: `within` or `across` speakers.
        seeds: of the samples; their errors are averaged.
        most_distances: draw samples if more distances of items than this were needed.
        most_items: items of a group in a sample.
        most_x_speakers: speakers of x for each group of a in a sample.
        distance: of frames, see `warping.pair_distances`; `identical` is for codes (T, Q).
    """
    groups: dict[Group, list[int]] = defaultdict(list)
    for index, (item, vector) in enumerate(zip(items, vectors, strict=True)):
        if vector is not None and len(vector):
            groups[item.before, item.after, item.label, item.speaker].append(index)
    triples = _triples(groups, mode)
    needed = sum(len(groups[y]) * len(groups[x]) for y, x in _pairs_of(triples))
    if needed <= most_distances:
        return _measure(groups, triples, vectors, mode, distance)
    draws = []
    for seed in seeds:
        sample = {key: _sample(members, most_items, seed, *key) for key, members in groups.items()}
        chosen = _limit_x_speakers(triples, most_x_speakers, seed) if mode == "across" else triples
        draws.append(_measure(sample, chosen, vectors, mode, distance))
    return _mean(draws)


def _triples(groups: dict[Group, list[int]], mode: Mode) -> list[Triple]:
    """Groups of a, b and x of every cell."""
    labels: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for before, after, label, speaker in sorted(groups):
        labels[before, after][speaker].append(label)
    found: list[Triple] = []
    for context, by_speaker in labels.items():
        for speaker, said in by_speaker.items():
            for a in said:
                own = (*context, a, speaker)
                if mode == "within":
                    xs = [own] if len(groups[own]) > 1 else []
                else:
                    xs = [(*context, a, other) for other in by_speaker if other != speaker and a in by_speaker[other]]
                found += [(own, (*context, b, speaker), x) for x in xs for b in said if b != a]
    return found


def _pairs_of(triples: list[Triple]) -> list[tuple[Group, Group]]:
    """Pairs of groups between which distances are needed, each once."""
    return list(dict.fromkeys(pair for a, b, x in triples for pair in ((a, x), (b, x))))


def _measure(
    groups: dict[Group, list[int]],
    triples: list[Triple],
    vectors: Sequence[Tensor | None],
    mode: Mode,
    distance: Distance,
) -> AbxResult:
    pairs = _pairs_of(triples)
    sizes = [(len(groups[x]), len(groups[y])) for y, x in pairs]
    members = np.array([(j, i) for y, x in pairs for j in groups[x] for i in groups[y]]).reshape(-1, 2)
    # all pairs of a context have their frames in common, within speakers all those of one speaker
    keys = [(*x[:2], x[3] if mode == "within" else "") for _, x in pairs]
    number = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    blocks = np.repeat([number[key] for key in keys], [n * m for n, m in sizes])
    flat = pair_distances(vectors, members, blocks, distance)
    tables, start = {}, 0
    for pair, (n, m) in zip(pairs, sizes, strict=True):
        tables[pair] = flat[start : start + n * m].reshape(n, m)
        start += n * m
    cells: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for a, b, x in triples:
        to_a, to_b = tables[a, x][:, :, None], tables[b, x][:, None]  # (X, A, 1), (X, 1, B)
        count = len(to_a) * to_a.shape[1] * to_b.shape[2]
        if a == x:  # an item is not its own x
            to_a = np.where(np.eye(len(to_a), dtype=bool)[:, :, None], np.nan, to_a)
            count -= len(to_a) * to_b.shape[2]
        wrong = np.count_nonzero(to_a > to_b) + 0.5 * np.count_nonzero(to_a == to_b)
        cells[a[2], b[2]][a[3]].append(100 * wrong / count)
    errors = {pair: {name: float(np.mean(v)) for name, v in row.items()} for pair, row in cells.items()}
    error = _over_pairs(errors)
    return AbxResult(error, errors, len(triples), len(members), [error])


def _sample(members: list[int], most: int, *key: str | int) -> list[int]:
    if len(members) <= most:
        return members
    rng = np.random.default_rng(derive_seed(0, "abx items", *key))
    return sorted(rng.choice(members, most, replace=False).tolist())


def _limit_x_speakers(triples: list[Triple], most: int, seed: int) -> list[Triple]:
    speakers: dict[Group, list[str]] = defaultdict(list)
    for a, _, x in triples:
        if x[3] not in speakers[a]:
            speakers[a].append(x[3])
    kept = {}
    for a, names in speakers.items():
        rng = np.random.default_rng(derive_seed(seed, "abx speakers", *a))
        kept[a] = set(names if len(names) <= most else rng.choice(names, most, replace=False).tolist())
    return [triple for triple in triples if triple[2][3] in kept[triple[0]]]


def _mean(draws: list[AbxResult]) -> AbxResult:
    """The mean of several samples, cell by cell."""
    gathered: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for draw in draws:
        for pair, row in draw.errors.items():
            for speaker, error in row.items():
                gathered[pair][speaker].append(error)
    errors = {pair: {name: float(np.mean(v)) for name, v in row.items()} for pair, row in gathered.items()}
    distances = sum(draw.distances for draw in draws)
    return AbxResult(_over_pairs(errors), errors, draws[0].cells, distances, [draw.error for draw in draws])


def _over_pairs(errors: dict[tuple[str, str], dict[str, float]]) -> float:
    return float(np.mean([np.mean(list(row.values())) for row in errors.values()])) if errors else math.nan


def _estimate(errors: dict[tuple[str, str], dict[str, float]], seed: int) -> Estimate:
    """Mean over pairs of means over speakers, with speakers resampled."""
    names = sorted({speaker for row in errors.values() for speaker in row})
    scored = sum(len(row) for row in errors.values())
    if len(names) < 2:
        return Estimate(_over_pairs(errors), math.nan, math.nan, len(names), scored)
    table = np.array([[row.get(name, 0.0) for name in names] for row in errors.values()])  # (pairs, speakers)
    known = np.array([[name in row for name in names] for row in errors.values()], dtype=np.float64)
    weights = draw_weights(len(names), seed)
    counts = weights @ known.T  # (draws, pairs)
    means = np.where(counts > 0, (weights @ table.T) / np.maximum(counts, 1e-9), np.nan)
    drawn = np.isfinite(means).any(axis=1)
    low, high = percentiles(np.nanmean(means[drawn], axis=1))
    return Estimate(_over_pairs(errors), low, high, len(names), scored)
