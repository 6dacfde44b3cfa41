"""Streams by windows: equal to offline where the halo says so, near elsewhere; any split, any rows, any misuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.adapters.models import DacAdapter, EncodecAdapter
from xcodec_lm.codec.streaming import (
    WindowedStreamDecoder,
    WindowedStreamEncoder,
    declared_agreement,
    declared_error,
)
from xcodec_lm.codec.tokens import AudioTokens
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs.errors import AudioError, TokenError


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def decoder_of(codec, batch=1):
    """The codec's own stream: an adapter knows its context, X-Codec's halo is its look-ahead."""
    context = getattr(codec, "context_frames", codec.lookahead_frames)
    return WindowedStreamDecoder(codec, batch, None, context, getattr(codec, "start_frames", 0))


def offline(codec, codes):
    lengths = torch.full((len(codes),), codes.shape[2])
    return codec.decode(AudioTokens(codes, lengths, codec.spec.take(codes.shape[1])))[0]


def tolerance(codec, wav):
    """Windows of convolutions are exact; recurrent layers and attention remember a little more than any window."""
    exact = isinstance(codec, (XCodec, DacAdapter))
    return (1e-5 if exact else 1e-3) * max(1, wav.abs().max())


def random_codes(codec, frames, batch=1, n_q=None, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, min(codec.spec.codebook_sizes), (batch, n_q or codec.spec.n_q, frames), generator=rng)


@pytest.fixture(scope="module")
def twin(twin_folder):
    return load_codec(twin_folder)


# ---------------------------------------------------------------------- decoding


@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(0, 25), min_size=1, max_size=8), n_q=st.integers(1, 4))
def test_any_split_of_pushes_gives_the_offline_audio(any_codec, sizes, n_q):
    if not sum(sizes):
        sizes = [*sizes, 1]
    codes = random_codes(any_codec, sum(sizes), 2, n_q)
    decoder = decoder_of(any_codec, 2)
    parts = [decoder.push(part) for part in codes.split(sizes, dim=2)]
    wav = torch.cat([*parts, decoder.flush()], dim=2)
    whole = offline(any_codec, codes)
    assert wav.shape == whole.shape
    assert (wav - whole).abs().max() <= tolerance(any_codec, whole)


def test_declared_error_is_that_of_the_stream(any_codec):
    tokens = any_codec.encode(noise(2, 1, any_codec.spec.hop_samples * 60), torch.tensor([19200, 7000]))
    error = declared_error(any_codec, tokens, decoder_of(any_codec), push_frames=3)
    assert error.max_error <= tolerance(any_codec, torch.ones(1)) and error.snr_db > 60
    assert error.latency_frames == any_codec.lookahead_frames


def test_adapters_stream_by_their_own_numbers(foreign):
    decoder = foreign.stream_decoder(3)
    assert decoder.latency_frames == foreign.lookahead_frames and decoder.batch == 3
    assert foreign.stream_decoder(1, lookahead_frames=2, context_frames=5).context_frames == 5
    tokens = foreign.encode(noise(1, 1, 30 * foreign.spec.hop_samples))
    assert declared_error(foreign, tokens).snr_db > 60


def test_less_look_ahead_is_a_trade(twin):
    tokens = twin.encode(noise(1, 1, 16000))
    full = twin.lookahead_frames
    errors = [declared_error(twin, tokens, WindowedStreamDecoder(twin, 1, ahead, full), 4) for ahead in (0, 3, 6, full)]
    assert all(a.snr_db > b.snr_db + 6 for a, b in zip(errors[1:], errors[:-1], strict=True))
    assert errors[0].snr_db < 40 and errors[-1].snr_db > 100
    assert [error.latency_frames for error in errors] == [0, 3, 6, full]
    assert errors[0].relative_error == pytest.approx(10 ** (-errors[0].snr_db / 20))


def test_less_context_is_worse(foreign):
    tokens = foreign.encode(noise(1, 1, 40 * foreign.spec.hop_samples))
    full = declared_error(foreign, tokens, decoder_of(foreign), 1)
    none = declared_error(foreign, tokens, foreign.stream_decoder(1, context_frames=0), 1)
    assert none.relative_error > 100 * full.relative_error


def test_latency_is_what_is_held_back(twin):
    decoder = decoder_of(twin)
    ahead, hop = twin.lookahead_frames, twin.spec.hop_samples
    assert decoder.push(random_codes(twin, ahead)).shape == (1, 1, 0)
    assert decoder.push(random_codes(twin, 0)).shape == (1, 1, 0)
    assert decoder.push(random_codes(twin, 3)).shape == (1, 1, 3 * hop)
    assert decoder.flush().shape == (1, 1, ahead * hop)


def test_first_audio_of_mirrored_padding_waits():
    """Where a decoder mirrors its beginning, frame 0 depends on later ones, and only the stream's start waits."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    codec = EncodecAdapter(EncodecModel(EncodecConfig(num_filters=2, hidden_size=8, codebook_size=64)))
    for layer in codec.model.quantizer.layers:
        layer.codebook.embed.normal_()
    decoder = codec.stream_decoder()
    assert decoder.start_frames == 7
    sizes = [decoder.push(random_codes(codec, 1, seed=i)).shape[2] // 320 for i in range(10)]
    assert sizes == [0] * 6 + [7, 1, 1, 1]
    early = codec.stream_decoder()
    early.start_frames = 0
    codes = random_codes(codec, 30)
    wav = torch.cat([early.push(part) for part in codes.split(1, dim=2)], dim=2)
    assert (wav - offline(codec, codes)).abs().max() > 1e-4


def test_rows_that_start_anew_are_as_if_alone(any_codec):
    hop = any_codec.spec.hop_samples * any_codec.spec.output_sample_rate // any_codec.spec.sample_rate
    first, second, third = (random_codes(any_codec, frames, 2, seed=frames) for frames in (25, 13, 14))
    decoder = decoder_of(any_codec, 2)
    heard = [[], []]

    def keep(wav):
        for row in range(2):
            heard[row].append(wav[row, 0, : int(decoder.emitted[row])])
            assert not wav[row, 0, int(decoder.emitted[row]) :].any()

    keep(decoder.push(first))
    decoder.reset([1])
    heard[1] = []
    keep(decoder.push(second))
    keep(decoder.push(third))
    keep(decoder.flush())
    rows = [torch.cat([first, second, third], dim=2)[:1], torch.cat([second, third], dim=2)[1:]]
    for row, codes in enumerate(rows):
        whole = offline(any_codec, codes)[0, 0]
        wav = torch.cat(heard[row])
        assert len(wav) == codes.shape[2] * hop
        assert (wav - whole).abs().max() <= tolerance(any_codec, whole)


def test_one_row_may_end_and_begin_again(twin):
    decoder = decoder_of(twin, 2)
    codes = random_codes(twin, 20, 2)
    decoder.push(codes)
    tail = decoder.flush([0])
    assert decoder.emitted.tolist() == [twin.lookahead_frames * 320, 0] and not tail[1].any()
    with pytest.raises(TokenError, match="row 0 of this stream was flushed"):
        decoder.push(codes)
    decoder.reset([0])
    decoder.push(codes)
    assert decoder.emitted.tolist() == [(20 - twin.lookahead_frames) * 320, 20 * 320]


def test_nothing_comes_of_nothing(twin):
    decoder = decoder_of(twin)
    assert decoder.flush().shape == (1, 1, 0)
    assert decoder.flush().shape == (1, 1, 0)
    decoder.reset()
    assert decoder.push(random_codes(twin, 15, n_q=2)).shape[2] > 0


def test_bad_codes_are_refused_and_the_stream_goes_on(twin):
    codes = random_codes(twin, 30)
    decoder = decoder_of(twin)
    parts = [decoder.push(codes[:, :, :12])]
    out_of_range = codes.clone()
    out_of_range[0, 1, 2] = 64
    for bad, message in (
        (out_of_range, "code 64 of row 0, quantizer 1, frame 2"),
        (-codes - 1, "code -"),
        (codes[:, :2], "began with 4 rows of codes, this push has 2"),
        (codes.int(), "int64"),
        (codes[0], "must have shape"),
        (codes.repeat(2, 1, 1), "must have shape"),
        (codes.repeat(1, 2, 1), "began with 4"),
    ):
        with pytest.raises(TokenError, match=message):
            decoder.push(bad)
    with pytest.raises(TokenError, match=r"row 1 is outside 0\.\.0"):
        decoder.reset([0, 1])
    parts.append(decoder.push(codes[:, :, 12:]))
    wav = torch.cat([*parts, decoder.flush()], dim=2)
    assert (wav - offline(twin, codes)).abs().max() <= 1e-5
    with pytest.raises(TokenError, match="flushed") as error:
        decoder.push(codes)
    assert "reset()" in error.value.hint
    with pytest.raises(TokenError, match="n_q must lie in"):
        decoder_of(twin).push(random_codes(twin, 0, n_q=5))


def test_impossible_sizes_are_refused(twin):
    for batch, ahead, context in ((0, 1, 1), (1, -1, 1), (1, 1, -1)):
        with pytest.raises(TokenError, match="a stream needs"):
            WindowedStreamDecoder(twin, batch, ahead, context)


# ---------------------------------------------------------------------- encoding


@settings(max_examples=5, deadline=None)
@given(sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=6), n_q=st.integers(1, 4))
def test_any_split_of_audio_gives_the_offline_codes_of_the_twin(twin, sizes, n_q):
    wav = noise(2, 1, max(1, sum(sizes)))
    sizes = sizes if sum(sizes) else [1]
    encoder = WindowedStreamEncoder(twin, 2, 28, 28, n_q=n_q)
    parts = [encoder.push(part) for part in wav.split(sizes, dim=2)]
    assert torch.equal(torch.cat([*parts, encoder.flush()], dim=2), twin.encode(wav, n_q=n_q).codes)


