"""Text to ids: front ends, the symbol table, what it does with what it does not know, sentencepiece models."""

import json
import pickle
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xcodec_lm.configs.errors import ConfigError, UsageError, XcodecLMError
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.tasks.data.spm import train_spm
from xcodec_lm.tasks.tts import front_ends
from xcodec_lm.tasks.tts.front_ends import make_front_end
from xcodec_lm.tasks.tts.nearest import nearest
from xcodec_lm.tasks.tts.symbols import BOS, EOS, FIRST, UNKNOWN, TextEncoder

TEXTS = [
    "The quick brown fox, said Mr. Hall, jumps over the lazy dog!",
    "Why did your brother pay $3.50 for the yellow jacket?",
    "Call 555-1234; we shall measure the thing by noon - perhaps.",
    "She chose a house by the river, and a boy with a voice like a church bell.",
]


def manifest(path, texts, **keys):
    rows = (
        {"id": str(index), "audio": "a.wav", "duration": 1.0, "text": text, **keys} for index, text in enumerate(texts)
    )
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    train_spm([manifest(folder / "m.jsonl", TEXTS)], folder / "text.model", vocab_size=310)
    return folder / "text.model"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("ÉCOLE Straße", "école strasse"), ("e\u0301cole", "école"), ("A\u030angstr\u00f6m", "ångström"),
        ("\ufb01ne", "fine"), ("\uff26\uff55ll", "full"), ("ЖУК ΣΟΦΙΑ", "жук σοφια"),
    ],
)  # fmt: skip
def test_a_sentencepiece_model_folds_case_and_joins_accents_in_little_room(model, written, read):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(model))
    assert processor.encode(written) == processor.encode(read) and processor.decode(processor.encode(written)) == read
    assert model.stat().st_size < 64_000


@pytest.fixture(scope="module", params=["characters", "phonemes", "sentencepiece"])
def encoder(request, model):
    name = request.param
    return TextEncoder.build(TextConfig(name, model=str(model) if name == "sentencepiece" else ""), TEXTS)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"front_end": "letters"}, "characters, phonemes, sentencepiece and transformers"),
        ({"language": ""}, "no name of a language"),
        ({"language": "en us"}, "no name of a language"),
        ({"front_end": "sentencepiece"}, "data spm"),
        ({"model": "a.model"}, "not characters"),
    ],
)
def test_configurations_are_checked(wrong, says):
    with pytest.raises(ConfigError) as error:
        TextConfig(**wrong)
    assert says in str(error.value)


def test_characters_are_lower_case_with_punctuation():
    assert make_front_end(TextConfig()).units("Ab, É?") == ["a", "b", ",", " ", "é", "?"]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Hello, world!", "h ə l oʊ , _ w ɜː l d !"),
        ('"Yes" (you)...', '" j ɛ s " _ ( j uː ) . . .'),
        ("one - two", "w ʌ n _ - _ t uː"),
        ("don't", "d oʊ n t"),
        (" - , ", "- _ ,"),
    ],
)
def test_phonemes_keep_marks_where_they_stand(text, units):
    assert make_front_end(TextConfig("phonemes")).units(text) == units.split()


def test_phonemes_agree_with_phonemizers_own_punctuation():
    from phonemizer.backend import EspeakBackend
    from phonemizer.separator import Separator

    ours = make_front_end(TextConfig("phonemes"))
    text = "the quick brown fox, said the man, jumps: why? well; because it can!"
    expected_of = EspeakBackend("en-us", preserve_punctuation=True, language_switch="remove-flags")
    line = expected_of.phonemize([text], separator=Separator(phone="", word="_", syllable=""), strip=True)[0]
    assert "".join(ours.units(text)) == line.replace(" ", "")


@pytest.mark.parametrize(
    ("language", "text", "units"),
    [
        ("de", "Straße um 3,5 %", "ʃ t ɾ ɑː s ə _ ʊ m _ d ɾ aɪ _ k ɔ m ɑː _ f ʏ n f _ p ɾ oː ts ɛ n t"),
        ("fr-fr", "le football", "l ə _ f ʊ t b ɔː l"),
        ("hi", "हिन्दी।", "h ɪ n d i ।"),
        ("cmn", "你好，", "n i2 χ ɑu2 ,"),
    ],
)
def test_phonemes_of_other_languages(language, text, units):
    encoder = TextEncoder.build(TextConfig("phonemes"), [text], language)
    assert encoder.config.language == language
    assert encoder.encode(text).units == units.split()


