"""Audio files and arrays: load, save, convert, and the guards before an encoder.

Two ways in. Commands call `load_audio`, which converts rate and channels and says so. The Python API calls
`check_wav`, which converts nothing and refuses what does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from torch import Tensor

from xcodec_lm.configs.errors import AudioError

MAX_LEVEL = 1.5
"""Largest |x| that the guards take for audio in [-1, 1]: above inter-sample overshoot, far below int16 scale."""


@dataclass(frozen=True)
class Audio:
    """One recording.

    Attributes:
        wav: (1, N) float32 at `sample_rate`.
        sample_rate: in Hz.
        conversions: what was done to get here, for the user: "mixed 2 channels to mono", "resampled 44100 to 16000 Hz".
    """

    wav: Tensor
    sample_rate: int
    conversions: tuple[str, ...] = ()


def load_audio(path: str | Path, sample_rate: int, start_s: float = 0.0, duration_s: float | None = None) -> Audio:
    """A file of any rate, channel count and format that libsndfile reads, as mono at `sample_rate`.

    Args:
        path: the file.
        sample_rate: rate of the result, in Hz.
        start_s: where to begin, in seconds.
        duration_s: how much to read, in seconds; None reads to the end.

    Raises:
        AudioError: missing, unreadable, truncated, empty, not finite, or louder than full scale allows.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: file not found")
    try:
        with sf.SoundFile(path) as file:
            rate, announced = file.samplerate, file.frames
            begin = min(round(start_s * rate), announced)
            count = announced - begin if duration_s is None else min(round(duration_s * rate), announced - begin)
            file.seek(begin)
            data = file.read(count, dtype="float32", always_2d=True)  # (N, C)
    except (sf.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{path}: not readable as audio: {str(error).rstrip('.')}",
            "WAV, FLAC, OGG and MP3 files are read; check that the file is whole",
        ) from None
    if len(data) < count:
        raise AudioError(
            f"{path}: truncated: {len(data)} of the {count} samples that its header announces could be read",
            "copy the file again from its source",
        )
    if not len(data):
        raise AudioError(f"{path}: empty, it has no samples")
    conversions = []
    if data.shape[1] > 1:
        conversions.append(f"mixed {data.shape[1]} channels to mono")
        data = data.mean(axis=1, keepdims=True)
    signal = data[:, 0]
    check_signal(signal, str(path))
    if rate != sample_rate:
        conversions.append(f"resampled {rate} to {sample_rate} Hz")
        signal = resample(signal, rate, sample_rate)
    return Audio(torch.from_numpy(np.ascontiguousarray(signal))[None], sample_rate, tuple(conversions))


def save_audio(path: str | Path, wav: Tensor, sample_rate: int) -> int:
    """Writes audio in the format that the file's ending names (16 bit where the format has a choice).

    Args:
        path: the file.
        wav: (N,) or (1, N) float; values beyond full scale are clipped.
        sample_rate: in Hz.

    Returns:
        How many samples were clipped.

    Raises:
        AudioError: the file cannot be written, or its ending names no format.
    """
    signal = wav.detach().float().cpu().reshape(-1).numpy()
    clipped = int((np.abs(signal) > 1).sum())
    try:
        sf.write(path, np.clip(signal, -1, 1), sample_rate)
    except (sf.LibsndfileError, OSError, TypeError, ValueError) as error:
        raise AudioError(
            f"cannot write {path}: {str(error).rstrip('.')}",
            "choose a folder that exists and can be written, and an ending such as .wav",
        ) from None
    return clipped


def resample(signal: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """A (N,) float32 signal at another rate; never empty."""
    if from_rate == to_rate:
        return signal
    result = soxr.resample(signal, from_rate, to_rate, quality="HQ")
    return result if len(result) else signal[:1]


def check_signal(signal: np.ndarray, where: str) -> None:
    """Refuses samples that are not finite, or not on the scale of [-1, 1].

    Raises:
        AudioError: names the first sample at fault.
    """
    if not np.isfinite(signal).all():
        index = int(np.flatnonzero(~np.isfinite(signal))[0])
        raise AudioError(
            f"{where}: sample {index} is {signal[index]}, not a finite number", "repair or remove the recording"
        )
    peak = float(np.abs(signal).max())
    if peak > MAX_LEVEL:
        raise AudioError(
            f"{where}: samples reach {peak:g}, beyond {MAX_LEVEL}; audio must lie in [-1, 1]",
            "divide 16-bit integers by 32768" if peak > 100 else "lower the level",
        )


def check_wav(wav: Tensor, lengths: Tensor | None, expected_rate: int, given_rate: int | None) -> Tensor:
    """Refuses tensors that an encoder cannot take, converts nothing.

    Args:
        wav: should be (B, 1, N) floating point in [-1, 1].
        lengths: (B,) valid samples of each row, or None when all are.
        expected_rate: the encoder's sample rate in Hz.
        given_rate: the rate that the caller states, or None.

    Returns:
        lengths: (B,) int64.

    Raises:
        AudioError: wrong rate, shape, dtype, length, level, or values that are not finite.
    """
    if given_rate is not None and given_rate != expected_rate:
        raise AudioError(
            f"the audio has {given_rate} Hz, the codec needs {expected_rate} Hz",
            "load it with xcodec_lm.codec.audio.load_audio(path, codec.spec.sample_rate)",
        )
    if not isinstance(wav, Tensor) or not wav.is_floating_point():
        kind = wav.dtype if isinstance(wav, Tensor) else type(wav).__name__
        raise AudioError(f"wav must be a floating-point tensor, got {kind}", "divide 16-bit integers by 32768")
    if wav.dim() != 3:
        raise AudioError(f"wav must have shape (B, 1, N), got {tuple(wav.shape)}", "add axes with wav[None, None]")
    if wav.shape[1] != 1:
        raise AudioError(f"wav must be mono, got {wav.shape[1]} channels", "mix down with wav.mean(1, keepdim=True)")
    if wav.shape[0] < 1 or wav.shape[2] < 1:
        raise AudioError(f"wav is empty: shape {tuple(wav.shape)}")
    if lengths is None:
        lengths = torch.full((wav.shape[0],), wav.shape[2], dtype=torch.int64, device=wav.device)
    lengths = torch.as_tensor(lengths, dtype=torch.int64, device=wav.device)
    if lengths.shape != wav.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > wav.shape[2]:
        raise AudioError(f"lengths must be {wav.shape[0]} numbers in 1..{wav.shape[2]}, got {lengths.tolist()}")
    peaks = wav.detach().abs().amax(dim=(1, 2))  # NaN and Inf survive the maximum
    for row, peak in enumerate(peaks.tolist()):
        if not peak <= MAX_LEVEL:
            check_signal(wav[row, 0].detach().float().cpu().numpy(), f"row {row}")
    return lengths
