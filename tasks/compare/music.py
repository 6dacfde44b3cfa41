"""Music continuation as a replication: bits of unseen pieces, and how continuations differ from what really follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import read_manifests
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm.shards import open_stores
from xcodec_lm.tasks.compare.equal import Seconds, equal_music
from xcodec_lm.tasks.compare.job import Job, JudgeFolder, lm_inputs, rows_of, training_facts, with_run
from xcodec_lm.tasks.compare.replication import MODEL, RESYNTHESIS, SHUFFLED, TRAINING, TRUTH, UNTRAINED, Scored
from xcodec_lm.tasks.compare.stages import Stage
from xcodec_lm.tasks.eval.texture import texture
from xcodec_lm.tasks.eval.train_evaluators import thin
from xcodec_lm.tasks.music import training
from xcodec_lm.tasks.music.continuation import load_music
from xcodec_lm.tasks.music.evaluate import evaluate_music

SETS = {
    MODEL: "continuation", TRUTH: "reference", RESYNTHESIS: "resynthesis", SHUFFLED: "shuffled", UNTRAINED: "untrained",
}  # fmt: skip
"""Systems, and the sets of `evaluate_music` that they are."""
BITS = {MODEL: "language model", UNTRAINED: "untrained", "unigram": "unigram", "bigram": "bigram"}
MOST_TRAINING, LONGEST_S = 60, 12.0
"""Training recordings, and seconds of each, that axes of comparison are fitted on."""


def check_corpus(manifests: Sequence[Path], clap: str | None = None) -> None:
    """Refuses a corpus that music cannot be trained or tested on.

    Raises:
        UsageError: a split is empty.
    """
    for split in ("train", "test"):
        rows_of(manifests, split, "music")
    if any(not clip.row.get("piece") for clip in rows_of(manifests, "test", "music")):
        say("note: some rows of split test have no `piece`: each of them counts as a unit of its own")


def train_config(job: Job, tokens: Stage) -> tuple[LMTrainConfig, Seconds]:
    """The language model's settings for the codec."""
    return equal_music(with_run(job, tokens, job.config.train, LMTrainConfig), job.codec.spec)


def train_stage(job: Job, tokens: Stage, config: LMTrainConfig) -> Stage:
    """The trained language model, in `run/`."""

    def make(folder: Path) -> dict[str, Any]:
        training.train(config, job.options(folder))
        return model_facts(config, training_facts({"": folder / "run"}), job)

    return job.stages.run(f"lm/music-{job.name}-seed{job.seed}", lm_inputs(job, tokens, config), make)


def model_facts(config: LMTrainConfig, facts: dict[str, Any], job: Job) -> dict[str, Any]:
    """Facts of a run with its codebooks and the codes of a second."""
    n_q = config.model.layout.n_q
    return facts | {"n_q": n_q, "code_rate": n_q * float(job.codec.spec.frame_rate)}


def judges_stage(job: Job, codecs: Mapping[str, Any]) -> JudgeFolder:
    """Nobody: texture needs no trained judge, so none can favour a codec that it is related to."""
    return JudgeFolder(None, "texture")


def score(job: Job, tokens: Stage, train: Stage, judges: JudgeFolder, row_s: float, folder: Path) -> Scored:
    """Continuations of the test split, with all that they are compared with."""
    settings = job.config
    music = load_music(train.folder / "run", job.codec, job.where)
    data = evaluate_music(
        music, job.manifests, open_stores([tokens.folder / "store"]), folder / "sets", "test", settings.prompt_s,
        settings.seconds, settings.most, job.seed, controls=True,
    )  # fmt: skip
    if "sets" not in data:
        raise UsageError(
            f"no recording of split test lasts {settings.prompt_s + settings.seconds:g} s, prompt and continuation",
            "give longer recordings, or a size with shorter ones",
        )
    items = [
        {"system": system, "id": item["id"], "unit": item["unit"], "bits_per_s": item["bits_per_s"][name]}
        for item in data.pop("items") for system, name in BITS.items() if name in item["bits_per_s"]
    ]  # fmt: skip
    features, units = set_features(folder / "sets", job.rate)
    features[TRAINING] = training_features(job)
    data["model_bits_per_s"] = data["bits"]["language model"]["bits_per_s"]["value"]
    data["sets"]["folder"] = "sets"  # the stage may move
    return Scored(items, data, {}, features, units)


def set_features(folder: Path, rate: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Texture of each half second of the sets that `write_sets` wrote, row for row, and the piece of each row."""
    import json

    rows = [json.loads(line) for line in (folder / "sets.jsonl").read_text(encoding="utf-8").splitlines()]
    parts: dict[str, list[np.ndarray]] = {system: [] for system in SETS}
    units: list[str] = []
    for row in rows:
        found = {system: texture(load_audio(folder / row[name], rate).wav[0], rate) for system, name in SETS.items()}
        common = min(map(len, found.values()))  # lengths differ by a part of a frame
        for system, vectors in found.items():
            parts[system].append(vectors[:common])
        units += [row["piece"]] * common
    return {system: np.concatenate(vectors) for system, vectors in parts.items()}, units


def training_features(job: Job) -> np.ndarray:
    """The same of training recordings."""
    clips = thin(read_manifests(job.manifests, "train"), MOST_TRAINING)
    return np.concatenate(
        [texture(load_audio(clip.path, job.rate, duration_s=LONGEST_S).wav[0], job.rate) for clip in clips]
    )
