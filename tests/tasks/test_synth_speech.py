"""Synthetic speech: the same for the same seed, many voices, splits without a voice in common, sane levels."""

import json
import re

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.data import data_synth
from xcodec_lm.tasks.data import espeak
from xcodec_lm.tasks.data.check import check
from xcodec_lm.tasks.data.espeak import Espeak, Utterance, find_espeak
from xcodec_lm.tasks.data.synth import synth
from xcodec_lm.tasks.data.synth_speech import (
    ACCENTS,
    VARIANTS,
    VOICES,
    draw_speaker,
    draw_voice,
    make_speech,
    place,
    split_of,
    trim,
)
from xcodec_lm.tasks.data.synth_text import DIGITS, SLOTS, TEMPLATES, WORDS, write_digits, write_sentence

RATE = 16_000


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("espeakng_loader")
    with Espeak() as running:
        yield running


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    pytest.importorskip("espeakng_loader")
    return synth(tmp_path_factory.mktemp("speech") / "corpus", music_clips=0, sound_clips=0, speech_clips=20)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_splits_share_no_timbre_whatever_the_seed():
    names = [name for variants in VARIANTS.values() for name in variants]
    assert len(set(names)) == len(names)
    for seed in (0, 7):
        voices = {split: [draw_voice(seed, split, k) for k in range(count)] for split, count in VOICES.items()}
        for split, drawn in voices.items():
            assert {voice.variant for voice in drawn} == set(VARIANTS[split])
        assert len({voice.name for voice in voices["train"]}) > 200
        english = np.mean([voice.language == "en" for voice in voices["train"]])
        assert 0.6 < english < 0.8
        assert {voice.language for voice in voices["train"]} == set(ACCENTS)


def test_of_ten_clips_in_a_row_eight_are_for_training():
    splits = [split_of(index) for index in range(10)]
    assert [splits.count(name) for name in ("train", "dev", "test")] == [8, 1, 1]
    assert [split_of(index) for index in range(10, 20)] == splits


def test_english_has_letters_spaces_and_apostrophes_alone():
    rng = np.random.default_rng(0)
    sentences = {write_sentence(rng) for _ in range(500)}
    assert len(sentences) > 400
    assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", sentence) for sentence in sentences)
    said = set(" ".join(sentences).split())
    assert {word for words in SLOTS.values() for phrase in words for word in phrase.split()} <= said
    assert {word for template in TEMPLATES for word in template.split() if "{" not in word} <= said


@pytest.mark.parametrize("language", sorted(WORDS))
def test_other_languages_use_their_own_words_in_lower_case(language):
    sentence = write_sentence(np.random.default_rng(0), language)
    assert set(sentence.split()) <= set(WORDS[language].split())
    assert WORDS[language] == WORDS[language].lower()
    assert language in ACCENTS


def test_digits_are_three_to_six_and_all_alike():
    rng = np.random.default_rng(0)
    strings = [write_digits(rng).split() for _ in range(2_000)]
    assert {len(string) for string in strings} == {3, 4, 5, 6}
    said = [word for string in strings for word in string]
    counts = [said.count(word) for word in DIGITS]
    assert sum(counts) == len(said) and min(counts) > 0.85 * max(counts)


def test_digits_are_said_by_many_voices_all_of_which_speak_english():
    drawn = {
        split: {draw_speaker(0, split, np.random.default_rng(index), digits=True) for index in range(2_000)}
        for split in VOICES
    }
    assert all(voice.language == "en" for voices in drawn.values() for voice in voices)
    assert len(drawn["train"]) >= 150
    timbres = [{voice.variant for voice in voices} for voices in drawn.values()]
    assert sum(map(len, timbres)) == len(set.union(*timbres))


def test_trimmed_speech_begins_and_ends_within_0_3_seconds():
    speech = np.random.default_rng(0).uniform(-0.5, 0.5, RATE).astype(np.float32)
    padded = np.pad(speech, (3 * RATE, 2 * RATE))
    trimmed = trim(padded, np.random.default_rng(1), RATE)
    loud = np.flatnonzero(trimmed)
    assert 0.03 * RATE <= loud[0] <= 0.31 * RATE
    assert 0.02 * RATE <= len(trimmed) - loud[-1] <= 0.31 * RATE
    assert len(trim(np.zeros(RATE, dtype=np.float32), np.random.default_rng(1), RATE)) == 0


