"""The 12 data sets of ARCH in their published layouts: rows, splits, what is missing, and the lockfile."""

import json

import pytest

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.arch import leaking_folds
from xcodec_lm.tasks.eval.arch_readers import AUDIOMNIST_FOLDS
from xcodec_lm.tasks.eval.arch_sets import SETS, find_root, lock, make_folds, read_set

# name: rows, folds, labels, and the sizes of the first fold's parts
LAYOUTS = {
    "esc50": (60, 5, 3, (38, 10, 12)),
    "us8k": (60, 10, 2, (43, 11, 6)),
    "fsd50k": (30, 1, 3, (16, 4, 10)),
    "vivae": (66, 11, 3, (54, 6, 6)),
    "fma_small": (63, 1, 2, (50, 6, 7)),
    "mtt": (27, 1, 4, None),
    "irmas": (78, 1, 11, (53, 13, 12)),
    "medley_solos": (24, 1, 3, (12, 6, 6)),
    "ravdess": (48, 1, 8, (31, 8, 9)),
    "audiomnist": (60, 5, 3, (36, 12, 12)),
    "slurp": (24, 1, 2, (12, 6, 6)),
    "emovo": (18, 3, 2, (11, 1, 6)),
}


@pytest.mark.parametrize("name", SETS)
def test_published_layouts_are_read(name, tmp_path, arch_tree):
    arch_tree(name, tmp_path)
    data = read_set(name, tmp_path)
    rows, folds, labels, first = LAYOUTS[name]
    assert (len(data.rows), len(data.folds), data.missing) == (rows, folds, [])
    assert len({label for row in data.rows for label in row.labels}) == labels
    assert [row.id for row in data.rows] == sorted({row.id for row in data.rows})
    for fold in data.folds:
        together = [*fold.train, *fold.valid, *fold.test]
        assert len(set(together)) == len(together)  # no row in two parts
    if first is not None:
        fold = data.folds[0]
        assert (len(fold.train), len(fold.valid), len(fold.test)) == first
    if len(data.folds) > 1:  # every row is tested once
        assert sorted(index for fold in data.folds for index in fold.test) == list(range(len(data.rows)))
    assert all(len(row.labels) == 1 for row in data.rows) or data.info.multi


@pytest.mark.parametrize("name", ["vivae", "audiomnist", "emovo", "medley_solos"])
def test_speakers_and_songs_do_not_leak(name, tmp_path, arch_tree):
    arch_tree(name, tmp_path)
    data = read_set(name, tmp_path)
    unit = [row.unit for row in data.rows]
    for fold in data.folds:
        tested, trained = {unit[i] for i in fold.test}, {unit[i] for i in fold.train}
        if name != "medley_solos":
            assert not tested & trained
        if data.info.rule == "folds, next validates":
            assert not {unit[i] for i in fold.valid} & (tested | trained)
    assert (leaking_folds(data) == []) == (name != "medley_solos")  # the made tree's songs are in several subsets


def test_random_splits_that_leak_say_so(tmp_path, arch_tree):
    arch_tree("ravdess", tmp_path)
    data = read_set("ravdess", tmp_path)
    assert leaking_folds(data) == [1] and "actors are in several parts" in data.info.note


def test_folds_of_audiomnist_hold_each_speaker_once():
    assert sorted(speaker for fold in AUDIOMNIST_FOLDS for speaker in fold) == list(range(1, 61))


def test_splits_do_not_depend_on_the_files_that_are_there(tmp_path, arch_tree):
    arch_tree("esc50", tmp_path)
    whole = read_set("esc50", tmp_path)
    gone = [tmp_path / "audio" / "1-0-A-0.wav", tmp_path / "audio" / "3-7-A-1.wav"]
    for path in gone:
        path.unlink()
    part = read_set("esc50", tmp_path)
    assert part.missing == ["audio/1-0-A-0.wav", "audio/3-7-A-1.wav"] and part.folds == whole.folds
    assert make_folds(whole.rows, "folds", seed=1) != whole.folds


