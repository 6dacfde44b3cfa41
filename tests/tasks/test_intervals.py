"""Bootstrap intervals over units."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate


def names(count, clips=1):
    return [f"u{unit}" for unit in range(count) for _ in range(clips)]


def test_interval_of_a_mean_agrees_with_its_standard_error():
    values = np.random.default_rng(0).standard_normal(400)
    estimate = mean_estimate(values, names(400))
    assert estimate.value == pytest.approx(values.mean())
    width = 2 * 1.96 * values.std() / math.sqrt(400)
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.08)
    assert (estimate.units, estimate.scored, estimate.unscored) == (400, 400, 0)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):  # units differ from each other more than their clips do
        values = np.repeat(rng.standard_normal(30), 4) + 0.1 * rng.standard_normal(120)
        estimate = mean_estimate(values, names(30, 4), seed=trial)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.86 <= covered / 100 <= 0.99


def test_units_are_resampled_whole():
    values = np.repeat(np.random.default_rng(0).standard_normal(20), 50)
    by_unit, by_clip = (mean_estimate(values, units) for units in (names(20, 50), names(1000)))
    assert by_unit.value == pytest.approx(by_clip.value)
    assert (by_unit.high - by_unit.low) > 4 * (by_clip.high - by_clip.low)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), shift=st.floats(-5, 5), units=st.integers(2, 30))
def test_moves_with_the_values_and_does_not_depend_on_the_order(seed, shift, units):
    rng = np.random.default_rng(seed)
    values, labels = rng.standard_normal(60), rng.integers(0, units, 60).astype(str).tolist()
    estimate = mean_estimate(values, labels)
    moved = mean_estimate(values + shift, labels)
    assert moved.low == pytest.approx(estimate.low + shift) and moved.high == pytest.approx(estimate.high + shift)
    order = rng.permutation(60)
    shuffled = mean_estimate(values[order], [labels[i] for i in order])
    assert shuffled.low == pytest.approx(estimate.low) and shuffled.units == estimate.units
    assert estimate.low <= estimate.value + 1e-9 and estimate.value <= estimate.high + 1e-9


def test_the_same_seed_gives_the_same_interval_and_another_one_hardly_differs():
    values = np.random.default_rng(0).standard_normal(50)
    first, again, other = (mean_estimate(values, names(50), seed) for seed in (0, 0, 1))
    assert first == again and first != other and first.low == pytest.approx(other.low, abs=0.05)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(0)
    shared = 10 * rng.standard_normal(40)
    a, b = shared + 0.1 * rng.standard_normal(40), shared + 0.1 * rng.standard_normal(40) + 0.2
    difference = difference_estimate(a, b, names(40))
    assert difference.value == pytest.approx(a.mean() - b.mean()) and difference.high < 0
    assert difference.verdict(lower_is_better=True) == "better"
    assert difference.verdict(lower_is_better=False) == "worse"
    assert difference_estimate(b, a, names(40)).verdict(lower_is_better=True) == "worse"
    assert difference_estimate(a, a, names(40)).verdict(lower_is_better=True) == "no difference shown"


def test_fewer_than_ten_units_decide_nothing():
    clear = [-1.0] * 90
    assert difference_estimate(clear, [0.0] * 90, names(9, 10)).verdict(True) == "not decidable"
    assert difference_estimate(clear, [0.0] * 90, names(10, 9)).verdict(True) == "better"


def test_unscored_clips_are_counted_and_not_replaced():
    estimate = mean_estimate([1.0, math.nan, 3.0, math.nan], ["a", "a", "b", "c"])
    assert (estimate.value, estimate.units, estimate.scored, estimate.unscored) == (2.0, 2, 2, 2)
    nothing = mean_estimate([math.nan], ["a"])
    assert nothing.to_dict() == {
        "value": None, "low": None, "high": None, "units": 0, "scored": 0, "unscored": 1
    }  # fmt: skip
    paired = difference_estimate([1.0, math.nan, 2.0], [0.0, 0.0, math.nan], ["a", "b", "c"])
    assert (paired.value, paired.scored, paired.unscored) == (1.0, 1, 2)


def test_one_unit_has_a_mean_without_an_interval():
    estimate = mean_estimate([1.0, 2.0], ["a", "a"])
    assert estimate.value == 1.5 and math.isnan(estimate.low) and estimate.to_dict()["high"] is None


def test_values_and_units_must_match():
    with pytest.raises(ValueError, match="2 values for 1 units"):
        mean_estimate([1.0, 2.0], ["a"])
