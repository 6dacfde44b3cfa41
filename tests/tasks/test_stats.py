"""What `data stats` says of stores whose content is known."""

import json

import numpy as np
import pytest

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm.shards import StoreWriter, TokenStore
from xcodec_lm.tasks.commands.data import data_stats
from xcodec_lm.tasks.data import stats as module
from xcodec_lm.tasks.data.stats import as_text, stats

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (1024, 8), tracks=("voice", "band"), fingerprint="a" * 64)


@pytest.fixture
def corpus(tmp_path):
    """Codes of 30 recordings in three splits, over several shards."""
    rng = np.random.default_rng(0)
    stored = {}
    with StoreWriter(tmp_path / "s", SPEC, shard_bytes=2000) as writer:
        for index in range(30):
            frames = int(rng.integers(1, 80))
            codes = np.stack([rng.integers(0, size, frames) for size in (600, 8, 3, 1)], axis=1)
            split = ("train", "dev", "mine")[index % 3]
            stored[f"r{index}"] = (split, codes)
            writer.add({"id": f"r{index}", "split": split}, codes)
    return tmp_path / "s", stored


@pytest.mark.parametrize("block", [7, 1 << 17])
def test_counts_agree_with_counting_by_hand(corpus, monkeypatch, block):
    folder, stored = corpus
    monkeypatch.setattr(module, "BLOCK_FRAMES", block)
    found = stats(folder)
    everything = np.concatenate([codes for _, codes in stored.values()])
    assert found.total.recordings == 30 and found.total.frames == len(everything)
    assert found.total.tokens == everything.size and found.total.hours == pytest.approx(len(everything) / 50 / 3600)
    assert set(found.splits) == {"train", "dev", "mine"}
    for name, part in found.splits.items():
        assert part.frames == sum(len(codes) for split, codes in stored.values() if split == name)
        assert part.recordings == 10
    assert [(book.track, book.number, book.size) for book in found.books] == [
        ("voice", 0, 1024), ("voice", 1, 8), ("band", 0, 1024), ("band", 1, 8),
    ]  # fmt: skip
    for column, book in enumerate(found.books):
        _, counts = np.unique(everything[:, column], return_counts=True)
        shares = counts / counts.sum()
        assert book.used == len(counts)
        assert book.entropy_bits == pytest.approx(sum(-share * np.log2(share) for share in shares), abs=1e-12)
        assert book.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found.entropy_bits_per_s == pytest.approx(50 * sum(book.entropy_bits for book in found.books))
    assert found.longest_s == max(len(codes) for _, codes in stored.values()) / 50


def test_codes_that_no_row_names_are_not_counted(corpus):
    folder, stored = corpus
    before = stats(folder)
    with (folder / "shard-00000.bin").open("ab") as file:
        file.write(bytes(80))
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    assert stats(folder) == before
    (folder / "rows.jsonl").write_text("".join(line for line in lines if '"r3"' not in line))  # a hole in a shard
    after = stats(folder)
    assert after.total.frames == before.total.frames - len(stored["r3"][1])
    everything = np.concatenate([codes for name, (_, codes) in stored.items() if name != "r3"])
    assert after.books[0].used == len(np.unique(everything[:, 0]))


def test_recordings_that_repeat_others_are_found(tmp_path):
    codes = np.arange(12).reshape(3, 4) % 7
    with StoreWriter(tmp_path / "s", SPEC) as writer:
        for name, split, values in (
            ("a", "train", codes), ("b", "train", codes), ("c", "dev", codes), ("d", "train", codes[:2]),
            ("e", "train", codes[::-1]),
        ):  # fmt: skip
            writer.add({"id": name, "split": split}, values)
    found = stats(tmp_path / "s")
    assert (found.doubles, found.doubles_across) == (2, 1)
    assert found.examples == [("a", "b"), ("b", "c")]
    assert "2 recordings have the codes of an earlier one, 1 of them in another split" in as_text(found)


def test_a_constant_codebook_says_nothing_and_an_even_one_all(tmp_path):
    spec = TokenSpec("toy", 16_000, 16_000, 320, (8, 8), fingerprint="a" * 64)
    with StoreWriter(tmp_path / "s", spec) as writer:
        writer.add({"id": "x"}, np.stack([np.full(64, 5), np.arange(64) % 8], axis=1))
    constant, even = stats(tmp_path / "s").books
    assert (constant.entropy_bits, constant.perplexity, constant.used) == (0.0, 1.0, 1)
    assert (even.entropy_bits, even.perplexity, even.used) == (3.0, 8.0, 8)


def test_the_command_prints_tables_or_json(corpus, tmp_path):
    folder, stored = corpus
    with StoreWriter(folder, SPEC) as writer:
        writer.fail({"id": "bad"}, "torn")
    result = data_stats((folder, folder))
    assert result.text.count("fingerprint aaaaaaaaaaaa") == 2 and "voice 1" in result.text
    assert "1 recordings could not be encoded" in result.text
    one, _ = json.loads(json.dumps(result.data))
    assert one["total"]["recordings"] == 30 and one["books"][3]["share"] == 1 / 8
    assert one["splits"]["dev"]["tokens"] == 4 * sum(len(codes) for split, codes in stored.values() if split == "dev")


def test_empty_and_damaged_stores_are_refused(corpus, tmp_path):
    with StoreWriter(tmp_path / "empty", SPEC):
        pass
    with pytest.raises(TokenError, match="no recordings"):
        stats(tmp_path / "empty")
    folder, _ = corpus
    shard = folder / "shard-00001.bin"
    data = bytearray(shard.read_bytes())
    data[10:12] = b"\xff\xff"
    shard.write_bytes(data)
    assert len(TokenStore.open(folder)) == 30  # opening does not read codes
    with pytest.raises(TokenError, match=r"codes at or after 'r\d+' reach 65535"):
        stats(folder)