@pytest.mark.parametrize(("wrong", "near"), [("en", "en-us"), ("french", "fr-fr"), ("ge", "de")])
def test_unknown_languages_get_near_names(wrong, near):
    with pytest.raises(ConfigError) as error:
        make_front_end(TextConfig("phonemes", language=wrong)).units("a")
    assert f"no language '{wrong}'" in error.value.message and near in error.value.hint


def test_missing_phonemizer_says_what_to_install(monkeypatch, tmp_path):
    TextEncoder.build(TextConfig("phonemes"), TEXTS).save(tmp_path)
    for name in ("phonemizer", "phonemizer.backend"):
        monkeypatch.setitem(sys.modules, name, None)
    front_ends._backend.cache_clear()
    for use in (lambda: make_front_end(TextConfig("phonemes")).units("a"), lambda: TextEncoder.load(tmp_path)):
        with pytest.raises(XcodecLMError) as error:
            use()
        assert "phonemizer" in error.value.message and "pip install 'xcodec-lm[tts]'" in error.value.hint


def test_ids_are_fixed_and_sorted(encoder):
    assert list(encoder.symbols) == sorted(set(encoder.symbols))
    assert encoder.size == FIRST + len(encoder.symbols)
    found = encoder.encode(TEXTS[0])
    assert (found.ids[0], found.ids[-1]) == (BOS, EOS)
    assert [encoder.symbols[index - FIRST] for index in found.ids[1:-1]] == found.units
    assert (found.unknown, found.replaced, found.dropped, found.losses()) == ((), (), (), "")
    assert TextEncoder.build(encoder.config, reversed(TEXTS)).symbols == encoder.symbols


def test_save_and_load(encoder, tmp_path, capsys):
    encoder.save(tmp_path)
    loaded = TextEncoder.load(tmp_path)
    text = "A zebra, 21 cats & one naïve 你."
    assert loaded.encode(text) == encoder.encode(text)
    assert loaded.facts == encoder.facts and loaded.facts["symbols"] == len(encoder.symbols)
    assert pickle.loads(pickle.dumps(loaded)).encode(text) == encoder.encode(text)
    loaded.save(tmp_path)
    loaded.save(tmp_path / "copy")
    assert TextEncoder.load(tmp_path / "copy").encode(text) == encoder.encode(text)
    assert capsys.readouterr().err == ""


def test_another_version_of_the_front_end_is_told(encoder, tmp_path, capsys):
    encoder.save(tmp_path)
    stored = json.loads((tmp_path / "text.json").read_text(encoding="utf-8"))
    stored["front_end_version"] = "espeak-ng 1.48"
    (tmp_path / "text.json").write_text(json.dumps(stored), encoding="utf-8")
    assert TextEncoder.load(tmp_path).symbols == encoder.symbols
    assert "espeak-ng 1.48" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": 1}', '{"version": 9}', b"\xff\xfe"])
