"""Stores written by several processes, and several stores read as one."""

import json
import multiprocessing
import pickle
import random
import time
from dataclasses import replace

import numpy as np
import pytest

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.lm import shard_index, shards
from xcodec_lm.lm.shards import JoinedStore, StoreWriter, TokenStore, check_same_codec, open_stores

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (1024, 512), fingerprint="a" * 64)
NAMES = [f"r{index:03d}" for index in range(40)]


def codes(name):
    rng, frames = np.random.default_rng(int(name[1:])), 5 + int(name[1:]) % 7
    return np.stack([rng.integers(0, size, frames) for size in SPEC.codebook_sizes], axis=1)


def row_of(name):
    return {"id": name, "split": ("train", "dev", "extra")[int(name[1:]) % 3]}


def write(folder, names, rank=0, world=1, spec=SPEC, **options):
    """Stores these recordings as one of several processes; a recording's place is that among all names."""
    with StoreWriter(folder, spec, rank=rank, world=world, **options) as writer:
        for name in names:
            if name not in writer.done:
                writer.add(row_of(name), codes(name), NAMES.index(name))


def content(store):
    return [(store.rows[index], store.codes(index).tolist()) for index in range(len(store))]


@pytest.fixture
def whole(tmp_path):
    write(tmp_path / "whole", NAMES)
    return TokenStore.open(tmp_path / "whole")


@pytest.fixture(params=[False, True], ids=["index in memory", "index in a file"])
def kept(request, monkeypatch):
    """With an index file even for a small store, and without."""
    monkeypatch.setattr(shard_index, "SAVED_FROM", 1 if request.param else 10**9)
    return request.param


@pytest.mark.parametrize("world", [2, 3, 7])
def test_order_and_digest_do_not_depend_on_the_number_of_processes(tmp_path, whole, world, kept):
    for rank in reversed(range(world)):
        write(tmp_path / "s", NAMES[rank::world], rank, world, shard_bytes=300)
    for _ in range(2):  # the second time from the index file, if there is one
        store = TokenStore.open(tmp_path / "s")
        assert content(store) == content(whole) and store.digest() == whole.digest()
        assert store.lengths.tolist() == whole.lengths.tolist()
        for split in ("train", "dev", "test", "extra", "none"):
            assert store.split(split) == whole.split(split)
    assert len(list((tmp_path / "s").glob("index-*"))) == kept
    assert len(list((tmp_path / "s").glob("rows*.jsonl"))) == world


def test_other_rows_have_another_digest(tmp_path, whole):
    write(tmp_path / "less", NAMES[:-1])
    write(tmp_path / "other", NAMES, spec=replace(SPEC, fingerprint="b" * 64))
    digests = {
        whole.digest(),
        TokenStore.open(tmp_path / "less").digest(),
        TokenStore.open(tmp_path / "other").digest(),
    }
    assert len(digests) == 3


def test_an_index_file_that_is_old_or_damaged_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "SAVED_FROM", 1)
    write(tmp_path / "s", NAMES[:10])
    assert len(TokenStore.open(tmp_path / "s")) == 10
    write(tmp_path / "s", NAMES[:12], rank=1, world=2)
    assert [row["id"] for row in TokenStore.open(tmp_path / "s").rows] == NAMES[:12]
    (index,) = (tmp_path / "s").glob("index-*")  # the old one is gone
    index.write_bytes(index.read_bytes()[:-100])
    assert [row["id"] for row in TokenStore.open(tmp_path / "s").rows] == NAMES[:12]
    monkeypatch.setattr(shard_index, "build_index", None)
    assert content(TokenStore.open(tmp_path / "s"))[11][1] == codes(NAMES[11]).tolist()  # read, not built


@pytest.mark.parametrize("later", [1, 2, 5])
def test_another_number_of_processes_finishes_a_store(tmp_path, whole, later):
    for rank in range(3):
        write(tmp_path / "s", NAMES[rank:20:3], rank, 3)
    for rank in range(later):
        write(tmp_path / "s", NAMES[rank::later], rank, later)
    assert content(TokenStore.open(tmp_path / "s")) == content(whole)


