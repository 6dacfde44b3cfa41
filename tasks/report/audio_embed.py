"""Audio inside a page: a data URI, and the level that loudness matching needs.

OGG Opus where it takes the rate, OGG Vorbis at other rates, 16-bit WAV where libsndfile was built without both. At the
rate chosen here Opus takes 70 kbit/s, which listeners do not tell from the original; a third of that would do for a
demonstration, but here codecs are judged.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile as sf

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
VORBIS_RATES = range(8000, 192001)
"""libvorbis crashes on rates far outside: https://github.com/bastibe/python-soundfile/issues/187."""
OPUS_LEVEL = 0.75
"""libsndfile maps 0 to 256 kbit/s and 1 to 6 kbit/s for one channel."""
BLOCK_SAMPLES = 1 << 15
"""libvorbis overruns its stack when minutes come in one call: https://github.com/libsndfile/libsndfile/issues/1095."""
SILENT_RMS = 1e-4
"""Level (-80 dB) below which a recording takes no part in loudness matching."""
LARGEST_CUT = 0.25
"""Matching lowers by at most 12 dB, lest one faint recording make all others inaudible."""


@dataclass(frozen=True)
class EmbeddedAudio:
    """A recording as the page holds it.

    Attributes:
        uri: `data:` URI.
        mime: its type, with the codec, for `canPlayType`.
        duration_s: in seconds.
        rms: root mean square over the whole recording, full scale 1.
        clipped: samples that lay beyond full scale.
    """

    uri: str
    mime: str
    duration_s: float
    rms: float
    clipped: int


def as_signal(wav: Any) -> np.ndarray:
    """A (N,) float32 array from numpy or torch, with axes of size 1 dropped.

    Raises:
        ValueError: more than one axis is longer than 1.
    """
    if hasattr(wav, "detach"):
        wav = wav.detach().cpu().float()
    signal = np.asarray(wav, dtype=np.float32)
    if signal.size != max(signal.shape, default=1):
        raise ValueError(f"shape {signal.shape} is not one channel of audio")
    return signal.reshape(-1)  # (N,)


def why_unplayable(signal: np.ndarray) -> str:
    """What keeps a (N,) signal from being played, or an empty string."""
    if not len(signal):
        return "no samples"
    bad = int((~np.isfinite(signal)).sum())
    return f"{bad} of {len(signal)} samples are not finite numbers" if bad else ""


def embed(signal: np.ndarray, sample_rate: int) -> EmbeddedAudio:
    """A finite, non-empty (N,) float signal as a data URI; values beyond full scale are clipped and counted."""
    heard = np.clip(signal, -1, 1)
    data, mime = encode_audio(heard, sample_rate)
    return EmbeddedAudio(
        uri=data_uri(data, mime.replace(" ", "")),
        mime=mime,
        duration_s=len(signal) / sample_rate,
        rms=float(np.sqrt(np.mean(np.square(heard, dtype=np.float64)))),
        clipped=int((np.abs(signal) > 1).sum()),
    )


def encode_audio(
    signal: np.ndarray, sample_rate: int, subtypes: Sequence[str] = ("OPUS", "VORBIS")
) -> tuple[bytes, str]:
    """Audio as a file in memory.

    Args:
        signal: (N,) float, not empty.
        sample_rate: in Hz.
        subtypes: kinds of OGG to try, in this order; WAV comes last.

    Returns:
        The file and its MIME type.
    """
    signal = np.clip(signal, -1, 1)
    for subtype in subtypes:
        if sample_rate not in (OPUS_RATES if subtype == "OPUS" else VORBIS_RATES):
            continue
        level = OPUS_LEVEL if subtype == "OPUS" else None
        try:
            return _write(signal, sample_rate, "OGG", subtype, level), f"audio/ogg; codecs={subtype.lower()}"
        except (sf.LibsndfileError, ValueError):  # libsndfile was built without it
            continue
    return _write(signal, sample_rate, "WAV", "PCM_16", None), "audio/wav"


def matched_gains(levels: Sequence[float]) -> list[float]:
    """Volumes that make recordings equally loud.

    A browser can lower a volume but not raise it above 1, so all go down to the faintest that is not silent.

    Args:
        levels: RMS of each.

    Returns:
        A factor in [0.25, 1] for each.
    """
    audible = [level for level in levels if level > SILENT_RMS]
    target = min(audible, default=0.0)
    return [min(1.0, max(LARGEST_CUT, target / level)) if level > SILENT_RMS else 1.0 for level in levels]


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a `data:` URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _write(signal: np.ndarray, sample_rate: int, container: str, subtype: str, level: float | None) -> bytes:
    buffer = io.BytesIO()
    with sf.SoundFile(
        buffer, "w", sample_rate, channels=1, subtype=subtype, format=container, compression_level=level
    ) as file:
        for start in range(0, len(signal), BLOCK_SAMPLES):
            file.write(signal[start : start + BLOCK_SAMPLES])
    return buffer.getvalue()
