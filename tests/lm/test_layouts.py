"""Layouts: pack and unpack are inverse, ids stay in their ranges, windows predict what they should."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.configs.lm import LayoutConfig
from xcodec_lm.lm.layouts import IGNORED, layout_from


def make(n_q=4, ids: Any = "offset", specials: Any = "standard", sizes=(1024,) * 8, tracks=("mix",)):
    config = LayoutConfig("first" if n_q == 1 else "flatten", n_q, ids, specials)
    return layout_from(config, TokenSpec("toy", 16_000, 16_000, 320, sizes, tracks))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_unpack_inverts_pack_and_every_id_is_in_the_range_of_its_position(data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5)))
    n_q = data.draw(st.integers(1, len(sizes)))
    layout = make(
        n_q, data.draw(st.sampled_from(["offset", "shared"])), data.draw(st.sampled_from(["none", "standard"])), sizes
    )
    rows = tuple(data.draw(st.sampled_from([(), (1,), (3,)])))
    frames = data.draw(st.integers(0, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    codes = torch.stack([torch.randint(0, size, (*rows, frames), generator=generator) for size in sizes], dim=-2)
    ids = layout.pack(codes)
    assert ids.shape == (*rows, frames * layout.ids_per_frame)
    assert torch.equal(layout.unpack(ids), codes[..., :n_q, :])
    allowed = layout.allowed()
    for position, column in enumerate(ids.unbind(-1)):
        low, high = layout.logit_range(position)
        assert bool(((column >= low) & (column < high)).all())
        assert allowed[position % layout.ids_per_frame].nonzero().flatten().tolist() == list(range(low, high))


def test_flatten_is_frame_by_frame():
    codes = torch.tensor([[1, 2], [3, 4]])
    assert make(2).pack(codes).tolist() == [1, 1024 + 3, 2, 1024 + 4]
    assert make(2, "shared").pack(codes).tolist() == [1, 3, 2, 4]
    assert make(1).pack(codes).tolist() == [1, 2]
    assert make(2).pack_frames(codes.T.numpy().astype("uint16")).tolist() == [1, 1027, 2, 1028]


def test_vocabularies():
    bare = make(1, specials="none").vocabulary
    assert (bare.size, bare.bos, bare.eos, bare.pad) == (1024, None, None, None)
    assert make(4, "shared", "none").vocabulary.size == 1024
    assert make(4, "offset", "none").vocabulary.size == 4096
    full = make(4).vocabulary
    assert (full.size, full.bos, full.eos, full.pad) == (4160, 4096, 4097, 4098)
    assert make(1, sizes=(61,)).vocabulary.size == 64
    assert make(1, sizes=(62,)).vocabulary.size == 128


def test_no_special_id_is_ever_allowed_and_sequences_end_between_frames():
    layout = make(4)
    assert not layout.allowed()[:, 4096:].any()
    assert [layout.may_end(position) for position in range(5)] == [True, False, False, False, True]
    assert not make(4, specials="none").may_end(0)


@pytest.mark.parametrize("code", [-1, 1024])
def test_pack_refuses_codes_outside_their_codebook(code):
    codes = torch.zeros(1, 4, 3, dtype=torch.long)
    codes[0, 2, 1] = code
    with pytest.raises(TokenError, match=f"code {code} of quantizer 2, frame 1"):
        make(4).pack(codes)
    codes[0, 2, 1] = 1023
    make(4).pack(codes)


def test_unpack_refuses_ids_out_of_place():
    layout = make(2)
    with pytest.raises(TokenError, match="id 5 at position 3"):
        layout.unpack(torch.tensor([1, 1025, 2, 5]))
    with pytest.raises(TokenError, match="id 2048 at position 0"):
        layout.unpack(torch.tensor([2048, 1025]))
    with pytest.raises(TokenError, match="whole number of frames"):
        layout.unpack(torch.tensor([1, 1025, 2]))


def test_refuses_a_codec_that_does_not_fit():
    with pytest.raises(TokenError, match="has 2 quantizers"):
        make(4, sizes=(8, 8))
    with pytest.raises(TokenError, match="one track"):
        make(1, tracks=("vocal", "accompaniment"))
    with pytest.raises(TokenError, match="Q >= 4"):
        make(4).pack(torch.zeros(2, 5, dtype=torch.long))


def test_windows_predict_the_id_after_each_position():
    ids = torch.arange(8)  # with shared ids any number below the codebook's size fits
    bare, full = make(2, "shared", "none"), make(2, "shared")
    bos, eos = full.vocabulary.bos, full.vocabulary.eos
    pairs = [tensor.tolist() for tensor in bare.example(ids, 2, 4)]
    assert pairs == [[2, 3, 4, 5], [3, 4, 5, 6]]
    pairs = [tensor.tolist() for tensor in full.example(ids, 2, 4)]
    assert pairs == [[bos, 2, 3, 4, 5], [2, 3, 4, 5, 6]]
    assert full.example(ids, 4, 4)[1].tolist() == [4, 5, 6, 7, eos]
    assert bare.example(ids, 4, 4)[1].tolist() == [5, 6, 7, IGNORED]
    assert [len(part) for part in full.example(ids[:2], 0, 4)] == [3, 3]


def test_padding_is_no_target():
    layout = make(2, "shared")
    inputs, targets = layout.batch([layout.example(torch.arange(6), 0, 6), layout.example(torch.arange(2), 0, 6)])
    assert inputs.shape == targets.shape == (2, 7)
    assert inputs[1].tolist() == [1024, 0, 1, 1026, 1026, 1026, 1026]
    assert targets[1].tolist() == [0, 1, 1025, IGNORED, IGNORED, IGNORED, IGNORED]
