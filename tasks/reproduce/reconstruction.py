"""Table 6: how near reconstructions of speech are to the recordings, with one layer and with all.

Real: 1000 clips of LibriTTS test-clean, drawn by the seed. Demo: held-out speech of the small corpus. Beside the
paper's measures stand SI-SDR, STOI and PESQ, and noise that a codec must beat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, resample
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.distances import anchors
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.compare.stages import corpus_key
from xcodec_lm.tasks.data.source_corpora import libritts_items
from xcodec_lm.tasks.eval import signal, spectral
from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.reconstruction import Domain, codec_delay, decoded
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce import evaluators
from xcodec_lm.tasks.reproduce.demo import find_corpus
from xcodec_lm.tasks.reproduce.lists import draw_clips, read_lines, write_lines
from xcodec_lm.tasks.reproduce.scores import Metric, difference, empty, figure, judged, row, scores
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Facts, Place, Stage, hash_names
from xcodec_lm.tasks.reproduce.tables import Reproduction

SUBSET, CLIPS = "test-clean", 1000
LAYERS = (1, 8)
LIST = "clips.txt"
SHORTEST_S = 1.0
"""Of a clip in the demo: PESQ and STOI need as much."""
UTMOS_RATE = 16_000
BESIDE = {"si_sdr": ("SI-SDR, dB", ".2f"), "stoi": ("STOI", ".3f"), "pesq": ("PESQ", ".2f")}
"""Measures that are not the paper's; higher is better."""


def stages(place: Place, settings: Settings) -> list[Stage]:
    """prepare, score."""
    prepare = _demo_clips if settings.demo else _real_clips
    return [
        Stage("prepare", {"seed": settings.seed, "data": _data_key(settings)},
              lambda folder, _: prepare(place, settings, folder), files=(LIST,)),
        Stage("score", {"codecs": named_codecs.fingerprints(settings), "seed": settings.seed,
                        "weights": dict(settings.weights), "missing": list(signal.missing_libraries())},
              lambda folder, before: _score(place, settings, folder.parent / "prepare", before["prepare"])),
    ]  # fmt: skip


def _data_key(settings: Settings) -> Any:
    if settings.demo:
        manifest = settings.corpus / "speech.jsonl" if settings.corpus else None
        return corpus_key([manifest]) if manifest is not None and manifest.is_file() else None
    assert settings.libritts is not None
    subset = settings.libritts / SUBSET
    return hash_names(subset if subset.is_dir() else settings.libritts)


def _real_clips(place: Place, settings: Settings, folder: Path) -> Facts:
    """The clips that are drawn, by name; and where they are."""
    root = settings.libritts
    assert root is not None
    items = [item for item in libritts_items(root) if item.keys["subset"] == SUBSET and item.audio.is_file()]
    if not items:
        raise XcodecLMError(
            f"--libritts {root} holds no {SUBSET}/SPEAKER/CHAPTER/NAME.wav with NAME.normalized.txt",
            f"unpack {SUBSET}.tar.gz of LibriTTS there",
        )
    clips = [Clip(item.id, item.audio, 0.0, "test", {"speaker": item.keys["speaker"]}) for item in items]
    return _listed(place, draw_clips(clips, CLIPS, settings.seed), folder, f"LibriTTS {SUBSET}", len(items))


def _demo_clips(place: Place, settings: Settings, folder: Path) -> Facts:
    corpus = find_corpus(place, settings, ["speech"])
    held_out = [clip for clip in read_manifests(corpus.of("speech")) if clip.split in ("dev", "test")]
    clips = [clip for clip in held_out if clip.duration_s >= SHORTEST_S]
    if not clips:
        raise XcodecLMError(
            f"{corpus.origin}: no row of splits dev and test lasts {SHORTEST_S:g} s", "hold some recordings out"
        )
    return _listed(place, draw_clips(clips, settings.scale.clips, settings.seed), folder, corpus.origin, len(clips))


def _listed(place: Place, chosen: Sequence[Clip], folder: Path, origin: str, of: int) -> Facts:
    write_lines(folder / LIST, "clip\tspeaker", [(clip.id, clip.row.get("speaker") or clip.id) for clip in chosen])
    return {
        "clips": len(chosen),
        "of": of,
        "origin": origin,
        "files": {clip.id: place.name(clip.path) for clip in chosen},
    }


# ---------------------------------------------------------------------- figures


