"""Reconstruction quality of a codec on a set of clips, beside what it must beat."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xcodec_lm.codec.audio import resample
from xcodec_lm.codec.distances import anchors, distances
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens


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


class CodebookUse:
    """How often each code of each layer occurs.

    Args:
        codec: whose codes are counted; a track's layers are counted apart from another track's.
    """

    def __init__(self, codec: AudioTokenizer):
        sizes = codec.spec.codebook_sizes * len(codec.spec.tracks)
        self.counts = [torch.zeros(size, dtype=torch.int64) for size in sizes]

    def add(self, tokens: AudioTokens) -> None:
        """Counts the valid codes of a batch with all layers."""
        for row in range(len(tokens)):
            for count, codes in zip(self.counts, tokens.row(row).codes[0].cpu(), strict=True):
                count += torch.bincount(codes, minlength=len(count))

    def merge(self, other: CodebookUse) -> None:
        """Adds what another has counted of the same codec."""
        for count, more in zip(self.counts, other.counts, strict=True):
            count += more

    @property
    def used(self) -> list[int]:
        """Distinct codes of each layer."""
        return [int((count > 0).sum()) for count in self.counts]

    @property
    def perplexity(self) -> list[float]:
        """2 to the entropy of each layer's codes, in bits; 0 before the first."""
        result = []
        for count in self.counts:
            shares = count[count > 0].double() / max(1, int(count.sum()))
            result.append(float(2 ** -(shares * shares.log2()).sum()) if len(shares) else 0.0)
        return result

    @property
    def frames(self) -> int:
        """Frames counted; a codebook much larger than this cannot look fully used."""
        return int(self.counts[0].sum())


@torch.inference_mode()
def evaluate(codec: AudioTokenizer, wavs: list[Tensor], n_qs: tuple[int, ...], with_anchors: bool = True) -> Evaluation:
    """Encodes and decodes clips and measures the distances, at the rate of the codec's output.

    Args:
        codec: in eval mode.
        wavs: (1, N_i) each, at the rate that the codec encodes.
        n_qs: numbers of layers to decode.
        with_anchors: measure silence and the noises too; they do not change while a codec trains.
    """
    rate = codec.spec.output_sample_rate
    sums: dict[int, dict[str, float]] = {n_q: defaultdict(float) for n_q in n_qs}
    anchor_sums: dict[str, dict[str, float]] = {}
    use = CodebookUse(codec)
    for wav in track(wavs, "evaluating", len(wavs)):
        target = torch.from_numpy(resample(wav[0].cpu().numpy(), codec.spec.sample_rate, rate))
        tokens = codec.encode(wav[None])
        use.add(tokens)
        for n_q in n_qs:
            estimate = reconstruct(codec, tokens, n_q, len(target))
            for name, value in distances(estimate, target, rate).items():
                sums[n_q][name] += value / len(wavs)
        if with_anchors:
            for anchor, signal in anchors(target, rate).items():
                row = anchor_sums.setdefault(anchor, defaultdict(float))
                for name, value in distances(signal, target, rate).items():
                    row[name] += value / len(wavs)
    return Evaluation(
        codec={n_q: dict(values) for n_q, values in sums.items()},
        anchors={name: dict(values) for name, values in anchor_sums.items()},
        codes_used=use.used,
        perplexity=use.perplexity,
        clips=len(wavs),
        seconds=sum(wav.shape[1] for wav in wavs) / codec.spec.sample_rate,
    )


def reconstruct(codec: AudioTokenizer, tokens: AudioTokens, n_q: int, samples: int) -> Tensor:
    """Audio (N,) on the CPU of one row of tokens with `n_q` layers, cut or padded to `samples` at the output's rate."""
    wav = codec.decode(tokens.take(n_q))[0][0, 0].float().cpu()[:samples]
    return torch.nn.functional.pad(wav, (0, samples - len(wav)))


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
