"""Per-clip quality of codecs' reconstructions, by domain, beside anchors: the figures, without any mean taken.

All codecs of a call are measured on the same clips at one rate, the lowest that any of them decodes to, so that their
figures can be paired.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, resample
from xcodec_lm.codec.clips import Clip, Split, read_manifests
from xcodec_lm.codec.distances import anchors, distances
from xcodec_lm.codec.evaluate import CodebookUse, reconstruct
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.check import GROUPS
from xcodec_lm.tasks.eval import signal

N_QS = (1, 2, 4, 8)
LOWER_IS_BETTER = {"mel": True, "stft": True, "si_sdr": False, "stoi": False, "pesq": False}
"""Every measure of reconstructions, and which way is better."""
CLIPS_FOR_DELAY = 8

Values = dict[str, np.ndarray]
"""Measure -> one value a clip; NaN where the measure could not judge the clip."""


@dataclass(frozen=True)
class Domain:
    """The clips of one kind of audio.

    Attributes:
        name: stem of its manifest.
        clips: of the chosen split.
    """

    name: str
    clips: list[Clip]

    @property
    def units(self) -> list[str]:
        """What each clip is resampled with."""
        return [unit_of(clip)[1] for clip in self.clips]

    @property
    def unit(self) -> str:
        """What the units are: speaker, piece, recording, or clip."""
        return Counter(unit_of(clip)[0] for clip in self.clips).most_common(1)[0][0]

    @property
    def speech(self) -> bool:
        """Whether the clips are speech: their rows say which text is spoken."""
        return any(clip.row.get("text") for clip in self.clips)


@dataclass(frozen=True)
class Reconstructions:
    """One codec on one domain.

    Attributes:
        values: n_q -> measure -> values.
        use: of the codebooks.
        delay_samples: by which the codec's output is late; taken out before measuring.
    """

    values: dict[int, Values]
    use: CodebookUse
    delay_samples: int


def unit_of(clip: Clip) -> tuple[str, str]:
    """The kind and the name of what a clip is resampled with: its speaker, piece or recording, else itself."""
    for kind in GROUPS:
        if clip.row.get(kind):
            return kind, f"{kind} {clip.row[kind]}"
    return "clip", clip.id


def read_domains(manifests: Sequence[Path], split: Split | None) -> list[Domain]:
    """The clips of manifests by domain; manifests of one name make one domain.

    Raises:
        XcodecLMError: a manifest cannot be read, or has no row of the split.
    """
    read_manifests(manifests)  # ids are unique over all of them
    found: dict[str, list[Clip]] = {}
    for manifest in manifests:
        clips = read_manifests([manifest], split)
        if not clips:
            raise XcodecLMError(f"{manifest}: no row has split: {split}", "choose another with --split")
        found.setdefault(Path(manifest).stem, []).extend(clips)
    return [Domain(name, clips) for name, clips in found.items()]


@torch.inference_mode()
def measure(
    codecs: Sequence[AudioTokenizer], domain: Domain, n_qs: Sequence[int], clip_s: float | None = None
) -> tuple[list[Reconstructions], dict[str, Values], float]:
    """Encodes, decodes and measures every clip of a domain with every codec.

    Args:
        codecs: in eval mode.
        domain: whose clips.
        n_qs: numbers of layers, each at most every codec's.
        clip_s: take at most this much of each clip.

    Returns:
        What each codec does, the anchors by name, and the seconds of audio.
    """
    rate = min(codec.spec.output_sample_rate for codec in codecs)
    names = measures(domain)
    delays = [codec_delay(codec, domain, rate, clip_s) for codec in codecs]
    uses = [CodebookUse(codec) for codec in codecs]
    values: list[dict[int, list[dict[str, float]]]] = [{n_q: [] for n_q in n_qs} for _ in codecs]
    anchor_values: dict[str, list[dict[str, float]]] = {}
    seconds = 0.0
    for clip in track(domain.clips, f"measuring {domain.name}", len(domain.clips)):
        target = load_audio(clip.path, rate, duration_s=clip_s).wav[0]
        seconds += len(target) / rate
        for codec, use, delay, table in zip(codecs, uses, delays, values, strict=True):
            tokens = codec.encode(load_audio(clip.path, codec.spec.sample_rate, duration_s=clip_s).wav[None])
            use.add(tokens)
            for n_q, rows in table.items():
                estimate = signal.shift(decoded(codec, tokens, n_q, rate, len(target)), delay)
                rows.append(score(estimate, target, rate, names))
        for anchor, noise in anchors(target, rate).items():
            anchor_values.setdefault(anchor, []).append(score(noise, target, rate, names))
    results = [
        Reconstructions({n_q: _columns(rows) for n_q, rows in table.items()}, use, delay)
        for table, use, delay in zip(values, uses, delays, strict=True)
    ]
    return results, {name: _columns(rows) for name, rows in anchor_values.items()}, seconds


def measures(domain: Domain) -> tuple[str, ...]:
    """Measures of a domain: STOI and PESQ for speech alone, and only where their libraries are installed."""
    missing = signal.missing_libraries()
    spoken = [name for name, library in signal.LIBRARIES.items() if domain.speech and library not in missing]
    return ("mel", "stft", "si_sdr", *spoken)


def score(estimate: Tensor, target: Tensor, sample_rate: int, names: Sequence[str]) -> dict[str, float]:
    """The measures of one estimate of one clip, both (N,)."""
    row = distances(estimate, target, sample_rate) | {"si_sdr": signal.si_sdr(estimate, target)}
    if "stoi" in names:
        row["stoi"] = signal.stoi(estimate, target, sample_rate)
    if "pesq" in names:
        row["pesq"] = signal.pesq(estimate, target, sample_rate)
    return row


@torch.inference_mode()
def codec_delay(codec: AudioTokenizer, domain: Domain, rate: int, clip_s: float | None = None) -> int:
    """Samples at `rate` by which a codec's output is late, within a hop; 0 unless most clips agree on another.

    A delay belongs to the codec: one found for each clip would flatter a codec that has lost the phase.
    """
    hop = math.ceil(codec.spec.hop_samples * rate / codec.spec.sample_rate)
    lags = []
    for clip in domain.clips[:: max(1, len(domain.clips) // CLIPS_FOR_DELAY)][:CLIPS_FOR_DELAY]:
        target = load_audio(clip.path, rate, duration_s=clip_s).wav[0]
        tokens = codec.encode(load_audio(clip.path, codec.spec.sample_rate, duration_s=clip_s).wav[None])
        lags.append(signal.find_lag(decoded(codec, tokens, tokens.spec.n_q, rate, len(target)), target, hop))
    lag, votes = Counter(lags).most_common(1)[0]
    return lag if votes * 2 > len(lags) else 0


def decoded(codec: AudioTokenizer, tokens, n_q: int, rate: int, samples: int) -> Tensor:
    """Audio (N,) of one row of tokens with `n_q` layers, at `rate` and of so many samples."""
    own = codec.spec.output_sample_rate
    wav = reconstruct(codec, tokens, n_q, math.ceil(samples * own / rate))
    return signal.fit_length(torch.from_numpy(resample(wav.numpy(), own, rate)), samples)


def _columns(rows: list[dict[str, float]]) -> Values:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
