"""The token interface of X-Codec: batches equal singles, chunks equal the whole, lengths, guards."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.codec import batching, load_codec, xcodec
from xcodec_lm.codec.batching import windows
from xcodec_lm.codec.nn import acoustic
from xcodec_lm.codec.semantic import teacher_features
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.configs.errors import ConfigError, TokenError


@pytest.fixture(scope="module", params=["twin_folder", "teacher_folder"])
def codec(request):
    return load_codec(request.getfixturevalue(request.param))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def test_has_the_protocol(codec):
    assert isinstance(codec, AudioTokenizer)
    assert codec.lookahead_frames >= 10 and not codec.causal


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 9000), min_size=1, max_size=5))
def test_batches_of_any_lengths_equal_singles(codec, lengths):
    wav = noise(len(lengths), 1, max(lengths))
    tokens = codec.encode(wav, torch.tensor(lengths))
    audio, audio_lengths = codec.decode(tokens)
    assert audio_lengths.tolist() == lengths
    for row, length in enumerate(lengths):
        single = codec.encode(wav[row : row + 1, :, :length])
        assert torch.equal(single.codes[0], tokens.row(row).codes[0])
        assert tokens.lengths[row] == codec.frames(length) == -(-length // 320)
        torch.testing.assert_close(codec.decode(single)[0][0], audio[row, :, :length], rtol=0, atol=1e-5)
        assert not audio[row, :, length:].any()


def test_rows_of_very_different_lengths_share_a_masked_batch(codec, monkeypatch):
    monkeypatch.setattr(batching, "LEAST_FULL", {"cpu": 0.0})
    lengths = [1, 16_000, 700, 320, 9_999, 12_345]
    seen = []
    encoder = type(codec.acoustic_encoder).forward
    monkeypatch.setattr(
        type(codec.acoustic_encoder),
        "forward",
        lambda self, wav, n=None: seen.append(len(wav)) or encoder(self, wav, n),
    )
    wav = noise(len(lengths), 1, max(lengths), seed=3)
    tokens = codec.encode(wav, torch.tensor(lengths))
    assert seen == [len(lengths)]
    audio, _ = codec.decode(tokens)
    for row, length in enumerate(lengths):
        single = codec.encode(wav[row : row + 1, :, :length])
        assert torch.equal(single.codes[0], tokens.row(row).codes[0])
        torch.testing.assert_close(codec.decode(single)[0][0], audio[row, :, :length], rtol=0, atol=1e-5)


def test_masked_long_rows_pass_in_chunks(codec, monkeypatch):
    monkeypatch.setattr(batching, "LEAST_FULL", {"cpu": 0.0})
    lengths = [320 * 150, 320 * 90 + 5]
    wav = noise(2, 1, max(lengths), seed=4)
    singles = [codec.encode(wav[row : row + 1, :, :length]) for row, length in enumerate(lengths)]
    sounds = [codec.decode(single)[0] for single in singles]
    monkeypatch.setattr(xcodec, "frames_at_once", lambda *_: 60)
    monkeypatch.setattr(xcodec, "buckets", lambda frames, limit, device: iter([list(range(len(frames)))]))
    tokens = codec.encode(wav, torch.tensor(lengths))
    audio, _ = codec.decode(tokens)
    for row, (single, sound) in enumerate(zip(singles, sounds, strict=True)):
        assert torch.equal(single.codes[0], tokens.row(row).codes[0])
        torch.testing.assert_close(sound[0], audio[row, :, : lengths[row]], rtol=0, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(frames=st.lists(st.integers(1, 500), min_size=1, max_size=20), limit=st.integers(1, 2000))
def test_every_row_is_in_one_bucket_that_fits(frames, limit):
    found = list(batching.buckets(frames, limit, torch.device("cpu")))
    assert sorted(row for bucket in found for row in bucket) == list(range(len(frames)))
    for bucket in found:
        longest = max(frames[row] for row in bucket)
        assert len(bucket) == 1 or longest * len(bucket) <= limit
        assert min(frames[row] for row in bucket) >= batching.LEAST_FULL["cpu"] * longest


def test_features_are_those_that_the_codec_computes_with(codec):
    wav = noise(2, 1, 8000)
    lengths = torch.tensor([8000, 5000])
    tokens = codec.encode(wav, lengths)
    latents = codec.extract(wav, "pre_vq", lengths=lengths)
    assert latents.lengths.tolist() == tokens.lengths.tolist() == [25, 16]
    assert latents.frame_rate == codec.spec.frame_rate and not latents.values[1, :, 16:].any()
    assert torch.equal(codec.quantizer.encode(latents.values[1:, :, :16])[0], tokens.row(1).codes[0])
    books = codec.quantizer.codebooks()
    by_hand = books[0].embed[tokens.codes[0, 0]] + books[1].embed[tokens.codes[0, 1]]
    torch.testing.assert_close(codec.extract(tokens, "post_vq", n_q=2).values[0].t(), by_hand)
    torch.testing.assert_close(codec.extract(wav, "post_vq", 2, lengths).values[0].t(), by_hand)
    for name in codec.features:
        values = codec.extract(wav, name, lengths=lengths).values
        assert values.shape[2] == 25 and values.abs().sum() > 0 and not values[1, :, 16:].any()
        alone = codec.extract(wav[1:, :, :5000], name).values
        torch.testing.assert_close(values[1:, :, :16], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(TokenError, match="no feature"):
        codec.extract(wav, "mfcc")
    with pytest.raises(TokenError, match="before the quantizer"):
        codec.extract(tokens, "pre_vq")


def test_streams_with_full_look_ahead_equal_offline(codec):
    wav = noise(1, 1, 320 * 80 - 7)
    tokens = codec.encode(wav)
    stream = codec.stream_decoder()
    parts = [stream.push(part) for part in tokens.codes.split(7, dim=2)]
    streamed = torch.cat([*parts, stream.flush()], dim=2)
    torch.testing.assert_close(streamed[..., : wav.shape[2]], codec.decode(tokens)[0], rtol=0, atol=1e-5)
    if not codec.has_semantics:
        encoder = codec.stream_encoder()
        codes = torch.cat([*(encoder.push(part) for part in wav.split(1111, dim=2)), encoder.flush()], dim=2)
        assert torch.equal(codes, tokens.codes)


def test_what_lies_beyond_a_length_is_not_heard(codec):
    wav = noise(1, 1, 4000)
    loud = wav.clone()
    loud[..., 3000:] = 1.4
    lengths = torch.tensor([3000])
    assert torch.equal(codec.encode(wav, lengths).codes, codec.encode(loud, lengths).codes)


def test_chunked_encoding_and_decoding_equal_the_whole(codec, monkeypatch):
    wav = noise(1, 1, 320 * 400)
    whole = codec.encode(wav)
    audio = codec.decode(whole)[0]
    monkeypatch.setattr(xcodec, "frames_at_once", lambda *_: 37)
    assert torch.equal(codec.encode(wav).codes, whole.codes)
    chunked = codec.decode(whole)[0]
    assert (chunked - audio).abs().max() <= 1e-5 * audio.abs().max()


@pytest.mark.parametrize("strides", [(8, 5, 4, 2), (2, 4, 5, 8), (5, 3)])
def test_halo_covers_the_receptive_field(strides):
    encoder = acoustic.Encoder(2, strides, 4).double()
    decoder = acoustic.Decoder(4, 2 ** len(strides) * 2, strides).double()
    hop, frames, middle = encoder(torch.zeros(1, 1, 4 * 320).double()).shape[2], 120, 60
    hop = 4 * 320 // hop
    wav = torch.randn(1, 1, hop * frames).double()
    moved = wav.clone()
    moved[..., middle * hop : (middle + 1) * hop] += 1
    touched = (encoder(wav) != encoder(moved)).any(1)[0].nonzero().flatten()
    assert middle - encoder.halo_frames <= touched.min() and touched.max() <= middle + encoder.halo_frames
    latents = torch.randn(1, 4, frames).double()
    bumped = latents.clone()
    bumped[..., middle] += 1
    touched = (decoder(latents) != decoder(bumped))[0, 0].nonzero().flatten() // hop
    assert middle - decoder.halo_frames <= touched.min() and touched.max() <= middle + decoder.halo_frames


def test_published_strides_have_the_measured_receptive_fields():
    """One encoder frame sees 28 frames to either side, one decoded frame 10."""
    assert acoustic.Encoder(1, (8, 5, 4, 2), 1).halo_frames == 28
    assert acoustic.Decoder(1, 16, (8, 5, 4, 2)).halo_frames == 10


def test_training_layout_computes_the_same():
    encoder, decoder = acoustic.Encoder(4, (8, 5, 4, 2), 6), acoustic.Decoder(6, 64, (8, 5, 4, 2))
    for module in (encoder, decoder):
        for name, parameter in module.named_parameters():
            if name.endswith("alpha"):
                torch.nn.init.uniform_(parameter, 0.5, 2.0)
    wav = noise(2, 1, 3200)
    results = []
    for training in (False, True):
        encoder.train(training), decoder.train(training)
        encoder.zero_grad(), decoder.zero_grad()
        out = decoder(encoder(wav))
        out.square().sum().backward()
        gradients = [p.grad.clone() for module in (encoder, decoder) for p in module.parameters()]
        results.append((out.detach(), gradients))
    (plain, plain_gradients), (image, image_gradients) = results
    torch.testing.assert_close(plain, image, rtol=1e-4, atol=1e-6)
    for a, b in zip(plain_gradients, image_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("norm", [False, True])
def test_folded_weights_compute_the_same(norm):
    encoder = acoustic.Encoder(2, (8, 5, 4, 2), 3)
    if norm:
        acoustic.add_weight_norm(encoder)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(1.3)
    plain = acoustic.Encoder(2, (8, 5, 4, 2), 3)
    holder = torch.nn.ModuleDict({"encoder": encoder})
    plain.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in acoustic.folded_state(holder, ("encoder",)).items()}
    )
    wav = noise(1, 1, 640)
    torch.testing.assert_close(encoder(wav), plain(wav))


def test_long_audio_sees_the_teacher_in_windows_and_says_so(teacher_folder, capsys):
    codec = load_codec(teacher_folder)
    wav = noise(1, 1, 16000 * 9)
    rate, hop = 16000, 320
    whole = teacher_features(codec.semantic_model, wav, hop, rate, window_s=60)
    assert "note" not in capsys.readouterr().err
    cut = teacher_features(codec.semantic_model, wav, hop, rate, window_s=6)
    assert "the teacher sees 6 s at a time" in capsys.readouterr().err
    assert cut.shape == whole.shape
    error = (cut - whole).square().mean() / whole.var()
    assert error < 0.05  # near, not equal: attention and GroupNorm are global


@settings(max_examples=50, deadline=None)
@given(total=st.integers(1, 500), core=st.integers(1, 90), halo=st.integers(0, 40))
def test_windows_cover_every_frame_once(total, core, halo):
    pieces = list(windows(total, core, halo))
    assert [frame for start, stop, _, _ in pieces for frame in range(start, stop)] == list(range(total))
    for start, stop, left, right in pieces:
        assert left == max(0, start - halo) and right == min(total, stop + halo)


def test_tokens_of_another_codec_are_refused(twin_folder, other_folder):
    tokens = load_codec(twin_folder).encode(noise(1, 1, 640))
    with pytest.raises(TokenError, match="another codec"):
        load_codec(other_folder).decode(tokens)


def test_codes_out_of_range_are_refused(codec):
    tokens = codec.encode(noise(1, 1, 640))
    for bad in (-1, 64):
        codes = tokens.codes.clone()
        codes[0, 1, 1] = bad
        with pytest.raises(TokenError, match=f"code {bad} of row 0, quantizer 1, frame 1"):
            codec.decode(replace(tokens, codes=codes))


@pytest.mark.parametrize("n_q", [0, 5])
def test_n_q_out_of_range_is_refused(codec, n_q):
    with pytest.raises(TokenError, match=r"n_q must lie in 1\.\.4"):
        codec.encode(noise(1, 1, 640), n_q=n_q)


def test_teacher_of_another_frame_rate_is_refused():
    from xcodec_lm.codec.semantic import build_teacher
    from xcodec_lm.configs.codec import CodecModelConfig, SemanticConfig

    semantic = SemanticConfig(teacher="random:0", dim=16)
    model = CodecModelConfig(encoder_channels=1, decoder_channels=16, encoder_strides=(8, 5), decoder_strides=(8, 5))
    with pytest.raises(ConfigError, match="one frame per 40 samples"):
        xcodec.XCodec(model, semantic, build_teacher(semantic))
    with pytest.raises(ConfigError, match=r"semantic.dim is 32"):
        wide = SemanticConfig(teacher="random:0", dim=16)
        build_teacher(SemanticConfig(teacher=str_folder(wide), dim=32))


def str_folder(semantic):
    import tempfile

    from xcodec_lm.codec.semantic import build_teacher

    folder = tempfile.mkdtemp()
    build_teacher(semantic).save_pretrained(folder)
    return folder


def test_random_teacher_follows_its_seed_and_leaves_the_generator_alone():
    from xcodec_lm.codec.semantic import build_teacher
    from xcodec_lm.configs.codec import SemanticConfig

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (build_teacher(SemanticConfig(teacher=f"random:{seed}", dim=16)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weight = "encoder.layers.0.attention.k_proj.weight"
    assert torch.equal(a.state_dict()[weight], b.state_dict()[weight])
    assert not torch.equal(a.state_dict()[weight], c.state_dict()[weight])


@pytest.mark.parametrize("frames", [150, 151, 420])
def test_windows_of_one_size_equal_the_whole(codec, monkeypatch, frames):
    """The windows that compiled stacks work in, here with the stacks as they are."""
    sizes = []

    def spied(stack):
        return lambda x: sizes.append(x.shape[2]) or stack(x)

    wav = noise(1, 1, 320 * frames, seed=7)
    whole = codec.encode(wav)
    audio = codec.decode(whole)[0]
    stacks = {"encoder": spied(codec.acoustic_encoder), "decoder": spied(codec.acoustic_decoder)}
    monkeypatch.setattr(codec, "_compiled", stacks)
    assert torch.equal(codec.encode(wav).codes, whole.codes)
    torch.testing.assert_close(codec.decode(whole)[0], audio, rtol=0, atol=1e-5)
    assert set(sizes) == {xcodec.COMPILED_FRAMES, 320 * xcodec.COMPILED_FRAMES}
