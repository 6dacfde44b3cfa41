"""Verdicts of compare: known differences are found, ties and few units are not, seeds widen intervals."""

import math

import numpy as np
import pytest

from xcodec_lm.tasks.compare.verdict import (
    Metric,
    Statistic,
    difference,
    judge,
    overall,
    ratio_statistic,
    seed_weights,
    what_it_takes,
)
from xcodec_lm.tasks.eval.intervals import DRAWS

WER = Metric("wer", "WER in %", True, 100, ".1f")
CLASS = Metric("class", "class agreement", False)
UNITS = [f"speaker {number}" for number in range(20) for _ in range(4)]


def errors(rate, seed, words=5, noise=0.0):
    """Word errors of items: those of a unit are alike, and the same in both systems but for what is drawn apart."""
    shared = np.repeat(np.random.default_rng(7).normal(0, 0.1, 20), 4)
    own = np.random.default_rng(seed).normal(0, 0.05, len(UNITS))
    return words * (rate + shared + own + noise)


def wer(rate, seed, noise=0.0):
    return ratio_statistic(errors(rate, seed, noise=noise), [5] * len(UNITS), UNITS)


def test_a_ratio_is_that_of_the_sums_and_unjudged_items_are_left_out():
    found = ratio_statistic([1, 3, math.nan, 0], [10, 2, 100, 8], ["a", "a", "b", "c"])
    assert found.value == pytest.approx(4 / 20)
    assert (found.units, found.items) == (2, 3)  # b has nothing that could be judged


def test_a_known_difference_is_found_with_the_right_sign_for_either_direction():
    one, other = [wer(0.3, 1)], [wer(0.4, 2)]
    found = difference(one, other)
    assert found.value == pytest.approx(-0.1, abs=0.02) and found.high < 0
    assert judge(found, WER).verdict == "better"
    assert judge(difference(other, one), WER).verdict == "worse"
    assert judge(found, CLASS).verdict == "worse"  # where more is better


def test_pairing_takes_out_what_units_have_in_common():
    paired = difference([wer(0.3, 1)], [wer(0.32, 2)])
    single = difference([wer(0.3, 1)], [Statistic(0.0, np.zeros(DRAWS), 20, 80)])
    assert paired.high - paired.low < 0.5 * (single.high - single.low)


def test_equal_systems_are_no_difference_and_identical_ones_have_an_interval_of_nothing():
    found = judge(difference([wer(0.3, 1)], [wer(0.3, 2)]), WER, unit="speaker")
    assert found.verdict == "no difference shown" and found.low < 0 < found.high
    same = judge(difference([wer(0.3, 1)], [wer(0.3, 1)]), WER)
    assert (same.value, same.low, same.high, same.verdict) == (0, 0, 0, "no difference shown")


def test_below_ten_units_nothing_is_decidable_however_large_the_difference():
    units = [f"piece {number}" for number in range(9)]
    one, other = (ratio_statistic([value] * 9, [1] * 9, units) for value in (0.0, 100.0))
    found = judge(difference([one], [other]), WER, unit="piece")
    assert found.verdict == "not decidable" and found.why == "9 pieces, fewer than 10"
    units.append("piece 9")
    one, other = (ratio_statistic([value] * 10, [1] * 10, units) for value in (0.0, 100.0))
    assert judge(difference([one], [other]), WER, unit="piece").verdict == "better"


def test_a_doubtful_judge_withholds_the_verdict_and_leaves_the_figures():
    found = judge(difference([wer(0.3, 1)], [wer(0.4, 2)]), WER, doubt="it knows the speakers")
    assert found.verdict == "not decidable" and found.why == "it knows the speakers"
    assert found.value == pytest.approx(-0.1, abs=0.02)


def test_bits_never_give_a_verdict():
    bits = Metric("bits_per_s", "bits per second", None)
    assert judge(difference([wer(0.1, 1)], [wer(0.9, 2)]), bits).verdict == ""


