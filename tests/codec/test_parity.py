"""Our X-Codec against `transformers.XcodecModel` with the same random weights: codes, audio, and folders both ways."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoFeatureExtractor, XcodecConfig, XcodecModel

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.load import save_codec
from xcodec_lm.configs.errors import XcodecLMError

TEACHERS = {
    "hubert": {},
    "hubert-layer-norm": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "wav2vec2": {},
    "wavlm": {},
}


def fill_codebooks(model: XcodecModel, wav: torch.Tensor, seed: int) -> None:
    """Seeded normals at the scale of what each layer quantizes, so that many codes occur in every layer."""
    rng = torch.Generator().manual_seed(seed)
    semantic = model.encoder_semantic(model._extract_semantic_features(wav).transpose(1, 2))
    latents = model.fc(torch.cat([model.acoustic_encoder(wav), semantic], 1).transpose(1, 2))
    residual = latents.flatten(0, 1)
    for layer in model.quantizer.quantizers:
        book = layer.codebook
        noise = torch.randn(book.embed.shape, generator=rng)
        picks = torch.randint(len(residual), (len(noise),), generator=rng)
        book.embed.copy_(residual[picks] + 0.1 * residual.std() * noise)
        residual = residual - book.embed[book.quantize(residual)]


def build(teacher: str, seed: int, strides=(8, 5, 4, 2), **options) -> XcodecModel:
    kind = teacher.split("-")[0]
    torch.manual_seed(seed)
    semantic = AutoConfig.for_model(
        kind, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=(24,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **TEACHERS[teacher],
    )  # fmt: skip
    acoustic = AutoConfig.for_model(
        "dac", encoder_hidden_size=8, decoder_hidden_size=64, hidden_size=32,
        downsampling_ratios=list(strides), upsampling_ratios=list(strides),
    )  # fmt: skip
    config = XcodecConfig(acoustic_model_config=acoustic, semantic_model_config=semantic, **options)
    return XcodecModel(config).eval()


@pytest.fixture(scope="module", params=list(TEACHERS))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    model = build(request.param, seed=len(request.param))
    wav = torch.randn(2, 1, 320 * 160, generator=torch.Generator().manual_seed(1)) * 0.2
    with torch.no_grad():
        fill_codebooks(model, wav, seed=2)
    model.save_pretrained(folder)
    return model, load_codec(folder), wav


def test_codes_are_identical_for_every_n_q(pair):
    model, codec, wav = pair
    with torch.no_grad():
        peer = model.encode(wav).audio_codes
        assert all(len(peer[:, layer].unique()) >= 100 for layer in range(8))
        for n_q, bandwidth in ((1, 0.5), (2, 1), (3, 1.5), (4, 2), (8, 4)):
            assert torch.equal(codec.encode(wav, n_q=n_q).codes, model.encode(wav, bandwidth=bandwidth).audio_codes)
    for n_q in range(1, 9):
        assert torch.equal(codec.encode(wav, n_q=n_q).codes, peer[:, :n_q])


def test_audio_agrees(pair):
    model, codec, wav = pair
    tokens = codec.encode(wav)
    for n_q in (1, 4, 8):
        ours, lengths = codec.decode(tokens.take(n_q))
        with torch.no_grad():
            peer = model.decode(tokens.codes[:, :n_q]).audio_values
        assert lengths.tolist() == [wav.shape[2]] * 2
        assert (ours - peer).abs().max() <= 1e-5 * peer.abs().max()


def test_saved_folder_loads_in_transformers_and_runs_its_usage_example(pair, tmp_path):
    model, codec, wav = pair
    save_codec(codec, tmp_path / "ours")
    theirs = XcodecModel.from_pretrained(tmp_path / "ours")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    sample = wav[0, 0, :5000].numpy()
    inputs = extractor(raw_audio=sample, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs["input_values"])
        codes = theirs.encode(inputs["input_values"]).audio_codes
        assert torch.equal(codes, expected.audio_codes)
        assert torch.equal(
            theirs.decode(codes).audio_values[..., : inputs["input_values"].shape[-1]], expected.audio_values
        )
    assert torch.equal(codec.encode(wav[:1, :, :5000]).codes, expected.audio_codes)  # both pad to whole frames


def test_both_layouts_have_one_fingerprint(pair, tmp_path):
    _, codec, _ = pair
    save_codec(codec, tmp_path / "ours")
    again = load_codec(tmp_path / "ours")
    assert again.spec.fingerprint == codec.spec.fingerprint
    XcodecModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert load_codec(tmp_path / "theirs").spec.fingerprint == codec.spec.fingerprint


def test_fingerprint_follows_the_encoder_and_not_the_decoder(pair, tmp_path):
    model, codec, _ = copy.deepcopy(pair)
    with torch.no_grad():
        model.acoustic_decoder.conv1.weight += 1
        model.save_pretrained(tmp_path / "decoder")
        model.acoustic_encoder.conv1.bias += 1e-3
        model.save_pretrained(tmp_path / "encoder")
    assert load_codec(tmp_path / "decoder").spec.fingerprint == codec.spec.fingerprint
    assert load_codec(tmp_path / "encoder").spec.fingerprint != codec.spec.fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (4, 4, 5, 4)},
        {"strides": (5, 8, 2, 4), "channel_ratios": [2, 1], "block_dilations": [1, 2], "unit_kernel_size": 5},
        {"codebook_size": 512, "target_bandwidths": [0.45, 1.8, 2.7], "kernel_size": 5},
    ],
)
def test_other_sizes(options, tmp_path):
    model = build("hubert", 5, **options)
    wav = torch.randn(1, 1, 320 * 90, generator=torch.Generator().manual_seed(3)) * 0.2
    with torch.no_grad():
        fill_codebooks(model, wav, seed=4)
        model.save_pretrained(tmp_path)
        codec = load_codec(tmp_path)
        peer = model.encode(wav).audio_codes
        tokens = codec.encode(wav)
        assert torch.equal(tokens.codes, peer)
        audio = model.decode(peer).audio_values
        assert (codec.decode(tokens)[0] - audio).abs().max() <= 1e-5 * audio.abs().max()
    assert codec.frames(320 * 90) == peer.shape[2]


def test_teacher_whose_frames_disagree_is_padded_as_the_peer_does(tmp_path):
    torch.manual_seed(0)
    semantic = AutoConfig.for_model(
        "hubert", hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, conv_dim=(24,) * 7,
        conv_kernel=(10, 3, 3, 3, 3, 2, 1), conv_stride=(5, 2, 2, 2, 2, 2, 2), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    config = XcodecConfig(semantic_model_config=semantic, codebook_dim=None)
    config.acoustic_model_config.encoder_hidden_size = 4
    config.acoustic_model_config.decoder_hidden_size = 32
    config.acoustic_model_config.hidden_size = 16
    config.codebook_dim = 64
    model = XcodecModel(config).eval()
    wav = torch.randn(1, 1, 320 * 40) * 0.2
    with torch.no_grad():
        fill = model.encode(wav).audio_codes  # zeros, but it runs and tells the number of frames
        model.save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    assert codec.frames(320 * 40) == fill.shape[2]
    assert codec.encode(wav).codes.shape == fill.shape


def test_decode_only_gives_the_same_audio_and_refuses_to_encode(pair, tmp_path):
    _, codec, wav = pair
    save_codec(codec, tmp_path / "ours")
    light = load_codec(tmp_path / "ours", decode_only=True)
    tokens = codec.encode(wav)
    assert torch.equal(light.decode(tokens)[0], codec.decode(tokens)[0])
    assert not hasattr(light, "semantic_model")
    with pytest.raises(XcodecLMError, match="decode_only"):
        light.encode(wav)
