"""Inputs and targets: every code is predicted once from what comes before it, whatever shares its row."""

from typing import Any

import numpy as np
import pytest
import torch

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.lm import DepthConfig, GPTConfig, LayoutConfig
from xcodec_lm.lm.anchors import UnigramModel, model_bits
from xcodec_lm.lm.examples import (
    IGNORED,
    cell_logits,
    cell_nats,
    code_bits,
    make_batch,
    make_example,
    recording_bits,
    steps_of,
)
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import END, layout_from

LAYOUTS: list[dict[str, Any]] = [
    {"name": "first"},
    {"name": "first", "specials": "none"},
    {"name": "flatten", "n_q": 3},
    {"name": "flatten", "n_q": 2, "ids": "shared"},
    {"name": "coarse_first", "n_q": 2, "chunk": 3},
    {"name": "delay", "n_q": 3},
    {"name": "parallel", "n_q": 2},
    {"name": "depth", "n_q": 3},
    {"name": "grouped", "group": 2},
]
every_layout = pytest.mark.parametrize("options", LAYOUTS, ids=lambda options: "-".join(map(str, options.values())))


def make(block=60, **options: Any):
    config = LayoutConfig(**options)
    layout = layout_from(config, TokenSpec("toy", 16_000, 16_000, 320, (6, 6, 6)))
    torch.manual_seed(0)
    sizes = GPTConfig(layers=2, heads=2, dim=16, block=block, layout=config, depth=DepthConfig(1, 2, 8))
    model = GPT(sizes, layout.vocabulary.size).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model, layout


def codes_of(frames, seed=0):
    return torch.randint(0, 6, (3, frames), generator=torch.Generator().manual_seed(seed))


def document_mask(document):
    length = document.shape[1]
    same = document[:, :, None] == document[:, None, :]
    return (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


@every_layout
@pytest.mark.parametrize("ends", [True, False])
def test_all_layouts_predict_each_code_once(options, ends):
    _, layout = make(**options)
    for frames in (1, 2, 7):
        example = make_example(layout, codes_of(frames), ends)
        counted = (example.targets != IGNORED).sum()
        has_eos = ends and layout.vocabulary.eos is not None
        missing = 0 if layout.lead else layout.width  # nothing predicts the first step without bos
        assert counted == frames * len(layout.books) + has_eos - missing
        assert (example.rows == END).sum() == has_eos and len(example) == steps_of(layout, frames, ends)
    lengths = np.array([1, 5, 2, 5])
    assert steps_of(layout, lengths, ends).tolist() == [steps_of(layout, int(n), ends) for n in lengths]


def test_a_stretch_by_hand():
    _, layout = make(name="flatten", n_q=2)
    bos, eos = layout.vocabulary.bos, layout.vocabulary.eos
    codes = torch.tensor([[1, 2], [3, 4], [0, 0]])
    ended = make_example(layout, codes, True)
    assert ended.inputs[:, 0].tolist() == [bos, 1, 9, 2, 10] and ended.targets[:, 0].tolist() == [1, 9, 2, 10, eos]
    cut = make_example(layout, codes.numpy().astype("uint16"), False)
    assert cut.inputs[:, 0].tolist() == [bos, 1, 9, 2] and cut.targets[:, 0].tolist() == [1, 9, 2, 10]
    _, bare = make(name="flatten", n_q=2, specials="none")
    cut = make_example(bare, codes, True)
    assert cut.inputs[:, 0].tolist() == [1, 9, 2] and cut.targets[:, 0].tolist() == [9, 2, 10]


@every_layout
@torch.no_grad()
def test_packing_changes_no_loss(options):
    model, layout = make(**options)
    examples = [make_example(layout, codes_of(frames, frames), frames % 2 == 0) for frames in (5, 8, 3, 6)]
    alone = []
    for example in examples:
        batch = make_batch(layout, [[example]])
        assert batch.document is None
        alone.append(cell_nats(layout, cell_logits(model, layout, batch.inputs, batch.targets), batch.targets)[0])
    packed = make_batch(layout, [examples[:2], examples[2:]])
    mask = document_mask(packed.document)
    nats = cell_nats(
        layout, cell_logits(model, layout, packed.inputs, packed.targets, packed.places, mask), packed.targets
    )
    for row, pair in enumerate((alone[:2], alone[2:])):
        expected = torch.cat(pair)
        torch.testing.assert_close(nats[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert (nats[row, len(expected) :] == 0).all()


@every_layout
@torch.no_grad()
def test_losses_are_those_of_the_distribution_that_is_drawn_from(options):
    """With the ids of other codebooks and eos left out, `code_bits`; with them, `cell_nats`."""
    model, layout = make(**options)
    batch = make_batch(layout, [[make_example(layout, codes_of(6), True)]])
    logits = cell_logits(model, layout, batch.inputs, batch.targets)
    nats, bits = cell_nats(layout, logits, batch.targets), code_bits(layout, logits, batch)
    held = batch.rows >= 0
    assert (bits[~held] == 0).all() and (bits[held] > 0).all()
    assert (bits[held] * np.log(2) <= nats[held] + 1e-5).all()
    every = layout.vocabulary
    for position in range(batch.inputs.shape[1]):
        for slot in range(layout.width):
            row = int(batch.rows[0, position, slot])
            if row < 0:
                continue
            low, high = every.id_range(row if layout.flat else slot)
            columns = logits[slot][0, position]
            columns = columns[low:high] if layout.flat else columns[: high - low]
            expected = -columns.log_softmax(-1)[int(batch.targets[0, position, slot]) - low] / np.log(2)
            torch.testing.assert_close(bits[0, position, slot], expected, atol=1e-5, rtol=1e-5)


@every_layout
@pytest.mark.parametrize("frames", [1, 4, 9, 30, 47])
def test_every_code_of_a_recording_is_predicted_once(options, frames):
    model, layout = make(block=24, **options)
    codes = codes_of(frames)
    bits = recording_bits(model, layout, codes, batch=2)
    assert bits.shape == (len(layout.books), frames)
    unknown = np.isnan(bits)
    assert unknown.sum() == (0 if layout.lead else layout.width)
    short = min(frames, layout.frames_in(24) // (layout.chunk or 1) * (layout.chunk or 1))
    np.testing.assert_allclose(bits[:, :short], recording_bits(model, layout, codes[:, :short]), atol=1e-5)


@pytest.mark.parametrize("specials", ["none", "standard"])
def test_model_bits_codes_the_same_codes_as_the_anchors(specials):
    model, layout = make(name="flatten", n_q=2, specials=specials)
    recordings = [codes_of(21, seed) for seed in range(3)]
    unigram = UnigramModel((6, 6)).fit(codes[:2] for codes in recordings)
    parts = []
    for codes in recordings:
        bits = recording_bits(model, layout, codes)
        if specials == "none":
            bits[0, 0] = unigram.bits(codes[:2])[0, 0]
        parts.append(bits)
    expected = np.concatenate(parts, axis=1).mean(1)
    np.testing.assert_allclose(model_bits(model, layout, recordings, unigram), expected)
