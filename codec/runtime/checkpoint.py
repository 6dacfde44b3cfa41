"""Checkpoints: a folder a step, whole or absent.

Weights are safetensors, optimizer states are read with `weights_only`, the rest is JSON. A checkpoint is written under
a temporary name, flushed to disk and renamed, so a killed process leaves none that is half written. The checksum of
every file stands in `state.json`: what a disk or a copy has torn is found before anything of it is used.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xcodec_lm.codec.runtime.files import flush
from xcodec_lm.configs.errors import XcodecLMError


class Stateful(Protocol):
    """What a checkpoint can hold: a module, an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """All that it knows."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Takes that up again."""
        ...


_NAME = re.compile(r"step-(\d+)")


def all_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below a run's `checkpoints/`, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below a run's `checkpoints/`, or None."""
    return next(iter(all_checkpoints(folder)), None)


def checkpoint_step(path: Path) -> int:
    """The number of steps done when a checkpoint was written."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise XcodecLMError(f"{path} is not a checkpoint: its name is not step-N")
    return int(match[1])


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    optimizers: dict[str, dict[str, Any]],
    extra: dict[str, Any],
    keep: int,
) -> Path:
    """Writes `folder/step-N` and removes the oldest beyond `keep`.

    Args:
        folder: a run's `checkpoints/`.
        step: optimizer steps done.
        tensors: name -> state dict; one safetensors file each.
        optimizers: name -> state dict of an optimizer.
        extra: JSON values.
        keep: how many checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    target, temporary = folder / f"step-{step}", folder / f".tmp-step-{step}"
    temporary.mkdir()
    for name, state in tensors.items():
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in state.items()}, temporary / f"{name}.safetensors"
        )
    for name, state in optimizers.items():
        torch.save(state, temporary / f"{name}.optimizer.pt")
    checksums = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
    state = {"step": step, **extra, "checksums": checksums}
    (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for path in [*temporary.iterdir(), temporary]:
        flush(path)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    flush(folder)
    newest_first = sorted(folder.glob("step-*"), key=checkpoint_step, reverse=True)
    for old in newest_first[keep:]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    path: Path, modules: Mapping[str, Stateful], optimizers: Mapping[str, Stateful]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Reads a checkpoint into modules and optimizers, strictly.

    Args:
        path: a `step-N` folder.
        modules: name -> what loads the state file of that name.
        optimizers: name -> optimizer.

    Returns:
        The JSON values, and the state dicts of the files that no module was given for.

    Raises:
        XcodecLMError: a file is missing, torn or does not fit.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, checksum in state.pop("checksums", {}).items():
            if _checksum(path / name) != checksum:
                raise ValueError(f"{name} is not what was written")
        for name, module in modules.items():
            module.load_state_dict(load_file(path / f"{name}.safetensors"))
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(torch.load(path / f"{name}.optimizer.pt", weights_only=True, map_location="cpu"))
        others = {
            file.name.removesuffix(".safetensors"): load_file(file)
            for file in path.glob("*.safetensors")
            if file.name.removesuffix(".safetensors") not in modules
        }
        return state, others
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise XcodecLMError(
            f"{path}: the checkpoint does not fit this run, or is damaged: {error}",
            "remove that folder to fall back to the one before it",
        ) from None


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
