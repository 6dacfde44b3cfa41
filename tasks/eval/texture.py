"""Texture features of sound: what a stretch of half a second is like, without any trained model.

Mean, spread and movement of a log mel spectrum over half a second. They tell noise from tones, stillness from motion
and one timbre from another, and know nothing of melody or words.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.nn.spectra import mel_spectrum

WINDOW, BANDS = 1024, 40
STRETCH_S = 0.5
FLOOR = 1e-4


@torch.inference_mode()
def texture(wav: Tensor, sample_rate: int) -> np.ndarray:
    """Features of each half second of wav (N,): (R, 3 * 40), R at least 1."""
    mel = mel_spectrum(wav[None].float().cpu(), sample_rate, WINDOW, BANDS, slaney=True)[0]
    log = mel.clamp_min(FLOOR).log().T.numpy()  # (frames, bands)
    size = max(2, round(STRETCH_S * sample_rate / (WINDOW // 4)))
    if len(log) < size:
        log = np.pad(log, ((0, size - len(log)), (0, 0)), mode="edge")
    pieces = [log[start : start + size] for start in range(0, len(log) - size + 1, size)]
    return np.stack([np.concatenate([p.mean(0), p.std(0), np.abs(np.diff(p, axis=0)).mean(0)]) for p in pieces])
