"""Joined utterances: made of the recordings that they name, balanced, without clicks, repeatable."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import read_manifest, write_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.data import data_join
from xcodec_lm.tasks.data.check import check
from xcodec_lm.tasks.data.join import PAUSE_S, JoinSettings, join

RATE = 16_000
WORDS = ("zero", "one", "two", "three")
LEVELS = {"ann": 0.3, "bob": 0.02}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Four words by two speakers of very different level, ten takes each at a pitch of their own; takes 0 are dev."""
    folder = tmp_path_factory.mktemp("digits")
    rows = []
    for speaker, level in LEVELS.items():
        for number, word in enumerate(WORDS):
            for take in range(10):
                name = f"{number}_{speaker}_{take}"
                time = np.arange(round((0.2 + 0.01 * take) * RATE)) / RATE
                wave = level * np.cos(2 * np.pi * (200 + 50 * number + take) * time) + 0.1 * level
                sf.write(folder / f"{name}.flac", wave, RATE)
                split = "dev" if take == 0 else "train"
                keys = {"text": word, "speaker": speaker, "split": split, "licence": "CC0-1.0", "mood": take}
                rows.append({"id": name, "audio": f"{name}.flac", "duration": len(time) / RATE, **keys})
    write_manifest(rows, folder / "m.jsonl")
    return folder / "m.jsonl"


def joined(recordings, out, **settings):
    exclude = settings.pop("exclude", ())
    return join(recordings, out, JoinSettings(**{"count": 24, **settings}), exclude)


def test_an_utterance_is_the_recordings_that_it_names(recordings, tmp_path):
    made = joined(recordings, tmp_path / "out")
    sources = {clip.id: clip for clip in read_manifest(recordings)}
    clips = read_manifest(made.manifest)
    assert check(made.manifest) == [] and len(clips) == 24
    for clip in clips:
        parts = [sources[name] for name in clip.row["joined_from"]]
        assert 3 <= len(parts) <= 6
        assert clip.row["text"] == " ".join(part.row["text"] for part in parts)
        assert {part.row["speaker"] for part in parts} == {clip.row["speaker"]}
        assert {part.split for part in parts} == {clip.split} == {"train"}
        assert clip.row["licence"] == "CC0-1.0"
        pauses = clip.duration_s - sum(part.duration_s for part in parts)
        assert PAUSE_S[0] * (len(parts) + 1) - 0.001 < pauses < PAUSE_S[1] * (len(parts) + 1) + 0.001
        wave, rate = sf.read(clip.path)
        assert rate == RATE
        runs = re.findall("0{500,}", "".join("0" if value == 0 else "1" for value in wave))
        assert len(runs) == len(parts) + 1
        # loud recordings have the energy of their sources: nothing was levelled
        if clip.row["speaker"] == "ann":
            power = sum(np.sum((sf.read(part.path)[0] - 0.03) ** 2) for part in parts)
            assert np.sum(wave**2) == pytest.approx(power, rel=0.1)


def test_recordings_begin_and_end_without_clicks(recordings, tmp_path):
    for clip in read_manifest(joined(recordings, tmp_path / "out").manifest):
        wave, _ = sf.read(clip.path)
        # the steepest step of a cosine at level 0.3 and 460 Hz is 0.055; a cut off one of the sources jumps by 0.3
        assert np.abs(np.diff(wave)).max() < 0.06 * LEVELS[clip.row["speaker"]] / 0.3 + 1e-3


def test_speakers_words_and_recordings_come_up_equally_often(recordings, tmp_path):
    made = joined(recordings, tmp_path / "out", count=200)
    speakers = Counter(row["speaker"] for row in made.rows)
    assert speakers == {"ann": 100, "bob": 100}
    assert {len(row["joined_from"]) for row in made.rows} == {3, 4, 5, 6}
    for speaker in LEVELS:
        rows = [row for row in made.rows if row["speaker"] == speaker]
        words = Counter(word for row in rows for word in row["text"].split())
        assert max(words.values()) - min(words.values()) <= 6
        takes = Counter(name for row in rows for name in row["joined_from"])
        assert len(takes) == 4 * 9 and max(takes.values()) - min(takes.values()) <= 3
    assert any(re.search(r"\b(\w+) \1\b", row["text"]) for row in made.rows)


