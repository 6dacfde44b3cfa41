"""`data check` finds what is wrong, names the line, and is silent about what is right."""

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import ManifestError, write_manifest
from xcodec_lm.tasks.data.check import check


@pytest.fixture
def corpus(tmp_path):
    """Makes recordings and a manifest from rows: keyword `wave` gives the samples, the rest goes to the manifest."""

    def make(*rows, name="m.jsonl"):
        written = []
        for index, row in enumerate(rows):
            row = {"id": f"{name}-{index}", "audio": f"{name}-{index}.wav", "duration": 0.1} | row
            wave = row.pop("wave", noise(len(list(tmp_path.iterdir()))))
            if wave is not None:
                sf.write(tmp_path / row["audio"], wave, 16_000, subtype=row.pop("subtype", None))
            written.append(row)
        write_manifest(written, tmp_path / name)
        return tmp_path / name

    return make


def noise(seed=0, n=1600):
    return 0.1 * np.random.default_rng(seed).standard_normal(n)


def test_a_good_manifest_has_no_problems(corpus):
    assert check(corpus({"split": "train"}, {"split": "dev", "speaker": "x"}, {"speaker": None})) == []


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"wave": None}, "file not found"),
        ({"wave": noise(n=0)}, "empty"),
        ({"wave": np.where(np.arange(1600) == 7, np.nan, 0.1), "subtype": "FLOAT"}, "sample 7 is nan"),
        ({"wave": 1000 * noise(), "subtype": "FLOAT"}, "beyond 1.5"),
        ({"duration": 0.16}, "but the file has 0.100 s"),
    ],
)
def test_each_fault_of_a_recording_is_an_error_of_its_line(corpus, row, what):
    (problem,) = check(corpus({}, row, {}))
    assert (problem.line, problem.id, problem.kind) == (2, "m.jsonl-1", "error")
    assert what in problem.what
    assert f"m.jsonl line 2 (m.jsonl-1): {problem.what}" in str(problem)


def test_a_duration_within_the_tolerance_is_no_problem(corpus):
    assert check(corpus({"duration": 0.149})) == []


def test_a_text_file_named_wav_is_unreadable(corpus, tmp_path):
    manifest = corpus({})
    (tmp_path / "m.jsonl-0.wav").write_text("hello")
    assert "not readable as audio" in check(manifest)[0].what


def test_a_truncated_flac_is_found_although_its_header_is_whole(corpus, tmp_path):
    manifest = corpus({"audio": "a.flac", "wave": noise(n=16_000), "duration": 1.0})
    assert check(manifest) == []
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    assert sf.info(tmp_path / "a.flac").frames == 16_000
    (problem,) = check(manifest)
    assert problem.kind == "error"


def test_bad_lines_are_listed_and_the_rest_is_checked_all_the_same(corpus, tmp_path):
    path = corpus({}, {"wave": None})
    path.write_text("{oops\n" + path.read_text() + '{"id": "m.jsonl-0", "audio": "x.wav", "duration": 1}\n')
    problems = check(path)
    assert [problem.line for problem in problems] == [1, 3, 4]
    assert "not JSON" in problems[0].what
    assert "file not found" in problems[1].what
    assert "duplicate id" in problems[2].what


def test_the_same_audio_in_two_splits_is_an_error_even_in_another_format(corpus):
    wave = np.round(noise() * 32768) / 32768
    manifest = corpus({"wave": wave, "split": "train"}, {"wave": wave, "audio": "b.flac", "split": "test"})
    (problem,) = check(manifest)
    assert (problem.line, problem.kind) == (2, "error")
    assert "test has the same audio as train: 'm.jsonl-0' in line 1" in problem.what


def test_the_same_audio_within_a_split_is_a_warning(corpus):
    (problem,) = check(corpus({"wave": noise()}, {"wave": noise()}))
    assert (problem.line, problem.kind) == (2, "warning")


def test_digital_silence_is_a_warning(corpus):
    problems = check(corpus({"wave": np.zeros(1600)}, {"wave": np.zeros(1600), "split": "test"}))
    assert [(problem.line, problem.kind) for problem in problems] == [(1, "warning"), (2, "warning")]
    assert all("silence" in problem.what for problem in problems)


@pytest.mark.parametrize("key", ["speaker", "piece", "recording"])
def test_a_group_in_two_splits_is_one_warning(corpus, key):
    rows = [{key: "x", "split": split} for split in ("train", "train", "test", "test")]
    (problem,) = check(corpus(*rows, {key: "y", "split": "test"}))
    assert (problem.line, problem.kind) == (3, "warning")
    assert f"{key} 'x' is in test and in train" in problem.what


def test_manifests_are_checked_against_each_other(corpus):
    first = corpus({"id": "same", "wave": noise(), "split": "train", "speaker": "x"}, name="1.jsonl")
    second = corpus({"id": "same", "wave": noise(), "split": "test", "speaker": "x"}, name="2.jsonl")
    assert check(first) == check(second) == []
    kinds = [(problem.file, problem.what.split()[0], problem.kind) for problem in check(first, second)]
    assert kinds == [(second, "duplicate", "error"), (second, "test", "error"), (second, "speaker", "warning")]


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="file not found"):
        check(tmp_path / "none.jsonl")
