"""Speakers by transformers' WavLM with an x-vector head, such as microsoft/wavlm-base-plus-sv.

Its figures are no SIM-O: they lie far above those of the WavLM-Large with an ECAPA-TDNN, and are compared with none
but its own. A clip below 1 s is repeated up to a second; one beyond 30 s is heard by WavLM in equal pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.backbones.ssl_models import (
    device_of,
    equal_pieces,
    lengthen,
    model_folder,
    needs_normalising,
    normalised,
    one_state,
    read_json,
    weighted_states,
)
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, check_clips
from xcodec_lm.tasks.eval.judge_files import module_fingerprint

UNUSED = ("objective.weight", "masked_spec_embed")
"""Weights that act in training alone."""


class HFXVector:
    """A `WavLMForXVector` as a plug-in.

    Args:
        model: in eval mode.
        normalise: whether a clip gets mean 0 and variance 1.
        weights_from: name of its folder.
    """

    name, sample_rate = "hf-xvector", SAMPLE_RATE

    def __init__(self, model: Any, normalise: bool, weights_from: str):
        self.model, self.normalise, self.dim = model, normalise, model.config.xvector_output_dim
        self.ancestry: dict[str, Any] = {"weights_from": weights_from, "base": "WavLM"}

    @cached_property
    def fingerprint(self) -> str:
        """See `plugins.PlugIn`."""
        return module_fingerprint(self.model, {"normalise": self.normalise, "pieces_s": 30})

    @torch.inference_mode()
    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """(n, D) of unit norm, see `plugins.SpeakerEmbedder`."""
        rows = []
        for clip in check_clips(wavs):
            wav = lengthen(clip, SAMPLE_RATE, repeat=True).to(device_of(self.model))
            pieces = equal_pieces(normalised(wav) if self.normalise else wav, SAMPLE_RATE)
            rows.append(self._vector(torch.cat([self._features(piece) for piece in pieces])).cpu())
        return torch.stack(rows).numpy() if rows else np.zeros((0, self.dim), np.float32)

    def _features(self, wav: Tensor) -> Tensor:
        if not self.model.config.use_weighted_layer_sum:
            return one_state(self.model.wavlm, wav, -1)
        return weighted_states(self.model.wavlm, wav, self.model.layer_weights.softmax(dim=0))

    def _vector(self, features: Tensor) -> Tensor:
        """(T, D) of one clip -> (dim,), by the modules of transformers' head in its order."""
        x = self.model.projector(features[None])
        for layer in self.model.tdnn:
            x = layer(x)
        pooled = torch.cat([x.mean(dim=1), x.std(dim=1)], dim=1)
        return F.normalize(self.model.feature_extractor(pooled)[0], dim=0)


def load(source: str | Path | None, device: str | torch.device = "cpu") -> HFXVector:
    """A `WavLMForXVector` from its folder.

    Args:
        source: the folder, or a hub id.
        device: where it computes.

    Raises:
        XcodecLMError: no such folder, another model, or weights that do not fit.
    """
    from transformers import WavLMForXVector

    folder = model_folder(source, "a folder of a WavLMForXVector, such as microsoft/wavlm-base-plus-sv,")
    config = read_json(folder / "config.json")
    architecture = (config.get("architectures") or ["none named"])[0]
    if config.get("model_type") != "wavlm" or not architecture.endswith("ForXVector"):
        raise XcodecLMError(
            f"{folder / 'config.json'} describes a {config.get('model_type')!r} model ({architecture}), not a WavLM "
            "with an x-vector head"
        )
    loader: Any = WavLMForXVector
    try:
        with quiet_transformers():
            model, report = loader.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # what a damaged file raises depends on the file
        raise XcodecLMError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}", "copy it again") from None
    for kind in ("missing", "unexpected"):
        if names := sorted(key for key in report[f"{kind}_keys"] if not key.endswith(UNUSED)):
            raise XcodecLMError(f"{folder}: {kind} weights: {', '.join(names[:3])} ({len(names)} in all)")
    name = str(source) if not Path(str(source)).is_dir() else folder.resolve().name
    model.eval().requires_grad_(False)
    return HFXVector(model.to(device), needs_normalising(folder), name)
