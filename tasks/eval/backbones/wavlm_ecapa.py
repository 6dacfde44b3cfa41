"""The judge of voices behind SIM-O and SIM-R: WavLM-Large with an ECAPA-TDNN on top, tuned to tell speakers apart.

All 25 hidden states (the first layer's input, the layers' outputs, the last of them normed) are summed with learned
shares, normalised over time, and read by the ECAPA-TDNN into 256 features, which are given unit length. The clip has
mean 0 and variance 1 before it is heard. Clips are heard one by one, for the norm over time has no mask.

A clip below 1 s is repeated up to a second. One beyond 30 s is heard by WavLM in equal pieces, and by the ECAPA-TDNN
as a whole.

Sources: Chen et al. 2022 (arXiv 2110.13900); Desplanques et al. 2020 (arXiv 2005.07143);
https://github.com/microsoft/UniSpeech/tree/main/downstreams/speaker_verification for the names of the weights and the
sizes (its code is CC BY-SA 3.0, and nothing of it is here).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.codec.convert.state_dicts import shape_of
from xcodec_lm.tasks.eval.backbones.fairseq import model_from_fairseq
from xcodec_lm.tasks.eval.backbones.ssl_models import device_of, equal_pieces, lengthen, weighted_states
from xcodec_lm.tasks.eval.backbones.weights import fill, read_published
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips
from xcodec_lm.tasks.eval.judge_files import module_fingerprint

SSL = "feature_extract.model."
UNUSED = ("loss_calculator.projection.weight",)
"""The classifier of training's speakers."""
SPLITS = 8
DILATIONS = {"layer2": 2, "layer3": 3, "layer4": 4}
LEAST = 1e-9
"""Smallest variance in the pooling."""


