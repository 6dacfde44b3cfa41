"""Codecs of other projects behind the token interface: EnCodec, DAC, Mimi, SpeechTokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xcodec_lm.codec.adapters.base import Adapter
from xcodec_lm.configs.errors import XcodecLMError

KINDS = ("dac", "encodec", "mimi", "speechtokenizer")
"""Model types that `load_adapter` knows."""


def adapter_kind(data: dict[str, Any]) -> str | None:
    """Which of `KINDS` a config.json describes, or None."""
    from xcodec_lm.codec.adapters.speechtokenizer import is_speechtokenizer

    kind = data.get("model_type")
    if kind is None and is_speechtokenizer(data):
        return "speechtokenizer"
    return kind if kind in KINDS else None


def load_adapter(
    folder: Path, data: dict[str, Any], *, decode_only: bool = False, device: str | torch.device = "cpu"
) -> Adapter:
    """A foreign codec that is ready to encode and decode, in fp32 and eval mode.

    Args:
        folder: holds config.json and weights, as its project publishes them.
        data: the content of config.json.
        decode_only: drop the encoder; `encode` is then refused.
        device: where the codec goes.

    Raises:
        XcodecLMError: a kind that is not known, weights that are missing, damaged, left over or of other sizes, or a
            package that is not installed.
    """
    kind = adapter_kind(data)
    if kind is None:
        raise XcodecLMError(
            f"{folder / 'config.json'}: a {data.get('model_type')!r} model has no adapter",
            f"known kinds are {', '.join(KINDS)}",
        )
    if kind == "speechtokenizer":
        from xcodec_lm.codec.adapters.speechtokenizer import load_speechtokenizer

        return load_speechtokenizer(folder, data, decode_only).to(device)
    from transformers import DacModel, EncodecModel, MimiModel

    from xcodec_lm.codec.adapters.models import DacAdapter, EncodecAdapter, MimiAdapter

    adapters: dict[str, tuple[Any, Any]] = {
        "encodec": (EncodecAdapter, EncodecModel),
        "dac": (DacAdapter, DacModel),
        "mimi": (MimiAdapter, MimiModel),
    }
    adapter, model = adapters[kind]
    return adapter(_pretrained(model, folder), decode_only=decode_only).to(device)


def _pretrained(model_class: Any, folder: Path) -> Any:
    """A transformers model whose weights are all there and all used."""
    from xcodec_lm.codec.semantic import quiet_transformers

    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise XcodecLMError(f"{folder} has a config.json but no model.safetensors", "download or copy the weights")
    try:
        with quiet_transformers():
            model, info = model_class.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # a damaged file, other sizes, a config out of range: the library raises many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise XcodecLMError(
            f"{folder}: the {model_class.config_class.model_type} weights cannot be read: {reason}",
            "download or copy the folder again",
        ) from None
    for state, kind in (("missing", "missing_keys"), ("not of this codec", "unexpected_keys")):
        if keys := sorted(info[kind]):
            raise XcodecLMError(f"{folder}: weights are {state}: {', '.join(keys[:3])} ({len(keys)} in all)")
    return model
