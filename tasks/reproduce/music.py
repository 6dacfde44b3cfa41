"""Tables 3 and 7: continuations of music, over the first codebook or over four flattened ones.

Crops are drawn by the seed from whole tracks and kept as text. What a model adds behind the prompt is compared with
what really follows, both as the codec renders them with the model's codebooks: the codec's own loss is in neither.
Demo: held-out pieces of the small corpus, with shorter crops of the same proportion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.tasks.compare.music import MOST_TRAINING
from xcodec_lm.tasks.compare.stages import corpus_key
from xcodec_lm.tasks.data.scan import read_header
from xcodec_lm.tasks.data.source_corpora import musdb18_items
from xcodec_lm.tasks.eval.frechet import Projection, frechet_distance
from xcodec_lm.tasks.eval.set_distances import Drawn, dims_for, frechet_drawn, kid_drawn
from xcodec_lm.tasks.eval.texture import texture
from xcodec_lm.tasks.eval.train_evaluators import thin
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce import evaluators, models
from xcodec_lm.tasks.reproduce.demo import find_corpus
from xcodec_lm.tasks.reproduce.lists import draw_crops, read_lines, write_lines
from xcodec_lm.tasks.reproduce.scores import Metric, difference, empty, figure, judged, number, row, scores
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Facts, Place, Stage, hash_file, hash_names
from xcodec_lm.tasks.reproduce.tables import Reproduction

LIST, CROPS = "crops.txt", 600
REFERENCE = "resynthesis"
SYSTEMS = {"continuation": "", "untrained": "by the untrained model", "shuffled": "codes dealt out at random"}
"""Sets of `music eval` that stand as rows, and what a row adds to the codec's name."""
TRAINING_S = 12.0


@dataclass(frozen=True)
class Protocol:
    """One of the two tables.

    Attributes:
        number: of the table.
        cut: seconds of prompt and of continuation.
        demo_cut: the same in the demo.
        preset: of the paper's language model.
        layout: dotted keys of its token layout.
        n_q: codebooks.
        paper: the paper's training, in words.
    """

    number: int
    cut: tuple[float, float]
    demo_cut: tuple[float, float]
    preset: str
    layout: Mapping[str, Any]
    n_q: int
    paper: str


PROTOCOLS = {
    3: Protocol(3, (10.0, 30.0), (2.0, 6.0), "music/paper", {"model.layout.name": "first", "model.layout.n_q": 1}, 1,
                "GPT-2 medium, block 4096, 300,000 steps on 100,000 hours"),
    7: Protocol(7, (5.0, 5.0), (3.0, 3.0), "music/paper-4vq",
                {"model.layout.name": "flatten", "model.layout.n_q": 4}, 4,
                "GPT-2 medium over four flattened codebooks, on 100,000 hours"),
}  # fmt: skip


def stages(protocol: Protocol, place: Place, settings: Settings) -> list[Stage]:
    """prepare, tokenize, train, generate, score."""
    prints = named_codecs.fingerprints(settings)
    learning: Facts = {"codecs": prints, "seed": settings.seed, "preset": settings.preset, "steps": settings.steps,
                       "runs": models.given_runs(settings), "quick": settings.quick}  # fmt: skip
    prepare = _demo_crops if settings.demo else _real_crops

    def made(before: Mapping[str, Facts]) -> dict[str, Any]:
        return _jobs(protocol, place, settings, before["prepare"])

    return [
        Stage("prepare", {"data": _data_key(settings), "seed": settings.seed, "quick": settings.quick,
                          "split": settings.split},
              lambda folder, _: prepare(protocol, place, settings, folder), files=(LIST,)),
        Stage("tokenize", {"codecs": prints, "runs": models.given_runs(settings)},
              lambda _, before: models.tokenize(place, settings, made(before))),
        Stage("train", learning, lambda _, before: models.train(place, settings, made(before))),
        Stage("generate", learning, lambda folder, before: _generate(protocol, place, settings, folder, before)),
        Stage("score", {"seed": settings.seed, "weights": dict(settings.weights)},
              lambda folder, before: _score(protocol, place, settings, folder.parent, before)),
    ]  # fmt: skip


def _data_key(settings: Settings) -> Any:
    if settings.demo:
        manifest = settings.corpus / "music.jsonl" if settings.corpus else None
        return corpus_key([manifest]) if manifest is not None and manifest.is_file() else None
    assert settings.musdb is not None
    return [hash_names(settings.musdb), [hash_file(path) for path in settings.train_data]]


# ---------------------------------------------------------------------- crops


