"""Anchors and bits per token: proper distributions, equal tokens for all, and no token counted twice."""

from typing import Any

import numpy as np
import pytest
import torch

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.anchors import (
    BigramModel,
    UnigramModel,
    document_bits,
    mean_bits,
    model_bits,
    repeat_last_frame,
    shuffled,
)
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from

SPEC = TokenSpec("toy", 16_000, 16_000, 320, (6, 6, 6))


def make_layout(n_q=2, ids: Any = "offset", specials: Any = "standard"):
    return layout_from(LayoutConfig("first" if n_q == 1 else "flatten", n_q, ids, specials), SPEC)


def make_model(layout, specials, block=16):
    torch.manual_seed(0)
    config = LayoutConfig("first" if layout.n_q == 1 else "flatten", layout.n_q, "offset", specials)
    model = GPT(GPTConfig(layers=2, heads=2, dim=16, block=block, layout=config), layout.vocabulary.size).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def recordings(count=8, frames=60, seed=0):
    """Codes in which a frame's codes mostly follow from those before: (3, frames) each."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        first = (np.arange(frames) + rng.integers(6) + (rng.random(frames) < 0.2)) % 6
        result.append(torch.from_numpy(np.stack([first, (first * 2 + 1) % 6, rng.integers(0, 6, frames)])))
    return result


def frame_bigram(layout):
    return BigramModel(layout, lag=layout.ids_per_frame)


@pytest.mark.parametrize("kind", [UnigramModel, BigramModel, frame_bigram])
@pytest.mark.parametrize("ids", ["offset", "shared"])
@pytest.mark.parametrize("train", [0, 1, 8, 12])
def test_probabilities_of_a_position_sum_to_one(kind, ids, train):
    layout = make_layout(3, ids)
    anchor = kind(layout).fit([layout.pack(codes)[:30] for codes in recordings(train)])
    base = layout.pack(recordings(1, seed=5)[0])[:12]
    for position in range(12):
        low, high = layout.logit_range(position)
        total = 0.0
        for value in range(low, high):
            changed = base.clone()
            changed[position] = value
            total += 2.0 ** -anchor.bits(changed[: position + 1])[position]
        assert total == pytest.approx(1)


def test_unigram_is_the_entropy_of_the_codes_and_bigram_sees_order():
    layout = make_layout(1)
    alternating = [torch.tensor([[0, 1] * 200])]
    unigram, bigram = UnigramModel(layout), BigramModel(layout)
    for anchor in (unigram, bigram):
        anchor.fit([layout.pack(codes) for codes in alternating])
    assert mean_bits(unigram, alternating) == pytest.approx(1, abs=0.05)
    assert mean_bits(bigram, alternating) < 0.05
    held_out = recordings(4, seed=9)
    for anchor in (unigram, bigram):
        anchor.fit([layout.pack(codes) for codes in recordings()])
    assert mean_bits(bigram, held_out) < mean_bits(unigram, held_out) - 1


def test_unigrams_of_shared_ids_are_kept_apart_by_codebook():
    layout = make_layout(2, "shared")
    codes = [torch.tensor([[0] * 50, [5] * 50])]
    assert mean_bits(UnigramModel(layout).fit([layout.pack(codes[0])]), codes) < 0.15


def test_a_frame_bigram_sees_the_same_codebook_one_frame_before():
    layout = make_layout(3)
    train = [layout.pack(codes) for codes in recordings(20)]
    ordinary, frame = BigramModel(layout).fit(train), BigramModel(layout, lag=3).fit(train)
    held_out = layout.pack(recordings(1, frames=600, seed=9)[0])
    by_book = [anchor.bits(held_out).reshape(-1, 3).mean(0) for anchor in (ordinary, frame)]
    assert by_book[1][0] < by_book[0][0] - 1  # the code before it in the sequence is noise
    assert by_book[0][1] < 0.1 < by_book[1][1]  # here it decides everything


def test_a_bigram_of_few_tokens_is_no_worse_than_its_unigram():
    layout = layout_from(LayoutConfig("first", 1), TokenSpec("toy", 16_000, 16_000, 320, (64,)))
    rng = np.random.default_rng(0)
    noise = [torch.from_numpy(rng.integers(0, 64, (1, 60))) for _ in range(30)]  # order means nothing
    bigram = BigramModel(layout).fit([layout.pack(codes) for codes in noise[:20]])
    assert mean_bits(bigram, noise[20:]) < mean_bits(bigram.unigram, noise[20:]) + 0.02


def test_a_bigram_of_pairs_never_seen_is_no_worse_than_its_unigram():
    layout = make_layout(1)
    anchor = BigramModel(layout).fit([torch.tensor([0, 1, 2, 3, 4])])
    ids = torch.tensor([5, 5, 5])
    np.testing.assert_allclose(anchor.bits(ids), anchor.unigram.bits(ids))


@pytest.mark.parametrize("kind", [UnigramModel, BigramModel, frame_bigram])
def test_samples_are_codes_with_the_fitted_statistics(kind):
    layout = make_layout(3)
    train = [layout.pack(codes) for codes in recordings(20)]
    anchor = kind(layout).fit(train)
    made = anchor.sample(train[0][:9], 400, seed=1)
    assert made.shape == (1200,) and made.dtype == torch.int64
    layout.unpack(made)
    assert torch.equal(made, anchor.sample(train[0][:9], 400, seed=1))
    assert not torch.equal(made, anchor.sample(train[0][:9], 400, seed=2))
    expected = np.mean([anchor.bits(ids).mean() for ids in train])
    assert anchor.bits(made).mean() == pytest.approx(expected, abs=0.15)
    assert anchor.sample(train[0][:0], 2).shape == (6,)


def test_repeat_and_shuffle():
    layout = make_layout(2)
    ids = layout.pack(recordings(1)[0])
    assert repeat_last_frame(layout, ids, 3).tolist() == ids[-2:].tolist() * 3
    with pytest.raises(TokenError, match="no frame"):
        repeat_last_frame(layout, ids[:0], 3)
    mixed = shuffled(layout, ids, seed=1)
    assert not torch.equal(mixed, ids)
    for q in range(2):
        assert sorted(mixed[q::2].tolist()) == sorted(ids[q::2].tolist())
    assert (mixed[1::2] - 6 != (mixed[::2] * 2 + 1) % 6).any()  # what goes with what is lost


@torch.no_grad()
@pytest.mark.parametrize("specials", ["none", "standard"])
@pytest.mark.parametrize("frames", [1, 7, 8, 9, 16, 21])
def test_every_code_is_predicted_once_from_what_precedes_it(specials, frames):
    layout = make_layout(2, specials=specials)
    model = make_model(layout, specials)
    ids = layout.pack(recordings(1, frames)[0])
    bits = document_bits(model, layout, ids, batch=2)
    expected = np.full(len(ids), np.nan)
    for position in range(len(ids)):
        # The window holds the codes behind the last multiple of the block that lies before this position.
        first = max(position - 1, 0) // 16 * 16
        context = ids[first:position]
        if specials == "standard":
            context = torch.cat([torch.tensor([layout.vocabulary.bos]), context])
        if len(context):
            low, high = layout.logit_range(position)
            log_probs = model(context[None])[0, -1, low:high].log_softmax(-1)
            expected[position] = -log_probs[ids[position] - low] / np.log(2)
    assert np.isnan(expected[0]) == (specials == "none")
    np.testing.assert_allclose(bits, expected, atol=1e-5)


@pytest.mark.parametrize("specials", ["none", "standard"])
def test_model_bits_codes_the_same_tokens_as_the_anchors(specials):
    layout = make_layout(2, specials=specials)
    model = make_model(layout, specials)
    codes = recordings(3, 21)
    unigram = UnigramModel(layout).fit([layout.pack(one) for one in codes])
    parts = []
    for one in codes:
        ids = layout.pack(one)
        bits = document_bits(model, layout, ids)
        if specials == "none":
            bits[0] = unigram.bits(ids)[0]
        parts.append(bits)
    assert model_bits(model, layout, codes, unigram) == pytest.approx(np.concatenate(parts).mean())
    with pytest.raises(TokenError, match="no recording"):
        model_bits(model, layout, [], unigram)