def test_encoder_holds_back_its_look_ahead(twin):
    encoder = WindowedStreamEncoder(twin, 1, 28, 28)
    wav = noise(1, 1, 320 * 40)
    assert encoder.push(wav[:, :, : 320 * 29 - 1]).shape == (1, 4, 0)
    assert encoder.push(wav[:, :, 320 * 29 - 1 : 320 * 29]).shape == (1, 4, 1)
    assert encoder.push(wav[:, :, 320 * 29 : 320 * 40]).shape == (1, 4, 11)
    assert encoder.flush().shape == (1, 4, 28)


def test_agreement_is_full_for_the_twin_and_declared_for_others(any_codec, twin):
    wav = noise(1, 1, any_codec.spec.hop_samples * 50 + 11)
    near = declared_agreement(any_codec, wav, WindowedStreamEncoder(any_codec, 1, 28, 28), 4000)
    assert len(near.layers) == any_codec.spec.n_q and near.frames == any_codec.frames(wav.shape[2])
    assert 0 <= min(near.layers) <= near.total <= max(near.layers) <= 1
    blind = declared_agreement(any_codec, wav, WindowedStreamEncoder(any_codec, 1, 0, 0), 333)
    assert blind.total < near.total
    exact = declared_agreement(twin, noise(1, 1, 9000), WindowedStreamEncoder(twin, 1, 28, 28), 700)
    assert exact.layers == (1, 1, 1, 1) and exact.latency_frames == 28


