"""Captioned sound as it is published: AudioCaps, WavCaps, captions beside recordings, JSON lines."""

import json

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.sources import detect, scan_source

RATE = 8000


def sound(path, seconds=0.25):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.1 * np.sin(np.arange(round(seconds * RATE))), RATE)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def scanned(source, tmp_path, **options):
    taken, found = scan_source(source, tmp_path / "out" / "m.jsonl", **options)
    clips = read_manifest(found.manifest)
    assert all(clip.path.is_file() for clip in clips)
    return taken, {clip.id: clip.row for clip in clips}, found


def audiocaps(root, lists=""):
    head = "audiocap_id,youtube_id,start_time,caption\n"
    write(root / lists / "train.csv", head + "1,r1nicOVtvkQ,130,A woman talks nearby as water pours\n"
          '2,-UDGBjjwyaQ,20,"Clanging, and ""clanking"""\n3,gone1234567,0,A bell\n4,also_gone12,5,A dog\n')  # fmt: skip
    write(root / lists / "val.csv", head + "5,valvalvalva,30,A cat\n")
    write(root / lists / "test.csv", head + "".join(f"{n},tttttttttt1,40,Rain {n % 3}\n" for n in range(10, 15)))


@pytest.mark.parametrize("lists", ["", "dataset"])
def test_audiocaps(tmp_path, lists):
    root = tmp_path / "AudioCaps"
    audiocaps(root, lists)
    for name in ("train/r1nicOVtvkQ_130", "train/-UDGBjjwyaQ", "val/Yvalvalvalva", "test/12"):
        sound(root / "audio" / f"{name}.wav")
    taken, rows, found = scanned(root, tmp_path)
    assert taken == "audiocaps" and found.splits == {"train": 2, "dev": 1, "test": 1}
    assert set(rows) == {"r1nicOVtvkQ_130", "-UDGBjjwyaQ_20", "valvalvalva_30", "tttttttttt1_40"}
    assert rows["-UDGBjjwyaQ_20"]["caption"] == 'Clanging, and "clanking"' and "captions" not in rows["-UDGBjjwyaQ_20"]
    test = rows["tttttttttt1_40"]
    assert (test["caption"], test["captions"], test["recording"]) == ("Rain 1", ["Rain 1", "Rain 2", "Rain 0"],
                                                                     "youtube_tttttttttt1")  # fmt: skip
    assert found.missing == ["gone1234567_0", "also_gone12_5"]
    assert any("the audio of 2 of 6 recordings is not there" in note for note in found.notes)
    listed = [json.loads(line) for line in found.missing_list.read_text().splitlines()]
    assert [row["caption"] for row in listed] == ["A bell", "A dog"]


def test_one_list_alone_and_half_of_the_audio_missing_is_no_failure(cli, tmp_path):
    audiocaps(tmp_path / "ac")
    for name in ("r1nicOVtvkQ", "-UDGBjjwyaQ"):
        sound(tmp_path / "ac" / "wavs" / f"{name}.wav")
    code, out, err = cli("data", "scan", tmp_path / "ac" / "train.csv", "-o", tmp_path / "m.jsonl", "--json")
    data = json.loads(out)
    assert code == 0 and data["format"] == "audiocaps" and data["recordings"] == 2 and len(data["missing"]) == 2
    assert "m-missing.jsonl" in err and data["unreadable"] == {}
    for name in ("gone1234567", "also_gone12"):
        sound(tmp_path / "ac" / "wavs" / f"{name}.wav")
    assert cli("data", "scan", tmp_path / "ac" / "train.csv", "-o", tmp_path / "m.jsonl")[0] == 0
    assert not (tmp_path / "m-missing.jsonl").exists()  # the list of an earlier scan does not stay


def test_audiocaps_without_any_audio_or_with_a_broken_list(tmp_path):
    audiocaps(tmp_path / "ac")
    with pytest.raises(XcodecLMError, match="none of the 6 recordings"):
        scan_source(tmp_path / "ac", tmp_path / "m.jsonl")
    write(tmp_path / "ac" / "val.csv", "audiocap_id,youtube_id,start_time,caption\n5,abc,1,\n")
    with pytest.raises(XcodecLMError, match=r"val\.csv line 2"):
        scan_source(tmp_path / "ac", tmp_path / "m.jsonl")
    with pytest.raises(XcodecLMError, match="has no list of AudioCaps"):
        scan_source(tmp_path, tmp_path / "m.jsonl", format="audiocaps")


