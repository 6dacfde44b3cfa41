"""Losses of codec training. Each is a mean over the clips of a batch, so it does not depend on how clips are grouped.

Source: arXiv 2408.17175 section 3 and the public training code for the terms; Parallel WaveGAN (arXiv 1910.11480) for
the STFT loss; DAC (arXiv 2306.06546) for the multi-resolution mel loss; LSGAN (arXiv 1611.04076) for the adversarial.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xcodec_lm.codec.nn.spectra import mel_spectrum, pqmf_bands, stft_magnitude

SUBBAND_SHAPES = ((128, 20, 80), (256, 40, 120), (256, 50, 200))
"""(n_fft, hop, window) of the STFT loss on PQMF bands, from the public training code."""

STFT_FLOOR, MEL_FLOOR = 1e-3, 5e-3
"""Magnitudes below which log spectra are not compared: those of white noise at -86 dB. The logarithm's gradient grows
without bound towards silence and would drown that of all that can be heard."""


def stft_loss(estimate: Tensor, target: Tensor, shapes: list[tuple[int, int, int]]) -> Tensor:
    """Spectral convergence plus L1 of log magnitudes, mean over resolutions.

    Args:
        estimate: (B, N).
        target: (B, N).
        shapes: (n_fft, hop, window) of each resolution.
    """
    total = estimate.new_zeros(())
    for n_fft, hop, window in shapes:
        x = stft_magnitude(estimate, n_fft, hop, window)
        y = stft_magnitude(target, n_fft, hop, window)
        # One norm per clip: over the whole batch, loud clips would outweigh quiet ones.
        least = 10 * STFT_FLOOR * y[0].numel() ** 0.5
        convergence = (y - x).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1).clamp_min(least)
        logs = x.clamp_min(STFT_FLOOR).log() - y.clamp_min(STFT_FLOOR).log()
        total = total + convergence.mean() + logs.abs().mean()
    return total / len(shapes)


def full_band_shapes(windows: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(n_fft, hop, window): the next power of two, a quarter of the window, the window."""
    return [(1 << (window - 1).bit_length(), window // 4, window) for window in windows]


def subband_stft_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """The STFT loss on six PQMF bands of (B, N) signals."""
    return stft_loss(pqmf_bands(estimate).flatten(0, 1), pqmf_bands(target).flatten(0, 1), list(SUBBAND_SHAPES))


def mel_loss(
    estimate: Tensor, target: Tensor, sample_rate: int, windows: tuple[int, ...], bands: tuple[int, ...]
) -> Tensor:
    """L1 between log10 mel magnitudes, mean over resolutions.

    Args:
        estimate: (B, N).
        target: (B, N).
        sample_rate: in Hz.
        windows: window of each resolution.
        bands: mel bands of each.
    """
    total = estimate.new_zeros(())
    for window, count in zip(windows, bands, strict=True):
        x = mel_spectrum(estimate, sample_rate, window, count)
        y = mel_spectrum(target, sample_rate, window, count)
        total = total + (x.clamp_min(MEL_FLOOR).log10() - y.clamp_min(MEL_FLOOR).log10()).abs().mean()
    return total / len(windows)


Maps = list[list[Tensor]]
"""Feature maps of each discriminator; the last of each is its verdict."""


def generator_adversarial_loss(fake: Maps) -> Tensor:
    """Squared distance of the verdicts on reconstructions to 1, mean over discriminators."""
    return torch.stack([(1 - maps[-1]).square().mean() for maps in fake]).mean()


def discriminator_loss(real: Maps, fake: Maps) -> Tensor:
    """Squared distance of the verdicts to 1 on recordings and to 0 on reconstructions, mean over discriminators."""
    return torch.stack(
        [(1 - r[-1]).square().mean() + f[-1].square().mean() for r, f in zip(real, fake, strict=True)]
    ).mean()


def feature_matching_loss(real: Maps, fake: Maps) -> Tensor:
    """L1 between feature maps, mean over all maps but the verdicts."""
    terms = [
        (x - y.detach()).abs().mean()
        for r, f in zip(real, fake, strict=True)
        for y, x in zip(r[:-1], f[:-1], strict=True)
    ]
    return torch.stack(terms).mean()
