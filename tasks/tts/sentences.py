"""Cutting long text where a speaker would pause: at ends of sentences, else at commas, else between words."""

from __future__ import annotations

import re
from collections.abc import Callable

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.tts.normalise import CAPITALS, TITLES

_CLOSERS = r"[\"'”’»)\]}」』）】]*"
_END = re.compile(rf"(?:(?<![.!?؟।॥۔])[.!?؟।॥۔]++{_CLOSERS}(?=\s)|[。！？｡]+{_CLOSERS}|\n\s*\n)")
_CLAUSE = re.compile(rf"(?:[,;:،؛]{_CLOSERS}(?=\s)|[、，；：]{_CLOSERS}|\s-(?=\s))")
_SPACE = re.compile(r"\s+")
_NOT_ENDS = {*TITLES, *map(str.lower, CAPITALS), "e.g", "i.e", "a.m", "p.m", "no", "z.b", "bzw", "usw", "ca", "nr"} - {
    "etc", "jr", "sr"
}  # fmt: skip
"""Words whose full stop ends no sentence, in lower case; those of other languages are the most usual ones."""


def split_sentences(text: str, most: int = 200, measure: Callable[[str], int] = len) -> list[str]:
    """Pieces of a text, each as many whole sentences as fit.

    Nothing is lost: the pieces, one after the other, are the text up to spaces. A sentence that does not fit is cut
    at commas, a clause that does not fit between words, and a word that does not fit anywhere.

    Args:
        text: any text, of any length and script.
        most: how long a piece may be, in what `measure` counts. Pieces keep to it exactly where the measure of joined
            parts is the sum of theirs and one for the space between, as with characters.
        measure: length of a piece; by default its characters.

    Raises:
        UsageError: `most` is less than 1.
    """
    if most < 1:
        raise UsageError(f"pieces of at most {most} are impossible", "give at least 1; some 200 characters are usual")
    parts = [(sentence, measure(sentence)) for sentence in _sentences(text)]
    for cut in (_clauses, _words):
        parts = _pack(parts, most)
        parts = [
            fine
            for part, size in parts
            for fine in ([(part, size)] if size <= most else _pack([(one, measure(one)) for one in cut(part)], most))
        ]
    pieces = []
    for part, size in parts:
        if size <= most:
            pieces.append(part)
        else:
            pieces += _chop(part, most, measure)
    return pieces


def _sentences(text: str) -> list[str]:
    capitals = any(letter.isupper() for letter in text)
    cuts = [match.end() for match in _END.finditer(text) if _is_end(text, match, capitals)]
    return _at(text, cuts)


def _is_end(text: str, match: re.Match[str], capitals: bool) -> bool:
    """Whether a sentence ends here; a text without any capital has its sentences end at every full stop."""
    if match[0][0] not in ".!?":
        return True
    following = text[match.end() : match.end() + 8].lstrip(" \n\t\"'“‘(«[")[:1]
    if capitals and following.islower():
        return False
    if match[0] != ".":
        return True
    word = text[max(0, match.start() - 24) : match.start()].rpartition(" ")[2].lstrip("\"'“‘(«[")
    initial = len(word) == 1 and word.isalpha() and word.isupper() and word != "I"
    return not initial and word.lower() not in _NOT_ENDS


def _clauses(text: str) -> list[str]:
    return _at(text, [match.end() for match in _CLAUSE.finditer(text)])


def _words(text: str) -> list[str]:
    return _at(text, [match.end() for match in _SPACE.finditer(text)])


def _at(text: str, cuts: list[int]) -> list[str]:
    parts = (text[start:end].strip() for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
    return [part for part in parts if part]


def _pack(parts: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """Neighbours joined as long as they fit."""
    packed: list[tuple[str, int]] = []
    for part, size in parts:
        if packed and packed[-1][1] + 1 + size <= most:
            before, length = packed[-1]
            packed[-1] = (f"{before} {part}", length + 1 + size)
        else:
            packed.append((part, size))
    return packed


def _chop(word: str, most: int, measure: Callable[[str], int]) -> list[str]:
    """A word, or a sentence of a script without spaces, cut where it has to be."""
    pieces = []
    while word:
        low, high = 1, min(len(word), max(most, 1))
        while low < high:  # the longest beginning that fits, at least one character
            middle = (low + high + 1) // 2
            low, high = (middle, high) if measure(word[:middle]) <= most else (low, middle - 1)
        pieces.append(word[:low])
        word = word[low:]
    return [piece for piece in pieces if piece.strip()]
