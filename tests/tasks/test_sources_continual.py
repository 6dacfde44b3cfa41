"""Test lists of zero-shot speech: chosen by length, sorted, the same from the folder as from its manifest."""

import json

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.data import data_continual
from xcodec_lm.tasks.data.continual import make_test_list
from xcodec_lm.tasks.data.sources import scan_source

RATE = 1000
LENGTHS = (3.99, 4.0, 7.3, 10.0, 10.01, 5.5)


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    """Two subsets with three speakers each; the last of test-clean has one utterance of a fitting length."""
    root = tmp_path_factory.mktemp("corpus") / "LibriSpeech"
    for subset, speakers in (("train-clean-100", (1, 2, 3)), ("test-clean", (4, 5, 6))):
        for speaker in speakers:
            chapter = root / subset / str(speaker) / "10"
            chapter.mkdir(parents=True)
            texts = []
            for number, seconds in enumerate(LENGTHS[:2] if speaker == 6 else LENGTHS):
                name = f"{speaker}-10-{number:04d}"
                sf.write(chapter / f"{name}.flac", 0.1 * np.sin(np.arange(round(seconds * RATE))), RATE)
                texts.append(f"{name} WORDS {number}" if (speaker, number) != (5, 5) else name)
            (chapter / f"{speaker}-10.trans.txt").write_text("\n".join(texts) + "\n")
    return root


FITTING = ["4-10-0001", "4-10-0002", "4-10-0003", "4-10-0005", "5-10-0001", "5-10-0002", "5-10-0003", "6-10-0001"]


def test_the_continual_list(librispeech, tmp_path):
    made = make_test_list(librispeech, tmp_path / "list.jsonl")
    clips = read_manifest(made.path)
    assert [clip.id for clip in clips] == FITTING and made.chosen == "subset test-clean"
    assert all(clip.row["prompt_s"] == 3.0 and clip.row["text"] and clip.path.is_file() for clip in clips)
    assert made.left_out["5-10-0005"] == "no text"
    assert set(made.left_out.values()) == {"no text", "shorter than 4 s", "longer than 10 s"}


def test_the_list_is_the_same_from_a_manifest_and_from_the_subset_alone(librispeech, tmp_path):
    scan_source(librispeech, tmp_path / "m.jsonl")
    for setting in ("continual", "cross"):
        texts = []
        for number, source in enumerate((librispeech, librispeech / "test-clean", tmp_path / "m.jsonl")):
            make_test_list(source, tmp_path / f"{setting}{number}.jsonl", setting)
            rows = [json.loads(line) for line in (tmp_path / f"{setting}{number}.jsonl").read_text().splitlines()]
            texts.append([sorted(row.items()) for row in rows])
        assert texts[0] == texts[1] == texts[2]


def test_the_cross_list_takes_another_utterance_of_the_speaker(librispeech, tmp_path):
    made = make_test_list(librispeech, tmp_path / "lists" / "cross.jsonl", "cross")
    rows = {row["id"]: row for row in made.rows}
    assert list(rows) == FITTING[:-1] and made.left_out["6-10-0001"] == "no other utterance of speaker 6"
    for row in rows.values():
        prompt = rows[row["prompt_id"]]
        assert prompt["id"] != row["id"] and prompt["speaker"] == row["speaker"] and "prompt_s" not in row
        assert (row["prompt_text"], row["prompt_audio"]) == (prompt["text"], prompt["audio"])
        assert (tmp_path / "lists" / row["prompt_audio"]).is_file()
        assert row["prompt_duration"] == prompt["duration"]
    # prompts differ: they are not merely a speaker's first
    assert len({row["prompt_id"] for row in rows.values() if row["speaker"] == "4"}) > 1
    # a shorter list keeps the prompts that are still in it
    fewer = make_test_list(librispeech, tmp_path / "fewer.jsonl", "cross", max_s=9.0)
    kept = {row["id"] for row in fewer.rows}
    assert all(
        row["prompt_id"] == rows[row["id"]]["prompt_id"] for row in fewer.rows if rows[row["id"]]["prompt_id"] in kept
    )


def test_other_subsets_and_manifests_without_any(librispeech, tmp_path):
    made = make_test_list(librispeech, tmp_path / "a.jsonl", subset="train-clean-100")
    assert {row["speaker"] for row in made.rows} == {"1", "2", "3"}
    assert {row["split"] for row in make_test_list(librispeech, tmp_path / "b.jsonl", subset="train").rows} == {"train"}
    _, found = scan_source(librispeech, tmp_path / "m.jsonl")
    for keys, chosen in ((("subset",), "split test"), (("subset", "split"), "all recordings")):
        bare = [{key: value for key, value in row.items() if key not in keys} for row in found.rows]
        (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
        assert make_test_list(tmp_path / "bare.jsonl", tmp_path / "c.jsonl").chosen == chosen
    with pytest.raises(UsageError, match=r"no subset 'dev-other'\n.*test, test-clean, train, train-clean-100"):
        make_test_list(librispeech, tmp_path / "d.jsonl", subset="dev-other")


def test_headers_of_other_subsets_are_not_read(librispeech, tmp_path, monkeypatch):
    from xcodec_lm.tasks.data import sources

    read, original = [], sources.read_header
    monkeypatch.setattr(sources, "read_header", lambda path: read.append(path) or original(path))
    make_test_list(librispeech, tmp_path / "list.jsonl")
    assert len(read) == 14 and all("test-clean" in str(path) for path in read)


def test_what_makes_no_list_is_refused(librispeech, tmp_path):
    with pytest.raises(UsageError, match="no setting is called 'both'"):
        make_test_list(librispeech, tmp_path / "a.jsonl", "both")
    with pytest.raises(UsageError, match="a prompt of 4 s leaves nothing"):
        make_test_list(librispeech, tmp_path / "a.jsonl", prompt_s=4.0)
    with pytest.raises(UsageError, match="no utterance for the list among subset test-clean"):
        make_test_list(librispeech, tmp_path / "a.jsonl", min_s=60, max_s=70)
    with pytest.raises(UsageError, match="would overwrite"):
        make_test_list(tmp_path, tmp_path)
    (tmp_path / "plain").mkdir()
    with pytest.raises(XcodecLMError, match=r"layout is known\n.*data scan"):
        make_test_list(tmp_path / "plain", tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_the_command_counts_and_names_what_is_torn(librispeech, tmp_path, capsys):
    result, partial = data_continual(librispeech, tmp_path / "list.jsonl")
    assert partial is None and result.data["utterances"] == len(FITTING) and result.data["speakers"] == 3
    assert f"{len(FITTING)} utterances of 3 speakers" in result.text and "6 left out" in result.text
    torn = librispeech / "test-clean" / "4" / "10" / "4-10-0002.flac"
    whole = torn.read_bytes()
    torn.write_bytes(b"fLaC")
    try:
        result, partial = data_continual(librispeech, tmp_path / "list.jsonl")
    finally:
        torn.write_bytes(whole)
    assert partial is not None and list(result.data["unreadable"]) == ["4-10-0002"]
    assert "4-10-0002" in capsys.readouterr().err
