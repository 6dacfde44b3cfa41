"""Tokenizing by several processes and threads gives the store that one process gives."""

import json

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.tokens import AudioTokens, TokenSpec
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.lm.shards import TokenStore
from xcodec_lm.tasks.commands import data
from xcodec_lm.tasks.commands.data import data_tokenize
from xcodec_lm.tasks.data import tokenize as module
from xcodec_lm.tasks.data.tokenize import TokenizeResult, processes, tokenize

HOP = 160


class Signs:
    """One code a whole frame: how many of its samples are positive. A last frame that is not whole is dropped."""

    causal, lookahead_frames = True, 0
    spec = TokenSpec("signs", 16_000, 16_000, HOP, (HOP + 1,), fingerprint="signs")
    most_samples = 10**9

    def frames(self, samples):
        return samples // HOP

    def encode(self, wav, lengths=None, n_q=None, *, sample_rate=None):
        if wav.numel() > self.most_samples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        frames = self.frames(wav.shape[2])
        codes = (wav[..., : frames * HOP].unflatten(-1, (frames, HOP)) > 0).sum(-1)  # (B, 1, T)
        return AudioTokens(codes, torch.full((len(wav),), frames), self.spec)

    def decode(self, tokens):
        raise AssertionError("tokenizing decodes nothing")

    def stream_decoder(self, batch=1):
        raise AssertionError("tokenizing streams nothing")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def corpus(tmp_path):
    """Twenty recordings of four lengths, neighbours equal."""
    rows = []
    for index in range(20):
        n = (4000, 1600, 4000, 801)[index // 5]
        sf.write(tmp_path / f"{index}.wav", 0.1 * np.random.default_rng(index).standard_normal(n), 16_000)
        rows.append({"id": f"clip{index:02d}", "audio": f"{index}.wav", "duration": n / 16_000})
    write_manifest(rows, tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def content(folder):
    store = TokenStore.open(folder)
    return [(store.rows[index], store.codes(index).tolist()) for index in range(len(store))]


@pytest.mark.parametrize("world", [2, 4])
def test_many_processes_share_the_work_and_leave_the_same_store(corpus, tmp_path, world):
    tokenize([corpus], Signs(), tmp_path / "one", batch_s=0.5)
    results = [tokenize([corpus], Signs(), tmp_path / "s", batch_s=0.5, rank=r, world=world) for r in range(world)]
    assert sum(result.done for result in results) == 20 and all(0 < result.done < 20 for result in results)
    assert sum(result.skipped + result.failed for result in results) == 0
    assert content(tmp_path / "s") == content(tmp_path / "one")
    assert TokenStore.open(tmp_path / "s").digest() == TokenStore.open(tmp_path / "one").digest()
    again = [tokenize([corpus], Signs(), tmp_path / "s", batch_s=0.5, rank=r, world=3) for r in range(3)]
    assert sum(result.skipped for result in again) == 20 and not any(result.done for result in again)


def test_what_a_process_did_not_do_another_number_of_processes_does(corpus, tmp_path):
    tokenize([corpus], Signs(), tmp_path / "one", batch_s=0.5)
    tokenize([corpus], Signs(), tmp_path / "s", batch_s=0.5, rank=2, world=4)
    rest = tokenize([corpus], Signs(), tmp_path / "s", batch_s=0.5)
    assert 0 < rest.skipped < 20 and rest.done + rest.skipped == 20
    assert content(tmp_path / "s") == content(tmp_path / "one")


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_threads_change_nothing_but_the_time(corpus, tmp_path, workers):
    (tmp_path / "3.wav").write_text("no audio")
    result = tokenize([corpus], Signs(), tmp_path / "s", batch_s=0.3, workers=workers)
    assert (result.done, result.failed) == (19, 1)
    assert [row["id"] for row, _ in content(tmp_path / "s")] == [f"clip{i:02d}" for i in range(20) if i != 3]
    assert result.audio_s == pytest.approx((9 * 4000 + 5 * 1600 + 5 * 801) / 16_000)
    assert result.speed == pytest.approx(result.audio_s / result.wall_s)
    with pytest.raises(UsageError, match="workers"):
        tokenize([corpus], Signs(), tmp_path / "s", workers=-1)


def test_empty_short_and_broken_recordings_are_listed_with_the_reason(tmp_path):
    waves = {
        "none": np.zeros(0),
        "short": np.zeros(HOP - 1),
        "nan": np.array([0.0, np.nan] * 400),
        "good": np.zeros(800),
    }
    rows = []
    for name, wave in waves.items():
        sf.write(tmp_path / f"{name}.wav", wave, 16_000, subtype="FLOAT")
        rows.append({"id": name, "audio": f"{name}.wav", "duration": 0.05})
    write_manifest(rows, tmp_path / "m.jsonl")
    result = tokenize([tmp_path / "m.jsonl"], Signs(), tmp_path / "s")
    assert (result.done, result.failed) == (1, 3)
    listed = [json.loads(line) for line in (tmp_path / "s" / "failed.jsonl").read_text().splitlines()]
    reasons = {failure["id"]: failure["reason"] for failure in listed}
    assert "empty" in reasons["none"] and "159 samples are too few for one frame" in reasons["short"]
    assert "sample 1 is nan" in reasons["nan"]


def test_a_batch_too_large_for_the_device_is_taken_apart(corpus, tmp_path):
    codec = Signs()
    codec.most_samples = 2000
    result = tokenize([corpus], codec, tmp_path / "s")
    assert (result.done, result.failed) == (10, 10)  # those of 4000 samples alone are too long
    assert "too little memory" in (tmp_path / "s" / "failed.jsonl").read_text()


def test_rank_and_world_come_from_options_or_from_torchrun(monkeypatch):
    assert processes() == (0, 1) and processes(1, 3) == (1, 3)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes() == (2, 4) and processes(0, 1) == (0, 1)
    with pytest.raises(UsageError, match="go together"):
        processes(rank=1)
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(UsageError, match="not numbers"):
        processes()


def test_the_command_says_where_failures_are_and_how_fast_it_was(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load_codec_for", lambda *_: Signs())
    (tmp_path / "3.wav").write_text("no audio")
    found, partial = data_tokenize((corpus,), out=tmp_path / "s", rank=0, world=1)
    assert "19 recordings encoded, 0 already there, 1 failed" in found.text and "x real time" in found.text
    assert partial is not None and partial.exit_code == 3 and "failed.jsonl" in partial.message
    assert found.data["world"] == 1 and found.data["audio_s"] > 0
    found, partial = data_tokenize((corpus,), out=tmp_path / "s", rank=1, world=2)
    assert partial is None and found.data["done"] == 0


def test_under_torchrun_every_process_reports_the_sum(corpus, tmp_path, monkeypatch):
    import torch.distributed as dist

    def gather(parts, mine):
        parts[:] = [mine, TokenizeResult(mine.store, 5, 1, 2, {"resampled": 1}, 60.0, 1e6)]

    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    mine = TokenizeResult(tmp_path, 3, 4, 0, {"resampled": 2}, 40.0, 2.0)
    total = module.sum_over_processes(mine)
    assert (total.done, total.skipped, total.failed, total.conversions) == (8, 5, 2, {"resampled": 3})
    assert (total.audio_s, total.wall_s) == (100.0, 1e6)
