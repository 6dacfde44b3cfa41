"""Scripts of a text: told apart, and left out where nobody speaks them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xcodec_lm.tasks.tts.normalise import normalise
from xcodec_lm.tasks.tts.scripts import describe, readable, script_of, scripts_of, scripts_of_voice


@pytest.mark.parametrize(
    ("text", "left", "out"),
    [
        ("naïve café", "naïve café", ()),
        ("Hello, Привет, you", "Hello, you", (("CYRILLIC", "Привет"),)),
        ("Привет мир! Hello", "Hello", (("CYRILLIC", "Привет мир"),)),
        ("Hello. Привет! You", "Hello. You", (("CYRILLIC", "Привет"),)),
        ("Hello Привет.", "Hello.", (("CYRILLIC", "Привет"),)),
        ("Moscow (Москва) is big", "Moscow is big", (("CYRILLIC", "Москва"),)),
        ("one Привет, мир two", "one two", (("CYRILLIC", "Привет"), ("CYRILLIC", "мир"))),
        ("say 你好 and हिन्दी now", "say and now", (("CJK", "你好"), ("DEVANAGARI", "हिन्दी"))),
        ("你好，世界", "", (("CJK", "你好"), ("CJK", "世界"))),
    ],
)
def test_what_is_not_latin_is_left_out_with_its_marks(text, left, out):
    found = readable(text, {"LATIN"})
    assert (found.text, found.left_out) == (left, out)


@given(st.text(max_size=40), st.sets(st.sampled_from(["LATIN", "CYRILLIC", "CJK", "ARABIC", "GREEK"])))
def test_letters_of_spoken_scripts_stay_and_no_others(text, scripts):
    text = normalise(text).text
    found = readable(text, scripts)
    assert scripts_of([found.text]) <= scripts
    kept = [letter for letter in text if script_of(letter) in scripts]
    assert [letter for letter in found.text if script_of(letter)] == kept
    assert readable(found.text, scripts) == type(found)(found.text)
    assert bool(found.left_out) == bool(scripts_of([text]) - scripts)
    assert readable(text, None).text == text


def test_scripts_of_voices():
    assert {"LATIN", "GREEK"} <= scripts_of_voice("en-us") == scripts_of_voice("de")
    assert "CYRILLIC" in scripts_of_voice("ru-lv") and "CYRILLIC" not in scripts_of_voice("pl")
    assert {"CJK", "HIRAGANA", "KATAKANA"} <= scripts_of_voice("ja")
    assert scripts_of_voice("piqd") is None


def test_a_voice_reads_its_own_alphabet_and_spells_what_it_lacks():
    """By espeak-ng itself: a word that is spelled letter by letter has as many parts as letters."""
    pytest.importorskip("espeakng_loader")
    from xcodec_lm.configs.text import TextConfig
    from xcodec_lm.tasks.tts.front_ends import BOUNDARY, make_front_end

    words = {
        "Привет": ("ru", "bg", "sr"), "مرحبا": ("ar", "fa"), "ひらがな": ("ja",), "สวัสดี": ("th",),
        "ಕನ್ನಡ": ("kn",), "καλη": ("el",),
    }  # fmt: skip
    for word, own in words.items():
        for language in (*own, "en-us", "de"):
            parts = 1 + make_front_end(TextConfig("phonemes", language)).units(word).count(BOUNDARY)
            assert (parts == 1) == (script_of(word[0]) in scripts_of_voice(language)), (word, language)


def test_the_line_for_the_user_is_short():
    assert describe(()) == ""
    assert describe([("CYRILLIC", "а"), ("CJK", "你"), ("CYRILLIC", "б")]) == "Cyrillic (а б) and Han (你)"
    assert describe([("THAI", "ก" * 50)]) == f"Thai ({'ก' * 40}...)"
