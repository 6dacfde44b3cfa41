"""Table 1: zero-shot speech of VALL-E on the tokens of codecs, its AR alone and with its NAR.

VALL-E's continual setting: the first seconds of an utterance are the prompt, and the whole text is known. Real:
LibriSpeech test-clean between 4 and 10 s with 3 s of prompt, models trained on LibriTTS. Demo: strings of digits by
unseen voices of the small corpus, with a prompt of a second.

WER is of the whole utterance, decoded prompt and continuation, over the corpus. SIM-O compares the prompt as recorded
with the part behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.audio import load_audio, resample
from xcodec_lm.codec.clips import read_manifest, read_manifests, write_manifest
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.tasks.compare import tts as tts_task
from xcodec_lm.tasks.compare.ancestry import doubt
from xcodec_lm.tasks.compare.stages import corpus_key
from xcodec_lm.tasks.data.continual import make_test_list
from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.speaker import similarity
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce import evaluators, models
from xcodec_lm.tasks.reproduce.codecs import XCODEC
from xcodec_lm.tasks.reproduce.demo import find_corpus
from xcodec_lm.tasks.reproduce.lists import write_lines
from xcodec_lm.tasks.reproduce.scores import Metric, difference, empty, figure, judged, rescaled, row, scores
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Facts, Place, Stage, hash_file, hash_names, write_json
from xcodec_lm.tasks.reproduce.tables import Reproduction

LIST, ROWS, HEARD = "utterances.txt", "utterances.jsonl", "heard.json"
RATE = 16_000
PAPER_TRAINING = "VALL-E on LibriTTS, 100 epochs of the AR and 200 of the NAR"


@dataclass(frozen=True)
class Cut:
    """Which utterances are said.

    Attributes:
        min_s: shortest.
        max_s: longest.
        prompt_s: seconds of each that are the prompt.
    """

    min_s: float
    max_s: float
    prompt_s: float


PAPER_CUT, DEMO_CUT = Cut(4.0, 10.0, 3.0), Cut(1.8, 8.0, 1.0)


def stages(place: Place, settings: Settings) -> list[Stage]:
    """prepare, tokenize, train, generate, score."""
    prints = named_codecs.fingerprints(settings)
    learning: Facts = {"codecs": prints, "seed": settings.seed, "preset": settings.preset, "steps": settings.steps,
                       "runs": models.given_runs(settings), "quick": settings.quick}  # fmt: skip
    judging: Facts = {"weights": dict(settings.weights), "judges": settings.judges and str(settings.judges)}
    prepare = _demo_list if settings.demo else _real_list

    def made(before: Mapping[str, Facts]) -> dict[str, Any]:
        return _jobs(place, settings, before["prepare"])

    return [
        Stage("prepare", {"data": _data_key(settings), "seed": settings.seed, "quick": settings.quick},
              lambda folder, _: prepare(place, settings, folder), files=(LIST,)),
        Stage("tokenize", {"codecs": prints, "runs": models.given_runs(settings)},
              lambda _, before: models.tokenize(place, settings, made(before))),
        Stage("train", learning, lambda _, before: models.train(place, settings, made(before))),
        Stage("generate", {**learning, **judging}, lambda folder, before: _generate(place, settings, folder, before)),
        Stage("score", {"seed": settings.seed, **judging},
              lambda folder, before: _score(place, settings, folder.parent, before)),
    ]  # fmt: skip


def _data_key(settings: Settings) -> Any:
    if settings.demo:
        manifest = settings.corpus / "speech.jsonl" if settings.corpus else None
        return corpus_key([manifest]) if manifest is not None and manifest.is_file() else None
    assert settings.librispeech is not None
    subset = settings.librispeech / "test-clean"
    return [hash_names(subset if subset.is_dir() else settings.librispeech),
            settings.libritts and str(settings.libritts),
            [hash_file(path) for path in settings.train_data]]  # fmt: skip


# ---------------------------------------------------------------------- what is said


def _real_list(place: Place, settings: Settings, folder: Path) -> Facts:
    assert settings.librispeech is not None
    roots = [root for root in (settings.libritts,) if root is not None]
    models.need_training_data(settings, [*settings.train_data, *roots], "the paper takes LibriTTS (--libritts)")
    training = [str(path.absolute()) for path in settings.train_data]
    if not training and roots and set(named_codecs.sources(settings)) - set(models.given_runs(settings)):
        from xcodec_lm.tasks.data.sources import scan_source

        scan_source(roots[0], folder / "libritts.jsonl", format="libritts")
        training = [place.name(folder / "libritts.jsonl")]
    facts = _listed(settings.librispeech, folder, PAPER_CUT, None)
    return facts | {"origin": "LibriSpeech test-clean", "training": training}


def _demo_list(place: Place, settings: Settings, folder: Path) -> Facts:
    corpus = find_corpus(place, settings, ["speech"])
    manifest = corpus.of("speech")[0]
    facts = _listed(manifest, folder, DEMO_CUT, settings.scale.prompts)
    return facts | {"origin": corpus.origin, "training": [place.name(manifest)]}


def _listed(source: Path, folder: Path, cut: Cut, most: int | None) -> Facts:
    made = make_test_list(source, folder / ROWS, "continual", cut.min_s, cut.max_s, cut.prompt_s)
    if most is not None:
        write_manifest([clip.row for clip in tts_task.spread(read_manifest(folder / ROWS), most)], folder / ROWS)
    rows = [clip.row for clip in read_manifest(folder / ROWS)]
    write_lines(folder / LIST, "utterance\tspeaker\tprompt_s\ttext",
                [(row["id"], row["speaker"], row["prompt_s"], row["text"]) for row in rows])  # fmt: skip
    return {"utterances": len(rows), "hours": sum(row["duration"] for row in rows) / 3600, "chosen": made.chosen,
            "speakers": len({row["speaker"] for row in rows}), "prompt_s": cut.prompt_s}  # fmt: skip


def _jobs(place: Place, settings: Settings, prepared: Facts) -> dict[str, Any]:
    scale, manifests = settings.scale, [place.path(path) for path in prepared["training"]]
    if not manifests:
        return dict.fromkeys(named_codecs.sources(settings))  # all models are given
    overrides: dict[str, Any] = {}
    steps = settings.steps or (scale.speech_steps if settings.demo else None)
    if steps is not None:
        overrides = {
            "optim.steps": steps, "optim.warmup_steps": min(50, steps // 4),
            "nar_optim.steps": max(1, steps // 2), "nar_optim.warmup_steps": min(30, steps // 8),
        }  # fmt: skip
    own = (
        {"judge_steps": scale.judge_steps, "voice_steps": max(1, scale.judge_steps // 2), "copies": 0}
        if settings.demo
        else {}
    )
    return models.jobs(place, settings, "tts", manifests, settings.preset, overrides, **own)


# ---------------------------------------------------------------------- who listens


def _judges(place: Place, settings: Settings, prepared: Facts) -> tuple[Any, Any]:
    """A recogniser and a judge of voices: published, the user's own, the demo's; None where there is none."""
    folder = settings.judges
    if settings.demo and folder is None and None in (evaluators.chosen(settings, one) for one in ("wer", "sim")):
        some = _jobs(place, settings, prepared)
        job = next(iter(some.values()))
        folder = tts_task.judges_stage(job, {name: one.codec for name, one in some.items()}).folder
    return evaluators.listeners(settings, folder)


def _generate(place: Place, settings: Settings, folder: Path, before: Mapping[str, Facts]) -> Facts:
    """Speech of every model, in `audio/`, and what the recogniser hears of it, in heard.json."""
    from xcodec_lm.tasks.tts.evaluate import Judges, evaluate_tts
    from xcodec_lm.tasks.tts.speech import Speaking
    from xcodec_lm.tasks.tts.voice import load_tts

    recogniser, _ = _judges(place, settings, before["prepare"])
    codecs = named_codecs.load_codecs(settings)
    runs = [(name, load_tts(models.run_of(place, before["train"], name), codec, settings.device))
            for name, codec in codecs.items()]  # fmt: skip
    some = next(iter(_jobs(place, settings, before["prepare"]).values()), None)
    speaking = Speaking()
    if settings.demo and some is not None:
        own = some.config
        speaking = Speaking(Sampling(own.temperature, top_p=own.top_p, ras_window=10, cfg_scale=own.cfg))
    data = evaluate_tts(runs, folder.parent / "prepare" / ROWS, Judges(recogniser), folder / "audio", speaking,
                        settings.seed, controls=False)  # fmt: skip
    write_json(folder / HEARD, data)
    return {"heard": hash_file(folder / HEARD), "systems": [line["system"] for line in data["systems"]]}


# ---------------------------------------------------------------------- figures


def _score(place: Place, settings: Settings, table: Path, before: Mapping[str, Facts]) -> Facts:
    prepared, trained = before["prepare"], before["train"]
    data = json.loads((table / "generate" / HEARD).read_text(encoding="utf-8"))
    clips = read_manifests([table / "prepare" / ROWS])
    recogniser, voices = _judges(place, settings, prepared)
    utmos = evaluators.load(settings, "utmos")
    codecs = named_codecs.load_codecs(settings)
    by_system = {line["system"]: line for line in data["systems"]}
    values = {name: _heard_by(name, table / "generate" / "audio", clips, voices, utmos) for name in by_system}
    units = [str(clip.row["speaker"]) for clip in clips]
    judges = {"wer": recogniser, "sim": voices, "utmos": utmos}
    heads = {"wer": judged("WER", recogniser) + ", %", "sim": judged("SIM-O", voices), "utmos": judged("UTMOS", utmos)}
    of_paper = {column: evaluators.chosen(settings, column) == evaluators.PAPER[column][0] for column in heads}
    metrics = [
        Metric(f"{prefix}{column}", f"{stage} {heads[column]}", form, best, of_paper[column])
        for prefix, stage in (("ar_", "AR"), ("", "AR+NAR"))
        for column, form, best in (("wer", ".1f", "min"), ("sim", ".3f", "max"), ("utmos", ".2f", "max"))
    ]  # fmt: skip

    def cells(ar: str, whole: str) -> Facts:
        found = {}
        for prefix, system in (("ar_", ar), ("", whole)):
            if system not in by_system:
                found |= {f"{prefix}{column}": empty("this model has no NAR") for column in heads}
                continue
            wer = by_system[system]["wer"]
            found[f"{prefix}wer"] = (
                rescaled(wer, 100) if wer["value"] is not None else empty(evaluators.reason("wer", "WER"))
            )
            for column in ("sim", "utmos"):
                known = values[system].get(column)
                found[f"{prefix}{column}"] = (
                    empty(evaluators.reason(column, column.upper())) if known is None
                    else figure(mean_estimate(known, units, settings.seed))
                )  # fmt: skip
        return found

    rows = [row("GT", cells("ground truth", "ground truth"), "", "GT", reference=True)]
    for name, codec in codecs.items():
        kind = named_codecs.paper_name(codec)
        of = "X-Codec-wavlm-base-plus" if "wavlm" in str(getattr(codec, "semantic_config", "")) else "X-Codec-hubert"
        rows.append(row(name, cells(f"{name}: AR", f"{name}: AR+NAR"), "", of if kind == XCODEC else kind))
        rows.append(row(name, cells(f"{name}: resynthesis", f"{name}: resynthesis"), "resynthesis of the recordings",
                        reference=True))  # fmt: skip
    doubts = _doubts(data, recogniser, voices, codecs, clips)
    return scores(
        metrics, rows, _differences(data, values, units, list(codecs), metrics, doubts, settings.seed),
        [("utterances", "LibriSpeech test-clean, 4 to 10 s, 3 s of prompt",
          f"{prepared['utterances']} of {prepared['origin']}, {prepared['prompt_s']:g} s of prompt"),
         *models.training_rows(settings, trained, PAPER_TRAINING, "tts/paper"), *named_codecs.codec_settings(codecs)],
        [*([f"the utterances are {prepared['origin']}, not LibriSpeech"] if settings.demo else []),
         *models.small_models(settings),
         *(f"{heads[key]} is by another evaluator than the paper's" for key in ("wer", "sim") if not of_paper[key])],
        evaluators.facts({key: judge for key, judge in judges.items() if judge is not None}),
        [f"{prepared['utterances']} utterances ({prepared['hours']:.2f} h) of {prepared['speakers']} speakers of "
         f"{prepared['origin']} ({prepared['chosen']}); WER over all of each, SIM-O of what is behind the prompt.",
         *(f"No verdict by {column}: {why}." for column, why in doubts.items())],
    )  # fmt: skip


def _heard_by(system: str, audio: Path, clips: Any, voices: Any, utmos: Any) -> dict[str, np.ndarray]:
    """Likeness to the prompt and opinion scores of each utterance of a system."""
    from xcodec_lm.tasks.tts.page import system_folder

    found: dict[str, list[float]] = {}
    for clip in track(clips, f"comparing voices of {system}", len(clips)):
        path = clip.path if system == "ground truth" else audio / system_folder(system) / f"{clip.id}.flac"
        wav, cut = load_audio(path, RATE).wav[0].numpy(), round(clip.row["prompt_s"] * RATE)
        prompt = load_audio(clip.path, RATE, duration_s=clip.row["prompt_s"]).wav[0].numpy()
        if voices is not None:  # nothing behind the prompt is no voice
            value = float(similarity(voices, [wav[cut:]], [prompt])[0]) if len(wav) > cut else 0.0
            found.setdefault("sim", []).append(value)
        if utmos is not None:
            heard = np.clip(resample(wav, RATE, utmos.sample_rate), -1, 1).astype(np.float32)
            found.setdefault("utmos", []).append(utmos.predict([heard])[0][utmos.scores[0]])
    return {name: np.array(values) for name, values in found.items()}


def _doubts(data: Facts, recogniser: Any, voices: Any, codecs: Mapping[str, Any], clips: Any) -> dict[str, str]:
    doubts = {}
    if recogniser is not None and not data["trusted"]:
        doubts["wer"] = "the recogniser errs on more than 10 % of the words of real recordings"
    for column, judge in (("wer", recogniser), ("sim", voices)):
        for name, codec in codecs.items():
            if judge is not None and (why := doubt(judge, codec, name, clips)):
                doubts[column] = why
    return doubts


def _differences(
    data: Facts, values: Mapping[str, dict[str, np.ndarray]], units: list[str], names: list[str], metrics: list[Metric],
    doubts: Mapping[str, str], seed: int,
) -> list[Facts]:  # fmt: skip
    """The first codec against the others."""
    keys = {"AR": "ar_", "AR+NAR": ""}
    by_key = {metric.key: metric for metric in metrics}
    found = []
    for item in data["differences"]:
        (one, what), (other, same) = item["a"].rsplit(": ", 1), item["b"].rsplit(": ", 1)
        if what == same and what in keys and one != other:
            found.append({"metric": f"{keys[what]}wer", "a": item["a"], "b": item["b"], **rescaled(item["wer"], 100),
                          "verdict": item["verdict"] if "wer" not in doubts else "not decidable",
                          "doubt": doubts.get("wer", "")})  # fmt: skip
    for other in names[1:]:
        for what, prefix in keys.items():
            one, two = f"{names[0]}: {what}", f"{other}: {what}"
            if "sim" in values.get(one, {}) and "sim" in values.get(two, {}):
                estimate = difference_estimate(values[one]["sim"], values[two]["sim"], units, seed)
                found.append(difference(by_key[f"{prefix}sim"], one, two, estimate, doubt=doubts.get("sim", "")))
    return found


TABLES = {1: Reproduction(1, ("librispeech",), ("libritts", "train_data", "runs", "preset", "steps"), stages)}