def _real_crops(protocol: Protocol, place: Place, settings: Settings, folder: Path) -> Facts:
    assert settings.musdb is not None
    models.need_training_data(settings, settings.train_data, "the paper's training music is not public")
    clips = []
    for item in musdb18_items(settings.musdb):
        if settings.split not in ("all", item.id.split("/")[0]):
            continue
        info = read_header(item.audio)
        if isinstance(info, str):
            raise XcodecLMError(f"{item.audio}: {info}", "fetch MUSDB18-HQ again, or remove the track")
        clips.append(Clip(item.id, item.audio, info.frames / info.samplerate, None, {"piece": item.keys["piece"]}))
    if not clips:
        raise XcodecLMError(f"{settings.musdb} has no track of split {settings.split}", "choose another with --split")
    facts = _listed(place, clips, protocol.cut, CROPS, settings.seed, folder)
    return facts | {"origin": f"MUSDB18, {settings.split} tracks",
                    "training": [str(path.absolute()) for path in settings.train_data]}  # fmt: skip


def _demo_crops(protocol: Protocol, place: Place, settings: Settings, folder: Path) -> Facts:
    corpus = find_corpus(place, settings, ["music"])
    manifest = corpus.of("music")[0]
    clips = read_manifests([manifest], "test")
    if not clips:
        raise XcodecLMError(f"{manifest}: no row has split: test", "hold some pieces out: xcodec-lm data scan")
    cut = (1.0, 2.0) if settings.quick else protocol.demo_cut
    facts = _listed(place, clips, cut, settings.scale.prompts, settings.seed, folder)
    return facts | {"origin": corpus.origin, "training": [place.name(manifest)]}


def _listed(
    place: Place, clips: Sequence[Clip], cut: tuple[float, float], count: int, seed: int, folder: Path
) -> Facts:
    crops = draw_crops([(clip.id, clip.duration_s) for clip in clips], count, sum(cut), seed)
    write_lines(folder / LIST, "recording\tstart_s", [(name, f"{start:.3f}") for name, start in crops])
    used = {name for name, _ in crops}
    return {
        "crops": len(crops), "prompt_s": cut[0], "seconds": cut[1],
        "recordings": {
            clip.id: {"audio": place.name(clip.path), "piece": str(clip.row.get("piece") or clip.id)}
            for clip in clips if clip.id in used
        },
    }  # fmt: skip