def test_seeds_that_disagree_widen_the_interval_beyond_that_over_units():
    alike = difference([wer(0.30, 1), wer(0.30, 3), wer(0.30, 5)], [wer(0.35, 2), wer(0.35, 4), wer(0.35, 6)])
    apart = difference([wer(0.30, 1), wer(0.30, 3), wer(0.30, 5)], [wer(0.25, 2), wer(0.35, 4), wer(0.45, 6)])
    assert alike.value == pytest.approx(apart.value, abs=0.02)
    assert judge(alike, WER).verdict == "better" and judge(apart, WER).verdict == "no difference shown"
    assert apart.spread_seeds > 10 * apart.spread_units
    assert len(apart.by_seed) == apart.seeds == 3


def test_the_spread_over_seeds_is_that_of_a_mean_of_so_many():
    """Drawing S - 1 of S seeds gives s^2 / S, without units that vary."""
    values = [0.0, 1.0, 5.0]
    flat = [Statistic(value, np.full(DRAWS, value), 20, 20) for value in values]
    nothing = [Statistic(0.0, np.zeros(DRAWS), 20, 20)] * 3
    draws = (np.array(values) * seed_weights(3)).sum(axis=1)
    assert draws.var() == pytest.approx(np.var(values, ddof=1) / 3, rel=0.1)
    assert difference(flat, nothing).spread_seeds == pytest.approx(np.var(values, ddof=1) / 3)
    assert np.allclose(seed_weights(2).sum(axis=1), 1) and np.allclose(seed_weights(1), 1)


def test_intervals_hold_what_they_promise():
    """Of 200 experiments without a difference about one in twenty shows one."""
    wrong, units = 0, [str(number) for number in range(40)]
    for trial in range(200):
        rng = np.random.default_rng(trial)
        a, b = (ratio_statistic(rng.normal(0, 1, 40), np.ones(40), units) for _ in range(2))
        wrong += judge(difference([a], [b]), CLASS).verdict != "no difference shown"
    assert 2 <= wrong <= 24  # 5 % of 200, and what 200 coins allow; percentile intervals are a little narrow


def test_what_would_change_it_grows_with_the_square_of_what_is_missing():
    def found(value):
        return difference(
            [Statistic(value, np.random.default_rng(0).normal(value, 0.1, DRAWS), 10, 10)],
            [Statistic(0.0, np.zeros(DRAWS), 10, 10)],
        )

    def units(value):
        text = what_it_takes(found(value), CLASS, "piece")
        return int(text.split("about ")[1].split(" ")[0])

    # variance 0.01 at 10 units; 0.1 needs (2.8 / 0.1)^2 * 0.1 units
    assert units(0.1) == pytest.approx(10 * 0.01 * (2.8 / 0.1) ** 2, rel=0.1)
    assert units(0.05) == pytest.approx(4 * units(0.1), rel=0.05)
    assert "more seeds would tell" in what_it_takes(found(0.1), CLASS, "piece")


def test_where_seeds_are_what_varies_units_alone_are_not_named():
    values = [0.5, -0.4, 0.2]
    flat = [Statistic(v, np.random.default_rng(0).normal(v, 1e-3, DRAWS), 20, 20) for v in values]
    text = what_it_takes(difference(flat, [Statistic(0.0, np.zeros(DRAWS), 20, 20)] * 3), CLASS, "piece")
    assert "seeds with these 20 pieces" in text and "about 20 pieces with" not in text


def test_unequal_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        difference([wer(0.3, 1)], [wer(0.3, 1), wer(0.3, 2)])


def test_the_whole_goes_by_what_was_decided_and_not_by_half_of_a_contradiction():
    better, worse, same, lost = (
        judge(difference([a], [b]), WER, doubt)
        for a, b, doubt in (
            (wer(0.3, 1), wer(0.4, 2), ""), (wer(0.4, 1), wer(0.3, 2), ""), (wer(0.3, 1), wer(0.3, 2), ""),
            (wer(0.3, 1), wer(0.4, 2), "no judge"),
        )
    )  # fmt: skip
    assert overall([better, same], ["x", "y"]) == ("better", "by x")
    assert overall([same, worse], ["x", "y"]) == ("worse", "by y")
    assert overall([better, worse], ["x", "y"]) == ("not decidable", "better by x; worse by y")
    assert overall([same, lost], ["x", "y"]) == ("no difference shown", "by x")
    assert overall([lost], ["x"]) == ("not decidable", "no judge")
    assert overall([], [])[0] == "not decidable"