def test_broken_tables_are_errors(content, tmp_path):
    if content is not None:
        (tmp_path / "text.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(XcodecLMError, match=r"text\.json"):
        TextEncoder.load(tmp_path)


def test_another_or_no_sentencepiece_model_is_an_error(model, tmp_path):
    encoder = TextEncoder.build(TextConfig("sentencepiece", model=str(model)), TEXTS)
    encoder.save(tmp_path)
    train_spm([manifest(tmp_path / "m.jsonl", ["other words", "zigzag"])], tmp_path / "text.model", vocab_size=272)
    with pytest.raises(XcodecLMError, match="not the sentencepiece model that"):
        TextEncoder.load(tmp_path)
    (tmp_path / "text.model").write_bytes(b"x")
    with pytest.raises(XcodecLMError, match="not a sentencepiece model"):
        TextEncoder.load(tmp_path)
    (tmp_path / "text.model").unlink()
    with pytest.raises(XcodecLMError, match="no such"):
        TextEncoder.load(tmp_path)


@pytest.mark.parametrize("text", ["", " \n", "😀😀", "?!...", '"-"'])
def test_nothing_to_say_is_an_error(encoder, text):
    with pytest.raises(UsageError) as error:
        encoder.encode(text)
    assert error.value.hint
    with pytest.raises(UsageError, match="nothing that can be said"):
        TextEncoder.build(encoder.config, [text])


def test_bad_input_is_said_as_far_as_it_goes(encoder):
    long = encoder.encode("word " * 1000)
    assert len(long.ids) > 1000 and not long.unknown
    mixed = encoder.encode("hello 😀 Привет 你好 مرحبا £5")
    assert mixed.dropped == ("😀",)
    known = set(range(encoder.size))
    assert set(mixed.ids) <= known and set(long.ids) <= known
    assert "removed: 😀" in mixed.losses()
    # what can be said is kept, and the rest is told in one line
    assert mixed.ids == encoder.encode("hello £5").ids
    assert mixed.losses().endswith("does not speak: Cyrillic (Привет), Han (你好) and Arabic (مرحبا)")


def test_a_text_in_a_script_that_is_not_spoken_is_refused(encoder):
    with pytest.raises(UsageError, match=r"script that this model does not speak: Cyrillic \(Привет мир\)"):
        encoder.encode("Привет мир!")


def test_characters_of_a_spoken_script_that_are_unknown_are_reported():
    encoder = TextEncoder.build(TextConfig(), ["a sound"])
    found = encoder.encode("sounds known")
    assert found.unknown == ("k", "w") and UNKNOWN in found.ids and found.left_out == ()


@given(text=st.text(max_size=20))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_encoded_or_refused(encoder, text):
    try:
        found = encoder.encode(text)
    except UsageError:
        return
    assert all(0 <= index < encoder.size for index in found.ids)
    assert len(found.ids) == len(found.units) + 2
    assert (UNKNOWN in found.ids) == bool(found.unknown)
    assert encoder.config.front_end != "sentencepiece" or not found.unknown


@pytest.mark.parametrize(
    ("unit", "known", "phonemes", "expected"),
    [
        ("é", "ae", False, ("e",)),
        ("Ø", "ao", False, ("o",)),
        ("ß", "s", False, ("s", "s")),
        ("q", "Qk", False, ("Q",)),
        ("x", "k", False, None),
        ("你", "ab", False, None),
        ("-", " a", False, (" ",)),
        ("!", ".,", False, (".",)),
        (";", ".", True, (".",)),
        ("(", "a", True, ()),
        ("iː", ["i"], True, ("i",)),
        ("i", ["iː"], True, ("iː",)),
        ("ɑ̃", ["ɑː", "n"], True, ("ɑː",)),
        ("tʲ", ["t"], True, ("t",)),
        ("i2", ["i"], True, ("i",)),
        ("ç", ["c", "ʃ"], True, ("ʃ",)),
        ("aɪə", ["aɪ", "a", "ə"], True, ("aɪ", "ə")),
        ("aɪɚ", ["aɪ", "ə"], True, ("aɪ", "ə")),
        ("ʁ", ["ɹ"], True, ("ɹ",)),
        ("ʘ", ["p"], True, None),
    ],
)
def test_nearest_known_units(unit, known, phonemes, expected):
    assert nearest(unit, set(known), phonemes) == expected


def test_splitting_keeps_to_units(encoder):
    text = " ".join(TEXTS * 5)
    pieces = encoder.split(text, 60)
    assert " ".join(pieces) == encoder.normalise(text).text
    sizes = [len(encoder.encode(piece).units) for piece in pieces]
    assert max(sizes) <= 66 and len(pieces) < 60


def test_normalising_can_be_left_out():
    plain = TextEncoder.build(TextConfig(normalise=False), ["Mr. 5"])
    assert plain.encode("Mr. 5").units == list("mr. 5")


def test_spm_is_deterministic_and_knows_every_text(cli, tmp_path):
    rows = manifest(tmp_path / "m.jsonl", [*TEXTS, ""], split="train")
    written = []
    for name in ("a.model", "b.model"):
        code, out, err = cli("data", "spm", rows, "--out", tmp_path / name, "--vocab-size", 300, "--json")
        assert code == 0 and "1 recordings have no text" in err
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] and json.loads(out)["pieces"] == 300
    encoder = TextEncoder.build(TextConfig("sentencepiece", model=str(tmp_path / "a.model")), TEXTS)
    assert encoder.size == FIRST + 300 - 3
    assert encoder.encode("Schöne 你好 ЖЖ").unknown == ()
    assert encoder.encode("THE FOX").units == encoder.encode("the fox").units


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--vocab-size", 9000], "--vocab-size 3"),
        (["--vocab-size", 100], "at least 2"),
        (["--vocab-size", 0], "impossible"),
        (["--split", "dev"], "has a text"),
        (["--out", "."], "is a folder"),
    ],
)
def test_spm_explains_what_is_wrong(cli, tmp_path, options, says):
    rows = manifest(tmp_path / "m.jsonl", TEXTS)
    out = [] if "--out" in options else ["--out", tmp_path / "a.model"]
    code, _, err = cli("data", "spm", rows, *options, *out)
    assert code == 2 and says in err and "hint:" in err
    assert not (tmp_path / "a.model").exists()
