"""Reconstruction quality of a codec on a set of clips, beside what it must beat."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xcodec_lm.codec.distances import anchors, distances
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.xcodec import XCodec


@dataclass(frozen=True)
class Evaluation:
    """Means over clips.

    Attributes:
        codec: n_q -> distance name -> mean.
        anchors: anchor name -> distance name -> mean.
        codes_used: distinct codes of each layer.
        perplexity: 2 to the entropy of each layer's codes, in bits.
        clips: how many clips.
        seconds: how much audio.
    """

    codec: dict[int, dict[str, float]]
    anchors: dict[str, dict[str, float]]
    codes_used: list[int]
    perplexity: list[float]
    clips: int
    seconds: float


@torch.inference_mode()
def evaluate(codec: XCodec, wavs: list[Tensor], n_qs: tuple[int, ...], with_anchors: bool = True) -> Evaluation:
    """Encodes and decodes clips and measures the distances.

    Args:
        codec: in eval mode.
        wavs: (1, N_i) each, at the codec's rate.
        n_qs: numbers of layers to decode.
        with_anchors: measure silence and the noises too; they do not change while a codec trains.
    """
    rate = codec.spec.sample_rate
    sums: dict[int, dict[str, float]] = {n_q: defaultdict(float) for n_q in n_qs}
    anchor_sums: dict[str, dict[str, float]] = {}
    counts = torch.zeros(codec.spec.n_q, max(codec.spec.codebook_sizes))
    for wav in track(wavs, "evaluating", len(wavs)):
        target = wav[0].cpu()
        tokens = codec.encode(wav[None])
        for layer, codes in enumerate(tokens.codes[0].cpu()):
            counts[layer] += torch.bincount(codes, minlength=counts.shape[1])
        for n_q in n_qs:
            estimate = codec.decode(tokens.take(n_q))[0][0, 0].cpu()
            for name, value in distances(estimate, target, rate).items():
                sums[n_q][name] += value / len(wavs)
        if with_anchors:
            for anchor, signal in anchors(target, rate).items():
                row = anchor_sums.setdefault(anchor, defaultdict(float))
                for name, value in distances(signal, target, rate).items():
                    row[name] += value / len(wavs)
    shares = counts / counts.sum(1, keepdim=True)
    entropy = -(shares * shares.clamp_min(1e-12).log2()).sum(1)
    return Evaluation(
        codec={n_q: dict(values) for n_q, values in sums.items()},
        anchors={name: dict(values) for name, values in anchor_sums.items()},
        codes_used=(counts > 0).sum(1).tolist(),
        perplexity=[math.pow(2, bits) for bits in entropy.tolist()],
        clips=len(wavs),
        seconds=sum(wav.shape[1] for wav in wavs) / rate,
    )


def to_dict(result: Evaluation) -> dict[str, Any]:
    """An evaluation as plain values for JSON."""
    data = dataclasses.asdict(result)
    return data | {"codec": {f"n_q {n_q}": values for n_q, values in result.codec.items()}}


def format_evaluation(result: Evaluation) -> str:
    """An evaluation as a table for a terminal."""
    rows = [(f"n_q {n_q}", values) for n_q, values in result.codec.items()] + list(result.anchors.items())
    names = list(rows[0][1])
    lines = [f"{result.clips} clips, {result.seconds:.1f} s; distances of log spectra, lower is nearer"]
    lines.append(f"{'':<14}" + "".join(f"{name:>8}" for name in names))
    lines += [f"{label:<14}" + "".join(f"{values[name]:8.3f}" for name in names) for label, values in rows]
    used = " ".join(str(count) for count in result.codes_used)
    perplexity = " ".join(f"{value:.0f}" for value in result.perplexity)
    return "\n".join([*lines, f"codes in use by layer: {used}", f"perplexity by layer:   {perplexity}"])
