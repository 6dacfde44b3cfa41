"""Log-mel filter banks by Kaldi's definition, and what w2v-BERT 2.0 is shown of them.

transformers computes these with torchaudio, which this project does without. Arithmetic is in double precision, so the
result does not depend on the batch or on the device.

Source: Kaldi's feature-fbank and mel-computations (https://kaldi-asr.org/doc/feat.html), with the settings of
`transformers.SeamlessM4TFeatureExtractor`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from xcodec_lm.configs.errors import AudioError

SAMPLE_RATE = 16_000
FRAME_SAMPLES, SHIFT_SAMPLES, FFT_SAMPLES = 400, 160, 512
BANDS, LOWEST_HZ, HIGHEST_HZ = 80, 20.0, 8000.0
PREEMPHASIS = 0.97
FLOOR = 2.0**-23
"""Least energy before the logarithm: Kaldi's, the spacing of single-precision numbers at 1."""
STACK = 2
"""Frames of the filter bank that make one of w2v-BERT's."""
BLOCK_FRAMES = 4096
"""Frames that are transformed at once."""


def log_mel(wav: Tensor) -> Tensor:
    """Log energies of 80 mel bands every 10 ms.

    Args:
        wav: (B, N) in [-1, 1] at 16 kHz, N at least 400.

    Returns:
        (B, 1 + (N - 400) // 160, 80) float64; no padding, so the last samples may be in no frame.

    Raises:
        AudioError: fewer samples than one frame has.
    """
    if wav.shape[1] < FRAME_SAMPLES:
        raise AudioError(f"{wav.shape[1]} samples are fewer than the {FRAME_SAMPLES} of one filter-bank frame")
    window, bank = _window().to(wav.device), _mel_bank().to(wav.device)
    parts = []
    for frames in wav.unfold(1, FRAME_SAMPLES, SHIFT_SAMPLES).split(BLOCK_FRAMES, dim=1):
        frames = frames.double() * 2**15  # Kaldi's scale is that of 16-bit integers
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * window, FFT_SAMPLES)  # (B, T, 257)
        energies = (spectrum.real.square() + spectrum.imag.square()) @ bank
        parts.append(energies.clamp(min=FLOOR).log())
    return torch.cat(parts, dim=1)


def w2v_bert_features(wav: Tensor) -> Tensor:
    """The input of w2v-BERT 2.0.

    Args:
        wav: (B, N) in [-1, 1] at 16 kHz, padded as the caller wants it; every row is normalised, band by band, by its
            own mean and deviation over all of N.

    Returns:
        (B, T, 160) float32, T = (1 + (N - 400) // 160) // 2.

    Raises:
        AudioError: fewer than 560 samples.
    """
    bands = log_mel(wav)
    if bands.shape[1] < STACK:
        raise AudioError(f"{wav.shape[1]} samples are too few for one frame of w2v-BERT, which needs 560")
    bands = (bands - bands.mean(dim=1, keepdim=True)) / (bands.var(dim=1, keepdim=True) + 1e-7).sqrt()
    whole = bands.shape[1] // STACK
    return bands[:, : whole * STACK].reshape(len(wav), whole, STACK * BANDS).float()


@functools.cache
def _window() -> Tensor:
    """Povey's window: a Hann window to the power 0.85, zero at both ends."""
    phase = torch.arange(FRAME_SAMPLES, dtype=torch.float64) * (2 * math.pi / (FRAME_SAMPLES - 1))
    return (0.5 - 0.5 * phase.cos()).pow(0.85)


@functools.cache
def _mel_bank() -> Tensor:
    """(257, 80) triangles that are straight on the mel axis, with peaks of 1."""

    def mel(hz: Tensor) -> Tensor:
        return 1127 * (1 + hz / 700).log()

    lowest, highest = mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64)).tolist()
    edges = torch.linspace(lowest, highest, BANDS + 2, dtype=torch.float64)
    bins = torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * (SAMPLE_RATE / FFT_SAMPLES)
    position = mel(bins)[:, None]  # (257, 1)
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    return torch.minimum((position - left) / (peak - left), (right - position) / (right - peak)).clamp(min=0)
