"""Zero-shot speech as a replication: word errors and likeness of the voice on the test split's speakers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xcodec_lm.codec.clips import Clip, read_manifest, relative_audio, write_manifest
from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.configs.evaluators import EvaluatorTrainConfig
from xcodec_lm.configs.tts import TTSTrainConfig
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import open_stores
from xcodec_lm.tasks.compare.ancestry import doubt
from xcodec_lm.tasks.compare.equal import Seconds, equal_tts
from xcodec_lm.tasks.compare.job import Job, JudgeFolder, lm_inputs, rows_of, training_facts, with_run
from xcodec_lm.tasks.compare.replication import (
    FIRST_BOOK,
    MODEL,
    RESYNTHESIS,
    SHUFFLED,
    TRUTH,
    UNTRAINED,
    Scored,
)
from xcodec_lm.tasks.compare.stages import Stage
from xcodec_lm.tasks.data.continual import make_test_list
from xcodec_lm.tasks.eval import train_evaluators
from xcodec_lm.tasks.eval.judge_copies import make_copies
from xcodec_lm.tasks.tts import training
from xcodec_lm.tasks.tts.evaluate import MOST_WER, evaluate_tts, load_judges
from xcodec_lm.tasks.tts.speech import Speaking
from xcodec_lm.tasks.tts.symbols import TextEncoder
from xcodec_lm.tasks.tts.voice import load_tts

WHAT = {
    "ground truth": TRUTH, "resynthesis": RESYNTHESIS, "AR": FIRST_BOOK, "AR+NAR": MODEL, "shuffled text": SHUFFLED,
    "untrained": UNTRAINED,
}  # fmt: skip
"""Names of `evaluate_tts`, and the systems that they are."""
KEPT = ("errors", "words", "similarity", "heard", "marked", "ended")
"""Of what `evaluate_tts` tells of an utterance."""
COPIED_S = 6.0
"""Longest clip that judges hear a copy of."""


def check_corpus(manifests: Sequence[Path], clap: str | None = None) -> None:
    """Refuses a corpus that speech cannot be trained or tested on.

    Raises:
        UsageError: a split is empty, or has no text or no speakers; or it cannot be spoken without an extra.
    """
    for split in ("train", "test"):
        clips = rows_of(manifests, split, "tts")
        for name in ("text", "speaker"):
            if not any(str(clip.row.get(name) or "").strip() for clip in clips):
                raise UsageError(
                    f"{', '.join(map(str, manifests))}: no row of split {split} has a `{name}`",
                    "speech needs what is said and who says it: data scan CORPUS --need-text",
                )


def train_config(job: Job, tokens: Stage) -> tuple[TTSTrainConfig, Seconds]:
    """AR's and NAR's settings for the codec."""
    return equal_tts(with_run(job, tokens, job.config.train, TTSTrainConfig), job.codec.spec, job.config.row_s)


def train_stage(job: Job, tokens: Stage, config: TTSTrainConfig) -> Stage:
    """The trained models, in `run/`."""

    def make(folder: Path) -> dict[str, Any]:
        training.train(config, job.options(folder))
        run = folder / "run"
        parts = {stage: run / stage for stage in training.stages(config)}
        return _facts(job, tokens, config, training_facts(parts), TextEncoder.load(run / "text"))

    inputs = lm_inputs(job, tokens, config, row_s=job.config.row_s)
    return job.stages.run(f"lm/tts-{job.name}-seed{job.seed}", inputs, make)


def _facts(
    job: Job, tokens: Stage, config: TTSTrainConfig, facts: dict[str, Any], encoder: TextEncoder
) -> dict[str, Any]:
    """Facts of the runs with the seconds of audio that the AR saw: positions in rows hold text, too."""
    store, rate = open_stores([tokens.folder / "store"]), float(job.codec.spec.frame_rate)
    seconds = positions = 0.0
    for index in store.split("train"):
        text, audio = store.rows[index].get("text"), float(store.lengths[index]) / rate
        if isinstance(text, str) and text.strip() and config.data.min_s <= audio <= config.data.max_s:
            seconds += audio
            positions += len(encoder.encode(text).ids) + math.ceil(audio * rate / config.model.group) + 1
    filled = config.optim.steps * config.data.batch_codes * (facts["row_fill_ar"] or 0)
    n_q = config.model.n_q
    return facts | {"n_q": n_q, "code_rate": n_q * rate, "audio_s": round(filled * seconds / max(1.0, positions), 1),
                    "nar_steps": config.nar_optim.steps if n_q > 1 else 0,
                    "codes_per_s": facts.get("codes_per_s_ar")}  # fmt: skip


# ------------------------------------------------------------------ who listens


def judges_stage(job: Job, codecs: Mapping[str, Any]) -> JudgeFolder:
    """A recogniser and a judge of voices, trained on the corpus's split train.

    They have heard copies of some clips through every codec, the same clips for each, so that none is favoured.

    Args:
        job: corpus and settings.
        codecs: those that are compared, by name.
    """
    settings = job.config
    inputs = {
        "what": "judges of speech", "corpus": job.corpus, "steps": settings.judge_steps,
        "voice_steps": settings.voice_steps, "copies": settings.copies,
        "codecs": {name: codec.spec.fingerprint for name, codec in sorted(codecs.items())} if settings.copies else {},
    }  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        manifests = tuple(str(path) for path in job.manifests)
        copied = ""
        if settings.copies:
            copied = str(make_copies(manifests, dict(codecs), settings.copies, COPIED_S, folder / "copies"))
        kinds: dict[Any, int] = {"recogniser": settings.judge_steps, "speaker": settings.voice_steps}
        for kind, steps in kinds.items():
            if not steps:
                continue
            base = EvaluatorTrainConfig.of(kind)
            config = replace(
                base, data=replace(base.data, manifests=manifests, copies=copied),
                run=replace(base.run, threads=1, eval_every=steps),
                optim=replace(base.optim, steps=steps, warmup_steps=min(60, max(1, steps // 4))),
            )  # fmt: skip
            train_evaluators.train(config, RunOptions(out=folder / kind, device=job.device))
        return {}

    stage = job.stages.run("judges/speech", inputs, make)
    return JudgeFolder(stage.folder, stage.key)


def test_list(job: Job) -> Path:
    """The utterances that are said, each in the voice of another one of its speaker; spread evenly over speakers."""
    settings = job.config
    inputs = {"what": "list of speech", "corpus": job.corpus, "min_s": settings.min_s, "max_s": settings.max_s,
              "most": settings.most}  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        path = folder / "test.jsonl"
        clips = rows_of(job.manifests, "test", "tts")
        write_manifest([clip.row | {"audio": relative_audio(clip.path, path)} for clip in clips], path)
        make_test_list(path, folder / "all.jsonl", "cross", settings.min_s, settings.max_s)
        chosen = spread(read_manifest(folder / "all.jsonl"), settings.most)
        write_manifest([clip.row for clip in chosen], folder / "list.jsonl")
        return {"rows": len(chosen)}

    return job.stages.run("lists/speech", inputs, make).folder / "list.jsonl"


def spread(clips: Sequence[Clip], most: int) -> list[Clip]:
    """At most so many clips, taken in turn from every speaker, in the order of their ids."""
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.id):
        groups[str(clip.row.get("speaker"))].append(clip)
    turns = sorted(
        ((turn, name, clip) for name, group in groups.items() for turn, clip in enumerate(group)),
        key=lambda item: item[:2],
    )
    return sorted((clip for _, _, clip in turns[:most]), key=lambda clip: clip.id)


# ------------------------------------------------------------------ what is said


def score(job: Job, tokens: Stage, train: Stage, judges: JudgeFolder, row_s: float, folder: Path) -> Scored:
    """What the models say of the list, beside recordings, resynthesis and controls."""
    settings, listed = job.config, test_list(job)
    tts = load_tts(train.folder / "run", job.codec, job.where)
    listeners = load_judges(judges.folder, job.where)
    speaking = Speaking(Sampling(settings.temperature, top_p=settings.top_p, ras_window=10, cfg_scale=settings.cfg))
    data = evaluate_tts([(job.name, tts)], listed, listeners, folder / "audio", speaking, job.seed)
    names = {name: WHAT[name.removeprefix(f"{job.name}: ")] for name in (row["system"] for row in data["systems"])}
    if tts.nar is None:  # one codebook: the AR is the whole
        names = {name: MODEL if system == FIRST_BOOK else system for name, system in names.items()}
    items = []
    for item in data.pop("items"):
        for name, system in names.items():
            heard = item["systems"][name]
            items.append({
                "system": system, "id": item["id"], "unit": str(item["speaker"]), "text": item["text"],
                **{key: heard[key] for key in KEPT if key in heard},
            })  # fmt: skip
    tested = rows_of(job.manifests, "test", "tts")
    doubts = {}
    truth = data["systems"][0]["wer"]["value"]
    if listeners.transcriber is not None:
        if not data["trusted"]:
            doubts["wer"] = (
                f"the recogniser errs on {truth:.0%} of the words of real recordings, more than {MOST_WER:.0%}"
                if truth is not None else "there are no recordings to test the recogniser on"
            )  # fmt: skip
        if why := doubt(listeners.transcriber, job.codec, job.name, tested):
            doubts["wer"] = why
    if listeners.embedder is not None and (why := doubt(listeners.embedder, job.codec, job.name, tested)):
        doubts["similarity"] = why
    data["list"] = str(listed)
    return Scored(items, data, doubts)
