"""The finite scalar quantizer: codes and levels, ranges, gradients, and parity with transformers'."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Xcodec2Config
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Quantizer

from xcodec_lm.codec.nn.fsq import FiniteScalarQuantizer
from xcodec_lm.configs.errors import ConfigError, TokenError
from xcodec_lm.configs.xcodec2 import FSQConfig, Xcodec2ModelConfig

LEVELS = [(4,) * 8, (8, 5, 5, 3), (2, 3), (7,)]


def build(levels=(4,) * 8, dim=24, spread=1.5, seed=0, **options):
    torch.manual_seed(seed)
    fsq = FiniteScalarQuantizer(FSQConfig(levels=levels, **options), dim)
    with torch.no_grad():
        fsq.project_in.weight.normal_(std=spread / dim**0.5)
    return fsq


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_and_its_levels_are_one_to_one(levels):
    fsq = build(levels)
    codes = torch.arange(fsq.codebook_size)
    digits = fsq.to_digits(codes)
    assert torch.equal(fsq.to_codes(digits), codes)
    assert len(digits.unique(dim=0)) == fsq.codebook_size
    for column, count in zip(digits.T, levels, strict=True):
        assert column.unique().tolist() == [value - count // 2 for value in range(count)]


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 10**6))
def test_code_is_the_number_whose_digits_are_the_levels(levels, seed):
    fsq = build(tuple(levels), dim=4)
    digits = [(seed // 7**i) % count for i, count in enumerate(levels)]
    expected, weight = 0, 1
    for digit, count in zip(digits, levels, strict=True):
        expected, weight = expected + digit * weight, weight * count
    shifted = torch.tensor([float(digit - count // 2) for digit, count in zip(digits, levels, strict=True)])
    assert int(fsq.to_codes(shifted)) == expected


@pytest.mark.parametrize("levels", [(4,) * 8, (8, 5, 5, 3)])
def test_parity_with_transformers(levels):
    fsq = build(levels, dim=40)
    peer = Xcodec2Quantizer(Xcodec2Config(quantization_dim=40, quantization_levels=list(levels)))
    peer.load_state_dict(fsq.state_dict())
    x = torch.randn(3, 500, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs, indices = peer(x)
        vectors, codes = fsq(x)
        assert codes.dtype == torch.int64
        assert len(codes.unique()) > 100
        assert torch.equal(codes, indices[..., 0].long())
        assert torch.equal(fsq.encode(x), codes)
        torch.testing.assert_close(vectors, theirs)
        torch.testing.assert_close(fsq.decode(codes), peer.from_codes(indices))
        torch.testing.assert_close(fsq.decode(codes), vectors)


@pytest.mark.parametrize("bound_twice", [True, False])
def test_all_levels_are_reached(bound_twice):
    fsq = build((4, 5), dim=2, bound_twice=bound_twice)
    with torch.no_grad():
        fsq.project_in.weight.copy_(torch.eye(2))
        fsq.project_in.bias.zero_()
    grid = torch.linspace(-6, 6, 200)
    codes = fsq.encode(torch.cartesian_prod(grid, grid)[None])
    assert len(codes.unique()) == 20


@pytest.mark.parametrize("bound_twice", [True, False])
def test_nearly_parallel_vectors_start_with_all_levels(bound_twice):
    generator = torch.Generator().manual_seed(0)
    # One direction a thousand times stronger than the others, far from zero: as an untrained encoder's output is.
    spread = torch.cat([torch.tensor([30.0]), torch.full((15,), 0.03)])
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    vectors = (torch.randn(4000, 16, generator=generator) * spread) @ turn + 5
    used = {}
    for start in ("random", "principal"):
        torch.manual_seed(0)
        quantizer = FiniteScalarQuantizer(FSQConfig((4, 4, 4), bound_twice), 16)
        if start == "principal":
            quantizer.initialize(vectors)
        used[start] = len(quantizer.encode(vectors[None]).unique())
    assert used["random"] < 20
    assert used["principal"] >= 56  # of 64


def test_start_without_spread_changes_nothing():
    quantizer = FiniteScalarQuantizer(FSQConfig((4, 4)), 8)
    before = quantizer.project_in.weight.clone()
    quantizer.initialize(torch.ones(10, 8))
    quantizer.initialize(torch.ones(1, 8))
    assert torch.equal(quantizer.project_in.weight, before)


def test_spread_loss_is_least_for_independent_even_dimensions():
    quantizer = build((4, 4, 4), dim=3, bound_twice=False)
    with torch.no_grad():
        quantizer.project_in.weight.copy_(torch.eye(3))
        quantizer.project_in.bias.zero_()
    half = 1.5 * 1.001
    even = torch.rand(1, 20_000, 3, generator=torch.Generator().manual_seed(0)) * 3.8 - 2.4  # levels -2 to 1, each +-.5
    even = ((even + 0.5) / half).clamp(-0.999, 0.999).atanh() - torch.tensor(0.5 / half).atanh()
    copies = even[:, :, :1].expand(-1, -1, 3)
    still = even * 0.01
    values = [quantizer.spread_loss(x).item() for x in (even, copies, still)]
    assert values[0] < 0.1 < 0.9 < values[2] < values[1]


def test_gradient_passes_the_rounding():
    fsq = build(spread=0.5)
    x = torch.randn(2, 30, 24, generator=torch.Generator().manual_seed(2), requires_grad=True)
    vectors, _ = fsq(x)
    vectors.square().mean().backward()
    assert (x.grad.abs().sum(dim=2) > 0).all()
    assert all((p.grad.abs() > 0).any() for p in fsq.parameters())


def test_arithmetic_stays_in_fp32_under_autocast():
    fsq = build()
    x = torch.randn(1, 400, 24, generator=torch.Generator().manual_seed(3))
    expected = fsq.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fsq.encode(x), expected)
        assert fsq(x)[0].dtype == torch.float32


@pytest.mark.parametrize("code", [-1, 65_536])
def test_codes_out_of_range_are_refused(code):
    with pytest.raises(TokenError, match=rf"{code} is outside 0\.\.65535"):
        build().decode(torch.tensor([[5, code]]))


@pytest.mark.parametrize("levels", [(), (4, 1)])
def test_levels_below_two_are_refused(levels):
    with pytest.raises(ConfigError, match="levels"):
        Xcodec2ModelConfig(quantizer=FSQConfig(levels=levels))
