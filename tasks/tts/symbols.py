"""The symbol table of a speech model: text to ids, with all that a run has to remember to do it again.

What a table does not know is said by the nearest symbol that it does know, or becomes the unknown id; either way it is
reported and never an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.runtime.progress import say, track
from xcodec_lm.configs import from_dict, to_dict
from xcodec_lm.configs.errors import ConfigError, UsageError, XcodecLMError
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.tasks.tts.front_ends import FrontEnd, make_front_end
from xcodec_lm.tasks.tts.nearest import nearest
from xcodec_lm.tasks.tts.normalise import Normalised, normalise, tidy
from xcodec_lm.tasks.tts.scripts import describe, readable, scripts_of, scripts_of_voice
from xcodec_lm.tasks.tts.sentences import split_sentences

PAD, BOS, EOS, UNKNOWN = range(4)
"""Ids before those of the symbols, the same in every table."""
FIRST = 4
FILE, MODEL = "text.json", "text.model"
VERSION = 1
"""Version of the file."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Pieces of sentencepiece that stand for a byte of a character that it does not know."""


@dataclass(frozen=True)
class Encoded:
    """A text as a model reads it, and what was lost on the way.

    Attributes:
        ids: with BOS and EOS.
        units: what stands between these two, after replacement; an unknown unit stands as it was written.
        unknown: units that became the unknown id, each once.
        replaced: units that the table does not know, each once, and the known ones that stand for them, joined.
        dropped: characters that were removed because they have no sound.
        left_out: words in scripts that this model does not speak, behind their script.
    """

    ids: list[int]
    units: list[str]
    unknown: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def losses(self) -> str:
        """A line for the user about everything that is not said as written; empty when all is."""
        swaps = ", ".join(f"'{_show(old)}' as '{_show(new)}'" for old, new in self.replaced)
        parts = [
            f"removed: {' '.join(map(_show, self.dropped))}" if self.dropped else "",
            f"said {swaps}" if swaps else "",
            f"unknown to this model: {' '.join(map(_show, self.unknown))}" if self.unknown else "",
            f"left out, in a script that this model does not speak: {describe(self.left_out)}" if self.left_out else "",
        ]
        return "; ".join(part for part in parts if part)


