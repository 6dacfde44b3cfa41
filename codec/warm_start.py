"""Starting a training run from a codec that has been trained already.

For fine-tuning, and for giving an X-Codec and its twin one acoustic start: both then differ in the semantic path alone,
and what is the same in both is paid for once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from xcodec_lm.codec.load import load_codec
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs.errors import ConfigError


@torch.no_grad()
def start_from(codec: XCodec, source: str) -> None:
    """Copies all that two codecs have in common.

    An X-Codec that starts from a twin takes its acoustic stacks, codebooks and projections; the columns of `fc` that
    the teacher's features enter by stay fresh.

    Args:
        codec: fresh, with or without weight norms.
        source: a run folder, model folder, shipped name or hub id of an X-Codec or twin.

    Raises:
        ConfigError: no codec of this family, or one of other sizes.
    """
    other = load_codec(source)
    if not isinstance(other, XCodec):
        raise ConfigError(f"model.start_from: {source} is not an X-Codec or its twin")
    theirs = dict(other.named_modules())
    for name, module in codec.named_modules():
        if name.startswith("semantic_model") or name not in theirs or ".parametrizations" in name:
            continue
        for key, value in theirs[name].named_parameters(recurse=False):
            _copy(module, key, value, name, source, codec.config.latent_dim)
        for key, value in theirs[name].named_buffers(recurse=False):
            _copy(module, key, value, name, source, codec.config.latent_dim)


def _copy(module: nn.Module, key: str, value: torch.Tensor, name: str, source: str, acoustic: int) -> None:
    mine = getattr(module, key)
    if name == "fc" and key == "weight" and mine.shape != value.shape and mine[:, :acoustic].shape == value.shape:
        mine[:, :acoustic] = value  # the acoustic branch comes first
    elif mine.shape != value.shape:
        raise ConfigError(
            f"model.start_from: {name}.{key} has shape {tuple(value.shape)} in {source}, and {tuple(mine.shape)} here",
            "give the model the sizes of the codec that it starts from",
        )
    elif parametrize.is_parametrized(module, key):
        setattr(module, key, value.detach())
    else:
        mine.copy_(value)
