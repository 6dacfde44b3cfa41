"""A trained language model with all that its folder says of it: its layout and the codec whose tokens it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import Layout, layout_from
from xcodec_lm.lm.model_files import MODEL_TYPE, read_model_config


@dataclass(frozen=True)
class Loaded:
    """A language model from disk.

    Attributes:
        model: in eval mode.
        layout: of its ids.
        spec: of the tokens that it was trained on.
        facts: what its config.json says of the codec: fingerprint, path, spec.
    """

    model: GPT  # or a kind of it
    layout: Layout
    spec: TokenSpec
    facts: dict[str, Any]


def load_lm(folder: Path, device: torch.device | str = "cpu", model_class: type[GPT] = GPT) -> Loaded:
    """The language model of a model folder, see `find_model`.

    Args:
        folder: of the model.
        device: where it goes.
        model_class: which kind it must be.

    Raises:
        XcodecLMError: no model there, or its parts do not fit each other.
    """
    facts = model_facts(folder, model_class.kind)["codec"]
    spec = TokenSpec.from_dict(facts["spec"])
    model = model_class.from_pretrained(folder, device)
    layout = layout_from(model.config.layout, spec)
    if model.vocab_size != layout.vocabulary.size:
        raise XcodecLMError(
            f"{folder} has {model.vocab_size} ids, but its layout of the codec's tokens {layout.vocabulary.size}",
            "its config.json was changed; export the model again",
        )
    return Loaded(model, layout, spec, facts)


def model_facts(folder: Path, kind: str = MODEL_TYPE) -> dict[str, Any]:
    """What config.json of a model folder says, the codec among it.

    Args:
        folder: of the model.
        kind: `model_type` that it must have.

    Raises:
        XcodecLMError: no such model there, or it names no codec.
    """
    facts = read_model_config(folder, kind)
    if not isinstance(facts.get("codec"), dict) or "spec" not in facts["codec"]:
        raise XcodecLMError(
            f"{folder / 'config.json'} names no codec", "export the model with the trainer that made it"
        )
    return facts


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


def named_codec(model_folder: Path, path: str | None) -> str:
    """The codec that a model's config.json names: a folder relative to the run, or a name.

    Raises:
        XcodecLMError: it names none, or a folder that is gone.
    """
    if path is None:
        raise XcodecLMError(
            f"{model_folder / 'config.json'} does not say where the codec is: its tokens were stored without a path",
            "give the codec with --codec",
        )
    local = (model_folder.resolve().parent / path).resolve()
    if local.exists():
        return str(local)
    if path.startswith(("..", "/")):
        raise XcodecLMError(
            f"the codec of {model_folder} is not at {local}, where its config.json says", "give the codec with --codec"
        )
    return path
