"""One replication: a codec tokenizes a corpus, a language model learns the tokens, speaks, and is scored.

Every part is made by the functions behind the ordinary commands (`data tokenize`, `TASK train`, `TASK eval`), each as a
stage that is found again when all that decides it is equal, so two comparisons under one folder share what they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from xcodec_lm import configs
from xcodec_lm.configs.compare import CompareConfig
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.compare import music, sound, tts
from xcodec_lm.tasks.compare.job import Job, JudgeFolder, tokenize_stage, weights_key
from xcodec_lm.tasks.compare.replication import Replication, Scored, Task
from xcodec_lm.tasks.compare.stages import Stage, Stages, corpus_key

TASKS = {"music": music, "tts": tts, "sound": sound}


def replicate(
    task: Task,
    codec: str | Path,
    corpus: Sequence[str | Path],
    seed: int = 0,
    size: str = "tiny",
    out: str | Path = "runs/compare",
    *,
    loaded: Any = None,
    judges: JudgeFolder | str | Path | None = None,
    clap: str | None = None,
    rate: int | None = None,
    device: str = "auto",
    overrides: dict[str, Any] | None = None,
) -> Replication:
    """Trains and scores one language model on one codec's tokens.

    Args:
        task: `tts`, `music` or `sound`.
        codec: run folder, model folder, shipped name or hub id.
        corpus: manifests with splits. tts needs `text` and `speaker`, sound a caption and a `label`, unless `clap` is
            given; music should name the `piece`.
        seed: of the training, its data order and what is drawn in decoding; the test rows do not depend on it.
        size: `quick`, `tiny`, `small` or `paper`: a preset `compare/SIZE`; or a YAML file of `CompareConfig`.
        out: folder of the stages; replications that share it share tokens, judges and whatever else is equal.
        loaded: the codec, where it is in memory already.
        judges: who listens. tts: folder of `eval train-evaluators`; sound: folder with clap/ and perhaps sound_class/.
            None trains judges on the corpus (tts, class of sounds).
        clap: sound only: the CLAP that conditions the model; None conditions it on labels.
        rate: sample rate at which sounds are judged, in Hz; None takes the codec's output rate. Codecs that are to be
            compared need the same.
        device: where models train and speak: `auto`, `cpu`, `cuda`.
        overrides: dotted keys laid over the language model's preset, such as `{"optim.steps": 6}`.

    Returns:
        Figures of every item, and facts.

    Raises:
        XcodecLMError: no such codec, task or size; a corpus without what the task needs; a folder that cannot be
            written; a judge that cannot judge.
    """
    if task not in get_args(Task):
        raise UsageError(f"no task is called {task!r}", f"there are {', '.join(get_args(Task))}")
    job = make_job(task, codec, corpus, seed, size, out, loaded=loaded, judges=judges, clap=clap, rate=rate,
                   device=device, overrides=overrides)  # fmt: skip
    part = TASKS[task]
    part.check_corpus(job.manifests, job.clap)
    tokens = tokenize_stage(job)
    config, seconds = part.train_config(job, tokens)
    train = part.train_stage(job, tokens, config)
    heard = job.judges or part.judges_stage(job, {job.name: job.codec})
    score = _score_stage(job, part, tokens, train, heard, seconds.row_s)
    scored = Scored.load(score.folder)
    seen = {"audio_s": round(seconds.most_s * train.facts["row_fill"], 1)} if train.facts.get("row_fill") else {}
    facts = {
        "codec": job.name, "fingerprint": job.codec.spec.fingerprint, "sample_rate": job.codec.spec.sample_rate,
        "output_sample_rate": job.codec.spec.output_sample_rate, "frame_rate": float(job.codec.spec.frame_rate),
        "judged_rate": job.rate, "seed": seed, **seconds.to_dict(), **seen, **train.facts,
        "bits_per_s": scored.result.get("model_bits_per_s", train.facts.get("dev_bits_per_s")),
        "stages": {name: {"folder": str(stage.folder), "wall_s": stage.wall_s, "cpu_s": stage.cpu_s,
                          "reused": stage.reused}
                   for name, stage in (("tokens", tokens), ("train", train), ("score", score))},
    }  # fmt: skip
    return Replication(
        task, job.name, str(codec), seed, size, score.folder, train.folder / "run", scored.items, scored.features,
        scored.feature_units, scored.doubts, facts, scored.result,
    )  # fmt: skip


def make_job(
    task: Task, codec: str | Path, corpus: Sequence[str | Path], seed: int, size: str, out: str | Path, *,
    loaded: Any = None, judges: JudgeFolder | str | Path | None = None, clap: str | None = None,
    rate: int | None = None, device: str = "auto", overrides: dict[str, Any] | None = None,
) -> Job:  # fmt: skip
    """What `replicate` works on: arguments read, codec loaded. Arguments are those of `replicate`."""
    config = load_size(size)
    if loaded is None:
        from xcodec_lm.codec import load_codec

        loaded = load_codec(codec)
    if judges is not None and not isinstance(judges, JudgeFolder):
        judges = JudgeFolder.given(Path(judges))
    manifests = [Path(path) for path in corpus]
    if not manifests:
        raise UsageError("a replication needs at least one manifest")
    return Job(
        task, str(codec), loaded, manifests, corpus_key(manifests), getattr(config, task), seed, Stages(Path(out)),
        judges, clap, rate or loaded.spec.output_sample_rate, device, dict(overrides or {}),
    )  # fmt: skip


def load_size(size: str) -> CompareConfig:
    """The preset `compare/SIZE`, or a YAML file.

    Raises:
        ConfigError: neither is there, or a key does not fit.
    """
    named = f"compare/{size}"
    return configs.load(named if named in configs.presets() or not Path(size).is_file() else size, CompareConfig)


def _score_stage(job: Job, part: Any, tokens: Stage, train: Stage, heard: JudgeFolder, row_s: float) -> Stage:
    inputs = {
        "what": "scores", "task": job.task, "lm": train.key, "codec": weights_key(job.codec), "judges": heard.key,
        "rate": job.rate, "settings": configs.to_dict(job.config), "seed": job.seed, "row_s": row_s,
    }  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        part.score(job, tokens, train, heard, row_s, folder).save(folder)
        return {}

    return job.stages.run(f"scores/{job.task}-{job.name}-seed{job.seed}", inputs, make)
