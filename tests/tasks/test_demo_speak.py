"""The demo's page of speech: which texts in which voices, who speaks, what the page says."""

import json

import pytest
import soundfile as sf

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.synth_speech import VARIANTS
from xcodec_lm.tasks.data.synth_text import DIGITS
from xcodec_lm.tasks.demo import speak as page
from xcodec_lm.tasks.tts.evaluate import Judges
from xcodec_lm.tasks.tts.voice import load_tts


class Parrot:
    """A recogniser that always hears the same."""

    name, ancestry = "parrot", {"data": "none"}

    def transcribe(self, wavs):
        return ["one two"] * len(wavs)


@pytest.fixture
def corpus(tmp_path, write_wav):
    """Takes 0 to 9 of six digits by two speakers of the test split, one of which also has a single take, and others."""
    rows = []

    def add(name, text, speaker, split):
        path = write_wav(f"{name}.wav", seconds=0.2, kind="noise", level=0.2)
        row = {"id": name, "audio": path.name, "duration": 0.2, "text": text, "speaker": speaker, "split": split}
        rows.append(row | {"source": "made", "take": 0})

    for speaker in ("ada", "bob"):
        for text in DIGITS[:6]:
            for take in range(10):
                add(f"{text}_{speaker}_{take}", text, speaker, "test")
    add("nine_ada_0", "nine", "ada", "test")
    for take in range(3):
        add(f"one_eve_{take}", "one", "eve", "test")
        add(f"one_tom_{take}", "one", "tom", "train")
        add(f"cat_ada_{take}", "a cat", "ada", "test")
    write_manifest(rows, tmp_path / "speech.jsonl")
    return tmp_path / "speech.jsonl"


def test_real_digits_are_those_held_out_of_speakers_with_several(corpus):
    found = page.digit_recordings(corpus)
    assert {clip.row["speaker"] for clip in found} == {"ada", "bob"}
    assert {clip.row["text"] for clip in found} == set(DIGITS[:6]) and len(found) == 2 * 6 * 10
    # beside a corpus of music
    write_manifest([{"id": "m", "audio": "m.wav", "duration": 9.0, "split": "test"}], corpus.parent / "music.jsonl")
    assert [clip.id for clip in page.digit_recordings(corpus.parent / "music.jsonl")] == [clip.id for clip in found]
    corpus.unlink()
    assert page.digit_recordings(corpus.parent / "music.jsonl") == page.digit_recordings(None) == []


def test_prompts_and_texts_are_of_one_speaker_and_of_different_first_takes(corpus, tmp_path):
    digits = page.digit_recordings(corpus)
    rows = page.join_lines(digits, tmp_path / "speech", seed=0)
    prompts = [json.loads(line) for line in (tmp_path / "speech" / "prompt" / "speech.jsonl").read_text().splitlines()]
    assert len(rows) == page.MOST_TEXTS
    used = [{name for row in some for name in row["joined_from"]} for some in (rows, prompts)]
    assert not used[0] & used[1]
    assert {int(name[-1]) for names in used for name in names} <= set(range(page.TAKES))
    assert not {row["text"] for row in rows} & {row["prompt_text"] for row in rows}
    for row, prompt in zip(rows, prompts, strict=True):
        assert row["speaker"] == prompt["speaker"] and row["prompt_text"] == prompt["text"]
        assert sf.info(tmp_path / "speech" / row["audio"]).duration == pytest.approx(row["duration"], abs=1e-3)
        assert sf.info(tmp_path / "speech" / row["prompt_audio"]).duration > 0.6
    assert page.join_lines(digits, tmp_path / "speech", seed=0) == rows  # a second call


def test_synthetic_digits_are_said_by_held_out_voices(tmp_path):
    pytest.importorskip("espeakng_loader")
    rows = page.synthetic_lines(tmp_path, seed=0)
    assert len(rows) == page.MOST_TEXTS and len({row["id"] for row in rows}) == page.MOST_TEXTS
    for row in rows:
        assert any(f"-{variant}-" in row["speaker"] for variant in VARIANTS["test"])
        assert set(row["text"].split()) | set(row["prompt_text"].split()) <= set(DIGITS)
        assert row["text"] != row["prompt_text"]
        assert all(sf.info(tmp_path / row[key]).duration > 0.5 for key in ("audio", "prompt_audio"))


def test_models_on_two_codecs_stand_side_by_side_and_errors_are_marked(
    corpus, speech_run, twin_folder, other_folder, tmp_path, read_page
):
    runs = [
        str(speech_run(tmp_path / name / "tts", codec)) for name, codec in (("a", twin_folder), ("b", other_folder))
    ]
    out = tmp_path / "demo"
    text = page.speak(out, page.speech_models(runs), Judges(Parrot()), corpus, seed=0).read_text()
    for name in ("tts on tiny-twin: AR+NAR", "tts on tiny-other: AR+NAR", "ground truth"):
        assert name in text
    shown = read_page(text)
    # prompt, recording, and of either model the resynthesis, AR and AR+NAR
    assert len(shown.all("audio")) == page.MOST_TEXTS * 8
    assert "heard: one" in shown.text and "ended by itself" in shown.text
    rows = [json.loads(line) for line in (out / "speech" / "lines.jsonl").read_text().splitlines()]
    assert all(row[key] in shown.text for row in rows for key in ("text", "prompt_text"))


def test_each_model_has_a_name_of_its_own(speech_run, tmp_path):
    tts = load_tts(speech_run(tmp_path / "a"))
    names = [name for name, _ in page.name_runs([("x/a", tts), ("y/a", tts), ("z/a", tts), ("b", tts)])]
    assert names == ["a on tiny-twin", "a on tiny-twin (2)", "a on tiny-twin (3)", "b on tiny-twin"]


def test_the_shipped_model_speaks_where_none_is_named_and_its_absence_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "PRETRAINED", tmp_path)
    assert page.speech_models(()) == [] and "tts-tiny is not installed" in capsys.readouterr().err
    (tmp_path / "tts-tiny").mkdir()
    assert page.speech_models(()) == ["tts-tiny"]
    with pytest.raises(XcodecLMError, match="holds no speech model"):
        page.speech_models([str(tmp_path / "nothing")])


def test_without_digits_and_espeak_there_is_no_page_and_it_is_said(tmp_path, monkeypatch, capsys):
    def missing():
        raise XcodecLMError("there is no espeak-ng", "install it")

    monkeypatch.setattr(page, "find_espeak", missing)
    assert page.speak(tmp_path, ["tts-tiny"], Judges(), None, 0) is None
    assert "no speak page" in capsys.readouterr().err and not (tmp_path / "speak.html").exists()
