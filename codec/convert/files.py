"""Checkpoints from one layout to another: ours, transformers', and that of the original code.

A folder is written under a temporary name, checked by loading it, flushed to disk and renamed, so that what stands
under the final name is whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, PretrainedConfig

from xcodec_lm.codec.convert import OWN_MODEL_TYPE, original, xcodec2
from xcodec_lm.codec.convert.state_dicts import check_state
from xcodec_lm.codec.load import count_parameters, find_codec, load_codec, read_config, save_codec
from xcodec_lm.codec.runtime.files import new_folder, write_files
from xcodec_lm.codec.semantic import quiet_transformers, teacher_from_config
from xcodec_lm.codec.torch_files import describe, load_tensors
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.codec.xcodec2_folder import SEMANTIC_DECODER, load_xcodec2, save_xcodec2, to_transformers
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

Layout = Literal["ours", "transformers", "original"]
KINDS = {"xcodec": "X-Codec", "xcodec2": "X-Codec 2", "neucodec": "NeuCodec"}
ARCHITECTURES = {"xcodec2": "Xcodec2Model", "neucodec": "NeuCodecModel"}
"""Kinds that transformers' class of this name, and of the same name with FeatureExtractor, reads."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did."""

    kind: str
    """A key of `KINDS`."""
    layout: str
    """Of the source, in words."""
    out: Path
    """What was written: a folder, or for the original layout a file."""
    tensors: int = 0
    """Tensors that were read."""
    parameters: int = 0
    """Numbers of the model that was written."""
    left_aside: dict[str, str] = field(default_factory=dict)
    """What the source holds beside the model: name -> what it is, or why it is not needed."""
    notes: tuple[str, ...] = ()
    """What the user should know of the result."""
    fingerprint: str = ""
    """Of what was written, unless that is in the original layout."""


@dataclass
class _Model:
    kind: str
    layout: str
    read: int
    """Tensors of the source."""
    tensors: dict[str, Tensor]
    codec: XCodec | XCodec2 | None = None
    """None for an X-Codec 2 out of a file of the original code."""
    config: PretrainedConfig | None = None
    """Of an X-Codec 2 that transformers can express."""
    left_aside: dict[str, str] = field(default_factory=dict)


