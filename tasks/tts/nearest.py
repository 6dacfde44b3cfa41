"""What to say instead of a unit that a model has never read: the same sound without its details, or a sound beside it.

Source of the neighbours: rows and columns of the chart of the International Phonetic Association (2020),
https://www.internationalphoneticassociation.org/content/ipa-chart
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from xcodec_lm.tasks.tts.front_ends import BOUNDARY

PHONES = {
    "ɚ": "əɹ", "ɝ": "ɜɹ", "ɐ": "əʌa", "ᵻ": "ɪi", "ɨ": "ɪi", "ʉ": "uʊ", "y": "iu", "ʏ": "ɪʊ", "ø": "eɜə", "œ": "ɛɜə",
    "ɵ": "oə", "ɤ": "oʌ", "ɯ": "uʊ", "ɘ": "əɛ", "ɞ": "ɜə", "a": "æɑ", "ä": "aæɑ", "ɶ": "ɑa", "ɑ": "aɒ", "ɒ": "ɔɑ",
    "æ": "aɛ", "e": "ɛi", "o": "ɔʊu", "ɔ": "oɑ", "ʌ": "əa", "ɛ": "eæ", "ɪ": "i", "ʊ": "u", "i": "ɪ", "u": "ʊ",
    "ə": "ʌɐ", "ɜ": "əʌ", "ɾ": "tdɹ", "r": "ɹɾ", "ɹ": "rɾ", "ʁ": "ɹr", "ʀ": "ɹr", "ɻ": "ɹr", "ɽ": "ɾɹd", "ɫ": "l",
    "ʎ": "lj", "ɭ": "l", "ɬ": "lʃ", "ɲ": "n", "ɳ": "n", "ɱ": "m", "ŋ": "n", "ɴ": "ŋn", "ç": "ʃxh", "x": "kh",
    "χ": "xkh", "ɣ": "ɡ", "ħ": "h", "ʕ": "a", "ɦ": "h", "β": "vb", "ɸ": "f", "ʋ": "v", "ʂ": "ʃ", "ʐ": "ʒ", "ɕ": "ʃ",
    "ʑ": "ʒ", "ʈ": "t", "ɖ": "d", "c": "k", "ɟ": "ɡ", "q": "k", "ɢ": "ɡ", "g": "ɡ", "ɡ": "g", "θ": "ts", "ð": "dz",
    "ʔ": "", "w": "ʊu", "ɥ": "jw", "ɰ": "wɡ", "ʒ": "ʃ", "ʃ": "s", "z": "s", "v": "f", "j": "i",
}  # fmt: skip
"""Sounds beside a sound, the nearest first; each letter is one. An empty entry is a sound that may be left out."""
PAUSES = {**dict.fromkeys("!?…。！？؟।॥۔", "."), **dict.fromkeys(";:-、，；：،؛·", ",")}
"""Marks and the more usual ones that make the same pause."""
SILENT = frozenset("\"'()[]{}«»“”‘’‹›「」『』【】（）〈〉《》¡¿*")
"""Marks that are not heard, so they can be left out."""


_NAMED = re.compile(r"LATIN (?:SMALL|CAPITAL) LETTER ([A-Z]{1,2})(?: WITH .*)?")


def nearest(unit: str, known: Collection[str], phonemes: bool) -> tuple[str, ...] | None:
    """Known units that stand for an unknown one.

    Args:
        unit: a character or a phoneme that is not known.
        known: units that are.
        phonemes: whether units are phonemes; letters beside each other in the chart of sounds then stand for another.

    Returns:
        One unit or, for diphthongs and the like, its parts; () where it may be left out; None if there is nothing
        sensible.
    """
    if unit == BOUNDARY or unit.isspace() or (unit == "-" and not phonemes):
        return next(((space,) for space in (BOUNDARY, " ") if space in known), None)
    if unit in PAUSES:
        return next(((mark,) for mark in (PAUSES[unit], ".", ",") if mark in known), None)
    if unit in SILENT:
        return ()
    spellings = _simpler_phonemes(unit) if phonemes else _simpler_characters(unit)
    for neighbours in (False, True) if phonemes else (False,):
        for spelling in spellings:
            parts = _parts(spelling, known, neighbours)
            if parts is not None:
                return parts
    return None


def _simpler_characters(unit: str) -> list[str]:
    """Spellings of a character: in the other case, without accents, as the letters that its name tells."""
    bare = "".join(letter for letter in unicodedata.normalize("NFD", unit) if not unicodedata.combining(letter))
    named = _NAMED.fullmatch(unicodedata.name(unit, "") if len(unit) == 1 else "")
    options = [unit.lower(), unit.upper(), unit.casefold(), bare, bare.lower(), bare.upper()]
    options += [named[1].lower(), named[1]] if named else []
    return [unicodedata.normalize("NFC", option) for option in dict.fromkeys(options) if option]


def _simpler_phonemes(unit: str) -> list[str]:
    """Spellings of a phoneme with less and less detail: without length, tones, accents and modifiers."""
    short = "".join(letter for letter in unit if letter not in "ːˑ")
    toneless = "".join(letter for letter in short if not letter.isdigit() and letter not in ".˥˦˧˨˩")
    whole = "".join(letter for letter in toneless if unicodedata.category(letter) not in ("Mn", "Lm", "Sk"))
    letters = unicodedata.normalize("NFD", whole)  # now accents that are part of a letter, such as that of ç
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    options = [unit, short + "ː", short, toneless + "ː", toneless, whole + "ː", whole]
    options += [] if whole in PHONES else [bare + "ː", bare]
    return [option for option in dict.fromkeys(options) if option.strip("ː")]


def _parts(unit: str, known: Collection[str], neighbours: bool) -> tuple[str, ...] | None:
    """A unit as a row of known ones, the longest first, or sounds beside them; None where there is no such row."""
    parts: list[str] = []
    place = 0
    while place < len(unit):
        end = next((end for end in range(len(unit), place, -1) if unit[place:end] in known), place)
        found = (unit[place:end],) if end > place else _beside(unit[place], known) if neighbours else None
        if found is None:
            return None
        parts += found
        place = max(end, place + 1)
    return tuple(parts)


def _beside(letter: str, known: Collection[str]) -> tuple[str, ...] | None:
    """The nearest known sound to a letter of the chart; () for one that may be left out, None if there is none."""
    if letter not in PHONES:
        return None
    if not PHONES[letter]:
        return ()
    for near in PHONES[letter]:
        for option in (near, near + "ː"):
            if option in known:
                return (option,)
    return None
