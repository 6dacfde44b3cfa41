"""Linear probing on the 12 data sets of ARCH: vectors of codecs and teachers, averaged over time, one linear layer.

    data = [read_set("esc50", root)]
    rows = run_arch([codec_source("xcodec-tiny", codec, keys)], data, preset="masked", cache=folder)

`masked` averages the frames of the recording, cut to the data set's length. `arch` is the published benchmark's way:
shorter recordings are padded with zeros to that length, and the frames of the padding are averaged in.

Source: ARCH (La Quatra et al. 2024, arXiv 2405.00934); X-Codec's table 5.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.semantic import TeacherFeatures
from xcodec_lm.codec.tokens import AudioTokenizer, Features
from xcodec_lm.configs.errors import AudioError, XcodecLMError
from xcodec_lm.tasks.eval.arch_sets import ArchData, Fold
from xcodec_lm.tasks.eval.codec_features import FeatureKey, has
from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.linear_head import RECIPES, UNKNOWN, Preset, mean_average_precision, train_heads


@dataclass(frozen=True)
class ArchSource:
    """Something that makes vectors of audio.

    Attributes:
        name: for tables.
        sample_rate: of the audio that it takes, in Hz.
        fingerprint: of its weights; vectors are kept under it. "" keeps none.
        features: names of its vectors.
        extract: wav (1, 1, N) -> name -> features.
    """

    name: str
    sample_rate: int
    fingerprint: str
    features: tuple[str, ...]
    extract: Callable[[Tensor], Mapping[str, Features]]


def codec_source(name: str, codec: AudioTokenizer, keys: Sequence[FeatureKey]) -> ArchSource:
    """A codec's vectors; every recording is encoded once."""
    known = [key for key in keys if has(codec, key)]

    def extract(wav: Tensor) -> dict[str, Features]:
        tokens = codec.encode(wav) if any(key.n_q for key in known) else None
        return {
            str(key): codec.extract(tokens if key.n_q else wav, key.feature, key.n_q)  # type: ignore[attr-defined]
            for key in known
        }

    return ArchSource(name, codec.spec.sample_rate, codec.spec.fingerprint, tuple(map(str, known)), extract)


def teacher_source(name: str, teacher: TeacherFeatures, fingerprint: str = "") -> ArchSource:
    """A teacher's hidden states, such as those of HuBERT-General-Audio."""
    return ArchSource(name, teacher.sample_rate, fingerprint, ("ssl",), lambda wav: {"ssl": teacher.extract(wav)})


