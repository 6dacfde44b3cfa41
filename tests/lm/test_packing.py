"""Packing: every document once, full rows, an order that neither a resume nor more processes change, exact masks."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from xcodec_lm.codec.runtime.order import DataOrder
from xcodec_lm.configs.errors import TokenError, XcodecLMError
from xcodec_lm.lm.packing import (
    PADDING,
    Packer,
    document_ids,
    document_mask,
    document_mask_mod,
    document_positions,
    flex_mask,
    pack,
    rank_rows,
)

CAPACITY = 2048


def speech(count=4000, seed=0):
    """Utterances of 1 to 35 s at 50 frames a second, as read speech has them, with bos and eos."""
    seconds = np.random.default_rng(seed).gamma(5.0, 2.5, count).clip(1, 35)
    return (50 * seconds).astype(np.int64) + 2


def music(count=1500, seed=0):
    """Pieces cut into whole windows and one rest each: half of the documents fill a row alone."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 0.5, CAPACITY, rng.integers(20, CAPACITY, count))


def effects(count=4000, seed=0):
    """Short clips, log-normal around 4 s at 50 frames a second."""
    return (50 * np.random.default_rng(seed).lognormal(1.4, 0.8, count)).astype(np.int64).clip(5, CAPACITY)


def first_fit_rows(lengths, capacity):
    spaces = np.zeros(0, dtype=np.int64)
    for length in lengths:
        fits = np.flatnonzero(spaces >= length)
        if len(fits):
            spaces[fits[0]] -= length
        else:
            spaces = np.append(spaces, capacity - length)
    return len(spaces)


sizes = st.integers(1, 40).flatmap(lambda capacity: st.tuples(
    st.just(capacity), st.lists(st.integers(1, capacity), max_size=60), st.integers(1, 20)))  # fmt: skip


# ------------------------------------------------------------------ packing


@settings(max_examples=80, deadline=None)
@given(sizes)
def test_every_document_is_packed_once_and_rows_are_not_overfull(case):
    capacity, lengths, buffer = case
    packer = Packer(lengths.__getitem__, capacity, buffer, len(lengths))
    for rows in (pack(np.array(lengths, dtype=np.int64), capacity), list(packer)):
        assert sorted(np.concatenate([np.zeros(0, int), *rows]).tolist()) == list(range(len(lengths)))
        assert all(len(row) and sum(lengths[i] for i in row) <= capacity for row in rows)
    if lengths:
        assert packer.fill == pytest.approx(sum(lengths) / (packer.rows * capacity))


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(0, 30), st.integers(0, 2**32))
def test_a_resumed_packer_goes_on_exactly_and_loses_nothing(case, stop, seed):
    capacity, lengths, buffer = case
    if not lengths:
        lengths = [1]
    order = DataOrder(len(lengths), seed)  # an endless order: a permutation an epoch

    def length_of(position):
        return lengths[order[position]]

    packer = Packer(length_of, capacity, buffer)
    done = packer.take(stop)
    state = json.loads(json.dumps(packer.state()))
    # What came out and what waits are all positions so far, once each: none is lost or doubled, in any epoch.
    so_far = [position for row in done for position in row] + state["buffer"]
    assert sorted(so_far) == list(range(state["cursor"])) and len(state["buffer"]) <= buffer
    resumed = Packer(length_of, capacity, buffer)
    resumed.restore(state)
    assert resumed.take(20) == packer.take(20) and resumed.state() == packer.state()
    assert resumed.fill == packer.fill


def test_the_oldest_document_never_waits_longer_than_the_buffer():
    lengths = np.full(500, 10)
    lengths[7] = 3  # everything else fits a row of 10 exactly, so best fit alone would never choose it
    order = [position for row in Packer(lambda p: int(lengths[p]), 10, 16, 500) for position in row]
    assert order.index(7) <= 16
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 2000)
    for number, row in enumerate(Packer(lambda p: int(lengths[p]), 128, 32, 2000)):
        assert all(number < position + 32 for position in row)


