"""Models to and from transformers, weight by weight and with equal logits: GPT-2 and LLaMA."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.gpt import GPT


@torch.no_grad()
def to_transformers(model: GPT) -> PreTrainedModel:
    """The same model as `GPT2LMHeadModel` or `LlamaForCausalLM`, in fp32 on the CPU; biases that we lack become zeros.

    Raises:
        XcodecLMError: steps of several ids, which those models do not have.
    """
    if model.config.layout.width > 1:
        raise XcodecLMError(
            f"layout {model.config.layout.name} has {model.config.layout.width} ids a step, but transformers' decoders "
            "read one",
            "train with a flat layout: first, flatten, coarse_first, single or dual_track",
        )
    return _to_llama(model) if model.config.arch == "llama" else _to_gpt2(model)


def _to_gpt2(model: GPT) -> GPT2LMHeadModel:
    config = model.config
    made = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=model.positions,
            n_embd=config.dim,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.mlp_dim or None,
            activation_function="gelu_new",
            layer_norm_epsilon=config.norm_eps,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=True,
        )
    )
    own, theirs = model.state_dict(), made.transformer.state_dict()
    for name, value in theirs.items():
        ours = _gpt2_name(name)
        if ours in own:
            value.copy_(own[ours].T if _is_transposed(name) else own[ours])
        elif name.endswith(".bias"):
            value.zero_()
    return made.eval()


def _to_llama(model: GPT) -> LlamaForCausalLM:
    config, hidden = model.config, model.config.mlp_dim or 4 * model.config.dim
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=config.dim,
            intermediate_size=hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads or config.heads,
            max_position_embeddings=model.positions,
            rms_norm_eps=config.norm_eps,
            rope_parameters=_rope_parameters(config),
            attention_dropout=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=config.tied,
        )
    )
    weights: dict[str, Tensor] = {"model.embed_tokens.weight": model.wte.weight, "model.norm.weight": model.ln_f.weight}
    keys = (config.kv_heads or config.heads) * config.head_dim
    for index, block in enumerate(model.blocks):
        here = f"model.layers.{index}."
        query, key, value = block.attn.qkv.weight.split([config.dim, keys, keys])
        gate, up = block.fc.weight.split([hidden, hidden])
        weights |= {
            f"{here}input_layernorm.weight": block.ln_1.weight,
            f"{here}post_attention_layernorm.weight": block.ln_2.weight,
            f"{here}self_attn.q_proj.weight": query,
            f"{here}self_attn.k_proj.weight": key,
            f"{here}self_attn.v_proj.weight": value,
            f"{here}self_attn.o_proj.weight": block.attn.proj.weight,
            f"{here}mlp.gate_proj.weight": gate,
            f"{here}mlp.up_proj.weight": up,
            f"{here}mlp.down_proj.weight": block.proj.weight,
        }
    weights["lm_head.weight"] = model.wte.weight if model.head is None else model.head.weight
    made.load_state_dict({name: value.detach().float().cpu() for name, value in weights.items()})
    return made.eval()


def _rope_parameters(config: GPTConfig) -> dict[str, float | str]:
    """Rotary positions as `LlamaConfig` describes them."""
    scaling = config.rope_scaling
    if scaling.factor == 1:
        return {"rope_type": "default", "rope_theta": config.rope_base}
    return {
        "rope_type": "llama3",
        "rope_theta": config.rope_base,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency,
        "high_freq_factor": scaling.high_frequency,
        "original_max_position_embeddings": scaling.original_positions,
    }


def from_transformers(source: GPT2LMHeadModel | str | Path, layout: LayoutConfig | None = None) -> GPT:
    """Our model with the weights of a `transformers.GPT2LMHeadModel`.

    Args:
        source: the model, or a folder or hub id that holds one.
        layout: what its ids mean; without it, the first codebook and no special ids.

    Raises:
        XcodecLMError: it is no GPT-2, or one of another shape than the published ones.
    """
    if isinstance(source, (str, Path)):
        try:
            source = GPT2LMHeadModel.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise XcodecLMError(f"{source} does not load as a GPT2LMHeadModel: {error}") from None
    theirs, layout = source.config, layout or LayoutConfig(specials="none")
    unusual = {
        "activation_function": theirs.activation_function not in ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": theirs.layer_norm_epsilon != 1e-5,
        "scale_attn_weights": not theirs.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": theirs.scale_attn_by_inverse_layer_idx,
        "add_cross_attention": theirs.add_cross_attention,
        "tie_word_embeddings": not theirs.tie_word_embeddings,
    }
    if any(unusual.values()):
        names = ", ".join(name for name, is_unusual in unusual.items() if is_unusual)
        raise XcodecLMError(
            f"this GPT-2 is not of the published shape: {names}", "convert a model with GPT-2's own settings"
        )
    config = GPTConfig(
        layers=theirs.n_layer,
        heads=theirs.n_head,
        dim=theirs.n_embd,
        mlp_dim=theirs.n_inner or 0,
        block=theirs.n_positions - (layout.specials == "standard"),
        dropout=theirs.resid_pdrop,
        bias=True,
        layout=layout,
    )
    model = GPT(config, theirs.vocab_size)
    weights = {
        _gpt2_name(name): (value.T if _is_transposed(name) else value)
        for name, value in source.transformer.state_dict().items()
    }
    model.load_state_dict({name: weights[name].detach().float().cpu() for name in model.state_dict()})
    return model.eval()


def _gpt2_name(theirs: str) -> str:
    """Our name of a weight of `GPT2LMHeadModel.transformer`."""
    name = theirs.replace("h.", "blocks.", 1) if theirs.startswith("h.") else theirs
    for old, new in (
        ("attn.c_attn", "attn.qkv"),
        ("attn.c_proj", "attn.proj"),
        ("mlp.c_fc", "fc"),
        ("mlp.c_proj", "proj"),
    ):
        name = name.replace(old, new)
    return name


def _is_transposed(theirs: str) -> bool:
    """Whether transformers keeps this weight as (in, out), its Conv1D, where ours is (out, in)."""
    return theirs.endswith(".weight") and (".c_" in theirs)
