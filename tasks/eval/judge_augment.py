"""Variations of training clips, so that a judge heeds words and speakers, not level, band, noise or pace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xcodec_lm.codec.audio import resample
from xcodec_lm.configs.evaluators import AugmentConfig
from xcodec_lm.tasks.eval.judge_audio import LOW_PASS_HZ, SAMPLE_RATE, SILENT_RMS

STEP = 160
"""Samples of a piece (10 ms) when quiet places are looked for."""
FFT_STEP = 4096
"""Transforms have a multiple of this length."""
EDGE_HZ = 200.0
"""Width of the low-pass's edge."""


def augment(wav: Tensor, config: AugmentConfig, rng: torch.Generator) -> Tensor:
    """A varied copy of a clip.

    Args:
        wav: (N,) float32 at 16 kHz.
        config: what may be done, and how often.
        rng: whose draws decide; its seed is keyed by (seed, step, item).

    Returns:
        (N',) float32; longer or shorter by speed and pauses.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=rng))

    factor = uniform(1 - config.speed, 1 + config.speed)
    if config.speed:
        wav = torch.from_numpy(resample(wav.numpy(), round(SAMPLE_RATE * factor), SAMPLE_RATE))
    if uniform(0, 1) < config.pause_share:
        wav = add_pauses(wav, [uniform(0, config.longest_pause_s) for _ in range(3)], uniform(0, 1))
    tilt, cut = uniform(-config.tilt_db, config.tilt_db), uniform(0, 1) < config.low_pass_share
    noisy, noise_db, colour = uniform(0, 1) < config.noise_share, uniform(*config.noise_db), uniform(0, 2)
    gain_db = uniform(-config.gain_db, config.gain_db)
    size = -(-len(wav) // FFT_STEP) * FFT_STEP  # sizes with large prime factors take many times as long
    spectrum = torch.fft.rfft(wav, size)
    hz = torch.linspace(0, SAMPLE_RATE / 2, len(spectrum))
    if noisy:
        noise = torch.fft.rfft(torch.randn(size, generator=rng)) * (hz.clamp_min(50) / 50) ** (-colour / 2)
        level = spectrum.abs().square().mean() / noise.abs().square().mean()
        spectrum = spectrum + noise * (level * 10 ** (-noise_db / 10)).sqrt()
    spectrum = spectrum * 10 ** (tilt / 20 * (hz / (SAMPLE_RATE / 2) - 0.5))
    if cut:
        spectrum = spectrum * ((LOW_PASS_HZ - hz) / EDGE_HZ).clamp(0, 1)
    wav = torch.fft.irfft(spectrum, size)[: len(wav)] * 10 ** (gain_db / 20)
    return wav / wav.abs().max().clamp_min(1)


def add_pauses(wav: Tensor, seconds: list[float], place: float) -> Tensor:
    """(N,) with digital silence before it, in a quiet place of it, and after it.

    Args:
        wav: the clip.
        seconds: of the three pauses.
        place: in [0, 1): which of the quiet places.
    """
    before, within, after = (wav.new_zeros(round(value * SAMPLE_RATE)) for value in seconds)
    pieces = len(wav) // STEP
    if pieces < 3:
        return torch.cat([before, wav, after])
    rms = wav[: pieces * STEP].view(pieces, STEP).square().mean(dim=1).sqrt()
    quiet = (rms <= max(SILENT_RMS, 0.03 * float(rms.max()))).nonzero()[:, 0]
    if not len(quiet):
        return torch.cat([before, wav, after])
    cut = int(quiet[math.floor(place * len(quiet))]) * STEP + STEP // 2
    return torch.cat([before, wav[:cut], within, wav[cut:], after])
