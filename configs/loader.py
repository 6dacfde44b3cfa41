"""Reads presets and YAML files into the dataclasses of this package, and names every mistake with file and line.

A file may start from another with `base:` (a preset name, or a path relative to the file); its own keys are a delta.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from xcodec_lm.configs.clap import ClapTrainConfig
from xcodec_lm.configs.codec import CodecTrainConfig
from xcodec_lm.configs.compare import CompareConfig
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.hubert import HubertTrainConfig
from xcodec_lm.configs.lm import LayoutConfig, LMTrainConfig
from xcodec_lm.configs.sound import SoundTrainConfig
from xcodec_lm.configs.tts import TTSTrainConfig
from xcodec_lm.configs.tts_llama import LlamaTTSTrainConfig
from xcodec_lm.configs.xcodec2 import Xcodec2TrainConfig

T = TypeVar("T")

FAMILIES: dict[str, type] = {
    "xcodec": CodecTrainConfig,
    "baseline": CodecTrainConfig,
    "xcodec2": Xcodec2TrainConfig,
    "hubert": HubertTrainConfig,
    "clap": ClapTrainConfig,
    "music": LMTrainConfig,
    "layout": LayoutConfig,
    "sound": SoundTrainConfig,
    "tts": TTSTrainConfig,
    "llasa": LlamaTTSTrainConfig,
    "compare": CompareConfig,
}
"""Preset family -> the dataclass that its files describe."""


@dataclasses.dataclass
class _Value:
    """A YAML value with the place where it was written."""

    data: Any  # scalar, list[_Value] or dict[str, _Value]
    where: str


def presets() -> list[str]:
    """Names of all presets, `family/size`, sorted."""
    root = resources.files("xcodec_lm.configs") / "presets"
    return sorted(
        f"{family.name}/{item.name.removesuffix('.yaml')}"
        for family in root.iterdir()
        if family.is_dir()
        for item in family.iterdir()
        if item.name.endswith(".yaml")
    )


def preset_text(name: str) -> str:
    """The YAML text of a preset.

    Raises:
        ConfigError: no preset has this name.
    """
    if name not in presets():
        raise ConfigError(
            f"no preset is called {name!r}{_did_you_mean(name, presets())}", "list them: xcodec-lm presets ls"
        )
    return (resources.files("xcodec_lm.configs") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load(source: str | Path, cls: type[T], overrides: Mapping[str, Any] | None = None) -> T:
    """A configuration from a preset name, a YAML file or a run folder.

    Args:
        source: `family/size`, a path to a YAML file, or a folder with a `config.yaml`.
        cls: the dataclass to fill; keys that the source leaves out keep its defaults.
        overrides: dotted keys, such as `{"optim.lr": 1e-3}`, laid over the source.

    Raises:
        ConfigError: the source is missing, or a key or value does not fit; names file, line and the nearest right key.
    """
    tree = _read(source, seen=())
    for key, value in (overrides or {}).items():
        *groups, leaf = key.split(".")
        node = tree
        for group in groups:
            child = node.data.setdefault(group, _Value({}, f"override {key}"))
            if not isinstance(child.data, dict):
                raise ConfigError(f"override {key}: {group} is not a group")
            node = child
        node.data[leaf] = _wrap(value, f"override {key}")
    return _build(tree, cls, path="")


def save(config: Any, path: Path) -> None:
    """Writes a configuration as YAML with every key spelled out."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, lists and scalars."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def from_dict(data: Mapping[str, Any], cls: type[T], where: str) -> T:
    """A configuration from plain dictionaries, checked like a file.

    Args:
        data: nested dictionaries, as `to_dict` gives.
        cls: the dataclass to fill.
        where: what an error message names as the place.
    """
    return _build(_wrap(data, where), cls, path="")


def _plain(value: _Value) -> Any:
    """A value without its places, for messages."""
    if isinstance(value.data, dict):
        return {key: _plain(item) for key, item in value.data.items()}
    return [_plain(item) for item in value.data] if isinstance(value.data, list) else value.data


