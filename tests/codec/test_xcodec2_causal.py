"""The decoder's parts and its causal variant: what may be seen when, streaming, and the head's overlap-add."""

import copy
import dataclasses

import pytest
import torch

from xcodec_lm.codec.nn import transformer
from xcodec_lm.codec.nn.antialias import AntiAliasedSnake, low_pass
from xcodec_lm.codec.nn.istft_head import ISTFTHead
from xcodec_lm.codec.nn.transformer import Decoder
from xcodec_lm.codec.streaming import declared_error
from xcodec_lm.codec.tokens import AudioTokens
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.configs.xcodec2 import Xcodec2DecoderConfig, Xcodec2ModelConfig, Xcodec2SemanticConfig

HOP = 320
PLAIN = Xcodec2DecoderConfig(layers=2, heads=2, head_dim=8, mlp_dim=48)
CAUSAL = dataclasses.replace(PLAIN, causal=True, attention_window=6)


def build(decoder: Xcodec2DecoderConfig, **options) -> XCodec2:
    torch.manual_seed(0)
    model = Xcodec2ModelConfig(
        encoder_channels=1, dim=64, quantizer_dim=24, init_std=None, decoder=decoder, **options
    )  # fmt: skip
    codec = XCodec2(model, Xcodec2SemanticConfig(), None).eval()
    with torch.no_grad():
        codec.quantizer.project_out.weight.normal_()
    return codec


def codes_of(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, 65_536, (batch, 1, frames), generator=torch.Generator().manual_seed(1))


def decode(codec: XCodec2, codes: torch.Tensor) -> torch.Tensor:
    lengths = torch.full((len(codes),), codes.shape[2])
    return codec.decode(AudioTokens(codes, lengths, codec.spec))[0]


@pytest.mark.parametrize("rate", [16_000, 24_000])
@pytest.mark.parametrize("frame", [1, 2, 7, 20])
def test_later_frames_change_nothing_before_the_stated_latency(rate, frame):
    codec = build(CAUSAL, output_sample_rate=rate)
    hop = HOP * rate // 16_000
    assert codec.causal
    assert codec.latency_samples == hop * 3 // 2
    assert codec.lookahead_frames == 2
    codes = codes_of(30)
    changed = codes.clone()
    changed[:, :, frame:] = (changed[:, :, frame:] + 12_345) % 65_536
    moved = (decode(codec, codes) - decode(codec, changed)).abs()[0, 0]
    limit = max(0, frame * hop - codec.latency_samples)
    assert not moved[:limit].any()
    assert moved[limit : limit + hop].max() > 1e-3  # the statement is sharp to a hop


def test_the_published_decoder_is_not_causal():
    codec = build(PLAIN)
    assert not codec.causal
    assert codec.latency_samples is None
    codes = codes_of(30)
    changed = codes.clone()
    changed[:, :, 29:] = (changed[:, :, 29:] + 12_345) % 65_536
    moved = (decode(codec, codes) - decode(codec, changed)).abs()[0, 0]
    assert moved[: 10 * HOP].max() > 1e-6


def test_causal_stream_equals_offline():
    codec = build(CAUSAL)
    codes = codes_of(90, batch=2)
    offline = decode(codec, codes)
    stream = codec.stream_decoder(2)
    assert stream.latency_frames == 2
    parts = [stream.push(part) for part in codes.split([1, 2, 40, 3, 44], dim=2)] + [stream.flush()]
    assert (torch.cat(parts, dim=2) - offline).abs().max() <= 1e-5 * offline.abs().max()


def test_causal_context_is_enough_and_not_idle():
    codec = build(CAUSAL)
    context, codes = codec.acoustic_decoder.context_frames, codes_of(60)
    whole = decode(codec, codes)
    cut = decode(codec, codes[:, :, 59 - context :])
    assert (cut[0, 0, -HOP:] - whole[0, 0, -HOP:]).abs().max() <= 1e-5 * whole.abs().max()
    short = decode(codec, codes[:, :, 55:])
    assert (short[0, 0, -HOP:] - whole[0, 0, -HOP:]).abs().max() > 1e-3 * whole.abs().max()