class ConvReluNorm(nn.Module):
    """Convolution, ReLU, batch norm: in this order."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T)."""
        return self.bn(F.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """Eight groups of channels: each but the last is added to the one before, convolved, and passed on (Res2Net)."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        width = channels // SPLITS
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(SPLITS - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(SPLITS - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        *groups, rest = x.chunk(SPLITS, dim=1)
        done: list[Tensor] = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            done.append(norm(F.relu(conv(group + done[-1] if done else group))))
        return torch.cat([*done, rest], dim=1)


class SqueezeExcite(nn.Module):
    """Channels weighted by what their means say."""

    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, bottleneck), nn.Linear(bottleneck, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x * self.linear2(F.relu(self.linear1(x.mean(dim=2)))).sigmoid()[:, :, None]


class SERes2Block(nn.Module):
    """A residual block of the ECAPA-TDNN."""

    def __init__(self, channels: int, dilation: int, bottleneck: int):
        super().__init__()
        self.Conv1dReluBn1 = ConvReluNorm(channels, channels)
        self.Res2Conv1dReluBn = Res2Conv(channels, dilation)
        self.Conv1dReluBn2 = ConvReluNorm(channels, channels)
        self.SE_Connect = SqueezeExcite(channels, bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x + self.SE_Connect(self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x))))


class AttentivePooling(nn.Module):
    """Mean and deviation over time, each channel with its own shares of the frames."""

    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Conv1d(channels, bottleneck, 1), nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, 2 C)."""
        shares = self.linear2(self.linear1(x).tanh()).softmax(dim=2)
        mean = (shares * x).sum(dim=2)
        variance = (shares * x.square()).sum(dim=2) - mean.square()
        return torch.cat([mean, variance.clamp_min(LEAST).sqrt()], dim=1)


class EcapaHead(nn.Module):
    """What stands on the WavLM, with the names of the published file.

    Args:
        states: hidden states that are summed; 25 as published.
        feature_dim: of a state; 1024 as published.
        channels: of the blocks; 512 as published.
        pooled: channels that are pooled; 1536 as published.
        squeeze: of the squeeze and excitation; 128 as published.
        attention: of the pooling; 128 as published.
        dim: of the embedding; 256 as published.
    """

    def __init__(
        self, states: int, feature_dim: int, channels: int, pooled: int, squeeze: int, attention: int, dim: int
    ):
        super().__init__()
        self.feature_weight = nn.Parameter(torch.zeros(states))
        self.layer1 = ConvReluNorm(feature_dim, channels, 5)
        for name, dilation in DILATIONS.items():
            setattr(self, name, SERes2Block(channels, dilation, squeeze))
        self.conv = nn.Conv1d(3 * channels, pooled, 1)
        self.pooling = AttentivePooling(pooled, attention)
        self.bn = nn.BatchNorm1d(2 * pooled)
        self.linear = nn.Linear(2 * pooled, dim)

    def forward(self, features: Tensor) -> Tensor:
        """(T, feature_dim) of one clip -> (dim,)."""
        x = F.instance_norm(features.T[None] + 1e-6)
        x = self.layer1(x)
        outputs = []
        for name in DILATIONS:
            x = getattr(self, name)(x)
            outputs.append(x)
        x = F.relu(self.conv(torch.cat(outputs, dim=1)))
        return self.linear(self.bn(self.pooling(x)))[0]


class WavLMEcapa:
    """The two as a plug-in.

    Args:
        ssl: the WavLM, in eval mode.
        head: in eval mode.
        weights_from: name of their file.
    """

    name, sample_rate = "wavlm-ecapa", SAMPLE_RATE

    def __init__(self, ssl: Any, head: EcapaHead, weights_from: str):
        self.ssl, self.head, self.dim = ssl, head, head.linear.out_features
        self.ancestry: dict[str, Any] = {"weights_from": weights_from, "base": "WavLM-Large, tuned on VoxCeleb"}

    @cached_property
    def fingerprint(self) -> str:
        """See `plugins.PlugIn`."""
        return module_fingerprint(nn.ModuleList([self.ssl, self.head]), {"pieces_s": 30})

    @torch.inference_mode()
    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 256) of unit norm, see `plugins.SpeakerEmbedder`."""
        shares, device = self.head.feature_weight.softmax(dim=0), device_of(self.head)
        rows = []
        for clip in check_clips(wavs):
            wav = lengthen(clip, SAMPLE_RATE, repeat=True).to(device)
            pieces = equal_pieces(F.layer_norm(wav, wav.shape), SAMPLE_RATE)
            features = torch.cat([weighted_states(self.ssl, piece, shares) for piece in pieces])
            rows.append(F.normalize(self.head(features), dim=0).cpu())
        return torch.stack(rows).numpy() if rows else np.zeros((0, self.dim), np.float32)


def load(source: str | Path | None, device: str | torch.device = "cpu") -> WavLMEcapa:
    """The judge from `wavlm_large_finetune.pth`.

    Raises:
        XcodecLMError: no file, one of another model, or one that is damaged.
    """
    path, tensors = read_published(source, "UniSpeech's wavlm_large_finetune.pth")
    ssl, head = wavlm_ecapa_from_published(tensors, path)
    return WavLMEcapa(ssl.to(device), head.to(device), path.name)


def wavlm_ecapa_from_published(tensors: Mapping[str, Tensor], where: str | Path) -> tuple[Any, EcapaHead]:
    """The WavLM and what stands on it, with the weights of a file.

    Raises:
        XcodecLMError: a tensor is missing, unknown or of another shape.
    """
    file = str(where)
    weights = {key: value for key, value in tensors.items() if not key.startswith((SSL, *UNUSED))}
    ssl = model_from_fairseq(tensors, SSL, file)
    channels, feature_dim, _ = shape_of(weights, "layer1.conv.weight", file)
    pooled, squeeze, attention, dim = (
        shape_of(weights, key, file)[0]
        for key in ("conv.weight", "layer2.SE_Connect.linear1.weight", "pooling.linear1.weight", "linear.weight")
    )
    with torch.device("meta"):
        states = ssl.config.num_hidden_layers + 1
        head = EcapaHead(states, feature_dim, channels, pooled, squeeze, attention, dim)
    fill(head, weights, where)
    return ssl, head
