"""Text as it is written becomes text as it is said: one spelling of each mark, numbers and abbreviations in words.

Every language gets Unicode's compatibility form (NFKC), plain quotes, dashes and spaces, and loses what has no sound:
emoji, control characters, characters that no script uses. Other scripts are kept. English (languages that begin with
`en`) also gets its numbers, abbreviations and symbols spelled out. In other languages digits stay as they are:
espeak-ng says them by itself in every language that it knows, and the front end of characters keeps them.

Source: NFKC and the categories of characters, Unicode Standard Annex 15 and chapter 4.5, https://unicode.org/reports/tr15
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from re import Match

from xcodec_lm.tasks.tts.numbers import keeps_stop, spell_numbers

RULES = 1
"""Version of what this module and `numbers` do; it is part of a front end's version."""

TITLES = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "jr": "junior", "sr": "senior", "prof": "professor",
    "st": "saint", "vs": "versus", "etc": "et cetera", "approx": "approximately", "dept": "department",
}  # fmt: skip
"""Abbreviations whose full stop may follow them in any case; no other word is spelled like them."""
CAPITALS = {
    "Gen": "General", "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Rev": "Reverend",
    "Hon": "Honorable", "Sen": "Senator", "Gov": "Governor", "Mt": "Mount", "Ft": "Fort", "Jan": "January",
    "Feb": "February", "Aug": "August", "Sept": "September", "Oct": "October", "Nov": "November", "Dec": "December",
}  # fmt: skip
"""Abbreviations before names and numbers that are spelled like words or units unless a capital begins them."""
ENDINGS = {
    "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Inc": "Incorporated", "Corp": "Corporation",
    "Ltd": "Limited", "Co": "Company",
}  # fmt: skip
"""The same behind names: a capital after their full stop begins a sentence."""
STREETS = {"st": "Street", "dr": "Drive"}
"""What some abbreviations mean behind a name instead of before it."""
SYMBOLS = {
    "&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at ", "°C": " degrees Celsius ",
    "°F": " degrees Fahrenheit ", "°": " degrees ", "×": " times ", "÷": " divided by ", "±": " plus or minus ",
    "<": " less than ", ">": " greater than ", "$": " dollars ", "£": " pounds ", "€": " euros ", "¥": " yen ",
}  # fmt: skip
POWERS = {"²": " squared", "³": " cubed"}

_MARKS = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´ʹʼ＇", "'"),
        **dict.fromkeys("“”„‟″«»〝〞＂", '"'),
        **dict.fromkeys("‐‑⁃﹣－−", "-"),
        **dict.fromkeys("_|\\￨＿｜＼", " "),
    }
)
_DASH = re.compile(r"[‒–—―⸺⸻﹘︱]+|(?<!-)-{2,}(?!>)")
_RANGE = re.compile(r"(?<=[0-9])[‒–—](?=[0-9])")
_ELLIPSIS = re.compile(r"\.(?: ?\.){2,}")
_SPOKEN_SYMBOLS = "°"
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Normalised:
    """Text that can be said.

    Attributes:
        text: one line, words separated by single spaces.
        dropped: the different characters that were removed because they have no sound.
        left_out: words in scripts that a model does not speak, behind their script; `normalise` keeps all.
    """

    text: str
    dropped: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


def normalise(text: str, language: str = "en-us") -> Normalised:
    """Text as it is said; doing it twice changes nothing more.

    Args:
        text: any text.
        language: espeak-ng's name of the language.
    """
    english = is_english(language)
    text = "".join(_apart(letter, english) if unicodedata.category(letter) == "No" else letter for letter in text)
    text = _DASH.sub(" - ", _RANGE.sub("-", text.translate(_MARKS)))
    plain = tidy(text)
    text = _ELLIPSIS.sub("...", plain.text.translate(_MARKS))
    if english:
        text = _spell_english(text)
    # what was removed or spelled may have brought letters together that have one form when joined
    return Normalised(unicodedata.normalize("NFKC", " ".join(text.split())), plain.dropped)


def tidy(text: str) -> Normalised:
    """Text in Unicode's compatibility form, without the characters that no front end can use, spaces made single.

    Args:
        text: any text.
    """
    dropped: dict[str, None] = {}
    text = _remove(text, dropped, before=True)
    text = _remove(unicodedata.normalize("NFKC", text), dropped, before=False)
    return Normalised(" ".join(text.split()), tuple(dropped))


def is_english(language: str) -> bool:
    """Whether numbers and abbreviations are those of English."""
    return language.lower().split("-")[0] == "en"


def _apart(letter: str, english: bool) -> str:
    """A number that is one character, such as a half, a subscript or a power: kept from joining the digits beside."""
    return POWERS[letter] if english and letter in POWERS else f" {letter} "


