"""Speech corpora with lists, texts beside recordings, splits by speaker, and what is left out of manifests."""

import json

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.data import data_scan
from xcodec_lm.tasks.data.scan import scan
from xcodec_lm.tasks.data.scan_result import Wanted
from xcodec_lm.tasks.data.sources import detect, scan_source
from xcodec_lm.tasks.data.splits import assign_splits

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


# ------------------------------------------------------------------ LJSpeech, VCTK, Common Voice


@pytest.mark.parametrize("place", [".", ".."])
def test_ljspeech(tmp_path, place):
    root = tmp_path / "in" / "LJSpeech-1.1"
    names = [f"LJ001-{number:04d}" for number in range(40)]
    for name in names:
        sound(root / "wavs" / f"{name}.wav")
    rows = [f"{name}|In 1455, \"so\".|In fourteen, \"so\"." for name in names[:-2]]  # fmt: skip
    rows += [f"{names[-2]}|only one form", f"{names[-1]}||", "LJ009-0001|lost|lost"]
    write(root / "metadata.csv", "\n".join(rows) + "\n")
    taken, found, result = scanned(root / place, tmp_path, dev=0.2, test=0.2)
    assert taken == "ljspeech" and set(found) == set(names)
    row = found[names[0]]
    assert (row["text"], row["raw_text"], row["speaker"]) == ('In fourteen, "so".', 'In 1455, "so".', "LJSpeech")
    assert found[names[-2]]["text"] == "only one form"
    assert list(result.unreadable) == ["LJ009-0001"] and result.without_text == [names[-1]]
    # one voice: splits go by recording, and that is said
    assert set(result.splits) == {"train", "dev", "test"}
    assert any("one speaker, LJSpeech" in note for note in result.notes)
    write(root / "metadata.csv", "LJ001-0001 without a bar\n")
    with pytest.raises(XcodecLMError, match=r"metadata\.csv line 1: no NAME\|text"):
        scan_source(root, tmp_path / "m.jsonl")


def vctk(root, speakers, utterances=2):
    for speaker in speakers:
        for number in range(1, utterances + 1):
            for mic in ("mic1", "mic2"):
                sound(root / "wav48_silence_trimmed" / speaker / f"{speaker}_{number:03d}_{mic}.flac")
            write(root / "txt" / speaker / f"{speaker}_{number:03d}.txt", f" Please call\nStella {number}. \n")
    write(root / "speaker-info.txt", "ID  AGE  GENDER  ACCENTS  REGION\np225  23  F  English  Southern England\n")