@pytest.mark.parametrize("lengths", [speech(), music(), effects()], ids=["speech", "music", "effects"])
def test_rows_are_full_on_realistic_lengths(lengths):
    total, floor = int(lengths.sum()), -(-int(lengths.sum()) // CAPACITY)
    packer = Packer(lambda position: int(lengths[position % len(lengths)]), CAPACITY, 256)
    packer.take(floor)
    offline, first_fit = len(pack(lengths, CAPACITY)), first_fit_rows(lengths, CAPACITY)
    assert packer.fill >= 0.95 and total / (offline * CAPACITY) >= 0.95
    assert offline <= first_fit
    assert packer.fill > 0.99 * total / (first_fit * CAPACITY)  # through a buffer about as good as first fit over all
    assert packer.fill > 1.2 * total / (len(lengths) * CAPACITY)  # and far better than one document a row


def test_best_fit_decreasing_is_near_the_optimum_where_that_is_known():
    rng = np.random.default_rng(0)
    cuts = [np.diff([0, *np.sort(rng.choice(np.arange(1, 100), 3, replace=False)), 100]) for _ in range(100)]
    lengths = rng.permutation(np.concatenate(cuts))  # fit into 100 rows of 100 without a gap
    assert 100 <= len(pack(lengths, 100)) <= 103
    assert [row.tolist() for row in pack(np.array([4, 6, 5, 5]), 10)] == [[1, 0], [2, 3]]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_the_rows_of_one_order(world):
    lengths = effects(300)
    whole = Packer(lambda p: int(lengths[p % 300]), CAPACITY, 64)
    each = [Packer(lambda p: int(lengths[p % 300]), CAPACITY, 64) for _ in range(world)]
    for _ in range(3):
        step = whole.take(8)
        parts = [rank_rows(packer.take(8), rank, world) for rank, packer in enumerate(each)]
        assert [parts[i % world][i // world] for i in range(8)] == step
        assert sum(len(part) for part in parts) == 8


# ------------------------------------------------------------------ failure


def test_documents_that_do_not_fit_a_row_are_named():
    for length in (0, 11):
        with pytest.raises(TokenError, match=f"document 1 has {length} steps, outside 1 to 10"):
            pack(np.array([3, length]), 10)
        with pytest.raises(TokenError, match=f"document 1 has {length} steps, outside 1 to 10"):
            Packer([3, length].__getitem__, 10, 4, 2).take(1)
    with pytest.raises(XcodecLMError, match="at least 1"):
        Packer([3].__getitem__, 0)


@pytest.mark.parametrize("broken", [{"buffer": [3, 2]}, {"buffer": [9]}, {"cursor": "x"}, {"buffer": [0, 1, 2, 3, 4]}])
def test_a_damaged_state_is_refused(broken):
    packer = Packer(lambda position: 3, 10, 4)
    packer.take(2)
    with pytest.raises(XcodecLMError, match="state of the data order"):
        packer.restore({**packer.state(), **broken})
    with pytest.raises(XcodecLMError, match="state of the data order"):
        packer.restore({})


def test_packing_needs_no_torch():
    code = (
        "import sys, numpy; from xcodec_lm.lm.packing import pack; pack(numpy.array([1]), 2);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------ masks

ROWS = [[5, 3, 8], [16], [1, 1, 2], [7, 9], []]
IDS = torch.from_numpy(np.stack([document_ids(row, 16) for row in ROWS]))


def test_ids_and_positions_of_a_row():
    assert document_ids([2, 1, 3], 8).tolist() == [0, 0, 1, 2, 2, 2, PADDING, PADDING]
    assert document_positions([2, 1, 3], 8).tolist() == [0, 1, 0, 0, 1, 2, 0, 0]
    assert document_ids([], 2).tolist() == [PADDING] * 2 and document_positions([], 2).tolist() == [0, 0]


def test_mask_is_causal_within_documents_and_no_row_is_empty():
    mask = document_mask(IDS)
    assert mask.shape == (5, 1, 16, 16) and mask.dtype == torch.bool
    for b, row in enumerate(ROWS):
        lengths = [*row, 16 - sum(row)]
        blocks = [torch.ones(length, length, dtype=torch.bool).tril() for length in lengths]
        assert torch.equal(mask[b, 0], torch.block_diag(*blocks).bool())


def test_flex_mask_is_the_same_mask():
    cells = create_mask(document_mask_mod(IDS), len(ROWS), 1, 16, 16, device="cpu")
    assert torch.equal(cells, document_mask(IDS))
    block = flex_mask(IDS)
    assert block.shape == (5, 1, 16, 16)
    rows = torch.arange(16)
    b, q, k = torch.meshgrid(torch.arange(5), rows, rows, indexing="ij")
    assert torch.equal(block.mask_mod(b, torch.zeros_like(b), q, k), document_mask(IDS)[:, 0])
    ids = torch.from_numpy(document_ids([128, 256, 100], 512))[None]
    coarse = document_mask(ids)[0, 0].view(4, 128, 4, 128).any(dim=3).any(dim=1)
    assert torch.equal(flex_mask(ids).to_dense()[0, 0].bool(), coarse)  # blocks without an allowed cell are skipped


def test_attention_over_a_packed_row_is_that_over_its_documents():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 16, 4, generator=generator) for _ in range(3))
    packed = F.scaled_dot_product_attention(q, k, v, attn_mask=document_mask(IDS[:1]))
    start = 0
    for length in ROWS[0]:
        part = slice(start, start + length)
        alone = F.scaled_dot_product_attention(q[:, :, part], k[:, :, part], v[:, :, part], is_causal=True)
        torch.testing.assert_close(packed[:, :, part], alone)
        start += length
    padded = F.scaled_dot_product_attention(*(x.expand(5, -1, -1, -1) for x in (q, k, v)), attn_mask=document_mask(IDS))
    assert padded.isfinite().all()
