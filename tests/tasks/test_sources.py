"""Manifests of corpora, each from a tiny tree in the layout of the real one."""

import json
import sys

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.data import data_scan
from xcodec_lm.tasks.data.source_corpora import MUSDB18_VALIDATION
from xcodec_lm.tasks.data.sources import collect, detect, scan_source

RATE = 8000


def sound(path, seconds=0.25, seed=0, subtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))
    sf.write(path, wave, RATE, subtype=subtype)
    return wave


def scanned(source, tmp_path, **options):
    """The format that was found, the rows by id, and what could not be read. Every manifest must be readable."""
    out = tmp_path / "out" / "m.jsonl"
    taken, found = scan_source(source, out, **options)
    clips = read_manifest(out)
    assert all(clip.path.is_file() for clip in clips)
    assert all(abs(sf.info(clip.path).duration - clip.duration_s) < 1e-6 for clip in clips)
    return taken, {clip.id: clip.row for clip in clips}, found.unreadable


# ------------------------------------------------------------------ published corpora


@pytest.mark.parametrize("above", ["LibriSpeech", "."])
def test_librispeech(tmp_path, above):
    root = tmp_path / "corpus"
    for subset, speaker in (("train-clean-100", "103"), ("dev-other", "116"), ("test-clean", "121")):
        chapter = root / above / subset / speaker / "7"
        names = [f"{speaker}-7-{number:04d}" for number in range(2)]
        for name in names:
            sound(chapter / f"{name}.flac")
        texts = "".join(f"{name} HE SAID {number}\n" for number, name in enumerate(names))
        (chapter / f"{speaker}-7.trans.txt").write_text(texts)
    (root / above / "dev-other" / "116" / "7" / "116-7-0001.flac").unlink()
    taken, rows, unreadable = scanned(root, tmp_path)
    assert taken == "librispeech" and len(rows) == 5
    row = rows["103-7-0001"]
    assert (row["text"], row["speaker"], row["split"], row["subset"]) == (
        "HE SAID 1",
        "103",
        "train",
        "train-clean-100",
    )
    assert rows["116-7-0000"]["split"] == "dev" and rows["121-7-0000"]["split"] == "test"
    assert list(unreadable) == ["116-7-0001"] and "file not found" in unreadable["116-7-0001"]


def test_libritts(tmp_path):
    chapter = tmp_path / "LibriTTS" / "dev-clean" / "84" / "121123"
    for number in range(2):
        name = f"84_121123_000007_00000{number}"
        sound(chapter / f"{name}.wav")
        (chapter / f"{name}.normalized.txt").write_text("Mister Smith.\n")
        (chapter / f"{name}.original.txt").write_text("Mr. Smith.\n")
    (chapter / "84_121123.trans.tsv").write_text("unused")
    taken, rows, _ = scanned(tmp_path / "LibriTTS", tmp_path)
    row = rows["84_121123_000007_000001"]
    assert taken == "libritts" and len(rows) == 2
    assert (row["text"], row["original_text"]) == ("Mister Smith.", "Mr. Smith.")
    assert (row["speaker"], row["split"]) == ("84", "dev")


def test_musdb18(tmp_path):
    root, validated = tmp_path / "musdb18hq", sorted(MUSDB18_VALIDATION)[0]
    for split, track in (("train", "A Band - A Song"), ("train", validated), ("test", "B - Ö")):
        for stem in ("mixture", "vocals", "drums", "bass", "other"):
            sound(root / split / track / f"{stem}.wav")
    taken, rows, _ = scanned(root, tmp_path)
    assert taken == "musdb18" and len(rows) == 3 and len(MUSDB18_VALIDATION) == 14
    assert rows["train/A Band - A Song"]["split"] == "train" and rows["test/B - Ö"]["split"] == "test"
    assert rows[f"train/{validated}"]["split"] == "dev"
    assert rows["test/B - Ö"]["stems"] == ["bass", "drums", "other", "vocals"]
    assert rows["test/B - Ö"]["audio"].endswith("mixture.wav")


