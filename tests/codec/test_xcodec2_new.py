"""New X-Codec 2 models: training, export, our own folder layout, teachers, and sizes that contradict each other."""

import copy
import json

import pytest
import torch
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

from xcodec_lm.codec.fbank import w2v_bert_features
from xcodec_lm.codec.tokens import AudioTokenizer, FrameFeatures
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.codec.xcodec2_folder import is_xcodec2, load_xcodec2, save_xcodec2
from xcodec_lm.codec.xcodec2_teacher import build_teacher
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.xcodec2 import FSQConfig, Xcodec2DecoderConfig, Xcodec2ModelConfig, Xcodec2SemanticConfig

HOP = 320
TINY = Xcodec2ModelConfig(
    encoder_channels=2, dim=64, quantizer_dim=48, init_std=None,
    decoder=Xcodec2DecoderConfig(layers=2, heads=2, head_dim=8, mlp_dim=48),
)  # fmt: skip


def noise(batch: int, samples: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, samples, generator=torch.Generator().manual_seed(seed)) * 0.2


def load(folder) -> XCodec2:
    data = json.loads((folder / "config.json").read_text())
    assert is_xcodec2(data)
    return load_xcodec2(folder, data)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A new model with a HuBERT and positions over time, which transformers does not have."""
    torch.manual_seed(3)
    semantic = Xcodec2SemanticConfig(teacher="random:0", layers="mean", dim=16)
    codec = XCodec2(TINY, semantic, build_teacher(semantic), semantic_decoder=True)
    codec.init_for_training()
    with torch.no_grad():
        codec.quantizer.project_in.weight.normal_(std=0.4)
    return codec


def test_broken_files_are_refused_and_a_failed_save_keeps_the_old(tiny, tmp_path, monkeypatch):
    codec = tiny.exported()
    save_xcodec2(codec, tmp_path / "a")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xcodec_lm.codec.xcodec2_folder.save_file", full)
    with pytest.raises(XcodecLMError, match="No space left"):
        save_xcodec2(codec, tmp_path / "a")
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(XcodecLMError, match="cannot be read"):
        load(tmp_path / "a")
    with pytest.raises(XcodecLMError, match="exported"):
        save_xcodec2(tiny, tmp_path / "b")


def test_own_layout_keeps_what_transformers_lacks(tiny, tmp_path):
    codec = tiny.exported()
    save_xcodec2(codec, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "xcodec_lm"
    again = load(tmp_path)
    wav = noise(1, 8000)
    tokens = codec.encode(wav)
    assert torch.equal(again.encode(wav).codes, tokens.codes)
    assert torch.equal(again.decode(tokens)[0], codec.decode(tokens)[0])
    assert torch.equal(again.extract(tokens, "sem_decoder").values, codec.extract(tokens, "sem_decoder").values)
    assert again.extract(tokens, "sem_decoder").values.shape == (1, 16, 25)
    assert again.spec.fingerprint == codec.spec.fingerprint


def test_exported_is_the_training_codec(tiny):
    wav = noise(1, 8000)
    copied = tiny.exported()
    tiny.eval()
    assert not any("parametrizations" in key for key in copied.acoustic_encoder.state_dict())
    assert torch.equal(copied.encode(wav).codes, tiny.encode(wav).codes)


def test_gradient_reaches_every_trainable_parameter(tiny):
    codec = copy.deepcopy(tiny).train()
    assert not codec.semantic_encoder.training
    out = codec(noise(2, HOP * 20))
    assert out.wav.shape == (2, 1, HOP * 20)
    assert out.codes.shape == (2, 1, 20)
    assert float(out.commitment) == 0
    assert out.semantic > 0
    (out.wav.square().mean() + out.semantic).backward()
    trained = {name: p for name, p in codec.named_parameters() if not name.startswith("semantic_encoder.")}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert all(p.grad is None for p in codec.semantic_encoder.parameters())


def test_given_features_are_those_that_it_would_compute(tiny):
    codec = copy.deepcopy(tiny).eval()
    wav = noise(1, HOP * 12)
    with torch.no_grad():
        assert torch.equal(codec(wav).semantic, codec(wav, codec.teacher_features(wav)).semantic)


def test_training_fits_one_clip(tiny):
    codec = copy.deepcopy(tiny).train()
    optimizer = torch.optim.Adam([p for p in codec.parameters() if p.requires_grad], 3e-3)
    wav, losses = 0.3 * torch.sin(torch.arange(HOP * 8) * 0.1)[None, None], []
    for _ in range(15):
        out = codec(wav)
        loss = (out.wav - wav).abs().mean() + out.semantic
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_decoder_trains_on_frozen_codes(tiny):
    codec = copy.deepcopy(tiny).train()
    codec.freeze_encoder()
    codes = tiny.eval().encode(noise(1, HOP * 10)).codes.clone()
    codec.forward_codes(codes).square().mean().backward()
    moved = {name for name, p in codec.named_parameters() if p.grad is not None}
    assert moved == {
        name
        for name in dict(codec.named_parameters())
        if name.startswith(("acoustic_decoder.", "quantizer.project_out."))
    }


def test_twin_without_semantics(tmp_path):
    torch.manual_seed(4)
    twin = XCodec2(TINY, Xcodec2SemanticConfig(), None).eval()
    assert twin.features == ("post_vq", "pre_vq")
    save_xcodec2(twin, tmp_path)
    wav = noise(2, 5000)
    assert torch.equal(load(tmp_path).encode(wav).codes, twin.encode(wav).codes)
    assert float(twin(noise(1, 640)).semantic) == 0


def test_teacher_is_cut_after_its_layer(tmp_path):
    torch.manual_seed(5)
    config = Wav2Vec2BertConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24)
    model = Wav2Vec2BertModel(config).eval()
    model.save_pretrained(tmp_path)
    semantic = Xcodec2SemanticConfig(teacher=str(tmp_path), layers=2, dim=16)
    teacher = build_teacher(semantic)
    assert len(teacher.encoder.layers) == teacher.config.num_hidden_layers == 2
    codec = XCodec2(TINY, semantic, teacher)
    wav = noise(1, HOP * 25)
    with torch.no_grad():
        states = model(
            input_features=w2v_bert_features(torch.nn.functional.pad(wav[:, 0], (160, 160))), output_hidden_states=True
        )
    torch.testing.assert_close(codec.teacher_features(wav), states.hidden_states[2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": Xcodec2DecoderConfig(causal=True)}, "attention_window"),
        ({"decoder": Xcodec2DecoderConfig(attention_window=8)}, "attention_window"),
        ({"decoder": Xcodec2DecoderConfig(rope="layer")}, "rope"),
        ({"decoder": Xcodec2DecoderConfig(head_dim=7)}, "head_dim"),
        ({"dim": 100}, "multiple of 32"),
        ({"output_sample_rate": 22_050}, "output_sample_rate"),
    ],
)
def test_contradicting_sizes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Xcodec2ModelConfig(**options)


def test_teacher_of_another_frame_rate_is_refused():
    semantic = Xcodec2SemanticConfig(teacher="random:0", layers="mean", dim=16)
    wide = Xcodec2ModelConfig(encoder_channels=2, encoder_strides=(4, 4, 5, 8), dim=64, quantizer=FSQConfig((3, 3)))
    with pytest.raises(ConfigError, match="one frame per 640"):
        XCodec2(wide, semantic, build_teacher(semantic))
    with pytest.raises(ConfigError, match="no teacher was given"):
        XCodec2(TINY, semantic, None)


def test_protocols(tiny):
    assert isinstance(tiny, AudioTokenizer)
    assert isinstance(tiny, FrameFeatures)
