"""X-Codec 2 and NeuCodec: parity with transformers, folders both ways, exact batches, lengths, bad input, training."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    NeuCodecConfig,
    NeuCodecModel,
    Wav2Vec2BertConfig,
    Xcodec2Config,
    Xcodec2Model,
)

from xcodec_lm.codec.fbank import w2v_bert_features
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, FrameFeatures
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.codec.xcodec2_folder import fingerprint_of_folder, is_xcodec2, load_xcodec2, save_xcodec2
from xcodec_lm.configs.errors import AudioError, TokenError, XcodecLMError
from xcodec_lm.configs.xcodec2 import Xcodec2SemanticConfig

HOP = 320
SIZES = {
    "xcodec2": {},
    "neucodec": {},
    "xcodec2-other": {
        "hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "encoder_hidden_size": 3, "downsampling_ratios": [5, 4, 4, 4], "quantization_levels": [8, 5, 5, 5],
    },
}  # fmt: skip


def noise(batch: int, samples: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed)) * 0.2


def build_peer(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    teacher = Wav2Vec2BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_depthwise_kernel_size=5
    )
    sizes = {
        "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "encoder_hidden_size": 4, **SIZES[kind],
    }  # fmt: skip
    config, model = (NeuCodecConfig, NeuCodecModel) if kind == "neucodec" else (Xcodec2Config, Xcodec2Model)
    peer = model(config(semantic_model_config=teacher, quantization_dim=sizes["hidden_size"] + 24, **sizes)).eval()
    with torch.no_grad():
        for (
            name,
            parameter,
        ) in peer.named_parameters():  # as large as trained ones, so that every part acts on the codes
            if parameter.dim() > 1 and "semantic_encoder" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif name.endswith((".alpha", ".beta", ".bias")):
                parameter.normal_(std=0.1)
        peer.semantic_adapter.conv4.weight *= 4  # an untrained teacher's frames differ little
        spread_codes(peer, kind)
        peer.acoustic_decoder.head.linear.weight *= 0.5
    return peer


def spread_codes(peer, kind: str) -> None:
    """Gives every dimension of the quantizer mean 0 and deviation 1.5 on noise, so that many codes occur."""
    caught = []
    handle = peer.quantizer.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    peer.encode(**peer_inputs(noise(1, HOP * 40, seed=9), kind))
    handle.remove()
    layer, x = peer.quantizer.project_in, caught[0][0]
    scale = 1.5 / layer(x).std(0)
    layer.weight *= scale[:, None]
    layer.bias.copy_(-(x @ layer.weight.T).mean(0))


def peer_inputs(wav: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """What transformers' feature extractor would give for padded audio, without torchaudio."""
    pad = 0 if kind == "neucodec" else 160
    return {
        "input_values": wav,
        "input_features": w2v_bert_features(torch.nn.functional.pad(wav[:, 0], (pad, pad))),
    }


@pytest.fixture(scope="module", params=list(SIZES))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    peer = build_peer(request.param)
    peer.save_pretrained(folder)
    return request.param, peer, load(folder), folder


def load(folder, **options) -> XCodec2:
    data = json.loads((folder / "config.json").read_text())
    assert is_xcodec2(data)
    return load_xcodec2(folder, data, **options)


def test_codes_and_audio_are_those_of_transformers(pair):
    kind, peer, codec, _ = pair
    wav = noise(2, HOP * 60)
    given = torch.nn.functional.pad(wav, (0, HOP)) if kind == "neucodec" else wav
    with torch.no_grad():
        codes = peer.encode(**peer_inputs(given, kind)).audio_codes
        audio = peer.decode(codes).audio_values
    tokens = codec.encode(wav)
    assert tokens.codes.dtype == torch.int64
    assert len(codes.unique()) > 40
    assert tokens.codes.shape == (2, 1, 60)
    assert torch.equal(tokens.codes, codes.long())
    ours, lengths = codec.decode(tokens)
    assert lengths.tolist() == [audio.shape[2]] * 2 == [60 * codec.config.output_hop_samples] * 2
    assert (ours - audio).abs().max() <= 1e-5 * audio.abs().max()


def test_semantics_act_on_the_codes(pair):
    _, _, codec, _ = pair
    wav = noise(1, HOP * 50)
    features = codec.teacher_features(wav)
    with torch.no_grad():
        one, other = (codec.quantizer.encode(codec.latents(wav, f)) for f in (features, features.flip(1)))
    assert (one != other).float().mean() > 0.2


