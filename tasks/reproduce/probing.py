"""Table 5: what linear probes read off codecs' vectors.

Real: the data sets of ARCH below --arch-root. Demo: spoken words, speakers and sound classes of the small corpus. Every
codec by its own vectors (`post_vq`, all layers) and, where it has one, by its semantic decoder's output; its teacher
stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.compare.stages import corpus_key
from xcodec_lm.tasks.eval.codec_features import FeatureKey, collect
from xcodec_lm.tasks.eval.codec_probes import LONGEST_S
from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.probe import ProbeTask, cross_validate, pooled, probe_tasks
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce.abx import keys_of
from xcodec_lm.tasks.reproduce.codecs import XCODEC
from xcodec_lm.tasks.reproduce.demo import find_corpus
from xcodec_lm.tasks.reproduce.lists import read_lines, write_lines
from xcodec_lm.tasks.reproduce.scores import Metric, difference, empty, figure, number, row, scores
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Facts, Place, Stage
from xcodec_lm.tasks.reproduce.tables import Reproduction

LIST = "probes.txt"
DOMAINS = ("words", "sound")


def stages(place: Place, settings: Settings) -> list[Stage]:
    """prepare, score."""
    if not settings.demo:
        from xcodec_lm.tasks.reproduce import arch_probing

        return arch_probing.stages(place, settings)
    given = settings.corpus
    manifests = (
        [] if given is None else [path for name in ("speech", "sound") if (path := given / f"{name}.jsonl").is_file()]
    )
    inputs = {"seed": settings.seed, "quick": settings.quick, "data": corpus_key(manifests) if manifests else None}
    return [
        Stage("prepare", inputs, lambda folder, _: _prepare(place, settings, folder), files=(LIST,)),
        Stage("score", {"codecs": named_codecs.fingerprints(settings), "seed": settings.seed},
              lambda folder, before: _score(place, settings, folder.parent / "prepare", before["prepare"])),
    ]  # fmt: skip


def _prepare(place: Place, settings: Settings, folder: Path) -> Facts:
    """The tasks that the labels of the corpus allow, with their clips, labels and units."""
    corpus = find_corpus(place, settings, DOMAINS)
    there = list(dict.fromkeys(corpus.manifests[name] for name in DOMAINS if name in corpus.manifests))
    tasks = probe_tasks(read_manifests(there), settings.scale.per_class, settings.seed)
    if not tasks:
        raise XcodecLMError(
            f"{corpus.origin}: too few rows have a word, a speaker or a label", "a class needs eight rows at least"
        )
    rows = [
        (task.name, clip.id, label, unit)
        for task in tasks for clip, label, unit in zip(task.clips, task.labels, task.units, strict=True)
    ]  # fmt: skip
    write_lines(folder / LIST, "task\tclip\tlabel\tunit", rows)
    return {
        "origin": corpus.origin, "missing": {name: corpus.missing[name] for name in DOMAINS if name in corpus.missing},
        "units": {task.name: task.unit for task in tasks},
        "files": {clip.id: place.name(clip.path) for task in tasks for clip in task.clips},
    }  # fmt: skip


def _tasks(place: Place, lists: Path, prepared: Facts) -> list[ProbeTask]:
    by_task: dict[str, list[list[str]]] = {}
    for name, *rest in read_lines(lists / LIST):
        by_task.setdefault(name, []).append(rest)
    return [
        ProbeTask(
            name, [Clip(clip, place.path(prepared["files"][clip]), 0.0, None, {}) for clip, _, _ in rows],
            [label for _, label, _ in rows], [unit for _, _, unit in rows], prepared["units"][name],
        )
        for name, rows in by_task.items()
    ]  # fmt: skip


def _score(place: Place, settings: Settings, lists: Path, prepared: Facts) -> Facts:
    tasks, codecs = _tasks(place, lists, prepared), named_codecs.load_codecs(settings)
    needed = list({clip.id: clip for task in tasks for clip in task.clips}.values())
    metrics = [Metric(task.name, f"{task.name}, %", ".1f", "max", stands_for_paper=False) for task in tasks]
    correct: dict[tuple[str, FeatureKey], dict[str, np.ndarray]] = {}
    majority: dict[str, float] = {}
    for name, codec in codecs.items():
        keys = [key for key in keys_of(codec, named_codecs.paper_name(codec)) if key.n_q in (None, codec.spec.n_q)]
        found = collect({name: codec}, needed, keys, f"features of {name}", pool=pooled, clip_s=LONGEST_S)
        for key in keys:
            for task in tasks:
                x = torch.stack([found[name, key].vectors[clip.id] for clip in task.clips])
                score = cross_validate(x, task, settings.seed)
                correct.setdefault((name, key), {})[task.name] = 100 * score.correct
                majority[task.name] = 100 * score.majority
    rows = probe_rows(codecs, correct, {task.name: task.units for task in tasks}, metrics, settings.seed)
    rows.append(row("most frequent label", {name: number(value) for name, value in majority.items()}, reference=True))
    units = {task.name: task.units for task in tasks}
    notes = [
        f"{task.name}: {len(set(task.labels))} classes, {len(task.clips)} clips, {len(set(task.units))} units "
        f"({task.unit}), tested on units that were not trained on." for task in tasks
    ]  # fmt: skip
    notes += [f"No {name}: {why}." for name, why in prepared["missing"].items()]
    return scores(
        metrics, rows, probe_differences(list(codecs), correct, units, metrics, settings.seed),
        [("data sets", "the 12 of ARCH", f"{len(tasks)} tasks of {prepared['origin']}"),
         ("pooling", "mean over frames", "mean and deviation over frames"),
         ("classifier", "linear, AdamW, 200 epochs", "logistic regression, its penalty chosen on held-out units"),
         *named_codecs.codec_settings(codecs)],
        [f"the tasks are {', '.join(task.name for task in tasks)} of {prepared['origin']}, not ARCH's"],
        {"linear probe": {}}, notes,
    )  # fmt: skip


def probe_rows(
    codecs: Mapping[str, Any], correct: Mapping[tuple[str, FeatureKey], Mapping[str, np.ndarray]],
    units: Mapping[str, list[str]], metrics: list[Metric], seed: int,
) -> list[Facts]:  # fmt: skip
    """A row for each feature of each codec; the teacher of several codecs once for each."""
    rows = []
    for (name, key), values in correct.items():
        kind = named_codecs.paper_name(codecs[name])
        cells = {
            metric.key: figure(mean_estimate(values[metric.key], units[metric.key], seed)) if metric.key in values
            else empty("not measured for this feature")
            for metric in metrics
        }  # fmt: skip
        if key.feature == "ssl":
            rows.append(row(f"teacher of {name}", cells, "", "Hubert-general-audio", reference=True))
            continue
        of_paper = kind if key.feature == ("sem_decoder" if kind == XCODEC else "post_vq") else ""
        rows.append(row(name, cells, key.feature, of_paper))
    return rows


def probe_differences(
    names: list[str], correct: Mapping[tuple[str, FeatureKey], Mapping[str, np.ndarray]],
    units: Mapping[str, list[str]], metrics: list[Metric], seed: int,
) -> list[Facts]:  # fmt: skip
    """The first codec's features against the same of the others, or against their vectors."""
    found = []
    for other in names[1:]:
        for (name, key), values in correct.items():
            if name != names[0] or key.feature == "ssl":
                continue
            partners = [one for one in correct if one[0] == other and one[1].feature in (key.feature, "post_vq")]
            partner = next(
                (one for one in partners if one[1].feature == key.feature), partners[0] if partners else None
            )
            if partner is None:
                continue
            for metric in metrics:
                if metric.key in values and metric.key in correct[partner]:
                    estimate = difference_estimate(
                        values[metric.key], correct[partner][metric.key], units[metric.key], seed
                    )
                    found.append(
                        difference(metric, f"{name}, {key.feature}", f"{other}, {partner[1].feature}", estimate)
                    )
    return found


TABLES = {5: Reproduction(5, ("arch_root",), ("datasets",), stages)}
