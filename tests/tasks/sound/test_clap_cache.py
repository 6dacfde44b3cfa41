"""Cached embeddings: computed once, keyed by content and model, and safe against damage."""

import shutil

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.configs.errors import AudioError, UsageError, XcodecLMError
from xcodec_lm.tasks.sound import clap_cache
from xcodec_lm.tasks.sound.clap_cache import embed_cached


class Counting:
    """An embedder whose vectors are drawn from what it embeds; counts its work."""

    name, ancestry, dim, sample_rate = "counting", {}, 6, 8000

    def __init__(self, fingerprint="a" * 64):
        self.fingerprint, self.texts, self.clips = fingerprint, 0, 0

    def vector(self, seed):
        value = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
        return value / value.norm()

    def embed_texts(self, texts):
        self.texts += len(texts)
        return torch.stack([self.vector(sum(text.encode())) for text in texts])

    def embed_audio(self, wavs):
        self.clips += len(wavs)
        assert all(wav.dtype == np.float32 and wav.ndim == 1 for wav in wavs)
        return torch.stack([self.vector(int(1e4 * np.abs(wav).sum())) for wav in wavs])


@pytest.fixture
def recordings(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.wav" for index in range(3)]
    for path, rate in zip(paths, (8000, 16_000, 8000), strict=True):
        sf.write(path, 0.1 * rng.standard_normal((rate // 5, 2)), rate)
    return paths


def test_captions_are_embedded_once(tmp_path):
    clap, texts = Counting(), ["rain", "a dog", "rain"]
    first = embed_cached(clap, texts, tmp_path)
    assert clap.texts == 2 and torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert torch.equal(first, Counting().embed_texts(texts))
    fresh = Counting()
    again = embed_cached(fresh, ["wind", *texts], tmp_path)
    assert fresh.texts == 1 and torch.equal(again[1:], first)
    assert embed_cached(fresh, [], tmp_path).shape == (0, 6)


def test_recordings_are_known_by_their_bytes(tmp_path, recordings):
    clap = Counting()
    first = embed_cached(clap, recordings, tmp_path / "cache")
    assert clap.clips == 3
    moved = tmp_path / "moved.wav"
    shutil.move(recordings[0], moved)
    assert torch.equal(embed_cached(clap, [moved], tmp_path / "cache")[0], first[0]) and clap.clips == 3
    sf.write(moved, np.full(900, 0.25), 8000)
    assert not torch.equal(embed_cached(clap, [moved], tmp_path / "cache")[0], first[0]) and clap.clips == 4


def test_each_model_has_its_own(tmp_path):
    embed_cached(Counting(), ["rain"], tmp_path)
    other = Counting("b" * 64)
    embed_cached(other, ["rain"], tmp_path)
    assert other.texts == 1 and len(list(tmp_path.iterdir())) == 2
    twin = Counting("a" * 16 + "c" * 48)  # the same folder name by chance
    embed_cached(twin, ["rain"], tmp_path)
    assert twin.texts == 1


def test_damage_costs_time_only(tmp_path, capsys):
    expected = embed_cached(Counting(), ["rain"], tmp_path)
    (path,) = tmp_path.rglob("captions.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    clap = Counting()
    assert torch.equal(embed_cached(clap, ["rain"], tmp_path), expected) and clap.texts == 1
    assert "embedded anew" in capsys.readouterr().err


def test_what_was_done_before_a_bad_file_is_kept(tmp_path, recordings):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nothing")
    with pytest.raises(AudioError, match=r"broken\.wav"):
        embed_cached(Counting(), [recordings[0], broken], tmp_path / "cache")
    clap = Counting()
    embed_cached(clap, [recordings[0]], tmp_path / "cache")
    assert clap.clips == 0
    with pytest.raises(AudioError, match=r"gone\.wav"):
        embed_cached(clap, [tmp_path / "gone.wav"], tmp_path / "cache")


def test_a_long_run_is_written_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(clap_cache, "SAVE_EVERY", 2)
    clap = Counting()
    whole = clap.embed_texts

    def stops(texts):
        if clap.texts == 5:
            raise KeyboardInterrupt
        return whole(texts)

    clap.embed_texts = stops
    with pytest.raises(KeyboardInterrupt):
        embed_cached(clap, [f"sound {index}" for index in range(9)], tmp_path)
    fresh = Counting()
    embed_cached(fresh, [f"sound {index}" for index in range(9)], tmp_path)
    assert fresh.texts == 4


def test_bad_calls_are_refused(tmp_path, recordings):
    with pytest.raises(UsageError, match="caption"):
        embed_cached(Counting(), ["rain", " "], tmp_path)
    with pytest.raises(XcodecLMError, match="calls of their own"):
        embed_cached(Counting(), ["rain", recordings[0]], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(XcodecLMError, match="cannot write"):
        embed_cached(Counting(), ["rain"], tmp_path / "file")
