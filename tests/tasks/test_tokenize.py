"""From manifest to token store, with a tokenizer of ten lines: order, restarts, failures, conversions."""

import json

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, TokenSpec
from xcodec_lm.configs.errors import AudioError, TokenError, UsageError, XcodecLMError
from xcodec_lm.lm.shards import TokenStore
from xcodec_lm.tasks.data.tokenize import tokenize

HOP = 160


class Levels:
    """Codes are the mean level of a frame and of its first half, in 64 steps."""

    causal, lookahead_frames = True, 0

    def __init__(self, fingerprint="levels", stop_after=None):
        self.spec = TokenSpec("levels", 16_000, 16_000, HOP, (64, 64), fingerprint=fingerprint)
        self.batches = []
        self.stop_after = stop_after

    def frames(self, samples):
        return -(-samples // HOP)

    def encode(self, wav, lengths=None, n_q=None, *, sample_rate=None):
        assert lengths is None and sample_rate == 16_000
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise KeyboardInterrupt
        if wav.abs().max() > 1.2:
            raise AudioError("too loud for this codec")
        self.batches.append(tuple(wav.shape))
        frames = self.frames(wav.shape[2])
        padded = torch.nn.functional.pad(wav[:, 0], (0, frames * HOP - wav.shape[2])).unflatten(1, (frames, HOP))
        levels = torch.stack([padded.abs().mean(-1), padded[..., : HOP // 2].abs().mean(-1)], dim=1)  # (B, Q, T)
        codes = (levels * 200).long().clamp(0, 63)[:, : n_q or 2]
        return AudioTokens(codes, torch.full((len(wav),), frames), self.spec.take(n_q or 2))

    def decode(self, tokens):
        raise AssertionError("tokenizing decodes nothing")

    def stream_decoder(self, batch=1):
        raise AssertionError("tokenizing streams nothing")


@pytest.fixture
def corpus(tmp_path):
    """Seven recordings: five of 0.5 s, then 0.25 s, then an odd number of samples."""
    rows = []
    for index, n in enumerate([8000] * 5 + [4000, 4001]):
        wave = 0.1 * np.random.default_rng(index).standard_normal(n) * np.linspace(0.2, 2, n)
        (tmp_path / "audio").mkdir(exist_ok=True)
        sf.write(tmp_path / "audio" / f"{index}.wav", wave, 16_000, subtype="FLOAT")
        split = ("train", "dev", None)[index % 3]
        row = {"id": f"clip{index}", "audio": f"audio/{index}.wav", "duration": n / 16_000, "mood": index}
        rows.append(row if split is None else row | {"split": split})
    write_manifest(rows, tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def content(folder):
    """Everything that a reader of a store can see."""
    store = TokenStore.open(folder)
    return [(store.rows[index], store.codes(index).tolist()) for index in range(len(store))]


def test_the_fake_is_a_tokenizer():
    assert isinstance(Levels(), AudioTokenizer)


def test_codes_and_rows_arrive_in_the_order_of_the_manifest(corpus, tmp_path):
    codec, out = Levels(), tmp_path / "tokens"
    result = tokenize([corpus], codec, out)
    assert (result.done, result.skipped, result.failed, result.conversions) == (7, 0, 0, {})
    store = TokenStore.open(out)
    assert [row["id"] for row in store.rows] == [f"clip{index}" for index in range(7)]
    for index, row in enumerate(store.rows):
        wave, _ = sf.read(tmp_path / "audio" / f"{index}.wav", dtype="float32")
        expected = Levels().encode(torch.from_numpy(wave)[None, None], sample_rate=16_000).codes[0].T
        assert np.array_equal(store.codes(index), expected)
        assert row["mood"] == index  # keys of the manifest stay
        assert row["duration"] == len(wave) / 16_000
        assert row["split"] == ("train", "dev", "train")[index % 3]  # none counts as train
        assert (out / row["audio"]).resolve() == (tmp_path / "audio" / f"{index}.wav").resolve()


def test_recordings_of_equal_length_share_a_batch_up_to_its_limit(corpus, tmp_path):
    codec = Levels()
    tokenize([corpus], codec, tmp_path / "tokens", batch_s=1.5)
    assert codec.batches == [(3, 1, 8000), (2, 1, 8000), (1, 1, 4000), (1, 1, 4001)]
    alone = Levels()
    tokenize([corpus], alone, tmp_path / "alone", batch_s=0.01)  # longer than a batch: alone, and whole
    assert [shape[0] for shape in alone.batches] == [1] * 7
    assert content(tmp_path / "alone") == content(tmp_path / "tokens")


def test_an_interrupted_run_continues_to_the_store_of_an_uninterrupted_one(corpus, tmp_path):
    whole = Levels()
    tokenize([corpus], whole, tmp_path / "whole", batch_s=1.5)
    for stop_after in range(4):
        out = tmp_path / f"cut{stop_after}"
        with pytest.raises(KeyboardInterrupt):
            tokenize([corpus], Levels(stop_after=stop_after), out, batch_s=1.5)
        rest = Levels()
        result = tokenize([corpus], rest, out, batch_s=1.5)
        assert result.skipped == sum(shape[0] for shape in whole.batches[:stop_after])
        assert result.done == 7 - result.skipped
        assert rest.batches == whole.batches[stop_after:]  # nothing is encoded twice, and in the same batches
        assert content(out) == content(tmp_path / "whole")
    again = Levels()
    result = tokenize([corpus], again, tmp_path / "whole", batch_s=1.5)
    assert (result.done, result.skipped, again.batches) == (0, 7, [])


def test_a_batch_cut_in_the_middle_is_encoded_as_a_batch_again(corpus, tmp_path, monkeypatch):
    from xcodec_lm.lm.shards import StoreWriter

    tokenize([corpus], Levels(), tmp_path / "whole")
    add, added = StoreWriter.add, []

    def add_two(self, row, codes, index):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(row)
        add(self, row, codes, index)

    monkeypatch.setattr(StoreWriter, "add", add_two)
    with pytest.raises(KeyboardInterrupt):
        tokenize([corpus], Levels(), tmp_path / "cut")
    monkeypatch.undo()
    rest = Levels()
    result = tokenize([corpus], rest, tmp_path / "cut")
    assert (result.skipped, result.done, rest.batches[0]) == (2, 5, (5, 1, 8000))
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_unreadable_recordings_are_listed_and_the_rest_is_done(corpus, tmp_path):
    (tmp_path / "audio" / "1.wav").write_text("no audio")
    (tmp_path / "audio" / "5.wav").unlink()
    out = tmp_path / "tokens"
    result = tokenize([corpus], Levels(), out)
    assert (result.done, result.failed) == (5, 2)
    failures = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert [failure["id"] for failure in failures] == ["clip1", "clip5"]
    assert "not readable as audio" in failures[0]["reason"]
    assert "file not found" in failures[1]["reason"]
    assert [row["id"] for row in TokenStore.open(out).rows] == ["clip0", "clip2", "clip3", "clip4", "clip6"]
    sf.write(tmp_path / "audio" / "1.wav", np.zeros(8000), 16_000)  # mended: tried again, the other one fails again
    result = tokenize([corpus], Levels(), out)
    assert (result.done, result.skipped, result.failed) == (1, 5, 1)


def test_a_recording_that_the_codec_refuses_does_not_take_its_batch_along(corpus, tmp_path):
    wave = np.zeros(8000)
    wave[5] = 1.3
    sf.write(tmp_path / "audio" / "2.wav", wave, 16_000, subtype="FLOAT")
    result = tokenize([corpus], Levels(), tmp_path / "tokens")
    assert (result.done, result.failed) == (6, 1)
    (failure,) = map(json.loads, (tmp_path / "tokens" / "failed.jsonl").read_text().splitlines())
    assert (failure["id"], failure["reason"]) == ("clip2", "too loud for this codec")


def test_other_rates_and_channels_are_converted_and_counted(tmp_path, capsys):
    rows = []
    for name, rate, channels in (("stereo", 16_000, 2), ("slow", 8_000, 1), ("both", 8_000, 2), ("right", 16_000, 1)):
        wave = 0.1 * np.random.default_rng(0).standard_normal((rate, channels))
        sf.write(tmp_path / f"{name}.flac", wave, rate)
        rows.append({"id": name, "audio": f"{name}.flac", "duration": 1.0})
    write_manifest(rows, tmp_path / "m.jsonl")
    result = tokenize([tmp_path / "m.jsonl"], Levels(), tmp_path / "tokens")
    assert result.conversions == {"mixed 2 channels to mono": 2, "resampled 8000 to 16000 Hz": 2}
    assert "2 recordings mixed 2 channels to mono" in capsys.readouterr().err
    assert [row["frames"] for row in TokenStore.open(tmp_path / "tokens").rows] == [100] * 4


def test_a_wrong_duration_in_the_manifest_is_harmless(corpus, tmp_path):
    lines = [json.loads(line) | {"duration": 0.5} for line in corpus.read_text().splitlines()]
    write_manifest(lines, corpus)
    codec = Levels()
    tokenize([corpus], codec, tmp_path / "tokens")
    assert codec.batches == [(5, 1, 8000), (1, 1, 4000), (1, 1, 4001)]
    assert TokenStore.open(tmp_path / "tokens").rows[6]["duration"] == 4001 / 16_000


def test_max_seconds_takes_the_beginning(corpus, tmp_path):
    tokenize([corpus], Levels(), tmp_path / "whole")
    tokenize([corpus], Levels(), tmp_path / "short", max_seconds=0.1)
    for (_, codes), (row, short) in zip(content(tmp_path / "whole"), content(tmp_path / "short"), strict=True):
        assert (row["duration"], row["frames"]) == (0.1, 10)
        assert short == codes[:10]
    with pytest.raises(XcodecLMError, match=r"begun with max_seconds 0.1, not 0.2"):
        tokenize([corpus], Levels(), tmp_path / "short", max_seconds=0.2)


def test_fewer_quantizers_can_be_stored(corpus, tmp_path):
    tokenize([corpus], Levels(), tmp_path / "both")
    tokenize([corpus], Levels(), tmp_path / "one", n_q=1)
    assert TokenStore.open(tmp_path / "one").spec.codebook_sizes == (64,)
    for (_, both), (_, one) in zip(content(tmp_path / "both"), content(tmp_path / "one"), strict=True):
        assert [frame[:1] for frame in both] == one
    with pytest.raises(TokenError, match=r"n_q must lie in 1\.\.2"):
        tokenize([corpus], Levels(), tmp_path / "three", n_q=3)


def test_a_store_of_another_codec_is_refused(corpus, tmp_path):
    tokenize([corpus], Levels(), tmp_path / "tokens")
    with pytest.raises(TokenError, match="another codec"):
        tokenize([corpus], Levels("other"), tmp_path / "tokens")


def test_settings_that_make_no_sense_are_refused(corpus, tmp_path):
    with pytest.raises(UsageError):
        tokenize([corpus], Levels(), tmp_path / "tokens", batch_s=0.0)
    with pytest.raises(UsageError):
        tokenize([corpus], Levels(), tmp_path / "tokens", max_seconds=-1.0)
    with pytest.raises(XcodecLMError, match="cannot write"):
        tokenize([corpus], Levels(), corpus / "tokens")


def test_training_recordings_at_other_speeds_stand_beside_their_own(corpus, tmp_path):
    tokenize([corpus], Levels(), tmp_path / "plain")
    done = tokenize([corpus], Levels(), tmp_path / "fast", speeds=(0.8, 1.25))
    plain, fast = dict_of(tmp_path / "plain"), dict_of(tmp_path / "fast")
    train = [name for name, (row, _) in plain.items() if row["split"] == "train"]
    assert 0 < len(train) < len(plain) and done.done == len(plain) + 2 * len(train)
    assert {name: value for name, value in fast.items() if "@" not in name} == plain
    assert {name for name in fast if "@" in name} == {f"{name}@{speed}" for name in train for speed in ("0.8", "1.25")}
    for name in train:
        row, codes = fast[f"{name}@1.25"]
        assert row["speed"] == 1.25 and row["mood"] == plain[name][0]["mood"] and row["split"] == "train"
        assert row["duration"] == pytest.approx(plain[name][0]["duration"] / 1.25, abs=1e-4)
        assert abs(len(codes) - len(plain[name][1]) / 1.25) <= 1
    again = tokenize([corpus], Levels(), tmp_path / "fast", speeds=(0.8, 1.25))
    assert (again.done, again.skipped) == (0, done.done)
    for speeds in ((1,), (0.4,), (1.25, 1.25)):
        with pytest.raises(UsageError, match=r"different numbers from 0\.5 to 2"):
            tokenize([corpus], Levels(), tmp_path / "x", speeds=speeds)


def dict_of(folder):
    return {row["id"]: (row, codes) for row, codes in content(folder)}