class TextEncoder:
    """Text to ids. Make one with `build` or `load`.

    Args:
        config: front end, language, normalisation.
        symbols: all units that the model has read, in the order of their ids.
    """

    def __init__(self, config: TextConfig, symbols: Iterable[str]):
        self.config = config
        self.symbols = tuple(symbols)
        self._ids = {symbol: FIRST + index for index, symbol in enumerate(self.symbols)}
        self._front_end: FrontEnd = make_front_end(config)

    @classmethod
    def build(cls, config: TextConfig, texts: Iterable[str], language: str | None = None) -> TextEncoder:
        """A table of the units that occur in texts, and of those that the front end has anyway.

        Args:
            config: front end, language, normalisation.
            texts: as they stand in manifests; those without anything to say add nothing.
            language: instead of the configuration's.

        Raises:
            UsageError: there is nothing to say in any of the texts.
            ConfigError: a language that espeak-ng does not know.
            XcodecLMError: the front end is not installed, or its model is missing.
        """
        config = config if language is None else replace(config, language=language)
        if config.front_end == "transformers":
            return _pretrained()(config)
        empty = cls(config, ())
        texts = list(texts)
        found: set[str] = set()
        for text in track(texts, "symbols of the texts", len(texts)):
            written = empty.normalise(text).text
            units = empty._front_end.units(written)
            if empty._can_be_said(written, units):
                found.update(units)
        if not found:
            raise UsageError(
                f"{len(texts)} texts have nothing that can be said", "training needs rows with a `text` in the manifest"
            )
        return cls(config, sorted(found | set(empty._front_end.alphabet)))

    @property
    def size(self) -> int:
        """Ids in all."""
        return FIRST + len(self.symbols)

    @property
    def version(self) -> str:
        """Of the front end that is installed here."""
        return self._front_end.version

    @property
    def facts(self) -> dict[str, Any]:
        """What a run tells about its text: front end, version, language, symbols."""
        return {
            "front_end": self.config.front_end,
            "front_end_version": self.version,
            "language": self.config.language,
            "normalise": self.config.normalise,
            "symbols": len(self.symbols),
        }

    @cached_property
    def scripts(self) -> frozenset[str] | None:
        """Scripts that the model speaks: what espeak-ng's voice reads, else those of the symbols; None for all."""
        if self.config.front_end == "phonemes":
            return scripts_of_voice(self.config.language)
        return scripts_of(symbol for symbol in self.symbols if not _BYTE.fullmatch(symbol)) or None

    def normalise(self, text: str) -> Normalised:
        """The text as the front end gets it, and what was removed."""
        clean = normalise(text, self.config.language) if self.config.normalise else tidy(text)
        kept = readable(clean.text, self.scripts)
        return replace(clean, text=kept.text, left_out=kept.left_out)

    def encode(self, text: str) -> Encoded:
        """Ids of a text.

        Args:
            text: any text; normalised here, which changes nothing where it is already.

        Raises:
            UsageError: it has nothing that can be said.
            XcodecLMError: the front end is not installed, or its model is missing.
        """
        clean = self.normalise(text)
        written = self._front_end.units(clean.text)
        if not self._can_be_said(clean.text, written):
            if clean.left_out:
                raise UsageError(
                    f"the text is in a script that this model does not speak: {describe(clean.left_out)}",
                    "spell it in the model's own script, or take a model that was trained on that language",
                )
            shown = text if len(text) <= 40 else text[:40] + "..."
            raise UsageError(
                f"the text {shown!r} has nothing that can be said" if text.strip() else "the text is empty",
                "give it words: letters or digits",
            )
        stand_ins: dict[str, tuple[str, ...] | None] = {}
        units: list[str] = []
        for unit in written:
            if unit in self._ids:
                units.append(unit)
                continue
            if unit not in stand_ins:
                stand_ins[unit] = nearest(unit, self._ids, self.config.front_end == "phonemes")
            stand_in = stand_ins[unit]
            units += (unit,) if stand_in is None else stand_in
        return Encoded(
            ids=[BOS, *(self._ids.get(unit, UNKNOWN) for unit in units), EOS],
            units=units,
            unknown=tuple(unit for unit, stand_in in stand_ins.items() if stand_in is None),
            replaced=tuple((unit, "".join(new)) for unit, new in stand_ins.items() if new is not None),
            dropped=clean.dropped,
            left_out=clean.left_out,
        )

    def _can_be_said(self, text: str, units: list[str]) -> bool:
        """Whether there is more than punctuation and spaces; espeak-ng says some marks and is silent about others."""
        letters = "".join(units) if self.config.front_end == "phonemes" else text
        return any(letter.isalnum() for letter in letters)

    def split(self, text: str, most_units: int = 200) -> list[str]:
        """Normalised pieces of a long text of about `most_units` units at most; see `split_sentences`.

        Args:
            text: any text.
            most_units: units in a piece, BOS and EOS not counted.
        """
        text = self.normalise(text).text
        if self.config.front_end == "characters":
            return split_sentences(text, most_units)
        return split_sentences(text, most_units, lambda piece: len(self._front_end.units(piece)))

    def compare_version(self, trained: str) -> None:
        """Says so where the front end is another one than the run was trained with."""
        if self.version != trained:
            say(f"note: this model learned its text from {trained}, here is {self.version}; some units may differ")

    def save(self, folder: str | Path) -> None:
        """Writes `text.json` and, beside it, the sentencepiece model if there is one.

        Raises:
            XcodecLMError: the folder cannot be written.
        """
        folder = Path(folder)
        config = to_dict(self.config)
        writers: dict[str, Any] = {}
        if self.config.model:
            config["model"] = MODEL
            if Path(self.config.model).resolve() != (folder / MODEL).resolve():
                writers[MODEL] = lambda path: shutil.copyfile(self.config.model, path)
        stored = {
            "version": VERSION,
            "text": config,
            "front_end_version": self.version,
            "language": self.config.language,
            "symbols": list(self.symbols),
        }
        if self.config.model:
            stored["model_sha256"] = _sha256(Path(self.config.model))
        content = json.dumps(stored, ensure_ascii=False, indent=1) + "\n"
        writers[FILE] = lambda path: path.write_text(content, encoding="utf-8")
        write_files(folder, writers)

    @classmethod
    def load(cls, folder: str | Path) -> TextEncoder:
        """The table that `save` wrote. Says so where another version of the front end is installed now.

        Raises:
            XcodecLMError: the file is missing, broken or of a later version; the front end is not installed, or the
                sentencepiece model is missing or another one.
        """
        path = Path(folder) / FILE
        stored = _read(path)
        config = from_dict(stored["text"], TextConfig, str(path))
        if config.model:
            config = replace(config, model=str(path.parent / config.model))
        if config.front_end == "transformers":
            return _pretrained().restored(config, stored)
        encoder = cls(config, stored["symbols"])
        encoder.compare_version(stored["front_end_version"])
        if config.model and encoder._front_end.alphabet and _sha256(Path(config.model)) != stored.get("model_sha256"):
            raise XcodecLMError(
                f"{config.model} is not the sentencepiece model that this run was trained with",
                f"put the model back that {path} was written beside",
            )
        return encoder


def _pretrained() -> Any:
    from xcodec_lm.tasks.tts.pretrained_text import PretrainedEncoder

    return PretrainedEncoder


def _read(path: Path) -> dict[str, Any]:
    hint = "give a run of `tts train`, or train it again"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise XcodecLMError(f"{path}: file not found, so it is not known how text becomes ids", hint) from None
    except (OSError, ValueError) as error:
        raise XcodecLMError(f"cannot read {path}: {error}", hint) from None
    version = stored.get("version") if isinstance(stored, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise XcodecLMError(f"{path} is of version {version}, this program knows {VERSION}", "update xcodec-lm")
    symbols = stored.get("symbols") if isinstance(stored, dict) else None
    if (
        version != VERSION
        or not isinstance(stored.get("text"), dict)
        or not isinstance(stored.get("front_end_version"), str)
        or not isinstance(symbols, list)
        or not all(isinstance(symbol, str) for symbol in symbols)
        or len(set(symbols)) != len(symbols)
    ):
        raise ConfigError(f"{path} is not a table of symbols", hint)
    return stored


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise XcodecLMError(f"cannot read {path}: {error.strerror}", "put the sentencepiece model back") from None


def _show(text: str) -> str:
    """A unit for a message: itself if it can be seen, else its code points."""
    if text.isprintable() and not text.isspace():
        return text
    return " ".join(f"U+{ord(letter):04X}" for letter in text)
