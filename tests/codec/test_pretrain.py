"""Pre-training: labels lie over their samples, it learns, resumes bit for bit, and refuses what does not fit."""

import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm import configs
from xcodec_lm.codec import load_codec, pretrain
from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.hubert import IGNORED
from xcodec_lm.codec.labels import SHORTEST_FRAMES, LabelledCrops, Labeller, crop_lengths
from xcodec_lm.codec.pretrain import build_model, dry_run, evaluate, micro_batches, slots_per_step, train
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.codec.semantic import load_teacher
from xcodec_lm.codec.tokens import TokenSpec, stack_codes
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.hubert import HubertTrainConfig
from xcodec_lm.configs.run import OptimConfig

MINI = {
    "model.hidden_size": 32, "model.num_hidden_layers": 1, "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "model.conv_dim": [16] * 7, "model.num_conv_pos_embeddings": 8, "model.num_conv_pos_embedding_groups": 2,
    "model.dropout": 0.1, "model.projection_dim": 16, "data.crop_s": 0.64, "data.batch_s": 2.56,
    "data.micro_batch_s": 2.56, "data.eval_clips": 2, "data.eval_clip_s": 0.6, "optim.steps": 6,
    "optim.warmup_steps": 2, "run.log_every": 1, "run.save_every": 2, "run.eval_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Twelve recordings of 0.2 to 1.3 s, each of one chord all through, so that what is hidden can be told."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(12):
        seconds = 0.2 + 0.1 * index
        time_s = np.arange(round(seconds * 16000)) / 16000
        tone = sum(np.sin(2 * np.pi * f * time_s) for f in rng.uniform(100, 4000, 4)) * 0.1
        name = f"clip{index}.wav"
        sf.write(folder / name, tone.astype(np.float32), 16000, subtype="FLOAT")
        rows.append({"id": name, "audio": name, "duration": seconds, "split": "dev" if index in (6, 11) else "train"})
    write_manifest(rows, folder / "clips.jsonl")
    return folder / "clips.jsonl"


@pytest.fixture
def config_for(manifest, twin_folder):
    def make(**overrides) -> HubertTrainConfig:
        given = {"data.manifests": [str(manifest)], "targets.codec": str(twin_folder)}
        return configs.load("hubert/tiny", HubertTrainConfig, {**MINI, **given, **overrides})

    return make


@pytest.fixture
def crops(config_for, twin_folder):
    return LabelledCrops(config_for(), Labeller(load_codec(twin_folder), 16_000, 320))


def options(folder, **more):
    return RunOptions(out=folder, device="cpu", **more)


def losses_of(folder):
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


# ---------------------------------------------------------------------- crops and labels


def test_crop_holds_the_samples_and_the_codes_of_the_same_frames(manifest, twin_folder):
    codec = load_codec(twin_folder)
    labeller = Labeller(codec, 16_000, 320)
    path = manifest.parent / "clip9.wav"
    samples, _ = sf.read(path, dtype="float32")
    codes = codec.encode(torch.from_numpy(samples)[None, None], n_q=1).codes[0, 0]
    wav, labels = labeller.crop(path, 20, 0.5)
    start = int(0.5 * (len(codes) - 20 + 1))
    assert start > 0
    np.testing.assert_array_equal(wav.numpy(), samples[320 * start : 320 * (start + 20)])
    assert torch.equal(labels, codes[start : start + 20])
    assert labeller.crop(path, 20, 0.999)[1].tolist() == codes[-20:].tolist()


def test_short_recording_is_padded_and_padding_has_no_label(manifest, twin_folder):
    wav, labels = Labeller(load_codec(twin_folder), 16_000, 320).crop(manifest.parent / "clip0.wav", 16, 0.9)
    assert wav.shape == (16 * 320,) and (labels[:10] >= 0).all() and (labels[10:] == IGNORED).all()
    assert wav[3200:].abs().sum() == 0


def test_recording_is_encoded_once(manifest, twin_folder, monkeypatch):
    codec, calls = load_codec(twin_folder), []
    encode = type(codec).encode
    monkeypatch.setattr(type(codec), "encode", lambda self, *a, **k: calls.append(1) or encode(self, *a, **k))
    labeller = Labeller(codec, 16_000, 320)
    for where in (0.0, 0.5):
        labeller.crop(manifest.parent / "clip9.wav", 16, where)
    assert len(calls) == 1


@pytest.mark.parametrize("longest", [16, 32, 50, 200, 500])
def test_lengths_of_crops_leave_little_padding(longest):
    lengths = crop_lengths(longest)
    assert lengths[0] == longest and lengths[-1] >= SHORTEST_FRAMES
    for longer, shorter in itertools.pairwise(lengths):
        assert longer / shorter == pytest.approx(2**0.5, rel=0.06)


def test_one_pass_meets_every_recording_and_a_slot_is_never_longer_than_a_crop(crops):
    seen = set()
    for position in range(len(crops)):
        slot = crops.slot(position)
        assert len({len(crop.labels) for crop in slot}) == 1
        assert sum(len(crop.labels) for crop in slot) <= 32
        for crop in slot:
            assert crop.wav.shape == (320 * len(crop.labels),) and crop.mask.shape == crop.labels.shape
            seen.add(int((crop.labels != IGNORED).sum()))
    # Those shorter than a crop, by their own lengths, and one entry for the longer ones.
    assert seen == {10, 15, 20, 25, 30, 32}


def test_slot_is_a_function_of_seed_and_position(crops, config_for, twin_folder):
    again = LabelledCrops(config_for(), Labeller(load_codec(twin_folder), 16_000, 320))
    again.slot(40)
    for position in (3, 17):
        for a, b in zip(crops.slot(position), again.slot(position), strict=True):
            assert torch.equal(a.wav, b.wav) and torch.equal(a.mask, b.mask) and torch.equal(a.labels, b.labels)
    other = LabelledCrops(config_for(**{"run.seed": 1}), crops.labeller)
    assert any(
        not torch.equal(a.mask, b.mask)
        for position in range(8)
        for a, b in zip(crops.slot(position), other.slot(position), strict=False)
        if a.mask.shape == b.mask.shape
    )


def test_micro_batches_hold_every_crop_once_and_stay_below_the_limit(crops, config_for):
    config = config_for(**{"data.micro_batch_s": 0.64})
    members = [crop for position in range(8) for crop in crops.slot(position)]
    batches = micro_batches(members, config)
    assert sum(len(batch.wav) for batch in batches) == len(members)
    assert all(batch.labels.numel() <= 32 for batch in batches)


# ---------------------------------------------------------------------- training


def test_run_folder_holds_a_teacher_and_the_metrics(config_for, tmp_path, twin_folder):
    folder = train(config_for(), options(tmp_path / "run"))
    assert len(losses_of(folder)) == 6
    row = next(row for row in read_metrics(folder) if "eval/accuracy" in row)
    assert {"eval/loss", "eval/majority_accuracy", "eval/nearest_accuracy", "eval/label_bits"} <= set(row)
    teacher = load_teacher(folder)
    assert teacher.config.hidden_size == 32 and not teacher.training
    facts = json.loads((folder / "model" / "targets.json").read_text())
    assert facts["steps"] == 6 and facts["codec"]["fingerprint"] == load_codec(twin_folder).spec.fingerprint


class LoudestBand:
    """A codec by protocol alone: the code of a frame is the band with the most energy, of 32."""

    spec = TokenSpec("bands", 16_000, 16_000, 320, (32,), fingerprint="bands")

    def encode(self, wav, lengths=None, n_q=None, *, sample_rate=None):
        frames = -(-wav.shape[2] // 320)
        hops = torch.nn.functional.pad(wav[0, 0], (0, 320 * frames - wav.shape[2])).view(frames, 320)
        bands = torch.fft.rfft(hops).abs()[:, :160].unflatten(1, (32, 5)).sum(2)
        return stack_codes([bands.argmax(1)[None]], self.spec)


def test_training_learns_what_is_hidden(config_for, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "load_codec", lambda *_, **__: LoudestBand())
    changes = {
        "model.dropout": 0.0, "optim.steps": 80, "optim.lr": 5e-3, "optim.warmup_steps": 10, "run.eval_every": 80,
        "run.save_every": 80, "data.batch_s": 3.2, "data.micro_batch_s": 3.2,
    }  # fmt: skip
    config = config_for(**changes)
    rows = read_metrics(train(config, options(tmp_path / "run")))
    crops = LabelledCrops(config, Labeller(LoudestBand(), 16_000, 320))
    labels = torch.cat([crop.labels for position in range(len(crops)) for crop in crops.slot(position)])
    labels = labels[labels != IGNORED]
    majority = float(labels.bincount().max()) / len(labels)
    assert majority < 0.5 and np.mean([row["accuracy"] for row in rows[-10:]]) > 1.5 * majority
    assert np.mean([row["loss"] for row in rows[-10:]]) < 0.6 * rows[0]["loss"]


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(config_for, tmp_path, monkeypatch):
    config = config_for(**{"optim.ema_decay": 0.9, "data.micro_batch_s": 0.64})
    straight = train(config, options(tmp_path / "straight"))
    broken = tmp_path / "broken"
    steps, inner = [], pretrain.micro_batches

    def dies_in_step_4(*args):
        steps.append(1)
        if len(steps) == 4:
            raise MemoryError
        return inner(*args)

    monkeypatch.setattr(pretrain, "micro_batches", dies_in_step_4)
    with pytest.raises(MemoryError):
        train(config, options(broken))
    monkeypatch.undo()
    train(config, options(broken, max_steps=5))
    train(config, options(broken))
    assert read_metrics(broken) == read_metrics(straight)
    a, b = (load_teacher(folder).state_dict() for folder in (straight, broken))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_accumulated_micro_batches_equal_one_batch(config_for, tmp_path):
    whole = train(config_for(**{"model.dropout": 0.0}), options(tmp_path / "whole"))
    parts = train(config_for(**{"model.dropout": 0.0, "data.micro_batch_s": 0.64}), options(tmp_path / "parts"))
    np.testing.assert_allclose(losses_of(parts), losses_of(whole), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_equal_one(config_for, tmp_path):
    changes = {"model.dropout": 0.0, "optim.steps": 3}
    alone = train(config_for(**changes), options(tmp_path / "alone"))
    configs.save(config_for(**changes), tmp_path / "config.yaml")
    script = tmp_path / "go.py"
    script.write_text(
        "import sys; from pathlib import Path; from xcodec_lm import configs\n"
        "from xcodec_lm.codec.pretrain import train; from xcodec_lm.codec.runtime.run import RunOptions\n"
        "config = configs.load(sys.argv[1], configs.HubertTrainConfig)\n"
        "train(config, RunOptions(out=Path(sys.argv[2]), device='cpu'))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launcher, str(script), str(tmp_path / "config.yaml"), str(tmp_path / "two")], check=True)
    np.testing.assert_allclose(losses_of(tmp_path / "two"), losses_of(alone), rtol=1e-4)


def test_anchors_of_the_evaluation_are_those_of_the_labels(crops, config_for):
    config = config_for()
    dev = crops.validation()
    assert [len(crop.labels) for crop in dev] == [30, 30]
    row = evaluate(build_model(config, 64), dev, 64)
    asked = [(crop, t) for crop in dev for t in range(30) if crop.mask[t] and crop.labels[t] >= 0]
    answers = [int(crop.labels[t]) for crop, t in asked]
    shares = np.array([answers.count(label) for label in set(answers)]) / len(answers)
    assert row["eval/majority_accuracy"] == pytest.approx(shares.max())
    assert row["eval/label_bits"] == pytest.approx(-(shares * np.log2(shares)).sum())
    hits = 0
    for crop, t in asked:
        nearest = min((u for u in range(30) if not crop.mask[u]), key=lambda u, t=t: (abs(u - t), u))
        hits += int(crop.labels[nearest] == crop.labels[t])
    assert row["eval/nearest_accuracy"] == pytest.approx(hits / len(asked))


def test_inverse_square_root_schedule():
    optim = OptimConfig(steps=1000, lr=1e-3, schedule="inverse_sqrt", warmup_steps=100)
    assert optim.lr_at(0) == pytest.approx(1e-5) and optim.lr_at(99) == pytest.approx(1e-3)
    assert optim.lr_at(399) == pytest.approx(5e-4)
    rates = [optim.lr_at(step) for step in range(100, 1000)]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(1e-3, rel=0.01)


# ---------------------------------------------------------------------- what is refused


def test_run_without_a_codec_or_with_a_misspelt_one_is_refused(config_for, tmp_path):
    with pytest.raises(ConfigError, match=r"targets\.codec is empty"):
        train(config_for(**{"targets.codec": ""}), options(tmp_path / "run"))
    with pytest.raises(XcodecLMError, match="no such codec"):
        train(config_for(**{"targets.codec": str(tmp_path / "typo")}), options(tmp_path / "run"))


def test_codec_of_another_frame_rate_is_refused(twin_folder):
    codec = load_codec(twin_folder)
    codec.spec = dataclasses.replace(codec.spec, hop_samples=640)
    with pytest.raises(ConfigError, match=r"25 frames per second, the model 50"):
        Labeller(codec, 16_000, 320)


def test_run_goes_on_with_its_own_codec_only(config_for, tmp_path, twin_folder, other_folder):
    train(config_for(), options(tmp_path / "run", max_steps=2))
    # The same path with another codec behind it: the configuration does not tell.
    moved = tmp_path / "codec"
    moved.symlink_to(twin_folder)
    config = config_for(**{"targets.codec": str(moved)})
    train(config, options(tmp_path / "second", max_steps=2))
    moved.unlink()
    moved.symlink_to(other_folder)
    with pytest.raises(XcodecLMError, match="was begun with the labels of"):
        train(config, options(tmp_path / "second"))


def test_manifests_without_training_rows_are_refused(config_for, tmp_path, write_wav):
    write_wav("a.wav")
    write_manifest([{"id": "a", "audio": "a.wav", "duration": 1.0, "split": "test"}], tmp_path / "m.jsonl")
    with pytest.raises(ConfigError, match="no row has split: train"):
        LabelledCrops(config_for(**{"data.manifests": [str(tmp_path / "m.jsonl")]}), None)
    with pytest.raises(ConfigError, match=r"data\.manifests is empty"):
        LabelledCrops(config_for(**{"data.manifests": []}), None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.crop_s", 0.645, "not a whole number of frames"),
        ("data.batch_s", 0.3, "must hold one crop"),
        ("loss.mask_time_prob", 0.0, "mask_time_prob must lie in"),
        ("loss.temperature", 0.0, "temperature must be above 0"),
        ("loss.masked_weight", 0.0, "masked_weight must be above 0"),
        ("model.num_attention_heads", 3, "not divisible by"),
        ("model.num_conv_pos_embedding_groups", 5, "not divisible by"),
        ("model.conv_dim", [8, 8], "must have the same length"),
        ("model.hiden_size", 8, "did you mean 'hidden_size'"),
        ("optim.schedule", "inverse_sqr", "did you mean 'inverse_sqrt'"),
    ],
)
def test_settings_that_contradict_each_other_are_named(config_for, key, value, message):
    with pytest.raises(ConfigError, match=message):
        config_for(**{key: value})


def test_dry_run_describes_the_run_and_makes_nothing(config_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = dry_run(config_for())
    assert "10 recordings" in text and "step: 4 slots of 0.64 s = 128 frames; 6 steps" in text
    assert dry_run(config_for(**{"targets.codec": ""})).splitlines()[1:] == text.splitlines()[1:]
    assert not list(tmp_path.iterdir()) and slots_per_step(config_for()) == 4
