"""Drawing ids: the right distribution under every filter, noise of each request's own, and the refusals."""

import math

import pytest
import torch
from scipy.stats import chisquare

from xcodec_lm import configs
from xcodec_lm.configs.errors import ConfigError, UsageError
from xcodec_lm.lm.sampling import NO_ID, Sampling, draw, guide, mixture, penalise, probabilities, row_noise

ROWS, COUNT = 4000, 12
LOGITS = torch.tensor([[-0.6, 1.6, 0.1, 1.1, 1.5, -2.5, 0.3, 0.9, -1.0, 2.0, -1.7, -0.2]])
RECENT = torch.tensor([[NO_ID, 4, 4, 0, 4, 11, 7]])
FILTERS = {
    "none": Sampling(),
    "temperature": Sampling(0.6),
    "top-k": Sampling(top_k=4),
    "top-p": Sampling(top_p=0.7),
    "min-p": Sampling(min_p=0.3),
    "penalty": Sampling(repetition_penalty=1.7),
    "penalty over a window": Sampling(repetition_penalty=1.7, repetition_window=2),
    "all": Sampling(0.8, 9, 0.9, 0.1, repetition_penalty=1.3),
    "repetition-aware": Sampling(0.9, top_k=6, ras_window=5, ras_threshold=0.3),
}


def noise_of(redraw=False, rows=ROWS):
    return torch.stack([row_noise(seed, 7, COUNT, redraw) for seed in range(rows)])


@pytest.fixture(scope="module")
def noises():
    return noise_of(), noise_of(redraw=True)


def reference(logits, s, recent):
    """Filtered and unfiltered probabilities of one row, from the definitions."""
    logits = [float(value) for value in logits]
    if s.repetition_penalty != 1:
        for column in {int(one) for one in recent[-s.repetition_window :] if one != NO_ID}:
            factor = 1 / s.repetition_penalty if logits[column] > 0 else s.repetition_penalty
            logits[column] *= factor
    weights = [math.exp(value / s.temperature) for value in logits]
    full = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(full)), key=lambda column: -full[column])
    kept = order[: s.top_k] if s.top_k else order
    total, nucleus, mass = sum(full[column] for column in kept), [], 0.0
    for column in kept:
        if mass >= s.top_p:
            break
        nucleus.append(column)
        mass += full[column] / total
    nucleus = [column for column in nucleus if full[column] >= s.min_p * full[order[0]]]
    total = sum(full[column] for column in nucleus)
    return [full[column] / total if column in nucleus else 0.0 for column in range(len(full))], full


def expected(s):
    filtered, full = reference(LOGITS[0], s, RECENT[0].tolist())
    if not s.ras_window:
        return filtered
    window = RECENT[0, -s.ras_window :].tolist()
    repeated = [window.count(column) / s.ras_window > s.ras_threshold for column in range(COUNT)]
    refused = sum(p for p, again in zip(filtered, repeated, strict=True) if again)
    kept = [0.0 if again else p for p, again in zip(filtered, repeated, strict=True)]
    return [p + refused * q for p, q in zip(kept, full, strict=True)]


def p_value(counts, probabilities):
    """Of the chi-square test, in which columns expected fewer than 10 times count as one."""
    wanted = probabilities.double() / probabilities.double().sum() * counts.sum()
    rare = wanted < 10
    groups = [torch.cat([values[~rare], values[rare].sum()[None]]) for values in (counts.double(), wanted)]
    return chisquare(*(group[groups[1] > 0] for group in groups)).pvalue


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_probabilities_of_the_definition(name, noises):
    sampling, wanted = FILTERS[name], torch.tensor(expected(FILTERS[name]))
    drawn = draw(LOGITS.expand(ROWS, -1), sampling, noises[0], RECENT.expand(ROWS, -1), noises[1])
    counts = drawn.bincount(minlength=COUNT)
    assert int(counts[wanted == 0].sum()) == 0
    assert p_value(counts, wanted) > 1e-3
    torch.testing.assert_close(mixture(LOGITS, sampling, RECENT)[0], wanted, atol=1e-6, rtol=0)


def test_the_chi_square_test_tells_filters_apart(noises):
    counts = draw(LOGITS.expand(ROWS, -1), Sampling(0.9), noises[0]).bincount(minlength=COUNT)
    assert p_value(counts, torch.tensor(expected(Sampling()))) < 1e-3


