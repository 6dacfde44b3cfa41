"""Word and character error rates of transcripts, with intervals over speakers and alignments for reports.

A rate is the sum of edits over the sum of reference units of all pairs, as in the field, not the mean of the pairs'
rates. An empty hypothesis counts all its reference's words as deleted; nothing is left out.

Source: edits are counted by jiwer (https://github.com/jitsi/jiwer), extra `eval`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.intervals import Estimate, draw_weights, percentiles
from xcodec_lm.tasks.tts.numbers import spell_numbers

Kind = Literal["equal", "substitute", "delete", "insert"]
Mark = tuple[Kind, str, str]
"""What became of a word: kind, word of the reference ("" where inserted), word of the hypothesis ("" where deleted)."""
NORMALISATION = "NFKC, lower case, English numbers spelled, punctuation but apostrophes in words removed"
"""What `normalise` does, for a report."""


@dataclass(frozen=True)
class Pair:
    """A text and what was recognised.

    Attributes:
        id: of the recording.
        reference: what was to be said.
        hypothesis: what a recogniser heard; "" when nothing.
        unit: the speaker, over whom intervals are drawn; "" makes the pair a unit of its own.
    """

    id: str
    reference: str
    hypothesis: str
    unit: str = ""


@dataclass(frozen=True)
class Counts:
    """Edits of one pair, in words or in characters.

    Attributes:
        id: of the recording.
        hits: units that are right.
        substitutions: units in place of others.
        insertions: units too many.
        deletions: units missing.
        marks: the alignment, unit by unit, in order.
    """

    id: str
    hits: int
    substitutions: int
    insertions: int
    deletions: int
    marks: tuple[Mark, ...]

    @property
    def errors(self) -> int:
        """Edits in all."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def length(self) -> int:
        """Units of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Edits per unit of the reference."""
        return self.errors / self.length


