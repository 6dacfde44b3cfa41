"""How far a reconstruction is from its recording, and what a distance must be compared with.

A distance alone says little: silence and noise have one too. The anchors here are what a codec must beat; noise shaped
by the recording's own eight-band envelope is the hardest, since it has the right loudness at every moment.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xcodec_lm.codec.nn.spectra import mel_spectrum, stft_magnitude
from xcodec_lm.codec.runtime.order import generator

MEL_WINDOW, MEL_BANDS = 1024, 80
STFT_WINDOWS = (512, 1024, 2048)
LOG_FLOOR = 1e-5
ENVELOPE_BANDS = 8


def mel_distance(estimate: Tensor, target: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of natural-log mel magnitudes (80 bands, window 1024, hop 256).

    Args:
        estimate: (N,).
        target: (N,).
        sample_rate: in Hz.
    """
    x, y = (mel_spectrum(wav[None], sample_rate, MEL_WINDOW, MEL_BANDS, slaney=True) for wav in (estimate, target))
    return float((x.clamp_min(LOG_FLOOR).log() - y.clamp_min(LOG_FLOOR).log()).abs().mean())


def stft_distance(estimate: Tensor, target: Tensor) -> float:
    """Mean absolute difference of natural-log STFT magnitudes, over windows 512, 1024 and 2048, of (N,) signals."""
    total = 0.0
    for window in STFT_WINDOWS:
        x, y = (stft_magnitude(wav[None], window, window // 4, window) for wav in (estimate, target))
        total += float((x.clamp_min(LOG_FLOOR).log() - y.clamp_min(LOG_FLOOR).log()).abs().mean())
    return total / len(STFT_WINDOWS)


def distances(estimate: Tensor, target: Tensor, sample_rate: int) -> dict[str, float]:
    """Every distance of this module by name, for (N,) signals."""
    return {"mel": mel_distance(estimate, target, sample_rate), "stft": stft_distance(estimate, target)}


def anchors(target: Tensor, sample_rate: int, seed: int = 0) -> dict[str, Tensor]:
    """Signals that a reconstruction of `target` (N,) must beat, by name."""
    return {
        "silence": torch.zeros_like(target),
        "white noise": white_noise(target, seed),
        "shaped noise": shaped_noise(target, sample_rate, seed),
    }


def white_noise(target: Tensor, seed: int = 0) -> Tensor:
    """White noise at the level of `target` (N,)."""
    noise = torch.randn(target.shape, generator=generator(seed, "white noise", len(target))).to(target)
    return noise * target.square().mean().sqrt()


def shaped_noise(target: Tensor, sample_rate: int, seed: int = 0) -> Tensor:
    """White noise with the envelope of `target` (N,) in eight mel-spaced bands, followed in steps of 8 ms.

    Both signals are cut into STFT frames; in every band and frame the noise gets the energy of the target.
    """
    window, hop = 512, 128
    if len(target) < window:
        return shaped_noise(torch.nn.functional.pad(target, (0, window - len(target))), sample_rate, seed)[
            : len(target)
        ]
    hann = torch.hann_window(window)
    noise = white_noise(target, seed)
    x, n = (torch.stft(wav, window, hop, window, hann, return_complex=True) for wav in (target, noise))
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    mels = 2595 * torch.log10(1 + torch.linspace(0, sample_rate / 2, window // 2 + 1) / 700)
    band = (mels / top * ENVELOPE_BANDS).long().clamp_max(ENVELOPE_BANDS - 1)  # (F,)
    energy_x = torch.zeros(ENVELOPE_BANDS, x.shape[1]).index_add_(0, band, x.abs().square())
    energy_n = torch.zeros(ENVELOPE_BANDS, n.shape[1]).index_add_(0, band, n.abs().square())
    gain = (energy_x / energy_n.clamp_min(1e-12)).sqrt()[band]
    return torch.istft(n * gain, window, hop, window, hann, length=len(target))
