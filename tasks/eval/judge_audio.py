"""What judges of speech hear of a clip: guards, level, bandwidth, and log-mel frames normalised over the clip.

Level and bandwidth are matched because they say more about a recording's source than about its words or its speaker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec import fbank
from xcodec_lm.codec.audio import check_signal
from xcodec_lm.configs.errors import AudioError

SAMPLE_RATE = 16_000
SILENT_RMS = 1e-3
"""-60 dBFS. A quieter clip has no words and no speaker; recognisers invent some."""
LOW_PASS_HZ = 3800.0
"""Just below what recordings at 8 kHz hold."""
LEVEL_DBFS = -25.0
RANGE = 60 / 10 * math.log(10)
"""60 dB in natural log energy: what is further below the clip's peak counts as that far below."""
ACTIVE = 35 / 10 * math.log(10)
"""A frame within 35 dB of the loudest one is active; normalisation looks at these, so pauses do not move it."""
LEAST_SPREAD = 0.5
"""Smallest deviation that is divided by: steady sounds are not blown up."""


def check_clips(wavs: Sequence[np.ndarray]) -> list[Tensor]:
    """Clips as tensors; refuses what is no clip at 16 kHz.

    Args:
        wavs: (N,) float each, in [-1, 1].

    Returns:
        (N,) float32 each.

    Raises:
        AudioError: not one-dimensional, empty, not floating point, not finite, or beyond full scale.
    """
    clips = []
    for index, wav in enumerate(wavs):
        signal = np.asarray(wav)
        where = f"clip {index}"
        if signal.ndim != 1 or not np.issubdtype(signal.dtype, np.floating):
            raise AudioError(
                f"{where} must be a one-dimensional array of floats, got {signal.dtype} {signal.shape}",
                "mix channels down, and divide 16-bit integers by 32768",
            )
        if not len(signal):
            raise AudioError(f"{where} is empty, it has no samples")
        check_signal(signal, where)
        clips.append(torch.from_numpy(np.ascontiguousarray(signal, dtype=np.float32)))
    return clips


def is_silent(wav: Tensor) -> bool:
    """Whether (N,) is below -60 dBFS over all of it."""
    return float(wav.square().mean().sqrt()) < SILENT_RMS


def low_pass(wav: Tensor, highest_hz: float = LOW_PASS_HZ) -> Tensor:
    """(N,) without what lies above `highest_hz`; a raised-cosine edge of 200 Hz ends there."""
    spectrum = torch.fft.rfft(wav)
    hz = torch.linspace(0, SAMPLE_RATE / 2, len(spectrum))
    edge = ((highest_hz - hz) / 200).clamp(0, 1)
    return torch.fft.irfft(spectrum * (0.5 - 0.5 * torch.cos(math.pi * edge)), len(wav))


def set_level(wav: Tensor, dbfs: float = LEVEL_DBFS) -> Tensor:
    """(N,) at an RMS level over its active frames of 25 ms; silence stays silence."""
    size = min(len(wav), fbank.FRAME_SAMPLES)
    power = wav[: len(wav) // size * size].view(-1, size).square().mean(dim=1)  # (frames,)
    loudest = float(power.max())
    if loudest <= SILENT_RMS**2 * 1e-4:
        return wav
    active = power[power >= loudest * math.exp(-ACTIVE)].mean()
    return wav * (10 ** (dbfs / 20) / active.sqrt())


def match_channel(wav: Tensor) -> Tensor:
    """(N,) with the level and the bandwidth at which speakers are compared."""
    return set_level(low_pass(wav))


def bands_below(highest_hz: float) -> int:
    """How many of the 80 mel bands end at or below a frequency."""

    def mel(hz: float) -> float:
        return math.log(1 + hz / 700)

    share = (mel(highest_hz) - mel(fbank.LOWEST_HZ)) / (mel(fbank.HIGHEST_HZ) - mel(fbank.LOWEST_HZ))
    return math.floor(share * (fbank.BANDS + 1) + 1e-9) - 1


def features(wav: Tensor, bands: int) -> Tensor:
    """Log-mel frames every 10 ms for a recogniser, normalised over the clip.

    Every band loses its mean over the active frames; all are divided by one deviation, so that an empty band does not
    become as loud as a full one.

    Args:
        wav: (N,) at 16 kHz; fewer than 25 ms are padded with zeros.
        bands: the lowest so many of the 80.

    Returns:
        (T, bands) float32.
    """
    x, is_active = _log_mel(wav, bands)
    active = x[is_active]
    mean = active.mean(dim=0)
    return (x - mean) / (active - mean).square().mean().sqrt().clamp_min(LEAST_SPREAD)


def voice_features(wav: Tensor, bands: int) -> Tensor:
    """Log-mel frames for an embedder of speakers: active ones alone, with one mean and one deviation for all bands.

    Level goes, the balance of the bands stays: much of what tells voices apart is in their mean spectrum.

    Args:
        wav: (N,) at 16 kHz; fewer than 25 ms are padded with zeros.
        bands: the lowest so many of the 80.

    Returns:
        (T, bands) float32, T at least 1.
    """
    x, is_active = _log_mel(wav, bands)
    x = x[is_active]
    x = x - x.mean()
    return x / x.square().mean().sqrt().clamp_min(LEAST_SPREAD)


def _log_mel(wav: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """Frames (T, bands) with 60 dB of range, and which of them are active (T,)."""
    wav = torch.nn.functional.pad(wav, (0, max(0, fbank.FRAME_SAMPLES - len(wav))))
    x = fbank.log_mel(wav[None])[0, :, :bands].float()  # (T, bands)
    x = x.clamp_min(float(x.max()) - RANGE)
    energy = x.logsumexp(dim=1)
    return x, energy >= energy.max() - ACTIVE


def pad_frames(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (T_i, F) as (B, T, F) with zeros behind them, and their lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths
