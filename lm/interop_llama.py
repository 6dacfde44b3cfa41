"""Starting from a `transformers` LLaMA: its sizes, and its weights with more ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig, RopeScalingConfig
from xcodec_lm.lm.gpt import GPT

NOISE = 0.1
"""Spread of new rows around the mean of the old ones, as a fraction of theirs."""


def read_sizes(folder: str | Path, block: int, layout: LayoutConfig) -> GPTConfig:
    """The configuration of a `transformers` LLaMA's folder as one of ours.

    Args:
        folder: with its config.json.
        block: positions of a row, at most those of the model.
        layout: what the ids mean.

    Raises:
        XcodecLMError: it holds no LLaMA, or one whose layers ours cannot be.
    """
    try:
        theirs = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise XcodecLMError(f"{folder}: config.json cannot be read: {error}") from None
    if not isinstance(theirs, LlamaConfig):
        raise XcodecLMError(
            f"{folder} holds a model of type {theirs.model_type!r}, not a LLaMA",
            "give the folder of a LlamaForCausalLM, or a finished run of tts train",
        )
    rope: dict[str, Any] = {**(theirs.rope_parameters or {})}
    kind = rope.get("rope_type", "default")
    heads, width = theirs.num_attention_heads, theirs.hidden_size // theirs.num_attention_heads
    unusual = {
        "hidden_act": theirs.hidden_act not in ("silu", "swish"),
        "attention_bias": theirs.attention_bias,
        "mlp_bias": theirs.mlp_bias,
        "head_dim": (theirs.head_dim or width) != width or heads * width != theirs.hidden_size,
        "rope_parameters": kind not in ("default", "llama3"),
    }
    if any(unusual.values()):
        names = ", ".join(name for name, is_unusual in unusual.items() if is_unusual)
        raise XcodecLMError(f"the LLaMA in {folder} is not of the published shape: {names}", "start from another model")
    scaling = RopeScalingConfig()
    if kind == "llama3":
        scaling = RopeScalingConfig(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    return GPTConfig(
        arch="llama",
        layers=theirs.num_hidden_layers,
        heads=heads,
        kv_heads=0 if theirs.num_key_value_heads in (None, heads) else int(theirs.num_key_value_heads),
        dim=theirs.hidden_size,
        mlp_dim=theirs.intermediate_size,
        block=min(block, theirs.max_position_embeddings),
        rope_base=float(rope.get("rope_theta", 10_000.0)),
        rope_scaling=scaling,
        norm_eps=theirs.rms_norm_eps,
        tied=theirs.tie_word_embeddings,
        layout=layout,
    )


@torch.no_grad()
def take_over(model: GPT, folder: str | Path, codes_end: int, source: torch.Generator) -> int:
    """Copies the weights of a `transformers` LLaMA into a model with the sizes of `read_sizes` and other ids.

    Ids below `first_id` are the text model's. Ids of codes are, too, where it has them all at our places; else their
    rows, and those of special ids, are the mean of the old rows and a little noise.

    Args:
        model: ours; what it held is lost.
        folder: theirs.
        codes_end: number behind the last id of a code.
        source: of the noise.

    Returns:
        How many rows of the embedding are new.

    Raises:
        XcodecLMError: the weights cannot be loaded.
    """
    try:
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise XcodecLMError(f"{folder} does not load as a LlamaForCausalLM: {error}") from None
    given, first = theirs.state_dict(), model.config.layout.first_id
    old = len(given["model.embed_tokens.weight"])
    kept = codes_end if old >= codes_end else min(old, first)
    mine = model.state_dict()  # shares memory with the model
    mine["wte.weight"].copy_(resized(given["model.embed_tokens.weight"], kept, model.vocab_size, source))
    if model.head is not None:
        mine["head.weight"].copy_(resized(given["lm_head.weight"], kept, model.vocab_size, source))
    mine["ln_f.weight"].copy_(given["model.norm.weight"])
    for index in range(model.config.layers):
        here, ours = f"model.layers.{index}.", f"blocks.{index}."
        parts = {
            "ln_1": ("input_layernorm",),
            "ln_2": ("post_attention_layernorm",),
            "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attn.proj": ("self_attn.o_proj",),
            "fc": ("mlp.gate_proj", "mlp.up_proj"),
            "proj": ("mlp.down_proj",),
        }
        for name, names in parts.items():
            mine[f"{ours}{name}.weight"].copy_(torch.cat([given[f"{here}{one}.weight"] for one in names]))
    return model.vocab_size - kept


def resized(rows: Tensor, kept: int, count: int, source: torch.Generator) -> Tensor:
    """Rows (N, D) as (count, D): the first `kept`, then new ones around the mean of those.

    Noise tells new rows apart; the mean keeps their logits where those of known ids are.
    """
    old = rows[:kept].float()
    noise = torch.randn(count - kept, rows.shape[1], generator=source) * old.std(dim=0) * NOISE
    return torch.cat([old, old.mean(dim=0) + noise])
