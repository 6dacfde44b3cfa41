"""Vectors of codecs over time, for probes and ABX: which ones, of which layers, and how they are collected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.tokens import AudioTokenizer, FrameFeatures

OF_TOKENS = ("post_vq", "sem_decoder")
"""Features of the first n_q layers. `sem_decoder` is trained to copy the teacher, so it stands beside, not first."""
CODES = "codes"
"""The codes themselves, which every codec has. They are names, not vectors: for ABX, not for probes."""
OF_AUDIO = ("pre_vq", "ssl")
"""Features before any quantizer; `ssl` is the teacher itself, a ceiling."""


@dataclass(frozen=True)
class FeatureKey:
    """One kind of vectors.

    Attributes:
        feature: as `FrameFeatures.extract` takes it.
        n_q: layers of tokens that it comes from; None where there are none.
    """

    feature: str
    n_q: int | None = None

    def __str__(self) -> str:
        return self.feature if self.n_q is None else f"{self.feature} n_q {self.n_q}"


@dataclass(frozen=True)
class Collected:
    """Vectors of one kind.

    Attributes:
        vectors: clip id -> (T, D), for codes (T, Q), or what the caller wanted kept of them.
        frame_rate: frames per second.
    """

    vectors: dict[str, Tensor]
    frame_rate: Fraction


def feature_keys(codecs: Sequence[AudioTokenizer], n_qs: Sequence[int]) -> list[FeatureKey]:
    """What is looked at: every feature that any of the codecs has, of the fewest and of the most layers."""
    known = {name for codec in codecs if isinstance(codec, FrameFeatures) for name in codec.features}
    few_and_most = sorted({min(n_qs), max(n_qs)})
    keys = [FeatureKey(name, n_q) for name in OF_TOKENS if name in known for n_q in few_and_most]
    return keys + [FeatureKey(name) for name in OF_AUDIO if name in known]


def code_keys(n_qs: Sequence[int]) -> list[FeatureKey]:
    """The codes of the fewest and of the most layers."""
    return [FeatureKey(CODES, n_q) for n_q in sorted({min(n_qs), max(n_qs)})]


def needs_tokens(feature: str) -> bool:
    """Whether a feature comes from the codes of a number of layers."""
    return feature not in OF_AUDIO


def has(codec: Any, key: FeatureKey) -> bool:
    """Whether a codec can be asked for a feature."""
    return key.feature == CODES or (isinstance(codec, FrameFeatures) and key.feature in codec.features)


@torch.inference_mode()
def collect(
    codecs: Mapping[str, AudioTokenizer],
    clips: Sequence[Clip],
    keys: Sequence[FeatureKey],
    label: str,
    pool: Callable[[Tensor], Tensor] | None = None,
    clip_s: float | None = None,
) -> dict[tuple[str, FeatureKey], Collected]:
    """Features of clips by codec and kind, in fp32 on the CPU; every clip is read and encoded once a codec.

    Args:
        codecs: by name; a codec is passed over for features that it does not have.
        clips: recordings.
        keys: which features.
        label: what the user is told is being done.
        pool: what is kept of the vectors (D, T) of a clip; None keeps all of them.
        clip_s: take at most this much of each clip.
    """
    found: dict[tuple[str, FeatureKey], Collected] = {}
    for clip in track(clips, label, len(clips)):
        for name, codec in codecs.items():
            wanted = [key for key in keys if has(codec, key)]
            if not wanted:
                continue
            wav = load_audio(clip.path, codec.spec.sample_rate, duration_s=clip_s).wav[None]
            tokens = codec.encode(wav) if any(key.n_q for key in wanted) else None
            for key in wanted:
                if key.feature == CODES:
                    codes = tokens.take(key.n_q).codes[0, :, : int(tokens.lengths[0])].cpu()  # type: ignore[union-attr]
                    collected = found.setdefault((name, key), Collected({}, codec.spec.frame_rate))
                    collected.vectors[clip.id] = codes.T if pool is None else pool(codes)
                    continue
                features = codec.extract(tokens if key.n_q else wav, key.feature, key.n_q)  # type: ignore[attr-defined]
                vectors = features.values[0, :, : int(features.lengths[0])].float().cpu()  # (D, T)
                collected = found.setdefault((name, key), Collected({}, Fraction(features.frame_rate)))
                collected.vectors[clip.id] = vectors.T if pool is None else pool(vectors)
    return found
