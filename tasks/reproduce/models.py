"""Language models of tables 1, 3, 4 and 7: the user's trained ones, or one trained for each codec with equal settings.

Training is that of `compare`: the same preset, seed, steps and seconds of audio for every codec. Tokens, models and
judges lie in OUT/shared and are found again by every table whose settings are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.compare import music, sound, tts
from xcodec_lm.tasks.compare.job import Job, tokenize_stage
from xcodec_lm.tasks.compare.replicate import make_job
from xcodec_lm.tasks.compare.replication import Task
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce.settings import Settings, named
from xcodec_lm.tasks.reproduce.stages import Facts, Place

PARTS: dict[str, Any] = {"music": music, "sound": sound, "tts": tts}


def given_runs(settings: Settings) -> dict[str, str]:
    """Trained models of --runs, by the name of their codec.

    Raises:
        UsageError: a name is no codec's.
    """
    runs, known = named(settings.runs, "--runs"), named_codecs.sources(settings)
    for name in runs:
        if name not in known:
            raise UsageError(
                f"--runs names {name!r}, which is none of the codecs {', '.join(known)}",
                "write NAME=RUN with the names of --codecs",
            )
    return runs


def size_of(settings: Settings) -> str:
    """The preset of `compare` that the sizes come from."""
    return "paper" if not settings.demo else "quick" if settings.quick else "tiny"


def jobs(
    place: Place, settings: Settings, task: Task, manifests: Sequence[Path], preset: str, overrides: Mapping[str, Any],
    clap: str | None = None, **own: Any,
) -> dict[str, Job]:  # fmt: skip
    """What is tokenized and trained, by codec.

    Args:
        place: of the table.
        settings: its codecs, seed and device count.
        task: which kind of model.
        manifests: that models are trained on.
        preset: of the language model; empty takes that of the size.
        overrides: dotted keys laid over the preset.
        clap: conditioner of sounds; None takes labels.
        own: settings of the task that differ from the size's.
    """
    found = {}
    loaded = named_codecs.load_codecs(settings)
    for name, source in named_codecs.sources(settings).items():
        job = make_job(task, source, manifests, settings.seed, size_of(settings), place.works.root,
                       loaded=loaded[name], clap=clap, device=settings.device, overrides=dict(overrides))  # fmt: skip
        config = replace(job.config, **own, **({"train": preset} if preset else {}))
        found[name] = replace(job, config=config)
    return found


def tokenize(place: Place, settings: Settings, made: Mapping[str, Job]) -> Facts:
    """Tokens of every codec that has no trained model: name -> store, recordings, failed."""
    facts = {}
    for name, job in made.items():
        if name not in given_runs(settings):
            work = place.note(tokenize_stage(job))
            facts[name] = {"store": place.name(work.folder / "store"), **work.facts}
    return facts


def train(place: Place, settings: Settings, made: Mapping[str, Job]) -> Facts:
    """A model for every codec: name -> run, and what is known of its training."""
    facts: Facts = {}
    for name, job in made.items():
        given = given_runs(settings).get(name)
        if given is not None:
            facts[name] = {"run": place.name(Path(given)) if Path(given).exists() else given, "given": True}
            continue
        part, tokens = PARTS[job.task], tokenize_stage(job)
        config, seconds = part.train_config(job, tokens)
        work = place.note(part.train_stage(job, tokens, config))
        kept = {key: work.facts.get(key) for key in ("parameters", "audio_s", "code_rate", "n_q")}
        facts[name] = {"run": place.name(work.folder / "run"), "given": False, **seconds.to_dict(), **kept}
    return facts


def run_of(place: Place, trained: Facts, name: str) -> str:
    """Where a codec's model is, or the name that it ships under."""
    run = trained[name]["run"]
    return str(place.path(run)) if place.path(run).exists() else run


def training_rows(settings: Settings, trained: Facts, paper: str, preset: str) -> list[tuple[str, str, str]]:
    """How the models were trained, as rows of setting, paper, here; `preset` is that of the paper's model."""
    named_preset = settings.preset or (f"compare/{size_of(settings)}" if settings.demo else preset)
    rows = []
    for name, facts in trained.items():
        if facts["given"]:
            rows.append((f"language model on {name}", paper, f"given: {facts['run']}"))
        else:
            rows.append((
                f"language model on {name}", paper,
                f"{named_preset}: {(facts['parameters'] or 0) / 1e6:.2f} M parameters, "
                f"{facts['n_q']} codebook(s), {facts['steps']} steps, "
                f"{(facts['audio_s'] or 0) / 3600:.2f} h of audio seen",
            ))  # fmt: skip
    return rows


def small_models(settings: Settings) -> list[str]:
    """Why the models of a demo are not the paper's."""
    return ["the models are a thousandth of the paper's and trained for minutes"] if settings.demo else []


def need_training_data(settings: Settings, paths: Sequence[Path], what: str) -> None:
    """Refuses to train without data.

    Raises:
        XcodecLMError: neither data nor trained models for all codecs.
    """
    missing = [name for name in named_codecs.sources(settings) if name not in given_runs(settings)]
    if missing and not paths:
        raise XcodecLMError(
            f"nothing to train the language models of {', '.join(missing)} on: {what}",
            "give manifests with --train-data, or trained models with --runs NAME=RUN; without either, --demo",
        )
