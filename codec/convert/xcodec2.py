"""X-Codec 2 and NeuCodec checkpoints of the original code to transformers' names and back.

Both have one layout. NeuCodec's decoder makes 24 kHz, keeps weight norm on its convolutions, and its file leaves out
the teacher. The original stores queries, keys and values as one matrix and rotates neighbouring channels; transformers
stores three and rotates halves, so rows of queries and keys change places.

Source: github.com/zhenye234/X-Codec-2.0, github.com/neuphonic/neucodec; names as in transformers' conversions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.models.xcodec2.modeling_xcodec2 import kaiser_sinc_filter1d

from xcodec_lm.codec.convert.state_dicts import (
    fold_weight_norm,
    indices_after,
    inverted,
    refuse,
    rename_modules,
    shape_of,
    split_weight_norm,
)
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

TEACHER_LAYERS = 16
"""Layers of w2v-BERT that the codec uses; the original files hold all 24."""
TRAINING_ONLY = (
    "discriminator.", "spec_discriminator.", "SemanticDecoder_module.", "SemanticDecoder.", "fc_post_s.", "model_spk.",
    "perception_model.", "criteria.",
)  # fmt: skip
"""Parts of a training file that encoding and decoding do not need."""
FILTERS = (".upsample.filter", ".downsample.filter", ".downsample.lowpass.filter")
BUFFERS = (".istft.window", "._levels", "._basis", ".implicit_codebook", ".levels", ".basis", ".codebook", ".scales")
"""Constants that the code computes itself."""
UNIT = {"snake1.act": "block.0.act", "conv1": "block.1", "snake2.act": "block.2.act", "conv2": "block.3"}
TEACHER = {"semantic_encoder.": "semantic_model."}
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def is_original(keys: Iterable[str]) -> bool:
    """Whether names are those of the original X-Codec 2 or NeuCodec."""
    keys = list(keys)
    return all(any(key.startswith(prefix) for key in keys) for prefix in ("CodecEnc.", "generator."))


def modules(encoder_blocks: int, layers: int) -> dict[str, str]:
    """Modules of transformers' model to the original's; queries, keys and values are not among them."""
    table = {
        "acoustic_encoder.conv1": "CodecEnc.conv_blocks.0",
        "acoustic_encoder.snake1.act": "CodecEnc.conv_final_block.0.act",
        "acoustic_encoder.conv2": "CodecEnc.conv_final_block.1",
        "semantic_adapter.conv1": "SemanticEncoder_module.initial_conv",
        "semantic_adapter.conv2": "SemanticEncoder_module.residual_blocks.1",
        "semantic_adapter.conv3": "SemanticEncoder_module.residual_blocks.3",
        "semantic_adapter.conv4": "SemanticEncoder_module.final_conv",
        "fc_encoder": "fc_prior",
        "quantizer.project_in": "generator.quantizer.project_in",
        "quantizer.project_out": "generator.quantizer.project_out",
        "acoustic_decoder.fc": "fc_post_a",
        "acoustic_decoder.embed": "generator.backbone.embed",
        "acoustic_decoder.norm": "generator.backbone.final_layer_norm",
        "acoustic_decoder.head.linear": "generator.head.out",
    }
    for b in range(encoder_blocks):
        ours, theirs = f"acoustic_encoder.block.{b}", f"CodecEnc.conv_blocks.{b + 1}.block"
        for u in range(3):
            table |= {f"{ours}.res_unit{u + 1}.{name}": f"{theirs}.{u}.{place}" for name, place in UNIT.items()}
        table |= {f"{ours}.snake1.act": f"{theirs}.3.act", f"{ours}.conv1": f"{theirs}.4"}
    for net in ("prior_net", "post_net"):
        for i in range(2):
            for part in ("norm1", "conv1", "norm2", "conv2"):
                table[f"acoustic_decoder.{net}.{i}.{part}"] = f"generator.backbone.{net}.{i}.{part}"
    for i in range(layers):
        ours, theirs = f"acoustic_decoder.layers.{i}", f"generator.backbone.transformers.{i}"
        table |= {
            f"{ours}.self_attn.o_proj": f"{theirs}.att.c_proj",
            f"{ours}.mlp.fc1": f"{theirs}.mlp.fc1",
            f"{ours}.mlp.fc2": f"{theirs}.mlp.fc2",
            f"{ours}.input_layernorm": f"{theirs}.att_norm",
            f"{ours}.post_attention_layernorm": f"{theirs}.ffn_norm",
        }
    return table


def to_ours(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str
) -> tuple[dict[str, Tensor], PretrainedConfig, dict[str, str]]:
    """An original state dict under transformers' names, weight norms folded, and its configuration.

    Args:
        tensors: of X-Codec 2 (from the Lightning file or its release) or NeuCodec, with the teacher under
            `semantic_model.`.
        given: what shapes do not show, in the words of transformers' `config.json`; it wins over what is inferred.
        where: the file, for errors.

    Returns:
        The state dict; an `Xcodec2Config` or `NeuCodecConfig`, told apart by the size of the ISTFT head; and what was
        left aside: name -> why.

    Raises:
        XcodecLMError: unknown names, or a tensor that tells a size is missing, or the teacher is.
    """
    if not any(key.startswith("semantic_model.") for key in tensors):
        raise XcodecLMError(
            f"{where} holds no teacher (semantic_model.): NeuCodec's release leaves w2v-BERT 2.0 out",
            "give its folder with --teacher",
        )
    keep = int(given.get("semantic_model_config", {}).get("num_hidden_layers", TEACHER_LAYERS))
    left: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.startswith(TRAINING_ONLY):
            left[key] = "used in training only"
        elif key.endswith(FILTERS):
            left[key] = "computed by the code"
            if value.shape != (1, 1, 12) or not torch.allclose(value.float(), anti_alias_filter(), atol=1e-3):
                raise XcodecLMError(f"{where}: {key} is not the anti-aliasing filter of X-Codec 2")
        elif key.startswith("generator.") and key.endswith(BUFFERS):
            left[key] = "computed by the code"
        elif key.startswith("semantic_model.encoder.layers.") and int(key.split(".")[3]) >= keep:
            left[key] = f"the codec uses {keep} layers of its teacher"
        else:
            kept[key] = value
    plain, stale = fold_weight_norm(kept, where)
    left |= dict.fromkeys(stale, "stale: a split weight lies beside it")
    config = infer_config(plain, given, where)
    table = modules(len(config.downsampling_ratios), config.num_hidden_layers)
    attention: dict[str, Tensor] = {}
    for i in range(config.num_hidden_layers):
        joint = f"generator.backbone.transformers.{i}.att.c_attn.weight"
        shape_of(plain, joint, where)
        for name, rows in zip(ATTENTION, plain.pop(joint).chunk(3), strict=True):
            if not name.endswith("v_proj"):
                rows = rotate_halves(rows, config.num_attention_heads)
            attention[f"acoustic_decoder.layers.{i}.{name}.weight"] = rows.clone()
    ours, unknown = rename_modules(plain, inverted(table), inverted(TEACHER))
    if unknown:
        refuse(f"{where}: weights that the original {config.model_type} does not have", unknown)
    present = {key.rpartition(".")[0] for key in plain}
    if missing := [module for module in table.values() if module not in present]:
        refuse(f"{where}: weights are missing", missing)
    return ours | attention, config, left


def original_name(key: str, keys: Iterable[str]) -> str:
    """The original's name of one of transformers' tensors, for errors; `keys` are all of them."""
    blocks, layers = (indices_after(keys, f"acoustic_{part}.") for part in ("encoder.block", "decoder.layers"))
    module, _, leaf = key.rpartition(".")
    return f"{modules(len(blocks), len(layers)).get(module, module)}.{leaf}".replace(
        "semantic_encoder.", "semantic_model."
    )


def from_ours(tensors: Mapping[str, Tensor], config: PretrainedConfig, where: str) -> dict[str, Tensor]:
    """A state dict of transformers' names under the original's, as the original code loads it.

    Weight norms are split and constant buffers added. The semantic decoder, which only training uses, is not there.

    Raises:
        XcodecLMError: a name that the model does not have.
    """
    table = modules(len(config.downsampling_ratios), config.num_hidden_layers)
    rest = dict(tensors)
    theirs: dict[str, Tensor] = {}
    for i in range(config.num_hidden_layers):
        parts = []
        for name in ATTENTION:
            key = f"acoustic_decoder.layers.{i}.{name}.weight"
            shape_of(rest, key, where)
            rows = rest.pop(key)
            parts.append(rows if name.endswith("v_proj") else rotate_neighbours(rows, config.num_attention_heads))
        theirs[f"generator.backbone.transformers.{i}.att.c_attn.weight"] = torch.cat(parts)
    renamed, unknown = rename_modules(rest, table, TEACHER)
    if unknown:
        refuse(f"{where}: weights that {config.model_type} does not have", unknown)
    theirs |= renamed
    normed = ("CodecEnc.", "generator.backbone.") if config.model_type == "neucodec" else ("CodecEnc.",)
    owners = [
        key.removesuffix(".weight")
        for key, value in renamed.items()
        if key.startswith(normed) and key.endswith(".weight") and value.dim() == 3
    ]
    theirs = split_weight_norm(theirs, owners)
    for key in renamed:
        if key.startswith("CodecEnc.") and key.endswith(".act.alpha"):
            activation = key.removesuffix(".act.alpha")
            theirs[f"{activation}.upsample.filter"] = anti_alias_filter()
            theirs[f"{activation}.downsample.lowpass.filter"] = anti_alias_filter()
    theirs["generator.head.istft.window"] = torch.hann_window(config.n_fft)
    return theirs


def infer_config(tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The configuration of an original state dict; arguments as of `to_ours`, with weights folded."""

    def shape(key: str) -> tuple[int, ...]:
        return shape_of(tensors, key, where)

    strides = [
        shape(f"CodecEnc.conv_blocks.{b}.block.4.weight")[2] // 2
        for b in indices_after(tensors, "CodecEnc.conv_blocks.")[1:]
    ]
    hop, hop_out = math.prod(strides), (shape("generator.head.out.weight")[0] - 2) // 4
    hidden, quantization = shape("fc_post_a.weight")
    options: dict[str, Any] = {
        "encoder_hidden_size": shape("CodecEnc.conv_blocks.0.weight")[0],
        "downsampling_ratios": strides,
        "hidden_size": hidden,
        "intermediate_size": shape("generator.backbone.transformers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": len(indices_after(tensors, "generator.backbone.transformers.")),
        "quantization_dim": quantization,
        "quantization_levels": [4] * shape("generator.quantizer.project_in.weight")[0],
    }
    heads = hidden // 64 if hidden % 64 == 0 else None
    if heads is not None:
        options |= {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 64}
    if hop_out == hop:
        kind = "xcodec2"
    else:
        kind = "neucodec"
        options["output_sampling_rate"] = given.get("input_sampling_rate", 16_000) * hop_out // hop
    semantic = _infer_teacher(tensors, where) | dict(given.get("semantic_model_config", {}))
    options |= {key: value for key, value in given.items() if key not in ("semantic_model_config", "model_type")}
    if "num_attention_heads" not in options:
        raise ConfigError(
            f"{where}: the decoder is {hidden} wide, and no shape tells its number of attention heads",
            "give a --config with num_attention_heads, num_key_value_heads and head_dim",
        )
    semantic.pop("model_type", None)
    for what, values, default in (
        ("it", given, AutoConfig.for_model(kind)),
        ("semantic_model_config", given.get("semantic_model_config", {}), AutoConfig.for_model("wav2vec2-bert")),
    ):
        if unknown := sorted(set(values) - set(default.to_dict())):
            raise ConfigError(f"--config: {what} has no {', '.join(unknown[:3])} for {kind}")
    try:
        teacher = AutoConfig.for_model("wav2vec2-bert", **semantic)
        return AutoConfig.for_model(kind, semantic_model_config=teacher, **options)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"{where}: these sizes make no {kind}: {error}") from None


