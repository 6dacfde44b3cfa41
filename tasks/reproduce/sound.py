"""Table 4: text to sound, a GPT behind a CLAP's embedding of the caption, over four flattened codebooks.

Real: one caption of each clip of AudioCaps' test split, drawn by the seed, 10 s each. Demo: captions of held-out sounds
of the small corpus, on models that are conditioned on the class, since a CLAP of minutes would say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, read_manifests, relative_audio, write_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.compare import sound as sound_task
from xcodec_lm.tasks.compare.stages import corpus_key
from xcodec_lm.tasks.eval.clap_score import clap_score
from xcodec_lm.tasks.eval.frechet import frechet_distance
from xcodec_lm.tasks.eval.inception import SPLITS, inception_score
from xcodec_lm.tasks.eval.intervals import mean_estimate
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce import evaluators, models
from xcodec_lm.tasks.reproduce.demo import find_corpus
from xcodec_lm.tasks.reproduce.lists import draw_captions, write_lines
from xcodec_lm.tasks.reproduce.scores import Metric, empty, figure, judged, number, rescaled, row, scores
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Facts, Place, Stage, hash_file, hash_names, write_json
from xcodec_lm.tasks.reproduce.tables import Reproduction

LIST, TESTED, HEARD = "captions.txt", "tested.jsonl", "heard.json"
PRESET, SECONDS = "sound/paper", 10.0
PAPER_TRAINING = "GPT-2 medium behind LAION-CLAP, 80,000 steps on 400 h of AudioCaps and AudioSet-SL"
LAYOUT = {"model.layout.name": "flatten", "model.layout.n_q": 4}
SYSTEMS = {"made": "", "resynthesis": "resynthesis of the recordings", "other caption": "captions of other classes",
           "untrained": "by the untrained model"}  # fmt: skip
"""Systems of `sound eval` that stand as rows, and what a row adds to the codec's name."""


def stages(place: Place, settings: Settings) -> list[Stage]:
    """prepare, tokenize, train, generate, score."""
    prints = named_codecs.fingerprints(settings)
    learning: Facts = {"codecs": prints, "seed": settings.seed, "preset": settings.preset, "steps": settings.steps,
                       "runs": models.given_runs(settings), "quick": settings.quick, "clap": settings.clap}  # fmt: skip
    prepare = _demo_captions if settings.demo else _real_captions

    def made(before: Mapping[str, Facts]) -> dict[str, Any]:
        return _jobs(place, settings, before["prepare"])

    return [
        Stage("prepare", {"data": _data_key(settings), "seed": settings.seed, "quick": settings.quick},
              lambda folder, _: prepare(place, settings, folder), files=(LIST,)),
        Stage("tokenize", {"codecs": prints, "runs": models.given_runs(settings)},
              lambda _, before: models.tokenize(place, settings, made(before))),
        Stage("train", learning, lambda _, before: models.train(place, settings, made(before))),
        Stage("generate", learning, lambda folder, before: _generate(place, settings, folder, before)),
        Stage("score", {"seed": settings.seed, "weights": dict(settings.weights)},
              lambda folder, before: _score(place, settings, folder.parent, before)),
    ]  # fmt: skip


def _data_key(settings: Settings) -> Any:
    if settings.demo:
        manifest = settings.corpus / "sound.jsonl" if settings.corpus else None
        return corpus_key([manifest]) if manifest is not None and manifest.is_file() else None
    assert settings.audiocaps is not None
    return [hash_names(settings.audiocaps), settings.captions and hash_file(settings.captions),
            [hash_file(path) for path in settings.train_data]]  # fmt: skip


# ---------------------------------------------------------------------- captions


