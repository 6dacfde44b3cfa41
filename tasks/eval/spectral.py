"""Mel and STFT distances of a reconstruction in the presets of the literature; the preset is part of a figure's name.

Papers rarely say how they compute these, and the presets differ by factors, so figures of different presets are not
compared. `codec.distances` holds the pair that training reports.

- `hifigan80`: natural log of 80 mel magnitudes, transform 1024, hop 160, window 800 (arXiv 2010.05646, at 16 kHz).
- `ln_stft`: natural log magnitudes over three transforms; `stft_convergence` is the same transforms' spectral
  convergence |X - Y| / |X| (arXiv 1910.11480).
- `dac_eval`: log10 of squared magnitudes plus magnitudes, summed over windows 2048 and 512, as DAC's evaluation script.
- `dac_train`: log10 of magnitudes summed over seven windows, as DAC's training loss (arXiv 2306.06546).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from xcodec_lm.codec.nn.spectra import stft_magnitude

FLOOR = 1e-5
LN_STFT = ((512, 120, 480), (1024, 240, 960), (2048, 300, 1200))
"""Transform, hop and window, in samples."""
DAC_EVAL = ((2048, 150), (512, 80))
"""Window and mel bands."""
DAC_TRAIN = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))


def mel_hifigan80(estimate: Tensor, target: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of natural-log mel magnitudes of (N,) signals."""
    x, y = (_mel(wav, sample_rate, 1024, 160, 800, 80) for wav in (estimate, target))
    return _l1(x.clamp_min(FLOOR).log(), y.clamp_min(FLOOR).log())


def mel_dac_eval(estimate: Tensor, target: Tensor, sample_rate: int) -> float:
    """DAC's evaluation distance on mel bands of (N,) signals; the published figures are at 22.05 and 44.1 kHz."""
    total = 0.0
    for window, bands in DAC_EVAL:
        x, y = (_mel(wav, sample_rate, window, window // 4, window, bands) for wav in (estimate, target))
        total += _dac(x, y)
    return total


def mel_dac_train(estimate: Tensor, target: Tensor, sample_rate: int) -> float:
    """DAC's training distance on mel bands of (N,) signals."""
    total = 0.0
    for window, bands in DAC_TRAIN:
        x, y = (_mel(wav, sample_rate, window, window // 4, window, bands) for wav in (estimate, target))
        total += _l1(x.clamp_min(FLOOR).log10(), y.clamp_min(FLOOR).log10())
    return total


def stft_ln(estimate: Tensor, target: Tensor, sample_rate: int = 0) -> float:
    """Mean absolute difference of natural-log magnitudes of (N,) signals, over three transforms."""
    pairs = [_magnitudes(estimate, target, *sizes) for sizes in LN_STFT]
    return sum(_l1(x.clamp_min(FLOOR).log(), y.clamp_min(FLOOR).log()) for x, y in pairs) / len(pairs)


def stft_convergence(estimate: Tensor, target: Tensor, sample_rate: int = 0) -> float:
    """Norm of the difference of magnitudes over that of the target, of (N,) signals, over three transforms.

    Returns:
        0 for equal signals; NaN for a silent target.
    """
    pairs = [_magnitudes(estimate, target, *sizes) for sizes in LN_STFT]
    if not bool(target.any()):
        return float("nan")
    return sum(float((x - y).norm() / y.norm()) for x, y in pairs) / len(pairs)


def stft_dac_eval(estimate: Tensor, target: Tensor, sample_rate: int = 0) -> float:
    """DAC's evaluation distance on magnitudes of (N,) signals."""
    return sum(_dac(*_magnitudes(estimate, target, window, window // 4, window)) for window, _ in DAC_EVAL)


PRESETS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "mel[hifigan80]": mel_hifigan80, "mel[dac_eval]": mel_dac_eval, "mel[dac_train]": mel_dac_train,
    "stft[ln_stft]": stft_ln, "stft[convergence]": stft_convergence, "stft[dac_eval]": stft_dac_eval,
}  # fmt: skip
"""Name -> function of estimate, target and sample rate; lower is nearer."""


def _dac(x: Tensor, y: Tensor) -> float:
    return _l1(x.clamp_min(FLOOR).square().log10(), y.clamp_min(FLOOR).square().log10()) + _l1(x, y)


def _l1(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().mean())


def _magnitudes(estimate: Tensor, target: Tensor, n_fft: int, hop: int, window: int) -> tuple[Tensor, Tensor]:
    x, y = (stft_magnitude(wav.double()[None], n_fft, hop, window) for wav in (estimate, target))
    return x, y


def _mel(wav: Tensor, sample_rate: int, n_fft: int, hop: int, window: int, bands: int) -> Tensor:
    return _filters(sample_rate, n_fft, bands) @ stft_magnitude(wav.double()[None], n_fft, hop, window)


@lru_cache(maxsize=32)
def _filters(sample_rate: int, n_fft: int, bands: int) -> Tensor:
    """(bands, n_fft / 2 + 1) triangles of equal area on Slaney's mel scale, as librosa's, which the presets used."""
    import warnings

    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the narrowest bands of DAC's presets hold no bin; theirs neither
        bank = mel_filter_bank(
            n_fft // 2 + 1, bands, 0.0, sample_rate / 2, sample_rate, norm="slaney", mel_scale="slaney"
        )
    return torch.from_numpy(bank.T.copy()).double()
