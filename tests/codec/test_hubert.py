"""The masked-prediction model: masks, frames, the head against plain formulas, and what is exported."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoModel

from xcodec_lm import configs
from xcodec_lm.codec.hubert import IGNORED, MaskedPrediction, save_hubert, span_mask, transformers_config
from xcodec_lm.codec.load import count_parameters
from xcodec_lm.codec.semantic import TeacherFeatures, build_teacher
from xcodec_lm.configs.codec import SemanticConfig
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.hubert import HubertLossConfig, HubertModelConfig, HubertTrainConfig

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "dropout": 0.0, "projection_dim": 8,
}  # fmt: skip
CLASSES = 12


def build(loss=HubertLossConfig(), **changes) -> MaskedPrediction:  # noqa: B008
    torch.manual_seed(0)
    return MaskedPrediction(HubertModelConfig(**{**SIZES, **changes}), loss, CLASSES).eval()


def noise(frames, rows=1, seed=0):
    return 0.1 * torch.randn(rows, 320 * frames, generator=torch.Generator().manual_seed(seed))


def a_mask(frames, rows=1):
    return torch.stack([span_mask(frames, 0.5, 3, torch.Generator().manual_seed(row)) for row in range(rows)])


# ---------------------------------------------------------------------- masks


@given(st.integers(1, 80), st.floats(0.05, 1), st.integers(1, 20), st.integers(0, 99))
def test_mask_always_hides_something_and_leaves_something(frames, prob, length, seed):
    mask = span_mask(frames, prob, length, torch.Generator().manual_seed(seed))
    assert mask.shape == (frames,) and mask.dtype == torch.bool and mask.any()
    assert frames == 1 or not mask.all()
    assert torch.equal(mask, span_mask(frames, prob, length, torch.Generator().manual_seed(seed)))


def test_mask_covers_what_random_starts_of_eight_percent_cover():
    masks = [span_mask(500, 0.8, 10, torch.Generator().manual_seed(seed)) for seed in range(200)]
    # A frame stays visible when none of the ten starts before it was drawn: (1 - 0.08)^10.
    assert np.mean([float(mask.float().mean()) for mask in masks]) == pytest.approx(1 - 0.92**10, abs=0.01)


def test_mask_consists_of_whole_spans():
    for seed in range(50):
        bits = span_mask(100, 0.3, 7, torch.Generator().manual_seed(seed)).tolist()
        runs = "".join("x" if bit else " " for bit in bits).split()
        assert min(map(len, runs)) >= 7


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("frames", [1, 2, 7, 50])
def test_one_frame_for_every_hop(frames):
    assert build().hidden(noise(frames), None).shape == (1, frames, 16)


def test_frames_are_those_that_a_codec_gets_from_its_teacher():
    model = build()
    with torch.no_grad():
        wav = noise(40)
        states = TeacherFeatures(model.hubert, layers=2).extract(wav[:, None]).values
        torch.testing.assert_close(model.hidden(wav, None).transpose(1, 2), states, rtol=1e-4, atol=1e-5)


def test_model_sees_nothing_of_masked_frames():
    model = build()
    everything = torch.ones(1, 20, dtype=torch.bool)
    with torch.no_grad():
        a, b = (model.hidden(noise(20, seed=seed), everything) for seed in (1, 2))
        assert torch.equal(a, b)
        some = everything.clone()
        some[0, 10:] = False
        assert not torch.equal(model.hidden(noise(20, seed=1), some), model.hidden(noise(20, seed=2), some))


@pytest.mark.parametrize(
    "changes", [{}, {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}]
)
def test_in_train_mode_only_our_mask_acts(changes):
    model, wav, mask = build(**changes), noise(30, rows=2), a_mask(30, rows=2)
    with torch.no_grad():
        expected = model.hidden(wav, mask)
        model.train()
        torch.manual_seed(1)
        assert torch.equal(model.hidden(wav, mask), expected)


def test_dropout_acts_in_train_mode_and_is_decided_by_the_seed():
    model = build(dropout=0.1).train()

    def hidden(seed):
        torch.manual_seed(seed)
        return model.hidden(noise(30), a_mask(30))

    assert torch.equal(hidden(3), hidden(3)) and not torch.equal(hidden(3), hidden(4))


def test_losses_are_cross_entropies_of_scaled_cosines():
    model = build(HubertLossConfig(temperature=0.2, unmasked_weight=1.0))
    wav, mask = noise(20, rows=2), a_mask(20, rows=2)
    labels = torch.randint(CLASSES, (2, 20), generator=torch.Generator().manual_seed(3))
    labels[1, 15:] = IGNORED
    with torch.no_grad():
        output, hidden = model(wav, mask, labels), model.hidden(wav, mask)
    sums, right = {True: 0.0, False: 0.0}, 0
    for row in range(2):
        for frame in range(20):
            if labels[row, frame] == IGNORED:
                continue
            vector = model.projection.weight.detach().numpy() @ hidden[row, frame].numpy()
            vector = vector + model.projection.bias.detach().numpy()
            table = model.label_embeddings.detach().numpy()
            cosines = table @ vector / np.linalg.norm(vector) / np.linalg.norm(table, axis=1)
            shares = np.exp(cosines / 0.2) / np.exp(cosines / 0.2).sum()
            masked = bool(mask[row, frame])
            sums[masked] -= np.log(shares[labels[row, frame]])
            right += masked and int(shares.argmax()) == int(labels[row, frame])
    assert float(output.masked_loss) == pytest.approx(sums[True], rel=1e-5)
    assert float(output.unmasked_loss) == pytest.approx(sums[False], rel=1e-5)
    assert int(output.correct) == right


def test_frames_without_a_label_have_no_loss():
    model, wav, mask = build(), noise(20), a_mask(20)
    labels = torch.full((1, 20), IGNORED)
    output = model(wav, mask, labels)
    assert output.masked_loss.item() == 0 and int(output.correct) == 0
    output.masked_loss.backward()  # a device whose share has no label still takes part in the step


def test_gradients_reach_every_weight():
    model = build().train()
    labels = torch.randint(CLASSES, (2, 30), generator=torch.Generator().manual_seed(0))
    model(noise(30, rows=2), a_mask(30, rows=2), labels).masked_loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # Keys' biases move all scores of a frame alike, and softmax does not notice.
    assert all("k_proj.bias" in name for name in without)


def test_front_end_must_give_one_frame_a_hop():
    with pytest.raises(ConfigError, match="do not give one frame per 320 samples"):
        build(conv_kernel=(400, 3, 3, 3, 3, 2, 2))


# ---------------------------------------------------------------------- sizes and export


def test_paper_preset_is_hubert_base():
    config = configs.load("hubert/paper", HubertTrainConfig)
    with torch.device("meta"):
        model = MaskedPrediction(config.model, config.loss, 1024)
    assert round(count_parameters(model.hubert) / 1e6, 2) == 94.37
    optim = config.optim
    assert (optim.lr, optim.warmup_steps, optim.steps, optim.schedule) == (3e-4, 32_000, 325_000, "inverse_sqrt")


def test_tiny_preset_has_less_than_two_million_parameters():
    config = configs.load("hubert/tiny", HubertTrainConfig)
    with torch.device("meta"):
        assert count_parameters(MaskedPrediction(config.model, config.loss, 1024)) < 2e6


def test_exported_folder_loads_in_transformers_and_as_a_teacher(tmp_path):
    model = build()
    save_hubert(model.hubert, tmp_path / "model", 16_000, {"steps": 3})
    loaded = AutoModel.from_pretrained(tmp_path / "model").eval()
    teacher = build_teacher(SemanticConfig(teacher=str(tmp_path / "model"), dim=16))
    wav = noise(20)
    with torch.no_grad():
        expected = model.hubert(wav).last_hidden_state
        for other in (loaded, teacher):
            torch.testing.assert_close(other(wav).last_hidden_state, expected, rtol=1e-5, atol=1e-6)
    assert not any("projection." in key and "feature" not in key for key in loaded.state_dict())
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    values = extractor(wav[0].numpy(), sampling_rate=16_000).input_values[0]
    np.testing.assert_array_equal(values, wav[0].numpy())  # as the codec gives it: no normalisation
    assert json.loads((tmp_path / "model" / "targets.json").read_text()) == {"steps": 3}


def test_saving_again_replaces_and_a_failure_leaves_the_old_model(tmp_path, monkeypatch):
    model = build()
    save_hubert(model.hubert, tmp_path / "model", 16_000, {"steps": 1})
    save_hubert(model.hubert, tmp_path / "model", 16_000, {"steps": 2})
    assert json.loads((tmp_path / "model" / "targets.json").read_text()) == {"steps": 2}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model.hubert), "save_pretrained", full)
    with pytest.raises(XcodecLMError, match="No space left"):
        save_hubert(model.hubert, tmp_path / "model", 16_000, {"steps": 3})
    assert json.loads((tmp_path / "model" / "targets.json").read_text()) == {"steps": 2}


def test_exported_configuration_keeps_the_mask_embedding():
    settings = transformers_config(HubertModelConfig(**SIZES))
    assert settings.apply_spec_augment and settings.mask_time_prob > 0 and settings.layerdrop == 0