def test_rows_of_an_encoder_start_anew(twin):
    encoder = WindowedStreamEncoder(twin, 2, 28, 28)
    first, second = noise(2, 1, 12000, seed=1), noise(2, 1, 10001, seed=2)
    kept = [encoder.push(first)[0]]
    encoder.reset([1])
    codes = encoder.push(second)
    counts = encoder.emitted.tolist()
    tail = encoder.flush()
    rest = encoder.emitted.tolist()
    kept += [codes[0, :, : counts[0]], tail[0, :, : rest[0]]]
    assert torch.equal(torch.cat(kept, dim=1), twin.encode(torch.cat([first, second], dim=2)[:1]).codes[0])
    fresh = torch.cat([codes[1, :, : counts[1]], tail[1, :, : rest[1]]], dim=1)
    assert torch.equal(fresh, twin.encode(second[1:]).codes[0])


def test_bad_audio_is_refused_and_the_stream_goes_on(twin):
    wav = noise(1, 1, 6000)
    encoder = WindowedStreamEncoder(twin, 1, 28, 28)
    parts = [encoder.push(wav[:, :, :2000])]
    broken = wav.clone()
    broken[0, 0, 3] = math.inf
    for bad in (broken, wav.repeat(1, 2, 1), wav[0], 32768 * wav):
        with pytest.raises(AudioError):
            encoder.push(bad)
    with pytest.raises(AudioError, match="8000 Hz"):
        encoder.push(wav, sample_rate=8000)
    with pytest.raises(TokenError, match="1 rows, the audio has 2"):
        encoder.push(wav.repeat(2, 1, 1))
    parts += [encoder.push(wav[:, :, 2000:]), encoder.flush()]
    assert torch.equal(torch.cat(parts, dim=2), twin.encode(wav).codes)
    with pytest.raises(TokenError, match="flushed"):
        encoder.push(wav)
    with pytest.raises(TokenError, match="n_q must lie in"):
        WindowedStreamEncoder(twin, 1, 0, 0, n_q=5)
