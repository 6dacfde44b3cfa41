"""Speakers by Resemblyzer: the GE2E encoder whose weights come inside its package, in an LSTM of our own.

A clip is raised to -30 dBFS where it is softer, loses long pauses, and is heard in stretches of 1.6 s, some 0.77 s
apart; the vectors of the stretches are averaged. They have no negative features, so two strangers are near 0.5, not 0:
the figure is read between its anchors.

The package is not imported, since it needs librosa and parts of scipy that are gone; webrtcvad finds the pauses.

Sources: Wan et al. 2018 (arXiv 1710.10467); https://github.com/resemble-ai/Resemblyzer (Apache-2.0) for the settings.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.codec.convert.state_dicts import shape_of
from xcodec_lm.tasks.eval.backbones.mel import slaney_filters
from xcodec_lm.tasks.eval.backbones.ssl_models import device_of, lengthen
from xcodec_lm.tasks.eval.backbones.weights import fill, need_package, package_folder, read_published
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips, is_silent
from xcodec_lm.tasks.eval.judge_files import module_fingerprint

INSTALL = "pip install --no-deps Resemblyzer && pip install webrtcvad-wheels"
UNUSED = re.compile(r"^similarity_(weight|bias)$")
"""Of the loss."""
TRANSFORM, HOP, BANDS = 400, 160, 40
STRETCH = 160
"""Frames that the LSTM hears at once."""
STEP = round(SAMPLE_RATE / 1.3 / HOP)
"""Frames between stretches: 1.3 a second."""
LEAST_COVERED = 0.75
"""A last stretch with less of the clip in it is left out."""
SOFTEST_DBFS = -30.0
VAD_SAMPLES = SAMPLE_RATE * 30 // 1000
VAD_WIDTH, VAD_REACH = 8, 7
"""Windows of 30 ms whose votes are averaged, and windows by which a voiced stretch grows, itself included."""


class VoiceEncoder(nn.Module):
    """The network, with the names of the published file.

    Args:
        hidden: of the LSTM; 256 as published.
        layers: of the LSTM; 3 as published.
        dim: of the vector; 256 as published.
    """

    def __init__(self, hidden: int, layers: int, dim: int):
        super().__init__()
        self.lstm = nn.LSTM(BANDS, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, dim)

    def forward(self, mel: Tensor) -> Tensor:
        """(R, 160, 40) mel powers -> (R, dim) of unit norm."""
        _, (last, _) = self.lstm(mel)
        return F.normalize(F.relu(self.linear(last[-1])), dim=1)


class Resemblyzer:
    """`VoiceEncoder` as a plug-in.

    Args:
        model: in eval mode.
        weights_from: name of its file.
    """

    name, sample_rate = "resemblyzer", SAMPLE_RATE

    def __init__(self, model: VoiceEncoder, weights_from: str):
        self.model, self.dim = model, model.linear.out_features
        self._detector = need_package("webrtcvad", INSTALL)
        self.ancestry: dict[str, Any] = {"weights_from": weights_from, "base": "GE2E on LibriSpeech-other and VoxCeleb"}

    @cached_property
    def fingerprint(self) -> str:
        """See `plugins.PlugIn`."""
        return module_fingerprint(self.model, {"step": STEP, "pauses": "webrtcvad"})

    @torch.inference_mode()
    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 256) of unit norm, see `plugins.SpeakerEmbedder`; a clip without a voice is heard whole."""
        device, rows = device_of(self.model), []
        for clip in check_clips(wavs):
            vectors = self.model(stretches(self._voiced(clip)).to(device))
            rows.append(F.normalize(vectors.mean(dim=0), dim=0).cpu())
        return torch.stack(rows).numpy() if rows else np.zeros((0, self.dim), np.float32)

    def _voiced(self, wav: Tensor) -> Tensor:
        """(N,) at a level, without long pauses."""
        if is_silent(wav):
            return wav
        wav = wav * max(1.0, 10 ** (SOFTEST_DBFS / 20) / float(wav.square().mean().sqrt()))
        detector = self._detector.Vad(mode=3)
        whole = wav[: len(wav) // VAD_SAMPLES * VAD_SAMPLES]
        pcm = (whole * 32767).round().clamp(-32768, 32767).to(torch.int16).numpy()
        votes = [detector.is_speech(part.tobytes(), SAMPLE_RATE) for part in pcm.reshape(-1, VAD_SAMPLES)]
        kept = keep_voiced(np.array(votes, dtype=bool))
        return whole.view(-1, VAD_SAMPLES)[torch.from_numpy(kept)].flatten() if kept.any() else wav


def keep_voiced(votes: np.ndarray) -> np.ndarray:
    """(W,) votes of the detector -> (W,) which windows stay: where most of eight agree, and three more on each side."""
    if not len(votes):
        return votes
    padded = np.pad(votes.astype(np.int64), ((VAD_WIDTH - 1) // 2, VAD_WIDTH // 2))
    agreed = np.convolve(padded, np.ones(VAD_WIDTH, np.int64), "valid") > VAD_WIDTH // 2
    reach = VAD_REACH // 2
    return np.convolve(np.pad(agreed.astype(np.int64), reach), np.ones(VAD_REACH, np.int64), "valid") > 0


def stretches(wav: Tensor) -> Tensor:
    """(N,) -> (R, 160, 40) mel powers of stretches of 1.6 s, R at least 1; where a last one needs them, with zeros."""
    frames = math.ceil((len(wav) + 1) / HOP)
    starts = list(range(0, max(1, frames - STRETCH + STEP + 1), STEP))
    if len(starts) > 1 and (len(wav) - starts[-1] * HOP) / (STRETCH * HOP) < LEAST_COVERED:
        starts.pop()
    wav = lengthen(wav, (starts[-1] + STRETCH) * HOP)
    window = torch.hann_window(TRANSFORM, dtype=torch.float64)
    spectrum = torch.stft(
        wav.double(), TRANSFORM, HOP, window=window, pad_mode="constant", return_complex=True
    ).abs().square()  # fmt: skip
    mel = (spectrum.T @ _mel_filters()).float()
    return torch.stack([mel[start : start + STRETCH] for start in starts])


@functools.cache
def _mel_filters() -> Tensor:
    return slaney_filters(np.fft.rfftfreq(TRANSFORM, 1 / SAMPLE_RATE), BANDS, 0, SAMPLE_RATE / 2)


def load(source: str | Path | None = None, device: str | torch.device = "cpu") -> Resemblyzer:
    """The encoder with the weights of the package, or of a file in its layout.

    Args:
        source: the file; None finds the package's `pretrained.pt`.
        device: where it computes.

    Raises:
        XcodecLMError: a package or the file is missing, or the file is of another model.
    """
    file = Path(source) if source is not None else package_folder("resemblyzer", INSTALL) / "pretrained.pt"
    path, tensors = read_published(file, "Resemblyzer's pretrained.pt")
    return Resemblyzer(encoder_from_published(tensors, path).to(device), path.name)


def encoder_from_published(tensors: Mapping[str, Tensor], where: str | Path) -> VoiceEncoder:
    """The network with the weights of a file.

    Raises:
        XcodecLMError: a tensor is missing, unknown or of another shape.
    """
    weights = {key: value for key, value in tensors.items() if not UNUSED.match(key)}
    dim, hidden = shape_of(weights, "linear.weight", str(where))
    layers = sum(key.startswith("lstm.weight_ih_l") for key in weights)
    with torch.device("meta"):
        model = VoiceEncoder(hidden, max(1, layers), dim)
    fill(model, weights, where)
    return model
