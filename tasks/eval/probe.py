"""Linear probes: what a linear classifier can read off frozen features, averaged over time.

The classifier is a multinomial logistic regression on standardised features. Units (speakers or recordings) that it
is tested on are never among those that it is fitted or tuned on, and intervals are over units.

Source: the protocol is ARCH's (La Quatra et al. 2024, arXiv 2405.00934), which the paper's table 5 uses, made smaller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.tasks.eval.intervals import Estimate, mean_estimate

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the squared norm that are tried."""
HELD_OUT = 0.25
"""Share of the training groups on which the penalty is chosen."""
ITERATIONS = 60
"""Most iterations of LBFGS in one fit."""
LEAST_CLIPS = 8
"""Clips below which a label is not a class."""
MOST_CLASSES = 64
"""More different labels than this are sentences, not classes."""


@dataclass(frozen=True)
class ProbeResult:
    """One probe, tested once.

    Attributes:
        accuracy: share of the test rows that are named rightly, in [0, 1].
        majority: the same for always naming the most frequent training label.
        correct: (R,) bool, test rows that are named rightly.
        penalty: that was chosen.
    """

    accuracy: float
    majority: float
    correct: np.ndarray
    penalty: float


def pooled(frames: Tensor) -> Tensor:
    """Mean and standard deviation over time: (D, T) -> (2 D,)."""
    return torch.cat([frames.mean(dim=1), frames.std(dim=1, correction=0)])


def linear_probe(
    train_x: Tensor,
    train_y: Sequence[Hashable],
    test_x: Tensor,
    test_y: Sequence[Hashable],
    seed: int = 0,
    train_groups: Sequence[Hashable] | None = None,
) -> ProbeResult:
    """Fits a linear classifier and tests it.

    Args:
        train_x: (R, D) features.
        train_y: R labels.
        test_x: (S, D) features.
        test_y: S labels; one that was never trained on counts as wrong.
        seed: of the part of the training rows on which the penalty is chosen.
        train_groups: R units; whole units are held out for that choice. None takes rows for units.

    Raises:
        ValueError: rows and labels differ in number, or there are none.
    """
    if len(train_x) != len(train_y) or len(test_x) != len(test_y) or not len(train_x) or not len(test_x):
        raise ValueError(f"{len(train_x)} and {len(test_x)} rows for {len(train_y)} and {len(test_y)} labels")
    groups = list(train_groups) if train_groups is not None else list(range(len(train_x)))
    classes = {label: index for index, label in enumerate(sorted(set(train_y), key=str))}
    answers = torch.tensor([classes[label] for label in train_y])
    asked = torch.tensor([classes.get(label, -1) for label in test_y])
    x = train_x.double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-9 * (1 + mean.abs()), scale, torch.inf)  # constant features say nothing
    x, z = (x - mean) / scale, (test_x.double() - mean) / scale
    penalty = _choose_penalty(x, answers, groups, len(classes), seed)
    correct = _predict(_fit(x, answers, len(classes), penalty), z) == asked
    most_frequent = int(torch.bincount(answers).argmax())
    return ProbeResult(
        accuracy=float(correct.double().mean()),
        majority=float((asked == most_frequent).double().mean()),
        correct=correct.numpy(),
        penalty=penalty,
    )


