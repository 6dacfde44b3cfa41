"""Codecs on disk: `load_codec`, `save_codec`, fingerprints.

A codec folder holds `model.safetensors`, `config.json` and `preprocessor_config.json`. Run folders are looked into.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import DacFeatureExtractor

from xcodec_lm.codec import convert
from xcodec_lm.codec.fingerprints import hash_tensors, read_tensors, stored_fingerprint
from xcodec_lm.codec.semantic import quiet_transformers, teacher_from_config
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

PRETRAINED = Path(__file__).parent / "pretrained"
"""Codecs that ship with the package, one folder each."""
DECODE_PREFIXES = ("acoustic_decoder.", "fc2.")
TRAINING_ONLY = (".embed_avg", ".cluster_size", ".inited")


def load_codec(
    source: str | Path, compile: bool = False, decode_only: bool = False, device: str | torch.device = "cpu"
) -> XCodec:
    """A codec that is ready to encode and decode, in fp32 and eval mode.

    Args:
        source: a run folder, a model folder (ours or `XcodecModel.save_pretrained`'s), a shipped name, or a hub id.
        compile: compile the acoustic decoder with torch.compile; pays off for many inputs of one shape.
        decode_only: load neither teacher nor encoder; `encode` is then refused.
        device: where the codec goes.

    Raises:
        XcodecLMError: nothing is there, or it is not an X-Codec, or weights are missing or left over.
    """
    folder = find_codec(source)
    data = read_config(folder)
    block = data.get(convert.OWN_MODEL_TYPE)
    teacher_config: Any = None
    try:
        if block is not None:
            model, semantic = convert.from_own_block(block, str(folder / "config.json"))
            teacher_config = data.get("semantic_model_config")
        elif data.get("model_type") == "xcodec":
            model, semantic, teacher_config = convert.from_transformers(data)
        else:
            raise ConfigError(f"a {data.get('model_type')!r} model is not an X-Codec")
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise XcodecLMError(f"{folder / 'config.json'}: {error}") from None
    with quiet_transformers():
        teacher = teacher_from_config(teacher_config) if teacher_config is not None and not decode_only else None
        codec = XCodec(model, semantic, teacher, decode_only)
    wanted = (*DECODE_PREFIXES, "quantizer.")
    tensors = read_tensors(folder, lambda key: not decode_only or key.startswith(wanted))
    expected = codec.state_dict()
    if missing := sorted(set(expected) - set(tensors)):
        raise XcodecLMError(f"{folder}: weights are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    if extra := sorted(set(tensors) - set(expected)):
        raise XcodecLMError(
            f"{folder}: weights that this codec does not have: {', '.join(extra[:3])} ({len(extra)} in all)"
        )
    fingerprint = (block or {}).get("fingerprint") or fingerprint_of(folder, codec, teacher_config)
    try:
        codec.load_state_dict(tensors)
    except RuntimeError as error:
        raise XcodecLMError(f"{folder}: weights do not fit config.json: {error}") from None
    name = (block or {}).get("name") or Path(source).name
    codec.spec = replace(codec.spec, name=name, fingerprint=fingerprint)
    codec.transformers_config = data if block is None else None
    codec = codec.float().eval().to(device)
    if compile:
        codec.acoustic_decoder.compile()
    return codec


def find_codec(source: str | Path) -> Path:
    """The folder that holds a codec's `config.json`.

    Raises:
        XcodecLMError: there is none, and the hub has none either or is out of reach.
    """
    path = Path(source)
    for folder in (path / "model", path, PRETRAINED / str(source)):
        if (folder / "config.json").is_file():
            return folder
    if path.exists():
        state = (
            "the run has not finished: it has no model/ yet"
            if (path / "config.yaml").is_file()
            else "it has no config.json"
        )
        raise XcodecLMError(
            f"{path} is not a codec: {state}", "give a run folder, a model folder, a shipped name or a hub id"
        )
    shipped = sorted(item.name for item in PRETRAINED.glob("*/")) if PRETRAINED.is_dir() else []
    if str(source).count("/") == 1 and not path.is_absolute() and path.parts[0] not in (".", ".."):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
        except Exception as error:  # the hub's client raises many kinds; each means that the name leads nowhere
            raise XcodecLMError(
                f"{source}: no such folder, and not to be had from the hub ({type(error).__name__})",
                "check the name and the network, or give a local folder",
            ) from None
    known = f"; shipped codecs: {', '.join(shipped)}" if shipped else ""
    raise XcodecLMError(f"{source}: no such codec{known}", "give a run folder, a model folder or a hub id")


def read_config(folder: Path) -> dict[str, Any]:
    """A codec folder's config.json.

    Raises:
        XcodecLMError: it is not JSON.
    """
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise XcodecLMError(f"{folder / 'config.json'} is not valid JSON: {error}") from None


def save_codec(codec: XCodec, folder: str | Path, name: str | None = None) -> None:
    """Writes a codec so that `load_codec` and, if it has a teacher, `XcodecModel.from_pretrained` read it.

    Args:
        codec: with weight norms folded.
        folder: where to; made if needed.
        name: under which its tokens are known; None keeps the codec's own.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    folder = Path(folder)
    model, semantic = codec.config, codec.semantic_config
    tensors = {key: value.detach().cpu().contiguous() for key, value in codec.state_dict().items()}
    teacher_config = codec.semantic_model.config if codec.has_semantics else None
    foreign = None
    if teacher_config is not None:
        foreign = codec.transformers_config or convert.to_transformers(model, semantic, teacher_config)
    fingerprint = hash_tensors(
        ((key, value) for key, value in sorted(tensors.items()) if decides_codes(key)),
        convert.architecture(model, semantic, teacher_config),
    )
    block = convert.own_block(
        model,
        semantic,
        name=name or codec.spec.name,
        fingerprint=fingerprint,
        decoder_fingerprint=hash_tensors(
            ((key, value) for key, value in sorted(tensors.items()) if key.startswith(DECODE_PREFIXES)),
            {"decoder_strides": list(model.decoder_strides)},
        ),
    )
    if foreign is not None:
        data = foreign if isinstance(foreign, dict) else foreign.to_dict()
    else:
        data = {"model_type": convert.OWN_MODEL_TYPE}
        if teacher_config is not None:
            data["semantic_model_config"] = teacher_config.to_dict()
    data = {**data, convert.OWN_MODEL_TYPE: block}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
        extractor = DacFeatureExtractor(sampling_rate=model.sample_rate, hop_length=model.hop_samples)
        extractor.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise XcodecLMError(f"cannot write {folder}: {error}", "choose a folder that can be written") from None
    codec.spec = replace(codec.spec, name=block["name"], fingerprint=fingerprint)


def fingerprint_of(folder: Path, codec: XCodec, teacher_config: Any) -> str:
    """The fingerprint of the X-Codec stored in a folder, from the tensors as stored."""
    if isinstance(teacher_config, dict):
        from transformers import AutoConfig

        teacher_config = AutoConfig.for_model(**teacher_config)
    architecture = convert.architecture(codec.config, codec.semantic_config, teacher_config)
    return stored_fingerprint(folder, architecture, decides_codes)


def verify_fingerprint(folder: Path) -> tuple[str, str]:
    """The fingerprint that a codec folder states, and the one that its files have."""
    data = read_config(folder)
    codec = load_codec(folder)
    teacher_config = data.get("semantic_model_config")
    return codec.spec.fingerprint, fingerprint_of(folder, codec, teacher_config)


def decides_codes(key: str) -> bool:
    """Whether a tensor acts on the codes: not those of decoding, nor the averages that only training reads."""
    if key.endswith(TRAINING_ONLY):
        return False
    return not key.startswith((*DECODE_PREFIXES, "fc1.", "decoder_semantic."))


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())
