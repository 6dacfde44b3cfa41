"""Exports a language model as a folder that `transformers`, and engines that read its folders, load and generate from.

The folder holds `config.json`, `model.safetensors` and `generation_config.json`. What the ids mean is in config.json
under `xcodec_lm`, where an engine's logits processor finds it (`xcodec_lm.lm.serving`). A music model has no tokenizer:
prompts are ids. A speech model's folder also has `text.json`, its text front end, and the tokenizer if that is one of
transformers. docs/serving.md says how such a folder is served.
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
from xcodec_lm.lm.gpt import GPT, read_kind
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.llama import SpeechLlama
from xcodec_lm.lm.load import find_model, load_lm
from xcodec_lm.lm.serving import SECTION, IdRules
from xcodec_lm.tasks.tts.symbols import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SECTION_VERSION = 1
TOLERANCE = 1e-3
"""A folder whose logits differ by more is not written; rounding in fp32 makes about 1e-5."""
CHECKED_ROWS, CHECKED_FRAMES, CHECKED_TEXT = 4, 64, 16


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
    place = find_model(source)
    speaks = read_kind(place) == SpeechLlama.kind
    loaded = load_lm(place, model_class=SpeechLlama if speaks else GPT)
    model, layout = loaded.model, loaded.layout
    rules, text_ids = IdRules.of(layout), layout.vocabulary.base
    with quiet_transformers():
        theirs = model.to_transformers()
        section = _section(layout, rules, loaded.spec, model.prefix)
        _describe(theirs, rules, section | ({"text_ids": text_ids} if speaks else {}))
        with new_folder(out) as folder:
            theirs.save_pretrained(folder)
            if speaks:
                TextEncoder.load(place.parent / "text").save(folder)
            again = AutoModelForCausalLM.from_pretrained(folder).eval()
            prompts = example_prompts(rules, model.config.block, text_ids if speaks else 0)
            difference = largest_difference(model, again, prompts)
            if not difference <= TOLERANCE:
                raise XcodecLMError(
                    f"the exported folder's logits differ from the model's by up to {difference:.2g}",
                    "this is a defect of the export; report it with the model's config.json",
                )
    return Exported(
        out, type(again).__name__, model.parameter_count(), model.vocab_size, difference, prompts.numel()
    )  # fmt: skip


def example_prompts(rules: IdRules, block: int, text_ids: int = 0) -> Tensor:
    """Random prompts (B, L) of legal ids, bos included, no longer than a block and `CHECKED_FRAMES` frames.

    Args:
        rules: of the layout.
        block: positions of a row.
        text_ids: ids of text, of which some stand in front; 0 for none.
    """
    frame, front = len(rules.ranges), min(CHECKED_TEXT, block // 4) if text_ids else 0
    frames = max(1, min(CHECKED_FRAMES, (block - front - (front > 0)) // frame))
    source = generator(0, "export")
    columns = [torch.randint(low, high, (CHECKED_ROWS, frames), generator=source) for low, high in rules.ranges]
    ids = torch.stack(columns, dim=2).flatten(1)  # (B, frames * ids_per_frame)
    if rules.bos is None:
        return ids
    text = torch.randint(0, max(text_ids, 1), (CHECKED_ROWS, front), generator=source)
    return torch.cat([text, torch.full((CHECKED_ROWS, 1), rules.bos), ids], dim=1)


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
