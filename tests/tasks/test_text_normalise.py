"""Text as it is said: hand cases, properties over all of Unicode, cutting long texts."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.tts.normalise import normalise, tidy
from xcodec_lm.tasks.tts.numbers import ONES, cardinal, ordinal, year
from xcodec_lm.tasks.tts.sentences import split_sentences

MESSY = st.text(alphabet="0123456789 .,:-/$%'\"aApPmMsStTxX½²´¨€&Drn°C#()e!’—–_@+=\n", max_size=24)
TEXTS = st.one_of(MESSY, st.text(max_size=30))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("the 21st and 1,000th", "the twenty first and one thousandth"),
        ("3.14, 0.5 or .5", "three point one four, zero point five or point five"),
        ("1,984 books in 1984", "one thousand nine hundred eighty four books in nineteen eighty four"),
        (
            "1900 1905 2000 2005 2024",
            "nineteen hundred nineteen oh five two thousand two thousand five twenty twenty four",
        ),
        ("1914–1918, 10-20", "nineteen fourteen to nineteen eighteen, ten to twenty"),
        ("the '80s and 1990s", "the eighties and nineteen nineties"),
        (
            "$3.50 $1 £2.05 €1,000",
            "three dollars and fifty cents one dollar two pounds and five pence one thousand euros",
        ),
        ("$0.01 ¥500 5€ $3.5 million", "one cent five hundred yen five euros three point five million dollars"),
        ("50% of R&D", "fifty percent of R and D"),
        ("10:30, 10:00, 9:05 p.m. and 15:45", "ten thirty, ten o'clock, nine oh five P-M and fifteen forty five"),
        ("We met at 9 a.m. She left.", "We met at nine A-M. She left."),
        ("16:9 and 1/2, 3/4, 1½", "sixteen to nine and one half, three quarters, one and one half"),
        ("agent 007", "agent zero zero seven"),
        ("call 555-1234", "call five five five, one two three four"),
        ("(555) 867-5309", "five five five, eight six seven, five three zero nine"),
        ("12345678901", "one two three four five six seven eight nine zero one"),
        ("-5°C + 2 = x", "minus five degrees Celsius plus two equals x"),
        ("mp3 B2B 1.2.3", "mp three B two B one point two point three"),
        ("10² m³ H₂O", "ten squared m cubed H two O"),
        ("Mr. Hall and Dr. Who", "Mister Hall and Doctor Who"),
        ("St. Paul, Main St. is long", "Saint Paul, Main Street is long"),
        ("e.g. this, i.e. that, etc.", "for example this, that is that, et cetera."),
        ("No. 5 vs. #6; no. Yes", "number five versus number six; no. Yes"),
        ("the U.S. Army", "the U S Army"),
        ("me@example.com", "me at example dot com"),
        ("“Don’t” … she said—no", '"Don\'t"... she said - no'),
        ("well‑known snake_case", "well-known snake case"),
        ("ﬁne ｆｕｌｌ ① ٣", "fine full one three"),
    ],
)
def test_english_as_it_is_said(written, said):
    assert normalise(written).text == said


@pytest.mark.parametrize("language", ["de", "fr-fr", "cmn", "ar"])
def test_other_languages_keep_numbers_and_scripts(language):
    text = "21 Straße, 3,5 % Привет 你好。 हिन्दी مرحبا ½"
    assert normalise(text, language).text == "21 Straße, 3,5 % Привет 你好。 हिन्दी مرحبا 1⁄2"


def test_what_has_no_sound_is_removed_and_reported():
    found = normalise("hi 😀 there ❤️\x07 1️⃣ \ud800👍🏽")
    assert found.text == "hi there one"
    assert set("😀❤\x07\ud800👍🏽") <= set(found.dropped)
    assert normalise("plain words, said").dropped == ()


def test_joiners_stay_between_letters_only():
    assert normalise("می‌خواهم", "fa").text == "می‌خواهم"
    assert normalise("a \u200c b\u200d", "fa") == tidy("a \u200c b\u200d")
    assert normalise("a \u200c b\u200d", "fa").text == "a b"


@given(TEXTS, st.sampled_from(["en-us", "en-gb", "de", "ja"]))
@settings(max_examples=60)
def test_normalised_text_is_clean_and_stays_as_it_is(text, language):
    once = normalise(text, language)
    again = normalise(once.text, language)
    assert again.text == once.text and again.dropped == ()
    assert once.text == " ".join(once.text.split()) == unicodedata.normalize("NFKC", once.text)
    assert not {unicodedata.category(letter) for letter in once.text} & {"Cc", "Cs", "Co", "Cn"}
    assert set(once.dropped) & set(once.text) <= {"\u200c", "\u200d"} | {
        letter for letter in once.text if unicodedata.category(letter)[0] == "M"
    }
    if language.startswith("en"):
        assert not any(letter.isdecimal() for letter in once.text)


def value(words):
    """An amount in words as a number; written on its own, from the right to the left of the grammar."""
    units = {word: number for number, word in enumerate(ONES)}
    units |= {cardinal(tens): tens for tens in range(20, 100, 10)}
    total = group = 0
    for word in words.split():
        if word in units:
            group += units[word]
        elif word == "hundred":
            group *= 100
        else:
            total += group * 1000 ** (1 + ["thousand", "million", "billion", "trillion", "quadrillion"].index(word))
            group = 0
    return total + group


@given(st.integers(0, 10**18 - 1))
@settings(max_examples=40)
def test_amounts_say_their_value(number):
    assert value(cardinal(number)) == number
    assert value(normalise(f"{number:,} things").text.removesuffix(" things")) == number or number in range(1000)


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "first"), (3, "third"), (12, "twelfth"), (20, "twentieth"), (45, "forty fifth"), (100, "one hundredth")],
)
def test_ordinals(number, said):
    assert ordinal(number) == said


def test_years_and_endless_numbers():
    assert year(1066) == "ten sixty six" and year(1100) == "eleven hundred" and year(2010) == "twenty ten"
    assert normalise("9" * 5000).text == " ".join(["nine"] * 5000)
    assert normalise(",".join(["1", *["000"] * 2000])).text.startswith("one zero zero")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One two. Three four! Five?", ["One two.", "Three four!", "Five?"]),
        ("Mr. Hall met J. Smith. He left.", ["Mr. Hall met J. Smith.", "He left."]),
        ('"Stop!" he said. Then it was quiet.', ['"Stop!" he said.', "Then it was quiet."]),
        ("你好。世界很大！是吗？", ["你好。", "世界很大！", "是吗？"]),
        ("one two three four. five six seven.", ["one two three four.", "five six seven."]),
        ("क ख ग। घ ङ।", ["क ख ग।", "घ ङ।"]),
    ],
)
def test_cuts_at_ends_of_sentences(text, pieces):
    assert split_sentences(text, most=max(map(len, pieces))) == pieces


def test_packs_sentences_and_cuts_finer_where_it_must():
    assert split_sentences("A b. C d. E f.", most=9) == ["A b. C d.", "E f."]
    assert split_sentences("one two, three four, five", most=12) == ["one two,", "three four,", "five"]
    assert split_sentences("one two three", most=8) == ["one two", "three"]
    assert split_sentences("abcdefgh", most=3) == ["abc", "def", "gh"]
    assert split_sentences("  ", most=3) == []
    with pytest.raises(UsageError, match="impossible"):
        split_sentences("a", most=0)


@given(TEXTS | st.text(alphabet="ab .,。，\nA!\"'", max_size=200), st.integers(1, 40))
@settings(max_examples=60)
def test_splitting_loses_nothing(text, most):
    pieces = split_sentences(text, most)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= most and piece == piece.strip() for piece in pieces)


def test_five_thousand_characters():
    text = ("The quick brown fox, said Mr. Hall, jumps over it. " * 100)[:5000]
    pieces = split_sentences(text, 120)
    assert " ".join(pieces) == text.strip() and len(pieces) == 49
    assert all(piece.endswith(".") for piece in pieces[:-1])