@torch.inference_mode()
def _score(place: Place, settings: Settings, lists: Path, prepared: Facts) -> Facts:
    listed = read_lines(lists / LIST)
    clips = [
        Clip(name, place.path(prepared["files"][name]), 0.0, None, {"speaker": speaker}) for name, speaker in listed
    ]
    units = [speaker for _, speaker in listed]
    codecs = named_codecs.load_codecs(settings)
    rate = min(codec.spec.output_sample_rate for codec in codecs.values())
    utmos = evaluators.load(settings, "utmos")
    names = [name for name in BESIDE if signal.LIBRARIES.get(name) not in signal.missing_libraries()]
    delays = {name: codec_delay(codec, Domain("speech", clips), rate) for name, codec in codecs.items()}
    found: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    noises: dict[str, list[dict[str, float]]] = defaultdict(list)
    for clip in track(clips, "reconstructing", len(clips)):
        target = load_audio(clip.path, rate).wav[0]
        for name, codec in codecs.items():
            tokens = codec.encode(load_audio(clip.path, codec.spec.sample_rate).wav[None])
            for n_q in named_codecs.layers_of(codec, LAYERS):
                estimate = signal.shift(decoded(codec, tokens, n_q, rate, len(target)), delays[name])
                found[name, n_q].append(_measure(estimate, target, rate, names, utmos))
        for name, noise in anchors(target, rate).items():
            noises[name].append(_measure(noise, target, rate, names, utmos))
    metrics = [
        Metric("mel", "mel[hifigan80]", ".3f", "min"), Metric("stft", "STFT[ln_stft]", ".3f", "min"),
        Metric("utmos", judged("UTMOS", utmos), ".2f", "max", utmos is not None),
        *(Metric(name, *BESIDE[name], "max", stands_for_paper=False) for name in names),
    ]  # fmt: skip
    values = {key: _columns(rows) for key, rows in found.items()}
    rows = [
        row(name, _cells(columns, units, metrics, settings.seed), f"nq {n_q}", _paper_row(codecs[name], n_q))
        for (name, n_q), columns in values.items()
    ]
    rows += [
        row(name, _cells(_columns(measured), units, metrics, settings.seed), reference=True)
        for name, measured in noises.items()
    ]
    first = next(iter(codecs))
    differences = [
        difference(metric, f"{first}, nq {n_q}", f"{other}, nq {n_q}", difference_estimate(
            values[first, n_q][metric.key], values[other, n_q][metric.key], units, settings.seed
        ))
        for other in list(codecs)[1:] for n_q in LAYERS if (first, n_q) in values and (other, n_q) in values
        for metric in metrics if metric.key in values[first, n_q]
    ]  # fmt: skip
    return scores(
        metrics, rows, differences,
        [("recordings", "1000 clips of LibriTTS", f"{len(clips)} clips of {prepared['origin']}"),
         *named_codecs.codec_settings(codecs)],
        [f"the recordings are {prepared['origin']}, not LibriTTS"] if settings.demo else [],
        {"distances, SI-SDR, STOI, PESQ": {}, **({} if utmos is None else evaluators.facts({"utmos": utmos}))},
        [f"{len(clips)} clips of {prepared['of']} of {prepared['origin']}, {len(set(units))} speakers, at {rate} Hz.",
         *(f"{name} needs {signal.LIBRARIES[name]}, which is not installed: pip install 'xcodec-lm[eval]'."
           for name in signal.LIBRARIES if name not in names)],
    )  # fmt: skip


def _measure(estimate: Tensor, target: Tensor, rate: int, names: Sequence[str], utmos: Any) -> dict[str, float]:
    values = {
        "mel": spectral.mel_hifigan80(estimate, target, rate), "stft": spectral.stft_ln(estimate, target, rate),
        "si_sdr": signal.si_sdr(estimate, target),
    }  # fmt: skip
    if "stoi" in names:
        values["stoi"] = signal.stoi(estimate, target, rate)
    if "pesq" in names:
        values["pesq"] = signal.pesq(estimate, target, rate)
    if utmos is not None:
        heard = np.clip(resample(estimate.numpy(), rate, utmos.sample_rate), -1, 1).astype(np.float32)
        values["utmos"] = utmos.predict([heard])[0][utmos.scores[0]]
    return values


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([values[name] for values in rows]) for name in rows[0]}


def _cells(columns: dict[str, np.ndarray], units: Sequence[str], metrics: Sequence[Metric], seed: int) -> Facts:
    return {
        metric.key: figure(mean_estimate(columns[metric.key], units, seed)) if metric.key in columns
        else empty(evaluators.reason("utmos", "UTMOS"))
        for metric in metrics
    }  # fmt: skip


def _paper_row(codec: Any, n_q: int) -> str:
    kind = named_codecs.paper_name(codec)
    return f"{kind}, nq {n_q if n_q == 1 else LAYERS[-1]}" if kind else ""


TABLES = {6: Reproduction(6, ("libritts",), (), stages)}