def run_arch(
    sources: Sequence[ArchSource],
    data: Sequence[ArchData],
    preset: Preset = "masked",
    seeds: Sequence[int] = (0, 1, 2),
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """Accuracy or mean average precision of every feature of every source on every data set, in percent.

    Args:
        sources: the first one is compared with the others, feature by feature, where accuracy is measured.
        data: of `read_set`.
        preset: how time is averaged and heads are trained.
        seeds: of heads.
        cache: folder in which vectors are kept.

    Returns:
        A row for each data set, source and feature: `dataset`, `domain`, `source`, `feature`, `metric` (`accuracy` or
        `mAP`), `value` (mean over folds and seeds), `low` and `high` (accuracy: 95 % over units; else None), `by_seed`,
        `by_fold`, `chance`, `classes`, `recordings`, `missing`, `failed` (with their ids), `unit`, `units`, `preset`,
        `note`, and for sources after the first `difference` (the first minus this one, with its verdict).
    """
    rows = []
    for found in data:
        first: dict[str, np.ndarray] = {}
        for source in sources:
            vectors, failed = embed(source, found, preset, cache)
            for feature in source.features:
                row, correct, units = _probe(found, vectors[feature], preset, seeds)
                head = {"dataset": found.name, "domain": found.info.domain, "source": source.name, "feature": feature}
                row = head | row | {
                    "preset": preset, "unit": found.info.unit, "missing": len(found.missing),
                    "missing_ids": found.missing, "failed": len(failed), "failed_ids": sorted(failed),
                    "note": found.info.note,
                }  # fmt: skip
                if feature not in first:
                    first[feature] = correct
                elif not found.info.multi:
                    gain = difference_estimate(first[feature], correct, units)
                    row["difference"] = gain.to_dict() | {"verdict": gain.verdict(lower_is_better=False)}
                rows.append(row)
    return rows


@torch.inference_mode()
def embed(
    source: ArchSource, data: ArchData, preset: Preset, cache: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Mean vectors of every recording.

    Args:
        source: whose.
        data: which recordings.
        preset: see `run_arch`.
        cache: folder in which they are kept, and looked for.

    Returns:
        feature -> (R, D), rows of NaN where the audio is missing or cannot be read; and id -> why not, for the latter.

    Raises:
        XcodecLMError: no recording can be read.
    """
    missing = set(data.missing)
    present = [row.id for row in data.rows if row.id not in missing]
    stamp = hashlib.sha256(json.dumps([[row.id for row in data.rows], present, list(source.features)]).encode())
    path = (
        cache / f"{data.name}-{source.fingerprint[:16]}-{preset}.safetensors" if cache and source.fingerprint else None
    )
    if path is not None and (kept := _read_vectors(path, stamp.hexdigest())) is not None:
        return kept
    samples = round(data.info.length_s * source.sample_rate)
    means: dict[str, dict[int, Tensor]] = {feature: {} for feature in source.features}
    failed: dict[str, str] = {}
    for index, row in enumerate(track(data.rows, f"{data.name}, {source.name}", len(data.rows))):
        if row.id in missing:
            continue
        try:
            wav = load_audio(row.path, source.sample_rate, duration_s=data.info.length_s).wav[None]
        except AudioError as error:
            failed[row.id] = error.message
            continue
        if preset == "arch":
            wav = torch.nn.functional.pad(wav, (0, max(0, samples - wav.shape[2])))
        for feature, values in source.extract(wav).items():
            means[feature][index] = values.values[0, :, : int(values.lengths[0])].float().mean(dim=1).cpu()
    if len(failed) == len(present):
        raise XcodecLMError(f"{data.name}: no recording can be read: {next(iter(failed.values()), '')}")
    result = {}
    for feature, by_row in means.items():
        table = torch.full((len(data.rows), len(next(iter(by_row.values())))), torch.nan)
        table[list(by_row)] = torch.stack(list(by_row.values()))
        result[feature] = table
    if path is not None:
        header = {"stamp": stamp.hexdigest(), "failed": json.dumps(failed)}
        write_files(path.parent, {path.name: lambda place: save_file(result, place, metadata=header)})
    return result, failed


def _read_vectors(path: Path, stamp: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("stamp") != stamp:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["failed"])  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def _probe(
    data: ArchData, vectors: Tensor, preset: Preset, seeds: Sequence[int]
) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    """A row without its head; of every row tested, once for each time, how often it is named rightly, and its unit."""
    usable = ~torch.isnan(vectors).any(dim=1)
    labels = sorted({label for fold in data.folds for i in fold.train for label in data.rows[i].labels})
    number = {label: index for index, label in enumerate(labels)}
    by_fold, correct, units, chances = [], [], [], []
    for fold in data.folds:
        train, valid, test = ([i for i in members if usable[i]] for members in (fold.train, fold.valid, fold.test))
        if not (train and valid and test):
            raise XcodecLMError(f"{data.name}: a fold has no audio left to train, validate or test on")
        answers = [_answers(data, members, number) for members in (train, valid, test)]
        weights, biases = train_heads(
            vectors[train], answers[0], vectors[valid], answers[1], len(labels), RECIPES[preset], seeds
        )
        scores = (vectors[test] @ weights + biases).numpy()  # (S, R, C)
        truth = answers[2].numpy()
        if data.info.multi:
            by_fold.append([100 * mean_average_precision(seed_scores, truth > 0) for seed_scores in scores])
            chances.append(100 * float(truth[:, truth.any(axis=0)].mean()))
        else:
            right = scores.argmax(axis=2) == truth  # (S, R); a label never trained on is always wrong
            by_fold.append((100 * right.mean(axis=1)).tolist())
            correct.append(100 * right.mean(axis=0))
            most = Counter(answers[0].tolist()).most_common(1)[0][0]
            chances.append(100 * float((truth == most).mean()))
        units += [data.rows[i].unit or data.rows[i].id for i in test]
    table = np.array(by_fold)  # (folds, S)
    values = np.concatenate(correct) if correct else np.zeros(0)
    row: dict[str, Any] = {
        "metric": "mAP" if data.info.multi else "accuracy", "value": float(table.mean()), "low": None, "high": None,
        "by_seed": table.mean(axis=0).tolist(), "by_fold": table.mean(axis=1).tolist(),
        "chance": float(np.mean(chances)), "classes": len(labels), "recordings": int(usable.sum()),
        "units": len(set(units)),
    }  # fmt: skip
    if len(values):
        estimate = mean_estimate(values, units)
        row |= {"low": _or_none(estimate.low), "high": _or_none(estimate.high)}
    return row, values, units


def _answers(data: ArchData, members: list[int], number: Mapping[str, int]) -> Tensor:
    if not data.info.multi:
        return torch.tensor([number.get(data.rows[i].labels[0], UNKNOWN) for i in members])
    table = torch.zeros(len(members), len(number))
    for place, i in enumerate(members):
        for label in data.rows[i].labels:
            if label in number:
                table[place, number[label]] = 1
    return table


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def leaking_folds(data: ArchData) -> list[int]:
    """Numbers of folds, from 1, in which a unit that is tested was trained on or validated with."""
    unit = [row.unit or row.id for row in data.rows]

    def leaks(fold: Fold) -> bool:
        return bool({unit[i] for i in fold.test} & {unit[i] for i in (*fold.train, *fold.valid)})

    return [number for number, fold in enumerate(data.folds, start=1) if leaks(fold)]