def _remove(text: str, dropped: dict[str, None], before: bool) -> str:
    """The text without characters that have no sound; notes them in `dropped`.

    Args:
        text: any text.
        dropped: gets the characters as keys.
        before: whether the compatibility form is still to come, which turns some symbols into letters.
    """
    kept: list[str] = []
    for place, letter in enumerate(text):
        kind = unicodedata.category(letter)
        if letter.isspace() or kind[0] == "Z":
            kept.append(" ")
            continue
        if kind == "So":
            keep = before or letter in _SPOKEN_SYMBOLS
        elif kind == "Cf":
            after = text[place + 1 : place + 2]
            # between letters these two are spelling, in Persian and in the scripts of India
            keep = letter in _JOINERS and bool(kept) and _is_letter(kept[-1]) and _is_letter(after)
        elif kind in ("Mn", "Mc"):  # accents; a variation selector says how to draw, and one that stands alone nothing
            keep = bool(kept) and _is_letter(kept[-1]) and not unicodedata.name(letter, "").startswith("VARIATION")
        else:
            keep = kind not in ("Sk", "Cc", "Cs", "Co", "Cn", "Me")
        if keep:
            kept.append(letter)
        else:
            dropped.setdefault(letter)
    return "".join(kept)


def _is_letter(letter: str) -> bool:
    return bool(letter) and (unicodedata.category(letter)[0] in "LM" or letter in _JOINERS)


_TITLE = re.compile(rf"(?<![\w'.])({'|'.join(TITLES)})\.(?!\w)", re.IGNORECASE)
_BARE_TITLE = re.compile(r"(?<![\w'.])(Mr|Mrs|Ms|Dr)(?= [A-Z])")
_CAPITAL = re.compile(rf"(?<![\w'.])({'|'.join(CAPITALS)})\.(?!\w)")
_ENDING = re.compile(rf"(?<![\w'.])({'|'.join(ENDINGS)})\.(?!\w)")
_LATIN = re.compile(r"(?<![\w.])(?:(e)\. ?g\.|(i)\. ?e\.),?(?!\w)", re.IGNORECASE)
_NUMERO = re.compile(r"(?<![\w.])[Nn]os?\. ?(?=[0-9])|(?<!\w)# ?(?=[0-9])")
_INITIALS = re.compile(r"(?<![\w.])(?:[A-Z]\.){2,}")
_DOT = re.compile(r"(?<=[a-z0-9])\.(?=[a-z]{2})")
_SYMBOL = re.compile("|".join(map(re.escape, sorted(SYMBOLS, key=len, reverse=True))))
_UNSAID = re.compile(r"[*#~^/]+")
_LOOSE = re.compile(r" +(?=[,;!?)\]]|[.:]++(?!\w))")

_TIGHT = re.compile(r"(?<=[,;])(?=\w)")


def _spell_english(text: str) -> str:
    text = "".join(str(unicodedata.decimal(letter)) if letter.isdecimal() else letter for letter in text)
    text = _LATIN.sub(lambda match: "for example" if match[1] else "that is", text)
    text = _NUMERO.sub("number ", text)
    text = _BARE_TITLE.sub(r"\1.", text)
    text = _TITLE.sub(_title, text)
    text = _CAPITAL.sub(lambda match: CAPITALS[match[1]], text)
    text = _ENDING.sub(lambda match: ENDINGS[match[1]] + "." * keeps_stop(match), text)
    text = _INITIALS.sub(lambda match: match[0].replace(".", " ").strip() + "." * (match.end() == len(text)), text)
    text = spell_numbers(text)
    text = _DOT.sub(" dot ", text)
    text = _SYMBOL.sub(lambda match: SYMBOLS[match[0]], text)
    text = _UNSAID.sub(" ", text)
    return _TIGHT.sub(" ", _LOOSE.sub("", " ".join(text.split())))


def _title(match: Match[str]) -> str:
    """An abbreviation in words; `St.` and `Dr.` behind a name and not before one are places."""
    key = match[1].lower()
    words = TITLES[key]
    if key in STREETS:
        before = match.string[max(0, match.start() - 40) : match.start()].rstrip().rpartition(" ")[2]
        after = match.string[match.end() : match.end() + 8].lstrip()
        if before[:1].isupper() and (not after[:1].isupper() or before.endswith(("th", "nd", "rd", "st"))):
            return STREETS[key] + "." * keeps_stop(match)
    ends = keeps_stop(match) and key in ("etc", "jr", "sr")
    return (words.capitalize() if match[1][0].isupper() else words) + "." * ends
