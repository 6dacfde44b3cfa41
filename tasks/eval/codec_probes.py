"""Linear probes of codecs' vectors: words, speakers and sound classes, read off each recording's mean and spread.

The tasks, folds and the classifier are those of `probe`, as `hubert probe` has them for teachers: all splits are used,
and no unit that a probe is tested on was among those that it was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.tasks.eval.codec_features import FeatureKey, collect
from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.probe import cross_validate, pooled, probe_tasks

LONGEST_S = 8.0
"""Audio of a clip that is looked at."""


def probes(
    codecs: Mapping[str, AudioTokenizer],
    clips: Sequence[Clip],
    keys: Sequence[FeatureKey],
    clip_s: float | None = None,
    seed: int = 0,
    per_class: int = 150,
) -> list[dict[str, Any]]:
    """Accuracies of every task on every feature, in percent.

    Args:
        codecs: `codec` and perhaps `against`.
        clips: rows of manifests, any splits.
        keys: features.
        clip_s: take at most this much of each recording, and never more than `LONGEST_S`.
        seed: of the choice of clips, of the folds and of the bootstrap.
        per_class: at most so many clips of a class.

    Returns:
        A row for each task and feature: `task`, `feature`, `n_q`, `classes`, `clips`, `unit`, `units`, `chance` (of the
        most frequent label), a figure for each role and the `difference` with its verdict.
    """
    tasks = probe_tasks(clips, per_class, seed)
    needed = list({clip.id: clip for task in tasks for clip in task.clips}.values())
    longest = min(LONGEST_S, clip_s or LONGEST_S)
    found = collect(codecs, needed, keys, "features for probes", pool=pooled, clip_s=longest) if needed else {}
    rows = []
    for task in tasks:
        head = {
            "task": task.name, "classes": len(set(task.labels)), "clips": len(task.clips), "unit": task.unit,
            "units": len(set(task.units)),
        }  # fmt: skip
        for key in keys:
            correct, chance = {}, 0.0
            for role in codecs:
                if (role, key) in found:
                    x = torch.stack([found[role, key].vectors[clip.id] for clip in task.clips])
                    score = cross_validate(x, task, seed)
                    correct[role], chance = 100 * score.correct, 100 * score.majority
            if not correct:
                continue
            row = head | {"feature": key.feature, "n_q": key.n_q, "chance": chance}
            row |= {role: mean_estimate(values, task.units, seed).to_dict() for role, values in correct.items()}
            if len(correct) == 2:
                difference = difference_estimate(correct["codec"], correct["against"], task.units, seed)
                row["difference"] = difference.to_dict() | {"verdict": difference.verdict(lower_is_better=False)}
            rows.append(row)
    return rows
