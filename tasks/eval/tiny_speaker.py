"""A small embedder of speakers for the data at hand: statistics of log-mel frames and of convolutions over them.

It hears nothing above 3.8 kHz and no level, so that recordings of one speaker are not held together by their band or
loudness.

The frames' own statistics make it learn from a few hundred speakers within minutes; the convolutions add to them.

Source: the shape of x-vectors (Snyder et al. 2018, "X-vectors: robust DNN embeddings for speaker recognition"), trained
with an additive margin (Wang et al. 2018, arXiv 1801.05599).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm import configs
from xcodec_lm.codec.batching import keep
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.evaluators import SpeakerConfig
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, bands_below, check_clips, pad_frames, voice_features
from xcodec_lm.tasks.eval.judge_files import (
    find_judge,
    load_weights,
    module_fingerprint,
    read_judge_config,
    save_judge,
)

MODEL_TYPE = "xcodec_lm_tiny_speaker"
CONTEXTS = ((5, 1, 2), (3, 2, 1), (3, 3, 1))
"""Kernel, dilation and stride of each convolution."""
SHORTEST_S = 1.0
"""Shorter clips are repeated up to this length."""


class TinySpeaker(nn.Module):
    """The network.

    Args:
        config: sizes and loss.
        speakers: of the training data, in the order of the classes; empty for a loaded judge, which needs no classes.
    """

    def __init__(self, config: SpeakerConfig, speakers: Sequence[str] = ()):
        super().__init__()
        self.config, self.speakers = config, tuple(speakers)
        self.bands = bands_below(config.highest_hz)
        width = config.channels
        inputs = (self.bands, *(width,) * (len(CONTEXTS) - 1))
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, width, kernel, stride, dilation * (kernel // 2), dilation)
            for channels, (kernel, dilation, stride) in zip(inputs, CONTEXTS, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in CONTEXTS)
        size = 2 * width + 3 * self.bands
        self.scaled = nn.BatchNorm1d(size)
        self.dropout = nn.Dropout(config.dropout)
        self.embed = nn.Linear(size, config.dim)
        self.classes = nn.Parameter(torch.randn(len(speakers), config.dim)) if speakers else None

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings of unit norm.

        Args:
            frames: (B, T, bands) of `judge_audio.voice_features`, with zeros behind each row.
            lengths: (B,) frames of each row.

        Returns:
            (B, D).
        """
        x = frames.mT  # (B, bands, T)
        change = x[:, :, 1:] - x[:, :, :-1] if x.shape[2] > 1 else torch.zeros_like(x)
        statistics = [*_moments(x, lengths), _moments(change, (lengths - 1).clamp_min(1))[1]]
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = conv(keep(x, lengths))  # (B, C, T)
            lengths = (lengths + conv.stride[0] - 1) // conv.stride[0]
            y = F.gelu(norm(y.mT)).mT
            x = y if index == 0 else x + y
        pooled = torch.cat([*statistics, *_moments(x, lengths)], dim=1)  # (B, 2 C + 3 bands)
        return F.normalize(self.embed(self.dropout(self.scaled(pooled))), dim=1)

    def loss(self, rows: Sequence[Tensor], speakers: Sequence[int], margin: float) -> Tensor:
        """Additive-margin softmax loss of a batch.

        Args:
            rows: (T_i, bands) of each clip.
            speakers: class of each clip.
            margin: what is taken off the cosine of the right speaker.
        """
        if self.classes is None:
            raise ValueError("a judge without classes is not trained")
        frames, lengths = pad_frames(rows)
        device = self.classes.device
        cosines = self(frames.to(device), lengths.to(device)) @ F.normalize(self.classes, dim=1).T  # (B, speakers)
        answers = torch.tensor(list(speakers), device=device)
        cosines = cosines - margin * F.one_hot(answers, cosines.shape[1])
        return F.cross_entropy(self.config.scale * cosines, answers)


class TinySpeakerEmbedder:
    """A trained `TinySpeaker` as a judge.

    Args:
        model: in eval mode.
        name: shown in reports.
        ancestry: what it was trained on.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, model: TinySpeaker, name: str = "tinyspeaker", ancestry: dict[str, Any] | None = None):
        self.model, self.name, self.ancestry = model, name, ancestry or {}

    @cached_property
    def fingerprint(self) -> str:
        """See `plugins.PlugIn`."""
        return module_fingerprint(self.model, {"model": configs.to_dict(self.model.config)})

    @torch.inference_mode()
    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings (n, D) float32 of unit norm; each clip is heard alone.

        Silence gets one, too, which means nothing: see `speaker.similarity`.

        Args:
            wavs: (N,) float32 at 16 kHz each; one of less than a second is repeated up to a second.

        Raises:
            AudioError: a clip is empty, not finite, or not on the scale of [-1, 1].
        """
        device = self.model.embed.weight.device
        rows = []
        for wav in check_clips(wavs):
            least = round(SHORTEST_S * SAMPLE_RATE)
            wav = wav.repeat(-(-least // len(wav)))[:least] if len(wav) < least else wav
            frames = voice_features(wav, self.model.bands)
            rows.append(self.model(frames[None].to(device), torch.tensor([len(frames)], device=device))[0].cpu())
        return torch.stack(rows).numpy() if rows else np.zeros((0, self.model.config.dim), dtype=np.float32)


def _moments(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, C) over the valid positions of (B, C, T)."""
    valid = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None]  # (B, 1, T)
    total = lengths[:, None].to(x.dtype)
    mean = (x * valid).sum(dim=2) / total
    variance = ((x - mean[:, :, None]).square() * valid).sum(dim=2) / total
    return mean, (variance + 1e-6).sqrt()


def save_tiny_speaker(model: TinySpeaker, folder: Path, ancestry: dict[str, Any]) -> None:
    """Writes an embedder without its classes; `load_tiny_speaker` reads it.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    bare = TinySpeaker(model.config)
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if name != "classes"})
    save_judge(bare, folder, MODEL_TYPE, {"model": configs.to_dict(model.config), "ancestry": ancestry})


def load_tiny_speaker(source: str | Path, device: str | torch.device = "cpu") -> TinySpeakerEmbedder:
    """An embedder from a folder.

    Args:
        source: model folder, run folder, or what `eval train-evaluators` wrote.
        device: where it computes.

    Raises:
        XcodecLMError: no embedder is there, or it is damaged.
    """
    folder = find_judge(source, "speaker")
    header = read_judge_config(folder)
    where = str(folder / "config.json")
    try:
        if header["model_type"] != MODEL_TYPE:
            raise XcodecLMError(f"{where} describes a {header['model_type']!r}, not a {MODEL_TYPE!r}")
        model = TinySpeaker(configs.from_dict(header["model"], SpeakerConfig, where))
    except (KeyError, TypeError) as error:
        raise XcodecLMError(f"{where} is incomplete: {error}", "train the judge again") from None
    load_weights(model, folder)
    return TinySpeakerEmbedder(model.to(device), ancestry=header.get("ancestry"))
