"""Text to sound as a replication: is a sound of the class that was asked for, does a CLAP find it like its caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import read_manifests
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.configs.sound import SoundTrainConfig
from xcodec_lm.tasks.compare.ancestry import doubt
from xcodec_lm.tasks.compare.equal import Seconds, equal_music
from xcodec_lm.tasks.compare.job import Job, JudgeFolder, lm_inputs, rows_of, training_facts, with_run
from xcodec_lm.tasks.compare.music import model_facts
from xcodec_lm.tasks.compare.replication import (
    MODEL,
    NOISE,
    RESYNTHESIS,
    SHUFFLED,
    TRAINING,
    TRUTH,
    UNTRAINED,
    Scored,
)
from xcodec_lm.tasks.compare.stages import Stage, key_of
from xcodec_lm.tasks.eval.reconstruction import unit_of
from xcodec_lm.tasks.eval.train_evaluators import thin
from xcodec_lm.tasks.sound import training
from xcodec_lm.tasks.sound.captions import captions_of
from xcodec_lm.tasks.sound.evaluate import Making, evaluate_sound, read_captioned, sound_file
from xcodec_lm.tasks.sound.judging import hear, load_judges
from xcodec_lm.tasks.sound.make import load_sound
from xcodec_lm.tasks.sound.scoring import REAL

WHAT = {
    "made": MODEL, "resynthesis": RESYNTHESIS, "other caption": SHUFFLED, "untrained": UNTRAINED,
    "shuffled codes": "shuffled codes", REAL: TRUTH, "training recordings": TRAINING, "white noise": NOISE,
}  # fmt: skip
"""Names of `evaluate_sound`, and the systems that they are."""
MOST_TRAINING = 300


def check_corpus(manifests: Sequence[Path], clap: str | None = None) -> None:
    """Refuses a corpus that text to sound cannot be trained or tested on.

    Raises:
        UsageError: a split is empty or has no captions, or no labels where no CLAP conditions the model.
    """
    for split in ("train", "test"):
        clips = rows_of(manifests, split, "sound")
        if not any(captions_of(clip.row) for clip in clips):
            raise UsageError(
                f"{', '.join(map(str, manifests))}: no row of split {split} has a `caption`",
                "sounds are made from captions: data scan FOLDER --format captions",
            )
        if clap is None and not any(clip.row.get("label") for clip in clips):
            raise UsageError(
                f"{', '.join(map(str, manifests))}: no row of split {split} has a `label`, and no CLAP is given",
                "give the CLAP that is to embed the captions with --clap, or rows with a `label`",
            )


def train_config(job: Job, tokens: Stage) -> tuple[SoundTrainConfig, Seconds]:
    """The language model's settings for the codec: behind a CLAP's vector, or without one behind labels."""
    keys = {"condition.kind": "label"} if job.clap is None else {"data.clap": job.clap}
    own = Job(**{**vars(job), "overrides": {**keys, **job.overrides}})
    return equal_music(with_run(own, tokens, job.config.train, SoundTrainConfig), job.codec.spec)  # type: ignore[return-value]


def train_stage(job: Job, tokens: Stage, config: SoundTrainConfig) -> Stage:
    """The trained language model, in `run/`."""

    def make(folder: Path) -> dict[str, Any]:
        training.train(config, job.options(folder))
        return model_facts(config, training_facts({"": folder / "run"}), job)

    return job.stages.run(f"lm/sound-{job.name}-seed{job.seed}", lm_inputs(job, tokens, config), make)


def judges_stage(job: Job, codecs: Mapping[str, Any]) -> JudgeFolder:
    """A judge of classes, trained on the corpus's split train; it has heard no codec."""

    def make(folder: Path) -> dict[str, Any]:
        load_judges(None, read_manifests(job.manifests, "train"), folder, 0, job.where)
        return {}

    stage = job.stages.run("judges/sound", {"what": "judge of classes", "corpus": job.corpus}, make)
    return JudgeFolder(stage.folder, stage.key)


def score(job: Job, tokens: Stage, train: Stage, judges: JudgeFolder, row_s: float, folder: Path) -> Scored:
    """What the model makes of the captions, beside the recordings and controls."""
    settings = job.config
    clips = read_captioned(job.manifests, "test")[: settings.most]
    known = read_manifests(job.manifests, "train")
    # The same length for every codec, whatever its frames.
    seconds = settings.seconds or round(min(float(np.median([clip.duration_s for clip in clips])), row_s), 2)
    sound = load_sound(train.folder / "run", job.codec, job.clap, job.where)
    keep = job.stages.root / "judges" / f"classes-{key_of(job.corpus)}"  # where the given judges know no classes
    listeners = load_judges(judges.folder, known, keep, 0, job.where)
    guidance = None if sound.default_guidance == 1 else settings.cfg
    data = evaluate_sound(
        [(job.name, sound)], job.manifests, listeners, folder / "audio",
        Making(seconds, settings.samples, guidance, seed=job.seed), "test", settings.most, rate=job.rate,
    )  # fmt: skip
    names = {row["system"]: WHAT[row["system"].removeprefix(f"{job.name}: ")] for row in data["systems"]}
    known_classes = set(data["classes"])
    items = []
    for item in data.pop("items"):
        for name, system in names.items():
            for number, heard in enumerate(item["systems"][name]):
                figures: dict[str, Any] = {}
                if item["class"] in known_classes:
                    figures["class"] = float(not heard["silent"] and heard.get("heard") == item["class"])
                if "clap" in heard and not heard["silent"]:
                    figures["clap"] = heard["clap"]
                items.append({"system": system, "id": item["id"], "sample": number, "unit": item["recording"],
                              "caption": item["caption"], **figures, "heard": heard.get("heard")})  # fmt: skip
    doubts = {name: why for name, why in data["trusted"].items() if why}
    for name, judge in (("class", listeners.classes), ("clap", listeners.clap)):
        if judge is not None and (why := doubt(judge, job.codec, job.name, clips)):
            doubts[name] = why
    doubts |= {name: doubts[listeners.features] for name in ("frechet", "kid") if listeners.features in doubts}
    features = {}
    for name, system in names.items():
        if system not in (TRUTH, TRAINING):
            wavs = [load_audio(sound_file(folder / "audio", name, clip.id), job.rate).wav[0].numpy() for clip in clips]
            features[system] = hear(listeners, wavs, job.rate).vectors
    real = [load_audio(clip.path, job.rate, duration_s=seconds).wav[0].numpy() for clip in clips]
    some = [load_audio(clip.path, job.rate, duration_s=seconds).wav[0].numpy() for clip in thin(known, MOST_TRAINING)]
    features |= {TRUTH: hear(listeners, real, job.rate).vectors, TRAINING: hear(listeners, some, job.rate).vectors}
    return Scored(items, data, doubts, features, [unit_of(clip)[1] for clip in clips])
