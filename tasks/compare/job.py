"""What a replication works on, and the stages that all tasks share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcodec_lm import configs
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.compare.replication import UNIT_KINDS, Task
from xcodec_lm.tasks.compare.stages import Stage, Stages, key_of
from xcodec_lm.tasks.data.tokenize import tokenize


@dataclass(frozen=True)
class JudgeFolder:
    """Who listens, and what tells one such folder from another.

    Attributes:
        folder: as `eval train-evaluators` or `sound eval` know it; None where nobody is needed.
        key: of its contents.
    """

    folder: Path | None
    key: str

    @staticmethod
    def given(folder: Path) -> JudgeFolder:
        """A user's folder: its key is a hash of the models in it.

        Raises:
            XcodecLMError: it is not there.
        """
        if not folder.exists():
            raise XcodecLMError(f"{folder} does not exist", "give a folder of eval train-evaluators with --judges")
        digest = hashlib.sha256()
        files = [folder] if folder.is_file() else sorted(
            path for path in folder.rglob("*")
            if path.suffix in (".safetensors", ".json", ".pt", ".bin") and "checkpoints" not in path.parts
        )  # fmt: skip
        for path in files:
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
        return JudgeFolder(folder, digest.hexdigest()[:16])


@dataclass(frozen=True)
class Job:
    """Arguments of `replicate`, read.

    Attributes:
        task: which task.
        source: what `load_codec` was given.
        codec: the codec.
        manifests: of the corpus.
        corpus: its key.
        config: the task's part of a `CompareConfig`.
        seed: of the replication.
        stages: where stages lie.
        judges: those that were given; None trains some.
        clap: conditioner of sounds; None takes labels.
        rate: at which sounds are judged, in Hz.
        device: where models train and speak.
        overrides: laid over the language model's preset.
    """

    task: Task
    source: str
    codec: Any
    manifests: list[Path]
    corpus: dict[str, Any]
    config: Any
    seed: int
    stages: Stages
    judges: JudgeFolder | None
    clap: str | None
    rate: int
    device: str
    overrides: dict[str, Any]

    @property
    def name(self) -> str:
        """The codec's name, fit for a folder."""
        return re.sub(r"[^\w.-]+", "-", Path(self.source).name or self.codec.spec.name)

    @property
    def where(self) -> str:
        """The device as torch knows it."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def options(self, folder: Path) -> RunOptions:
        """How a training in a stage's folder is run: it goes on where an earlier call stopped."""
        return RunOptions(out=folder / "run", command="xcodec-lm compare", device=self.device)


def tokenize_stage(job: Job) -> Stage:
    """The corpus as tokens of the codec, in `store/`; all of the codec's layers."""
    inputs = {"what": "tokens", "corpus": job.corpus, "codec": job.codec.spec.fingerprint}

    def make(folder: Path) -> dict[str, Any]:
        result = tokenize(job.manifests, job.codec.to(job.where) if hasattr(job.codec, "to") else job.codec,
                          folder / "store", codec_path=job.source)  # fmt: skip
        if not result.done and not result.skipped:
            raise XcodecLMError(
                f"{job.name} could encode none of the recordings", f"see {folder / 'store'}/failed.jsonl"
            )
        return {"recordings": result.done + result.skipped, "failed": result.failed}

    return job.stages.run(f"tokens/{job.name}", inputs, make)


def lm_inputs(job: Job, tokens: Stage, config: Any, **more: Any) -> dict[str, Any]:
    """What decides a language model: the key of its tokens in place of their folder."""
    settings = configs.to_dict(config)
    settings["data"]["tokens"] = tokens.key
    for name in ("log_every", "eval_every", "save_every", "keep_checkpoints", "track"):
        settings["run"].pop(name, None)  # none of it changes the model
    return {"what": "language model", "task": job.task, "settings": settings, **more}


def with_run(job: Job, tokens: Stage, preset: str, cls: type) -> Any:
    """A training preset with tokens, seed and overrides; no samples are written on the way."""
    keys = {"run.samples": 0, **job.overrides, "data.tokens": [str(tokens.folder / "store")], "run.seed": job.seed}
    return configs.load(preset, cls, keys)


def training_facts(runs: Mapping[str, Path]) -> dict[str, Any]:
    """Parameters, codes a second, fill of the rows and bits per second on the dev split, from run folders.

    Args:
        runs: part -> run folder; `""` for a model of one part, else facts of parts are summed.
    """
    facts: dict[str, Any] = {"parameters": 0, "dev_bits_per_s": 0.0}
    for part, folder in runs.items():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        speeds = [row["speed/codes_per_s"] for row in rows if "speed/codes_per_s" in row]
        bits = [row["eval/bits_per_s"] for row in rows if "eval/bits_per_s" in row]
        fills = [row["speed/row_fill"] for row in rows if "speed/row_fill" in row]
        facts["parameters"] += _parameters(folder / "model")
        facts["dev_bits_per_s"] = (
            facts["dev_bits_per_s"] + bits[-1] if bits and facts["dev_bits_per_s"] is not None else None
        )
        key = f"_{part}" if part else ""
        facts[f"codes_per_s{key}"] = float(np.median(speeds)) if speeds else None
        facts[f"row_fill{key}"] = fills[-1] if fills else None
    return facts


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            total += sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    return total


def weights_key(codec: Any) -> str:
    """A hash of all of a codec's weights, those of decoding among them; its fingerprint where it shows none."""
    if not isinstance(codec, torch.nn.Module):
        return codec.spec.fingerprint
    digest = hashlib.sha256()
    for name, value in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def rows_of(manifests: Sequence[Path], split: Any, task: Task) -> list[Clip]:
    """The clips of a split.

    Raises:
        UsageError: there are none.
    """
    clips = read_manifests(list(manifests), split)
    if not clips:
        raise UsageError(
            f"{', '.join(map(str, manifests))}: no row has split: {split}",
            f"compare --task {task} trains on split train and tests on split test: `data scan` writes splits",
        )
    return clips


def unit_name(clip_row: Mapping[str, Any], task: Task, fallback: str) -> str:
    """The unit that an item belongs to: speaker, piece or recording; else the clip itself."""
    kind = UNIT_KINDS[task]
    return str(clip_row.get(kind) or fallback)


__all__ = ["Job", "JudgeFolder", "key_of", "lm_inputs", "rows_of", "tokenize_stage", "training_facts", "unit_name",
           "weights_key", "with_run"]  # fmt: skip
