"""Self-supervised models under judges: wav2vec 2.0, HuBERT and WavLM, one clip at a time, every hidden state.

In transformers 5 `hidden_states[-1]` of a model that normalises before its layers (WavLM-Large, HuBERT-Large) is not
layer-normed, though everything that was published on such models takes it so. Here the last state always is
`last_hidden_state`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.codec.teacher_forward import LocalFeatures, hidden_states
from xcodec_lm.configs.errors import XcodecLMError

LONGEST_S = 30.0
"""What attention spans at once. WavLM's position bias takes memory that grows with the square of this."""


def states(model: Any, wav: Tensor) -> Iterator[Tensor]:
    """All hidden states of a clip: what the first layer is given, then the output of each; the last one is normed.

    Args:
        model: a wav2vec 2.0, HuBERT or WavLM of transformers, in eval mode.
        wav: (N,) as the model wants it.

    Yields:
        (T, D).
    """
    local = LocalFeatures(model, wav[None])
    last = model.config.num_hidden_layers
    for index, state in enumerate(hidden_states(model, local(0, local.total), None)):
        pre_norm = index == last and model.config.do_stable_layer_norm
        yield (model.encoder.layer_norm(state) if pre_norm else state)[0]


def weighted_states(model: Any, wav: Tensor, shares: Tensor) -> Tensor:
    """(T, D): the sum of all hidden states of a clip, each times its share; no two are held at once.

    Raises:
        ValueError: as many shares as states are needed.
    """
    total: Tensor | None = None
    for share, state in zip(shares, states(model, wav), strict=True):
        total = share * state if total is None else total.add_(share * state)
    assert total is not None  # a model has layers
    return total


def one_state(model: Any, wav: Tensor, layer: int) -> Tensor:
    """(T, D): one hidden state of a clip; 0 is the first layer's input, -1 the last."""
    layer = layer % (model.config.num_hidden_layers + 1)
    return next(state for index, state in enumerate(states(model, wav)) if index == layer)


def equal_pieces(wav: Tensor, sample_rate: int, longest_s: float = LONGEST_S) -> list[Tensor]:
    """(N,) in as few pieces of at most `longest_s` as it takes, of one length give or take a sample."""
    count = max(1, math.ceil(len(wav) / (longest_s * sample_rate)))
    return list(wav.tensor_split(count))


def lengthen(wav: Tensor, least: int, repeat: bool = False) -> Tensor:
    """(N,) with at least so many samples: zeros behind it, or the clip again and again."""
    if len(wav) >= least:
        return wav
    return wav.repeat(-(-least // len(wav)))[:least] if repeat else F.pad(wav, (0, least - len(wav)))


def normalised(wav: Tensor) -> Tensor:
    """(N,) with mean 0 and variance 1, as transformers' feature extractor makes it."""
    return (wav - wav.mean()) / (wav.var(correction=0) + 1e-7).sqrt()


def model_folder(source: str | Path | None, what: str) -> Path:
    """A folder in transformers' layout: a local one, or that of a hub id, which is fetched because the user names it.

    Args:
        source: path, or `owner/name`.
        what: which folder is meant, for the error.

    Raises:
        XcodecLMError: there is none, or the hub does not have it or is out of reach.
    """
    if source is None:
        raise XcodecLMError(f"no weights are given; {what} is needed", "give its path, or its hub id")
    path = Path(source)
    if (path / "config.json").is_file():
        return path
    if path.exists():
        raise XcodecLMError(f"{path} has no config.json; {what} is needed", "give the folder, with all its files")
    if str(source).count("/") == 1 and not path.is_absolute() and path.parts[0] not in (".", "..", "~"):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.bin"]))
        except Exception as error:  # the hub's client raises many kinds; each means that the name leads nowhere
            raise XcodecLMError(
                f"{source}: no such folder, and not to be had from the hub ({type(error).__name__})",
                "check the name and the network, or give a local folder",
            ) from None
    raise XcodecLMError(f"{path}: no such folder; {what} is needed", "check the path")


def needs_normalising(folder: Path, default: bool = True) -> bool:
    """Whether a folder's feature extractor gives a clip mean 0 and variance 1.

    Raises:
        XcodecLMError: its `preprocessor_config.json` cannot be read.
    """
    return bool(read_json(folder / "preprocessor_config.json", {}).get("do_normalize", default))


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object.

    Raises:
        XcodecLMError: there is none, and nothing stands in for it; or it is damaged.
    """
    import json

    if missing is not None and not path.is_file():
        return missing
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}", "copy or download it again") from None
    if not isinstance(data, dict):
        raise XcodecLMError(f"{path} is not a JSON object")
    return data


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    return next(module.parameters()).device
