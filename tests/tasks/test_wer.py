"""Word and character error rates: hand cases, agreement with an alignment of our own, intervals, alignments, speed."""

import math
import random
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.wer import (
    Pair,
    character_counts,
    corpus_rate,
    difference_estimate,
    normalise,
    rate_estimate,
    ratio_estimate,
    summary,
    word_counts,
)

HAND = [Pair("a", "the cat sat", "the dog sat on", "x"), Pair("b", "hello world", "hello", "y")]


def edit_distance(a, b):
    """Levenshtein's, by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_hand_cases():
    counts = word_counts(HAND)
    total = [sum(getattr(item, name) for item in counts)
             for name in ("hits", "substitutions", "deletions", "insertions")]  # fmt: skip
    assert total == [3, 1, 1, 1]
    assert corpus_rate(counts) == pytest.approx(0.6)
    uneven = word_counts([Pair("a", "one two three four", "one two three four"), Pair("b", "five", "six")])
    assert corpus_rate(uneven) == pytest.approx(0.2)
    assert sum(item.rate for item in uneven) / 2 == pytest.approx(0.5)
    assert word_counts([Pair("a", "one two", "")])[0].rate == 1
    assert word_counts([Pair("a", "one two", "One, TWO!")])[0].errors == 0


def test_marks_say_what_became_of_every_word():
    first, second = word_counts(HAND)
    assert first.marks == (
        ("equal", "the", "the"), ("substitute", "cat", "dog"), ("equal", "sat", "sat"), ("insert", "", "on"),
    )  # fmt: skip
    assert second.marks == (("equal", "hello", "hello"), ("delete", "world", ""))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_edits_are_levenshteins_and_marks_rebuild_both_sides(reference, hypothesis):
    counts = word_counts([Pair("x", " ".join(reference), " ".join(hypothesis))])[0]
    assert counts.errors == edit_distance(reference, hypothesis)
    assert counts.length == len(reference)
    assert [mark[1] for mark in counts.marks if mark[1]] == reference
    assert [mark[2] for mark in counts.marks if mark[2]] == hypothesis


def test_characters_count_spaces():
    counts = character_counts([Pair("x", "ab cd", "abcd")])[0]
    assert (counts.deletions, counts.length) == (1, 5)


@pytest.mark.parametrize("text, expected", [
    ("Hello,  World!", "hello world"),
    ("It's 'quoted' — the dogs’ bone", "it's quoted the dogs bone"),
    ("Take 21 of 1,234,567 at 3.5", "take twenty one of one million two hundred thirty four thousand five hundred sixty seven at three point five"),  # noqa: E501
    ("In 1984, $3.50", "in nineteen eighty four three dollars and fifty cents"),
    ("007 and 0 and 100", "zero zero seven and zero and one hundred"),
    ("ﬁve-six", "five six"),
    ("ΑΒΓ 你好", "αβγ 你好"),
    ("...", ""),
])  # fmt: skip
def test_normalisation(text, expected):
    assert normalise(text) == expected


def test_other_languages_keep_their_digits():
    assert normalise("Nummer 21", "de") == "nummer 21"


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def test_a_reference_without_words_is_refused_by_its_id():
    with pytest.raises(XcodecLMError, match=r"clip-7.*no words"):
        word_counts([Pair("ok", "one", "one"), Pair("clip-7", " ?! ", "one")])


def test_without_jiwer_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(XcodecLMError, match=r"pip install 'xcodec-lm\[eval\]'"):
        word_counts(HAND)


def test_the_interval_is_over_speakers():
    pairs = [Pair(f"{speaker}{index}", "one two", "one two" if speaker % 2 else "one", f"s{speaker}")
             for speaker in range(12) for index in range(5)]  # fmt: skip
    counts = word_counts(pairs)
    estimate = rate_estimate(counts, pairs)
    assert estimate.value == corpus_rate(counts) == pytest.approx(0.25)
    assert estimate.units == 12 and estimate.scored == 60
    assert 0.05 < estimate.low < 0.2 < 0.3 < estimate.high < 0.45
    alone = rate_estimate(counts, [Pair(pair.id, pair.reference, pair.hypothesis) for pair in pairs])
    assert alone.units == 60 and alone.high - alone.low < estimate.high - estimate.low
    one = rate_estimate(counts[:5], pairs[:5])
    assert math.isnan(one.low) and one.units == 1


def test_paired_difference():
    pairs = [Pair(str(index), "one two three four", "", str(index)) for index in range(12)]
    good = word_counts([Pair(pair.id, pair.reference, "one two three") for pair in pairs])
    bad = word_counts([Pair(pair.id, pair.reference, "one") for pair in pairs])
    estimate = difference_estimate(good, bad, pairs)
    assert estimate.value == pytest.approx(-0.5)
    assert estimate.verdict(lower_is_better=True) == "better"
    with pytest.raises(ValueError, match="same references"):
        difference_estimate(good, bad[::-1], pairs)


def test_nothing_has_no_rate():
    assert word_counts([]) == [] and math.isnan(corpus_rate([])) and math.isnan(ratio_estimate([], [], []).value)


def test_summary_lists_items_and_empty_hypotheses():
    data = summary([*HAND, Pair("c", "five", "", "x")])
    assert data["empty"] == 1 and data["deletions"] == 2
    assert data["items"][0]["hypothesis"] == "the dog sat on"
    assert data["items"][2] == {"id": "c", "reference": "five", "hypothesis": "", "wer": 1.0,
                                "marks": [["delete", "five", ""]]}  # fmt: skip
    assert data["wer"]["value"] == pytest.approx(4 / 6)


def test_ten_thousand_pairs_are_quick():
    rng = random.Random(0)
    words = [first + second for first in "bdfgk" for second in "aeiou"]
    texts = [rng.choices(words, k=20) for _ in range(10_000)]
    pairs = [Pair(str(index), " ".join(text), " ".join(text[1:]), str(index % 40)) for index, text in enumerate(texts)]
    start = time.process_time()
    estimate = rate_estimate(word_counts(pairs), pairs)
    assert time.process_time() - start < 5
    assert estimate.value == pytest.approx(0.05) and estimate.units == 40
