"""Distances between sets of clips: exact values, weights that repeat clips, intervals, paired differences."""

import numpy as np
import pytest

from xcodec_lm.tasks.eval.frechet import frechet_distance
from xcodec_lm.tasks.eval.set_distances import _kid, _moments, dims_for, frechet_drawn, kid_drawn

ROWS = 24


def gaussians(seed, shift=0.0, dims=3):
    return np.random.default_rng(seed).standard_normal((ROWS, dims)) + shift


def units(each=2):
    return [f"r{row // each}" for row in range(ROWS)]


def test_the_value_is_the_distance_and_lies_within_its_interval():
    reference, near, far = gaussians(0), gaussians(1), gaussians(2, shift=3)
    for drawn, value in ((frechet_drawn([near], reference, units()), frechet_distance(near, reference)),
                         (frechet_drawn([far], reference, units()), frechet_distance(far, reference))):  # fmt: skip
        found = drawn.estimate()
        assert found.value == pytest.approx(value) and found.low < found.value < found.high
        assert (found.units, found.scored) == (ROWS // 2, ROWS)
    both = frechet_drawn([near, far], reference, units())
    assert both.value == pytest.approx((frechet_distance(near, reference) + frechet_distance(far, reference)) / 2)
    assert frechet_drawn([reference], reference, units()).estimate().value == pytest.approx(0, abs=1e-6)


def test_weights_count_rows_as_if_they_were_there_several_times():
    rows = gaussians(3)
    times = np.random.default_rng(4).integers(0, 4, ROWS)
    repeated = np.repeat(rows, times, axis=0)
    mean, spread = (part[0] for part in _moments(rows, times[None].astype(float)))
    np.testing.assert_allclose(mean, repeated.mean(0), atol=1e-9)
    np.testing.assert_allclose(spread, np.cov(repeated, rowvar=False), atol=1e-9)


def test_kid_is_the_mean_over_pairs_of_different_rows():
    x, y = gaussians(5), gaussians(6, shift=1)
    total, off = 0.0, [(i, j) for i in range(ROWS) for j in range(ROWS) if i != j]
    for i, j in off:
        total += sum(sign * (a[i] @ b[j] / 3 + 1) ** 3 for sign, a, b in ((1, x, x), (1, y, y), (-2, x, y)))
    assert _kid(x, y, np.ones((1, ROWS)))[0] == pytest.approx(total / len(off))
    assert kid_drawn([y], y, units()).value == pytest.approx(0, abs=1e-9)
    assert kid_drawn([y], x, units()).value > kid_drawn([gaussians(7)], x, units()).value


def test_a_difference_is_drawn_together_so_it_is_narrower_than_its_parts():
    reference = gaussians(8)
    near = reference + 0.1 * gaussians(9)
    one, other = (frechet_drawn([rows], reference, units()) for rows in (near + 2, near + 2.5))
    found = one.minus(other)
    assert found.value == pytest.approx(one.value - other.value) and found.high < 0
    assert found.verdict(lower_is_better=True) == "better"
    parts = [part.estimate() for part in (one, other)]
    assert found.high - found.low < sum(part.high - part.low for part in parts)
    few = [f"r{row % 5}" for row in range(ROWS)]
    assert frechet_drawn([near], reference, few).minus(frechet_drawn([near + 3], reference, few)).verdict(True) == (
        "not decidable"
    )


def test_few_rows_are_compared_on_few_axes():
    assert [dims_for(rows) for rows in (2, 12, 48, 500)] == [1, 4, 16, 16]
