"""Folders of judges: weights, sizes, and what they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from xcodec_lm.codec.fingerprints import hash_tensors
from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.configs.errors import XcodecLMError

VERSION = 1


def save_judge(module: nn.Module, folder: Path, kind: str, header: dict[str, Any]) -> None:
    """Writes `model.safetensors` and `config.json`.

    Args:
        module: whose weights are written.
        folder: made if needed.
        kind: the `model_type`.
        header: JSON values; `load_judge` gives them back.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    text = json.dumps({"model_type": kind, "version": VERSION, **header}, indent=1) + "\n"
    write_files(
        folder,
        {
            "model.safetensors": lambda path: save_file(weights, path, metadata={"format": "pt"}),
            "config.json": lambda path: path.write_text(text, encoding="utf-8"),
        },
    )


def module_fingerprint(module: nn.Module, settings: dict[str, Any]) -> str:
    """sha256 over the weights of a module and what else decides its values; where it computes changes nothing."""
    weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    return hash_tensors(sorted(weights.items()), settings)


def find_judge(source: str | Path, subfolder: str = "") -> Path:
    """The folder with the `config.json` of a judge: the folder itself, its `model/`, or those of a part of it.

    Args:
        source: a model folder, a run folder, or what `eval train-evaluators` wrote.
        subfolder: the part that is looked for in the last case, such as `recogniser`.

    Raises:
        XcodecLMError: there is none.
    """
    path = Path(source)
    for folder in (path / "model", path, path / subfolder / "model", path / subfolder):
        if (folder / "config.json").is_file():
            return folder
    raise XcodecLMError(
        f"{path} holds no judge: there is no config.json in it or in its model/",
        "give a folder that `xcodec-lm eval train-evaluators` wrote, or a local transformers folder",
    )


def read_judge_config(folder: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
        XcodecLMError: it is not a JSON object, or one of our judges of another version.
    """
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise XcodecLMError(f"{path} is not a JSON object")
    if str(data.get("model_type", "")).startswith("xcodec_lm_") and data.get("version") != VERSION:
        raise XcodecLMError(f"{path} has version {data.get('version')}; this release reads {VERSION}")
    return data


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fills a module with the weights of its folder and puts it into eval mode.

    Raises:
        XcodecLMError: the file is missing or damaged, or its weights do not fit.
    """
    path = folder / "model.safetensors"
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise XcodecLMError(f"{path} does not fit its config.json, or cannot be read: {error}") from None
    module.eval().requires_grad_(False)
