"""Whether a judge is related to a codec that it judges: by weights, by what it was made from, or by what it has heard.

A judge that grew out of a codec's teacher hears what that codec keeps, and would favour it; one that was trained on the
tested voices knows them. Either withholds the verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xcodec_lm.codec.clips import Clip
from xcodec_lm.tasks.eval.ancestry import has_heard

LEAST_VALUES = 256
"""Smaller tensors (norms at their first values, biases of zeros) are alike without being related."""


def doubt(judge: Any, codec: Any, codec_name: str, tested: Sequence[Clip]) -> str:
    """Why a judge gives no verdict on a codec; "" if nothing speaks against it.

    Args:
        judge: with `ancestry`, and where it can be seen `model`.
        codec: that is judged.
        codec_name: for the message.
        tested: the clips whose sounds are judged.
    """
    name = getattr(judge, "name", "the judge")
    if shared := shared_weights(_modules(judge), _modules(codec)):
        return f"{name} shares {shared} tensors of weights with {codec_name}"
    if named := named_in(getattr(judge, "ancestry", {}), codec, codec_name):
        return f"{name} was made from {named}, which is in {codec_name} too"
    if why := has_heard(getattr(judge, "ancestry", {}), [clip.row for clip in tested]):
        return f"{name} {why}"
    return ""


def shared_weights(one: Iterable[nn.Module], other: Iterable[nn.Module]) -> int:
    """How many tensors of weights two groups of modules have in common, as half precision would store them."""
    return len(_digests(one) & _digests(other))


def named_in(ancestry: dict[str, Any], codec: Any, codec_name: str) -> str:
    """What an ancestry names as its origin and the codec has as well: itself, its fingerprint, its teacher."""
    own = {codec_name, codec.spec.name, codec.spec.fingerprint}
    teacher = getattr(getattr(codec, "semantic_config", None), "teacher", None)
    if teacher and teacher != "none":
        own.add(str(teacher))
        own.add(str(teacher).rstrip("/").rsplit("/", 1)[-1])
    for key in ("weights_from", "folder", "teacher", "distilled_from", "codec"):
        value = ancestry.get(key)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text and (text in own or text.rstrip("/").rsplit("/", 1)[-1] in own - {""}):
                return text
    return ""


def _modules(thing: Any) -> list[nn.Module]:
    """The networks of a judge or a codec."""
    if isinstance(thing, nn.Module):
        return [thing]
    return (
        [value for value in vars(thing).values() if isinstance(value, nn.Module)] if hasattr(thing, "__dict__") else []
    )


@torch.no_grad()
def _digests(modules: Iterable[nn.Module]) -> set[bytes]:
    found = set()
    for module in modules:
        for value in module.state_dict().values():
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel() >= LEAST_VALUES:
                flat = value.detach().flatten()
                if bool((flat == flat[0]).all()):  # zeros, ones
                    continue
                found.add(hashlib.sha256(flat.half().cpu().contiguous().numpy().tobytes()).digest())
    return found
