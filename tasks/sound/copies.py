"""How near made sounds come to training clips, beside real recordings and beside true copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from xcodec_lm.codec.audio import resample
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.tasks.sound.captions import captions_of
from xcodec_lm.tasks.sound.nearest import Likeness, mel_image, nearest_by_mel, waveform_correlation

COPIES = 12
"""Training clips that go through each codec, to see how near a copy is."""
COPY_SHARE = 10
"""Per cent of the copies that lie below the line from which a sound counts as near as a copy."""


def find_copies(
    systems: Sequence[tuple[str, str, Sequence[Sequence[np.ndarray]], Sequence[np.ndarray]]],
    training: Sequence[Clip], known: Sequence[np.ndarray], known_vectors: np.ndarray, rate: int,
    codecs: Mapping[str, AudioTokenizer],
) -> tuple[dict[str, dict[str, Any]], dict[str, list[list[dict[str, Any]]]]]:  # fmt: skip
    """The nearest training clip of every sound, by mel spectrogram and by embedding.

    Args:
        systems: name, run, sounds of each sample and row, and vectors (R, dim) of unit length of each sample.
        training: clips.
        known: (N,) sound of each.
        known_vectors: (n, dim) of unit length.
        rate: of all sounds.
        codecs: by run.

    Returns:
        By system: how near its sounds come (`median`, `highest`, `sounds`, `copies`), copies of training clips
        through each codec among them; and for every sample and row the nearest clips with their likeness.
    """
    images = [mel_image(wav, rate) for wav in known]
    summary: dict[str, dict[str, Any]] = {}
    lines: dict[str, float] = {}
    count = min(COPIES, len(known))
    places = [index * len(known) // count for index in range(count)]
    for run, codec in codecs.items():
        copies = [_through(codec, known[place], rate) for place in places]
        values = [one.mel for one in nearest_by_mel([mel_image(wav, rate) for wav in copies], images)]
        lines[run] = float(np.percentile(values, COPY_SHARE))
        summary[f"{run}: training clips through the codec"] = _spread(values) | {"line": lines[run]}
    details: dict[str, list[list[dict[str, Any]]]] = {}
    for name, run, sets, vectors in systems:
        found = [nearest_by_mel([mel_image(wav, rate) for wav in wavs], images) for wavs in sets]
        values = [one.mel for likenesses in found for one in likenesses]
        line = lines.get(run, max(lines.values(), default=1.0))
        summary[name] = _spread(values) | {"copies": sum(value >= line for value in values)}
        details[name] = [
            [_described(one, wav, vector, training, known, known_vectors) for one, wav, vector in
             zip(likenesses, wavs, rows, strict=True)]
            for likenesses, wavs, rows in zip(found, sets, vectors, strict=True)
        ]  # fmt: skip
    return summary, details


def _through(codec: AudioTokenizer, wav: np.ndarray, rate: int) -> np.ndarray:
    """A clip as the codec gives it back."""
    spec = codec.spec
    given = torch.from_numpy(resample(wav, rate, spec.sample_rate))[None, None]
    with torch.inference_mode():
        back, lengths = codec.decode(codec.encode(given.to(getattr(codec, "device", "cpu"))))
    return resample(back[0, 0, : int(lengths[0])].float().cpu().numpy(), spec.output_sample_rate, rate)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": float(np.median(values)), "highest": float(np.max(values)), "sounds": len(values)}


def _described(
    found: Likeness, wav: np.ndarray, vector: np.ndarray, training: Sequence[Clip], known: Sequence[np.ndarray],
    known_vectors: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    cosines = known_vectors @ vector
    best = int(cosines.argmax())
    return {
        "id": training[found.index].id,
        "caption": next(iter(captions_of(training[found.index].row)), ""),
        "mel": found.mel,
        "waveform": waveform_correlation(wav, known[found.index]),
        "embedding_id": training[best].id,
        "embedding_caption": next(iter(captions_of(training[best].row)), ""),
        "embedding": float(cosines[best]),
    }
