"""`compare`: replications of every codec and seed, paired differences, a verdict.

    settings.json corpus/ tokens/ judges/ lists/ lm/ scores/ compare.json items.jsonl report.html

A call that was stopped is gone on with by the same command; more seeds use what is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xcodec_lm import configs
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.compare.equal import check_codec
from xcodec_lm.tasks.compare.job import JudgeFolder
from xcodec_lm.tasks.compare.replicate import TASKS, load_size, make_job, replicate
from xcodec_lm.tasks.compare.replication import Replication, Task
from xcodec_lm.tasks.compare.result import judge_all
from xcodec_lm.tasks.compare.stages import corpus_key
from xcodec_lm.tasks.data.synth import synth
from xcodec_lm.tasks.sound.make import PRETRAINED

SHIPPED_CLAP = "clap-tiny"
"""Conditioner of sounds where none is named, if it is installed; else sounds are conditioned on labels."""


def compare(
    codecs: Sequence[str], task: Task, out: Path, data: Sequence[Path] = (), size: str = "tiny",
    seeds: Sequence[int] = (0,), judges: Path | None = None, clap: str | None = None, device: str = "auto",
    overrides: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Replication]]:  # fmt: skip
    """Trains the same language model on each codec's tokens with every seed, and compares what they make.

    Args:
        codecs: what `load_codec` takes; the first is compared with each of the others.
        task: `tts`, `music` or `sound`.
        out: folder of the comparison.
        data: manifests; none makes the synthetic corpus of the size.
        size: see `replicate`, as are `judges`, `clap`, `device` and `overrides`.
        seeds: of the trainings.
        judges: who listens; None trains judges on the corpus.
        clap: conditioner of sounds; None takes the shipped one, or labels.
        device: where models train and speak.
        overrides: laid over the language model's preset.

    Returns:
        The result as plain values, see `result.judge_all`; and the replications.

    Raises:
        XcodecLMError: fewer than two codecs, one that cannot be loaded or compared, a corpus that does not fit the
            task, or a folder that holds another comparison.
    """
    started = time.monotonic()
    check_names(codecs, seeds)
    config = load_size(size)
    check_extras(task, synthetic=not data)
    loaded = load_codecs(codecs)
    rate = common_rate(loaded)
    if task == "sound" and clap is None and (PRETRAINED / SHIPPED_CLAP).is_dir():
        clap = SHIPPED_CLAP
    elif task != "sound" and clap is not None:
        raise UsageError(f"--clap conditions sounds; --task {task} has no use for it", "leave it out")
    if task == "music" and judges is not None:
        raise UsageError("texture needs no judge; --task music has no use for --judges", "leave it out")
    part = TASKS[task]
    if data:
        part.check_corpus(data, clap)
    heard = None if judges is None else JudgeFolder.given(judges)
    settings = {
        "task": task, "codecs": {name: codec.spec.fingerprint for name, codec in loaded.items()},
        "corpus": corpus_key(data) if data else "synthetic", "size": configs.to_dict(getattr(config, task)),
        "judges": None if heard is None else heard.key, "clap": clap, "overrides": dict(overrides or {}),
    }  # fmt: skip
    claim(out, settings)
    manifests = list(data) or [make_corpus(task, getattr(config, task), out / "corpus")]
    if not data:
        part.check_corpus(manifests, clap)
    more: dict[str, Any] = {"clap": clap, "rate": rate, "device": device, "overrides": overrides}
    if heard is None:
        first = next(iter(loaded))
        job = make_job(task, first, manifests, 0, size, out, loaded=loaded[first], **more)
        heard = part.judges_stage(job, {Path(name).name: codec for name, codec in loaded.items()})
    found: list[Replication] = []
    total = len(seeds) * len(loaded)
    for seed in seeds:
        for name, codec in loaded.items():
            say(f"[{len(found) + 1}/{total}] {name}, seed {seed}")
            found.append(replicate(task, name, manifests, seed, size, out, loaded=codec, judges=heard, **more))
    result = judge_all(found, [str(path) for path in data])
    result["wall_s"] = round(time.monotonic() - started, 1)
    return result, found


def check_names(codecs: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuses what is no comparison.

    Raises:
        UsageError: fewer than two codecs, one named twice, no seed or one twice.
    """
    if len(codecs) < 2:
        raise UsageError(
            f"{len(codecs)} codec(s) cannot be compared", "name two at least: --codecs xcodec-tiny baseline-tiny"
        )
    twice = sorted({name for name in codecs if list(codecs).count(name) > 1})
    if twice:
        raise UsageError(f"--codecs names {twice[0]} twice", "name each codec once")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds must be different numbers, at least one, got {list(seeds)}")


