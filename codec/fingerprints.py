"""Fingerprints of tokenizers, and the weight files that they are taken from.

A fingerprint is a sha256 over what decides the codes: sizes that no shape shows, and the encode-side tensors as stored.
Two codecs with the same fingerprint give the same tokens; stores, language models and generation refuse a mismatch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xcodec_lm.configs.errors import XcodecLMError


def hash_tensors(tensors: Iterable[tuple[str, Tensor]], architecture: dict[str, Any]) -> str:
    """sha256 over an architecture and named tensors: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for key, value in tensors:
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored_fingerprint(folder: Path, architecture: dict[str, Any], decides_codes: Callable[[str], bool]) -> str:
    """The fingerprint of the codec stored in a folder, one tensor in memory at a time.

    Args:
        folder: with safetensors files.
        architecture: what decides the codes beside the weights.
        decides_codes: whether a tensor of this name acts on the codes.

    Raises:
        XcodecLMError: no weights, or unreadable ones.
    """
    index: dict[str, Path] = {}
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as handle:
                index |= dict.fromkeys(handle.keys(), file)
    except (SafetensorError, OSError) as error:
        raise XcodecLMError(f"{folder}: the weights cannot be read: {error}") from None

    def stored() -> Iterable[tuple[str, Tensor]]:
        for key in sorted(filter(decides_codes, index)):
            with safe_open(index[key], framework="pt") as handle:
                yield key, handle.get_tensor(key)

    return hash_tensors(stored(), architecture)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        XcodecLMError: there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise XcodecLMError(f"{folder} has a config.json but no model.safetensors")
    return files


def read_tensors(folder: Path, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, Tensor]:
    """The tensors of a folder's weight files whose names are wanted; the others are not read.

    Raises:
        XcodecLMError: no weights, or unreadable ones.
    """
    tensors = {}
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as handle:
                for key in filter(wanted, handle.keys()):
                    tensors[key] = handle.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise XcodecLMError(f"{folder}: the weights cannot be read: {error}") from None
    return tensors
