"""VGGish: a vector of 128 features for each 0.96 s, for FAD.

The vectors are those of TensorFlow's model, before its post-processing: no PCA, no whitening, no 8 bits. The torch port
ends with a ReLU that the original lacks (harritaylor/torchvggish#24); it is left out. Patches do not overlap, as in
the port; a clip below one patch gets zeros behind it.

Sources: Hershey et al. 2017 (arXiv 1609.09430), Kilgour et al. 2019 (arXiv 1812.08466);
https://github.com/tensorflow/models/tree/master/research/audioset/vggish for the spectrum,
https://github.com/harritaylor/torchvggish for the names of the weights.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xcodec_lm.codec.convert.state_dicts import shape_of
from xcodec_lm.tasks.eval.backbones.ssl_models import device_of, lengthen
from xcodec_lm.tasks.eval.backbones.weights import fill, read_published
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips
from xcodec_lm.tasks.eval.judge_files import module_fingerprint
from xcodec_lm.tasks.eval.plugins import EmbedderBase

WINDOW, HOP, TRANSFORM = 400, 160, 512
BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 125.0, 7500.0
OFFSET = 0.01
"""Added to a mel magnitude before its logarithm."""
PATCH = 96
"""Frames of a patch: 0.96 s."""
SHORTEST = WINDOW + (PATCH - 1) * HOP
"""Samples of one patch: 0.975 s."""
CONVS = (0, 3, 6, 8, 11, 13)
"""Places of the convolutions among ReLUs and maxima; a maximum follows all but those at 6 and 11."""
UNUSED = re.compile(r"^pproc\.(pca_matrix|pca_means)$")
"""Post-processing, which some files hold beside the network."""
BATCH = 32


class VGGish(nn.Module):
    """The network, with the names of the published file.

    Args:
        channels: of the six convolutions; 64, 128, 256, 256, 512, 512 as published.
        hidden: of the two hidden layers; 4096 as published.
        dim: of the vector; 128 as published.
    """

    def __init__(self, channels: tuple[int, ...], hidden: tuple[int, int], dim: int):
        super().__init__()
        layers: list[nn.Module] = []
        for place, before, after in zip(CONVS, (1, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            if place not in (6, 11):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        cells = (PATCH // 16) * (BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(channels[-1] * cells, hidden[0]), nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]), nn.ReLU(),
            nn.Linear(hidden[1], dim),
        )  # fmt: skip

    def forward(self, patches: Tensor) -> Tensor:
        """(R, 96, 64) log-mel patches -> (R, 128)."""
        x = self.features(patches[:, None])  # (R, C, 6, 4)
        return self.embeddings(x.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order: channels last


class VGGishEmbedder(EmbedderBase):
    """`VGGish` as a plug-in.

    Args:
        model: in eval mode.
        weights_from: name of its file.
    """

    def __init__(self, model: VGGish, weights_from: str):
        self.model = model
        super().__init__(
            "vggish", shape_of(model.state_dict(), "embeddings.4.weight", weights_from)[0], SAMPLE_RATE,
            module_fingerprint(model, {"patch": PATCH, "hop": PATCH, "last_relu": False, "pca": False}),
            {"weights_from": weights_from, "base": "VGGish, trained on YouTube-8M"},
        )  # fmt: skip

    @torch.inference_mode()
    def frames(self, wav: np.ndarray) -> np.ndarray:
        """(R, 128), one row for each whole 0.96 s; see `plugins.Embedder`."""
        (clip,) = check_clips([wav])
        device = device_of(self.model)
        return torch.cat([self.model(part.to(device)).cpu() for part in log_mel_patches(clip).split(BATCH)]).numpy()


def log_mel_patches(wav: Tensor) -> Tensor:
    """(N,) at 16 kHz -> (R, 96, 64): R = (1 + (N - 400) // 160) // 96, and 1 at least."""
    frames = lengthen(wav.double(), SHORTEST).unfold(0, WINDOW, HOP)  # (frames, 400)
    window = torch.hann_window(WINDOW, dtype=torch.float64)
    mel = (torch.fft.rfft(frames * window, TRANSFORM).abs() @ _mel_filters() + OFFSET).log()
    return mel[: len(mel) // PATCH * PATCH].view(-1, PATCH, BANDS).float()


@functools.cache
def _mel_filters() -> Tensor:
    """(257, 64) triangles that are straight on the mel axis, with peaks of 1."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        TRANSFORM // 2 + 1,
        BANDS,
        LOWEST_HZ,
        HIGHEST_HZ,
        SAMPLE_RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters)


def load(source: str | Path | None, device: str | torch.device = "cpu") -> VGGishEmbedder:
    """VGGish from the torch port's published file.

    Raises:
        XcodecLMError: no file, one of another model, or one that is damaged.
    """
    path, tensors = read_published(source, "torchvggish's vggish-10086976.pth")
    return VGGishEmbedder(vggish_from_published(tensors, path).to(device), path.name)


def vggish_from_published(tensors: Mapping[str, Tensor], where: str | Path) -> VGGish:
    """The network with the weights of a file.

    Raises:
        XcodecLMError: a tensor is missing, unknown or of another shape.
    """
    weights = {key: value for key, value in tensors.items() if not UNUSED.match(key)}
    channels = tuple(shape_of(weights, f"features.{place}.weight", str(where))[0] for place in CONVS)
    first, second, dim = (shape_of(weights, f"embeddings.{place}.weight", str(where))[0] for place in (0, 2, 4))
    with torch.device("meta"):
        model = VGGish(channels, (first, second), dim)
    fill(model, weights, where)
    return model