def test_repetition_aware_draws_equal_a_loop(noises):
    sampling = Sampling(0.8, top_p=0.8, ras_window=5, ras_threshold=0.2)
    windows = torch.randint(-1, COUNT, (ROWS, 9), generator=torch.Generator().manual_seed(4))
    logits = 3 * torch.randn(ROWS, COUNT, generator=torch.Generator().manual_seed(5))
    drawn = draw(logits, sampling, noises[0], windows, noises[1]).tolist()
    redrawn = 0
    for row in range(300):
        filtered, full = reference(logits[row], sampling, windows[row].tolist())
        race = [p / float(e) for p, e in zip(filtered, noises[0][row], strict=True)]
        column = race.index(max(race))
        if windows[row, -5:].tolist().count(column) > 1:  # one of five does not exceed 0.2
            race = [p / float(e) for p, e in zip(full, noises[1][row], strict=True)]
            column, redrawn = race.index(max(race)), redrawn + 1
        assert drawn[row] == column
    assert redrawn > 5


def test_a_share_equal_to_the_threshold_does_not_exceed_it(noises):
    logits = torch.zeros(ROWS, COUNT)
    logits[:, 3] = 0.01  # top-k 1 always draws it; the redraw is nearly uniform
    for count, redraws in ((2, False), (3, True)):
        recent = torch.tensor([[3] * count + [5] * (10 - count)])
        sampling = Sampling(top_k=1, ras_window=10, ras_threshold=0.2)
        drawn = draw(logits, sampling, noises[0], recent.expand(ROWS, -1), noises[1])
        assert (drawn.unique().numel() > 1) == redraws


def test_filters_equal_those_of_transformers():
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    source = torch.Generator().manual_seed(6)
    logits = 3 * torch.randn(50, 200, generator=source)
    recent = torch.randint(0, 200, (50, 30), generator=source)
    chain = {
        "repetition_penalty": (1.4, RepetitionPenaltyLogitsProcessor),
        "temperature": (0.7, TemperatureLogitsWarper),
        "top_k": (40, TopKLogitsWarper),
        "top_p": (0.85, TopPLogitsWarper),
        "min_p": (0.05, MinPLogitsWarper),
    }
    for names in [[name] for name in chain] + [list(chain)]:
        scores = logits.clone()
        for name in names:
            scores = chain[name][1](chain[name][0])(recent, scores)
        sampling = Sampling(**{name: chain[name][0] for name in names})
        ours = probabilities(penalise(logits, sampling, recent), sampling)
        torch.testing.assert_close(ours, scores.softmax(-1), atol=1e-6, rtol=1e-5)
        assert torch.equal(ours > 0, scores.isfinite()), names


def test_a_draw_depends_on_its_own_seed_and_position_alone():
    logits = torch.randn(6, COUNT, generator=torch.Generator().manual_seed(5))
    sampling = Sampling(0.9, ras_window=4, ras_threshold=0.25)
    recent = torch.randint(0, COUNT, (6, 4), generator=torch.Generator().manual_seed(6))
    noise, second = noise_of(rows=6), noise_of(True, rows=6)
    together = draw(logits, sampling, noise, recent, second)
    for rows in ([0], [5], [3, 1], [4, 2, 0]):
        assert torch.equal(draw(logits[rows], sampling, noise[rows], recent[rows], second[rows]), together[rows])
    assert torch.equal(row_noise(3, 9, 50), row_noise(3, 9, 50))
    assert torch.equal(row_noise(3, 9, 51)[:50], row_noise(3, 9, 50))
    others = [row_noise(3, 8, 50), row_noise(2, 9, 50), row_noise(3, 9, 50, redraw=True)]
    assert all(not torch.equal(one, row_noise(3, 9, 50)) for one in others)
    long = row_noise(0, 0, 100_000)
    assert float(long.min()) > 0 and float(long.mean()) == pytest.approx(1, abs=0.02)