def check_extras(task: Task, synthetic: bool = False) -> None:
    """Refuses a task whose extra is not installed, before anything is made.

    Raises:
        XcodecLMError: it names the extra.
    """
    if task == "tts":
        from xcodec_lm.tasks.data.espeak import find_espeak
        from xcodec_lm.tasks.eval.wer import word_counts

        word_counts([])  # asks for jiwer
        if synthetic:
            find_espeak()


def load_codecs(codecs: Sequence[str]) -> dict[str, Any]:
    """The codecs by what they were called.

    Raises:
        XcodecLMError: one cannot be loaded, has several tracks, or is another one under a second name.
    """
    from xcodec_lm.codec import load_codec

    loaded: dict[str, Any] = {}
    for name in codecs:
        codec = load_codec(name)
        check_codec(codec.spec)
        for other, known in loaded.items():
            if known.spec.fingerprint and known.spec.fingerprint == codec.spec.fingerprint:
                raise UsageError(f"{other} and {name} give the same tokens: they are one codec", "name another")
            if Path(other).name == Path(name).name:
                raise UsageError(f"{other} and {name} would have one name in tables", "rename one of the folders")
        loaded[name] = codec
    return loaded


def common_rate(codecs: dict[str, Any]) -> int:
    """The rate at which all sounds are judged: the lowest that a codec gives, so that none gains by its band."""
    rates = {name: codec.spec.output_sample_rate for name, codec in codecs.items()}
    lowest = min(rates.values())
    if len(set(rates.values())) > 1:
        told = ", ".join(f"{name} {rate} Hz" for name, rate in rates.items())
        say(f"note: the codecs' sample rates differ ({told}): all sounds are judged at {lowest} Hz")
    return lowest


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Takes a folder for a comparison.

    Raises:
        XcodecLMError: it holds another one, or something else, or cannot be written.
    """
    path = out / "settings.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None  # cut off by a kill
        now = json.loads(json.dumps(settings))
        if before is not None and before != now:
            differs = [name for name in now if before.get(name) != now[name]] or sorted(set(before) - set(now))
            raise XcodecLMError(
                f"{out} holds another comparison: {', '.join(differs)} differ",
                "choose another folder with -o; only --seeds may change",
            )
    elif out.is_dir() and any(out.iterdir()):
        raise XcodecLMError(f"{out} is not empty and holds no comparison", "choose another folder with -o")
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise XcodecLMError(f"cannot write {out}: {error.strerror}", "choose another folder with -o") from None


def make_corpus(task: Task, settings: Any, folder: Path) -> Path:
    """The synthetic corpus of a task, see `data synth`.

    Raises:
        XcodecLMError: tts, and there is no espeak-ng.
    """
    counts: dict[str, Any] = {"music_clips": 0, "sound_clips": 0, "speech_clips": 0}
    if task == "music":
        made = synth(folder, **counts | {"music_clips": settings.clips}, clip_s=settings.clip_s)
        return made.music
    if task == "sound":
        made = synth(folder, **counts | {"sound_clips": settings.clips}, sound_s=settings.clip_s)
        return made.sound
    made = synth(folder, **counts | {"speech_clips": settings.clips}, speech_texts=settings.texts)
    return made.speech


def write_result(result: dict[str, Any], found: Sequence[Replication], out: Path) -> None:
    """Writes compare.json and items.jsonl."""
    from xcodec_lm.tasks.report.tables import json_text

    (out / "compare.json").write_text(json_text(result) + "\n", encoding="utf-8")
    with (out / "items.jsonl").open("w", encoding="utf-8") as file:
        for one in found:
            for item in one.items:
                file.write(json.dumps({"codec": one.codec, "seed": one.seed, **item}, ensure_ascii=False) + "\n")
