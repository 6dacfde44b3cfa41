"""Do codes stay the same when what is heard does? Shifts by less than a frame, and noise too soft to mind.

A language model learns from codes alone. Codes that change with the phase of the frames, or with noise that nobody
hears, are to it different sounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.tasks.eval.intervals import mean_estimate
from xcodec_lm.tasks.eval.reconstruction import unit_of

SHIFTS = (1 / 320, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 319 / 320, 1.0)
"""In frames: 1 to 319 samples of X-Codec's 320, and a whole frame, which moves every code by one place."""
NOISES_DB = (40.0, 30.0, 20.0)
"""White noise below the clip's level."""


@torch.inference_mode()
def code_robustness(
    codec: AudioTokenizer, clips: Sequence[Clip], clip_s: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """Shares of equal codes, in percent.

    Args:
        codec: in eval mode.
        clips: recordings.
        clip_s: take at most this much of each.
        seed: of noise and intervals.

    Returns:
        `rows`, one a change: `change`, `kind` (`shift` or `noise`), `samples` or `snr_db`, `books` (one figure a
        codebook), `all` (every code of a frame is equal); figures as `Estimate.to_dict`, over speakers, pieces or
        recordings; and `clips`.
    """
    rate, hop = codec.spec.sample_rate, codec.spec.hop_samples
    shifts = list(dict.fromkeys(min(hop, max(1, round(share * hop))) for share in SHIFTS))
    found: dict[tuple[str, float], list[np.ndarray]] = {}
    units = []
    for clip in track(clips, f"robustness of {codec.spec.name}", len(clips)):
        wav = load_audio(clip.path, rate, duration_s=clip_s).wav  # (1, N)
        if wav.shape[1] < 4 * hop:
            continue
        units.append(unit_of(clip)[1])
        plain = _codes(codec, wav)
        for samples in shifts:
            moved = _codes(codec, wav[:, samples:])
            found.setdefault(("shift", samples), []).append(_equal(plain[:, samples // hop :], moved))
        for snr in NOISES_DB:
            noise = torch.randn(wav.shape, generator=generator(seed, "robustness", clip.id, str(snr)))
            noisy = wav + noise * wav.square().mean().sqrt() * 10 ** (-snr / 20)
            found.setdefault(("noise", snr), []).append(_equal(plain, _codes(codec, noisy.clamp(-1, 1))))
    rows = []
    for (kind, size), shares in found.items():
        table = 100 * np.stack(shares)  # (clips, Q + 1)
        figures = [mean_estimate(column, units, seed).to_dict() for column in table.T]
        name = f"{size:.0f} samples later" if kind == "shift" else f"noise at -{size:.0f} dB"
        if kind == "shift" and size == hop:
            name = f"{name}, a whole frame"
        rows.append({"change": name, "kind": kind, "samples" if kind == "shift" else "snr_db": size,
                     "books": figures[:-1], "all": figures[-1]})  # fmt: skip
    return {"rows": rows, "clips": len(units)}


def _codes(codec: AudioTokenizer, wav: Tensor) -> Tensor:
    tokens = codec.encode(wav[None])
    return tokens.codes[0, :, : int(tokens.lengths[0])].cpu()  # (Q, T)


def _equal(first: Tensor, second: Tensor) -> np.ndarray:
    """Shares of frames in which each codebook's codes are equal, and all of them are: (Q + 1,)."""
    frames = min(first.shape[1], second.shape[1])
    same = first[:, :frames] == second[:, :frames]
    return torch.cat([same.double().mean(dim=1), same.all(dim=0).double().mean()[None]]).numpy()