def test_compressed_stems_of_musdb18_are_named(tmp_path):
    (tmp_path / "db" / "train").mkdir(parents=True)
    (tmp_path / "db" / "train" / "A - B.stem.mp4").write_bytes(b"mp4")
    with pytest.raises(XcodecLMError, match=r"A - B\.stem\.mp4.*ffmpeg\nhint: give MUSDB18-HQ"):
        scan_source(tmp_path / "db", tmp_path / "m.jsonl")


# ------------------------------------------------------------------ Kaldi


def kaldi(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", name == "wav_scp")).write_text(text)


def test_kaldi(tmp_path):
    audio = tmp_path / "audio"
    for name in ("one", "two", "three"):
        sound(audio / f"{name}.wav")
    kaldi(
        tmp_path / "data" / "train_clean",
        wav_scp=f"u1 {audio}/one.wav\nu2 ../../audio/two.wav\n",
        text="u1 a word\nu2\n",
        utt2spk="u1 sam\nu2 eve\n",
    )
    kaldi(tmp_path / "data" / "test", wav_scp=f"u3 {audio}/three.wav\nu4 {audio}/four.wav\n")
    taken, rows, unreadable = scanned(tmp_path / "data", tmp_path)
    assert taken == "kaldi" and set(rows) == {"u1", "u2", "u3"} and set(unreadable) == {"u4"}
    assert (rows["u1"]["text"], rows["u1"]["speaker"], rows["u1"]["split"]) == ("a word", "sam", "train")
    assert rows["u2"]["text"] == "" and rows["u3"]["split"] == "test" and "speaker" not in rows["u3"]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_kaldi_segments_are_cut_sample_for_sample(tmp_path, subtype):
    sound(tmp_path / "audio" / "long.wav", 2.0, subtype=subtype)
    kaldi(
        tmp_path / "d",
        wav_scp=f"rec {tmp_path}/audio/long.wav\n",
        text="a/1 first\nb second\n",
        segments="a/1 rec 0.5 1.25\nb rec 1.5 -1\nc rec 3 4\nd gone 0 1\ne rec 0.0 2.0\n",
    )
    _, rows, unreadable = scanned(tmp_path / "d", tmp_path)
    assert set(rows) == {"a/1", "b", "e"} and set(unreadable) == {"c", "d"}
    assert "not within its 2 s" in unreadable["c"] and "'gone'" in unreadable["d"]
    whole, _ = sf.read(tmp_path / "audio" / "long.wav", dtype="float64")
    for name, start, stop in (("a/1", 4000, 10_000), ("b", 12_000, 16_000)):
        part, _ = sf.read(tmp_path / "out" / rows[name]["audio"], dtype="float64")
        np.testing.assert_array_equal(part, whole[start:stop])
    assert rows["a/1"]["text"] == "first" and rows["a/1"]["recording"] == "rec"
    assert rows["e"]["audio"].endswith("long.wav")  # a part that is the whole is not copied


def test_kaldi_pipes_are_refused_and_not_run(tmp_path):
    kaldi(tmp_path / "d", wav_scp=f"u1 touch {tmp_path}/ran; sox x.sph -t wav - |\n")
    with pytest.raises(XcodecLMError, match=r"wav\.scp: 'u1' is a pipe .*not run"):
        scan_source(tmp_path / "d", tmp_path / "m.jsonl")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------ JSON lines


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_with_the_usual_names_of_others(tmp_path):
    sound(tmp_path / "a" / "x.wav", 1.0)
    sound(tmp_path / "a" / "y.wav", 1.0)
    source = lines(
        tmp_path / "list.json",
        {"audio_filepath": "a/x.wav", "duration": 9.9, "transcript": "hello", "speaker_id": 7, "extra": [1]},
        {"audio_filepath": str(tmp_path / "a" / "y.wav"), "subset": "validation", "category": "dog"},
        {"audio_filepath": "a/x.wav", "offset": 0.25, "duration": 0.5, "text": "part"},
    )
    taken, rows, _ = scanned(source, tmp_path)
    assert taken == "jsonl" and len(rows) == 3
    assert (rows["a/x"]["text"], rows["a/x"]["speaker"], rows["a/x"]["extra"]) == ("hello", 7, [1])
    assert rows["a/x"]["duration"] == 1.0  # that of the file
    (other,) = (row for row in rows.values() if row.get("label") == "dog")
    assert other["split"] == "dev"
    assert rows["a/x@0.25"]["duration"] == 0.5 and rows["a/x@0.25"]["text"] == "part"


def test_jsonl_with_names_that_are_told(tmp_path):
    sound(tmp_path / "x.wav")
    source = lines(tmp_path / "list.jsonl", {"where": "x.wav", "words": "hello", "text": "raw", "work": "op. 1"})
    _, rows, _ = scanned(source, tmp_path, keys={"audio": "where", "text": "words", "piece": "work"})
    assert rows["x"]["text"] == "hello" and rows["x"]["piece"] == "op. 1" and "words" not in rows["x"]
    with pytest.raises(UsageError, match=r"line 1 has no key 'file'; it has where"):
        scan_source(source, tmp_path / "m.jsonl", keys={"audio": "file"})
    with pytest.raises(XcodecLMError, match=r"line 1 has no path of audio; its keys are where.*\n.*--keys audio="):
        scan_source(source, tmp_path / "m.jsonl")


@pytest.mark.parametrize("text", ["[1]\n", "{'a': 1}\n", '{\n"audio": "x.wav"}\n'])
def test_what_is_no_json_lines_is_refused(tmp_path, text):
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(XcodecLMError, match="line 1 is not JSON of its own"):
        scan_source(tmp_path / "list.jsonl", tmp_path / "m.jsonl")


# ------------------------------------------------------------------ Hugging Face datasets


class Audio:
    def __init__(self, decode=True):
        self.decode = decode


class ClassLabel:
    def int2str(self, value):
        return ("cat", "dog")[value]


class Table(list):
    """As much of datasets.Dataset as is used."""

    def __init__(self, rows, **features):
        super().__init__(rows)
        self.features = features

    def cast_column(self, name, kind):
        assert not kind.decode
        return Table(self, **self.features | {name: kind})


@pytest.fixture
def fake_datasets(tmp_path, monkeypatch):
    """A module `datasets` that knows one dataset, org/set with the configuration small."""
    sound(tmp_path / "there.wav", seed=1)
    sound(tmp_path / "inside.flac", seed=2)
    inside = (tmp_path / "inside.flac").read_bytes()
    features = {"audio": Audio(), "kind": ClassLabel(), "sentence": None}
    train = Table(
        [
            {"audio": {"path": str(tmp_path / "there.wav"), "bytes": None}, "kind": 1, "sentence": "hi"},
            {"audio": {"path": None, "bytes": inside}, "kind": 0, "sentence": ""},
            {"audio": None, "kind": 0, "sentence": "no audio"},
        ],
        **features,
    )
    validation = Table([{"audio": {"path": "lost.flac", "bytes": inside}, "kind": 0, "sentence": "b"}], **features)

    class Module:
        Audio, ClassLabel = Audio, ClassLabel

        @staticmethod
        def load_dataset(name, config):
            if (name, config) != ("org/set", "small"):
                raise ValueError("BuilderConfig not found")
            return {"train": train, "validation": validation}

        @staticmethod
        def load_from_disk(path):
            return train

    Module.Audio, Module.ClassLabel = Audio, ClassLabel
    monkeypatch.setitem(sys.modules, "datasets", Module)
    return inside


def test_datasets_by_name(tmp_path, fake_datasets):
    _, rows, unreadable = scanned("org/set:small", tmp_path, format="datasets")
    assert set(rows) == {"train-000000", "train-000001", "validation-000000"}
    assert rows["train-000000"]["text"] == "hi" and rows["train-000000"]["audio"].endswith("there.wav")
    assert rows["train-000000"]["split"] == "train" and rows["validation-000000"]["split"] == "dev"
    assert rows["train-000000"]["kind"] == "dog"
    assert (tmp_path / "out" / rows["train-000001"]["audio"]).read_bytes() == fake_datasets
    assert unreadable == {"train-000002": "train-000002: the row has no audio"}
    with pytest.raises(XcodecLMError, match="org/other cannot be loaded: ValueError: BuilderConfig not found"):
        scan_source("org/other", tmp_path / "m.jsonl", format="datasets")


def test_datasets_from_a_folder(tmp_path, fake_datasets):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    taken, rows, _ = scanned(tmp_path / "saved", tmp_path)
    assert taken == "datasets" and set(rows) == {"train-000000", "train-000001"}


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(XcodecLMError, match=r'pip install "xcodec-lm\[datasets\]"'):
        scan_source("org/set", tmp_path / "m.jsonl", format="datasets")


# ------------------------------------------------------------------ what all share


def test_plain_folders_stay_what_they_were(tmp_path):
    for index in range(3):
        sound(tmp_path / "in" / f"{index}.wav")
    taken, rows, _ = scanned(tmp_path / "in", tmp_path)
    assert taken == "folder" and set(rows) == {"0", "1", "2"}


def test_shares_go_by_speaker_where_a_corpus_has_no_splits(tmp_path):
    sound(tmp_path / "x.wav")
    rows = [{"id": f"u{i}", "audio": "x.wav", "speaker": f"s{i % 40}"} for i in range(200)]
    source = lines(tmp_path / "list.jsonl", *rows)
    _, found, _ = scanned(source, tmp_path, dev=0.2, test=0.2)
    by_speaker = {}
    for row in found.values():
        by_speaker.setdefault(row["speaker"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_speaker.values())
    assert {row["split"] for row in found.values()} == {"train", "dev", "test"}
    _, found, _ = scanned(source, tmp_path, dev=0, test=0)
    assert all("split" not in row for row in found.values())


def test_refuses_what_cannot_become_a_manifest(tmp_path):
    source = lines(tmp_path / "list.jsonl", {"id": "a", "audio": "x.wav"}, {"id": "a", "audio": "x.wav"})
    with pytest.raises(XcodecLMError, match="1 ids are used twice, such as 'a'"):
        scan_source(source, tmp_path / "m.jsonl")
    with pytest.raises(XcodecLMError, match=r"none of 1 recordings can be used: .*file not found"):
        scan_source(lines(tmp_path / "one.jsonl", {"audio": "x.wav"}), tmp_path / "m.jsonl")
    with pytest.raises(UsageError, match="would overwrite"):
        scan_source(source, source)
    with pytest.raises(UsageError, match="--keys does not fit"):
        scan_source(tmp_path, tmp_path / "m.jsonl", format="folder", keys={"audio": "x"})
    with pytest.raises(XcodecLMError, match=r"no file and no folder.*\n.*--format datasets"):
        detect(tmp_path / "nothing")
    with pytest.raises(XcodecLMError, match="none of 0"):
        collect([], tmp_path, tmp_path / "m.jsonl", 0, 0)


def test_the_command_says_which_format_it_took(tmp_path, capsys):
    sound(tmp_path / "x.wav")
    source = lines(tmp_path / "list.jsonl", {"where": "x.wav"}, {"where": "y.wav"})
    result, partial = data_scan(source, keys=("audio=where",))
    assert result.data["format"] == "jsonl" and result.data["recordings"] == 1
    assert (tmp_path / "list.manifest.jsonl").is_file() and partial is not None and partial.exit_code == 3
    assert "was read as jsonl" in capsys.readouterr().err
    with pytest.raises(UsageError, match="OURS=THEIRS"):
        data_scan(source, keys=("where",))
    with pytest.raises(UsageError, match="a place for its manifest"):
        data_scan(tmp_path / "org" / "set", format="datasets")
