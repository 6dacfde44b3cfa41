"""What all commands share: results, common options, training commands, how codecs are loaded."""

from __future__ import annotations

import contextlib
import importlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from tyro.conf import OmitArgPrefixes, arg

from xcodec_lm import configs
from xcodec_lm.configs.errors import ConfigError, UsageError, XcodecLMError

Device = Literal["auto", "cpu", "cuda"]
OutFile = Annotated[Path, arg(aliases=("-o",))]
OutOption = Annotated[Path | None, arg(aliases=("-o",))]

DEFAULT_CODEC = "xcodec-tiny"
"""The shipped codec that commands take unless they are told another."""

command_words: list[str] = []
"""The words of this call behind `xcodec-lm`, for the record of what it makes."""
common_flags: list[str] = []
"""Those of `-v -q --json` that this call was given, for the processes that it starts."""


@dataclass(frozen=True)
class Result:
    """What a command found: lines for people, values for programs."""

    text: str = ""
    data: Any = None


@dataclass(frozen=True)
class TrainFlags:
    """Options that every training command spells the same."""

    out: Annotated[Path | None, arg(help="run folder; default runs/FAMILY-SIZE")] = None
    resume: Annotated[Literal["auto", "never"], arg(help="continue a run found in --out, or refuse it")] = "auto"
    seed: Annotated[int | None, arg(help="run.seed")] = None
    device: Annotated[Device, arg(help="auto takes a GPU if there is one")] = "auto"
    precision: Annotated[Literal["fp32", "bf16"] | None, arg(help="run.precision")] = None
    gpus: Annotated[int, arg(help="processes, one a GPU (or CPU processes without one)")] = 1
    max_steps: Annotated[int | None, arg(help="stop after this step; the same command without it continues")] = None
    dry_run: Annotated[bool, arg(help="print parameters, memory and batch, then stop")] = False


TRAINERS = {
    "codec": "xcodec_lm.codec.train",
    "hubert": "xcodec_lm.codec.pretrain",
    "clap": "xcodec_lm.tasks.sound.clap_train",
    "music": "xcodec_lm.tasks.music.training",
    "sound": "xcodec_lm.tasks.sound.training",
    "tts": "xcodec_lm.tasks.tts.training",
}
"""Module with `train` and `dry_run` of each noun that can be trained."""
RELATIVES = {"xcodec": ("xcodec2",), "tts": ("llasa",)}
"""Preset families of other configuration classes that the trainer of a family takes, too."""


def train_command(noun: str, family: str, argv: list[str]) -> Result | int:
    """The command `NOUN train PRESET_OR_YAML`.

    Args:
        noun: a key of `TRAINERS`.
        family: of the presets, whose configuration class is used unless the source is of one of its `RELATIVES`.
        argv: what the user wrote after `NOUN train`.

    Returns:
        What to print, or the exit code of the processes that were started for `--gpus`.
    """
    source = argv[0] if argv and not argv[0].startswith("-") else None
    if source is None and not {"-h", "--help"} & set(argv):
        known = {configs.FAMILIES[name] for name in (family, *RELATIVES.get(family, ()))}
        names = [name for name in configs.presets() if configs.FAMILIES[name.split("/")[0]] in known]
        raise UsageError(f"{noun} train needs a preset or a YAML file first", f"presets: {', '.join(names)}")
    cls = _class_of(source, family)
    default = configs.load(source or f"{family}/tiny", cls)
    flags, config = _parse_training(
        cls, default, argv[1:] if source else argv, f"xcodec-lm {noun} train PRESET_OR_YAML"
    )
    overrides = {
        name: value for name, value in (("seed", flags.seed), ("precision", flags.precision)) if value is not None
    }
    config = replace(config, run=replace(config.run, **overrides))
    module = importlib.import_module(TRAINERS[noun])
    if flags.dry_run:
        text = module.dry_run(config)
        return Result(text, {"description": text})
    from xcodec_lm.codec.runtime.launch import relaunch
    from xcodec_lm.codec.runtime.run import RunOptions

    code = relaunch([noun, "train", *_without_gpus(argv), *common_flags], flags.gpus)
    if code is not None:
        return code
    stem = Path(source or family).with_suffix("").name if source and Path(source).suffix else (source or family)
    out = flags.out or Path("runs") / stem.replace("/", "-")
    command = f"xcodec-lm {noun} train {shlex.join(argv)}"
    options = RunOptions(out=out, command=command, resume=flags.resume, device=flags.device, max_steps=flags.max_steps)
    folder = module.train(config, options)
    return Result(f"run: {folder}", {"run": str(folder)})


