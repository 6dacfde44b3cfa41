"""Codecs on disk: `load_codec`, `save_codec`, fingerprints.

A codec folder holds `model.safetensors`, `config.json` and `preprocessor_config.json`. Run folders are looked into.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import DacFeatureExtractor

from xcodec_lm.codec import convert
from xcodec_lm.codec.fingerprints import hash_tensors, read_tensors, stored_fingerprint
from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.semantic import quiet_transformers, teacher_from_config
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

PRETRAINED = Path(__file__).parent / "pretrained"
"""Codecs that ship with the package, one folder each."""
DECODE_PREFIXES = ("acoustic_decoder.", "fc2.")
TRAINING_ONLY = (".embed_avg", ".cluster_size", ".inited")


def load_codec(
    source: str | Path, compile: bool = False, decode_only: bool = False, device: str | torch.device = "cpu"
) -> Any:
    """A codec that is ready to encode and decode, in fp32 and eval mode.

    Args:
        source: a run folder, a model folder (ours or transformers'), a shipped name, or a hub id. X-Codec and its twin,
            X-Codec 2, NeuCodec, EnCodec, DAC, Mimi and SpeechTokenizer are known by their `config.json`.
        compile: compile the acoustic stacks of an X-Codec with torch.compile, for inputs of one fixed chunk; the first
            calls take half a minute each.
        decode_only: read only what decoding needs, about a sixth of an X-Codec; `encode` is then refused.
        device: where the codec goes.

    Returns:
        An `AudioTokenizer` with `FrameFeatures`.

    Raises:
        XcodecLMError: nothing is there, it is no codec, or weights are missing, left over or damaged.
    """
    folder = find_codec(source)
    data = read_config(folder)
    if data.get("model_type") == "xcodec" or _is_own(data, "xcodec"):
        codec = load_xcodec(folder, data, decode_only)
        if convert.OWN_MODEL_TYPE not in data:
            codec.spec = replace(codec.spec, name=Path(source).name)
        if compile:
            codec.compile_stacks()
        return codec.to(device)
    if compile:
        raise XcodecLMError(f"{source}: only an X-Codec or its twin can be compiled", "leave out compile")
    from xcodec_lm.codec.xcodec2_folder import is_xcodec2, load_xcodec2

    if is_xcodec2(data):
        return load_xcodec2(folder, data, decode_only=decode_only, device=device)
    from xcodec_lm.codec.adapters import adapter_kind, load_adapter

    if adapter_kind(data):
        return load_adapter(folder, data, decode_only=decode_only, device=device)
    raise XcodecLMError(
        f"{folder / 'config.json'}: a {data.get('model_type')!r} model is not a codec that is known here",
        "list those that are: xcodec-lm codec info --list",
    )


def load_xcodec(folder: Path, data: dict[str, Any], decode_only: bool = False) -> XCodec:
    """An X-Codec or its twin from a folder.

    Args:
        folder: with the weights.
        data: contents of its `config.json`.
        decode_only: read only what decoding needs.

    Raises:
        XcodecLMError: sizes that contradict each other, or weights that are missing, left over or damaged.
    """
    block = data.get(convert.OWN_MODEL_TYPE)
    teacher_config: Any = None
    try:
        if block is not None:
            model, semantic = convert.from_own_block(block, str(folder / "config.json"))
            teacher_config = data.get("semantic_model_config")
        else:
            model, semantic, teacher_config = convert.from_transformers(data)
        with quiet_transformers():
            teacher = teacher_from_config(teacher_config) if teacher_config is not None and not decode_only else None
            codec = XCodec(model, semantic, teacher, decode_only)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise XcodecLMError(f"{folder / 'config.json'}: {error}") from None
    needed = (*DECODE_PREFIXES, "quantizer.")
    tensors = read_tensors(folder, lambda key: not decode_only or key.startswith(needed))
    expected = codec.state_dict()
    if missing := sorted(key for key in set(expected) - set(tensors) if not key.endswith(TRAINING_ONLY)):
        raise XcodecLMError(f"{folder}: weights are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    if extra := sorted(set(tensors) - set(expected)):
        raise XcodecLMError(
            f"{folder}: weights that this codec does not have: {', '.join(extra[:3])} ({len(extra)} in all)"
        )
    try:
        codec.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise XcodecLMError(f"{folder}: weights do not fit config.json: {error}") from None
    if any(key.endswith(TRAINING_ONLY) for key in set(expected) - set(tensors)):
        for book in codec.quantizer.codebooks():  # of a shipped codec, which comes without its moving averages
            book.restart(book.embed, slice(None), 1.0)
    fingerprint = (block or {}).get("fingerprint") or fingerprint_of(folder, codec, teacher_config)
    codec.spec = replace(codec.spec, name=(block or {}).get("name") or folder.name, fingerprint=fingerprint)
    codec.transformers_config = data if block is None else None
    return codec.float().eval()


def _is_own(data: dict[str, Any], family: str) -> bool:
    block = data.get(convert.OWN_MODEL_TYPE)
    return isinstance(block, dict) and block.get("family", "xcodec") == family


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


def save_codec(codec: XCodec, folder: str | Path, name: str | None = None, half: bool = False) -> None:
    """Writes a codec so that `load_codec` and, if it has a teacher, `XcodecModel.from_pretrained` read it.

    Args:
        codec: with weight norms folded.
        folder: where to; made if needed.
        name: under which its tokens are known; None keeps the codec's own.
        half: store half precision and leave out the codebooks' moving averages, as for shipping. The codes of the
            stored codec are those of its rounded weights: tokenise with what was loaded again.

    Raises:
        XcodecLMError: the folder cannot be written; an older codec in it is then unchanged.
    """
    folder = Path(folder)
    model, semantic = codec.config, codec.semantic_config
    if codec.decode_only:
        raise XcodecLMError("a codec that was loaded with decode_only=True cannot be saved", "load it without")
    tensors = {key: value.detach().cpu().contiguous() for key, value in codec.state_dict().items()}
    if half:
        tensors = {key: value.half() for key, value in tensors.items() if not key.endswith(TRAINING_ONLY)}
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
    data = {**_without_places(data), convert.OWN_MODEL_TYPE: block}
    extractor = DacFeatureExtractor(sampling_rate=model.sample_rate, hop_length=model.hop_samples)
    config = json.dumps(data, indent=2, default=str) + "\n"
    write_files(
        folder,
        {
            "model.safetensors": lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            "config.json": lambda path: path.write_text(config, encoding="utf-8"),
            "preprocessor_config.json": lambda path: path.write_text(extractor.to_json_string(), encoding="utf-8"),
        },
    )
    codec.spec = replace(codec.spec, name=block["name"], fingerprint=fingerprint)


def _without_places(data: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the paths that its parts were once loaded from."""
    return {
        key: _without_places(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if key != "_name_or_path"
    }


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
    if isinstance(codec, XCodec):
        return codec.spec.fingerprint, fingerprint_of(folder, codec, data.get("semantic_model_config"))
    from xcodec_lm.codec.xcodec2_folder import fingerprint_of_folder, is_xcodec2

    if is_xcodec2(data):
        return codec.spec.fingerprint, fingerprint_of_folder(folder, data)
    return codec.spec.fingerprint, load_codec(folder).spec.fingerprint


def decides_codes(key: str) -> bool:
    """Whether a tensor acts on the codes: not those of decoding, nor the averages that only training reads."""
    if key.endswith(TRAINING_ONLY):
        return False
    return not key.startswith((*DECODE_PREFIXES, "fc1.", "decoder_semantic."))


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())
