"""The token store: what goes in comes out, a killed writer loses at most one recording, strangers are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, XcodecLMError
from xcodec_lm.lm.shards import StoreWriter, TokenStore

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (1024, 1024, 1024), fingerprint="a" * 64)


def codes(frames, seed=0, sizes=(1024, 1024, 1024)):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, frames) for size in sizes], axis=1)


def fill(folder, names, spec=SPEC, **options):
    with StoreWriter(folder, spec, **options) as writer:
        for name in names:
            if name not in writer.done:
                writer.add({"id": name, "split": "dev" if name == "b" else "train"}, codes(5 + ord(name), ord(name)))


def test_reads_back_what_was_stored_over_several_shards(tmp_path):
    fill(tmp_path / "s", "abcde", shard_bytes=1300)
    store = TokenStore.open(tmp_path / "s")
    assert len(list((tmp_path / "s").glob("shard-*.bin"))) > 2
    assert store.spec == SPEC and len(store) == 5
    for index, name in enumerate("abcde"):
        np.testing.assert_array_equal(store.codes(index), codes(5 + ord(name), ord(name)))
        assert store.rows[index] == {"id": name, "split": store.rows[index]["split"], "frames": 5 + ord(name)}
    assert store.codes(0).dtype == np.uint16
    assert store.split("dev") == [1] and store.split("train") == [0, 2, 3, 4] and store.split("test") == []


def test_large_codebooks_take_wider_numbers(tmp_path):
    spec = replace(SPEC, codebook_sizes=(70_000,))
    with StoreWriter(tmp_path / "s", spec) as writer:
        writer.add({"id": "x"}, np.array([[69_999], [3]]))
    store = TokenStore.open(tmp_path / "s")
    assert store.codes(0).tolist() == [[69_999], [3]] and store.split("train") == [0]
    edge = replace(SPEC, codebook_sizes=(65_536,))
    with StoreWriter(tmp_path / "t", edge) as writer:
        writer.add({"id": "x"}, np.array([[65_535]]))
    assert TokenStore.open(tmp_path / "t").codes(0).dtype == np.uint16
    assert TokenStore.open(tmp_path / "t").codes(0).tolist() == [[65_535]]


@pytest.mark.parametrize("damage", ["codes without a row", "half a row", "row without codes", "a later shard"])
def test_a_killed_writer_goes_on_to_the_same_store(tmp_path, damage):
    fill(tmp_path / "whole", "abcde", shard_bytes=2500)
    fill(tmp_path / "s", "abc", shard_bytes=2500)
    rows, shard = tmp_path / "s" / "rows.jsonl", max((tmp_path / "s").glob("shard-*.bin"))
    text = rows.read_text()
    if damage == "codes without a row":
        shard.write_bytes(shard.read_bytes() + b"\7" * 33)
    elif damage == "half a row":
        rows.write_text(text[:-20])
    elif damage == "row without codes":
        shard.write_bytes(shard.read_bytes()[:-6])
    else:
        (tmp_path / "s" / "shard-00007.bin").write_bytes(b"\7" * 60)
    with StoreWriter(tmp_path / "s", SPEC, shard_bytes=2500) as writer:
        assert writer.done == set("abc" if damage in ("codes without a row", "a later shard") else "ab")
    fill(tmp_path / "s", "abcde", shard_bytes=2500)
    for file in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "s" / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(list((tmp_path / "s").iterdir())) == len(list((tmp_path / "whole").iterdir()))


def test_failures_are_listed_and_tried_again(tmp_path):
    with StoreWriter(tmp_path / "s", SPEC) as writer:
        writer.fail({"id": "bad", "audio": "x.wav"}, "truncated")
    listed = [json.loads(line) for line in (tmp_path / "s" / "failed.jsonl").read_text().splitlines()]
    assert listed == [{"id": "bad", "reason": "truncated", "row": {"id": "bad", "audio": "x.wav"}}]
    with StoreWriter(tmp_path / "s", SPEC) as writer:
        assert "bad" not in writer.done
        writer.add({"id": "bad"}, codes(3))
    assert not (tmp_path / "s" / "failed.jsonl").exists()


def test_refuses_another_codec_and_other_quantizers(tmp_path):
    fill(tmp_path / "s", "ab")
    with pytest.raises(TokenError, match="another codec"):
        StoreWriter(tmp_path / "s", replace(SPEC, fingerprint="b" * 64))
    with pytest.raises(TokenError, match="3 quantizers"):
        StoreWriter(tmp_path / "s", SPEC.take(2))
    assert len(TokenStore.open(tmp_path / "s")) == 2


def test_refuses_recordings_that_do_not_fit(tmp_path):
    with StoreWriter(tmp_path / "s", SPEC) as writer:
        writer.add({"id": "a"}, codes(4))
        for row, values, words in (
            ({"id": "a"}, codes(4), "stored already"),
            ({}, codes(4), "no id"),
            ({"id": "b"}, codes(4)[:, :2], r"\(T, 3\)"),
            ({"id": "b"}, codes(4)[:0], r"\(T, 3\)"),
            ({"id": "b"}, codes(4) / 2, "integers"),
            ({"id": "b"}, codes(4) + 1020, "outside"),
            ({"id": "b"}, codes(4) - 1024, "outside"),
        ):
            with pytest.raises(TokenError, match=words):
                writer.add(row, values)
    assert [row["id"] for row in TokenStore.open(tmp_path / "s").rows] == ["a"]


def test_refuses_folders_that_are_no_store(tmp_path):
    with pytest.raises(TokenError, match=r"no store\.json"):
        TokenStore.open(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(XcodecLMError, match="not a token store"):
        StoreWriter(tmp_path / "other", SPEC)
    (tmp_path / "file").write_text("")
    with pytest.raises(XcodecLMError, match="cannot write"):
        StoreWriter(tmp_path / "file", SPEC)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("store.json", lambda text: text.replace('"version": 2', '"version": 9'), "version 9"),
        ("store.json", lambda text: text[:40], "cannot be read"),
        ("rows.jsonl", lambda text: text.replace("frames", "frame", 1), "line 1 is damaged"),
    ],
)
def test_refuses_a_damaged_store(tmp_path, file, change, words):
    fill(tmp_path / "s", "ab")
    path = tmp_path / "s" / file
    path.write_text(change(path.read_text()))
    with pytest.raises(TokenError, match=words):
        TokenStore.open(tmp_path / "s")


def test_names_a_shard_that_is_cut_off(tmp_path):
    fill(tmp_path / "s", "ab")
    shard = tmp_path / "s" / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TokenError, match=r"shard-00000\.bin is damaged"):
        TokenStore.open(tmp_path / "s")


def test_remembers_the_codec_relative_to_itself(tmp_path):
    (tmp_path / "here" / "codec").mkdir(parents=True)
    fill(tmp_path / "here" / "s", "a", codec=tmp_path / "here" / "codec")
    (tmp_path / "here").rename(tmp_path / "there")
    assert TokenStore.open(tmp_path / "there" / "s").codec == str(tmp_path / "there" / "codec")
    fill(tmp_path / "t", "a", codec="someone/a-codec")
    assert TokenStore.open(tmp_path / "t").codec == "someone/a-codec"
    fill(tmp_path / "u", "a")
    assert TokenStore.open(tmp_path / "u").codec is None


def test_reads_a_store_of_version_1(tmp_path):
    fill(tmp_path / "s", "cab")
    header, rows = tmp_path / "s" / "store.json", tmp_path / "s" / "rows.jsonl"
    header.write_text(header.read_text().replace('"version": 2', '"version": 1'))
    old = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "index"}) + "\n" for line in old))
    store = TokenStore.open(tmp_path / "s")
    assert [row["id"] for row in store.rows] == ["c", "a", "b"]
    fill(tmp_path / "s", "cabd")
    assert [row["id"] for row in TokenStore.open(tmp_path / "s").rows] == ["c", "a", "b", "d"]
    assert json.loads(header.read_text())["version"] == 2
    for index, name in enumerate("cabd"):
        np.testing.assert_array_equal(TokenStore.open(tmp_path / "s").codes(index), codes(5 + ord(name), ord(name)))


def test_rows_are_a_sequence_and_lengths_their_frames(tmp_path):
    fill(tmp_path / "s", "abcde")
    store = TokenStore.open(tmp_path / "s")
    assert store.lengths.tolist() == [row["frames"] for row in store.rows] == [102, 103, 104, 105, 106]
    assert store.lengths.dtype == np.int64
    assert store.rows[-1]["id"] == "e" and [row["id"] for row in store.rows[1:3]] == ["b", "c"]
    np.testing.assert_array_equal(store.codes(-1), store.codes(4))
    with pytest.raises(IndexError):
        store.rows[5]
    with pytest.raises(ValueError, match="read-only"):
        store.codes(0)[0] = 1
