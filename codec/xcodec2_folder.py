"""X-Codec 2 and NeuCodec on disk: transformers' folders, and ours where transformers has no such model.

`config.json` and `model.safetensors` are transformers' own, with our keys under `xcodec_lm`. A codec that transformers
cannot express (positions over time, a causal decoder, no teacher or another one) has `model_type: xcodec_lm`. The stack
that restores the teacher's features, which transformers does not have, lies apart in `semantic_decoder.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, NeuCodecConfig, PretrainedConfig, Xcodec2Config

from xcodec_lm import configs
from xcodec_lm.codec.convert import OWN_MODEL_TYPE, TEACHER_KEYS
from xcodec_lm.codec.fingerprints import hash_tensors, read_tensors, stored_fingerprint
from xcodec_lm.codec.nn.transformer import EPS
from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.semantic import quiet_transformers, teacher_from_config
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.xcodec2 import FSQConfig, Xcodec2DecoderConfig, Xcodec2ModelConfig, Xcodec2SemanticConfig

FAMILY = "xcodec2"
"""Value of `family` in our block of `config.json`."""
MODEL_TYPES = ("xcodec2", "neucodec")
DECODE_PREFIXES = ("acoustic_decoder.", "quantizer.project_out.")
SEMANTIC_DECODER = ("semantic_decoder.", "fc_semantic.")
SEMANTIC_DECODER_FILE = "semantic_decoder.safetensors"
W2V_BERT_KEYS = (
    "position_embeddings_type",
    "left_max_position_embeddings",
    "right_max_position_embeddings",
    "rotary_embedding_base",
)
"""Settings of a w2v-BERT that act on its features and that no tensor's shape shows, beside those of any teacher."""


def is_xcodec2(data: dict[str, Any]) -> bool:
    """Whether a `config.json` is that of an X-Codec 2 or NeuCodec, in any layout."""
    block = data.get(OWN_MODEL_TYPE)
    return data.get("model_type") in MODEL_TYPES or (isinstance(block, dict) and block.get("family") == FAMILY)


