"""Linear heads: they find what is linear, keep the best epoch, and are scored as the field scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.tasks.eval.linear_head import RECIPES, Recipe, mean_average_precision, train_heads
from xcodec_lm.tasks.eval.probe import linear_probe


def blobs(rows, classes, apart, seed, dims=6):
    rng = np.random.default_rng(seed)
    centres = apart * np.random.default_rng(99).standard_normal((classes, dims))
    labels = np.arange(rows) % classes
    return torch.from_numpy(centres[labels] + rng.standard_normal((rows, dims))).float(), torch.from_numpy(labels)


def predictions(x, heads):
    weights, biases = heads
    return (x @ weights + biases).argmax(2)  # (S, R)


@pytest.mark.parametrize("preset", RECIPES)
def test_one_hot_vectors_are_named_without_error(preset):
    labels = torch.arange(900) % 9  # a hundred rows would be too few for the small steps of `arch`
    x = torch.nn.functional.one_hot(labels, 9).float()
    heads = train_heads(x, labels, x, labels, 9, RECIPES[preset], (0, 1))
    assert (predictions(x, heads) == labels).all()


def test_shuffled_labels_give_chance():
    x, y = blobs(400, 4, 2.0, 0)
    mixed = y[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    z, w = blobs(400, 4, 2.0, 1)
    heads = train_heads(x[:300], mixed[:300], x[300:], mixed[300:], 4, RECIPES["masked"], (0,))
    assert abs(float((predictions(z, heads) == w).double().mean()) - 0.25) < 0.15


def test_agrees_with_a_regression_solved_to_its_end():
    """`probe` minimises the same loss by LBFGS; both find the same boundary of overlapping classes."""
    x, y = blobs(600, 3, 0.6, 0)
    z, w = blobs(600, 3, 0.6, 1)
    heads = train_heads(x[:450], y[:450], x[450:], y[450:], 3, RECIPES["masked"], (0, 1, 2))
    ours = (predictions(z, heads) == w).double().mean(dim=1)
    exact = linear_probe(x, y.tolist(), z, w.tolist()).accuracy
    assert 0.5 < exact < 0.95 and np.allclose(ours, exact, atol=0.02)


def test_scale_and_shift_change_nothing_where_vectors_are_standardised():
    x, y = blobs(120, 3, 1.0, 0)
    stretched = x * torch.logspace(-3, 3, 6) + 50
    stretched = torch.cat([stretched, torch.full((120, 1), 3.0)], dim=1)
    recipe = Recipe(epochs=30, batch=64, lr=1e-2, standardise=True)
    heads = train_heads(x[:90], y[:90], x[90:], y[90:], 3, recipe, (0,))
    other = train_heads(stretched[:90], y[:90], stretched[90:], y[90:], 3, recipe, (0,))
    assert (predictions(x, heads) == predictions(stretched, other)).double().mean() > 0.9


def test_the_epoch_that_validates_best_is_kept():
    """With a rate far too high the last epoch is worse than an early one, which must be what comes back."""
    x, y = blobs(60, 3, 0.3, 0)
    recipes = [Recipe(epochs, 8, 3.0, False) for epochs in (40, 41)]
    losses = []
    for recipe in recipes:
        weights, biases = train_heads(x[:40], y[:40], x[40:], y[40:], 3, recipe, (0,))
        losses.append(float(torch.nn.functional.cross_entropy((x[40:] @ weights + biases)[0], y[40:])))
    assert all(loss < 3.0 for loss in losses)


def test_seeds_differ_and_repeat():
    x, y = blobs(80, 3, 0.8, 0)
    args = (x[:60], y[:60], x[60:], y[60:], 3, Recipe(3, 16, 1e-2, True))
    one, again = train_heads(*args, (5, 6))[0], train_heads(*args, (5, 6))[0]
    assert torch.equal(one, again) and not torch.allclose(one[0], one[1])
    assert torch.allclose(train_heads(*args, (6,))[0][0], one[1], atol=1e-5)  # a seed does not depend on the others


def test_several_labels_are_learnt():
    rng = torch.Generator().manual_seed(0)
    truth = (torch.rand(200, 4, generator=rng) < 0.4).float()
    x = truth + 0.1 * torch.randn(200, 4, generator=rng)
    weights, biases = train_heads(x[:150], truth[:150], x[150:], truth[150:], 4, RECIPES["masked"], (0,))
    scores = (x[150:] @ weights + biases)[0].numpy()
    assert mean_average_precision(scores, truth[150:].numpy() > 0) > 0.99


def test_validation_rows_of_unknown_labels_do_not_matter():
    x, y = blobs(60, 3, 2.0, 0)
    unknown = torch.full((5,), -1)
    heads = train_heads(x[:40], y[:40], x[35:], torch.cat([y[35:40], unknown, y[45:]]), 3, RECIPES["masked"], (0,))
    assert (predictions(x, heads) == y).double().mean() > 0.9


def test_average_precision_by_hand():
    # hits at ranks 1 and 3: (1/1 + 2/3) / 2
    scores = np.array([[4.0], [3.0], [2.0], [1.0]])
    truth = np.array([[True], [False], [True], [False]])
    assert mean_average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(np.zeros((4, 1)), truth) == pytest.approx(0.5)  # all tied: the share of hits
    both = np.concatenate([truth, np.zeros((4, 1), bool)], axis=1)
    assert mean_average_precision(np.repeat(scores, 2, axis=1), both) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(mean_average_precision(scores, np.zeros((4, 1), bool)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_average_precision_is_the_sum_over_thresholds(rows):
    scores = np.array([[float(score)] for score, _ in rows])
    truth = np.array([[hit] for _, hit in rows])
    if not truth.any():
        return
    total, before = 0.0, 0.0
    for threshold in sorted({score for score, _ in rows}, reverse=True):
        chosen = [hit for score, hit in rows if score >= threshold]
        recall, precision = sum(chosen) / truth.sum(), sum(chosen) / len(chosen)
        total, before = total + (recall - before) * precision, recall
    assert mean_average_precision(scores, truth) == pytest.approx(total)