def _jobs(protocol: Protocol, place: Place, settings: Settings, prepared: Facts) -> dict[str, Any]:
    manifests = [place.path(path) for path in prepared["training"]]
    if not manifests:
        return dict.fromkeys(named_codecs.sources(settings))  # all models are given
    overrides = dict(protocol.layout)
    steps = settings.steps or (settings.scale.music_steps if settings.demo else None)
    if steps is not None:
        overrides |= {"optim.steps": steps, "optim.warmup_steps": min(20, steps // 4)}
    preset = settings.preset or ("" if settings.demo else protocol.preset)
    return models.jobs(place, settings, "music", manifests, preset, overrides)


def _generate(
    protocol: Protocol, place: Place, settings: Settings, folder: Path, before: Mapping[str, Facts]
) -> Facts:  # fmt: skip
    """Sets of audio for each codec, in a folder of its name."""
    from xcodec_lm.tasks.music.continuation import load_music
    from xcodec_lm.tasks.music.evaluate import write_sets

    prepared = before["prepare"]
    places = []
    for name, start in read_lines(folder.parent / "prepare" / LIST):
        known = prepared["recordings"][name]
        places.append((Clip(name, place.path(known["audio"]), 0.0, None, {"piece": known["piece"]}), float(start)))
    for name, codec in named_codecs.load_codecs(settings).items():
        music = load_music(models.run_of(place, before["train"], name), codec, settings.device)
        if music.n_q != protocol.n_q:
            raise UsageError(
                f"the model of {name} speaks {music.n_q} codebooks, table {protocol.number} is of {protocol.n_q}",
                "give another run with --runs",
            )
        cut = (prepared["prompt_s"], prepared["seconds"])
        write_sets(music, places, cut, folder / name, settings.seed, Sampling(), controls=True)
    return {name: hash_file(folder / name / "sets.jsonl") for name in named_codecs.sources(settings)}


# ---------------------------------------------------------------------- figures


def _score(protocol: Protocol, place: Place, settings: Settings, table: Path, before: Mapping[str, Facts]) -> Facts:
    prepared, trained = before["prepare"], before["train"]
    codecs = named_codecs.load_codecs(settings)
    judges = {column: evaluators.load(settings, column) for column in ("fd", "fad", "fd_mert")}
    columns = {"fd": "FD", "fad": "FAD", "fd_mert": "FD-MERT-layer-9"}
    metrics = [
        Metric("fd", judged("FD", judges["fd"], "texture"), ".2f", "min", judges["fd"] is not None),
        *(
            Metric(key, judged(columns[key], judges[key]), ".2f", "min", judges[key] is not None)
            for key in ("fad", "fd_mert")
        ),
        Metric("kid", "KID[texture]", ".3f", "min", stands_for_paper=False),
    ]  # fmt: skip
    projection = None if judges["fd"] else _projection(place, prepared)
    rows, drawn = [], {}
    for name, codec in codecs.items():
        folder = table / "generate" / name
        for system, part in SYSTEMS.items():
            cells: Facts = {}
            for key in columns:
                if judges[key] is not None:
                    cells[key] = number(_published(folder, system, judges[key], whole=key == "fd"))
                elif key != "fd":
                    cells[key] = empty(evaluators.reason(key, columns[key]))
            offline = _offline(folder, system, projection or _projection(place, prepared), settings.seed)
            for key, found in offline.items():
                if key == "kid" or judges["fd"] is None:
                    cells[key] = figure(found.estimate())
                    drawn[name, system, key] = found
            kind = named_codecs.paper_name(codec)
            rows.append(row(name, cells, part, "" if part else kind, reference=bool(part)))
    first, by_key = next(iter(codecs)), {metric.key: metric for metric in metrics}
    pairs = [((first, "continuation"), (other, "continuation")) for other in list(codecs)[1:]]
    pairs += [((name, "continuation"), (name, system)) for name in codecs for system in ("untrained", "shuffled")]
    differences = [
        difference(by_key[key], _title(*one), _title(*two),
                   drawn[*one, key].minus(drawn[*two, key]))
        for one, two in pairs for key in ("fd", "kid") if (*one, key) in drawn and (*two, key) in drawn
    ]  # fmt: skip
    pieces = len({known["piece"] for known in prepared["recordings"].values()})
    cut = f"{prepared['prompt_s']:g} s of prompt, {prepared['seconds']:g} s of continuation"
    theirs = f"{protocol.cut[0]:g} s of prompt, {protocol.cut[1]:g} s of continuation"
    why = [f"the music is {prepared['origin']}, not MUSDB18"] if settings.demo else [
        "the training music is not the paper's, which is not public"
    ]  # fmt: skip
    stand_in = [] if judges["fd"] else [
        "FD is of half-second log-mel statistics in at most 16 dimensions (texture), not of PANNs"
    ]  # fmt: skip
    return scores(
        metrics, rows, differences,
        [("crops", f"600 of MUSDB18, {theirs}", f"{prepared['crops']} of {prepared['origin']}, {cut}"),
         *models.training_rows(settings, trained, protocol.paper, protocol.preset),
         *named_codecs.codec_settings(codecs)],
        [*why, *models.small_models(settings), *stand_in],
        {"texture": {}, **evaluators.facts({key: judge for key, judge in judges.items() if judge})},
        [f"{prepared['crops']} crops of {pieces} pieces of {prepared['origin']}; {cut}. The continuation is compared "
         f"with the codec's own resynthesis of what really follows, {protocol.n_q} codebook(s) both.",
         *(["The MERT column has no stand-in: the toolkit's own teacher is inside the codec that it would judge."]
           if not judges["fd_mert"] else [])],
    )  # fmt: skip


def _title(name: str, system: str) -> str:
    return f"{name}, {SYSTEMS[system]}" if SYSTEMS[system] else name


def _sets(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sets.jsonl").read_text(encoding="utf-8").splitlines()]


def _published(folder: Path, system: str, judge: Any, whole: bool) -> float:
    """Fréchet distance in all dimensions of a published embedder: of a vector a clip, or of all frames."""
    found = []
    for name in (system, REFERENCE):
        wavs = (load_audio(folder / row[name], judge.sample_rate).wav[0].numpy() for row in _sets(folder))
        vectors = [judge.clip(wav)[None] if whole else judge.frames(wav) for wav in wavs]
        found.append(np.concatenate(vectors))
    return frechet_distance(*found)


def _projection(place: Place, prepared: Facts) -> Projection:
    """Axes of texture, fitted on training recordings, or where models are given on the crops' recordings."""
    paths = [
        clip.path
        for path in prepared["training"]
        for clip in thin(read_manifests([place.path(path)], "train"), MOST_TRAINING)
    ]
    paths = paths or [place.path(known["audio"]) for known in prepared["recordings"].values()]
    rows = [
        texture(load_audio(path, 16_000, duration_s=TRAINING_S).wav[0], 16_000)
        for path in track(paths, "texture", len(paths))
    ]
    return Projection.fit(np.concatenate(rows), dims_for(prepared["crops"] * 2))


def _offline(folder: Path, system: str, projection: Projection, seed: int) -> dict[str, Drawn]:
    """Fréchet distance and KID of half seconds of texture, with intervals over pieces."""
    made, real, units = [], [], []
    for item in _sets(folder):
        one, other = (texture(load_audio(folder / item[name], 16_000).wav[0], 16_000) for name in (system, REFERENCE))
        common = min(len(one), len(other))  # lengths differ by a part of a frame
        made.append(one[:common])
        real.append(other[:common])
        units += [item["piece"]] * common
    x, y = (projection(np.concatenate(rows)) for rows in (made, real))
    return {"fd": frechet_drawn([x], y, units, seed), "kid": kid_drawn([x], y, units, seed)}


USES = ("split", "train_data", "runs", "preset", "steps")
TABLES = {
    number: Reproduction(number, ("musdb",), USES, partial(stages, protocol))
    for number, protocol in PROTOCOLS.items()
}  # fmt: skip