@pytest.mark.parametrize("damage", ["codes lost", "row cut", "codes without a row"])
def test_process_0_mends_the_files_of_processes_that_are_gone(tmp_path, whole, damage):
    for rank in range(3):
        write(tmp_path / "s", NAMES[rank::3], rank, 3)
    rows, shard = tmp_path / "s" / "rows-00002.jsonl", tmp_path / "s" / "shard-00002-00000.bin"
    if damage == "codes lost":
        shard.write_bytes(shard.read_bytes()[:-7])
        with pytest.raises(TokenError, match=r"shard-00002-00000\.bin is damaged.*rows-00002\.jsonl names"):
            TokenStore.open(tmp_path / "s")
    elif damage == "row cut":
        rows.write_text(rows.read_text()[:-9])
        assert len(TokenStore.open(tmp_path / "s")) == len(NAMES) - 1
    else:
        shard.write_bytes(shard.read_bytes() + bytes(50))
    write(tmp_path / "s", NAMES)
    assert content(TokenStore.open(tmp_path / "s")) == content(whole)


def test_recordings_stored_twice_are_named_and_can_be_mended(tmp_path, whole):
    one = StoreWriter(tmp_path / "s", SPEC, rank=0, world=2)
    two = StoreWriter(tmp_path / "s", SPEC, rank=1, world=2)  # neither knows what the other stores
    for writer in (one, two):
        for index, name in enumerate(NAMES):
            if writer is one or index < 5:
                writer.add(row_of(name), codes(name), index)
        writer.close()
    with pytest.raises(TokenError, match=r"5 recordings are stored twice.*rows\.jsonl and rows-00001\.jsonl"):
        TokenStore.open(tmp_path / "s")
    StoreWriter(tmp_path / "s", SPEC, rank=1, world=2).close()
    assert content(TokenStore.open(tmp_path / "s")) == content(whole)


def test_two_processes_of_one_rank_are_refused(tmp_path):
    with StoreWriter(tmp_path / "s", SPEC), pytest.raises(XcodecLMError, match="another process is writing"):
        StoreWriter(tmp_path / "s", SPEC)
    StoreWriter(tmp_path / "s", SPEC).close()
    with pytest.raises(UsageError, match="rank 2 is none of a world of 2"):
        StoreWriter(tmp_path / "s", SPEC, rank=2, world=2)


def test_failures_of_every_process_are_listed_apart_and_forgotten_on_a_new_try(tmp_path):
    for rank in range(3):
        with StoreWriter(tmp_path / "s", SPEC, rank=rank, world=3) as writer:
            writer.fail({"id": f"bad{rank}"}, "torn")
    assert len(list((tmp_path / "s").glob("failed*.jsonl"))) == 3
    StoreWriter(tmp_path / "s", SPEC, rank=1, world=2).close()
    assert not (tmp_path / "s" / "failed-00001.jsonl").exists() and (tmp_path / "s" / "failed-00002.jsonl").exists()
    StoreWriter(tmp_path / "s", SPEC).close()
    assert not list((tmp_path / "s").glob("failed*.jsonl"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[2].update(start=10**6), "damaged: it has"),
        (lambda rows: rows[2].update(shard=7), r"shard-00007\.bin is damaged: it has 0 bytes"),
        (lambda rows: rows[2].update(start=rows[1]["start"]), "name the same codes"),
        (lambda rows: rows[2].update(frames=0), "line 3 is damaged"),
        (lambda rows: rows[2].update(frames=1.5), "line 3 is damaged"),
        (lambda rows: rows[2]["row"].update(id=NAMES[1]), f"stored twice, such as '{NAMES[1]}'"),
    ],
)
def test_rows_that_lie_are_refused(tmp_path, change, words):
    write(tmp_path / "s", NAMES[:6])
    path = tmp_path / "s" / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TokenError, match=words):
        TokenStore.open(tmp_path / "s")


def test_a_shard_cut_in_the_middle_is_refused_even_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "SAVED_FROM", 1)
    write(tmp_path / "s", NAMES, shard_bytes=300)
    TokenStore.open(tmp_path / "s")
    shard = tmp_path / "s" / "shard-00003.bin"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(TokenError, match=r"shard-00003\.bin is damaged.*\n.*run the same data tokenize command again"):
        TokenStore.open(tmp_path / "s")
    write(tmp_path / "s", NAMES, shard_bytes=300)
    assert [row["id"] for row in TokenStore.open(tmp_path / "s").rows] == NAMES


