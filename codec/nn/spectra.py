"""Spectra that losses, discriminators and distances share: STFT magnitudes, mel filters, PQMF bands."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def stft_magnitude(wav: Tensor, n_fft: int, hop: int, window: int, normalized: bool = False) -> Tensor:
    """Magnitudes of a centred STFT with a Hann window.

    Args:
        wav: (B, N).
        n_fft: length of the transform, at least `window`.
        hop: samples between frames.
        window: length of the window.
        normalized: divide by the square root of the window's energy.

    Returns:
        (B, n_fft / 2 + 1, frames); the smallest value is 1e-7 so that logarithms and gradients are finite.
    """
    hann = torch.hann_window(window, device=wav.device, dtype=wav.dtype)
    if wav.shape[-1] <= n_fft // 2:  # reflection needs more samples than it mirrors
        wav = F.pad(wav, (0, n_fft // 2 + 1 - wav.shape[-1]))
    spectrum = torch.stft(wav, n_fft, hop, window, hann, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    if normalized:
        power = power / hann.square().sum()
    return power.clamp_min(1e-14).sqrt()


@functools.lru_cache(maxsize=64)
def mel_filters(sample_rate: int, n_fft: int, bands: int, device: torch.device, slaney: bool) -> Tensor:
    """Triangular mel filters (bands, n_fft / 2 + 1) between 0 Hz and half the sample rate.

    Args:
        sample_rate: in Hz.
        n_fft: length of the transform.
        bands: number of filters.
        device: where they are used.
        slaney: filters of equal area, as librosa's; else of equal height, as HTK's.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)  # HTK's mel scale
    freqs = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (freqs - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - freqs) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp_min(0)
    if slaney:
        filters = filters * (2 / (edges[2:] - edges[:-2]))[:, None]
    return filters.float().to(device)


def mel_spectrum(wav: Tensor, sample_rate: int, window: int, bands: int, slaney: bool = False) -> Tensor:
    """Mel magnitudes (B, bands, frames) of wav (B, N) with a window of `window` and a hop of a quarter of it."""
    magnitude = stft_magnitude(wav, window, max(1, window // 4), window)
    return mel_filters(sample_rate, window, bands, wav.device, slaney) @ magnitude


@functools.lru_cache(maxsize=8)
def _pqmf_filters(bands: int, taps: int, cutoff: float, beta: float, device: torch.device) -> Tensor:
    """Analysis filters (bands, 1, taps + 1): a Kaiser-windowed low-pass, modulated by cosines.

    Source: Nguyen, "Near-perfect-reconstruction pseudo-QMF banks", IEEE Trans. Signal Processing 42(1), 1994.
    """
    n = torch.arange(taps + 1, dtype=torch.float64) - taps / 2
    prototype = (
        cutoff * torch.sinc(cutoff * n) * torch.kaiser_window(taps + 1, periodic=False, beta=beta, dtype=torch.float64)
    )
    k = torch.arange(bands, dtype=torch.float64)[:, None]
    phase = (2 * k + 1) * math.pi / (2 * bands) * n + (-1) ** k * math.pi / 4
    return (2 * prototype * torch.cos(phase))[:, None].float().to(device)


def pqmf_bands(wav: Tensor, bands: int = 6, taps: int = 62, cutoff: float = 0.1, beta: float = 9.0) -> Tensor:
    """Critically sampled bands of a signal.

    Args:
        wav: (B, N).
        bands: number of bands and decimation factor.
        taps: length of the prototype filter, less one.
        cutoff: of the prototype, as a fraction of half the sample rate; about 1 / (2 bands).
        beta: of the Kaiser window.

    Returns:
        (B, bands, N / bands).
    """
    filters = _pqmf_filters(bands, taps, cutoff, beta, wav.device)
    return F.conv1d(F.pad(wav[:, None], (taps // 2, taps // 2)), filters, stride=bands)