def normalise(text: str, language: str = "en") -> str:
    """A text as it is compared: words in lower case with single spaces.

    Unicode NFKC, lower case; in English numbers become words as `tts.numbers` reads them; hyphens and all other
    punctuation become spaces, but an apostrophe within a word stays, in its plain form.

    Args:
        text: of a reference or a hypothesis.
        language: digits are spelled when it begins with `en`.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    if language.startswith("en") and re.search("[0-9]", text):
        text = spell_numbers(text).lower()
    text = re.sub(r"(?<!\w)'|'(?!\w)", " ", text)
    text = "".join(sign if sign == "'" or unicodedata.category(sign)[0] in "LMN" else " " for sign in text)
    return " ".join(text.split())


def word_counts(pairs: Sequence[Pair], language: str = "en") -> list[Counts]:
    """Edits of every pair in words, after `normalise` on both sides.

    Raises:
        XcodecLMError: a reference has no words, named by its id; or jiwer is not installed.
    """
    return _counts(pairs, language, "words")


def character_counts(pairs: Sequence[Pair], language: str = "en") -> list[Counts]:
    """The same in characters; the spaces between words count as characters.

    Raises:
        XcodecLMError: as `word_counts`.
    """
    return _counts(pairs, language, "characters")


def corpus_rate(counts: Sequence[Counts]) -> float:
    """Edits per reference unit over all pairs; NaN without pairs."""
    length = sum(item.length for item in counts)
    return sum(item.errors for item in counts) / length if length else math.nan


def rate_estimate(counts: Sequence[Counts], pairs: Sequence[Pair], seed: int = 0) -> Estimate:
    """The corpus rate with its interval over units.

    Args:
        counts: of `word_counts` or `character_counts`.
        pairs: that they are of, in the same order.
        seed: of the draws.
    """
    return ratio_estimate([item.errors for item in counts], [item.length for item in counts], _units(pairs), seed)


def difference_estimate(a: Sequence[Counts], b: Sequence[Counts], pairs: Sequence[Pair], seed: int = 0) -> Estimate:
    """The paired difference of two systems' corpus rates on the same references, a - b.

    Raises:
        ValueError: a pair's reference differs between the two.
    """
    if [(item.id, item.length) for item in a] != [(item.id, item.length) for item in b]:
        raise ValueError("the two systems were not given the same references")
    errors = [x.errors - y.errors for x, y in zip(a, b, strict=True)]
    return ratio_estimate(errors, [item.length for item in a], _units(pairs), seed)


def ratio_estimate(above: Sequence[float], below: Sequence[float], units: Sequence[str], seed: int = 0) -> Estimate:
    """A ratio of sums over clips with its percentile interval over units.

    Args:
        above: one a clip.
        below: one a clip, positive.
        units: of each clip.
        seed: of the draws.
    """
    if not len(above) == len(below) == len(units):
        raise ValueError(f"{len(above)} and {len(below)} values for {len(units)} units")
    if not len(units):
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    names, index = np.unique(np.asarray(units, dtype=str), return_inverse=True)
    tops = np.bincount(index, weights=np.asarray(above, dtype=np.float64), minlength=len(names))
    bottoms = np.bincount(index, weights=np.asarray(below, dtype=np.float64), minlength=len(names))
    weights = draw_weights(len(names), seed)
    low, high = percentiles((weights @ tops) / (weights @ bottoms)) if len(names) > 1 else (math.nan, math.nan)
    return Estimate(float(tops.sum() / bottoms.sum()), low, high, len(names), len(units))


def summary(pairs: Sequence[Pair], language: str = "en", seed: int = 0) -> dict[str, Any]:
    """Everything about a set of transcripts, as plain values.

    Returns:
        `wer` and `cer` (`Estimate.to_dict`), `mean_wer` over pairs, counts of words by kind, `empty` hypotheses, the
        normalisation, and `items`: id, reference, hypothesis (both normalised), wer and alignment of each pair.

    Raises:
        XcodecLMError: as `word_counts`.
    """
    words, characters = word_counts(pairs, language), character_counts(pairs, language)
    totals = {name: sum(getattr(item, name) for item in words) for name in
              ("hits", "substitutions", "insertions", "deletions")}  # fmt: skip
    items = [
        {
            "id": item.id,
            "reference": " ".join(mark[1] for mark in item.marks if mark[1]),
            "hypothesis": " ".join(mark[2] for mark in item.marks if mark[2]),
            "wer": item.rate,
            "marks": [list(mark) for mark in item.marks],
        }
        for item in words
    ]
    return {
        "wer": rate_estimate(words, pairs, seed).to_dict(),
        "cer": rate_estimate(characters, pairs, seed).to_dict(),
        "mean_wer": sum(item.rate for item in words) / len(words) if words else None,
        **totals,
        "empty": sum(not item["hypothesis"] for item in items),
        "normalisation": NORMALISATION,
        "items": items,
    }


def _counts(pairs: Sequence[Pair], language: str, units: Literal["words", "characters"]) -> list[Counts]:
    jiwer = _jiwer()
    references = [normalise(pair.reference, language) for pair in pairs]
    for pair, reference in zip(pairs, references, strict=True):
        if not reference:
            raise XcodecLMError(
                f"{pair.id}: the reference {pair.reference!r} has no words, so it has no error rate",
                "give this row its text, or leave it out",
            )
    if not pairs:
        return []
    hypotheses = [normalise(pair.hypothesis, language) for pair in pairs]
    process = jiwer.process_words if units == "words" else jiwer.process_characters
    output = process(references, hypotheses)
    found = zip(pairs, output.references, output.hypotheses, output.alignments, strict=True)
    return [_counts_of(pair.id, reference, hypothesis, chunks) for pair, reference, hypothesis, chunks in found]


def _counts_of(name: str, reference: Sequence[str], hypothesis: Sequence[str], chunks: Sequence[Any]) -> Counts:
    marks: list[Mark] = []
    for chunk in chunks:
        old = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        new = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for place in range(max(len(old), len(new))):
            marks.append((chunk.type, old[place] if old else "", new[place] if new else ""))
    kinds = [mark[0] for mark in marks]
    return Counts(
        name,
        kinds.count("equal"),
        kinds.count("substitute"),
        kinds.count("insert"),
        kinds.count("delete"),
        tuple(marks),
    )


def _units(pairs: Sequence[Pair]) -> list[str]:
    return [pair.unit or f"#{index}" for index, pair in enumerate(pairs)]


def _jiwer() -> ModuleType:
    try:
        import jiwer
    except ImportError:
        raise XcodecLMError(
            "jiwer, which counts word errors, is not installed", "pip install 'xcodec-lm[eval]'"
        ) from None
    return jiwer