def convert_checkpoint(
    source: str | Path, out: Path, to: Layout = "ours", given: Mapping[str, Any] | None = None, teacher: str = ""
) -> Conversion:
    """Reads a codec in any layout and writes it in another.

    Args:
        source: a file of the original code (safetensors or of torch.save), or whatever `load_codec` takes.
        out: a folder that is new or empty; for `original` a file that is not there yet.
        to: the layout to write.
        given: sizes of an original checkpoint that its tensors do not show, in the words of transformers' config.json.
        teacher: a folder or hub id of the self-supervised model, for files that leave it out.

    Raises:
        XcodecLMError: a damaged source, names too many or too few, a layout that cannot express the codec, or a place
            that cannot be written. Nothing is then left under `out`.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir()) and to != "original"):
        raise XcodecLMError(f"{out} exists already", "name another place with -o")
    path = Path(source)
    model = _from_file(path, given or {}, teacher) if path.is_file() else _from_folder(source, given or {}, to)
    done = Conversion(KINDS[model.kind], model.layout, out, model.read, _count(model), left_aside=model.left_aside)
    if to != "ours":
        _check_expressible(model, str(source), to)
    if to == "original":
        return replace(done, notes=_write_original(model, out))
    with new_folder(out) as folder:
        if isinstance(model.codec, XCodec):
            save_codec(model.codec, folder, name=out.name)
        else:
            _write_xcodec2(model, folder, out.name, to)
        if to == "transformers":
            config = {key: value for key, value in read_config(folder).items() if key != OWN_MODEL_TYPE}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        fingerprint = load_codec(folder).spec.fingerprint
    return replace(done, fingerprint=fingerprint)


def read_sizes(path: Path | None) -> dict[str, Any]:
    """A JSON or YAML file with sizes that shapes do not show.

    Raises:
        ConfigError: it cannot be read, or is not a mapping.
    """
    if path is None:
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is not a mapping of names to values")
    return data


# ---------------------------------------------------------------------- reading


def _from_file(path: Path, given: Mapping[str, Any], teacher: str) -> _Model:
    tensors, other = load_tensors(path)
    left = {key: describe(value) for key, value in other.items()}
    count = len(tensors)
    if teacher and not any(key.startswith("semantic_model.") for key in tensors):
        tensors |= _teacher_tensors(teacher)
    spelling = f"original, weight norm: {original.spelling_of(tensors)}"
    if original.is_original(tensors):
        ours, stale = original.to_ours(tensors, str(path))
        sizes = original.infer_config(ours, given, str(path))
        with quiet_transformers():
            codec = XCodec(*sizes[:2], teacher_from_config(sizes[2]))
        check_state(ours, codec.state_dict(), str(path), lambda key: original.original_name(key, ours))
        codec.load_state_dict(ours)
        left |= dict.fromkeys(stale, "stale: a split weight lies beside it")
        return _Model("xcodec", spelling, count, ours, codec.eval(), left_aside=left)
    if xcodec2.is_original(tensors):
        ours, config, unused = xcodec2.to_ours(tensors, given, str(path))
        expected = _skeleton(config)
        check_state(ours, expected, str(path), lambda key: xcodec2.original_name(key, expected))
        return _Model(config.model_type, spelling, count, ours, config=config, left_aside=left | unused)
    raise XcodecLMError(
        f"{path} is no checkpoint of X-Codec, X-Codec 2 or NeuCodec: its tensors are {', '.join(list(tensors)[:3])}",
        "a file in our layout or transformers' needs its config.json: give the folder",
    )


def _from_folder(source: str | Path, given: Mapping[str, Any], to: Layout) -> _Model:
    if given:
        raise ConfigError("--config is for original checkpoints; a folder has its own config.json")
    folder = find_codec(source)
    codec = load_codec(folder)
    layout = f"{'ours' if OWN_MODEL_TYPE in read_config(folder) else 'transformers'}, folder {folder}"
    state = dict(codec.state_dict()) if isinstance(codec, (XCodec, XCodec2)) else {}
    if isinstance(codec, XCodec):
        return _Model("xcodec", layout, len(state), state, codec)
    if not isinstance(codec, XCodec2):
        raise XcodecLMError(f"{source}: only X-Codec, X-Codec 2 and NeuCodec have other layouts, not {codec.spec.name}")
    config = to_transformers(
        codec.config, codec.semantic_config, codec.semantic_encoder.config if codec.has_semantics else None
    )
    kind = config.model_type if config is not None else "xcodec2"
    kept = {key: value for key, value in state.items() if not key.startswith(SEMANTIC_DECODER)}
    left = {
        key: "used in training only; our layout alone holds it" for key in state if key not in kept and to != "ours"
    }
    return _Model(kind, layout, len(state), kept, codec, config, left)


def _teacher_tensors(teacher: str) -> dict[str, Tensor]:
    try:
        with quiet_transformers():
            model = AutoModel.from_pretrained(teacher, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise XcodecLMError(
            f"--teacher: {teacher!r} is neither a model folder nor a hub model within reach "
            f"({str(error).splitlines()[0]})"
        ) from None
    return {f"semantic_model.{key}": value.detach() for key, value in model.state_dict().items()}


def _skeleton(config: PretrainedConfig) -> dict[str, Tensor]:
    """Names and shapes of transformers' model of a configuration, without memory."""
    with quiet_transformers(), torch.device("meta"):
        return AutoModel.from_config(config).state_dict()


# ---------------------------------------------------------------------- writing