def _class_of(source: str | None, family: str) -> type:
    """The configuration class of a preset, YAML file or run folder, among that of a family and its relatives.

    A file is of the family of the preset at the end of its `base:` chain; one without is of the first family that has
    its keys. What fits none is left to the loader, which says so in terms of `family`.
    """
    families = (family, *RELATIVES.get(family, ()))
    if source is None or len(families) == 1:
        return configs.FAMILIES[family]
    place, seen = Path(source), set()
    while (file := place / "config.yaml" if place.is_dir() else place).is_file() and file not in seen:
        seen.add(file)
        try:
            base = yaml.safe_load(file.read_text(encoding="utf-8")).get("base")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
            return configs.FAMILIES[family]
        if not isinstance(base, str):
            for name in families:
                with contextlib.suppress(ConfigError):
                    return type(configs.load(source, configs.FAMILIES[name]))
            return configs.FAMILIES[family]
        place = file.parent / base if (file.parent / base).exists() else Path(base)
    named = place.parts[0] if place.parts else ""
    return configs.FAMILIES[named if named in families else family]


def _parse_training(cls: type, default: Any, argv: list[str], prog: str) -> tuple[TrainFlags, Any]:
    def both(flags: OmitArgPrefixes[TrainFlags], config: Annotated[Any, arg(name="")]) -> tuple[TrainFlags, Any]:
        """Trains, or continues to. Every setting of the preset is a flag; the groups are those of its YAML file."""
        return flags, config

    both.__annotations__["flags"] = OmitArgPrefixes[TrainFlags]
    both.__annotations__["config"] = Annotated[cls, arg(name="")]
    both.__defaults__ = (TrainFlags(), default)
    try:
        return tyro.cli(both, args=argv, prog=prog)
    except ConfigError as error:
        raise UsageError(error.message, error.hint) from None


def _without_gpus(argv: list[str]) -> list[str]:
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word == "--gpus":
            skip = True
        elif not word.startswith("--gpus="):
            kept.append(word)
    return kept


def device_of(device: Device) -> str:
    """The name that torch knows for `--device`.

    Raises:
        XcodecLMError: a GPU was asked for and there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise XcodecLMError("--device cuda was asked for, but torch sees no CUDA device", "leave out --device")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def load_codec_for(source: str, device: Device, decode_only: bool = False) -> Any:
    """The codec that `--codec` names, on the device that `--device` names."""
    from xcodec_lm.codec import load_codec

    return load_codec(source, decode_only=decode_only, device=device_of(device))


def note(text: str) -> None:
    """Tells the user something that is no result, on stderr."""
    from xcodec_lm.codec.runtime.progress import say

    say(f"note: {text}")


def say_conversions(path: Path, conversions: tuple[str, ...]) -> None:
    """Tells the user how a recording was converted on reading."""
    if conversions:
        note(f"{path}: {', '.join(conversions)}")


def write_result(
    out: Path, kind: str, data: Mapping[str, Any], manifests: Sequence[Path], **more: Any
) -> dict[str, Any]:
    """Writes `out/result.json`, from which `xcodec-lm report` makes pages.

    Args:
        out: folder of the evaluation.
        kind: the command's name, such as `tts eval`.
        data: what was measured.
        manifests: that were read; their places are kept relative to `out`, with their sha256.
        more: further values to keep.

    Returns:
        What was written.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    import json
    import os

    from xcodec_lm.codec.runtime.run import environment
    from xcodec_lm.tasks.report.runs import file_hash

    read = [{"path": os.path.relpath(path, out), "sha256": file_hash(path)} for path in manifests]
    made = {"kind": kind, "command": shlex.join(["xcodec-lm", *command_words]), "manifests": read,
            "environment": environment("cpu"), **more, **data}  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        (out / "result.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise XcodecLMError(f"cannot write {out}: {error.strerror}", "choose another folder with -o") from None
    return made


def read_text(path: Path | None) -> str:
    """The text of a file that goes into a card; nothing without one.

    Raises:
        XcodecLMError: it cannot be read.
    """
    try:
        return "" if path is None else path.read_text(encoding="utf-8")
    except OSError as error:
        raise XcodecLMError(f"cannot read {path}: {error.strerror}") from None