def test_a_place_keeps_the_length_and_draws_the_level():
    speech = 0.3 * np.sin(np.arange(RATE) * 0.1)
    placed = [place(speech, np.random.default_rng(seed), RATE) for seed in range(20)]
    assert all(len(audio) == RATE and np.abs(audio).max() < 0.96 for audio in placed)
    levels = [20 * np.log10(np.sqrt(np.mean(audio**2))) for audio in placed]
    assert min(levels) > -35 and max(levels) < -18.5 and np.ptp(levels) > 6


def test_the_manifest_is_sound(corpus):
    assert corpus.manifests == [corpus.speech]
    assert check(corpus.speech) == []
    clips = read_manifest(corpus.speech)
    assert len(clips) == 20
    speakers = {split: {clip.row["speaker"] for clip in clips if clip.split == split} for split in VARIANTS}
    assert all(speakers.values())
    assert not speakers["test"] & (speakers["train"] | speakers["dev"])
    for clip in clips:
        assert clip.row["text"] and clip.row["language"] in ACCENTS
        assert any(f"-{variant}-" in clip.row["speaker"] for variant in VARIANTS[clip.split])


def test_clips_have_speech_at_sane_levels(corpus):
    for clip in read_manifest(corpus.speech):
        wave, rate = sf.read(clip.path)
        assert rate == RATE and wave.ndim == 1 and 1.0 <= len(wave) / RATE <= 6.0
        assert np.abs(wave).max() < 0.96
        frames = wave[: len(wave) // 320 * 320].reshape(-1, 320)
        energy = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-10)
        assert energy.max() > -35
        # speech goes up and down; steady noise or a tone does not
        assert np.percentile(energy, 95) - np.percentile(energy, 5) > 10


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    pytest.importorskip("espeakng_loader")
    settings = {"music_clips": 0, "sound_clips": 0, "speech_clips": 6}
    assert synth(tmp_path / "1", **settings).made
    synth(tmp_path / "2", **settings)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert not synth(tmp_path / "1", **settings).made
    other = synth(tmp_path / "3", seed=1, **settings)
    audio = [{data for name, data in contents(tmp_path / k).items() if name.endswith("flac")} for k in "13"]
    assert len(audio[0]) == len(audio[1]) == 6 and not audio[0] & audio[1]
    assert [clip.id for clip in read_manifest(other.speech)][:2] == ["synth-s1-speech-0000", "synth-s1-speech-0001"]


def test_a_clip_does_not_depend_on_what_was_said_before(engine):
    later = make_speech(engine, 0, 3, RATE)
    with Espeak() as fresh:
        first = make_speech(fresh, 0, 3, RATE)
    assert np.array_equal(first[0], later[0]) and first[1:] == later[1:]


@pytest.mark.parametrize("variant", ["f2", "whisper"])  # two whose breath is random
def test_an_utterance_is_the_same_in_every_process(engine, variant):
    utterance = Utterance("one two three", variant=variant)
    said = engine.speak(utterance)
    engine.speak(Utterance("something else", "fr", "m3"))
    with Espeak() as other:
        assert said == engine.speak(utterance) == other.speak(utterance)


def test_voices_differ(engine):
    said = [engine.speak(Utterance("one two three", variant=name)) for names in VARIANTS.values() for name in names]
    assert len(set(said)) == len(said)
    plain, high = (engine.speak(Utterance("one two three", pitch=pitch)) for pitch in (50, 80))
    assert plain != high
    slow, fast = (engine.speak(Utterance("one two three", words_per_minute=rate)) for rate in (120, 220))
    assert len(slow) > 1.3 * len(fast)