def test_windowed_stream_of_the_published_decoder_declares_its_error():
    codec = build(PLAIN)
    codes = codes_of(60)
    error = declared_error(codec, AudioTokens(codes, torch.tensor([60]), codec.spec))
    assert error.latency_frames == codec.lookahead_frames == 25
    assert 0 <= error.relative_error < 1


def test_causal_starts_from_the_weights_of_the_other():
    published, causal = build(PLAIN), build(CAUSAL)
    causal.load_state_dict(published.state_dict())
    causal.train().freeze_encoder()
    causal.forward_codes(codes_of(12)).square().mean().backward()
    trained = dict(causal.acoustic_decoder.named_parameters())
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_attention_in_blocks_is_attention_under_a_band(monkeypatch):
    q, k, v = torch.randn(3, 1, 2, 50, 8, generator=torch.Generator().manual_seed(2))
    age = torch.arange(50)[:, None] - torch.arange(50)
    expected = transformer._attend(q, k, v, (age >= 0) & (age < 9))
    monkeypatch.setattr(transformer, "ATTENTION_BLOCK", 16)
    torch.testing.assert_close(transformer._windowed(q, k, v, 9), expected)


def test_positions_over_time_tell_order_and_those_by_head_do_not():
    """A transformer layer alone: reversing the frames reverses the result if it knows no order."""
    x = torch.randn(1, 10, 64, generator=torch.Generator().manual_seed(3))
    layer = build(PLAIN).acoustic_decoder.layers[0]
    rotation = transformer._rotation(10, 8, x)
    assert (layer(x.flip(1), None).flip(1) - layer(x, None)).abs().max() < 1e-5
    assert (layer(x.flip(1), rotation).flip(1) - layer(x, rotation)).abs().max() > 1e-3
    later = tuple(part[5:] for part in transformer._rotation(15, 8, x))
    torch.testing.assert_close(layer(x, later), layer(x, rotation))  # only distances matter


def test_dropout_acts_in_training_alone():
    decoder = Decoder(dataclasses.replace(PLAIN, dropout=0.5), 24, 64, HOP)
    x = torch.randn(1, 6, 24)
    assert not torch.equal(decoder.train()(x), decoder(x))
    assert torch.equal(decoder.eval()(x), decoder(x))


def test_overlap_add_gives_back_a_signal_that_was_cut_into_frames():
    head = ISTFTHead(4, 40)
    signal = torch.randn(1, 12 * 40, generator=torch.Generator().manual_seed(4))
    padded = torch.nn.functional.pad(signal, (head.lookahead_samples, head.lookahead_samples))
    spectrum = torch.fft.rfft(padded.unfold(1, head.n_fft, 40) * head.window)  # (1, 12, 81)
    head.linear = torch.nn.Identity()
    rebuilt = head(torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()], dim=2))
    assert rebuilt.shape == (1, 1, 480)
    torch.testing.assert_close(rebuilt[:, 0], signal, atol=1e-4, rtol=0)


def test_magnitudes_are_clipped():
    head = ISTFTHead(4, 40)
    with torch.no_grad():
        head.linear.bias.fill_(50.0)
    assert torch.isfinite(head(torch.zeros(1, 3, 4))).all()


def test_low_pass_keeps_constants_and_the_activation_keeps_length():
    taps = low_pass()
    assert taps.shape == (1, 1, 12)
    assert abs(float(taps.sum()) - 1) < 1e-6
    assert torch.allclose(taps, taps.flip(2))
    response = torch.fft.rfft(taps[0, 0], 512).abs()
    assert response[: 512 // 10].min() > 0.9  # well below half the band
    assert response[512 * 45 // 100 :].max() < 0.02  # well above it
    snake = AntiAliasedSnake(3)
    for length in (1, 2, 50):
        x = torch.full((1, 3, length), 0.7)
        torch.testing.assert_close(snake(x), torch.full_like(x, 0.7 + torch.tensor(0.7).sin().square().item()))


def test_exported_causal_codec_keeps_its_kind():
    codec = copy.deepcopy(build(CAUSAL))
    codec.init_for_training()
    assert codec.exported().causal