@pytest.mark.parametrize("mic", ["mic1", "mic2"])
def test_vctk(tmp_path, mic):
    root = tmp_path / "VCTK-Corpus-0.92"
    vctk(root, [f"p{number}" for number in range(225, 265)])
    (root / "txt" / "p226" / "p226_001.txt").unlink()
    (root / "wav48_silence_trimmed" / "p227" / "p227_001_mic2.flac").unlink()
    taken, rows, result = scanned(root.parent, tmp_path, dev=0.2, test=0.2, microphone=mic)
    assert taken == "vctk" and len(rows) == 80 - (mic == "mic2")
    row = rows["p225_002"]
    assert (row["text"], row["speaker"], row["gender"]) == ("Please call Stella 2.", "p225", "F")
    assert row["audio"].endswith(f"p225_002_{mic}.flac")
    assert result.without_text == ["p226_001"] and "text" not in rows["p226_001"]
    by_speaker = {}
    for row in rows.values():
        by_speaker.setdefault(row["speaker"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_speaker.values())
    assert set(result.splits) == {"train", "dev", "test"}


def test_vctk_before_0_92_and_without_the_microphone(tmp_path):
    old = tmp_path / "old"
    sound(old / "wav48" / "p225" / "p225_001.wav")
    write(old / "txt" / "p225" / "p225_001.txt", "Hello.")
    write(old / "speaker-info.txt", "ID AGE GENDER\n225 23 F\n")
    _, rows, _ = scanned(old, tmp_path)
    assert rows["p225_001"]["text"] == "Hello." and rows["p225_001"]["gender"] == "F"
    new = tmp_path / "new"
    vctk(new, ["p315"], 1)
    (new / "wav48_silence_trimmed" / "p315" / "p315_001_mic2.flac").unlink()
    with pytest.raises(XcodecLMError, match="no recordings of mic2"):
        scan_source(new, tmp_path / "m.jsonl", microphone="mic2")
    with pytest.raises(XcodecLMError, match="no folders txt"):
        scan_source(tmp_path / "old" / "txt", tmp_path / "m.jsonl", format="vctk")


COLUMNS = "client_id\tpath\tsentence\tup_votes\tage\tgender\tlocale"


def common_voice(folder, **lists):
    """Lists of rows (client, number, sentence)."""
    for name, rows in lists.items():
        lines = [COLUMNS]
        for client, number, sentence in rows:
            path = f"common_voice_{folder.name}_{number}.mp3"
            lines.append(f"{client}\t{path}\t{sentence}\t2\t\tfemale\t{folder.name}")
            target = folder / "clips" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            sf.write(target, 0.1 * np.sin(np.arange(4000)), RATE, format="MP3")
        write(folder / f"{name}.tsv", "\n".join(lines) + "\n")


def test_common_voice(tmp_path):
    root = tmp_path / "cv-corpus-17.0-2024-03-15"
    common_voice(
        root / "en",
        train=[("anna", 1, '"""Yes,"" she said."'), ("anna", 2, 'He said "no'), ("bert", 3, "Plain.")],
        dev=[("carl", 4, "")],
        test=[("dora", 5, "It's late."), ("anna", 6, "Leaked.")],
        validated=[("anna", 1, "x")],
    )
    common_voice(root / "de", train=[("emil", 1, "Schön.")])
    taken, rows, result = scanned(root, tmp_path)
    assert taken == "commonvoice" and len(rows) == 7
    row = rows["common_voice_en_1"]
    assert (row["text"], row["speaker"], row["language"], row["split"]) == ('"Yes," she said.', "anna", "en", "train")
    assert row["gender"] == "female" and "age" not in row
    assert rows["common_voice_en_2"]["text"] == 'He said "no' and rows["common_voice_de_1"]["text"] == "Schön."
    assert rows["common_voice_en_4"]["split"] == "dev" and result.without_text == ["common_voice_en_4"]
    assert any("1 speakers in two splits, such as anna" in note for note in result.notes)
    assert detect(root / "en") == "commonvoice"


def test_common_voice_without_splits_is_shared_out_by_speaker(tmp_path):
    rows = [(f"client{number % 30}", number, f"Sentence {number}.") for number in range(90)]
    common_voice(tmp_path / "fr", validated=rows)
    _, found, result = scanned(tmp_path / "fr", tmp_path, dev=0.2, test=0.2)
    assert len(found) == 90 and set(result.splits) == {"train", "dev", "test"}
    splits = {(row["speaker"], row["split"]) for row in found.values()}
    assert len(splits) == 30
    write(tmp_path / "fr" / "validated.tsv", "client_id\tpath\nx\ty.mp3\n")
    with pytest.raises(XcodecLMError, match="no column sentence; it has client_id, path"):
        scan_source(tmp_path / "fr", tmp_path / "m.jsonl")
    write(tmp_path / "fr" / "validated.tsv", f"{COLUMNS}\nx\ty.mp3\n")
    with pytest.raises(XcodecLMError, match="line 2 has 2 of 7 columns"):
        scan_source(tmp_path / "fr", tmp_path / "m.jsonl")


# ------------------------------------------------------------------ texts beside recordings


def test_a_folder_takes_texts_beside_recordings_and_speakers_from_folders(tmp_path):
    for speaker in ("ann", "bob"):
        for number in range(2):
            sound(tmp_path / "in" / speaker / f"{number}.wav")
            write(tmp_path / "in" / speaker / f"{number}.txt", f"  said by\n{speaker} ")
    sound(tmp_path / "in" / "alone.wav")
    write(tmp_path / "in" / "readme.txt", "no text of a recording")
    (tmp_path / "in" / "bob" / "1.txt").write_bytes(b"\xff\xfe\xff")
    found = scan(tmp_path / "in", tmp_path / "m.jsonl", split_by="speaker")
    rows = {row["id"]: row for row in found.rows}
    assert rows["ann/0"]["text"] == "said by ann" and rows["ann/0"]["speaker"] == "ann"
    assert "text" not in rows["alone"] and "speaker" not in rows["alone"]
    assert found.without_text == ["alone", "bob/1"] and found.ignored == 1
    assert any(name.endswith("1.txt") for name in found.unreadable)
    assert rows["ann/0"]["split"] == rows["ann/1"]["split"]
    assert all("speaker" not in row for row in scan(tmp_path / "in", tmp_path / "m.jsonl").rows)


# ------------------------------------------------------------------ splits


def test_splits_keep_speakers_apart_and_follow_what_the_corpus_states():
    many = [(f"u{i}", f"s{i % 50}", None) for i in range(500)]
    splits, notes = assign_splits(many, 0.2, 0.2)
    owners = {}
    for (_, speaker, _), split in zip(many, splits, strict=True):
        owners.setdefault(split, set()).add(speaker)
    assert set(owners) == {"train", "dev", "test"} and sum(map(len, owners.values())) == 50 and notes == []
    # later speakers move no other
    assert assign_splits([*many, ("new", "s99", None)], 0.2, 0.2)[0][:-1] == splits
    # who is in a stated split stays there with all recordings
    stated = [("a", "x", "test"), ("b", "x", None), ("c", "y", None), ("d", "y", None)]
    splits, _ = assign_splits(stated, 0.0, 0.0)
    assert splits == ["test", None, None, None]
    splits, _ = assign_splits(stated, 0.1, 0.1)
    assert splits[:2] == ["test", "test"] and splits[2] == splits[3]


def test_one_speaker_or_none_is_split_by_recording_and_few_are_said():
    alone = [(f"u{i}", "me", None) for i in range(200)]
    unnamed = [(f"u{i}", None, None) for i in range(200)]
    splits, notes = assign_splits(alone, 0.2, 0.2)
    assert set(splits) == {"train", "dev", "test"} and "one speaker, me" in notes[0]
    assert assign_splits(unnamed, 0.2, 0.2) == (splits, [])
    few = [(f"u{i}", f"s{i % 2}", None) for i in range(20)]
    splits, notes = assign_splits(few, 0.001, 0.001)
    assert set(splits) == {"train"}
    assert [note.split(" is empty")[0] for note in notes] == ["dev", "test"]
    assert assign_splits(few, 0, 0) == ([None] * 20, [])
    assert "1 recordings have no speaker" in assign_splits([*few, ("x", None, None)], 0.4, 0.4)[1][0]


# ------------------------------------------------------------------ what is left out


def test_what_is_left_out_is_counted_said_and_listed(tmp_path, capsys):
    for number, seconds in enumerate((0.1, 0.5, 0.5, 1.0, 2.0)):
        sound(tmp_path / "in" / f"{number}.wav", seconds)
        if number != 2:
            write(tmp_path / "in" / f"{number}.txt", "words")
    out = tmp_path / "m.jsonl"
    result, partial = data_scan(tmp_path / "in", out, min_s=0.5, max_s=1.0, need_text=True)
    assert partial is None and result.data["recordings"] == 2
    left_out = {"0": "shorter than 0.5 s", "2": "no text", "4": "longer than 1 s"}
    assert result.data["left_out"] == left_out
    listed = [json.loads(line) for line in (tmp_path / "m-left-out.jsonl").read_text().splitlines()]
    assert {row["id"]: row["why"] for row in listed} == left_out and all(row["audio"] for row in listed)
    said = capsys.readouterr().err
    assert "3 of 5 recordings are left out: 1 shorter than 0.5 s" in said and "m-left-out.jsonl" in said
    # without --need-text the row stays and is named; a list of before is not left lying about
    result, _ = data_scan(tmp_path / "in", out)
    assert result.data["without_text"] == ["2"] and not (tmp_path / "m-left-out.jsonl").exists()
    assert "1 of 5 recordings have no text: 2; --need-text" in capsys.readouterr().err
    with pytest.raises(XcodecLMError, match="none of 5 recordings is left: 5 shorter than 60 s"):
        data_scan(tmp_path / "in", out, min_s=60)


def test_filters_do_not_move_recordings_between_splits(tmp_path):
    for number in range(40):
        sound(tmp_path / "in" / f"{number}.wav", 0.1 + 0.01 * number)
    whole = {row["id"]: row["split"] for row in scan(tmp_path / "in", tmp_path / "a.jsonl", 0.3, 0.3).rows}
    some = scan(tmp_path / "in", tmp_path / "b.jsonl", 0.3, 0.3, wanted=Wanted(min_s=0.3)).rows
    assert len(some) == 20 and all(whole[row["id"]] == row["split"] for row in some)


@pytest.mark.parametrize("limits", [(2.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(UsageError, match="no recording has"):
        Wanted(*limits)
