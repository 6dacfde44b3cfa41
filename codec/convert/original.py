"""X-Codec checkpoints of the original code (`SoundStream`) to our names and back.

Ours are the names of `transformers.XcodecModel`. The original keeps weight norm on every convolution of the acoustic
stacks and wraps those of the semantic stacks once more; the teacher lies inside under the names that transformers gives
it. Widths, strides and the teacher's kind follow from the tensors; what no shape shows has the published values unless
the caller says otherwise.

Source: github.com/zhenye234/xcodec, models/soundstream_semantic.py; the mapping is that of transformers' conversion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from xcodec_lm.codec.convert.state_dicts import (
    INCOMPLETE,
    fold_weight_norm,
    indices_after,
    inverted,
    owners_of_norm,
    refuse,
    rename_modules,
    respell_weight_norm,
    shape_of,
    split_weight_norm,
)
from xcodec_lm.configs.codec import CodecModelConfig, QuantizerConfig, SemanticConfig
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

TEACHER = {"semantic_model.": "semantic_model."}
POSITIONAL = "semantic_model.encoder.pos_conv_embed.conv"
"""The teacher's convolution whose weight norm stays split, in transformers' layout too; it keeps dimension 2."""
UNIT = {"snake1": "block.0", "conv1": "block.1", "snake2": "block.2", "conv2": "block.3"}
"""Inside of an acoustic residual unit, ours to the original's."""
WIDTHS = {"encoder_channels": 64, "latent_dim": 256, "decoder_channels": 1024, "encoder_strides": (8, 5, 4, 2)}
"""Sizes that the original code hard-codes or defaults to; it cannot load others as it stands."""


@dataclass(frozen=True)
class Depths:
    """How many of each repeated part a checkpoint has."""

    encoder_blocks: int
    decoder_blocks: int
    semantic_blocks: int
    semantic_units: int
    n_q: int


def is_original(keys: Iterable[str]) -> bool:
    """Whether names are those of the original X-Codec."""
    return any(key.startswith(("decoder_2.", "quantizer.vq.layers.", "fc_prior.")) for key in keys) and not any(
        key.startswith(("CodecEnc.", "generator.")) for key in keys
    )


def modules(depths: Depths) -> dict[str, str]:
    """Our modules to the original's."""
    table = {"acoustic_encoder.conv1": "encoder.block.0", "acoustic_decoder.conv1": "decoder_2.model.0"}
    for b in range(depths.encoder_blocks):
        ours, theirs = f"acoustic_encoder.block.{b}", f"encoder.block.{b + 1}"
        for u in range(3):
            table |= {f"{ours}.res_unit{u + 1}.{name}": f"{theirs}.block.{u}.{place}" for name, place in UNIT.items()}
        table |= {f"{ours}.snake1": f"{theirs}.block.3", f"{ours}.conv1": f"{theirs}.block.4"}
    table["acoustic_encoder.snake1"] = f"encoder.block.{depths.encoder_blocks + 1}"
    table["acoustic_encoder.conv2"] = f"encoder.block.{depths.encoder_blocks + 2}"
    for b in range(depths.decoder_blocks):
        ours, theirs = f"acoustic_decoder.block.{b}", f"decoder_2.model.{b + 1}"
        table |= {f"{ours}.snake1": f"{theirs}.block.0", f"{ours}.conv_t1": f"{theirs}.block.1"}
        for u in range(3):
            unit = f"{theirs}.block.{u + 2}"
            table |= {f"{ours}.res_unit{u + 1}.{name}": f"{unit}.{place}" for name, place in UNIT.items()}
    table["acoustic_decoder.snake1"] = f"decoder_2.model.{depths.decoder_blocks + 1}"
    table["acoustic_decoder.conv2"] = f"decoder_2.model.{depths.decoder_blocks + 2}"
    for side, ends in (("encoder_semantic", ("conv",)), ("decoder_semantic", ("conv1", "conv2"))):
        table |= {f"{side}.{end}": f"{side}.{end}.conv" for end in ends}
        for b in range(depths.semantic_blocks):
            block = f"{side}.conv_blocks.{b}"
            table[f"{block}.conv"] = f"{block}.conv.conv"
            for u in range(depths.semantic_units):
                unit = f"{block}.res_units.{u}"
                table |= {f"{unit}.conv1": f"{unit}.conv1.conv", f"{unit}.conv2": f"{unit}.conv2"}
    for k in range(depths.n_q):
        table[f"quantizer.quantizers.{k}.codebook"] = f"quantizer.vq.layers.{k}._codebook"
    return table | {"fc": "fc_prior", "fc1": "fc_post1", "fc2": "fc_post2"}


