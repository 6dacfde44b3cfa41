"""The presets: they load, the twin differs in semantics alone, the paper's sizes are the paper's."""

import pytest
import torch
from transformers import HubertConfig, HubertModel

from xcodec_lm import configs
from xcodec_lm.codec.load import count_parameters
from xcodec_lm.codec.nn.acoustic import add_weight_norm
from xcodec_lm.codec.nn.discriminators import MultiFrequencyDiscriminator
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs import CodecTrainConfig

SIZES = ("tiny", "small", "paper")


def test_every_family_has_its_sizes():
    names = configs.presets()
    assert names == sorted(names)
    trained = set(configs.FAMILIES) - {"layout"}
    assert {f"{family}/{size}" for family in trained for size in SIZES} <= set(names)
    assert {name.split("/")[0] for name in names} == set(configs.FAMILIES)


@pytest.mark.parametrize("name", configs.presets())
def test_preset_loads_and_is_introduced_by_a_comment(name):
    cls = configs.FAMILIES[name.split("/")[0]]
    assert isinstance(configs.load(name, cls), cls)
    assert configs.preset_text(name).startswith("# ")


def flat(group, path=""):
    for key, value in group.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@pytest.mark.parametrize("size", SIZES)
def test_twin_differs_in_the_semantic_path_alone(size):
    ours, twin = (configs.load(f"{family}/{size}", CodecTrainConfig) for family in ("xcodec", "baseline"))
    a, b = dict(flat(configs.to_dict(ours))), dict(flat(configs.to_dict(twin)))
    different = {key for key in a if a[key] != b[key]}
    assert "semantic.teacher" in different and all(key.startswith("semantic.") for key in different)
    assert twin.semantic.teacher == "none" != ours.semantic.teacher
    assert ours.model.quantizer.dim == twin.model.quantizer.dim
    # An explicit key of the preset, not the dataclass's default.
    text = configs.preset_text(f"xcodec/{size}")
    assert "quantizer: {" in text and f"dim: {ours.model.quantizer.dim}" in text


def on_meta(name):
    """The codec of a preset with HuBERT base as its teacher, without memory for its weights."""
    config = configs.load(name, CodecTrainConfig)
    with torch.device("meta"):
        teacher = HubertModel(HubertConfig()) if config.semantic.teacher != "none" else None
        return config, XCodec(config.model, config.semantic, teacher)


def millions(module):
    return round(count_parameters(module) / 1e6, 2)


def test_paper_preset_has_the_paper_s_parameters():
    config, codec = on_meta("xcodec/paper")
    counts = {name: millions(module) for name, module in codec.named_children() if name != "quantizer"}
    assert counts == {
        "acoustic_encoder": 12.76, "acoustic_decoder": 20.20, "encoder_semantic": 14.75, "decoder_semantic": 16.52,
        "semantic_model": 94.37, "fc": 1.05, "fc1": 0.79, "fc2": 0.26,
    }  # fmt: skip
    assert config.model.hop_samples == 320 and codec.spec.frame_rate == 50 and codec.spec.codebook_sizes == (1024,) * 8
    assert codec.spec.bitrate_kbps == 4.0
    with torch.device("meta"):
        add_weight_norm(codec.acoustic_encoder)
    assert round(count_parameters(codec.acoustic_encoder) / 2**20, 2) == 12.18  # as the paper prints it, g counted


def test_paper_preset_has_the_public_code_s_discriminator():
    loss = configs.load("xcodec/paper", CodecTrainConfig).loss
    with torch.device("meta"):
        assert millions(MultiFrequencyDiscriminator(16_000, loss.disc_hops, loss.disc_channels)) == 5.26


def test_paper_twin_has_the_same_acoustic_stacks_and_no_semantic_ones():
    _, codec = on_meta("xcodec/paper")
    _, twin = on_meta("baseline/paper")
    for name in ("acoustic_encoder", "acoustic_decoder", "quantizer", "fc2"):
        ours, theirs = (
            {key: value.shape for key, value in getattr(model, name).state_dict().items()} for model in (codec, twin)
        )
        assert ours == theirs
    names = {name for name, _ in twin.named_children()}
    assert names == {"acoustic_encoder", "acoustic_decoder", "quantizer", "fc", "fc2"}
    assert twin.fc.weight.shape == (1024, 256)


def test_small_preset_is_smaller_in_every_trained_acoustic_part():
    _, small = on_meta("xcodec/small")
    _, paper = on_meta("xcodec/paper")
    for name in ("acoustic_encoder", "acoustic_decoder", "fc", "fc2"):
        assert count_parameters(getattr(small, name)) < count_parameters(getattr(paper, name))
    assert small.spec.hop_samples == paper.spec.hop_samples == 320
