"""Signal measures between a reconstruction and its recording: SI-SDR (ours), STOI and PESQ (through libraries).

A clip that a measure cannot judge gets NaN: it is counted as unscored, and nothing is put in its place.
"""

from __future__ import annotations

import importlib.util
import math
import warnings

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import resample

EPSILON = 1e-8
"""Of the target's energy: keeps a perfect estimate finite (80 dB)."""
LIBRARIES = {"stoi": "pystoi", "pesq": "pesq"}
"""Measure -> the library that computes it; both come with the extra `eval`."""
WIDEBAND, NARROWBAND = 16_000, 8_000
"""The two rates that P.862 knows, in Hz."""


def missing_libraries() -> tuple[str, ...]:
    """Libraries of this module that are not installed."""
    return tuple(name for name in LIBRARIES.values() if importlib.util.find_spec(name) is None)


def fit_length(wav: Tensor, samples: int) -> Tensor:
    """wav (N,) cut, or padded with zeros on the right, to `samples`."""
    return torch.nn.functional.pad(wav[:samples], (0, max(0, samples - len(wav))))


def si_sdr(estimate: Tensor, target: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB; higher is nearer.

    Both signals have their mean removed; the target is scaled by a = <estimate, target> / |target|^2, and the ratio is
    |a target|^2 / |a target - estimate|^2.

    Args:
        estimate: (N,), without delay against the target, see `find_lag`.
        target: (N,).

    Returns:
        The ratio, or NaN where either signal is silent: no scale is then the right one.

    Source: Le Roux et al. 2019 (arXiv 1811.02508), with zero means as there.
    """
    x, y = (wav.double() - wav.double().mean() for wav in (target, estimate))
    # Scaled to unit energy, so that the result does not depend on the level through EPSILON either.
    x_norm, y_norm = float(x.norm()), float(y.norm())
    floor = EPSILON * math.sqrt(len(x))
    if x_norm <= floor or y_norm <= floor:
        return math.nan
    correlation = float(torch.dot(x, y)) / (x_norm * y_norm)
    explained = min(1.0, correlation * correlation)
    return 10 * math.log10((explained + EPSILON) / (1 - explained + EPSILON))


def find_lag(estimate: Tensor, target: Tensor, most: int) -> int:
    """By how many samples `estimate` (N,) is late against `target` (N,), at most `most` either way.

    The place of the largest cross-correlation; of equal ones the nearest to none.
    """
    size = len(estimate) + len(target)
    spectra = [torch.fft.rfft(wav.double() - wav.double().mean(), size) for wav in (estimate, target)]
    correlation = torch.fft.irfft(spectra[0] * spectra[1].conj(), size)
    most = min(most, len(target) - 1)
    lags = sorted(range(-most, most + 1), key=abs)
    values = correlation[torch.tensor(lags)]  # negative lags count from the end
    return lags[int(values.argmax())] if bool(values.max() > 0) else 0


def shift(wav: Tensor, lag: int) -> Tensor:
    """wav (N,) moved `lag` samples earlier, with zeros where nothing is known."""
    if lag >= 0:
        return fit_length(wav[lag:], len(wav))
    return torch.cat([wav.new_zeros(-lag), wav])[: len(wav)]


def stoi(estimate: Tensor, target: Tensor, sample_rate: int) -> float:
    """Short-time objective intelligibility, at most 1, higher is better.

    Args:
        estimate: (N,).
        target: (N,).
        sample_rate: in Hz; the library resamples to 10 kHz itself.

    Returns:
        The score, or NaN where the target is silent or has less than 384 ms that is not.

    Raises:
        ImportError: pystoi is not installed; ask `missing_libraries` first.

    Source: Taal et al. 2011, "An algorithm for intelligibility prediction of time-frequency weighted noisy speech".
    """
    from pystoi import stoi as library_stoi

    x, y = _arrays(target, estimate)
    if not x.any():
        return math.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            value = float(library_stoi(x, y, sample_rate))
        except (ValueError, IndexError):  # so short that the library has no frame at all
            return math.nan
    # The library answers 1e-5 where there is too little to judge, and says so in a warning only.
    short = any("Not enough STFT frames" in str(warning.message) for warning in caught)
    return math.nan if short or not math.isfinite(value) else value


def pesq(estimate: Tensor, target: Tensor, sample_rate: int) -> float:
    """Perceptual evaluation of speech quality as MOS-LQO, 1.0 to 4.64, higher is better.

    Wideband (P.862.2) from 16 kHz on, else narrowband (P.862.1); both signals are brought to 16 or 8 kHz.

    Args:
        estimate: (N,).
        target: (N,).
        sample_rate: in Hz.

    Returns:
        The score, or NaN where the library finds no speech, or less than a quarter of a second.

    Raises:
        ImportError: pesq is not installed; ask `missing_libraries` first.
    """
    from pesq import PesqError
    from pesq import pesq as library_pesq

    rate = WIDEBAND if sample_rate >= WIDEBAND else NARROWBAND
    x, y = (resample(wav.astype(np.float32), sample_rate, rate) for wav in _arrays(target, estimate))
    if not x.any() or not y.any():  # the library divides by the peak
        return math.nan
    try:
        value = float(library_pesq(rate, x, y, "wb" if rate == WIDEBAND else "nb"))
    except (PesqError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def _arrays(*wavs: Tensor) -> list[np.ndarray]:
    return [wav.detach().double().cpu().numpy() for wav in wavs]