def _write_xcodec2(model: _Model, folder: Path, name: str, to: Layout) -> None:
    """Writes transformers' layout, or by way of it ours."""
    codec = model.codec
    if codec is None or to == "transformers":
        config = model.config
        assert config is not None
        config.architectures = [ARCHITECTURES[model.kind]]
        config.save_pretrained(folder)
        save_file(_unshared(model.tensors), folder / "model.safetensors", metadata={"format": "pt"})
        extractor = {
            "feature_extractor_type": ARCHITECTURES[model.kind].replace("Model", "FeatureExtractor"),
            "feature_size": 80,
            "sampling_rate": 16_000,
            "padding_value": 1.0,
            "hop_length": math.prod(config.downsampling_ratios),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2) + "\n", encoding="utf-8")
    if to == "ours":
        own = codec if isinstance(codec, XCodec2) else load_xcodec2(folder, read_config(folder))
        save_xcodec2(own, folder, name)


def _write_original(model: _Model, out: Path) -> tuple[str, ...]:
    notes: list[str] = []
    if isinstance(model.codec, XCodec):
        tensors = original.from_ours(model.tensors, out.name)
        model_config, semantic, teacher = (
            model.codec.config,
            model.codec.semantic_config,
            model.codec.semantic_model.config,
        )
        if odd := original.differs_from_published(model_config, semantic):
            notes.append(
                f"the original code has other sizes built in and must be edited to load this: {', '.join(odd)}"
            )
        if hidden := original.not_shown(model_config, semantic, teacher):
            notes.append(f"no tensor shows these, so converting it back needs them in --config: {', '.join(hidden)}")
    else:
        assert model.config is not None
        tensors = xcodec2.from_ours(model.tensors, model.config, out.name)

    def write(path: Path) -> None:
        if out.suffix == ".safetensors":
            save_file(_unshared(tensors), path, metadata={"format": "pt"})
        else:
            try:
                torch.save({"state_dict": tensors} if model.kind == "xcodec2" else tensors, path)
            except RuntimeError as error:  # torch's word for a full disk
                raise OSError(str(error)) from None
        _check_original(model, path)

    write_files(out.parent, {out.name: write})
    return tuple(notes)


def _check_original(model: _Model, path: Path) -> None:
    """Reads a file back and compares it with what it was made of."""
    tensors, _ = load_tensors(path)
    if isinstance(model.codec, XCodec):
        again, _ = original.to_ours(tensors, path.name)
    else:
        assert model.config is not None
        again, _, _ = xcodec2.to_ours(tensors, model.config.to_dict(), path.name)
    different = [key for key, value in model.tensors.items() if not torch.equal(again[key], value)]
    if different or set(again) != set(model.tensors):
        raise XcodecLMError(f"{path}: reading it back gives other weights, {', '.join(different[:3])}")


def _check_expressible(model: _Model, where: str, to: Layout) -> None:
    other = "transformers has" if to == "transformers" else "the original code has"
    codec = model.codec
    if codec is not None and not codec.has_semantics:
        raise XcodecLMError(f"{where} has no semantic branch, and {other} no such model", "convert it to ours")
    if isinstance(codec, XCodec2) and model.config is None:
        raise XcodecLMError(f"{where} is an X-Codec 2 of ours, and {other} no such model", "convert it to ours")
    if isinstance(codec, XCodec) and codec.semantic_config.layers != "mean":
        raise XcodecLMError(
            f"{where} uses layer {codec.semantic_config.layers} of its teacher, and {other} only the mean of all",
            "convert it to ours",
        )
    if to == "transformers" and isinstance(codec, XCodec):
        dim, width = codec.config.quantizer.dim, codec.config.latent_dim + codec.semantic_config.dim
        if dim != width:
            raise XcodecLMError(
                f"{where}: transformers' X-Codec quantizes vectors as wide as both branches together ({width}), this "
                f"one has quantizer.dim {dim}",
                "convert it to ours",
            )


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors can write: contiguous, none in the memory of another."""
    seen: set[int] = set()
    separate = {}
    for key, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        separate[key] = value.clone(memory_format=torch.contiguous_format) if memory in seen else value.contiguous()
        seen.add(memory)
    return separate


def _count(model: _Model) -> int:
    if model.codec is not None:
        return count_parameters(model.codec)
    return sum(value.numel() for value in model.tensors.values())
