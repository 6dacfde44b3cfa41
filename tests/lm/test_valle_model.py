"""Both decoders: the sizes of the paper, sane initial weights, safe on disk."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from xcodec_lm import configs
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.model_files import read_model_config
from xcodec_lm.lm.valle_ar import ValleAR
from xcodec_lm.lm.valle_nar import ValleNAR

TINY = ValleConfig(layers=2, heads=2, dim=16, mlp_dim=24, text_size=12, n_q=3, codebook_size=8, block=40)
both = pytest.mark.parametrize("kind", [ValleAR, ValleNAR])


def test_the_defaults_have_the_size_of_the_papers_models():
    with torch.device("meta"):
        assert round(ValleAR(ValleConfig()).parameter_count() / 1e6, 2) == 153.78
        natural, repo, none = (ValleNAR(ValleConfig(tie=tie)).parameter_count() for tie in ("natural", "repo", "none"))
    assert round(repo / 1e6, 2) == 213.61
    assert repo - natural == 1024 * 1024 and none - natural == 7 * 1024 * 1024


def test_the_layout_has_ids_for_codes_and_specials_alone():
    assert ValleConfig().layout.name == "first" and ValleConfig().layout.vocabulary_size == 1027
    grouped = replace(TINY, group=4).layout
    assert (grouped.name, grouped.group, grouped.vocabulary_size) == ("grouped", 4, 35)


def test_initial_weights_depend_on_nothing_but_the_number_of_inputs():
    torch.manual_seed(0)
    config = ValleConfig(layers=8, heads=4, dim=128, mlp_dim=512, text_size=300, n_q=3, codebook_size=256)
    for model in (ValleAR(config), ValleNAR(replace(config, tie="none"))):
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and len(parameter) > 2:
                expected = parameter.shape[1] ** -0.5 / (4 if name.endswith("proj.weight") else 1)  # sqrt(2 * 8) = 4
                assert abs(parameter.std().item() / expected - 1) < 0.05, name
            elif name.endswith("project.bias"):
                assert parameter.tolist() == [1.0] * 128 + [0.0] * 128
            elif parameter.dim() == 1:
                assert len(set(parameter.tolist())) == 1, name


@both
@pytest.mark.parametrize("half", [False, True])
def test_saves_and_loads(tmp_path, kind, half):
    torch.manual_seed(0)
    model = kind(replace(TINY, group=2, tie="repo"))
    model.save_pretrained(tmp_path / "m", {"codec": {"fingerprint": "f"}}, half=half)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    weights = load_file(tmp_path / "m" / "model.safetensors")
    assert sum(value.numel() for value in weights.values()) == model.parameter_count()
    assert {value.dtype for value in weights.values()} == {torch.float16 if half else torch.float32}
    assert read_model_config(tmp_path / "m", kind.kind)["codec"] == {"fingerprint": "f"}
    loaded = kind.from_pretrained(tmp_path / "m")
    assert not loaded.training and loaded.config == model.config
    for (name, one), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert other.dtype == torch.float32 and torch.equal(one.half().float() if half else one, other), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@both
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no language model"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "xcodec_lm_gpt"}'), "'xcodec_lm_gpt', not"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be loaded"),
        (lambda folder: _set(folder, "version", 9), "version 9"),
        (lambda folder: _set(folder, "model", {**configs.to_dict(TINY), "layers": 3}), "cannot be loaded"),
        (lambda folder: _set(folder, "model", {**configs.to_dict(TINY), "layer": 3}), "layers"),
    ],
)
def test_says_what_is_wrong_with_a_model_folder(tmp_path, kind, change, words):
    kind(TINY).save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(XcodecLMError, match=words):
        kind.from_pretrained(tmp_path)


def _set(folder, key, value):
    header = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(header))


def test_one_part_is_not_taken_for_the_other(tmp_path):
    ValleAR(TINY).save_pretrained(tmp_path)
    with pytest.raises(XcodecLMError, match="'xcodec_lm_valle_ar', not 'xcodec_lm_valle_nar'"):
        ValleNAR.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 0}, "model.layers must be at least 1"),
        ({"group": 0}, "model.group must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\)"),
        ({"dim": 30, "heads": 4}, "not divisible by model.heads 4"),
        ({"dim": 15, "heads": 5}, "even model.dim"),
    ],
)
def test_refuses_sizes_that_contradict_each_other(options, words):
    with pytest.raises(ConfigError, match=words):
        replace(TINY, **options)
