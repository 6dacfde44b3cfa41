"""Exports a language model as a folder that `transformers`, and engines that read its folders, load and generate from.

The folder holds `config.json`, `model.safetensors` and `generation_config.json`. What the ids mean is in config.json
under `xcodec_lm`, where an engine's logits processor finds it (`xcodec_lm.lm.serving`). There is no tokenizer: prompts
are ids. docs/serving.md says how such a folder is served.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xcodec_lm.codec.runtime.files import new_folder
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.load import find_model, load_lm
from xcodec_lm.lm.serving import SECTION, IdRules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SECTION_VERSION = 1
TOLERANCE = 1e-3
"""A folder whose logits differ by more is not written; rounding in fp32 makes about 1e-5."""
CHECKED_ROWS, CHECKED_FRAMES = 4, 64


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        folder: where it is.
        architecture: class of the model in transformers.
        parameters: their number.
        vocab_size: number of ids.
        difference: largest absolute difference between the folder's logits and ours.
        positions: how many positions were compared, over all prompts.
    """

    folder: Path
    architecture: str
    parameters: int
    vocab_size: int
    difference: float
    positions: int


def export_transformers(source: str | Path, out: str | Path) -> Exported:
    """Writes a trained model in transformers' layout, loads it again and compares its logits with ours.

    Args:
        source: run folder or model folder of a language model.
        out: a folder that is new or empty.

    Raises:
        XcodecLMError: no such model, a folder that cannot be written or is not empty, or logits that differ. Nothing is
            then left under `out`.
        TokenError: its layout has several ids a step, which other engines cannot serve.
    """
    from transformers import AutoModelForCausalLM

    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise XcodecLMError(f"{out} exists already", "name a new or empty folder with -o")
    loaded = load_lm(find_model(source))
    model, layout = loaded.model, loaded.layout
    rules = IdRules.of(layout)
    with quiet_transformers():
        theirs = model.to_transformers()
        _describe(theirs, rules, _section(layout, rules, loaded.spec, model.prefix))
        with new_folder(out) as folder:
            theirs.save_pretrained(folder)
            again = AutoModelForCausalLM.from_pretrained(folder).eval()
            prompts = example_prompts(rules, model.config.block)
            difference = largest_difference(model, again, prompts)
            if not difference <= TOLERANCE:
                raise XcodecLMError(
                    f"the exported folder's logits differ from the model's by up to {difference:.2g}",
                    "this is a defect of the export; report it with the model's config.json",
                )
    return Exported(
        out, type(again).__name__, model.parameter_count(), model.vocab_size, difference, prompts.numel()
    )  # fmt: skip


def example_prompts(rules: IdRules, block: int) -> Tensor:
    """Random prompts (B, L) of legal ids, bos included, no longer than a block and `CHECKED_FRAMES` frames."""
    frame = len(rules.ranges)
    frames = max(1, min(CHECKED_FRAMES, block // frame))
    source = generator(0, "export")
    columns = [torch.randint(low, high, (CHECKED_ROWS, frames), generator=source) for low, high in rules.ranges]
    ids = torch.stack(columns, dim=2).flatten(1)  # (B, frames * ids_per_frame)
    if rules.bos is None:
        return ids
    return torch.cat([torch.full((CHECKED_ROWS, 1), rules.bos), ids], dim=1)


@torch.inference_mode()
def largest_difference(model: GPT, theirs: PreTrainedModel, prompts: Tensor) -> float:
    """Largest absolute difference of logits over all positions of prompts (B, L)."""
    ours = model(prompts)
    return float((theirs(prompts).logits.float() - ours.float()).abs().max())


def _section(layout: Layout, rules: IdRules, spec: TokenSpec, prefix: int) -> dict[str, Any]:
    """What config.json says under `xcodec_lm`."""
    return {
        "version": SECTION_VERSION,
        "layout": layout.name,
        **rules.to_dict(),
        "prefix": prefix,
        "codec": {"name": spec.name, "fingerprint": spec.fingerprint, "spec": spec.to_dict()},
        "frame_rate": float(spec.frame_rate),
    }


def _describe(theirs: PreTrainedModel, rules: IdRules, section: dict[str, Any]) -> None:
    """Gives a model of transformers the special ids, settings for generate, and our section of config.json."""
    from transformers import GenerationConfig

    setattr(theirs.config, SECTION, section)
    specials = {"bos_token_id": rules.bos, "eos_token_id": rules.eos, "pad_token_id": rules.pad}
    for name, value in specials.items():
        setattr(theirs.config, name, value)
    # Filters are named, since generate would otherwise keep the 50 likeliest ids.
    theirs.generation_config = GenerationConfig(
        **specials,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_length=theirs.config.max_position_embeddings,
    )
