"""UTMOS: the mean opinion score that listeners would give a recording of speech, between 1 and 5 or so.

The strong learner of UTMOS22 without its phoneme branch: a wav2vec 2.0 (Base), one fixed domain and one fixed judge
beside each of its frames, an LSTM in both directions, a hidden layer, and the mean over time, times 2 plus 3.

The published model pads its frames to an even number under a mask, which changes nothing; and it has no mask for
padded clips, so clips are heard one by one.

Sources: Saeki et al. 2022 (arXiv 2204.02152); https://github.com/tarepan/SpeechMOS (MIT) for the names of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xcodec_lm.codec.convert.state_dicts import shape_of
from xcodec_lm.tasks.eval.backbones.fairseq import model_from_fairseq
from xcodec_lm.tasks.eval.backbones.ssl_models import device_of, lengthen, one_state
from xcodec_lm.tasks.eval.backbones.weights import fill, read_published
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips
from xcodec_lm.tasks.eval.judge_files import module_fingerprint

SCALE, MIDDLE = 2.0, 3.0
SHORTEST = SAMPLE_RATE // 10
SSL = "wav2vec2."


class UTMOSHead(nn.Module):
    """What stands behind the wav2vec 2.0, with the names of the published file.

    Args:
        ssl_dim: of the wav2vec 2.0's frames; 768 as published.
        domain_dim: of the domain's vector; 128 as published.
        judge_dim: of the judge's; 128 as published.
        rnn_dim: of the LSTM in either direction; 512 as published.
        hidden: of the hidden layer; 2048 as published.
    """

    def __init__(self, ssl_dim: int, domain_dim: int, judge_dim: int, rnn_dim: int, hidden: int):
        super().__init__()
        self.domain_emb = nn.Parameter(torch.empty(1, domain_dim))
        self.judge_emb = nn.Parameter(torch.empty(1, judge_dim))
        self.blstm = nn.LSTM(ssl_dim + domain_dim + judge_dim, rnn_dim, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(2 * rnn_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """(T, ssl_dim) of one clip -> its score, a scalar."""
        given = torch.cat([self.domain_emb, self.judge_emb], dim=1).expand(len(frames), -1)
        x = self.blstm(torch.cat([frames, given], dim=1)[None])[0]  # (1, T, 2 * rnn_dim)
        return self.projection(x).mean() * SCALE + MIDDLE


class UTMOS22:
    """UTMOS as a plug-in.

    Args:
        ssl: the wav2vec 2.0, in eval mode.
        head: in eval mode.
        weights_from: name of their file.
    """

    name, sample_rate, scores = "utmos22", SAMPLE_RATE, ("utmos",)

    def __init__(self, ssl: Any, head: UTMOSHead, weights_from: str):
        self.ssl, self.head = ssl, head
        self.ancestry: dict[str, Any] = {
            "weights_from": weights_from, "base": "wav2vec2-base, tuned on opinions of the VoiceMOS Challenge 2022",
        }  # fmt: skip

    @cached_property
    def fingerprint(self) -> str:
        """See `plugins.PlugIn`."""
        return module_fingerprint(nn.ModuleList([self.ssl, self.head]), {"scale": SCALE, "middle": MIDDLE})

    @torch.inference_mode()
    def predict(self, wavs: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """`utmos` of each clip, see `plugins.MosPredictor`; below 0.1 s zeros are put behind a clip.

        The level is left as it is: the model was trained so, and its answer may depend on it.
        """
        device = device_of(self.head)
        clips = [lengthen(clip, SHORTEST).to(device) for clip in check_clips(wavs)]
        return [{"utmos": float(self.head(one_state(self.ssl, clip, -1)))} for clip in clips]


def load(source: str | Path | None, device: str | torch.device = "cpu") -> UTMOS22:
    """UTMOS from `utmos22_strong_step7459_v1.pt`.

    Raises:
        XcodecLMError: no file, one of another model, or one that is damaged.
    """
    path, tensors = read_published(source, "SpeechMOS' utmos22_strong_step7459_v1.pt")
    ssl, head = utmos_from_published(tensors, path)
    return UTMOS22(ssl.to(device), head.to(device), path.name)


def utmos_from_published(tensors: Mapping[str, Tensor], where: str | Path) -> tuple[Any, UTMOSHead]:
    """The wav2vec 2.0 and what stands behind it, with the weights of a file.

    Raises:
        XcodecLMError: a tensor is missing, unknown or of another shape.
    """
    weights = {key: value for key, value in tensors.items() if not key.startswith(SSL)}
    ssl = model_from_fairseq(tensors, SSL, str(where))
    domain, judge = (shape_of(weights, key, str(where))[1] for key in ("domain_emb", "judge_emb"))
    rnn_dim = shape_of(weights, "blstm.weight_hh_l0", str(where))[1]
    hidden = shape_of(weights, "projection.0.weight", str(where))[0]
    with torch.device("meta"):
        head = UTMOSHead(ssl.config.hidden_size, domain, judge, rnn_dim, hidden)
    fill(head, weights, where)
    return ssl, head