def _real_captions(place: Place, settings: Settings, folder: Path) -> Facts:
    """The manifest of AudioCaps, one caption a clip of its test split, and what models train on."""
    from xcodec_lm.tasks.data.sources import scan_source

    assert settings.audiocaps is not None
    source = _with_list(settings, folder)
    manifest = folder / "audiocaps.jsonl"
    _, found = scan_source(source, manifest, format="audiocaps")
    clips = read_manifests([manifest])
    training = [str(path.absolute()) for path in settings.train_data]
    if any(clip.split == "train" for clip in clips):
        training.append(place.name(manifest))
    models.need_training_data(settings, [Path(path) for path in training], "AudioCaps' train.csv and its audio")
    if settings.clap is None and set(named_codecs.sources(settings)) - set(models.given_runs(settings)):
        raise XcodecLMError(
            "table 4 trains models that are conditioned on a CLAP, and none is given",
            "--clap PATH: LAION's 630k-audioset-best.pt, vocab.json and merges.txt beside it, or a run of clap train",
        )
    facts = _listed(place, [clip for clip in clips if clip.split == "test"], folder, settings, None)
    return facts | {"origin": "AudioCaps test", "training": training, "seconds": SECONDS, "missing": len(found.missing)}


def _with_list(settings: Settings, folder: Path) -> Path:
    """A folder in which both the lists and the audio are found: --captions may lie elsewhere."""
    assert settings.audiocaps is not None
    if settings.captions is None:
        return settings.audiocaps
    joined = folder / "audiocaps"
    joined.mkdir(exist_ok=True)
    for name, target in (("test.csv", settings.captions), ("audio", settings.audiocaps)):
        link = joined / name
        link.unlink(missing_ok=True)
        link.symlink_to(target.absolute())
    return joined


def _demo_captions(place: Place, settings: Settings, folder: Path) -> Facts:
    corpus = find_corpus(place, settings, ["sound"])
    manifest = corpus.of("sound")[0]
    facts = _listed(place, read_manifests([manifest], "test"), folder, settings, settings.scale.prompts)
    return facts | {"origin": corpus.origin, "training": [place.name(manifest)], "seconds": None, "missing": 0}


def _listed(place: Place, clips: Sequence[Clip], folder: Path, settings: Settings, most: int | None) -> Facts:
    captioned = {clip.id: clip for clip in clips if clip.row.get("caption") or clip.row.get("captions")}
    if len(captioned) < 2:
        raise XcodecLMError(
            "fewer than two held-out sounds have a caption", "give recordings with split: test and `caption`"
        )
    drawn = draw_captions([clip.row for clip in captioned.values()], settings.seed)[:most]
    rows = []
    for name, caption in drawn:
        clip = captioned[name]
        kept = {key: value for key, value in clip.row.items() if key != "captions"}
        rows.append(kept | {"caption": caption, "audio": relative_audio(clip.path, folder / TESTED), "split": "test"})
    write_manifest(rows, folder / TESTED)
    write_lines(folder / LIST, "clip\tcaption", drawn)
    return {"captions": len(rows), "recordings": len({str(item.get("recording") or item["id"]) for item in rows})}


