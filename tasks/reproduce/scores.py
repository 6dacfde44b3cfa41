"""What a table's score stage gives: columns, rows of figures, paired differences; plain values all the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xcodec_lm.tasks.eval.intervals import UNDECIDABLE, Estimate
from xcodec_lm.tasks.reproduce.paper import Better


@dataclass(frozen=True)
class Metric:
    """A column.

    Attributes:
        key: that of the paper's column that it stands for, or one of its own.
        head: its name, with the evaluator in brackets where one decides: `WER[tinyctc], %`.
        format: of its figures.
        best: which end is better.
        stands_for_paper: whether the paper's figures may be set below ours: the same quantity by the same evaluator.
    """

    key: str
    head: str
    format: str
    best: Better
    stands_for_paper: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def figure(estimate: Estimate, scale: float = 1.0) -> dict[str, Any]:
    """A cell with a figure and its interval."""
    data = estimate.to_dict()
    for name in ("value", "low", "high"):
        if data[name] is not None:
            data[name] *= scale
    return data


def rescaled(data: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A cell made from an estimate's plain values, in another unit."""
    return {key: value * scale if key in ("value", "low", "high") and value is not None else value
            for key, value in data.items()}  # fmt: skip


def judged(head: str, judge: Any, otherwise: str = "") -> str:
    """A column's name with its evaluator in brackets; without one `otherwise` stands there."""
    name = judge.name if judge is not None else otherwise
    return f"{head}[{name}]" if name else head


def number(value: float) -> dict[str, Any]:
    """A cell with a figure that has no interval."""
    return {"value": None if math.isnan(value) else value, "low": None, "high": None}


def empty(reason: str) -> dict[str, Any]:
    """A cell without a figure, and why."""
    return {"value": None, "reason": reason}


def row(
    system: str, cells: Mapping[str, Mapping[str, Any]], part: str = "", paper: str = "", reference: bool = False
) -> dict[str, Any]:
    """A row of a table.

    Args:
        system: the codec, or what stands beside the codecs.
        cells: by the keys of the columns.
        part: of the system: layers, feature, stage.
        paper: name of the paper's row that it stands for.
        reference: no contestant: real recordings, teachers, noise.
    """
    return {"system": system, "part": part, "paper": paper, "reference": reference, "cells": dict(cells)}


def difference(
    metric: Metric, one: str, other: str, estimate: Estimate, scale: float = 1.0, doubt: str = ""
) -> dict[str, Any]:
    """A paired difference of two rows with its verdict.

    Args:
        metric: the column.
        one: a row, in words.
        other: another.
        estimate: of one minus other.
        scale: from the estimate's unit to the column's.
        doubt: why there may be no verdict.
    """
    verdict = UNDECIDABLE if doubt else estimate.verdict(metric.best == "min")
    return {"metric": metric.key, "a": one, "b": other, **figure(estimate, scale), "verdict": verdict, "doubt": doubt}


def scores(
    metrics: Sequence[Metric], rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]] = (),
    settings: Sequence[tuple[str, str, str]] = (), not_comparable: Sequence[str] = (),
    evaluators: Mapping[str, Any] | None = None, notes: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The whole result.

    Args:
        metrics: columns.
        rows: of `row`.
        differences: of `difference`.
        settings: what is set, how the paper has it, how it is here.
        not_comparable: why the figures are not the paper's.
        evaluators: name -> ancestry of who judged.
        notes: sentences below the table.
    """
    return {
        "metrics": [metric.to_dict() for metric in metrics], "rows": [dict(item) for item in rows],
        "differences": [dict(item) for item in differences], "settings": [list(item) for item in settings],
        "not_comparable": list(not_comparable), "evaluators": dict(evaluators or {}), "notes": list(notes),
    }  # fmt: skip
