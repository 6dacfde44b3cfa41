"""Language models on disk: weights, and a `config.json` that says what they are and whose codes they speak."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.configs.errors import XcodecLMError

MODEL_TYPE = "xcodec_lm_gpt"
"""`model_type` of the decoder over a token layout; speech models have their own."""
MODEL_VERSION = 1


def write_model(
    folder: str | Path, kind: str, facts: Mapping[str, Any], weights: Mapping[str, Tensor], half: bool = False
) -> None:
    """Writes a model: all of it, or nothing.

    Args:
        folder: made if it does not exist.
        kind: its `model_type`.
        facts: JSON values for config.json.
        weights: by name.
        half: in half precision, for a model that ships.

    Raises:
        XcodecLMError: the folder cannot be written; what was there before is unchanged.
    """
    text = json.dumps({"model_type": kind, "version": MODEL_VERSION, **facts}, indent=1) + "\n"
    dtype = torch.float16 if half else torch.float32
    kept = {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}
    writers: dict[str, Callable[[Path], object]] = {
        "model.safetensors": lambda path: save_file(kept, path, metadata={"format": "pt"}),
        "config.json": lambda path: path.write_text(text, encoding="utf-8"),
    }
    write_files(Path(folder), writers)


def fill_model(model: nn.Module, folder: Path) -> None:
    """Gives a model on the meta device the weights of a folder, in fp32.

    Raises:
        XcodecLMError: they cannot be read, or do not fit.
    """
    try:
        weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise XcodecLMError(
            f"{folder}: the weights cannot be loaded: {error}", "train or export the model again"
        ) from None


def read_model_config(folder: str | Path, kind: str = MODEL_TYPE) -> dict[str, Any]:
    """What config.json of a saved model holds, with the `extra` values of `save_pretrained`.

    Args:
        folder: of the model.
        kind: `model_type` that it must have.

    Raises:
        XcodecLMError: there is none, or it is of another model or version.
    """
    path = Path(folder) / "config.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise XcodecLMError(
            f"{folder} holds no language model: {path.name} is missing", "give a run folder or its model/"
        ) from None
    except (OSError, ValueError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}") from None
    found = header.get("model_type") if isinstance(header, dict) else None
    if found != kind:
        raise XcodecLMError(
            f"{path} describes a model of type {found!r}, not {kind!r}", "give the folder of a language model"
        )
    if header.get("version") != MODEL_VERSION:
        raise XcodecLMError(
            f"{path} has version {header.get('version')}; this release reads {MODEL_VERSION}", "update xcodec-lm"
        )
    return header
