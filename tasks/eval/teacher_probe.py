"""What a teacher has learnt: linear probes of its frames, of a codec's latents and of an untrained twin's frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.semantic import TeacherFeatures, quiet_transformers
from xcodec_lm.codec.tokens import Features
from xcodec_lm.tasks.eval.intervals import difference_estimate
from xcodec_lm.tasks.eval.probe import cross_validate, pooled, probe_tasks

Extractor = Callable[[Tensor], Features]
"""Features of wav (1, 1, N) at `SAMPLE_RATE`."""
SAMPLE_RATE = 16_000
LONGEST_S = 8.0
"""Audio of a clip that is looked at."""


def extractors(teacher: TeacherFeatures, codec: Any = None, seed: int = 0) -> dict[str, Extractor]:
    """What is compared: the teacher, one of the same configuration that is untrained, the codec's latents.

    Args:
        teacher: the trained one.
        codec: with `FrameFeatures` at 16 kHz; None leaves it out.
        seed: of the untrained weights.
    """
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained teacher"))
        untrained = AutoModel.from_config(teacher.model.config, dtype=torch.float32)
    fresh = TeacherFeatures(untrained, teacher.layers, teacher.window_s, teacher.device)
    found: dict[str, Extractor] = {
        "teacher": lambda wav: teacher.extract(wav),
        "untrained teacher": lambda wav: fresh.extract(wav),
    }
    if codec is not None:
        known = codec.features
        if "pre_vq" in known:
            found["codec pre_vq"] = lambda wav: codec.extract(wav, "pre_vq")
        if "post_vq" in known:
            found["codec post_vq n_q 1"] = lambda wav: codec.extract(wav, "post_vq", n_q=1)
            found[f"codec post_vq n_q {codec.spec.n_q}"] = lambda wav: codec.extract(wav, "post_vq")
    return found


@torch.inference_mode()
def collect(clips: Sequence[Clip], sources: Mapping[str, Extractor]) -> dict[str, dict[str, Tensor]]:
    """Mean and standard deviation over time of each source's vectors: source -> clip id -> (2 D,)."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in sources}
    for clip in track(clips, "probing", len(clips)):
        wav = load_audio(clip.path, SAMPLE_RATE, duration_s=LONGEST_S).wav[None]
        for name, extract in sources.items():
            features = extract(wav)
            found[name][clip.id] = pooled(features.values[0, :, : int(features.lengths[0])].float().cpu())
    return found


def probe(
    clips: Sequence[Clip], sources: Mapping[str, Extractor], per_class: int = 150, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy of every source on every task.

    Args:
        clips: rows of manifests, any splits.
        sources: by name; the first one is compared with each other.
        per_class: at most so many clips of a class.
        seed: of choices, folds and intervals.

    Returns:
        A row a task and source: `task`, `source`, `accuracy` and, except for the first, `gain` of the first over it
        (both as `Estimate.to_dict`), `chance` (the better of guessing and of naming the most frequent label),
        `classes`, `clips`, `unit`, `verdict`.
    """
    tasks = probe_tasks(clips, per_class, seed)
    every = {clip.id: clip for task in tasks for clip in task.clips}
    vectors = collect(list(every.values()), sources)
    rows = []
    for task in tasks:
        first = None
        for name in sources:
            x = torch.stack([vectors[name][clip.id] for clip in task.clips])
            score = cross_validate(x, task, seed)
            row: dict[str, Any] = {
                "task": task.name,
                "source": name,
                "accuracy": score.accuracy.to_dict(),
                "chance": max(score.majority, 1 / len(set(task.labels))),
                "classes": len(set(task.labels)),
                "clips": len(task.clips),
                "unit": task.unit,
            }
            if first is None:
                first = score
            else:
                gain = difference_estimate(first.correct, score.correct, task.units, seed)
                row |= {"gain": gain.to_dict(), "verdict": gain.verdict(lower_is_better=False)}
            rows.append(row)
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `probe` as text for a terminal."""
    if not rows:
        return "no row of the manifests has labels to probe: single-word texts, speakers, or labels of sounds"
    lines = ["linear probes of features pooled over time: accuracy in percent with 95 % intervals over units"]
    task = None
    for row in rows:
        if row["task"] != task:
            task = row["task"]
            lines.append(
                f"{task}: {row['classes']} classes, {row['clips']} clips, {row['accuracy']['units']} units "
                f"({row['unit']}), chance {100 * row['chance']:.1f}"
            )
        line = f"  {row['source']:<22}{_percent(row['accuracy'])}"
        if "gain" in row:
            line += f"   teacher's gain {_percent(row['gain'], sign=True)}  {row['verdict']}"
        lines.append(line)
    return "\n".join(lines)


def _percent(estimate: dict[str, Any], sign: bool = False) -> str:
    def number(value: float | None) -> str:
        return "?" if value is None else f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"

    return f"{number(estimate['value']):>6} [{number(estimate['low'])}, {number(estimate['high'])}]"
