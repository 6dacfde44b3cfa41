"""Starting a training run from a codec that has been trained already.

For fine-tuning, for giving an X-Codec and its twin one acoustic start (both then differ in the semantic path alone, and
what is the same in both is paid for once), and for a new decoder on an old tokenizer.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from xcodec_lm.codec.load import load_codec
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.configs.errors import ConfigError

Codec = TypeVar("Codec", XCodec, XCodec2)

KINDS = {XCodec: "an X-Codec or its twin", XCodec2: "an X-Codec 2 or a relative of it"}
TEACHERS = {XCodec: "semantic_model", XCodec2: "semantic_encoder"}
"""Module of each family that is left as it is."""
JOINTS = {XCodec: "fc", XCodec2: "fc_encoder"}
"""Linear map of each family that takes both branches; the acoustic one comes first in X-Codec, last in X-Codec 2."""


def start_from(codec: Codec, source: str, fresh: tuple[str, ...] = ()) -> Codec:
    """Copies all that two codecs have in common.

    A codec that starts from a twin without semantics takes its acoustic stacks, quantizer and projections; the columns
    that the teacher's features enter by stay fresh.

    Args:
        codec: fresh, with or without weight norms.
        source: a run folder, model folder, shipped name or hub id of a codec of the same family.
        fresh: first words of the names of modules that are not copied.

    Returns:
        The codec that it starts from.

    Raises:
        ConfigError: no codec of this family, or one of other sizes.
    """
    other = load_start(type(codec), source)
    copy_common(codec, other, source, fresh)
    return other


def load_start(kind: type[Codec], source: str) -> Codec:
    """The codec that `model.start_from` names.

    Raises:
        ConfigError: it is not of this family.
    """
    other = load_codec(source)
    if not isinstance(other, kind):
        raise ConfigError(f"model.start_from: {source} is not {KINDS[kind]}")
    return other


@torch.no_grad()
def copy_common(codec: Codec, other: Codec, source: str, fresh: tuple[str, ...] = ()) -> None:
    """Copies into a codec all that another of its family has in common with it; see `start_from`."""
    theirs = dict(other.named_modules())
    left, joint, columns = (TEACHERS[type(codec)], *fresh), JOINTS[type(codec)], _acoustic_columns(codec, other)
    for name, module in codec.named_modules():
        if name.startswith(left) or name not in theirs or ".parametrizations" in name:
            continue
        their = theirs[name]
        for key, value in (*their.named_parameters(recurse=False), *their.named_buffers(recurse=False)):
            _copy(module, key, value, name, source, columns if name == joint else None)


def _acoustic_columns(codec: XCodec | XCodec2, other: XCodec | XCodec2) -> slice | None:
    """Columns of the joint map that a twin's map goes to; None where both have a teacher, or neither."""
    if not codec.has_semantics or other.has_semantics:
        return None
    return slice(codec.config.latent_dim) if isinstance(codec, XCodec) else slice(-codec.config.dim, None)


def _copy(
    module: nn.Module, key: str, value: torch.Tensor, name: str, source: str, columns: slice | None = None
) -> None:
    mine = getattr(module, key)
    if key == "weight" and columns is not None and mine[:, columns].shape == value.shape:
        mine[:, columns] = value
    elif mine.shape != value.shape:
        raise ConfigError(
            f"model.start_from: {name}.{key} has shape {tuple(value.shape)} in {source}, and {tuple(mine.shape)} here",
            "give the model the sizes of the codec that it starts from",
        )
    elif parametrize.is_parametrized(module, key):
        setattr(module, key, value.detach())
    else:
        mine.copy_(value)
