"""SI-SDR, lags, STOI and PESQ: values, invariances, and what cannot be judged."""

import math
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.tasks.eval import signal

RATE = 16_000
MISSING = signal.missing_libraries()


def noise(seed, samples=4000):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def speechlike(seconds=2.0, rate=RATE):
    """Pulses through a formant, loud and quiet in turn, so that the libraries find utterances."""
    time = np.arange(round(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20))
    return torch.from_numpy(0.1 * voice * (0.05 + (np.sin(2 * np.pi * 3 * time) > 0))).float()


# ------------------------------------------------------------------ SI-SDR


@pytest.mark.parametrize("decibel", [-10.0, 0.0, 12.5, 40.0])
def test_orthogonal_noise_of_a_known_level_gives_that_ratio(decibel):
    target = noise(0) - noise(0).mean()
    other = noise(1) - noise(1).mean()
    other -= torch.dot(other, target) / torch.dot(target, target) * target
    other *= target.norm() / other.norm() * 10 ** (-decibel / 20)
    assert signal.si_sdr(target + other, target) == pytest.approx(decibel, abs=1e-3)


def test_a_value_worked_out_by_hand():
    # zero means already; <y, x> = 2, |x|^2 = 2, so a = 1; the rest is (0, 0, 1, -1) with energy 2: 0 dB
    target, estimate = torch.tensor([1.0, -1, 0, 0]), torch.tensor([1.0, -1, 1, -1])
    assert signal.si_sdr(estimate, target) == pytest.approx(0, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), gain=st.sampled_from([1e-4, -0.3, 1.0, 500.0]), offset=st.floats(-3, 3))
def test_scale_sign_and_offset_do_not_matter(seed, gain, offset):
    target, estimate = noise(seed), noise(seed) + 0.5 * noise(seed + 1)
    expected = signal.si_sdr(estimate, target)
    assert signal.si_sdr(gain * estimate, target) == pytest.approx(expected, abs=1e-6)
    assert signal.si_sdr(estimate + offset, gain * target) == pytest.approx(expected, abs=1e-6)


def test_more_noise_is_worse_and_a_perfect_estimate_is_finite():
    target = noise(0)
    values = [signal.si_sdr(target + level * noise(1), target) for level in (0, 0.01, 0.1, 1, 10)]
    assert values == sorted(values, reverse=True) and values[0] == pytest.approx(80)


@pytest.mark.parametrize("silent", ["estimate", "target"])
def test_silence_is_not_judged(silent):
    signals = {"estimate": noise(0), "target": noise(1)} | {silent: torch.full((4000,), 0.25)}
    assert math.isnan(signal.si_sdr(**signals))


# ------------------------------------------------------------------ lags


@settings(max_examples=25, deadline=None)
@given(lag=st.integers(-40, 40), seed=st.integers(0, 99))
def test_lags_are_found_and_taken_out(lag, seed):
    target = noise(seed, 2000)
    late = signal.shift(target, -lag)
    assert signal.find_lag(late, target, 50) == lag
    back = signal.shift(late, lag)
    assert torch.equal(back[40:-40], target[40:-40]) and len(back) == len(target)


def test_no_lag_is_found_beyond_the_limit_or_in_silence():
    target = noise(0, 2000)
    assert abs(signal.find_lag(signal.shift(target, -30), target, 10)) <= 10
    assert signal.find_lag(torch.zeros(2000), target, 10) == 0
    assert signal.find_lag(target[:1], target[:1], 10) == 0


def test_lengths_are_cut_or_padded():
    wav = torch.arange(1.0, 4)
    assert signal.fit_length(wav, 2).tolist() == [1, 2] and signal.fit_length(wav, 5).tolist() == [1, 2, 3, 0, 0]


# ------------------------------------------------------------------ STOI and PESQ

MEASURES = [getattr(signal, name) for name, library in signal.LIBRARIES.items() if library not in MISSING]


@pytest.fixture
def stand_ins(monkeypatch):
    """Libraries whose answer each test sets: `answers["stoi"]` is called with what the library is given."""
    answers = {}

    class PesqError(RuntimeError):
        pass

    pesq = types.ModuleType("pesq")
    pesq.PesqError, pesq.pesq = PesqError, lambda *given: answers["pesq"](*given)
    pystoi = types.ModuleType("pystoi")
    pystoi.stoi = lambda *given: answers["stoi"](*given)
    monkeypatch.setitem(sys.modules, "pesq", pesq)
    monkeypatch.setitem(sys.modules, "pystoi", pystoi)
    return answers


def raising(error):
    def answer(*_):
        raise error

    return answer


def too_short(*_):
    warnings.warn("Not enough STFT frames to compute", RuntimeWarning, stacklevel=1)
    return 1e-5


@pytest.mark.parametrize("answer", [too_short, raising(ValueError("no frame")), lambda *_: math.nan])
def test_stoi_without_an_answer_is_not_a_number(stand_ins, answer):
    stand_ins["stoi"] = answer
    assert math.isnan(signal.stoi(noise(0), noise(1), RATE))


def test_pesq_without_an_answer_is_not_a_number(stand_ins):
    stand_ins["pesq"] = raising(sys.modules["pesq"].PesqError("no utterances"))
    assert math.isnan(signal.pesq(noise(0), noise(1), RATE))
    stand_ins["pesq"] = raising(MemoryError())
    with pytest.raises(MemoryError):  # only what says something about the clip is taken as an answer
        signal.pesq(noise(0), noise(1), RATE)


@pytest.mark.parametrize(("rate", "given"), [(8000, "nb"), (11_025, "nb"), (16_000, "wb"), (44_100, "wb")])
def test_libraries_are_given_the_target_first_at_a_rate_they_know(stand_ins, rate, given):
    target, estimate = noise(0, rate).float(), 2 * noise(0, rate).float()

    def pesq(at, x, y, mode):
        assert (at, mode) == ((16_000, "wb") if given == "wb" else (8000, "nb"))
        assert len(x) == len(y) == at and np.allclose(2 * x, y, atol=1e-5)
        return 3.5

    def stoi(x, y, at):
        assert at == rate and np.allclose(2 * x, y)
        return 0.75

    stand_ins |= {"pesq": pesq, "stoi": stoi}
    assert signal.pesq(estimate, target, rate) == 3.5 and signal.stoi(estimate, target, rate) == 0.75


@pytest.mark.parametrize("measure", MEASURES)
def test_more_noise_lowers_the_score(measure):
    target = speechlike()
    hiss = noise(0, len(target)).float()
    values = [measure(target + level * hiss, target, RATE) for level in (0, 0.001, 0.02)]
    assert values[0] > values[1] > values[2]
    assert values[0] == pytest.approx(1.0 if measure is signal.stoi else 4.64, abs=0.01)


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_judged_is_not_a_number(measure):
    target = speechlike()
    assert math.isnan(measure(target, torch.zeros_like(target), RATE))
    assert math.isnan(measure(target[:1000], target[:1000], RATE))
    assert math.isnan(measure(target[:10], target[:10], RATE))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("rate", [8000, 11025, 24_000])
def test_other_rates_are_brought_to_one_that_the_library_knows(measure, rate):
    target = speechlike(rate=rate)
    assert measure(target, target, rate) == pytest.approx(1.0 if measure is signal.stoi else 4.6, abs=0.1)


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setattr(signal.importlib.util, "find_spec", lambda name: None if name == "pesq" else object())
    assert signal.missing_libraries() == ("pesq",)
