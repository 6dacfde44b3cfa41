"""Runs that start from a trained codec."""

from dataclasses import replace

import pytest
import torch

from xcodec_lm.codec.load import load_codec
from xcodec_lm.codec.train import build_codec
from xcodec_lm.configs.codec import CodecTrainConfig, SemanticConfig
from xcodec_lm.configs.errors import ConfigError


def config_of(codec, source, **semantic):
    base = CodecTrainConfig(model=replace(codec.config, start_from=str(source)), semantic=codec.semantic_config)
    return replace(base, semantic=replace(base.semantic, **semantic)) if semantic else base


@pytest.mark.parametrize("kind", ["twin_folder", "teacher_folder"])
def test_a_codec_started_from_another_is_that_codec(kind, request, monkeypatch):
    folder = request.getfixturevalue(kind)
    trained = load_codec(folder)
    monkeypatch.setattr("xcodec_lm.codec.train.build_teacher", lambda config: trained.semantic_model)
    fresh = build_codec(config_of(trained, folder)).exported()
    assert fresh.config.start_from == ""
    wav = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    tokens = trained.encode(wav)
    assert torch.equal(fresh.encode(wav).codes, tokens.codes)
    fresh.spec = trained.spec
    torch.testing.assert_close(fresh.decode(tokens)[0], trained.decode(tokens)[0], rtol=1e-4, atol=1e-6)


def test_a_twin_starts_an_x_codec(twin_folder):
    twin = load_codec(twin_folder)
    dim = 32
    config = replace(config_of(twin, twin_folder), semantic=SemanticConfig(teacher="random:1", dim=dim))
    codec = build_codec(config)
    acoustic = twin.config.latent_dim
    assert torch.equal(codec.fc.weight[:, :acoustic], twin.fc.weight)
    assert codec.fc.weight.shape[1] == acoustic + dim and codec.fc.weight[:, acoustic:].std() > 0
    assert torch.equal(codec.quantizer.codebooks()[1].embed, twin.quantizer.codebooks()[1].embed)
    wav = torch.randn(1, 1, 3200) * 0.1
    torch.testing.assert_close(codec.eval().acoustic_encoder(wav), twin.acoustic_encoder(wav), rtol=1e-4, atol=1e-5)


def test_other_sizes_are_refused(twin_folder):
    twin = load_codec(twin_folder)
    config = config_of(twin, twin_folder)
    config = replace(config, model=replace(config.model, encoder_channels=2 * twin.config.encoder_channels))
    with pytest.raises(ConfigError, match="start_from: acoustic_encoder"):
        build_codec(config)
