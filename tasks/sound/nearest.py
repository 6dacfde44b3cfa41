"""The training clip that a sound is most like, so that a copy shows.

Likeness is the highest correlation over all shifts in time of how the bands of the mel spectrograms rise and fall: a
steady hiss is not alike to every other one, the same barks at the same distances are. Beside it the correlation of the
waveforms, which only a very close copy has, and likeness by a judge's embeddings.

What a copy reaches is measured: training clips that went through the codec. So is what no copy can be: real test clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import resample
from xcodec_lm.codec.nn.spectra import mel_spectrum
from xcodec_lm.codec.runtime.progress import track

RATE = 16_000
WINDOW, BANDS = 1024, 32
FLOOR = 1e-3
"""Of mel magnitudes, relative to the clip's largest: 60 dB below it."""
AROUND = 4
"""A change is the mean of so many frames (64 ms) from a place on, less that of as many before it."""
LEAST_CHANGE = 0.03
"""What moves less, in natural logarithms, does not move."""
LEAST_OVERLAP = 0.5
"""Share of the shorter clip that must be laid beside the other."""


@dataclass(frozen=True)
class Likeness:
    """A sound and the training clip whose mel spectrogram is most like its own.

    Attributes:
        index: of the training clip.
        mel: correlation of the spectrograms, at most 1.
    """

    index: int
    mel: float


def mel_image(wav: np.ndarray, rate: int) -> Tensor:
    """(32, T) how much the log-mel bands of wav (N,) rise, every 16 ms."""
    signal = torch.from_numpy(np.ascontiguousarray(resample(wav, rate, RATE), dtype=np.float32))
    if len(signal) < WINDOW:
        signal = torch.nn.functional.pad(signal, (0, WINDOW - len(signal)))
    mel = mel_spectrum(signal[None], RATE, WINDOW, BANDS, slaney=True)[0]
    log = (mel / mel.max().clamp_min(1e-9)).clamp_min(FLOOR).log()
    means = torch.nn.functional.pad(log[None], (AROUND, AROUND - 1), mode="replicate")[0].unfold(1, AROUND, 1).mean(-1)
    return means[:, AROUND:] - means[:, :-AROUND]


def nearest_by_mel(sounds: Sequence[Tensor], training: Sequence[Tensor]) -> list[Likeness]:
    """The most alike of training images for each of some, both of `mel_image`.

    A sound of which nothing moves is like nothing (0).
    """
    best = [Likeness(0, -1.0)] * len(sounds)
    for index, clip in enumerate(track(training, "looking for copies", len(training))):
        size = 1 << (clip.shape[1] + max((one.shape[1] for one in sounds), default=1)).bit_length()
        spectrum = torch.fft.rfft(clip, size)
        for place, sound in enumerate(sounds):
            value = _correlation(sound, clip, spectrum, size)
            if value > best[place].mel:
                best[place] = Likeness(index, value)
    return best


def _correlation(sound: Tensor, clip: Tensor, spectrum: Tensor, size: int) -> float:
    """Highest normalised cross-correlation over shifts at which enough of the shorter one is covered."""
    m, n = sound.shape[1], clip.shape[1]
    crossed = torch.fft.irfft((torch.fft.rfft(sound, size).conj() * spectrum).sum(dim=0), size)
    shifts = torch.arange(-(m - 1), n)  # the sound's first frame lies beside this frame of the clip
    begin, end = shifts.clamp(min=0), (shifts + m).clamp(max=n)
    energies = []
    for image, offset in ((sound, shifts), (clip, torch.zeros_like(shifts))):
        running = torch.nn.functional.pad(image.square().sum(dim=0).double().cumsum(0), (1, 0))
        energies.append(running[end - offset] - running[begin - offset])
    usable = (end - begin) >= max(1, LEAST_OVERLAP * min(m, n))
    scale = (energies[0] * energies[1]).sqrt().float()
    usable &= scale > LEAST_CHANGE**2 * BANDS * (end - begin)
    if not bool(usable.any()):
        return 0.0
    return min(1.0, float((crossed[shifts[usable]] / scale[usable]).max()))


def waveform_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Highest absolute cross-correlation of two signals (N,) of one rate over all shifts, 1 for a scaled copy."""
    size = 1 << (len(one) + len(other)).bit_length()
    x, y = (torch.from_numpy(np.asarray(wav, dtype=np.float64)) for wav in (one, other))
    crossed = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(y, size).conj(), size)
    scale = min(float(x.norm() * y.norm()), float("inf"))
    return float(crossed.abs().max()) / scale if scale > 1e-9 else 0.0