def _jobs(place: Place, settings: Settings, prepared: Facts) -> dict[str, Any]:
    manifests = [place.path(path) for path in prepared["training"]]
    if not manifests:
        return dict.fromkeys(named_codecs.sources(settings))  # all models are given
    overrides: dict[str, Any] = dict(LAYOUT)
    steps = settings.steps or (settings.scale.sound_steps if settings.demo else None)
    if steps is not None:
        overrides |= {"optim.steps": steps, "optim.warmup_steps": min(20, steps // 4)}
    preset = settings.preset or ("" if settings.demo else PRESET)
    return models.jobs(place, settings, "sound", manifests, preset, overrides, settings.clap)


def _judges(place: Place, settings: Settings, prepared: Facts) -> Any:
    """The judge of classes, where sounds have classes, and the CLAP of --weights."""
    from xcodec_lm.tasks.sound.judging import Judges, load_judges

    clap = evaluators.load(settings, "clap")
    classes = None
    if settings.demo:
        job = next(iter(_jobs(place, settings, prepared).values()))
        folder = sound_task.judges_stage(job, {}).folder
        classes = load_judges(None, read_manifests(job.manifests, "train"), folder, 0, settings.device).classes
    if clap is None and classes is None:
        raise XcodecLMError(
            "there is nobody to judge sounds without classes", f"give a CLAP: {evaluators.reason('clap', 'the score')}"
        )
    return Judges(clap, classes)


def _generate(place: Place, settings: Settings, folder: Path, before: Mapping[str, Facts]) -> Facts:
    """Sounds of every model and its controls, in `audio/`, and what judges hear, in heard.json."""
    from xcodec_lm.tasks.sound.evaluate import Making, evaluate_sound
    from xcodec_lm.tasks.sound.make import load_sound

    prepared, runs = before["prepare"], []
    for name, codec in named_codecs.load_codecs(settings).items():
        model = load_sound(models.run_of(place, before["train"], name), codec, settings.clap, settings.device)
        if len(model.layout.books) != 4:
            raise UsageError(
                f"the model of {name} speaks {len(model.layout.books)} codebooks, table 4 is of four",
                "give another run with --runs",
            )
        runs.append((name, model))
    listed = folder.parent / "prepare" / TESTED
    manifests = [listed, _training_only(place, prepared, folder)]
    data = evaluate_sound(runs, manifests, _judges(place, settings, prepared), folder / "audio",
                          Making(prepared["seconds"], seed=settings.seed))  # fmt: skip
    write_json(folder / HEARD, data)
    return {"heard": hash_file(folder / HEARD), "seconds": data["seconds"], "rate": data["sample_rate"]}


def _training_only(place: Place, prepared: Facts, folder: Path) -> Path:
    """Training rows alone: copies are looked for in them, and their ids must not meet those that are tested."""
    path = folder / "training.jsonl"
    clips = read_manifests([place.path(name) for name in prepared["training"]], "train")
    if not clips:
        raise XcodecLMError("there is no training recording to compare sounds with", "name some with --train-data")
    write_manifest([clip.row | {"audio": relative_audio(clip.path, path), "split": "train"} for clip in clips], path)
    return path


# ---------------------------------------------------------------------- figures


def _score(place: Place, settings: Settings, table: Path, before: Mapping[str, Facts]) -> Facts:
    prepared, trained, made = before["prepare"], before["train"], before["generate"]
    data = json.loads((table / "generate" / HEARD).read_text(encoding="utf-8"))
    clips = read_manifests([table / "prepare" / TESTED])
    judges = {column: evaluators.load(settings, column) for column in ("fd", "fad", "clap")}
    own = _judges(place, settings, prepared)
    tagger, codecs = judges["fd"] or own.classes, named_codecs.load_codecs(settings)
    heads = {"fd": "FD", "is": "IS", "fad": "FAD", "clap": "CLAP"}
    offline = data["judges"]["features"]
    metrics = [
        Metric("fd", judged("FD", judges["fd"], _name_of(own, offline)), ".2f", "min", judges["fd"] is not None),
        Metric("is", judged("IS", tagger), ".2f", "max", judges["fd"] is not None),
        *(Metric(key, judged(heads[key], judges[key]), form, best, judges[key] is not None)
          for key, form, best in (("fad", ".2f", "min"), ("clap", ".3f", "max"))),
        Metric("class", "class as asked, %", ".1f", "max", stands_for_paper=False),
    ]  # fmt: skip
    lines = {line["system"]: line for line in data["systems"]}
    units = [str(clip.row.get("recording") or clip.id) for clip in clips]
    rows = []
    real = [load_audio(clip.path, made["rate"], duration_s=made["seconds"]).wav[0].numpy() for clip in clips]

    def cells(system: str, wavs: list[np.ndarray]) -> Facts:
        line = lines[system]
        found: Facts = {
            "class": rescaled(line["class"], 100) if line.get("class") else empty("the sounds have no classes")
        }
        found["fd"] = (
            number(_distance(judges["fd"], wavs, real, made["rate"], True))
            if judges["fd"]
            else (line["frechet"] or empty("a set has no distance to itself"))
        )
        found["fad"] = (number(_distance(judges["fad"], wavs, real, made["rate"], False)) if judges["fad"]
                        else empty(evaluators.reason("fad", "FAD")))  # fmt: skip
        found["is"] = _inception(tagger, wavs, made["rate"])
        found["clap"] = (figure(mean_estimate(_clap(judges["clap"], wavs, made["rate"], clips), units, settings.seed))
                         if judges["clap"] else empty(evaluators.reason("clap", "CLAP")))  # fmt: skip
        return found

    rows.append(row("recordings", cells("real recordings", real), reference=True))
    for name, codec in codecs.items():
        for system, part in SYSTEMS.items():
            if f"{name}: {system}" in lines:
                wavs = _wavs(table / "generate" / "audio", f"{name}: {system}", clips, made["rate"])
                rows.append(row(name, cells(f"{name}: {system}", wavs), part,
                                "" if part else named_codecs.paper_name(codec), reference=bool(part)))  # fmt: skip
    by_name = {"class": "class", "frechet": "fd", "clap": "clap"}
    shown = {metric.key for metric in metrics}
    differences = [
        {"metric": by_name[item["measure"]], "a": item["a"], "b": item["b"], "verdict": item["verdict"],
         **rescaled(item["difference"], 100 if item["measure"] == "class" else 1),
         "doubt": data["trusted"].get(item["measure"], "")}
        for item in data["differences"]
        if by_name.get(item["measure"]) in shown and not (item["measure"] == "frechet" and judges["fd"])
        and item["a"].endswith(": made")
    ]  # fmt: skip
    conditioned = "captions through a CLAP" if settings.clap or not settings.demo else "the class of the caption"
    why = [f"the sounds are {prepared['origin']}, not AudioCaps", f"models are conditioned on {conditioned}"]
    why = why if settings.demo else []
    return scores(
        metrics, rows, differences,
        [("captions", "AudioCaps test, 10 s",
          f"{prepared['captions']} of {prepared['origin']}, {made['seconds']:g} s"),
         ("condition", "captions through LAION-CLAP", conditioned),
         *models.training_rows(settings, trained, PAPER_TRAINING, PRESET), *named_codecs.codec_settings(codecs)],
        [*why, *models.small_models(settings),
         *([] if judges["fd"] else ["FD and IS are of a small judge, not of PANNs"])],
        evaluators.facts({key: judge for key, judge in {**judges, "class": own.classes}.items() if judge is not None}),
        [f"{prepared['captions']} captions of {prepared['recordings']} recordings of {prepared['origin']}.",
         *([f"{prepared['missing']} recordings of the lists are not there."] if prepared["missing"] else []),
         *(f"No verdict by {name}: {why}." for name, why in data["trusted"].items() if why)],
    )  # fmt: skip


def _name_of(own: Any, features: str) -> str:
    judge = own.clap if features == "clap" else own.classes
    return getattr(judge, "name", features)


def _wavs(folder: Path, system: str, clips: Sequence[Clip], rate: int) -> list[np.ndarray]:
    from xcodec_lm.tasks.sound.evaluate import sound_file

    return [load_audio(sound_file(folder, system, clip.id), rate).wav[0].numpy() for clip in clips]


def _heard(judge: Any, wav: np.ndarray, rate: int) -> np.ndarray:
    from xcodec_lm.codec.audio import resample

    return np.clip(resample(wav, rate, judge.sample_rate), -1, 1).astype(np.float32)


def _distance(judge: Any, made: list[np.ndarray], real: list[np.ndarray], rate: int, whole: bool) -> float:
    """Fréchet distance in all dimensions of a published embedder: of a vector a clip, or of all frames."""
    sets = []
    for wavs in (made, real):
        heard = (_heard(judge, wav, rate) for wav in wavs)
        sets.append(np.concatenate([judge.clip(wav)[None] if whole else judge.frames(wav) for wav in heard]))
    return frechet_distance(*sets)


def _inception(judge: Any, wavs: list[np.ndarray], rate: int) -> Facts:
    if judge is None:
        return empty("no classifier is given")
    logits = np.stack([judge.class_logits(_heard(judge, wav, rate)) for wav in wavs])
    return number(inception_score(logits, min(SPLITS, max(1, len(wavs) // SPLITS)))[0])


def _clap(judge: Any, wavs: list[np.ndarray], rate: int, clips: Sequence[Clip]) -> np.ndarray:
    audio = np.concatenate([judge.embed_audio([_heard(judge, wav, rate)]).numpy() for wav in wavs])
    return clap_score(audio, judge.embed_texts([clip.row["caption"] for clip in clips]).numpy())


TABLES = {4: Reproduction(4, ("audiocaps",), ("captions", "train_data", "runs", "preset", "steps", "clap"), stages)}
