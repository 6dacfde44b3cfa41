"""Codec training: it learns, resumes bit for bit, survives kill -9, and two processes equal one."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm import configs
from xcodec_lm.codec import load_codec
from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.nn.rvq import ResidualVectorQuantizer
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.codec.train import Crops, StepPlan, Trainer, build_codec, train
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs import CodecTrainConfig
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

MINI = {
    "model.encoder_channels": 2, "model.decoder_channels": 32, "model.latent_dim": 8,
    "model.quantizer.n_q": 3, "model.quantizer.n_q_choices": [1, 3], "model.quantizer.codebook_size": 16,
    "model.quantizer.dim": 24, "semantic.dim": 16, "data.crop_s": 0.32, "data.batch_s": 1.28,
    "data.micro_batch_s": 1.28, "data.eval_clips": 2, "data.eval_clip_s": 0.5, "optim.steps": 6,
    "loss.disc_hops": [64], "loss.disc_channels": [32], "loss.disc_start_step": 1,
    "run.log_every": 1, "run.save_every": 2, "run.eval_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def manifest(chords):
    return chords(6, 16000)


def config_for(manifest, **overrides) -> CodecTrainConfig:
    return configs.load("xcodec/demo", CodecTrainConfig, {**MINI, "data.manifests": [str(manifest)], **overrides})


def losses_of(folder):
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def test_run_folder_holds_model_metrics_and_samples(manifest, tmp_path):
    folder = train(config_for(manifest), RunOptions(out=tmp_path / "run", device="cpu"))
    assert len(losses_of(folder)) == 6
    row = next(row for row in read_metrics(folder) if "eval/mel_nq3" in row)
    assert {"eval/mel_nq1", "eval/stft_nq3", "eval/codes_used_1", "eval/codes_used_3"} <= set(row)
    assert {"clip-0.flac", "clip-0-step-3.flac", "clip-0-step-6.flac"} <= {
        p.name for p in (folder / "samples").iterdir()
    }
    assert sf.info(folder / "samples" / "clip-0-step-6.flac").frames == 8000
    codec = load_codec(folder)
    assert codec.spec.name == "run" and not any(
        "parametrizations" in key and "acoustic" in key for key in codec.state_dict()
    )


def test_tensorboard_gets_the_metrics_by_flag(manifest, tmp_path):
    options = RunOptions(out=tmp_path / "run", device="cpu", max_steps=1)
    folder = train(config_for(manifest, **{"run.track": "tensorboard"}), options)
    assert list(folder.rglob("events.out.tfevents.*")) and len(losses_of(folder)) == 1


def test_exported_codec_encodes_as_the_trained_one(manifest, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Trainer, "fit", lambda self, fit=Trainer.fit: (fit(self), kept.append(self.codec.eval())))
    folder = train(config_for(manifest), RunOptions(out=tmp_path / "run", device="cpu"))
    wav = torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert torch.equal(load_codec(folder).encode(wav).codes, kept[0].encode(wav).codes)


@pytest.mark.parametrize("kind", ["xcodec", "baseline"])
def test_training_lowers_the_reconstruction_losses(manifest, tmp_path, kind):
    config = configs.load(
        f"{kind}/demo", CodecTrainConfig,
        {**MINI, "data.manifests": [str(manifest)], "optim.steps": 60, "optim.lr": 3e-3, "loss.disc_start_step": 99,
         "run.save_every": 60, "run.eval_every": 60},
    )  # fmt: skip
    folder = train(config, RunOptions(out=tmp_path / "run", device="cpu"))
    mel = [row["mel"] for row in read_metrics(folder) if "mel" in row]
    assert np.mean(mel[-10:]) < 0.7 * np.mean(mel[:5])


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(manifest, tmp_path):
    config = config_for(manifest, **{"optim.ema_decay": 0.9})
    straight = train(config, RunOptions(out=tmp_path / "straight", device="cpu"))
    broken = tmp_path / "broken"
    train(config, RunOptions(out=broken, device="cpu", max_steps=3))
    train(config, RunOptions(out=broken, device="cpu"))
    assert losses_of(broken) == losses_of(straight)
    a, b = load_codec(straight), load_codec(broken)
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def command(manifest, out, *extra):
    flags = [
        word
        for key, value in MINI.items()
        for word in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]
    return [
        "codec", "train", "xcodec/demo", "--data.manifests", str(manifest), "--out", str(out), "--device", "cpu",
        *flags, *extra,
    ]  # fmt: skip


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_killed_run_continues_as_if_it_had_not_been(manifest, tmp_path):
    steps = ("--optim.steps", "14")
    launch = [sys.executable, "-m", "xcodec_lm.tasks.cli", *command(manifest, tmp_path / "killed", *steps)]
    process = subprocess.Popen(launch, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoints" / "step-4").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model").exists()
    subprocess.run(launch, env=environment(), check=True, capture_output=True)
    straight = [*launch[:3], *command(manifest, tmp_path / "straight", *steps)]
    subprocess.run(straight, env=environment(), check=True, capture_output=True)
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "straight")
    assert len(losses_of(tmp_path / "killed")) == 14
    assert load_codec(tmp_path / "killed").spec.fingerprint == load_codec(tmp_path / "straight").spec.fingerprint


def test_two_processes_equal_one_on_the_same_global_batch(manifest, tmp_path):
    extra = ("--max-steps", "5", "--optim.lr", "1e-3")
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "xcodec_lm.tasks.cli",
    ]
    two = subprocess.run(
        [*run, *command(manifest, tmp_path / "two", *extra)], env=environment(), capture_output=True, text=True
    )
    assert two.returncode == 0, two.stderr
    single = [sys.executable, "-m", "xcodec_lm.tasks.cli", *command(manifest, tmp_path / "one", *extra)]
    subprocess.run(single, env=environment(), check=True, capture_output=True)
    state = json.loads((tmp_path / "two" / "checkpoints" / "step-5" / "state.json").read_text())
    assert state["world"] == 2
    one, two = load_codec(tmp_path / "one"), load_codec(tmp_path / "two")
    for a, b in zip(one.quantizer.codebooks(), two.quantizer.codebooks(), strict=True):
        torch.testing.assert_close(a.embed, b.embed, rtol=0, atol=1e-5)
    wav = torch.randn(2, 1, 32000, generator=torch.Generator().manual_seed(1)) * 0.2
    assert torch.equal(one.encode(wav).codes, two.encode(wav).codes)


def test_teacher_stays_frozen_and_in_eval_mode(manifest):
    config = config_for(manifest)
    codec = build_codec(config).train()
    teacher = codec.semantic_model
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    wav = torch.randn(1, 1, 5120) * 0.1
    assert torch.equal(codec.teacher_features(wav), codec.teacher_features(wav))


def test_generator_runs_once_a_step_on_the_whole_batch(manifest, tmp_path, monkeypatch):
    seen = []
    forward = XCodec.forward
    monkeypatch.setattr(
        XCodec, "forward", lambda self, wav, n_q: (seen.append((len(wav), n_q)), forward(self, wav, n_q))[1]
    )
    updates = []
    update = ResidualVectorQuantizer.update_codebooks
    monkeypatch.setattr(
        ResidualVectorQuantizer,
        "update_codebooks",
        lambda self, seed, step: (updates.append(step), update(self, seed, step))[1],
    )
    config = config_for(manifest, **{"data.micro_batch_s": 0.64})
    train(config, RunOptions(out=tmp_path / "run", device="cpu", max_steps=3))
    assert [clips for clips, _ in seen] == [2] * 6  # 3 steps of 2 micro-batches of 2 clips
    assert updates == [0, 1, 2]
    assert all(seen[i][1] == seen[i + 1][1] for i in range(0, 6, 2))  # one n_q for the whole step


def test_micro_batches_do_not_change_the_step(manifest, tmp_path):
    whole = train(config_for(manifest), RunOptions(out=tmp_path / "whole", device="cpu", max_steps=2))
    parts = train(
        config_for(manifest, **{"data.micro_batch_s": 0.32}),
        RunOptions(out=tmp_path / "parts", device="cpu", max_steps=2),
    )
    np.testing.assert_allclose(losses_of(whole), losses_of(parts), rtol=1e-4)


def test_twin_starts_from_the_same_acoustic_weights(manifest):
    codec = build_codec(config_for(manifest))
    twin = build_codec(config_for(manifest, **{"semantic.teacher": "none"}))
    mine = codec.state_dict()
    for key, value in twin.state_dict().items():
        if key.startswith(("acoustic_encoder", "acoustic_decoder")):
            assert torch.equal(value, mine[key]), key
    assert not hasattr(twin, "semantic_model")


def test_crops_depend_on_seed_and_position_alone(manifest):
    crops, again = Crops(config_for(manifest)), Crops(config_for(manifest))
    backwards = [again[k] for k in reversed(range(12))][::-1]
    assert all(torch.equal(crops[k], backwards[k]) for k in range(12))
    other = Crops(config_for(manifest, **{"run.seed": 1}))
    assert not all(torch.equal(crops[k], other[k]) for k in range(12))


def test_every_process_count_covers_the_same_clips():
    config = configs.load(
        "xcodec/demo", CodecTrainConfig, {"data.batch_s": 4.8, "data.crop_s": 0.6, "data.micro_batch_s": 1.2}
    )
    for world in (1, 2, 4, 8):
        plan = StepPlan.of(config, world)
        assert plan.clips == 8 and plan.local * world == 8 and plan.local % plan.micro == 0
    with pytest.raises(ConfigError, match="cannot share evenly"):
        StepPlan.of(config, 3)


def test_unusable_data_is_named(manifest, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.manifests is empty"):
        Crops(config_for(manifest, **{"data.manifests": []}))
    write_manifest([{"id": "a", "audio": "gone.wav", "duration": 1.0, "split": "train"}], tmp_path / "m.jsonl")
    with pytest.raises(XcodecLMError, match=r"gone\.wav: file not found"):
        train(config_for(tmp_path / "m.jsonl"), RunOptions(out=tmp_path / "run", device="cpu"))
