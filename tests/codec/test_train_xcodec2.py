"""Training X-Codec 2: it learns, resumes bit for bit, and a frozen tokenizer keeps its codes under a new decoder."""

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm import configs
from xcodec_lm.codec import load_codec
from xcodec_lm.codec.crops import Crops
from xcodec_lm.codec.evaluate import CodebookUse
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.codec.train import build_codec, dry_run, train
from xcodec_lm.codec.train_xcodec2 import level_use
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.xcodec2 import Xcodec2TrainConfig

MINI = {
    "model.encoder_channels": 1, "model.dim": 64, "model.quantizer_dim": 48, "model.decoder.layers": 1,
    "model.decoder.heads": 2, "model.decoder.head_dim": 8, "model.decoder.mlp_dim": 48, "model.decoder.dropout": 0.1,
    "semantic.teacher": "random:0", "semantic.dim": 16, "data.crop_s": 0.32, "data.batch_s": 1.28,
    "data.micro_batch_s": 0.64, "data.eval_clips": 2, "data.eval_clip_s": 0.5, "optim.steps": 4, "optim.lr": 3e-3,
    "optim.warmup_steps": 0, "run.log_every": 1, "run.save_every": 2, "run.eval_every": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def manifest(chords):
    return chords(4, 24000)


def config_for(manifest, preset="xcodec2/tiny", **overrides) -> Xcodec2TrainConfig:
    return configs.load(preset, Xcodec2TrainConfig, {**MINI, "data.manifests": [str(manifest)], **overrides})


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    return train(config_for(manifest), RunOptions(out=folder, device="cpu"))


def rows_of(folder, key):
    return [row[key] for row in read_metrics(folder) if key in row]


def clip(samples=6400, seed=0):
    return torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


# ------------------------------------------------------------------ a whole codec


def test_run_folder_holds_a_codec_and_says_how_fsq_is_used(trained):
    codec = load_codec(trained)
    assert isinstance(codec, XCodec2) and codec.spec.name == "trained" and codec.spec.codebook_sizes == (65536,)
    wav = clip()
    tokens = codec.encode(wav)
    assert tokens.codes.shape == (1, 1, 20) and codec.decode(tokens)[0].shape == wav.shape
    assert "sem_decoder" in codec.features
    assert not any("parametrizations" in key for key in codec.state_dict() if key.startswith("acoustic"))
    row = next(row for row in read_metrics(trained) if "eval/mel_nq1" in row)
    assert {"eval/mel_silence", "eval/mel_white_noise", "eval/mel_shaped_noise", "eval/codes_used_1"} <= set(row)
    assert 1 <= row["eval/code_perplexity"] <= row["eval/codes_used_1"] + 1e-9 <= row["eval/frames"] + 1e-9
    assert all(0.25 <= row[f"eval/levels_used_{d}"] <= 1 for d in range(1, 9))
    assert "eval/start_mel" not in row


def test_training_lowers_every_loss(manifest, tmp_path):
    config = config_for(manifest, **{"optim.steps": 24, "run.save_every": 24, "run.eval_every": 24})
    folder = train(config, RunOptions(out=tmp_path / "run", device="cpu"))
    for name, part in (("mel", 0.8), ("stft", 0.9), ("semantic", 0.9)):
        values = rows_of(folder, name)
        assert np.mean(values[-5:]) < part * np.mean(values[:3]), name


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(manifest, trained, tmp_path):
    broken = tmp_path / "trained"
    train(config_for(manifest), RunOptions(out=broken, device="cpu", max_steps=2))
    train(config_for(manifest), RunOptions(out=broken, device="cpu"))
    assert rows_of(broken, "loss") == rows_of(trained, "loss") and len(rows_of(broken, "loss")) == 4
    a, b = load_codec(trained).state_dict(), load_codec(broken).state_dict()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_discriminators_can_be_used(manifest, tmp_path):
    overrides = {"loss.adversarial_weight": 1, "loss.feature_weight": 1, "loss.disc_hops": [64]}
    config = config_for(manifest, **overrides, **{"loss.disc_channels": [32], "semantic.teacher": "none"})
    folder = train(config, RunOptions(out=tmp_path / "run", device="cpu", max_steps=1))
    (row,) = (row for row in read_metrics(folder) if "loss" in row)
    assert row["adversarial"] > 0 and row["feature"] > 0 and "semantic" not in row and "commitment" not in row


def test_twin_has_the_same_acoustic_start(manifest):
    ours = build_codec(config_for(manifest)).state_dict()
    twin = build_codec(config_for(manifest, **{"semantic.teacher": "none"}))
    assert not twin.has_semantics
    shared = [key for key in twin.state_dict() if key.startswith(("acoustic_", "quantizer"))]
    assert shared and all(torch.equal(twin.state_dict()[key], ours[key]) for key in shared)


def test_levels_are_counted_by_dimension(trained):
    codec, wavs = load_codec(trained), [clip(seed=seed)[0] for seed in (1, 2)]
    seen = CodebookUse(codec)
    for wav in wavs:
        seen.add(codec.encode(wav[None]))
    use = level_use(codec, seen)
    codes = torch.cat([codec.encode(wav[None]).codes[0, 0] for wav in wavs])
    for dimension, count in enumerate(use.counts):
        digits = codes // 4**dimension % 4
        assert count.tolist() == [int((digits == level).sum()) for level in range(4)]
        assert use.shares[dimension] == len(digits.unique()) / 4
        assert 1 <= use.perplexity[dimension] <= 4
    assert use.frames == 40


# ------------------------------------------------------------------ a new decoder on frozen codes


@pytest.mark.parametrize("preset", ["xcodec2/tiny-stream", "xcodec2/tiny-24k"])
def test_new_decoder_keeps_the_codes(manifest, trained, tmp_path, preset, capsys):
    config = config_for(manifest, preset, **{"model.start_from": str(trained)})
    folder = train(config, RunOptions(out=tmp_path / "new", device="cpu"))
    old, new = load_codec(trained), load_codec(folder)
    assert new.spec.fingerprint == old.spec.fingerprint
    before, after = old.state_dict(), new.state_dict()
    changed = {
        key for key, value in before.items() if value.shape != after[key].shape or not torch.equal(value, after[key])
    }
    assert changed and all(key.startswith("acoustic_decoder.") for key in changed)
    wav = clip(7000)
    tokens = old.encode(wav)
    assert torch.equal(new.encode(wav).codes, tokens.codes)
    decoded, lengths = new.decode(tokens)  # the old codec's tokens are its own
    row = next(row for row in read_metrics(folder) if "eval/mel_nq1" in row)
    if preset == "xcodec2/tiny-stream":
        assert new.causal and new.latency_samples == 480 and decoded.shape == wav.shape
        assert row["eval/start_mel"] > 0 and "gap " in capsys.readouterr().err
    else:
        assert new.spec.output_sample_rate == 24000 and int(lengths[0]) == 10500
        assert "eval/start_mel" not in row
        assert sf.info(folder / "samples" / "clip-0-step-4.flac").samplerate == 24000
        assert sf.info(folder / "samples" / "clip-0.flac").samplerate == 16000


def test_crops_of_another_output_rate_are_heard_at_the_input_rate(manifest):
    crops = Crops(config_for(manifest, "xcodec2/tiny-24k"))
    target = torch.stack([crops[0], crops[1]])
    heard = crops.heard(target)
    assert target.shape == (2, 1, 7680) and heard.shape == (2, 1, 5120)
    spectra = [torch.fft.rfft(x[0, 0])[:1280].abs() / x.shape[2] for x in (target, heard)]  # to 4 kHz, 3.125 Hz a bin
    torch.testing.assert_close(spectra[0], spectra[1], rtol=0.05, atol=2e-3)
    same = Crops(config_for(manifest))
    assert same.heard(heard) is heard


def test_frozen_encoder_needs_a_codec_with_the_same_codes(manifest, trained, twin_folder):
    with pytest.raises(ConfigError, match=r"model\.start_from is empty"):
        build_codec(config_for(manifest, "xcodec2/tiny-stream"))
    start = {"model.start_from": str(trained)}
    with pytest.raises(ConfigError, match=r"model\.encoder_strides is"):
        build_codec(config_for(manifest, "xcodec2/tiny-stream", **start, **{"model.encoder_strides": [5, 4, 4, 2, 2]}))
    with pytest.raises(ConfigError, match=r"semantic\.layers is 1"):
        build_codec(config_for(manifest, "xcodec2/tiny-stream", **start, **{"semantic.layers": 1}))
    with pytest.raises(ConfigError, match="not an X-Codec 2"):
        build_codec(config_for(manifest, "xcodec2/tiny-stream", **{"model.start_from": str(twin_folder)}))


def test_fine_tuning_starts_from_the_trained_weights(manifest, trained):
    codec = build_codec(config_for(manifest, **{"model.start_from": str(trained)})).eval()
    old = load_codec(trained)
    assert all(p.requires_grad for name, p in codec.named_parameters() if not name.startswith("semantic_encoder"))
    assert codec.config.start_from == ""
    wav = clip()
    torch.testing.assert_close(
        codec.latents(wav, codec.teacher_features(wav)), old.latents(wav, old.teacher_features(wav)),
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


# ------------------------------------------------------------------ configuration and command


def test_presets_of_the_family():
    paper = configs.load("xcodec2/paper", Xcodec2TrainConfig)
    assert [paper.optim.lr_at(step) for step in (2999, 3000, 10**6)] == pytest.approx([1e-4, 1e-4, 2e-5])
    assert paper.optim.lr_at(201_500) == pytest.approx(6e-5) and paper.optim.betas == (0.8, 0.9)
    assert (paper.loss.mel_weight, paper.loss.feature_weight, paper.semantic.loss_weight) == (15, 1, 5)
    tiny, stream = (configs.load(f"xcodec2/{name}", Xcodec2TrainConfig) for name in ("tiny", "tiny-stream"))
    assert stream.model.decoder.causal and stream.model.freeze_encoder and not tiny.model.freeze_encoder
    assert stream.semantic == tiny.semantic and stream.model.encoder_strides == tiny.model.encoder_strides


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss: {mel_bands: [5]}\n", "mel_windows and loss.mel_bands"),
        ("loss: {disc_hops: [5]}\n", "disc_hops and loss.disc_channels"),
        ("data: {crop_s: 0.01234}\n", "not a whole number of frames"),
        ("data: {batch_s: 1}\n", "shorter than one crop"),
        ("model: {start_form: a}\n", "did you mean 'start_from'"),
    ],
)
def test_values_that_contradict_each_other_are_refused(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        configs.load(tmp_path / "mine.yaml", Xcodec2TrainConfig)


def test_command_takes_the_family_from_preset_base_or_run(cli, manifest, trained, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("xcodec_lm.codec.train.train", lambda config, options: calls.append(config) or options.out)
    (tmp_path / "a.yaml").write_text("base: xcodec2/tiny\nrun: {seed: 3}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\noptim: {steps: 9}\n")
    for source in ("xcodec2/tiny", tmp_path / "b.yaml", trained):
        assert cli("codec", "train", source, "--model.decoder.layers", "5", "--out", tmp_path / "run")[0] == 0
    assert all(type(config) is Xcodec2TrainConfig and config.model.decoder.layers == 5 for config in calls)
    assert (calls[1].run.seed, calls[1].optim.steps, calls[2].semantic.dim) == (3, 9, 16)
    for source in ("xcodec/tiny", "baseline/tiny"):
        assert cli("codec", "train", source)[0] == 0
    assert {type(config) for config in calls[3:]} == {configs.CodecTrainConfig}


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("xcodec2/tinny", 1, "did you mean 'xcodec2/tiny'"),
        ("xcodek2/tiny", 1, "did you mean 'xcodec2/tiny'"),
        (None, 2, "xcodec2/tiny"),
    ],
)
def test_wrong_name_gets_the_nearest(cli, source, code, said):
    found, _, err = cli("codec", "train", *([source] if source else []))
    assert found == code and said in err


def test_dry_run_describes_the_model(manifest):
    text = dry_run(config_for(manifest))
    assert "acoustic_encoder" in text and "GiB" in text and "64 frames" in text
