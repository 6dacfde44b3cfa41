"""The token interface: specs, batches of tokens, and their files."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from xcodec_lm.codec.tokens import TOKENS_VERSION, AudioTokens, TokenSpec, stack_codes
from xcodec_lm.configs.errors import TokenError

SPEC = TokenSpec("toy", 16_000, 24_000, 320, (16, 32, 64), fingerprint="a" * 64)


def make(lengths=(5,), spec=SPEC, seed=0, samples=None):
    rng = torch.Generator().manual_seed(seed)
    sizes = spec.codebook_sizes * len(spec.tracks)
    rows = [torch.stack([torch.randint(size, (length,), generator=rng) for size in sizes]) for length in lengths]
    return stack_codes(rows, spec, samples)


def equal(a, b):
    same_samples = (a.samples is None) == (b.samples is None) and (
        a.samples is None or torch.equal(a.samples, b.samples)
    )
    return torch.equal(a.codes, b.codes) and torch.equal(a.lengths, b.lengths) and a.spec == b.spec and same_samples


# ------------------------------------------------------------------ spec

specs = st.builds(
    TokenSpec,
    name=st.text(max_size=8),
    sample_rate=st.integers(1, 96_000),
    output_sample_rate=st.integers(1, 96_000),
    hop_samples=st.integers(1, 2000),
    codebook_sizes=st.lists(st.integers(1, 100_000), min_size=1, max_size=4).map(tuple),
    tracks=st.lists(st.text(max_size=4), min_size=1, max_size=2, unique=True).map(tuple),
    fingerprint=st.text("0123456789abcdef", max_size=64),
)


@given(specs)
def test_spec_survives_json(spec):
    assert TokenSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(specs)
def test_frame_rate_is_exact(spec):
    assert spec.frame_rate == Fraction(spec.sample_rate, spec.hop_samples)
    assert spec.frame_rate * spec.hop_samples == spec.sample_rate


def test_bitrate_counts_the_bits_of_every_codebook():
    assert TokenSpec("x", 16_000, 16_000, 320, (1024,) * 8).bitrate_kbps == 4.0
    assert SPEC.bitrate_kbps == pytest.approx(50 * (4 + 5 + 6) / 1000)
    assert SPEC.take(1).bitrate_kbps == pytest.approx(0.2)
    assert TokenSpec("x", 24_000, 24_000, 1920, (2048,)).frame_rate == Fraction(25, 2)


def test_spec_of_old_files_without_tracks_is_a_mix():
    data = SPEC.to_dict()
    del data["tracks"]
    assert TokenSpec.from_dict(data) == SPEC


@pytest.mark.parametrize("n_q", [0, 4, -1])
def test_number_of_quantizers_out_of_range_is_refused(n_q):
    with pytest.raises(TokenError, match=rf"n_q must lie in 1\.\.3 for toy, got {n_q}"):
        SPEC.take(n_q)
    with pytest.raises(TokenError):
        make().take(n_q)


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("n_q", [1, 2, 3])
def test_take_is_a_prefix(n_q):
    tokens = make((5, 3))
    taken = tokens.take(n_q)
    assert torch.equal(taken.codes, tokens.codes[:, :n_q])
    assert taken.spec.codebook_sizes == SPEC.codebook_sizes[:n_q] and taken.spec.fingerprint == SPEC.fingerprint
    assert torch.equal(taken.lengths, tokens.lengths)


def test_take_keeps_the_first_quantizers_of_every_track():
    tokens = make((4,), replace(SPEC, tracks=("vocals", "rest")))
    assert tokens.codes.shape == (1, 6, 4)
    assert torch.equal(tokens.take(2).codes, tokens.codes[:, [0, 1, 3, 4]])


def test_row_is_one_recording_without_padding():
    tokens = make((5, 3), samples=torch.tensor([1600, 900]))
    row = tokens.row(1)
    assert row.codes.shape == (1, 3, 3) and row.lengths.tolist() == [3] and row.samples.tolist() == [900]
    assert torch.equal(row.codes[0], tokens.codes[1, :, :3])
    assert len(tokens) == 2 and len(row) == 1


def test_padding_is_zero_and_not_valid():
    tokens = make((5, 3))
    assert tokens.valid.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert not tokens.codes[1, :, 3:].any()


def test_crop_takes_frames_and_forgets_samples():
    tokens = make((8, 6), samples=torch.tensor([2500, 1900]))
    part = tokens.crop(2, 6)
    assert torch.equal(part.codes, tokens.codes[:, :, 2:6]) and part.lengths.tolist() == [4, 4]
    assert part.samples is None


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (2, 2), (3, 2), (0, 7), (6, 8)])
def test_crop_outside_a_row_is_refused(start, stop):
    with pytest.raises(TokenError, match=r"does not lie within every row's 0\.\.6"):
        make((8, 6)).crop(start, stop)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3))
def test_concat_joins_row_by_row_without_padding_between(lengths):
    a, b = make([x for x, _ in lengths], seed=1), make([y for _, y in lengths], seed=2)
    joined = a.concat(b)
    assert joined.lengths.tolist() == [x + y for x, y in lengths]
    for index, (x, _) in enumerate(lengths):
        row = joined.row(index).codes[0]
        assert torch.equal(row[:, :x], a.row(index).codes[0])
        assert torch.equal(row[:, x:], b.row(index).codes[0])


def test_crops_join_to_the_whole():
    tokens = make((7,))
    assert torch.equal(tokens.crop(0, 3).concat(tokens.crop(3, 7)).codes, tokens.codes)


def test_concat_refuses_what_does_not_fit():
    with pytest.raises(TokenError, match="made by another codec"):
        make().concat(make(spec=replace(SPEC, fingerprint="b" * 64)))
    with pytest.raises(TokenError, match="of 3 quantizers with 1 rows of 2"):
        make().concat(make().take(2))
    with pytest.raises(TokenError, match="cannot join 1 rows"):
        make().concat(make((5, 5)))


def test_another_codec_is_refused_by_its_fingerprint_not_its_name():
    SPEC.check_same_codec(replace(SPEC, name="renamed"), "a.tokens")
    with pytest.raises(TokenError) as caught:
        SPEC.check_same_codec(replace(SPEC, fingerprint="b" * 64), "a.tokens")
    message = str(caught.value)
    assert "a.tokens" in message and "b" * 12 in message and "a" * 12 in message and "hint:" in message


@pytest.mark.parametrize(
    ("codes", "lengths", "said"),
    [
        (torch.zeros(1, 2, 5, dtype=torch.int64), [5], "codes must have shape"),
        (torch.zeros(3, 5, dtype=torch.int64), [5, 5, 5], "codes must have shape"),
        (torch.zeros(1, 3, 5), [5], "codes must be int64, got torch.float32"),
        (torch.zeros(1, 3, 5, dtype=torch.int32), [5], "codes must be int64"),
        (torch.zeros(1, 3, 5, dtype=torch.int64), [5, 5], "lengths must have shape"),
        (torch.zeros(1, 3, 5, dtype=torch.int64), [6], r"lengths must lie in 1\.\.5, got \[6\]"),
        (torch.zeros(1, 3, 5, dtype=torch.int64), [0], r"lengths must lie in 1\.\.5"),
    ],
)
def test_batches_of_the_wrong_form_are_refused(codes, lengths, said):
    with pytest.raises(TokenError, match=said):
        AudioTokens(codes, torch.tensor(lengths), SPEC)


@pytest.mark.parametrize("value", [-1, 32, 10**6])
def test_code_outside_its_codebook_is_named(value):
    tokens = make((5, 4))
    tokens.check_range()
    tokens.codes[1, 1, 3] = value
    with pytest.raises(TokenError, match=rf"code {value} of row 1, quantizer 1, frame 3 is outside 0\.\.31"):
        tokens.check_range()


def test_padding_may_hold_anything():
    tokens = make((5, 3))
    tokens.codes[1, :, 3:] = 10**6
    tokens.check_range()


# ------------------------------------------------------------------ files


@settings(max_examples=30, deadline=None)
@given(specs, st.lists(st.integers(1, 6), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_what_is_saved_is_loaded_again(tmp_path_factory, spec, lengths, with_samples, seed):
    samples = torch.tensor([length * spec.hop_samples for length in lengths]) if with_samples else None
    tokens = make(lengths, spec, seed, samples)
    path = tmp_path_factory.mktemp("tokens") / "a.tokens"
    tokens.save(path)
    assert equal(AudioTokens.load(path), tokens)


def test_saved_header_can_be_read_without_this_package(tmp_path):
    make().save(tmp_path / "a.tokens")
    with safe_open(tmp_path / "a.tokens", "pt") as file:
        header = file.metadata()
    assert header["version"] == str(TOKENS_VERSION)
    assert json.loads(header["spec"])["codebook_sizes"] == [16, 32, 64]


def rewritten(tmp_path, **changes):
    """A token file with some of its tensors or header entries replaced, or left out where None is given."""
    tensors = {"codes": torch.ones(1, 3, 5, dtype=torch.int32), "lengths": torch.tensor([5])}
    header = {"version": str(TOKENS_VERSION), "spec": json.dumps(SPEC.to_dict())}
    for target in (tensors, header):
        for key in {*target, "samples"} & changes.keys():
            if changes[key] is None:
                del target[key]
            elif isinstance(changes[key], torch.Tensor) == (target is tensors):
                target[key] = changes[key]
    path = tmp_path / "a.tokens"
    save_file(tensors, path, metadata=header)
    return path


def test_rewriting_alone_spoils_nothing(tmp_path):
    assert AudioTokens.load(rewritten(tmp_path)).codes.tolist() == [[[1] * 5] * 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2"}, "token-file version 2; this release reads 1"),
        ({"version": None}, "version None"),
        ({"spec": None}, "not a token file: its header has no token spec"),
        ({"spec": "{"}, "token spec in its header cannot be read"),
        ({"spec": "[]"}, "token spec in its header cannot be read"),
        ({"spec": json.dumps({"name": "x"})}, "token spec in its header cannot be read"),
        ({"spec": json.dumps(SPEC.to_dict() | {"more": 1})}, "token spec in its header cannot be read"),
        ({"spec": json.dumps(SPEC.to_dict() | {"hop_samples": 0})}, "hop or codebook size below 1"),
        ({"spec": json.dumps(SPEC.to_dict() | {"codebook_sizes": []})}, "no codebooks"),
        ({"spec": json.dumps(SPEC.to_dict() | {"codebook_sizes": ["a", "b", "c"]})}, "cannot be read"),
        ({"codes": None}, "not a token file"),
        ({"lengths": None}, "not a token file"),
        ({"codes": torch.zeros(1, 2, 5, dtype=torch.int32)}, "codes must have shape"),
        ({"codes": torch.zeros(3, 5, dtype=torch.int32)}, "codes must have shape"),
        ({"codes": torch.ones(1, 3, 5) / 2}, "float32"),
        ({"codes": torch.full((1, 3, 5), 99, dtype=torch.int32)}, "code 99 of row 0, quantizer 0, frame 0"),
        ({"codes": torch.full((1, 3, 5), -1, dtype=torch.int32)}, "code -1 of row 0"),
        ({"lengths": torch.tensor([6])}, "lengths must lie in"),
        ({"lengths": torch.tensor([5, 5])}, "lengths must have shape"),
        ({"lengths": torch.tensor([4.5])}, "float32"),
        ({"samples": torch.tensor([1600, 1600])}, "samples must"),
        ({"samples": torch.tensor([0])}, "samples must"),
    ],
)
def test_file_that_is_not_right_is_refused_by_name(tmp_path, changes, said):
    path = rewritten(tmp_path, **changes)
    with pytest.raises(TokenError, match=said) as caught:
        AudioTokens.load(path)
    assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "a.tokens"
    text.write_text("not tokens at all")
    with pytest.raises(TokenError, match="is not a token file"):
        AudioTokens.load(text)
    text.write_bytes(b"")
    with pytest.raises(TokenError, match="is not a token file"):
        AudioTokens.load(text)
    with pytest.raises(TokenError, match="file not found"):
        AudioTokens.load(tmp_path / "nowhere.tokens")
    with pytest.raises(TokenError, match="is not a token file"):
        AudioTokens.load(tmp_path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "a.tokens"
    make((50,)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(TokenError, match="is not a token file"):
        AudioTokens.load(path)


def test_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.tokens", tmp_path / "no" / "a.tokens", tmp_path):
        with pytest.raises(TokenError, match="cannot write"):
            make().save(path)