def wavcaps(root):
    rows = {
        "FreeSound/fsd_final.json": {"num_captions_per_audio": 1, "data": [
            {"id": "2219", "caption": "A door closes.", "duration": 99.0, "title": "Door", "tags": ["a"]},
            {"id": "180913", "caption": "Rain.", "duration": 3.0, "audio": "wav_path"}]},
        "FreeSound/fsd_final_2s.json": {"data": [{"id": "1", "caption": "read once"}]},
        "SoundBible/sb_final.json": [{"id": "2219", "caption": "An airplane is landing.", "description": "long"}],
        "AudioSet_SL/as_final.json": {"data": [{"id": "Yb0RFKhbpFJA.wav", "caption": "Wind.", "duration": 10.0}]},
        "BBC_Sound_Effects/bbc_final.json": {"data": [{"id": "NHU05104142", "caption": "Birds."}]},
        "blacklist/blacklist_exclude_all_ac.json": {"FreeSound": ["1"]},
    }  # fmt: skip
    for name, content in rows.items():
        write(root / "json_files" / name, json.dumps(content))


def test_wavcaps(tmp_path):
    root = tmp_path / "WavCaps"
    wavcaps(root)
    for name in ("SoundBible_flac/2219.flac", "FreeSound_flac/180913.flac", "AudioSet_SL_flac/Yb0RFKhbpFJA.flac"):
        sound(root / "waveforms" / name)
    taken, rows, found = scanned(root, tmp_path, dev=0, test=0)
    assert taken == "wavcaps" and set(rows) == {"SoundBible/2219", "FreeSound/180913", "AudioSet_SL/Yb0RFKhbpFJA"}
    row = rows["SoundBible/2219"]
    assert (row["caption"], row["source"], row["duration"]) == ("An airplane is landing.", "WavCaps/SoundBible", 0.25)
    assert rows["FreeSound/180913"]["recording"] == "freesound_180913"
    # the file of SoundBible's 2219 does not stand for FreeSound's
    assert sorted(found.missing) == ["BBC_Sound_Effects/NHU05104142", "FreeSound/2219"]


def test_one_file_of_wavcaps_finds_the_audio_above_it(tmp_path):
    wavcaps(tmp_path / "w")
    sound(tmp_path / "w" / "audio" / "FreeSound" / "2219.wav")
    place = tmp_path / "w" / "json_files" / "FreeSound" / "fsd_final.json"
    taken, rows, _ = scanned(place, tmp_path)
    assert taken == "wavcaps" and rows["FreeSound/2219"]["title"] == "Door" and rows["FreeSound/2219"]["tags"] == ["a"]
    write(place, "version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(XcodecLMError, match="cannot be read as JSON"):
        scan_source(place, tmp_path / "m.jsonl")
    write(place, '{"data": {"a": 1}}')
    with pytest.raises(XcodecLMError, match="no list of WavCaps"):
        scan_source(place, tmp_path / "m.jsonl")


def test_captions_beside_recordings(tmp_path):
    root = tmp_path / "mine"
    for name in ("dog", "deep/rain", "silent"):
        sound(root / f"{name}.wav")
    write(root / "dog.txt", "a dog barks\n\nbarking  of a dog\na dog barks\n")
    write(root / "deep" / "rain.txt", "rain")
    _, rows, _ = scanned(root, tmp_path, format="captions", dev=0, test=0)
    assert rows["dog"]["caption"] == "a dog barks" and rows["dog"]["captions"] == ["a dog barks", "barking of a dog"]
    assert rows["deep/rain"]["caption"] == "rain" and "caption" not in rows["silent"]
    assert detect(root) == "folder" and "text" not in rows["dog"]  # a .txt holds what is spoken, unless it is said
    for path in root.rglob("*.txt"):
        path.unlink()
    with pytest.raises(XcodecLMError, match=r"no recording has a \.txt"):
        scan_source(root, tmp_path / "m.jsonl", format="captions")


def test_json_lines_keep_their_captions(tmp_path):
    sound(tmp_path / "in" / "a.wav")
    rows = [{"id": "a", "path": "a.wav", "description": "a dog", "captions": ["a dog", "dogs"], "category": "dog",
             "recording": "r1"}]  # fmt: skip
    write(tmp_path / "in" / "list.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    taken, found, _ = scanned(tmp_path / "in" / "list.jsonl", tmp_path, dev=0, test=0)
    row = found["a"]
    assert (taken, row["caption"], row["captions"], row["label"]) == ("jsonl", "a dog", ["a dog", "dogs"], "dog")
    assert row["recording"] == "r1"