def test_splits_do_not_depend_on_the_order_of_rows(tmp_path, arch_tree):
    arch_tree("esc50", tmp_path)
    rows = read_set("esc50", tmp_path).rows
    there = [{rows[i].id for i in fold.valid} for fold in make_folds(rows, "folds")]
    back = [{rows[::-1][i].id for i in fold.valid} for fold in make_folds(rows[::-1], "folds")]
    assert there == back


def test_untagged_clips_are_left_out(tmp_path, arch_tree):
    arch_tree("mtt", tmp_path)
    data = read_set("mtt", tmp_path)
    assert not any(row.id.endswith("-10-title-0-29.mp3") for row in data.rows)
    assert {row.part for row in data.rows} == {"train", "valid", "test"}


def test_lockfile_keeps_splits_and_refuses_others(tmp_path, arch_tree):
    arch_tree("emovo", tmp_path / "a")
    arch_tree("vivae", tmp_path / "b")
    emovo, path = read_set("emovo", tmp_path / "a"), tmp_path / "out" / "splits.json"
    lock([emovo], path)
    before = json.loads(path.read_text())
    lock([emovo, read_set("vivae", tmp_path / "b")], path)
    after = json.loads(path.read_text())
    assert set(after["sets"]) == {"emovo", "vivae"} and after["sets"]["emovo"] == before["sets"]["emovo"]
    letters = before["sets"]["emovo"]["folds"][0]
    assert letters.count("x") == 6 and letters.count("v") == 1 and letters.count("t") == 11
    with pytest.raises(XcodecLMError, match="emovo: folds differ from those in"):
        lock([read_set("emovo", tmp_path / "a", seed=7)], path)
    next((tmp_path / "a").glob("f1/*.wav")).unlink()  # without a list of its own, a file that is gone is another set
    with pytest.raises(XcodecLMError, match="emovo: ids differ"):
        lock([read_set("emovo", tmp_path / "a")], path)
    path.write_text("{")
    with pytest.raises(XcodecLMError, match="no lockfile"):
        lock([emovo], path)


def test_roots_are_found_under_their_usual_names(tmp_path):
    (tmp_path / "ESC-50-master").mkdir()
    assert find_root(tmp_path, "esc50") == tmp_path / "ESC-50-master" and find_root(tmp_path, "us8k") is None


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("esc50", lambda r: (r / "meta" / "esc50.csv").unlink(), "esc50.csv is missing"),
        ("esc50", lambda r: (r / "meta" / "esc50.csv").write_text("a,b\n1,2\n"), "column 'filename'"),
        (
            "fsd50k",
            lambda r: (r / "FSD50K.ground_truth" / "eval.csv").write_text(""),
            "no rows with the column 'fname'",
        ),
        ("irmas", lambda r: next(r.glob("IRMAS-Testing*/*/*.txt")).unlink(), "is missing or cannot be read"),
        ("slurp", lambda r: (r / "dataset" / "slurp" / "test.jsonl").write_text("{}\n"), "test.jsonl line 1"),
        ("fma_small", lambda r: (r / "fma_metadata" / "tracks.csv").write_text("a\nb\nc\n"), "has no columns"),
        ("mtt", lambda r: (r / "val_gt_mtt.tsv").write_text(""), "nothing to valid"),
    ],
)
def test_damaged_lists_are_refused(name, spoil, message, tmp_path, arch_tree):
    arch_tree(name, tmp_path)
    spoil(tmp_path)
    with pytest.raises(XcodecLMError, match=message):
        read_set(name, tmp_path)


def test_an_empty_folder_and_one_without_any_audio_are_refused(tmp_path, arch_tree):
    with pytest.raises(XcodecLMError, match="no recording of this data set"):
        read_set("emovo", tmp_path)
    arch_tree("esc50", tmp_path)
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    with pytest.raises(XcodecLMError, match="no audio is there"):
        read_set("esc50", tmp_path)
