"""Configurations of codecs between our dataclasses and transformers' `XcodecConfig`.

Weights need no conversion: the modules carry transformers' names. A teacher codec is written in transformers' layout
with our keys under `xcodec_lm`; the twin, which transformers does not know, as `model_type: xcodec_lm`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from transformers import AutoConfig, PretrainedConfig, XcodecConfig

from xcodec_lm import configs
from xcodec_lm.configs.codec import CodecModelConfig, QuantizerConfig, SemanticConfig
from xcodec_lm.configs.errors import ConfigError

OWN_MODEL_TYPE = "xcodec_lm"


def from_transformers(data: dict[str, Any]) -> tuple[CodecModelConfig, SemanticConfig, PretrainedConfig]:
    """Our view of a transformers X-Codec configuration.

    Args:
        data: contents of its `config.json`.

    Returns:
        Model, semantic stacks, and the teacher's own configuration.

    Raises:
        ConfigError: parts that X-Codec does not have.
    """
    config = XcodecConfig(**{key: value for key, value in data.items() if key != OWN_MODEL_TYPE})
    acoustic, teacher = config.acoustic_model_config, config.semantic_model_config
    assert isinstance(acoustic, PretrainedConfig) and isinstance(teacher, PretrainedConfig)
    if acoustic.model_type != "dac":
        raise ConfigError(f"acoustic_model_config is a {acoustic.model_type} model; X-Codec's acoustic stacks are dac")
    width = acoustic.hidden_size + teacher.hidden_size
    if config.codebook_dim != width:
        raise ConfigError(f"codebook_dim is {config.codebook_dim}, but acoustic and semantic widths add up to {width}")
    n_q = config.num_quantizers
    choices = sorted({min(n_q, _quantizers_of(bandwidth, config)) for bandwidth in config.target_bandwidths})
    model = CodecModelConfig(
        sample_rate=config.sample_rate,
        encoder_channels=acoustic.encoder_hidden_size,
        encoder_strides=tuple(acoustic.downsampling_ratios),
        latent_dim=acoustic.hidden_size,
        decoder_channels=acoustic.decoder_hidden_size,
        decoder_strides=tuple(acoustic.upsampling_ratios),
        quantizer=QuantizerConfig(
            n_q=n_q, codebook_size=config.codebook_size, dim=config.codebook_dim, n_q_choices=tuple(choices)
        ),
    )
    semantic = SemanticConfig(
        teacher=teacher.model_type,
        dim=teacher.hidden_size,
        kernel_size=config.kernel_size,
        unit_kernel_size=config.unit_kernel_size,
        channel_ratios=tuple(config.channel_ratios),
        strides=tuple(config.strides),
        block_dilations=tuple(config.block_dilations),
    )
    return model, semantic, teacher


def to_transformers(
    model: CodecModelConfig, semantic: SemanticConfig, teacher: PretrainedConfig
) -> XcodecConfig | None:
    """The transformers configuration of a codec, or None where transformers cannot express it.

    It cannot when the quantizer's width is not the sum of both branches' widths.
    """
    if model.quantizer.dim != model.latent_dim + semantic.dim:
        return None
    acoustic = AutoConfig.for_model(
        "dac",
        encoder_hidden_size=model.encoder_channels,
        downsampling_ratios=list(model.encoder_strides),
        decoder_hidden_size=model.decoder_channels,
        upsampling_ratios=list(model.decoder_strides),
        hidden_size=model.latent_dim,
        n_codebooks=model.quantizer.n_q,
        codebook_size=model.quantizer.codebook_size,
        sampling_rate=model.sample_rate,
    )
    choices = sorted({*model.quantizer.n_q_choices, model.quantizer.n_q})
    return XcodecConfig(
        target_bandwidths=[_bandwidth_of(n, model) for n in choices],
        sample_rate=model.sample_rate,
        kernel_size=semantic.kernel_size,
        channel_ratios=list(semantic.channel_ratios),
        strides=list(semantic.strides),
        block_dilations=list(semantic.block_dilations),
        unit_kernel_size=semantic.unit_kernel_size,
        codebook_size=model.quantizer.codebook_size,
        codebook_dim=model.quantizer.dim,
        acoustic_model_config=acoustic,
        semantic_model_config=teacher,
        architectures=["XcodecModel"],
    )


def own_block(model: CodecModelConfig, semantic: SemanticConfig, **identity: str) -> dict[str, Any]:
    """Our keys of a codec's `config.json`: both configurations, name and fingerprints."""
    return {"model": configs.to_dict(model), "semantic": configs.to_dict(semantic), **identity}


def from_own_block(block: dict[str, Any], where: str) -> tuple[CodecModelConfig, SemanticConfig]:
    """The configurations that `own_block` wrote."""
    return (
        configs.from_dict(block["model"], CodecModelConfig, where),
        configs.from_dict(block["semantic"], SemanticConfig, where),
    )


def architecture(model: CodecModelConfig, semantic: SemanticConfig, teacher: PretrainedConfig | None) -> dict[str, Any]:
    """What decides the codes beside the weights, for the fingerprint.

    Sizes that the tensors' shapes do not show, and nothing that only training or decoding reads.
    """
    parts: dict[str, Any] = {
        "sample_rate": model.sample_rate,
        "encoder_strides": list(model.encoder_strides),
        "n_q": model.quantizer.n_q,
    }
    if teacher is not None:
        stacks = dataclasses.asdict(semantic)
        parts["semantic"] = {key: stacks[key] for key in ("strides", "block_dilations")}
        if semantic.layers != "mean":
            parts["semantic"]["layers"] = semantic.layers
        parts["teacher"] = {key: getattr(teacher, key) for key in TEACHER_KEYS if hasattr(teacher, key)}
    return parts


TEACHER_KEYS = (
    "model_type",
    "num_attention_heads",
    "hidden_act",
    "conv_stride",
    "num_conv_pos_embedding_groups",
    "feat_extract_norm",
    "feat_extract_activation",
    "do_stable_layer_norm",
    "layer_norm_eps",
    "num_buckets",
    "max_bucket_distance",
    "position_embeddings_type",
    "left_max_position_embeddings",
    "right_max_position_embeddings",
    "conv_depthwise_kernel_size",
)
"""Settings of a teacher that act on its features and that no tensor's shape shows."""


def _quantizers_of(bandwidth: float, config: XcodecConfig) -> int:
    per_layer = math.log2(config.codebook_size) * config.frame_rate / 1000
    return max(1, math.floor(bandwidth / per_layer))


def _bandwidth_of(n_q: int, model: CodecModelConfig) -> float:
    """kbps that transformers, which divides and rounds down, maps back to `n_q` layers."""
    frame_rate = math.ceil(model.sample_rate / model.hop_samples)
    bits = math.ceil(math.log2(model.quantizer.codebook_size))
    bandwidth = n_q * frame_rate * bits / 1000
    while int(1000 * bandwidth // (frame_rate * bits)) < n_q:
        bandwidth = math.nextafter(bandwidth, math.inf)
    return bandwidth