def load_xcodec2(
    folder: Path, data: dict[str, Any], *, decode_only: bool = False, device: torch.device | str = "cpu"
) -> XCodec2:
    """A codec that is ready to encode and decode, in fp32 and eval mode.

    Args:
        folder: with `config.json` and the weights.
        data: contents of its `config.json`, for which `is_xcodec2` holds.
        decode_only: load neither teacher nor encoder; `encode` is then refused.
        device: where the codec goes.

    Raises:
        XcodecLMError: a configuration with parts that X-Codec 2 does not have, or weights that are missing, left over,
            unreadable or of another size.
    """
    block = data.get(OWN_MODEL_TYPE) or {}
    try:
        model, semantic, teacher_config = _read_config(data, str(folder / "config.json"))
        with quiet_transformers():
            wanted = teacher_config is not None and not decode_only
            teacher = teacher_from_config(teacher_config) if wanted else None
            restores = (folder / SEMANTIC_DECODER_FILE).is_file()
            codec = XCodec2(model, semantic, teacher, decode_only, semantic_decoder=restores)
    except (KeyError, TypeError, ValueError) as error:
        raise XcodecLMError(f"{folder / 'config.json'}: {error}") from None
    except ConfigError as error:
        raise XcodecLMError(f"{folder / 'config.json'}: {error.message}", error.hint) from None
    expected = codec.state_dict()
    kept = (*DECODE_PREFIXES, "quantizer.", *SEMANTIC_DECODER)
    tensors = read_tensors(folder, lambda key: not decode_only or key.startswith(kept))
    if missing := sorted(set(expected) - set(tensors)):
        raise XcodecLMError(f"{folder}: weights are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    if extra := sorted(set(tensors) - set(expected)):
        raise XcodecLMError(
            f"{folder}: weights that this codec does not have: {', '.join(extra[:3])} ({len(extra)} in all)"
        )
    try:
        codec.load_state_dict(tensors)
    except RuntimeError as error:
        raise XcodecLMError(f"{folder}: weights do not fit config.json: {error}") from None
    fingerprint = block.get("fingerprint") or fingerprint_of_folder(folder, data)
    codec.spec = replace(codec.spec, name=block.get("name") or data["model_type"], fingerprint=fingerprint)
    return codec.float().eval().to(device)


def save_xcodec2(codec: XCodec2, folder: str | Path, name: str | None = None) -> None:
    """Writes a codec's folder, in transformers' layout where transformers can express it.

    The codec then has the fingerprint and the name of what was written. Files of an older codec survive an error.

    Args:
        codec: for inference: with folded weight norms (`exported`), and an encoder.
        folder: made if it is not there.
        name: what the codec calls itself.

    Raises:
        XcodecLMError: the codec is for decoding only or still has its weight norms, or the folder cannot be written.
    """
    folder = Path(folder)
    if codec.decode_only:
        raise XcodecLMError("a codec that was loaded with decode_only=True cannot be saved", "load it without")
    tensors = {key: value.detach().cpu().contiguous() for key, value in codec.state_dict().items()}
    if any(key.startswith("acoustic_encoder.") and ".parametrizations." in key for key in tensors):
        raise XcodecLMError("this codec is in training: its weight norms are not folded", "save codec.exported()")
    teacher = codec.semantic_encoder.config if codec.has_semantics else None
    apart = {key: tensors.pop(key) for key in list(tensors) if key.startswith(SEMANTIC_DECODER)}
    fingerprint = hash_tensors(
        ((key, value) for key, value in sorted(tensors.items()) if decides_codes(key)),
        architecture(codec.config, codec.semantic_config, teacher),
    )
    block = {
        "family": FAMILY,
        "model": configs.to_dict(codec.config),
        "semantic": configs.to_dict(codec.semantic_config),
        "name": name or codec.spec.name,
        "fingerprint": fingerprint,
        "decoder_fingerprint": hash_tensors(
            ((key, value) for key, value in sorted(tensors.items()) if key.startswith(DECODE_PREFIXES)),
            {"decoder": configs.to_dict(codec.config.decoder), "output": codec.config.output_hop_samples},
        ),
    }
    foreign = to_transformers(codec.config, codec.semantic_config, teacher)
    if foreign is not None:
        data: dict[str, Any] = foreign.to_dict()
    else:
        data = {"model_type": OWN_MODEL_TYPE}
        if teacher is not None:
            data["semantic_model_config"] = teacher.to_dict()
    texts = {"config.json": {**data, OWN_MODEL_TYPE: block}}
    if foreign is not None:
        kind = "Xcodec2FeatureExtractor" if foreign.model_type == "xcodec2" else "NeuCodecFeatureExtractor"
        texts["preprocessor_config.json"] = {
            "feature_extractor_type": kind,
            "feature_size": 80,
            "padding_value": 1.0,
            "sampling_rate": codec.config.sample_rate,
            "hop_length": codec.config.hop_samples,
        }
    writers: dict[str, Callable[[Path], object]] = {}
    for file, weights in (("model.safetensors", tensors), (SEMANTIC_DECODER_FILE, apart)):
        if weights:
            writers[file] = partial(save_file, weights, metadata={"format": "pt"})
    for file, content in texts.items():
        writers[file] = partial(
            Path.write_text, data=json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8"
        )
    write_files(folder, writers)
    for file in {SEMANTIC_DECODER_FILE, "preprocessor_config.json"} - set(writers):
        (folder / file).unlink(missing_ok=True)  # of an older codec that had it
    codec.spec = replace(codec.spec, name=block["name"], fingerprint=fingerprint)


def from_transformers(data: dict[str, Any]) -> tuple[Xcodec2ModelConfig, Xcodec2SemanticConfig, PretrainedConfig]:
    """Our view of a transformers X-Codec 2 or NeuCodec configuration, and the teacher's own.

    Args:
        data: contents of its `config.json`.

    Raises:
        ConfigError: settings that neither the published models nor ours have.
    """
    neucodec = data["model_type"] == "neucodec"
    config = (NeuCodecConfig if neucodec else Xcodec2Config)(**{k: v for k, v in data.items() if k != OWN_MODEL_TYPE})
    teacher = config.semantic_model_config
    assert isinstance(teacher, PretrainedConfig)
    known = {
        "hidden_act": "silu",
        "attention_bias": False,
        "num_key_value_heads": config.num_attention_heads,
        "rms_norm_eps": EPS,
        "quantization_dim": config.hidden_size + teacher.hidden_size,
    }
    for key, value in known.items():
        if getattr(config, key) != value:
            raise ConfigError(f"{key} is {getattr(config, key)!r}, supported is {value!r}")
    if (config.rope_parameters or {}).get("rope_type", "default") != "default":
        raise ConfigError(f"rope_parameters {config.rope_parameters!r} are not supported, only the default type")
    input_rate = config.input_sampling_rate if neucodec else config.sampling_rate
    model = Xcodec2ModelConfig(
        sample_rate=input_rate,
        output_sample_rate=config.output_sampling_rate if neucodec else input_rate,
        encoder_channels=config.encoder_hidden_size,
        encoder_strides=tuple(config.downsampling_ratios),
        dim=config.hidden_size,
        quantizer_dim=config.quantization_dim,
        quantizer=FSQConfig(levels=tuple(config.quantization_levels), bound_twice=True),
        decoder=Xcodec2DecoderConfig(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            head_dim=config.head_dim,
            mlp_dim=config.intermediate_size,
            dropout=config.activation_dropout,
            rope="head",
        ),
    )
    semantic = Xcodec2SemanticConfig(
        teacher=teacher.model_type,
        layers=teacher.num_hidden_layers,
        dim=teacher.hidden_size,
        pad_samples=0 if neucodec else model.hop_samples // 2,
    )
    return model, semantic, teacher


def to_transformers(
    model: Xcodec2ModelConfig, semantic: Xcodec2SemanticConfig, teacher: PretrainedConfig | None
) -> PretrainedConfig | None:
    """The transformers configuration of a codec, or None where transformers cannot express it."""
    decoder = model.decoder
    neucodec = semantic.pad_samples == 0
    if (
        teacher is None
        or teacher.model_type != "wav2vec2-bert"
        or semantic.layers != teacher.num_hidden_layers
        or model.quantizer_dim != model.dim + semantic.dim
        or not model.quantizer.bound_twice
        or decoder.rope != "head"
        or decoder.causal
        or model.dim % decoder.heads
        or not (neucodec or semantic.pad_samples == model.hop_samples // 2)
        or not (neucodec or model.output_sample_rate == model.sample_rate)
    ):
        return None
    rates = {"sampling_rate": model.sample_rate}
    if neucodec:
        rates = {"input_sampling_rate": model.sample_rate, "output_sampling_rate": model.output_sample_rate}
    return (NeuCodecConfig if neucodec else Xcodec2Config)(
        hidden_size=model.dim,
        intermediate_size=decoder.mlp_dim,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.heads,
        head_dim=decoder.head_dim,
        activation_dropout=decoder.dropout,
        encoder_hidden_size=model.encoder_channels,
        downsampling_ratios=list(model.encoder_strides),
        semantic_model_config=teacher,
        quantization_dim=model.quantizer_dim,
        quantization_levels=list(model.quantizer.levels),
        architectures=["NeuCodecModel" if neucodec else "Xcodec2Model"],
        **rates,
    )


def architecture(
    model: Xcodec2ModelConfig, semantic: Xcodec2SemanticConfig, teacher: PretrainedConfig | None
) -> dict[str, Any]:
    """What decides the codes beside the weights, for the fingerprint."""
    parts: dict[str, Any] = {
        "family": FAMILY,
        "sample_rate": model.sample_rate,
        "encoder_strides": list(model.encoder_strides),
        "levels": list(model.quantizer.levels),
        "bound_twice": model.quantizer.bound_twice,
    }
    if teacher is not None:
        parts["semantic"] = {"layers": semantic.layers, "pad_samples": semantic.pad_samples}
        keys = (*TEACHER_KEYS, *W2V_BERT_KEYS)
        parts["teacher"] = {key: getattr(teacher, key) for key in keys if hasattr(teacher, key)}
    return parts


def decides_codes(key: str) -> bool:
    """Whether a tensor acts on the codes."""
    return not key.startswith((*DECODE_PREFIXES, *SEMANTIC_DECODER))


def fingerprint_of_folder(folder: Path, data: dict[str, Any]) -> str:
    """The fingerprint of the codec stored in a folder, from the tensors as stored."""
    return stored_fingerprint(folder, architecture(*_read_config(data, str(folder / "config.json"))), decides_codes)


def _read_config(
    data: dict[str, Any], where: str
) -> tuple[Xcodec2ModelConfig, Xcodec2SemanticConfig, PretrainedConfig | None]:
    block, teacher = data.get(OWN_MODEL_TYPE), data.get("semantic_model_config")
    if not block:
        return from_transformers(data)
    model = configs.from_dict(block["model"], Xcodec2ModelConfig, where)
    semantic = configs.from_dict(block["semantic"], Xcodec2SemanticConfig, where)
    return model, semantic, None if teacher is None else AutoConfig.for_model(**teacher)