def _choose_penalty(x: Tensor, y: Tensor, groups: Sequence[Hashable], classes: int, seed: int) -> float:
    names = sorted(set(groups), key=str)
    middle = PENALTIES[len(PENALTIES) // 2]
    if len(names) < 2:
        return middle
    order = torch.randperm(len(names), generator=generator(seed, "probe")).tolist()
    held_out = {names[index] for index in order[: max(1, round(HELD_OUT * len(names)))]}
    held = torch.tensor([group in held_out for group in groups])
    scores = [
        float((_predict(_fit(x[~held], y[~held], classes, penalty), x[held]) == y[held]).double().mean())
        for penalty in PENALTIES
    ]
    return max(zip(scores, PENALTIES, strict=True))[1]  # of equals the stronger penalty


def _fit(x: Tensor, y: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights (D + 1, classes) of the penalised regression; the last row is the bias."""
    with torch.enable_grad():
        weights = torch.zeros(x.shape[1] + 1, classes, dtype=x.dtype, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights], max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-6, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weights[:-1] + weights[-1], y)
            value = value + 0.5 * penalty * weights[:-1].square().sum() / classes
            value.backward()
            return value

        optimizer.step(loss)
    return weights.detach()


def _predict(weights: Tensor, x: Tensor) -> Tensor:
    return (x @ weights[:-1] + weights[-1]).argmax(1)


@dataclass(frozen=True)
class ProbeTask:
    """Clips with labels.

    Attributes:
        name: `spoken word`, `speaker` or `sound class`.
        clips: the recordings.
        labels: one a clip.
        units: one a clip; test units are never trained on.
        unit: what a unit is, for people.
    """

    name: str
    clips: list[Clip]
    labels: list[str]
    units: list[str]
    unit: str


def probe_tasks(clips: Sequence[Clip], per_class: int, seed: int = 0) -> list[ProbeTask]:
    """The tasks that the labels of manifests allow.

    `spoken word`: rows whose `text` is one word of a small set, by unseen speakers. `speaker`: rows of speakers with
    several recordings, by unseen recordings. `sound class`: rows with a `label`, by unseen original recordings.

    Args:
        clips: rows of any splits.
        per_class: at most so many clips of a class; a seeded choice.
        seed: of that choice.
    """
    words = [clip for clip in clips if isinstance(text := clip.row.get("text"), str) and len(text.split()) == 1]
    tasks = [
        _task("spoken word", words, "text", "speaker", per_class, seed),
        _task("speaker", clips, "speaker", "recording", per_class, seed),
        _task("sound class", clips, "label", "recording", per_class, seed),
    ]
    return [task for task in tasks if task is not None]


def _task(name: str, clips: Sequence[Clip], key: str, unit: str, per_class: int, seed: int) -> ProbeTask | None:
    rows = [clip for clip in clips if isinstance(clip.row.get(key), str)]
    counts = Counter(clip.row[key] for clip in rows)
    classes = {label for label, count in counts.items() if count >= LEAST_CLIPS}
    rows = [clip for clip in rows if clip.row[key] in classes]
    order = torch.randperm(len(rows), generator=generator(seed, "probe task", name)).tolist()
    taken: Counter[str] = Counter()
    chosen = []
    for index in order:
        label = rows[index].row[key]
        if taken[label] < per_class:
            taken[label] += 1
            chosen.append(index)
    rows = [rows[index] for index in sorted(chosen)]
    units = [str(clip.row.get(unit) or clip.id) for clip in rows]
    if not 2 <= len(classes) <= MOST_CLASSES or len(set(units)) < 2:
        return None
    return ProbeTask(name, rows, [clip.row[key] for clip in rows], units, unit)


@dataclass(frozen=True)
class ProbeScore:
    """A probe over all folds.

    Attributes:
        accuracy: in [0, 1], with its interval over units.
        majority: accuracy of always naming the most frequent training label.
        correct: (R,) 0 or 1 for every clip of the task, for paired differences.
    """

    accuracy: Estimate
    majority: float
    correct: np.ndarray


def cross_validate(x: Tensor, task: ProbeTask, seed: int = 0, folds: int = 5) -> ProbeScore:
    """Accuracy of a probe when every unit is tested once and never trained on then.

    Args:
        x: (R, D) features of the task's clips.
        task: labels and units.
        seed: of the folds, the choice of penalties and the interval.
        folds: parts that the units are dealt into; fewer if there are fewer units.
    """
    names = sorted(set(task.units))
    order = torch.randperm(len(names), generator=generator(seed, "probe folds", task.name)).tolist()
    fold_of = {names[index]: position % min(folds, len(names)) for position, index in enumerate(order)}
    rows = np.array([fold_of[unit] for unit in task.units])
    correct, majority = np.zeros(len(rows)), 0.0
    labels, units = np.array(task.labels, dtype=object), np.array(task.units, dtype=object)
    for fold in range(min(folds, len(names))):
        test = rows == fold
        result = linear_probe(
            x[torch.from_numpy(~test)],
            labels[~test].tolist(),
            x[torch.from_numpy(test)],
            labels[test].tolist(),
            seed,
            units[~test].tolist(),
        )
        correct[test] = result.correct
        majority += result.majority * test.sum() / len(rows)
    return ProbeScore(mean_estimate(correct, task.units, seed), float(majority), correct)
