"""Table 6: how near reconstructions of speech are to the recordings, with one layer and with all.

Real: 1000 clips of LibriTTS test-clean, drawn by the seed. Demo: held-out speech of the small corpus. Beside the
paper's measures stand SI-SDR, STOI and PESQ, word errors and likeness of the voice where somebody listens (--weights or
--judges), and noise that a codec must beat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from xcodec_lm.tasks.compare.ancestry import doubt
from xcodec_lm.tasks.compare.stages import corpus_key
from xcodec_lm.tasks.data.source_corpora import libritts_items
from xcodec_lm.tasks.eval import signal, spectral, wer
from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.plugins import SpeakerEmbedder, Transcriber
from xcodec_lm.tasks.eval.reconstruction import Domain, codec_delay, decoded
from xcodec_lm.tasks.eval.resynthesis import WORST_WER
from xcodec_lm.tasks.eval.speaker import similarity
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
HEARD_RATE = 16_000
"""Of what recognisers and judges of voices hear."""
RECORDINGS = "the recordings"
BESIDE = {"si_sdr": ("SI-SDR, dB", ".2f"), "stoi": ("STOI", ".3f"), "pesq": ("PESQ", ".2f")}
"""Measures that are not the paper's; higher is better."""


def stages(place: Place, settings: Settings) -> list[Stage]:
    """prepare, score."""
    prepare = _demo_clips if settings.demo else _real_clips
    return [
        Stage("prepare", {"seed": settings.seed, "data": _data_key(settings)},
              lambda folder, _: prepare(place, settings, folder), files=(LIST,)),
        Stage("score", {"codecs": named_codecs.fingerprints(settings), "seed": settings.seed,
                        "weights": dict(settings.weights), "missing": list(signal.missing_libraries()),
                        "judges": settings.judges and str(settings.judges)},
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
    clips = [Clip(item.id, item.audio, 0.0, "test", {key: item.keys[key] for key in ("speaker", "text")})
             for item in items]  # fmt: skip
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
        "texts": {clip.id: str(clip.row.get("text") or "") for clip in chosen},
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
    ears = _Ears(*evaluators.listeners(settings, settings.judges), prepared["texts"], settings.seed)
    names = [name for name in BESIDE if signal.LIBRARIES.get(name) not in signal.missing_libraries()]
    delays = {name: codec_delay(codec, Domain("speech", clips), rate) for name, codec in codecs.items()}
    found: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    noises: dict[str, list[dict[str, float]]] = defaultdict(list)
    for clip in track(clips, "reconstructing", len(clips)):
        target = load_audio(clip.path, rate).wav[0]
        ears.listen(RECORDINGS, clip, target, target, rate)
        for name, codec in codecs.items():
            tokens = codec.encode(load_audio(clip.path, codec.spec.sample_rate).wav[None])
            for n_q in named_codecs.layers_of(codec, LAYERS):
                estimate = signal.shift(decoded(codec, tokens, n_q, rate, len(target)), delays[name])
                found[name, n_q].append(_measure(estimate, target, rate, names, utmos))
                ears.listen((name, n_q), clip, estimate, target, rate)
        for name, noise in anchors(target, rate).items():
            noises[name].append(_measure(noise, target, rate, names, utmos))
            ears.listen(name, clip, noise, target, rate)
    metrics = [
        Metric("mel", "mel[hifigan80]", ".3f", "min"), Metric("stft", "STFT[ln_stft]", ".3f", "min"),
        Metric("utmos", judged("UTMOS", utmos), ".2f", "max", utmos is not None),
        *(Metric(name, *BESIDE[name], "max", stands_for_paper=False) for name in names), *ears.metrics(),
    ]  # fmt: skip
    values = {key: _columns(rows) for key, rows in found.items()}
    rows = [
        row(
            name,
            _cells(columns, units, metrics, settings.seed) | ears.cells((name, n_q)),
            f"nq {n_q}",
            _paper_row(codecs[name], n_q),
        )
        for (name, n_q), columns in values.items()
    ]
    rows += [
        row(name, _cells(_columns(measured), units, metrics, settings.seed) | ears.cells(name), reference=True)
        for name, measured in noises.items()
    ]
    if ears.judges:
        rows.append(row(RECORDINGS, ears.cells(RECORDINGS), reference=True))
    first = next(iter(codecs))
    differences = [
        difference(metric, f"{first}, nq {n_q}", f"{other}, nq {n_q}", difference_estimate(
            values[first, n_q][metric.key], values[other, n_q][metric.key], units, settings.seed
        ))
        for other in list(codecs)[1:] for n_q in LAYERS if (first, n_q) in values and (other, n_q) in values
        for metric in metrics if metric.key in values[first, n_q]
    ]  # fmt: skip
    differences += [
        one for other in list(codecs)[1:] for n_q in LAYERS if (first, n_q) in values and (other, n_q) in values
        for one in ears.differences((first, n_q), (other, n_q), codecs, clips)
    ]  # fmt: skip
    return scores(
        metrics, rows, differences,
        [("recordings", "1000 clips of LibriTTS", f"{len(clips)} clips of {prepared['origin']}"),
         *named_codecs.codec_settings(codecs)],
        [f"the recordings are {prepared['origin']}, not LibriTTS"] if settings.demo else [],
        {"distances, SI-SDR, STOI, PESQ": {}, **({} if utmos is None else evaluators.facts({"utmos": utmos})),
         **evaluators.facts(ears.judges)},
        [f"{len(clips)} clips of {prepared['of']} of {prepared['origin']}, {len(set(units))} speakers, at {rate} Hz.",
         *(f"{name} needs {signal.LIBRARIES[name]}, which is not installed: pip install 'xcodec-lm[eval]'."
           for name in signal.LIBRARIES if name not in names)],
    )  # fmt: skip


class _Ears:
    """Who hears words and voices in reconstructions, and what they heard."""

    def __init__(
        self, recogniser: Transcriber | None, voices: SpeakerEmbedder | None, texts: Mapping[str, str], seed: int
    ):
        self.recogniser, self.voices, self.texts, self.seed = recogniser, voices, texts, seed
        self.judges = {key: one for key, one in (("wer", recogniser), ("sim", voices)) if one is not None}
        self.pairs: dict[Any, list[wer.Pair]] = defaultdict(list)
        self.likeness: dict[Any, list[tuple[str, float]]] = defaultdict(list)

    def listen(self, system: Any, clip: Clip, estimate: Tensor, target: Tensor, rate: int) -> None:
        """Hears a reconstruction (N,) of a recording (N,), both at `rate`."""
        if not self.judges:
            return
        heard, real = (
            np.clip(resample(wav.numpy(), rate, HEARD_RATE), -1, 1).astype(np.float32) for wav in (estimate, target)
        )
        speaker = str(clip.row["speaker"])
        if self.recogniser is not None and wer.normalise(self.texts[clip.id]):
            text = self.recogniser.transcribe([heard])[0]
            self.pairs[system].append(wer.Pair(clip.id, self.texts[clip.id], text, speaker))
        if self.voices is not None and system != RECORDINGS:
            self.likeness[system].append((speaker, float(similarity(self.voices, [heard], [real])[0])))

    def metrics(self) -> list[Metric]:
        """The columns."""
        shown = {"wer": ("WER", ", %", ".1f", "min"), "sim": ("SIM to the recording", "", ".3f", "max")}
        return [
            Metric(key, judged(shown[key][0], judge) + shown[key][1], shown[key][2], shown[key][3], False)  # type: ignore[arg-type]
            for key, judge in self.judges.items()
        ]

    def cells(self, system: Any) -> Facts:
        """Its figures."""
        found: Facts = {}
        if self.recogniser is not None:
            pairs = self.pairs[system]
            found["wer"] = empty("no recording has a text") if not pairs else figure(
                wer.rate_estimate(wer.word_counts(pairs), pairs, self.seed), 100)  # fmt: skip
        if self.voices is not None:
            heard = self.likeness[system]
            found["sim"] = empty("the recordings themselves") if not heard else figure(
                mean_estimate([value for _, value in heard], [who for who, _ in heard], self.seed))  # fmt: skip
        return found

    def differences(self, one: Any, other: Any, codecs: Mapping[str, Any], clips: Sequence[Clip]) -> list[Facts]:
        """One system minus another, paired."""
        found = []
        for metric in self.metrics():
            if metric.key == "wer":
                pairs = self.pairs[one]
                if not pairs:
                    continue
                counts = [wer.word_counts(self.pairs[system]) for system in (one, other)]
                estimate, scale = wer.difference_estimate(*counts, pairs, self.seed), 100.0
            else:
                a, b = ([value for _, value in self.likeness[system]] for system in (one, other))
                units = [who for who, _ in self.likeness[one]]
                estimate, scale = difference_estimate(a, b, units, self.seed), 1.0
            doubts = [doubt(self.judges[metric.key], codecs[name], name, clips) for name, _ in (one, other)]
            names = [f"{name}, nq {n_q}" for name, n_q in (one, other)]
            why = next((text for text in [*doubts, self._deaf(metric.key)] if text), "")
            found.append(difference(metric, *names, estimate, scale, why))
        return found

    def _deaf(self, key: str) -> str:
        pairs = self.pairs[RECORDINGS]
        rate = wer.rate_estimate(wer.word_counts(pairs), pairs, self.seed).value if key == "wer" else 0.0
        return f"the recogniser errs on {rate:.0%} of the words of recordings" if rate > WORST_WER else ""


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