def test_saved_folder_loads_in_transformers_and_back(pair, tmp_path):
    kind, peer, codec, folder = pair
    codec = copy.deepcopy(codec)
    save_xcodec2(codec, tmp_path / "ours", name="mine")
    theirs = type(peer).from_pretrained(tmp_path / "ours").eval()
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(load_file(folder / "model.safetensors"))
    inputs = peer_inputs(noise(1, HOP * 30), kind)
    with torch.no_grad():
        expected, codes = peer.encode(**inputs).audio_codes, theirs.encode(**inputs).audio_codes
        assert torch.equal(codes, expected)
        torch.testing.assert_close(theirs.decode(codes).audio_values, peer.decode(codes).audio_values)
    again = load(tmp_path / "ours")
    assert again.spec == codec.spec
    assert again.spec.name == "mine"
    theirs.save_pretrained(tmp_path / "theirs")
    assert load(tmp_path / "theirs").spec.fingerprint == codec.spec.fingerprint
    extractor = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert extractor["feature_extractor_type"].lower().startswith(kind.split("-")[0])
    assert extractor["hop_length"] == HOP


def test_fingerprint_follows_the_encoder_and_not_the_decoder(tmp_path):
    peer = build_peer("xcodec2")
    prints = {}
    for name, parts in {
        "plain": [], "decoder": [peer.acoustic_decoder.fc.weight, peer.quantizer.project_out.bias],
        "fsq": [peer.quantizer.project_in.bias], "teacher": [peer.semantic_encoder.feature_projection.projection.bias],
    }.items():  # fmt: skip
        with torch.no_grad():
            for part in parts:
                part += 0.01
        peer.save_pretrained(tmp_path / name)
        codec = load(tmp_path / name)
        prints[name] = codec.spec.fingerprint
        assert prints[name] == fingerprint_of_folder(tmp_path / name, codec_data(tmp_path / name))
    assert prints["plain"] == prints["decoder"]
    assert len(set(prints.values())) == 3


def codec_data(folder):
    return json.loads((folder / "config.json").read_text())