def anti_alias_filter() -> Tensor:
    """(1, 1, 12) low-pass filter around every activation of the acoustic encoder."""
    return kaiser_sinc_filter1d(0.25, 0.3, 12)


def rotate_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows (heads * 2 * D, C) of a projection for neighbouring pairs, for one that pairs the halves of a head."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def rotate_neighbours(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `rotate_halves`."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _infer_teacher(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    def shape(key: str) -> tuple[int, ...]:
        return shape_of(tensors, f"semantic_model.{key}", where)

    width, features = shape("feature_projection.projection.weight")
    distances, head_dim = shape("encoder.layers.0.self_attn.distance_embedding.weight")
    options: dict[str, Any] = {
        "hidden_size": width,
        "feature_projection_input_dim": features,
        "num_hidden_layers": len(indices_after(tensors, "semantic_model.encoder.layers.")),
        "intermediate_size": shape("encoder.layers.0.ffn1.intermediate_dense.weight")[0],
        "num_attention_heads": width // head_dim,
        "conv_depthwise_kernel_size": shape("encoder.layers.0.conv_module.depthwise_conv.weight")[2],
        "output_hidden_size": width,
    }
    if distances != 73:  # 64 to the left, 8 to the right, and itself
        options |= {"left_max_position_embeddings": distances - 9, "right_max_position_embeddings": 8}
    if "semantic_model.masked_spec_embed" not in tensors:
        options |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    return options
