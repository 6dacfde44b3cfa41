"""Drawing ids: the right distribution, the filters, the seed, and the refusals."""

import pytest
import torch

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.lm.sampling import Sampling, draw, probabilities

PROBS = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]])


def generators(rows, seed=0):
    return [torch.Generator().manual_seed(seed + row) for row in range(rows)]


def test_draws_with_the_probabilities_of_the_logits():
    rows = 20_000
    logits = PROBS.log().expand(rows, 5)
    counts = draw(logits, (0, 5), Sampling(), generators(1) * rows).bincount(minlength=5)
    torch.testing.assert_close(counts / rows, PROBS[0], atol=0.012, rtol=0)


def test_temperature_sharpens_and_zero_takes_the_most_likely():
    torch.testing.assert_close(probabilities(PROBS.log(), Sampling(0.5)), PROBS**2 / (PROBS**2).sum())
    for temperature in (0, 1e-42):
        assert draw(PROBS.log().expand(50, 5), (0, 5), Sampling(temperature), generators(50)).unique().tolist() == [0]


def test_filters_keep_what_they_say():
    kept = PROBS[:, :2] / 0.7
    torch.testing.assert_close(probabilities(PROBS.log(), Sampling(top_k=2))[:, :2], kept)
    assert probabilities(PROBS.log(), Sampling(top_k=2))[0, 2:].tolist() == [0, 0, 0]
    for top_p, count in ((0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1.0, 5), (1e-9, 1)):
        probs = probabilities(PROBS[:, [2, 0, 4, 1, 3]].log(), Sampling(top_p=top_p))
        assert int((probs > 0).sum()) == count, top_p
        assert probs.sum().item() == pytest.approx(1)
    assert int((probabilities(PROBS.log(), Sampling(top_k=99)) > 0).sum()) == 5


def test_never_leaves_the_allowed_range():
    logits = torch.zeros(300, 12)
    logits[:, [0, 3, 9, 11]] = 50.0
    for sampling in (Sampling(), Sampling(0), Sampling(top_k=1), Sampling(2.0, 3, 0.9)):
        ids = draw(logits, (4, 9), sampling, generators(300))
        assert bool(((ids >= 4) & (ids < 9)).all())


def test_a_filtered_id_is_never_drawn():
    logits = PROBS.log().expand(3000, 5)
    assert draw(logits, (0, 5), Sampling(top_k=3), generators(3000)).unique().tolist() == [0, 1, 2]


def test_a_rows_draw_depends_on_its_own_generator_alone():
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(5))
    together = draw(logits, (0, 30), Sampling(), generators(4))
    apart = [draw(logits[row : row + 1], (0, 30), Sampling(), [generators(4)[row]]) for row in range(4)]
    assert together.tolist() == torch.cat(apart).tolist()
    others = {tuple(draw(logits, (0, 30), Sampling(), generators(4, seed)).tolist()) for seed in range(8)}
    assert len(others) > 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_k": 1.5}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
    ],
)
def test_refuses_values_out_of_range(values, words):
    with pytest.raises(UsageError, match=words):
        Sampling(**values)