def test_unequal_batches_are_exact(pair):
    _, _, codec, _ = pair
    samples = [1, 319, 320, 321, 5000, 9601]
    wav = noise(len(samples), max(samples))
    tokens = codec.encode(wav, torch.tensor(samples))
    assert tokens.lengths.tolist() == [codec.frames(n) for n in samples] == [1, 1, 1, 2, 16, 31]
    audio, lengths = codec.decode(tokens)
    rate = codec.config.output_sample_rate
    assert lengths.tolist() == [-(-n * rate // 16_000) for n in samples]
    for index, count in enumerate(samples):
        alone = codec.encode(wav[index : index + 1, :, :count])
        assert torch.equal(alone.codes, tokens.row(index).codes)
        single, _ = codec.decode(alone)
        assert torch.isfinite(single).all()
        assert (single[0] - audio[index, :, : lengths[index]]).abs().max() <= 1e-5 * single.abs().max()
        assert not audio[index, :, lengths[index] :].any()


def test_neucodec_has_the_true_number_of_frames(tmp_path):
    peer = build_peer("neucodec")
    peer.save_pretrained(tmp_path)
    short, long = noise(1, HOP * 10), noise(1, HOP * 26)
    wav = torch.cat([torch.nn.functional.pad(short, (0, HOP * 16)), long])
    mask = torch.zeros(2, HOP * 26, dtype=torch.int64)
    mask[0, : HOP * 10], mask[1] = 1, 1
    with torch.no_grad():
        counted = peer.encode(**peer_inputs(wav, "neucodec"), padding_mask=mask).audio_codes_mask.sum(1)
    assert counted.tolist() == [15, 25]  # 10 frames of audio are counted as 10 * 24 / 16
    assert load(tmp_path).encode(wav, mask.sum(1)).lengths.tolist() == [10, 26]


def test_long_audio_is_encoded_in_exact_chunks(pair, monkeypatch):
    _, _, codec, _ = pair
    wav = noise(1, HOP * 110, seed=5)
    features = codec.teacher_features(wav)
    with torch.inference_mode():
        whole = codec.latents(wav, features)
        monkeypatch.setattr("xcodec_lm.codec.xcodec2.frames_at_once", lambda floats_per_frame, device: 40)
        chunked = codec.latents(wav, features)
    assert (whole - chunked).abs().max() <= 1e-5 * whole.abs().max()


def test_teacher_windows_of_long_audio_keep_the_frame_count(pair):
    _, _, codec, _ = pair
    codec = copy.deepcopy(codec)
    wav = noise(1, HOP * 130, seed=6)
    whole = codec.teacher_features(wav)
    codec.semantic_config = Xcodec2SemanticConfig(
        teacher="wav2vec2-bert", layers=2, dim=24, pad_samples=codec.semantic_config.pad_samples, window_s=1.0
    )
    windowed = codec.teacher_features(wav)
    assert windowed.shape == whole.shape == (1, 130, 24)
    assert not torch.equal(windowed, whole)


def test_decode_only_decodes_and_refuses_to_encode(pair):
    _, _, codec, folder = pair
    light = load(folder, decode_only=True)
    assert not any(key.startswith(("semantic", "acoustic_encoder", "fc_encoder")) for key in light.state_dict())
    tokens = codec.encode(noise(1, 4000))
    assert torch.equal(light.decode(tokens)[0], codec.decode(tokens)[0])
    assert light.spec == codec.spec
    assert light.frames(4000) == codec.frames(4000)
    with pytest.raises(TokenError, match="decode_only"):
        light.encode(noise(1, 4000))
    with pytest.raises(TokenError, match="pre_vq"):
        light.extract(tokens, "pre_vq")
    with pytest.raises(XcodecLMError, match="decode_only"):
        save_xcodec2(light, folder / "not")


def test_bad_input_is_refused(pair):
    _, _, codec, _ = pair
    tokens = codec.encode(noise(1, 4000))
    bad = AudioTokens(tokens.codes.clone().fill_(codec.quantizer.codebook_size), tokens.lengths, codec.spec)
    with pytest.raises(TokenError, match="outside"):
        codec.decode(bad)
    other = AudioTokens(tokens.codes, tokens.lengths, codec.spec.__class__(**{**vars(codec.spec), "fingerprint": "x"}))
    with pytest.raises(TokenError, match="another codec"):
        codec.decode(other)
    with pytest.raises(TokenError, match="n_q"):
        codec.encode(noise(1, 4000), n_q=2)
    with pytest.raises(AudioError, match="44100"):
        codec.encode(noise(1, 4000), sample_rate=44_100)
    with pytest.raises(AudioError, match="not a finite"):
        codec.encode(torch.full((1, 1, 400), torch.nan))
    with pytest.raises(TokenError, match="no feature"):
        codec.extract(tokens, "fc_post1")
    with pytest.raises(TokenError, match="not in the tokens"):
        codec.extract(tokens, "ssl")


def test_protocols(pair):
    assert isinstance(pair[2], AudioTokenizer)
    assert isinstance(pair[2], FrameFeatures)


def test_features(pair):
    _, _, codec, _ = pair
    wav, samples = noise(2, 6400), torch.tensor([6400, 3000])
    tokens = codec.encode(wav, samples)
    for feature, width in (
        ("ssl", 24),
        ("pre_vq", codec.config.quantizer_dim),
        ("post_vq", codec.config.quantizer_dim),
    ):
        found = codec.extract(wav, feature, lengths=samples)
        assert found.values.shape == (2, width, 20)
        assert found.lengths.tolist() == [20, 10]
        assert not found.values[1, :, 10:].any()
        alone = codec.extract(wav[1:, :, :3000], feature)
        torch.testing.assert_close(alone.values[0], found.values[1, :, :10])
    assert torch.equal(codec.extract(tokens, "post_vq").values, codec.extract(wav, "post_vq", lengths=samples).values)
    with torch.inference_mode():
        pre = codec.extract(wav, "pre_vq", lengths=samples).values.transpose(1, 2)
        assert torch.equal(codec.quantizer.encode(pre)[0], tokens.codes[0, 0])


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc_encoder.weight"), "missing: fc_encoder.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "does not have: extra"),
        (lambda t: t.update({"fc_encoder.bias": torch.zeros(3)}), "do not fit"),
    ],
)
def test_wrong_weights_are_named(change, message, tmp_path):
    build_peer("xcodec2-other").save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(XcodecLMError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "gelu"), ("attention_bias", True), ("num_key_value_heads", 1), ("quantization_dim", 99)],
)
def test_unknown_architectures_are_named(key, value, tmp_path):
    build_peer("xcodec2-other").save_pretrained(tmp_path)
    data = codec_data(tmp_path)
    with pytest.raises(XcodecLMError, match=key):
        load_xcodec2(tmp_path, data | {key: value})