def test_the_same_seed_gives_the_same_files(recordings, tmp_path):
    def contents(folder):
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        joined(recordings, tmp_path / place / "set", seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_a_level_is_that_of_the_recordings_and_all_speakers_have_it(recordings, tmp_path):
    made = joined(recordings, tmp_path / "out", level_dbfs=-25)
    for clip in read_manifest(made.manifest):
        wave, _ = sf.read(clip.path)
        spoken = sum(part.duration_s for part in read_manifest(recordings) if part.id in clip.row["joined_from"])
        doubled = len(clip.row["joined_from"]) - len(set(clip.row["joined_from"]))
        if not doubled:
            assert 10 * np.log10(np.sum(wave**2) / (spoken * RATE)) == pytest.approx(-25, abs=0.05)
    assert made.lowered == 0
    loud = joined(recordings, tmp_path / "loud", level_dbfs=-1)
    assert loud.lowered == 24
    assert all(0.97 < np.abs(sf.read(clip.path)[0]).max() <= 0.995 for clip in read_manifest(loud.manifest))


def test_excluded_texts_do_not_occur(recordings, tmp_path):
    train = joined(recordings, tmp_path / "train", count=60, shortest=3, longest=3)
    said = {row["text"] for row in train.rows}
    assert 15 < len(said) < 64  # of 4 ** 3 strings
    made = joined(recordings, tmp_path / "test", split="dev", longest=3, seed=1, exclude=[train.manifest])
    assert made.rows and not said & {row["text"] for row in made.rows}
    with pytest.raises(UsageError, match=r"strings of 1 recordings were drawn and all are excluded\n.*--min"):
        exclude = [train.manifest, recordings]
        joined(recordings, tmp_path / "none", shortest=1, longest=1, exclude=exclude)


def test_takes_and_ids_choose_the_recordings(recordings, tmp_path):
    made = joined(recordings, tmp_path / "a", takes=(5, 7), id_pattern="_ann_")
    used = {name for row in made.rows for name in row["joined_from"]}
    assert used == {f"{number}_ann_{take}" for number in range(4) for take in (5, 6, 7)}
    made = joined(recordings, tmp_path / "b", takes=(2, 3), id_pattern="^([0-9])_")  # the first group is the take
    assert {word for row in made.rows for word in row["text"].split()} == {"two", "three"}
    rows = [clip.row | {"audio": str(clip.path), "take": clip.row["mood"] + 100} for clip in read_manifest(recordings)]
    write_manifest(rows, tmp_path / "m.jsonl")
    made = joined(tmp_path / "m.jsonl", tmp_path / "c", takes=(101, 102))
    assert {name.split("_")[-1] for row in made.rows for name in row["joined_from"]} == {"1", "2"}


def test_what_cannot_be_joined_is_named(recordings, tmp_path):
    (tmp_path / "torn.flac").write_bytes(b"fLaC")
    sf.write(tmp_path / "silent.flac", np.zeros(RATE), RATE)
    good = [clip.row | {"audio": str(clip.path)} for clip in read_manifest(recordings)]
    bad = [
        {**good[-1], "id": "mute", "text": " "},
        {**good[-1], "id": "nobody", "speaker": None},
        {**good[-1], "id": "torn", "audio": "torn.flac"},
        {**good[-1], "id": "silent", "audio": "silent.flac"},
    ]
    write_manifest(good + bad, tmp_path / "m.jsonl")
    made = joined(tmp_path / "m.jsonl", tmp_path / "out")
    assert {name: why for name, why in made.unused.items() if name != "torn"} == {
        "mute": "no text",
        "nobody": "no speaker",
        "silent": "silence",
    }
    assert "not readable as audio" in made.unused["torn"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "cannot make 0"),
        ({"shortest": 4, "longest": 3}, "cannot join 4 to 3"),
        ({"level_dbfs": 3}, "a level of 3 dBFS"),
        ({"id_pattern": "("}, "no regular expression"),
        ({"split": "test"}, "no recordings of split test"),
        ({"id_pattern": "_carl_"}, "no recordings of split train"),
        ({"takes": (1, 2), "id_pattern": "_(ann)_"}, r"'0_ann_1' has no number of a take\n.*--id-pattern"),
    ],
)
def test_wrong_settings_are_refused(recordings, tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        joined(recordings, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_the_command(recordings, tmp_path, capsys):
    result = data_join(recordings, tmp_path / "out", 4, min=2, max=2, level_dbfs=-1)
    assert result.data["speakers"] == ["ann", "bob"] and result.data["utterances"] == 4
    assert "4 utterances of 2 speakers" in result.text
    assert "4 utterances are below -1 dBFS" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out" / "speech.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"out-{index:05d}" for index in range(4)]
    with pytest.raises(XcodecLMError, match="exists already"):
        data_join(recordings, tmp_path / "out", 4)
