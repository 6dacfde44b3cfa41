"""Which scripts a text is written in, and the part of it in scripts that somebody can say.

A script is told by the first word of a letter's Unicode name: LATIN SMALL LETTER A, CYRILLIC SMALL LETTER A.
Source of the names: Unicode Standard, chapter 4.8, https://www.unicode.org/versions/latest/
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_VOICES = {
    "CYRILLIC": "ba be bg bs cv kaa kk ky mk nog ru sr tk tt uk uz",
    "ARABIC": "ar fa ku sd ug ur",
    "HEBREW": "he",
    "ETHIOPIC": "am ti",
    "ORIYA": "or",
    "TELUGU": "te",
    "THAI": "th",
    "MYANMAR": "my shn",
    "CHEROKEE": "chr",
    "SHAVIAN": "en-shaw",
    "CJK": "cmn hak ja yue",
    "BOPOMOFO": "cmn",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
}
"""Script -> the languages of espeak-ng (1.52) whose voices read it. The others spell it letter by letter, or say no
more than that there is a letter: `Chinese letter Chinese letter`."""
_EVERYWHERE = frozenset(
    {"LATIN", "GREEK", "HANGUL", "ARMENIAN", "GEORGIAN", "DEVANAGARI", "BENGALI", "GUJARATI", "GURMUKHI", "KANNADA",
     "MALAYALAM", "SINHALA", "TAMIL"}
)  # fmt: skip
"""Scripts that every voice of espeak-ng reads, as another language's words or, in English, by the names of Greek
letters, as formulas need it."""
_OWN_LETTERS = frozenset({"piqd"})
"""Languages of espeak-ng with letters that Unicode does not name."""
_SAME = {"MODIFIER": "", "IDEOGRAPHIC": "CJK"}
SHOWN = {"CJK": "Han"}
"""Names of scripts that differ from the letters'."""
_MARKS = ".,;:!?…。，、；：！？؟،؛।"
_GAP = "\0"  # no text has it after normalisation
_BETWEEN = re.compile(rf"{_GAP}(?:[\s{_MARKS}'\"()\[\]-]*{_GAP})+")
_BRACKETS = re.compile(rf"[(\[{{\"«“]\s*{_GAP}\s*[)\]}}\"»”]")
_AT_START = re.compile(rf"(^|[{_MARKS}])\s*{_GAP}[{_MARKS}]*")
_BEFORE_MARK = re.compile(rf"\s*{_GAP}(?=[{_MARKS}])")


@dataclass(frozen=True)
class Readable:
    """A text without what is not read.

    Attributes:
        text: what is left, without the marks and spaces that belonged to what is not.
        left_out: script and words, in the order of the text, neighbours of a script together.
    """

    text: str
    left_out: tuple[tuple[str, str], ...] = ()


def script_of(letter: str) -> str:
    """The script of a letter in capitals, such as LATIN or CJK; empty for marks, digits and letters of no script."""
    if unicodedata.category(letter) not in ("Lu", "Ll", "Lt", "Lo", "Lm"):
        return ""
    script = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return _SAME.get(script, script)


def scripts_of(texts: Iterable[str]) -> frozenset[str]:
    """All scripts of some texts."""
    return frozenset(script for text in texts for script in map(script_of, text) if script)


def scripts_of_voice(language: str) -> frozenset[str] | None:
    """The scripts that espeak-ng reads as a language; None where that is not known."""
    if language in _OWN_LETTERS:
        return None
    names = {language, language.split("-")[0]}
    return _EVERYWHERE | {script for script, spoken in _VOICES.items() if names & set(spoken.split())}


def readable(text: str, scripts: Collection[str] | None) -> Readable:
    """The part of a text that is written in some scripts, and what is not.

    Args:
        text: normalised.
        scripts: those that are read; None for all.
    """
    if scripts is None:
        return Readable(text)
    kept: list[str] = []
    words: list[list[str]] = []  # script, words
    between = ""  # what stands behind the last letter that is left out
    for letter in text:
        script = script_of(letter)
        follows = bool(kept) and kept[-1] == _GAP and unicodedata.category(letter) in ("Mn", "Mc", "Cf")
        if follows or (script and script not in scripts):
            if follows or (words and words[-1][0] == script and not between.strip()):
                words[-1][1] += between + letter
            else:
                words.append([script, letter])
            between = ""
            if not kept or kept[-1] != _GAP:
                kept.append(_GAP)
            continue
        kept.append(letter)
        between += letter
    if not words:
        return Readable(text)
    left = _BRACKETS.sub(_GAP, _BETWEEN.sub(_GAP, "".join(kept)))
    left = _BEFORE_MARK.sub("", _AT_START.sub(r"\1", left)).replace(_GAP, " ")
    return Readable(" ".join(left.split()), tuple((script, said) for script, said in words))


def describe(left_out: Iterable[tuple[str, str]], longest: int = 40) -> str:
    """What was left out, for the user: scripts and the beginnings of their words; empty where nothing was."""
    by_script: dict[str, str] = {}
    for script, said in left_out:
        by_script[script] = f"{by_script[script]} {said}" if script in by_script else said
    parts = [
        f"{SHOWN.get(script, script.capitalize())} ({said if len(said) <= longest else said[:longest] + '...'})"
        for script, said in by_script.items()
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
