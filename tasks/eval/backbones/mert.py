"""MERT: features of music, for FD-MERT. MERT-v1-95M, hidden state 9, 75 frames a second at 24 kHz.

MERT's own code no longer runs in today's transformers; its computation with the settings of MERT-v1-95M is that of a
HuBERT, so its weights are put into transformers' `HubertModel`. A configuration with something else (constant-Q
features, deep norm, relaxed attention) is refused. A clip gets mean 0 and variance 1 as a whole and is heard in equal
pieces of at most 30 s.

Sources: Li et al. 2023 (arXiv 2306.00107); https://github.com/yizhilll/MERT.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.convert.state_dicts import respell_weight_norm
from xcodec_lm.codec.fingerprints import read_tensors
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.codec.torch_files import load_tensors
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
)
from xcodec_lm.tasks.eval.backbones.weights import fill
from xcodec_lm.tasks.eval.judge_audio import check_clips
from xcodec_lm.tasks.eval.judge_files import module_fingerprint
from xcodec_lm.tasks.eval.plugins import EmbedderBase

LAYER = 9
SAMPLE_RATE = 24_000
SHORTEST_S = 0.1
POSITIONS = "encoder.pos_conv_embed.conv"
REFUSED = {"feature_extractor_cqt": bool, "deepnorm": bool, "attention_relax": lambda value: (value or 0) > 0}
"""Settings of MERT's that no HuBERT has, and when they act."""
FORGOTTEN = ("auto_map", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype")


class MERTEmbedder(EmbedderBase):
    """One hidden state of a MERT as a plug-in.

    Args:
        model: the HuBERT with its weights, in eval mode.
        layer: which state; 0 is the first layer's input.
        sample_rate: in Hz.
        normalise: whether a clip gets mean 0 and variance 1.
        weights_from: name of its folder.

    Raises:
        XcodecLMError: the model has no such state.
    """

    def __init__(self, model: Any, layer: int, sample_rate: int, normalise: bool, weights_from: str):
        last = model.config.num_hidden_layers
        if not 0 <= layer <= last:
            raise XcodecLMError(f"layer {layer} is asked for, but {weights_from} has hidden states 0..{last}")
        self.model, self.layer, self.normalise = model, layer, normalise
        super().__init__(
            f"mert-layer{layer}", model.config.hidden_size, sample_rate,
            module_fingerprint(model, {"layer": layer, "normalise": normalise, "sample_rate": sample_rate}),
            {"weights_from": weights_from, "base": "MERT"},
        )  # fmt: skip

    @torch.inference_mode()
    def frames(self, wav: np.ndarray) -> np.ndarray:
        """(T, 768), see `plugins.Embedder`; below 0.1 s zeros are put behind a clip."""
        (clip,) = check_clips([wav])
        clip = lengthen(normalised(clip) if self.normalise else clip, round(SHORTEST_S * self.sample_rate))
        pieces = equal_pieces(clip.to(device_of(self.model)), self.sample_rate)
        return torch.cat([one_state(self.model, piece, self.layer).cpu() for piece in pieces]).numpy()


def load(source: str | Path | None, device: str | torch.device = "cpu", layer: int = LAYER) -> MERTEmbedder:
    """MERT from its folder: `config.json` beside `pytorch_model.bin` or `model.safetensors`.

    Args:
        source: the folder, or a hub id.
        device: where it computes.
        layer: which hidden state.

    Raises:
        XcodecLMError: no such folder, another architecture, or weights that do not fit.
    """
    folder = model_folder(source, "a folder of m-a-p/MERT-v1-95M")
    config = read_json(folder / "config.json")
    where = folder / "pytorch_model.bin"
    tensors = load_tensors(where)[0] if where.is_file() else read_tensors(folder)
    model = mert_from_published(tensors, config, where if where.is_file() else folder)
    rate = int(config.get("sample_rate", SAMPLE_RATE))
    name = str(source) if not Path(str(source)).is_dir() else folder.resolve().name
    return MERTEmbedder(model.to(device), layer, rate, needs_normalising(folder), name)


def mert_from_published(tensors: Mapping[str, Tensor], config: Mapping[str, Any], where: str | Path) -> Any:
    """A `HubertModel` with the weights of a MERT.

    Args:
        tensors: by MERT's names, which are HuBERT's; the positions' weight norm in either spelling.
        config: its config.json.
        where: the file, for errors.

    Raises:
        XcodecLMError: it is another architecture, or a tensor is missing, unknown or of another shape.
    """
    from transformers import HubertConfig, HubertModel

    for key, acts in REFUSED.items():
        if acts(config.get(key)):
            raise XcodecLMError(
                f"{where}: the configuration has {key}: {config[key]}, which no HuBERT has",
                "MERT-v1-95M is read; MERT-v1-330M and others need MERT's own code",
            )
    settings = {key: value for key, value in config.items() if key not in (*REFUSED, *FORGOTTEN)}
    try:
        with quiet_transformers(), torch.device("meta"):
            model = HubertModel(HubertConfig(**settings))
    except (TypeError, ValueError, KeyError) as error:
        raise XcodecLMError(f"{where}: the configuration makes no HuBERT: {str(error).splitlines()[0]}") from None
    weights = respell_weight_norm(tensors, POSITIONS, 2, "parametrized")
    fill(model, weights, where, absent=("masked_spec_embed",))
    return model