def _wrap(value: Any, where: str) -> _Value:
    if isinstance(value, Mapping):
        return _Value({str(key): _wrap(item, where) for key, item in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return _Value([_wrap(item, where) for item in value], where)
    return _Value(value, where)


def _did_you_mean(word: str, options: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read(source: str | Path, seen: tuple[str, ...]) -> _Value:
    path = Path(source)
    if path.is_dir():
        path = path / "config.yaml"
    if path.is_file():
        label, folder = str(path), path.parent
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as text: {error}", "give a YAML file") from None
    elif path.suffix in (".yaml", ".yml") or path.name == "config.yaml":
        raise ConfigError(
            f"{path}: file not found", "give a preset (xcodec-lm presets ls), a YAML file or a run folder"
        )
    else:
        text, label, folder = preset_text(str(source)), f"preset {source}", None
    place = label if folder is None else str(path.resolve())
    if place in seen:
        raise ConfigError(f"{label}: `base:` leads back to itself ({' -> '.join((*seen, place))})")
    tree = _parse(text, label)
    base = tree.data.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base.data, str):
        raise ConfigError(f"{base.where}: `base:` must be a preset name or a path")
    target = folder / base.data if folder is not None and (folder / base.data).exists() else base.data
    return _merge(_read(target, (*seen, place)), tree)


def _parse(text: str, label: str) -> _Value:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{label} line {line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{label}: not valid YAML: {error}") from None
    if node is None:
        return _Value({}, label)
    constructor = yaml.SafeLoader("")

    def convert(node: yaml.Node) -> _Value:
        where = f"{label} line {node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            items: dict[str, _Value] = {}
            for key_node, value_node in node.value:
                key, value = str(key_node.value), convert(value_node)
                value.where = f"{label} line {key_node.start_mark.line + 1}"
                if key in items:
                    raise ConfigError(f"{value.where}: {key!r} is given twice")
                items[key] = value
            return _Value(items, where)
        if isinstance(node, yaml.SequenceNode):
            return _Value([convert(item) for item in node.value], where)
        try:
            return _Value(constructor.construct_object(node), where)
        except (yaml.YAMLError, ValueError) as error:
            what = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            raise ConfigError(f"{where}: not valid YAML: {what}") from None

    tree = convert(node)
    if not isinstance(tree.data, dict):
        raise ConfigError(f"{label}: expected keys and values, got a {type(tree.data).__name__}")
    return tree


def _merge(base: _Value, delta: _Value) -> _Value:
    if not (isinstance(base.data, dict) and isinstance(delta.data, dict)):
        return delta
    merged = dict(base.data)
    for key, value in delta.data.items():
        merged[key] = _merge(merged[key], value) if key in merged else value
    return _Value(merged, delta.where)


def _build(value: _Value, cls: type[T], path: str) -> T:
    if not isinstance(value.data, dict):
        raise ConfigError(f"{value.where}: {path or 'the file'} is a group of keys, got {_plain(value)!r}")
    hints = typing.get_type_hints(cls)
    fields = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, item in value.data.items():
        dotted = f"{path}.{key}" if path else key
        if key not in fields:
            raise ConfigError(f"{item.where}: unknown key {dotted!r}{_did_you_mean(key, fields)}")
        arguments[key] = _convert(item, hints[key], dotted)
    # A group whose defaults differ from its class's own (the optimizer of the language models) keeps them key by key.
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        if item.name in arguments and dataclasses.is_dataclass(hints[item.name]) and item.name in value.data:
            default = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
            if default is not None:
                arguments[item.name] = _overlay(default, value.data[item.name], arguments[item.name])
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{value.where.split(' line ')[0]}: {error.message}", error.hint) from None


def _overlay(default: Any, given: _Value, built: Any) -> Any:
    return dataclasses.replace(default, **{key: getattr(built, key) for key in given.data})


def _convert(value: _Value, kind: Any, path: str) -> Any:
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    data = value.data
    if dataclasses.is_dataclass(kind):
        return _build(value, kind, path)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in choices:
            return None
        *others, last = (choice for choice in choices if choice is not type(None))
        for choice in others:
            with contextlib.suppress(ConfigError):
                return _convert(value, choice, path)
        return _convert(value, last, path)
    if origin is typing.Literal:
        if data not in choices:
            hint = _did_you_mean(str(data), map(str, choices))
            raise ConfigError(
                f"{value.where}: {path} must be one of {', '.join(map(str, choices))}; got {_plain(value)!r}{hint}"
            )
        return data
    if origin is tuple:
        if not isinstance(data, list):
            raise ConfigError(f"{value.where}: {path} must be a list, got {_plain(value)!r}")
        if len(choices) == 2 and choices[1] is Ellipsis:
            return tuple(_convert(item, choices[0], f"{path}[{i}]") for i, item in enumerate(data))
        if len(data) != len(choices):
            raise ConfigError(f"{value.where}: {path} must have {len(choices)} entries, got {len(data)}")
        return tuple(
            _convert(item, choice, f"{path}[{i}]") for i, (item, choice) in enumerate(zip(data, choices, strict=True))
        )
    if kind is float and isinstance(data, (int, float, str)) and not isinstance(data, bool):
        try:
            return float(data)  # YAML 1.1 reads 2e-4 as text
        except (ValueError, OverflowError):
            pass
    elif kind is int and isinstance(data, (int, float, str)) and not isinstance(data, bool):
        try:
            number = float(data)
            if number == int(number):
                return int(data) if isinstance(data, int) else int(number)
        except (ValueError, OverflowError):
            pass
    elif (kind is bool and isinstance(data, bool)) or (kind is str and isinstance(data, str)):
        return data
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    raise ConfigError(f"{value.where}: {path} must be {names.get(kind, kind)}, got {_plain(value)!r}")
