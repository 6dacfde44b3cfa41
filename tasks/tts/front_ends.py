"""Front ends: what turns normalised text into units. One protocol, three of them; a fourth is in `pretrained_text`.

Characters need nothing. Phonemes come from espeak-ng (GPL-3, so in the extra `[tts]`) through phonemizer, the way
VALL-E's reproduction has them: punctuation kept, no stress, no ties; see
https://github.com/lifeiteng/vall-e/blob/main/valle/data/tokenizer.py. Sentencepiece reads a model of `data spm`.
"""

from __future__ import annotations

import difflib
import threading
import unicodedata
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.tasks.data.espeak import find_espeak
from xcodec_lm.tasks.tts.normalise import RULES

BOUNDARY = "_"
"""The unit between the words of phonemes."""
INSTALL = "pip install 'xcodec-lm[tts]'"
IN_NUMBERS = ".,:"
"""Marks that belong to a number between two digits."""
IN_WORDS = "'-·׳״"
"""Marks that belong to a word between two letters."""
SPOKEN = "%&@#*/\\"
"""Marks that espeak-ng says in words."""

_espeak_lock = threading.Lock()


class FrontEnd(Protocol):
    """What turns text into units.

    Attributes:
        name: as in `TextConfig.front_end`.
        language: espeak-ng's name of the language.
        version: of all that decides which units a text has.
        alphabet: units that are known before any text is read; empty where only texts tell.
    """

    name: str
    language: str

    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def alphabet(self) -> tuple[str, ...]: ...  # noqa: D102
    def units(self, text: str) -> list[str]: ...  # noqa: D102


def make_front_end(config: TextConfig) -> FrontEnd:
    """The front end that a configuration asks for. What it needs is looked for when it is first used."""
    if config.front_end == "phonemes":
        return Phonemes(config.language)
    if config.front_end == "sentencepiece":
        return Pieces(config.language, Path(config.model))
    if config.front_end == "transformers":
        from xcodec_lm.tasks.tts.pretrained_text import Tokens

        return Tokens(config.language, Path(config.model))
    return Characters(config.language)


class Characters:
    """Lower-case characters, spaces and punctuation among them."""

    name = "characters"
    alphabet: tuple[str, ...] = ()
    version = f"characters 1, text rules {RULES}"

    def __init__(self, language: str):
        self.language = language

    def units(self, text: str) -> list[str]:
        """The characters of a text; an accent that cannot be joined with its letter is one of its own."""
        return list(unicodedata.normalize("NFC", text.lower()))