def test_stores_are_joined_in_their_order(tmp_path, whole):
    write(tmp_path / "a", NAMES[:15])
    write(tmp_path / "b", NAMES[15:])
    joined = open_stores([tmp_path / "a", tmp_path / "b"])
    assert isinstance(joined, JoinedStore) and content(joined) == content(whole)
    assert joined.lengths.tolist() == whole.lengths.tolist() and joined.split("dev") == whole.split("dev")
    assert joined.rows[-1] == whole.rows[-1] and joined.rows[14:16] == whole.rows[14:16]
    assert joined.spec == SPEC and joined.digest() != open_stores([tmp_path / "b", tmp_path / "a"]).digest()
    assert isinstance(open_stores(tmp_path / "a"), TokenStore) and isinstance(open_stores([tmp_path / "a"]), TokenStore)
    with pytest.raises(IndexError):
        joined.codes(40)
    with pytest.raises(TokenError, match="no token store"):
        open_stores([])


def test_stores_that_do_not_fit_are_not_joined(tmp_path):
    write(tmp_path / "a", NAMES[:5])
    write(tmp_path / "codec", NAMES[5:9], spec=replace(SPEC, fingerprint="b" * 64, name="rival"))
    one_book = SPEC.take(1)
    with StoreWriter(tmp_path / "book", one_book) as writer:
        writer.add({"id": "x"}, codes(NAMES[0])[:, :1])
    write(tmp_path / "same", NAMES[3:9])
    for other, words in (
        ("codec", r"codec was made by another codec than .*a: rival"),
        ("book", "holds 1 quantizers and 1 tracks, but"),
        ("same", rf"id '{NAMES[3]}' is in .*a and in .*same"),
    ):
        with pytest.raises(TokenError, match=words) as caught:
            open_stores([tmp_path / "a", tmp_path / other])
        assert caught.value.hint
    check_same_codec([TokenStore.open(tmp_path / "a"), TokenStore.open(tmp_path / "same")])


def test_views_stay_right_while_pages_are_given_back_and_few_files_stay_open(tmp_path, whole, monkeypatch):
    write(tmp_path / "s", NAMES, shard_bytes=100)
    monkeypatch.setattr(shards, "RELEASE_BYTES", 3 * shards.LEAST_READ)
    monkeypatch.setattr(shards, "MOST_MAPS", 4)
    store = TokenStore.open(tmp_path / "s")
    views = [store.codes(index) for index in range(len(store))]
    assert len(store._maps._maps) <= 4 < len(store.index.shards)
    assert [view.tolist() for view in views] == [part for _, part in content(whole)]


def test_a_store_can_be_handed_to_another_process(tmp_path, whole):
    whole.codes(3)
    assert content(pickle.loads(pickle.dumps(whole))) == content(whole)


def test_nothing_is_lost_when_processes_are_killed_at_random_moments(tmp_path):
    """Each round starts processes, kills all of them with SIGKILL, and goes on with another number of them."""
    many = [f"r{index:04d}" for index in range(3000)]
    context, rng, kept = multiprocessing.get_context("fork"), random.Random(0), set()
    for world in (2, 3, 1, 2):
        parts = [many[rank::world] for rank in range(world)]
        running = [context.Process(target=write_on, args=(tmp_path / "s", parts[r], r, world)) for r in range(world)]
        for process in running:
            process.start()
        enough = stored_bytes(tmp_path / "s") + rng.randrange(1, 40_000)
        while stored_bytes(tmp_path / "s") < enough and any(process.is_alive() for process in running):
            time.sleep(0.002)
        for process in running:
            process.kill()
            process.join()
        store = TokenStore.open(tmp_path / "s")
        names = [row["id"] for row in store.rows]
        assert kept <= set(names) and names == sorted(names)  # what was stored stays, in the order of the manifest
        kept = set(names)
        for index in range(0, len(store), 17):
            np.testing.assert_array_equal(store.codes(index), codes(names[index]))
    write_on(tmp_path / "s", many, 0, 1)
    assert [row["id"] for row in TokenStore.open(tmp_path / "s").rows] == many


def stored_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("rows*.jsonl"))


def write_on(folder, names, rank, world):
    with StoreWriter(folder, SPEC, rank=rank, world=world, shard_bytes=4000) as writer:
        for name in names:
            if name not in writer.done:
                writer.add(row_of(name), codes(name), int(name[1:]))
