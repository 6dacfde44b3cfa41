"""Teachers from disk: which folders are taken, how others are refused, and a teacher's features without a codec."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, GPT2Config, GPT2Model

from xcodec_lm import configs
from xcodec_lm.codec.load import load_codec
from xcodec_lm.codec.semantic import TeacherFeatures, build_teacher, load_teacher, quiet_transformers
from xcodec_lm.codec.teacher_forward import KINDS, teacher_features
from xcodec_lm.codec.tokens import AudioTokens, FrameFeatures, TokenSpec
from xcodec_lm.configs.codec import SemanticConfig
from xcodec_lm.configs.errors import AudioError, ConfigError, TokenError, XcodecLMError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def save(kind, folder):
    options = dict(SIZES)
    if kind != "wav2vec2-bert":
        options |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    torch.manual_seed(0)
    with quiet_transformers():
        model = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
        model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("teachers") / "hubert"
    save("hubert", place)
    return place


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the teacher's folder to spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_transformers():
        yield


def refusal(source, kind=XcodecLMError, **options):
    with pytest.raises(kind) as caught:
        build_teacher(SemanticConfig(**{"teacher": str(source), "dim": 16, **options}))
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_frozen_with_its_weights(kind, tmp_path):
    saved = save(kind, tmp_path)
    teacher = build_teacher(SemanticConfig(teacher=str(tmp_path), dim=16))
    assert all(map(torch.equal, teacher.state_dict().values(), saved.state_dict().values()))
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training


def test_run_folder_of_a_teacher(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run" / "model")
    assert load_teacher(tmp_path / "run").config.model_type == "hubert"


def test_model_with_a_head_is_its_backbone(tmp_path):
    from transformers import HubertForCTC

    config = AutoConfig.for_model("hubert", conv_dim=(8,) * 7, vocab_size=5, **SIZES)
    model = HubertForCTC(config)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_teacher(tmp_path).encoder.layer_norm.weight + 0, model.hubert.encoder.layer_norm.weight + 0)


def test_other_models_are_refused_by_name(tmp_path):
    GPT2Model(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=8)).save_pretrained(tmp_path)
    message = refusal(tmp_path, ConfigError)
    assert "is a gpt2 model" in message and "wav2vec2-bert" in message


def test_an_x_codec_stands_for_its_teacher(teacher_folder, twin_folder):
    inside = load_codec(teacher_folder).semantic_model
    teacher = load_teacher(teacher_folder)
    for key, value in inside.state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value)
    assert "without a teacher" in refusal(twin_folder, ConfigError)


def test_folder_without_config(tmp_path):
    assert "it has no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "hubbert"}'])
def test_config_that_says_nothing(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert "neither a model folder" in refusal(tmp_path)


def test_config_without_weights(broken):
    (broken / "model.safetensors").unlink()
    assert "weights of" in refusal(broken) and "cannot be loaded" in refusal(broken)


def test_truncated_weights(broken):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "cannot be loaded" in refusal(broken)


def test_missing_weights_are_named_and_never_random(broken):
    tensors = load_file(broken / "model.safetensors")
    del tensors["encoder.layers.1.attention.k_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    message = refusal(broken)
    assert "lacks weights: encoder.layers.1.attention.k_proj.weight (1 in all)" in message


def test_weights_that_only_training_reads_may_be_missing(broken):
    tensors = load_file(broken / "model.safetensors")
    del tensors["masked_spec_embed"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    load_teacher(broken)


def test_weights_of_another_size(broken):
    data = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(data | {"intermediate_size": 32}))
    assert "cannot be loaded" in refusal(broken)


@pytest.mark.parametrize("layers", [-1, 3, "first", None, True])
def test_layers_that_the_teacher_does_not_have(folder, layers):
    assert "hidden states 0..2" in refusal(folder, ConfigError, layers=layers)


def test_layers_in_a_configuration_are_mean_or_a_number():
    assert SemanticConfig().layers == "mean"
    for value in ("mean", 9):
        assert configs.from_dict({"layers": value}, SemanticConfig, "here").layers == value
    with pytest.raises(ConfigError, match="layers"):
        configs.from_dict({"layers": "maen"}, SemanticConfig, "here")


def test_features_without_a_codec(folder):
    teacher = TeacherFeatures(folder, layers=1)
    assert isinstance(teacher, FrameFeatures)
    wav = 0.3 * torch.randn(3, 1, 5000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1, 5000, 3200])
    found = teacher.extract(wav, "ssl", lengths=lengths)
    assert found.lengths.tolist() == [1, 16, 10] and found.frame_rate == 50
    assert found.values.shape == (3, 16, 16) and not found.values[0, :, 1:].any()
    for row, length in enumerate(lengths.tolist()):
        alone = teacher.extract(wav[row : row + 1, :, :length]).values[0]
        torch.testing.assert_close(found.values[row, :, : alone.shape[1]], alone, rtol=1e-5, atol=1e-6)
    whole = teacher_features(teacher.model, wav[2:, :, :3200], 320, 16_000, 60.0, layers=1)
    torch.testing.assert_close(found.values[2:, :, :10], whole.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_what_a_teacher_cannot_look_at(folder):
    teacher = TeacherFeatures(folder)
    spec = TokenSpec("x", 16_000, 16_000, 320, (4,))
    tokens = AudioTokens(torch.zeros(1, 1, 2, dtype=torch.int64), torch.tensor([2]), spec)
    wav = torch.zeros(1, 1, 640)
    with pytest.raises(TokenError, match="hears audio"):
        teacher.extract(tokens)
    with pytest.raises(TokenError, match="'post_vq'"):
        teacher.extract(wav, "post_vq")
    with pytest.raises(TokenError, match="n_q 2"):
        teacher.extract(wav, "ssl", n_q=2)
    with pytest.raises(AudioError, match="nan"):
        teacher.extract(wav * float("nan"))
    with pytest.raises(ConfigError, match="hidden states"):
        TeacherFeatures(folder, layers=7)