def test_every_accent_is_there_and_differs(engine):
    accents = sorted({accent for names in ACCENTS.values() for accent in names})
    assert len({engine.speak(Utterance("radio animal 70", accent)) for accent in accents}) == len(accents)


def test_an_unknown_voice_is_named(engine):
    with pytest.raises(XcodecLMError, match="no voice variant 'nobody'"):
        engine.speak(Utterance("one", variant="nobody"))
    with Espeak() as other, pytest.raises(XcodecLMError, match=r"no voice xx\+m1"):
        other.speak(Utterance("one", language="xx"))


def test_a_library_that_died_is_an_error_that_says_so(engine):
    with Espeak() as other:
        other._process.kill()
        other._process.wait()
        with pytest.raises(XcodecLMError, match="stopped at 'one two'"):
            other.speak(Utterance("one two"))


def test_without_espeak_the_error_says_what_to_install_and_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(espeak.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(XcodecLMError, match="espeak-ng, which is not installed") as caught:
        synth(tmp_path / "corpus", speech_clips=1)
    assert "pip install 'xcodec-lm[tts]'" in caught.value.hint
    assert not (tmp_path / "corpus").exists()
    # music and sound do not need it
    made = synth(tmp_path / "plain", music_clips=1, sound_clips=1, clip_s=0.5, sound_s=0.5)
    assert made.manifests == [made.music, made.sound]


def test_a_system_library_is_taken_without_the_package(monkeypatch):
    monkeypatch.setattr(espeak.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda name: "libespeak-ng.so.1")
    assert find_espeak() == ("libespeak-ng.so.1", "")


def test_a_library_without_voice_data_is_an_error(tmp_path, monkeypatch, engine):
    library = find_espeak()[0]
    monkeypatch.setattr(espeak, "find_espeak", lambda: (library, str(tmp_path / "none" / "espeak-ng-data")))
    with pytest.raises(XcodecLMError, match="its start"):
        Espeak()


@pytest.mark.parametrize("texts", ["digits", "mixed"])
def test_digits_at_one_level_whatever_the_workers(corpus, tmp_path, texts):
    folders = [tmp_path / "1", tmp_path / "3"]
    for folder, workers in zip(folders, (1, 3), strict=True):
        data_synth(folder, 0, 0, 0, 8, texts=texts, level_dbfs=-25.0, workers=workers)
    assert contents(folders[0]) == contents(folders[1])
    clips = read_manifest(folders[0] / "speech.jsonl")
    digits = [set(clip.row["text"].split()) <= set(DIGITS) for clip in clips]
    assert all(digits) if texts == "digits" else 2 <= sum(digits) <= 6
    # the others are the sentences of the plain corpus, but for their level
    plain = [clip.row["text"] for clip in read_manifest(corpus.speech)]
    assert all(spelt or clip.row["text"] == text for spelt, clip, text in zip(digits, clips, plain, strict=False))
    for clip in clips:
        wave, _ = sf.read(clip.path)
        assert 20 * np.log10(np.sqrt(np.mean(wave**2))) == pytest.approx(-25, abs=0.6)
        assert clip.id.startswith(f"synth-{texts}-")  # so that it may be trained on beside sentences
    with pytest.raises(XcodecLMError, match="made with other settings"):
        data_synth(folders[0], 0, 0, 0, 8, texts=texts)


@pytest.mark.parametrize("wrong", [{"speech_texts": "poems"}, {"speech_level_dbfs": 3.0}, {"workers": 0}])
def test_settings_that_make_no_speech_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError):
        synth(tmp_path / "corpus", speech_clips=1, **wrong)
    assert not (tmp_path / "corpus").exists()


def test_a_corpus_of_before_there_was_speech_is_taken_as_it_is(tmp_path):
    settings = {"music_clips": 1, "sound_clips": 0, "clip_s": 0.5}
    synth(tmp_path, **settings)
    record = json.loads((tmp_path / "synth.json").read_text())
    for name in ("speech_clips", "speech_texts", "speech_level_dbfs"):
        del record["settings"][name]
    (tmp_path / "synth.json").write_text(json.dumps(record))
    assert not synth(tmp_path, **settings).made
