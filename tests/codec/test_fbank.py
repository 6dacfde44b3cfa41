"""Kaldi filter banks: against transformers' numpy implementation, committed numbers, and the definition."""

import math

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from xcodec_lm.codec.fbank import log_mel, w2v_bert_features
from xcodec_lm.configs.errors import AudioError


def chirp(samples: int) -> torch.Tensor:
    """A rising tone with an offset, from integers and sines alone, so that the numbers below can be made anywhere."""
    n = torch.arange(samples, dtype=torch.float64)
    return (0.4 * torch.sin(2 * math.pi * (200 + n / 8) * n / 16_000) + 0.05).float()[None]


# Made with numpy alone from the definition, in double precision: rows 0, 3, 7; bands 0, 7, 20, 50, 79.
COMMITTED = [
    [13.36894, 22.65342, 8.28254, -0.41911, -5.72538],
    [12.43726, 14.83492, 11.1632, 0.86373, -4.18681],
    [11.77294, 10.14752, 17.55616, 1.77485, -3.49206],
]


@pytest.fixture(scope="module")
def peer():
    return SeamlessM4TFeatureExtractor()


@pytest.mark.parametrize("samples", [560, 1040, 8000, 16_123])
def test_parity_with_transformers(peer, samples):
    rng = np.random.default_rng(samples)
    wav = (0.3 * rng.standard_normal(samples)).astype(np.float32)
    expected = peer._extract_fbank_features(wav)
    ours = log_mel(torch.from_numpy(wav)[None])[0].numpy()
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-4
    features = peer(wav, sampling_rate=16_000, return_tensors="pt", pad_to_multiple_of=None)["input_features"]
    result = w2v_bert_features(torch.from_numpy(wav)[None])
    assert result.dtype == torch.float32
    assert (result - features).abs().max() < 1e-3  # over two frames a band may hardly vary, and the peer is in fp32


def test_committed_numbers():
    bands = log_mel(chirp(1600))
    assert bands.shape == (1, 8, 80)
    picked = bands[0, [0, 3, 7]][:, [0, 7, 20, 50, 79]]
    expected = torch.tensor(COMMITTED, dtype=torch.float64)
    assert (picked - expected).abs().max() < 1e-4


def test_silence_is_the_floor_and_stays_finite():
    silence = torch.zeros(1, 3200)
    assert torch.allclose(log_mel(silence), torch.tensor(math.log(2.0**-23), dtype=torch.float64))
    assert w2v_bert_features(silence).abs().max() < 1e-6


def test_a_constant_adds_nothing_and_loudness_is_normalised():
    noise = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_mel(noise.double() + 0.2), log_mel(noise.double()))
    torch.testing.assert_close(w2v_bert_features(noise), w2v_bert_features(noise / 4), atol=1e-4, rtol=0)
    features = w2v_bert_features(noise).reshape(-1, 80)
    torch.testing.assert_close(features.mean(0), torch.zeros(80), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(0), torch.ones(80), atol=1e-4, rtol=0)


def test_each_band_hears_its_own_tone():
    mel = 1127 * math.log1p(20 / 700), 1127 * math.log1p(8000 / 700)
    for band in (10, 40, 75):
        centre = mel[0] + (band + 1) * (mel[1] - mel[0]) / 81
        tone = torch.sin(2 * math.pi * 700 * math.expm1(centre / 1127) * torch.arange(4000) / 16_000)
        assert abs(int(log_mel(0.5 * tone[None]).mean(1).argmax()) - band) <= 1


def test_rows_do_not_see_each_other():
    wav = torch.cat([chirp(6000), 0.1 * chirp(6000).flip(1)])
    together = w2v_bert_features(wav)
    for index in range(2):
        assert torch.equal(together[index : index + 1], w2v_bert_features(wav[index : index + 1]))


@pytest.mark.parametrize("samples", [1, 399, 559])
def test_too_short_is_refused(samples):
    with pytest.raises(AudioError, match="few"):
        w2v_bert_features(torch.zeros(1, samples))
    assert w2v_bert_features(torch.zeros(1, 560)).shape == (1, 1, 160)