def to_ours(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """An original state dict under our names, weight norms folded.

    Args:
        tensors: of `SoundStream`, weight norm in any spelling or folded.
        where: the file, for errors.

    Returns:
        The state dict; and names left aside because a split weight lay beside them.

    Raises:
        XcodecLMError: names that the original does not have.
    """
    tensors = respell_weight_norm(tensors, POSITIONAL, 2, "parametrized")
    positional = {key: value for key, value in tensors.items() if key.startswith(f"{POSITIONAL}.")}
    plain, stale = fold_weight_norm({key: value for key, value in tensors.items() if key not in positional}, where)
    # a stride's transposed convolution has another wrapper's name
    plain = {key.replace(".conv.deconv.", ".conv.conv."): value for key, value in plain.items()}
    table = modules(_depths(plain, "encoder.block.", "decoder_2.model.", "quantizer.vq.layers."))
    ours, unknown = rename_modules(plain | positional, inverted(table), TEACHER)
    if unknown:
        refuse(f"{where}: weights that the original X-Codec does not have", unknown)
    present = {key.rpartition(".")[0] for key in plain}
    if missing := [module for module in table.values() if module not in present]:
        refuse(f"{where}: weights are missing", missing)
    return ours, stale


def original_name(key: str, keys: Iterable[str]) -> str:
    """The original's name of one of our tensors, for errors; `keys` are all of ours."""
    module, _, leaf = key.rpartition(".")
    depths = _depths(keys, "acoustic_encoder.block.", "acoustic_decoder.block.", "quantizer.quantizers.", ours=True)
    return f"{modules(depths).get(module, module)}.{leaf}"


def from_ours(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our state dict under the original's names, weight norms split, as the original code loads it.

    Raises:
        XcodecLMError: a name that is not ours.
    """
    table = modules(
        _depths(tensors, "acoustic_encoder.block.", "acoustic_decoder.block.", "quantizer.quantizers.", ours=True)
    )
    respelt = respell_weight_norm(tensors, POSITIONAL, 2, "split")
    theirs, unknown = rename_modules(respelt, table, TEACHER)
    if unknown:
        refuse(f"{where}: weights that X-Codec does not have", unknown)
    for b in indices_after(theirs, "decoder_semantic.conv_blocks."):
        conv = f"decoder_semantic.conv_blocks.{b}.conv."
        if theirs[f"{conv}conv.weight"].shape[2] != 3:
            theirs = {key.replace(f"{conv}conv.", f"{conv}deconv."): value for key, value in theirs.items()}
    owners = [
        key.removesuffix(".weight")
        for key, value in theirs.items()
        if key.startswith(("encoder.", "decoder_2.")) and key.endswith(".weight") and value.dim() == 3
    ]
    return split_weight_norm(theirs, owners)


def infer_config(
    tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str
) -> tuple[CodecModelConfig, SemanticConfig, PretrainedConfig]:
    """Sizes of a codec from its tensors.

    Args:
        tensors: under our names, folded.
        given: what shapes do not show, in the words of transformers' `config.json`; it wins over what is inferred.
        where: the file, for errors.

    Raises:
        XcodecLMError: a tensor that tells a size is missing.
        ConfigError: the teacher's heads cannot be guessed, or `given` names what does not exist.
    """

    def shape(key: str) -> tuple[int, ...]:
        return shape_of(tensors, key, where)

    known = {"sample_rate", "block_dilations", "target_bandwidths", "semantic_model_config", "model_type"}
    if unknown := sorted(set(given) - known):
        raise ConfigError(
            f"--config holds {', '.join(unknown[:3])}, which the weights decide or X-Codec does not have",
            f"it may give {', '.join(sorted(known))}",
        )
    depths = _depths(tensors, "acoustic_encoder.block.", "acoustic_decoder.block.", "quantizer.quantizers.", ours=True)
    size, dim = shape("quantizer.quantizers.0.codebook.embed")
    choices = tuple(sorted({n for n in QuantizerConfig().n_q_choices if n < depths.n_q} | {depths.n_q}))
    model = CodecModelConfig(
        sample_rate=int(given.get("sample_rate", CodecModelConfig().sample_rate)),
        encoder_channels=shape("acoustic_encoder.conv1.weight")[0],
        encoder_strides=tuple(
            _stride(shape(f"acoustic_encoder.block.{b}.conv1.weight"), where) for b in range(depths.encoder_blocks)
        ),
        latent_dim=shape("acoustic_encoder.conv2.weight")[0],
        decoder_channels=shape("acoustic_decoder.conv1.weight")[0],
        decoder_strides=tuple(
            _stride(shape(f"acoustic_decoder.block.{b}.conv_t1.weight"), where) for b in range(depths.decoder_blocks)
        ),
        quantizer=QuantizerConfig(n_q=depths.n_q, codebook_size=size, dim=dim, n_q_choices=choices),
    )
    width = shape("encoder_semantic.conv.weight")[0]
    blocks = [shape(f"encoder_semantic.conv_blocks.{b}.conv.weight") for b in range(depths.semantic_blocks)]
    teacher = infer_teacher(tensors, given.get("semantic_model_config", {}), where)
    semantic = SemanticConfig(
        teacher=teacher.model_type,
        dim=width,
        kernel_size=shape("encoder_semantic.conv.weight")[2],
        unit_kernel_size=shape("encoder_semantic.conv_blocks.0.res_units.0.conv1.weight")[2],
        channel_ratios=tuple(_ratio(block[0], width, where) for block in blocks),
        strides=tuple(1 if block[2] == 3 else block[2] // 2 for block in blocks),
        block_dilations=tuple(given.get("block_dilations", (1,) * depths.semantic_units)),
    )
    return model, semantic, teacher


def infer_teacher(tensors: Mapping[str, Tensor], given: Mapping[str, Any], where: str) -> PretrainedConfig:
    """The configuration of the teacher inside a codec; arguments as of `infer_config`.

    HuBERT and wav2vec 2.0 have the same tensors and the same arithmetic: both are called HuBERT unless `given` says
    otherwise.
    """

    def shape(key: str) -> tuple[int, ...]:
        return shape_of(tensors, f"semantic_model.{key}", where)

    front = "semantic_model.feature_extractor.conv_layers."
    convs = [shape(f"feature_extractor.conv_layers.{i}.conv.weight") for i in indices_after(tensors, front)]
    width = shape("encoder.layer_norm.weight")[0]
    positional = shape("encoder.pos_conv_embed.conv.parametrizations.weight.original1")
    layered = f"{front}1.layer_norm.weight" in tensors
    wavlm = "semantic_model.encoder.layers.0.attention.rel_attn_embed.weight" in tensors
    masked = "semantic_model.masked_spec_embed" in tensors
    options: dict[str, Any] = {
        "model_type": "wavlm" if wavlm else "hubert",
        "hidden_size": width,
        "num_hidden_layers": len(indices_after(tensors, "semantic_model.encoder.layers.")),
        "intermediate_size": shape("encoder.layers.0.feed_forward.intermediate_dense.weight")[0],
        "conv_dim": [conv[0] for conv in convs],
        "conv_kernel": [conv[2] for conv in convs],
        "conv_bias": f"{front}0.conv.bias" in tensors,
        "feat_extract_norm": "layer" if layered else "group",
        "do_stable_layer_norm": layered,  # of the published teachers, the large ones have both
        "feat_proj_layer_norm": "semantic_model.feature_projection.layer_norm.weight" in tensors,
        "num_conv_pos_embeddings": positional[2],
        "num_conv_pos_embedding_groups": positional[0] // positional[1],
    }
    if not masked:  # transformers has this tensor where training masks, and only there
        options |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    if wavlm:
        buckets, heads = shape("encoder.layers.0.attention.rel_attn_embed.weight")
        options |= {"num_buckets": buckets, "num_attention_heads": heads}
    elif width % 64 == 0:
        options["num_attention_heads"] = width // 64
    options |= given
    default = AutoConfig.for_model(options["model_type"]).to_dict()
    if unknown := sorted(set(given) - set(default)):
        raise ConfigError(f"--config: semantic_model_config has no {', '.join(unknown[:3])}")
    if "num_attention_heads" not in options:
        raise ConfigError(
            f"{where}: the teacher has width {width}, and no shape tells its number of attention heads",
            "give a --config with semantic_model_config: {num_attention_heads: ...}",
        )
    if len(convs) != 7 and "conv_stride" not in options:
        raise ConfigError(
            f"{where}: the teacher has {len(convs)} convolutions, and no shape tells their strides",
            "give a --config with semantic_model_config: {conv_stride: [...]}",
        )
    kind = options.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **options)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"{where}: these sizes make no {kind}: {error}") from None


def differs_from_published(model: CodecModelConfig, semantic: SemanticConfig) -> list[str]:
    """Sizes that the original code would have to be edited for before it loads such a codec."""
    sizes = {**{key: getattr(model, key) for key in WIDTHS}, "semantic.dim": semantic.dim}
    odd = [f"{key} {value}" for key, value in sizes.items() if value != {**WIDTHS, "semantic.dim": 768}[key]]
    if model.quantizer.dim != model.latent_dim + semantic.dim:
        odd.append(f"quantizer.dim {model.quantizer.dim}")
    return odd


def not_shown(model: CodecModelConfig, semantic: SemanticConfig, teacher: PretrainedConfig) -> list[str]:
    """Settings of a codec that `infer_config` would guess otherwise, in the words of transformers' config.json."""
    hidden = []
    if model.sample_rate != CodecModelConfig().sample_rate:
        hidden.append(f"sample_rate {model.sample_rate}")
    if set(semantic.block_dilations) != {1}:
        hidden.append(f"block_dilations {list(semantic.block_dilations)}")
    if teacher.model_type != "wavlm" and 64 * teacher.num_attention_heads != teacher.hidden_size:
        hidden.append(f"semantic_model_config.num_attention_heads {teacher.num_attention_heads}")
    if list(teacher.conv_stride) != [5, 2, 2, 2, 2, 2, 2]:
        hidden.append(f"semantic_model_config.conv_stride {list(teacher.conv_stride)}")
    if teacher.do_stable_layer_norm != (teacher.feat_extract_norm == "layer"):
        hidden.append(f"semantic_model_config.do_stable_layer_norm {teacher.do_stable_layer_norm}")
    return hidden


def _depths(tensors: Iterable[str], encoder: str, decoder: str, quantizer: str, ours: bool = False) -> Depths:
    keys = list(tensors)

    def blocks(prefix: str) -> int:
        return sum(
            ours or any(key.startswith(f"{prefix}{i}.block.") for key in keys) for i in indices_after(keys, prefix)
        )

    return Depths(
        encoder_blocks=blocks(encoder),
        decoder_blocks=blocks(decoder),
        semantic_blocks=len(indices_after(keys, "encoder_semantic.conv_blocks.")),
        semantic_units=len(indices_after(keys, "encoder_semantic.conv_blocks.0.res_units.")),
        n_q=len(indices_after(keys, quantizer)),
    )


def _stride(shape: tuple[int, ...], where: str) -> int:
    if shape[2] % 2:
        raise XcodecLMError(
            f"{where}: a kernel of {shape[2]} samples belongs to no stride: kernels are twice as long", INCOMPLETE
        )
    return shape[2] // 2


def _ratio(width: int, base: int, where: str) -> int:
    if width % base:
        raise XcodecLMError(
            f"{where}: a semantic block is {width} wide, not a multiple of the teacher's {base}", INCOMPLETE
        )
    return width // base


def spelling_of(keys: Iterable[str]) -> str:
    """How a state dict of the original spells weight norm, in words."""
    keys = list(keys)
    if not owners_of_norm(key for key in keys if not key.startswith("semantic_model.")):
        return "folded"
    return (
        "parametrizations" if any("parametrizations.weight.original0" in key for key in keys) else "weight_g/weight_v"
    )
