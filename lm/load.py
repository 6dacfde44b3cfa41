"""A trained language model with all that its folder says of it: its layout and the codec whose tokens it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.lm.gpt import GPT, read_model_config
from xcodec_lm.lm.layouts import Layout, layout_from


@dataclass(frozen=True)
class Loaded:
    """A language model from disk.

    Attributes:
        model: in eval mode.
        layout: of its ids.
        spec: of the tokens that it was trained on.
        facts: what its config.json says of the codec: fingerprint, path, spec.
    """

    model: GPT
    layout: Layout
    spec: TokenSpec
    facts: dict[str, Any]


def load_lm(folder: Path, device: torch.device | str = "cpu") -> Loaded:
    """The language model of a model folder, see `find_model`.

    Raises:
        XcodecLMError: no model there, or its parts do not fit each other.
    """
    facts = read_model_config(folder).get("codec")
    if not isinstance(facts, dict) or "spec" not in facts:
        raise XcodecLMError(
            f"{folder / 'config.json'} names no codec", "export the model with the trainer that made it"
        )
    spec = TokenSpec.from_dict(facts["spec"])
    model = GPT.from_pretrained(folder, device)
    layout = layout_from(model.config.layout, spec)
    if model.vocab_size != layout.vocabulary.size:
        raise XcodecLMError(
            f"{folder} has {model.vocab_size} ids, but its layout of the codec's tokens {layout.vocabulary.size}",
            "its config.json was changed; export the model again",
        )
    return Loaded(model, layout, spec, facts)


def find_model(folder: str | Path) -> Path:
    """The model folder of a run folder or model folder.

    Raises:
        XcodecLMError: there is none.
    """
    folder = Path(folder)
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").is_file():
            return candidate
    if (folder / "config.yaml").is_file():
        raise XcodecLMError(
            f"{folder} has no model/ yet: its training has not finished", "give the train command again"
        )
    raise XcodecLMError(f"{folder} holds no language model", "give a run folder, or its model/")