class Pieces:
    """Pieces of a sentencepiece model."""

    name = "sentencepiece"

    def __init__(self, language: str, model: Path):
        self.language, self.model = language, model

    @cached_property
    def _processor(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        if not self.model.is_file():
            raise XcodecLMError(
                f"{self.model}: there is no such sentencepiece model",
                "train one: xcodec-lm data spm MANIFEST --out text.model",
            )
        try:
            return SentencePieceProcessor(model_file=str(self.model))
        except (RuntimeError, OSError):
            raise XcodecLMError(
                f"{self.model} is not a sentencepiece model", "train one: xcodec-lm data spm MANIFEST --out text.model"
            ) from None

    @property
    def version(self) -> str:
        """Of the library; the model itself is kept beside the symbols."""
        return f"sentencepiece {metadata.version('sentencepiece')}, text rules {RULES}"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """All pieces that stand for text."""
        model = self._processor
        return tuple(
            model.id_to_piece(index)
            for index in range(model.get_piece_size())
            if not (model.is_control(index) or model.is_unknown(index) or model.is_unused(index))
        )

    def units(self, text: str) -> list[str]:
        """The pieces of a text; without byte fallback, what the model lacks stands as it is."""
        return self._processor.encode(text, out_type=str)

    def __getstate__(self) -> dict[str, Any]:
        return {"language": self.language, "model": self.model}


class Phonemes:
    """Phonemes of espeak-ng in IPA, `_` between words, punctuation where it stands in the text."""

    name = "phonemes"
    alphabet: tuple[str, ...] = ()

    def __init__(self, language: str):
        self.language = language

    @property
    def version(self) -> str:
        """Of espeak-ng, whose phonemes change from version to version, and of phonemizer."""
        number = ".".join(map(str, _backend(self.language).version()))
        return f"espeak-ng {number}, phonemizer {metadata.version('phonemizer')}, text rules {RULES}"

    def units(self, text: str) -> list[str]:
        """The phonemes and marks of a text.

        phonemizer is given what stands between the marks, and the marks are put back here: its own restoring them
        loses their places where espeak-ng has nothing to say between two of them.

        Raises:
            XcodecLMError: phonemizer or espeak-ng is missing.
            ConfigError: espeak-ng does not know the language.
        """
        backend = _backend(self.language)
        text = text.replace(BOUNDARY, " ")
        marks = [place for place in range(len(text)) if _is_mark(text, place)]
        starts, ends = [0, *(place + 1 for place in marks)], [*marks, len(text)]
        between = [text[start:end] for start, end in zip(starts, ends, strict=True)]
        spoken = iter(_phonemize(backend, [part for part in between if part.strip()]))
        units: list[str] = []
        for index, part in enumerate(between):
            if part[:1].isspace():
                units.append(BOUNDARY)
            if part.strip():
                units += next(spoken)
                if part[-1:].isspace():
                    units.append(BOUNDARY)
            if index < len(marks):
                units.append(text[marks[index]])
        return _single_boundaries(units)


def _is_mark(text: str, place: int) -> bool:
    """Whether a character is punctuation that is a unit of its own."""
    letter = text[place]
    if unicodedata.category(letter)[0] != "P" or letter in SPOKEN:
        return False
    before, after = text[max(0, place - 1) : place], text[place + 1 : place + 2]
    if letter in IN_NUMBERS and before.isdigit() and after.isdigit():
        return False
    return not (letter in IN_WORDS and _in_word(before) and _in_word(after))


def _in_word(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter or " ")[0] == "M"


def _phonemize(backend: Any, parts: list[str]) -> list[list[str]]:
    """Phonemes of each part, with boundaries between its words."""
    from phonemizer.separator import Separator

    if not parts:
        return []
    separator = Separator(phone="|", word=BOUNDARY, syllable="")
    with _espeak_lock:  # the library keeps its place in global variables
        lines = backend.phonemize(parts, separator=separator, strip=True)
    words = ([word.split("|") for word in line.split(BOUNDARY)] for line in lines)
    return [[unit for word in line for unit in (*word, BOUNDARY) if unit][:-1] for line in words]


def _single_boundaries(units: list[str]) -> list[str]:
    """Units without boundaries at the ends and behind each other."""
    kept: list[str] = []
    for unit in units:
        if unit != BOUNDARY or (kept and kept[-1] != BOUNDARY):
            kept.append(unit)
    return kept[:-1] if kept and kept[-1] == BOUNDARY else kept


@cache
def _backend(language: str) -> Any:
    """phonemizer's espeak-ng, one for each language in this process; each has a copy of the library of its own.

    Raises:
        XcodecLMError: phonemizer or espeak-ng is missing.
        ConfigError: espeak-ng does not know the language.
    """
    try:
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError:
        raise XcodecLMError(
            "the front end of phonemes needs phonemizer, which is not installed",
            f"{INSTALL}, or take text.front_end: characters",
        ) from None
    library, data = find_espeak()
    EspeakWrapper.set_library(library)
    if data:
        EspeakWrapper.set_data_path(data)
    known = EspeakBackend.supported_languages()
    if language not in known:
        near = _near_languages(language, known)
        raise ConfigError(
            f"espeak-ng knows no language {language!r}",
            f"near it: {', '.join(near)}" if near else "such as en-us or de",
        )
    return EspeakBackend(language, with_stress=False, language_switch="remove-flags")


def _near_languages(wanted: str, known: dict[str, str]) -> list[str]:
    """Codes that begin like a wrong one, whose language's name begins like it, or that are spelled like it."""
    wanted = wanted.lower().replace("_", "-")
    first = wanted.split("-")[0]
    found = sorted((code for code in known if code.lower().split("-")[0] == first), key=len)
    found += [code for code, name in known.items() if len(wanted) > 2 and name.lower().startswith(wanted)]
    found += difflib.get_close_matches(wanted, known, n=5)
    return list(dict.fromkeys(found))[:6]