def test_no_temperature_overflows_and_zero_takes_the_first_of_the_largest(noises):
    logits = torch.tensor([[1e4, 9999.0, -1e4, 1e4, 0.0]])
    for temperature in (1e-4, 1e-42):
        probs = probabilities(logits, Sampling(temperature, top_p=0.99, min_p=0.1))
        assert probs.tolist() == [[0.5, 0, 0, 0.5, 0]]
    drawn = draw(logits.expand(200, -1), Sampling(1e-4), noises[0][:200, :5])
    assert set(drawn.tolist()) == {0, 3}
    recent = torch.zeros(1, 10, dtype=torch.long)
    assert draw(logits, Sampling(0, ras_window=10), recent=recent).tolist() == [0]
    assert draw(logits, Sampling(0, repetition_penalty=2.0), recent=recent).tolist() == [3]
    assert draw(logits.half(), Sampling(0.1), noises[0][:1, :5]).item() in (0, 3)


def test_ids_as_likely_as_the_last_that_stays():
    ties = torch.tensor([[1.0, 0.0, 1.0, 1.0, -1.0]])
    assert (probabilities(ties, Sampling(top_k=2)) > 0).tolist() == [[True, False, True, True, False]]
    assert (probabilities(ties, Sampling(min_p=1.0)) > 0).tolist() == [[True, False, True, True, False]]
    third = math.exp(1) / (3 * math.exp(1) + 1 + math.exp(-1))
    assert int((probabilities(ties, Sampling(top_p=1.5 * third)) > 0).sum()) == 2  # the fewest, the first of equal ones
    assert int((probabilities(ties, Sampling(top_k=99)) > 0).sum()) == 5


def test_a_column_that_is_not_allowed_is_never_drawn(noises):
    logits = LOGITS.expand(ROWS, -1).clone()
    logits[:, 4] = -torch.inf  # such as eos before the minimum length
    for sampling in FILTERS.values():
        drawn = draw(logits, sampling, noises[0], RECENT.expand(ROWS, -1), noises[1])
        assert not bool((drawn == 4).any())


def test_recent_ids_without_a_column_are_ignored():
    far = torch.tensor([[NO_ID, 99, COUNT]])
    assert torch.equal(penalise(LOGITS, Sampling(repetition_penalty=3.0), far), LOGITS)
    assert torch.equal(penalise(LOGITS, Sampling(repetition_penalty=3.0), None), LOGITS)


def test_guidance_moves_away_from_the_unconditional():
    conditional, unconditional = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    assert guide(conditional, unconditional, 1.0).tolist() == [[1, 2]]
    assert guide(conditional, unconditional, 3.0).tolist() == [[3, 0]]
    assert guide(conditional, unconditional, 0.0).tolist() == [[0, 3]]


def test_books_have_settings_of_their_own():
    sampling = Sampling(top_p=0.9, books=((0, "temperature", 0.7), (2, "top_k", 20.0), (2, "ras_window", 8)))
    assert sampling.for_book(0) == Sampling(0.7, top_p=0.9)
    assert sampling.for_book(1) == Sampling(top_p=0.9)
    assert sampling.for_book(2) == Sampling(top_k=20, top_p=0.9, ras_window=8)
    assert (sampling.history, Sampling().history, Sampling(repetition_penalty=2).history) == (8, 0, 64)
    assert configs.from_dict(configs.to_dict(sampling), Sampling, "here") == sampling
    with pytest.raises(ConfigError, match="unknown key 'top_q'"):
        configs.from_dict({"top_q": 1}, Sampling, "here")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_k": 1.5}, "top-k"),
        ({"top_k": float("nan")}, "top-k"),
        ({"top_k": float("inf")}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"min_p": -0.1}, "min-p"),
        ({"min_p": 1.1}, "min-p"),
        ({"ras_window": -1}, "ras-window"),
        ({"ras_threshold": 1.5}, "ras-threshold"),
        ({"repetition_penalty": 0.0}, "repetition-penalty"),
        ({"repetition_window": 0}, "repetition-window"),
        ({"cfg_scale": -1.0}, "cfg-scale"),
        ({"books": ((0, "top_q", 1.0),)}, "no setting of a codebook"),
        ({"books": ((-1, "top_k", 1),)}, "books must hold"),
        ({"books": ((1, "temperature", -1.0),)}, "temperature"),
    ],
)
def test_refuses_values_out_of_range(values, words):
    with pytest.raises(UsageError, match=words):
        Sampling(**values)


def test_a_draw_without_its_noise_is_refused():
    with pytest.raises(ValueError, match="needs noise"):
        draw(LOGITS, Sampling())
    with pytest.raises(ValueError, match="second draw"):
        draw(LOGITS, Sampling(ras_window=3), noise_of(rows=1), RECENT)
