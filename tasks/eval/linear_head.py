"""Linear heads on fixed vectors, as ARCH trains them: AdamW with warm-up and decay, the epoch that validates best kept.

Several seeds are trained at once; each has its own start and order of rows. `probe` has the closed counterpart, a
penalised regression without seeds, for probes of a project's own data.

Source: recipe of ARCH (La Quatra et al. 2024, arXiv 2405.00934). Its code keeps the weights of the last epoch where the
best are meant; here they are the best by validation loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xcodec_lm.codec.runtime.order import generator

Preset = Literal["masked", "arch"]


@dataclass(frozen=True)
class Recipe:
    """How heads are trained.

    Attributes:
        epochs: passes over the training rows.
        batch: rows of a step.
        lr: highest learning rate, after a linear rise over the first tenth of the steps; it falls to 0 linearly.
        standardise: give every dimension mean 0 and deviation 1 over the training rows.
    """

    epochs: int
    batch: int
    lr: float
    standardise: bool


RECIPES: dict[str, Recipe] = {
    "masked": Recipe(epochs=100, batch=32, lr=1e-2, standardise=True),
    "arch": Recipe(epochs=200, batch=32, lr=1e-3, standardise=False),
}
"""`arch` is the reference's, whose small steps need some thousand rows to get anywhere; a hundred do for `masked`."""
WARM_UP = 0.1
UNKNOWN = -1
"""Class of a row whose label no training row has."""


def train_heads(
    x: Tensor, y: Tensor, valid_x: Tensor, valid_y: Tensor, classes: int, recipe: Recipe, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Weights (S, D, C) and biases (S, 1, C) of heads; they take vectors as they are, whatever the recipe.

    Args:
        x: (R, D) training vectors.
        y: (R,) classes or `UNKNOWN`, or (R, C) with 1 for each label of a row.
        valid_x: (V, D).
        valid_y: as y.
        classes: C.
        recipe: how.
        seeds: S of them.
    """
    x, valid_x = x.float(), valid_x.float()
    mean, scale = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    if recipe.standardise:
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 1e-6 * (1e-6 + mean.abs()), scale, torch.inf)  # constant dimensions say nothing
        x, valid_x = (x - mean) / scale, (valid_x - mean) / scale
    generators = [generator(seed, "linear head") for seed in seeds]
    bound = 1 / math.sqrt(x.shape[1])  # as torch.nn.Linear
    starts = [bound * (2 * torch.rand(x.shape[1] + 1, classes, generator=g) - 1) for g in generators]
    weights = torch.stack(starts).requires_grad_()  # (S, D + 1, C); the last row is the bias
    optimizer = torch.optim.AdamW([weights], lr=recipe.lr)
    steps = math.ceil(len(x) / recipe.batch)
    rise = max(1, round(WARM_UP * recipe.epochs * steps))
    fall = max(1, recipe.epochs * steps - rise)
    best, lowest = weights.detach().clone(), torch.full((len(seeds),), torch.inf)
    step = 0
    for _ in range(recipe.epochs):
        orders = torch.stack([torch.randperm(len(x), generator=g) for g in generators])
        for begin in range(0, len(x), recipe.batch):
            step += 1
            optimizer.param_groups[0]["lr"] = recipe.lr * min(step / rise, (rise + fall + 1 - step) / fall)
            rows = orders[:, begin : begin + recipe.batch]
            loss = _losses(_logits(weights, x[rows]), y[rows]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = _logits(weights, valid_x.expand(len(seeds), -1, -1))
            losses = _losses(logits, valid_y.expand(len(seeds), *valid_y.shape))
            better = losses < lowest
            lowest = torch.where(better, losses, lowest)
            best[better] = weights.detach()[better]
    plain = best[:, :-1] / scale[:, None]
    return plain, best[:, -1:] - (mean[None, None] @ plain)


def _logits(weights: Tensor, x: Tensor) -> Tensor:
    """(S, R, C) of weights (S, D + 1, C) and x (S, R, D)."""
    return torch.baddbmm(weights[:, -1:], x, weights[:, :-1])


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """(S,) mean losses: cross entropy of classes (S, R), or binary ones of labels (S, R, C)."""
    if y.ndim == logits.ndim:
        return F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(dim=(1, 2))
    return F.cross_entropy(logits.transpose(1, 2), y, reduction="none", ignore_index=UNKNOWN).mean(dim=1)


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean over labels of the average precision; labels that no row has are left out.

    Args:
        scores: (R, C), higher for likelier.
        truth: (R, C) bool.

    Returns:
        In [0, 1]; NaN where no row has any label. Rows of one score count together, so that their order is nothing.
    """
    values = [_average_precision(scores[:, c], truth[:, c]) for c in range(scores.shape[1]) if truth[:, c].any()]
    return float(np.mean(values)) if values else math.nan


def _average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last row of each score
    hits = np.cumsum(truth[order])[ends]
    precision = hits / (ends + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])
