"""Mel filters as librosa's default has them, at any frequencies: what PANNs, GE2E and DNSMOS were trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def slaney_filters(hz: np.ndarray, bands: int, lowest_hz: float, highest_hz: float) -> Tensor:
    """Triangles of equal area on Slaney's mel axis.

    transformers' `mel_filter_bank` gives the same for transforms of an even length; DNSMOS' has an odd one.

    Args:
        hz: (bins,) frequencies of the transform's bins.
        bands: number of filters.
        lowest_hz: where the first begins.
        highest_hz: where the last ends.

    Returns:
        (bins, bands) float64.

    Source: `librosa.filters.mel` with its defaults (https://librosa.org/doc/latest/generated/librosa.filters.mel.html).
    """
    from transformers.audio_utils import hertz_to_mel, mel_to_hertz

    limits = [hertz_to_mel(float(edge), mel_scale="slaney") for edge in (lowest_hz, highest_hz)]
    edges = np.asarray(mel_to_hertz(np.linspace(limits[0], limits[1], bands + 2), mel_scale="slaney"))
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hz[:, None] - left) / (peak - left), (right - hz[:, None]) / (right - peak)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)) * (2 / (right - left)))
