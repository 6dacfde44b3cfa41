"""Anchors and bits per code: proper distributions, equal codes for all, and no code counted twice."""

import numpy as np
import pytest
import torch

from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm.anchors import BigramModel, UnigramModel, mean_bits, repeat_last_frame, shuffled


def recordings(count=8, frames=60, seed=0):
    """Codes in which a frame's codes mostly follow from those before: (3, frames) each."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        first = (np.arange(frames) + rng.integers(6) + (rng.random(frames) < 0.2)) % 6
        result.append(torch.from_numpy(np.stack([first, (first * 2 + 1) % 6, rng.integers(0, 6, frames)])))
    return result


def books(count, made):
    return [codes[:count] for codes in made]


def frame_bigram(sizes):
    return BigramModel(sizes, lag=len(sizes))


KINDS = pytest.mark.parametrize("kind", [UnigramModel, BigramModel, frame_bigram])


@KINDS
@pytest.mark.parametrize("train", [0, 1, 8, 12])
def test_probabilities_of_a_place_sum_to_one(kind, train):
    sizes = (6, 7, 8)
    anchor = kind(sizes).fit(codes[:, :10] for codes in recordings(train))
    base = recordings(1, seed=5)[0][:, :4]
    for time in range(4):
        for book, size in enumerate(sizes):
            total = 0.0
            for value in range(size):
                changed = base.clone()
                changed[book, time] = value
                total += 2.0 ** -anchor.bits(changed)[book, time]
            assert total == pytest.approx(1)


def test_unigram_is_the_entropy_of_the_codes_and_bigram_sees_order():
    alternating = [torch.tensor([[0, 1] * 200])]
    unigram, bigram = UnigramModel((6,)), BigramModel((6,))
    for anchor in (unigram, bigram):
        anchor.fit(alternating)
    assert mean_bits(unigram, alternating) == pytest.approx([1], abs=0.05)
    assert mean_bits(bigram, alternating) < 0.05
    held_out = books(1, recordings(4, seed=9))
    for anchor in (unigram, bigram):
        anchor.fit(books(1, recordings()))
    assert mean_bits(bigram, held_out) < mean_bits(unigram, held_out) - 1


def test_codebooks_are_kept_apart():
    codes = [torch.tensor([[0] * 50, [5] * 50])]
    assert (mean_bits(UnigramModel((6, 6)).fit(codes), codes) < 0.2).all()


def test_a_frame_bigram_sees_the_same_codebook_one_frame_before():
    train, held_out = recordings(20), recordings(1, frames=600, seed=9)
    ordinary, frame = (mean_bits(BigramModel((6, 6, 6), lag).fit(train), held_out) for lag in (1, 3))
    assert frame[0] < ordinary[0] - 1  # the code before it in the sequence is noise
    assert ordinary[1] < 0.1 < frame[1]  # here it decides everything


def test_a_bigram_of_few_codes_is_no_worse_than_its_unigram():
    rng = np.random.default_rng(0)
    noise = [torch.from_numpy(rng.integers(0, 64, (1, 60))) for _ in range(30)]  # order means nothing
    bigram = BigramModel((64,)).fit(noise[:20])
    assert mean_bits(bigram, noise[20:]) < mean_bits(bigram.unigram, noise[20:]) + 0.02


def test_a_bigram_of_pairs_never_seen_is_no_worse_than_its_unigram():
    anchor = BigramModel((6,)).fit([torch.tensor([[0, 1, 2, 3, 4]])])
    codes = torch.tensor([[5, 5, 5]])
    np.testing.assert_allclose(anchor.bits(codes), anchor.unigram.bits(codes))


@KINDS
def test_samples_are_codes_with_the_fitted_statistics(kind):
    train = recordings(20)
    anchor = kind((6, 6, 6)).fit(train)
    made = anchor.sample(train[0][:, :3], 400, seed=1)
    assert made.shape == (3, 400) and made.dtype == torch.int64 and 0 <= made.min() <= made.max() < 6
    assert torch.equal(made, anchor.sample(train[0][:, :3], 400, seed=1))
    assert not torch.equal(made, anchor.sample(train[0][:, :3], 400, seed=2))
    expected = np.mean([anchor.bits(codes).mean() for codes in train])
    assert anchor.bits(made).mean() == pytest.approx(expected, abs=0.15)
    assert anchor.sample(train[0][:, :0], 2).shape == (3, 2)


def test_repeat_and_shuffle():
    codes = recordings(1)[0][:2]
    assert torch.equal(repeat_last_frame(codes, 3), codes[:, -1:].expand(-1, 3))
    with pytest.raises(TokenError, match="no frame"):
        repeat_last_frame(codes[:, :0], 3)
    mixed = shuffled(codes, seed=1)
    assert not torch.equal(mixed, codes)
    for row in range(2):
        assert sorted(mixed[row].tolist()) == sorted(codes[row].tolist())
    assert (mixed[1] != (mixed[0] * 2 + 1) % 6).any()  # what goes with what is lost


def test_no_recording_is_an_error():
    with pytest.raises(TokenError, match="no recording"):
        mean_bits(UnigramModel((6,)), [])
