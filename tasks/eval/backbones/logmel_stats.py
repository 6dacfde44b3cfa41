"""Log-mel statistics as an embedder: no weights, no training, the same everywhere.

A Fréchet distance over these tells timbre and loudness apart, and knows nothing of words or melody: it stands in for
FAD and FD where there are no weights, under its own name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips
from xcodec_lm.tasks.eval.plugins import EmbedderBase
from xcodec_lm.tasks.eval.texture import BANDS, texture


class LogMelStats(EmbedderBase):
    """`texture` as a plug-in: mean, spread and movement of 40 log-mel bands, a row each half second."""

    def __init__(self):
        super().__init__(
            "logmel-stats", 3 * BANDS, SAMPLE_RATE, "", {"weights_from": "none: computed", "base": "none"}
        )  # fmt: skip

    def frames(self, wav: np.ndarray) -> np.ndarray:
        """(R, 120), see `plugins.Embedder`."""
        (clip,) = check_clips([wav])
        return texture(clip, self.sample_rate).astype(np.float32)


def load(source: str | Path | None = None, device: str | torch.device = "cpu") -> LogMelStats:
    """The embedder; it takes no weights and computes on the CPU.

    Raises:
        UsageError: weights are given.
    """
    if source is not None:
        raise UsageError(f"logmel-stats has no weights, and {source} was given for them")
    return LogMelStats()
