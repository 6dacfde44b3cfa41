"""Manifests: what is read, what is refused, and the scan that writes them."""

import json
import os

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.codec.clips import ManifestError, read_manifest, read_manifests, relative_audio, write_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data.scan import scan

ROW = {"id": "a", "audio": "a.wav", "duration": 1.0}


def tone(path, duration_s=0.1, rate=16_000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * np.sin(np.arange(round(duration_s * rate)) / 10)
    sf.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path


def manifest_of(tmp_path, *lines, name="m.jsonl"):
    path = tmp_path / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_reading_keeps_unknown_keys_and_makes_paths_absolute(tmp_path, monkeypatch):
    manifest_of(tmp_path, ROW | {"split": "dev", "mood": "calm"})
    monkeypatch.chdir(tmp_path)
    (clip,) = read_manifest("m.jsonl")
    assert (clip.id, clip.path, clip.duration_s, clip.split) == ("a", tmp_path / "a.wav", 1.0, "dev")
    assert clip.row["mood"] == "calm"


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
                "audio": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
                "duration": st.floats(1e-3, 1e6),
                "split": st.sampled_from(["train", "dev", "test", None]),
                "text": st.text(st.characters(exclude_categories=["Cs"])),
            }
        ),
        min_size=1,
        unique_by=lambda row: row["id"],
    )
)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read_back_whatever_the_text(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    write_manifest(rows, path)
    clips = read_manifest(path)
    assert [clip.row for clip in clips] == rows
    assert [clip.path for clip in clips] == [path.parent / row["audio"] for row in rows]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ({"audio": "a.wav", "duration": 1}, "no `id`"),
        (ROW | {"id": 7}, "`id` is 7"),
        ({"id": "b", "duration": 1}, "no `audio`"),
        ({"id": "b", "audio": "b.wav"}, "`duration` is None"),
        (ROW | {"id": "b", "duration": 0}, "`duration` is 0"),
        (ROW | {"id": "b", "duration": True}, "`duration` is True"),
        ('{"id": "b", "audio": "b.wav", "duration": NaN}', "`duration` is nan"),
        (ROW | {"id": "b", "split": "valid"}, "unknown `split` 'valid'; known are train, dev, test"),
        (ROW, "duplicate id, first used in line 1"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_hint(tmp_path, line, what):
    path = manifest_of(tmp_path, ROW, "", line)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert caught.value.message.startswith(f"{path} line 3")
    assert what in caught.value.message
    assert f"xcodec-lm data check {path}" in caught.value.hint
    assert caught.value.exit_code == 1


def test_files_that_are_no_manifests_are_refused(tmp_path):
    with pytest.raises(ManifestError, match="file not found"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="cannot read"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="has no rows"):
        read_manifest(manifest_of(tmp_path, ""))
    with pytest.raises(ManifestError, match="UTF-8"):
        read_manifest(tone(tmp_path / "a.wav"))


def test_a_byte_order_mark_as_some_editors_write_it_is_no_fault(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps(ROW), encoding="utf-8-sig")
    assert read_manifest(tmp_path / "m.jsonl")[0].id == "a"


def test_several_manifests_give_one_split_and_rows_without_one_are_train(tmp_path):
    first = manifest_of(tmp_path, ROW, ROW | {"id": "b", "split": "dev"}, name="1.jsonl")
    second = manifest_of(
        tmp_path, ROW | {"id": "c", "split": "train"}, ROW | {"id": "d", "split": None}, name="2.jsonl"
    )
    assert [clip.id for clip in read_manifests([first, second], "train")] == ["a", "c", "d"]
    assert [clip.id for clip in read_manifests([first, second], "dev")] == ["b"]
    assert read_manifests([first, second], "test") == []
    assert [clip.id for clip in read_manifests([first, second])] == ["a", "b", "c", "d"]


def test_one_id_in_two_manifests_is_refused(tmp_path):
    first, second = manifest_of(tmp_path, ROW, name="1.jsonl"), manifest_of(tmp_path, ROW, name="2.jsonl")
    with pytest.raises(ManifestError, match=r"2.jsonl line 1: id 'a' is also in .*1.jsonl"):
        read_manifests([first, second])


def test_a_manifest_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(ManifestError, match="cannot write"):
        write_manifest([ROW], tmp_path / "taken" / "m.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_scan_and_read_give_back_every_recording(tmp_path):
    files = {"b/two.flac": (0.25, 8000, 2), "a/one.wav": (0.1, 16_000, 1), "three.OGG": (0.5, 44_100, 1)}
    for name, (duration, rate, channels) in files.items():
        tone(tmp_path / "in" / name, duration, rate, channels)
    result = scan(tmp_path / "in", tmp_path / "lists" / "m.jsonl")
    clips = read_manifest(result.manifest)
    assert [clip.id for clip in clips] == ["a/one", "b/two", "three"]  # sorted
    for clip, name in zip(clips, sorted(files), strict=True):
        duration, rate, channels = files[name]
        assert clip.path.resolve() == (tmp_path / "in" / name).resolve()
        assert clip.duration_s == pytest.approx(duration, abs=1e-3)
        assert (clip.row["sample_rate"], clip.row["channels"]) == (rate, channels)
    assert clips[0].row["audio"] == "../in/a/one.wav"
    assert result.duration_s == pytest.approx(0.85, abs=1e-2)
    assert (result.unreadable, result.ignored) == ({}, 0)


def test_scan_drops_nothing_silently(tmp_path):
    tone(tmp_path / "good.wav")
    (tmp_path / "text.wav").write_text("this is not audio at all")
    sf.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    (tmp_path / "phone.m4a").write_bytes(b"....ftypM4A ")
    (tmp_path / "cover.jpg").write_bytes(b"x")
    (tmp_path / "._good.wav").write_bytes(b"x")
    result = scan(tmp_path, tmp_path / "out" / "m.jsonl")
    assert [row["id"] for row in result.rows] == ["good"]
    reasons = {os.path.basename(path): reason for path, reason in result.unreadable.items()}
    assert set(reasons) == {"text.wav", "empty.wav", "phone.m4a"}
    assert "not readable" in reasons["text.wav"]
    assert "no samples" in reasons["empty.wav"]
    assert "convert it" in reasons["phone.m4a"]
    assert result.ignored == 2


def test_scan_gives_unique_ids_where_names_differ_in_the_ending_only(tmp_path):
    for name in ("a.wav", "a.flac", "a.wav.ogg", "b.wav"):
        tone(tmp_path / name)
    result = scan(tmp_path, tmp_path / "m.jsonl")
    assert [row["id"] for row in result.rows] == ["a.flac", "a.wav", "a.wav.ogg", "b"]


def test_scan_splits_by_id_so_that_later_files_move_nobody(tmp_path):
    for index in range(60):
        tone(tmp_path / f"{index:02d}.wav", 0.01)
    before = {row["id"]: row["split"] for row in scan(tmp_path, tmp_path / "m.jsonl", 0.2, 0.2).rows}
    assert min(list(before.values()).count(split) for split in ("train", "dev", "test")) > 3
    for index in range(60, 70):
        tone(tmp_path / f"{index:02d}.wav", 0.01)
    after = {row["id"]: row["split"] for row in scan(tmp_path, tmp_path / "m.jsonl", 0.2, 0.2).rows}
    assert before.items() <= after.items()
    assert all("split" not in row for row in scan(tmp_path, tmp_path / "m.jsonl", 0, 0).rows)


def test_scan_can_keep_folders_together(tmp_path):
    for folder in range(12):
        for index in range(3):
            tone(tmp_path / f"speaker{folder}" / f"{index}.wav", 0.01)
    result = scan(tmp_path, tmp_path / "m.jsonl", 0.3, 0.3, split_by="folder")
    per_folder = {}
    for row in result.rows:
        per_folder.setdefault(row["id"].split("/")[0], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in per_folder.values())
    assert len(result.splits) == 3


def test_scan_survives_links_that_lead_in_circles(tmp_path):
    tone(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert [row["id"] for row in scan(tmp_path / "in", tmp_path / "m.jsonl").rows] == ["a"]


def test_scan_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(XcodecLMError, match="is not a folder"):
        scan(tmp_path / "none", tmp_path / "m.jsonl")
    with pytest.raises(XcodecLMError, match="holds no audio"):
        scan(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(XcodecLMError, match=r"1 files cannot be read.*text\.wav"):
        scan(tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(UsageError):
        scan(tmp_path, tmp_path / "m.jsonl", dev=0.6, test=0.4)
    assert not (tmp_path / "m.jsonl").exists()


def test_relative_audio_leads_from_the_manifest_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative_audio(tmp_path / "x" / "a.wav", tmp_path / "lists" / "m.jsonl") == "../x/a.wav"
    assert relative_audio(tmp_path / "a.wav", (tmp_path / "m.jsonl").relative_to(tmp_path)) == "a.wav"
