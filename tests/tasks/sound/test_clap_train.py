"""The training of a CLAP: what it learns, splits, targets, resume, the command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from xcodec_lm import configs
from xcodec_lm.codec.clips import Clip, read_manifest, write_manifest
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.configs.clap import (
    ClapAudioTowerConfig,
    ClapDataConfig,
    ClapLossConfig,
    ClapModelConfig,
    ClapTextTowerConfig,
    ClapTrainConfig,
)
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.evaluators import AugmentConfig
from xcodec_lm.configs.run import OptimConfig, RunConfig
from xcodec_lm.tasks.sound import clap_batches
from xcodec_lm.tasks.sound.clap import load_clap
from xcodec_lm.tasks.sound.clap_batches import Batch, CaptionedClips, divide, label_of, mask_spectra, mix
from xcodec_lm.tasks.sound.clap_train import build_model, build_tokenizer, contrastive_loss, soft_targets, train

RATE = 8000
HZ = {"low hum": 200, "bell": 900, "whistle": 2500}
SAY = {"low hum": "a low hum", "bell": "a bell rings", "whistle": "someone whistles"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tones of three heights, each with a caption of its own; 18 train, 6 dev, 3 test, two clips a recording."""
    folder = tmp_path_factory.mktemp("tones")
    rng, rows = np.random.default_rng(0), []
    for index in range(27):
        label = list(HZ)[index % 3]
        time = np.arange(int(rng.integers(4000, 9000))) / RATE
        wav = 0.3 * np.sin(2 * np.pi * HZ[label] * rng.uniform(0.9, 1.1) * time) + 0.003 * rng.standard_normal(
            len(time)
        )
        sf.write(folder / f"{index}.wav", wav, RATE)
        split = "train" if index < 18 else "dev" if index < 24 else "test"
        rows.append({"id": f"c{index}", "audio": f"{index}.wav", "duration": len(wav) / RATE, "caption": SAY[label],
                     "label": label, "recording": f"r{index // 6}-{label}", "split": split})  # fmt: skip
    write_manifest(rows, folder / "tones.jsonl")
    return folder / "tones.jsonl"


def config_of(manifest, steps, split_seed=0, **loss):
    audio = ClapAudioTowerConfig(
        sample_rate=RATE, window_s=1, hop_samples=160, fft_samples=256, mel_bands=16, highest_hz=4000, image_size=32,
        width=16, depths=(1,), heads=(2,),
    )  # fmt: skip
    text = ClapTextTowerConfig(vocab_size=300, longest=32, width=16, layers=1, heads=2, inner=16)
    return ClapTrainConfig(
        model=ClapModelConfig(audio, text, dim=16, dropout=0.0),
        data=ClapDataConfig(manifests=(str(manifest),), batch_clips=9, split_seed=split_seed),
        augment=AugmentConfig(speed=0.02, noise_share=0.2, low_pass_share=0.0, pause_share=0.0, tilt_db=2.0),
        loss=ClapLossConfig(**loss),
        optim=OptimConfig(steps=steps, lr=5e-3, betas=(0.9, 0.98), schedule="cosine", warmup_steps=5, clip_norm=1.0),
        run=RunConfig(log_every=1, eval_every=1000, save_every=2),
    )


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    config = config_of(manifest, 50, temperature=0.2, mix_share=0.0, mask_share=0.0)
    return train(config, RunOptions(tmp_path_factory.mktemp("runs") / "tones", device="cpu"))


def test_it_learns_what_captions_sound_like(trained):
    rows = read_metrics(trained)
    last = rows[-1]
    assert last["chance"] == pytest.approx(math.log(9)) and last["eval/class_chance"] == pytest.approx(1 / 3)
    assert sum(row["loss"] for row in rows[-10:]) / 10 < 0.75 * last["chance"]
    assert last["eval/class_accuracy"] >= 0.8 and last["eval/recall@1"] >= 0.8
    assert last["eval/recall@5"] == last["eval/recall@5_chance"] == 1.0
    clap = load_clap(trained)
    time = np.arange(6000) / RATE
    heard = clap.embed_audio([(0.2 * np.sin(2 * np.pi * hz * time)).astype(np.float32) for hz in (190, 880, 2600)])
    asked = clap.embed_texts(["the sound of a low hum", "a bell rings nearby", "someone whistles"])
    matches = heard @ asked.T
    assert matches.diagonal().sum() / 3 > (matches.sum() - matches.diagonal().sum()) / 6 + 0.05


def test_it_says_what_it_descends_from(trained):
    clap = load_clap(trained)
    (origin,) = clap.ancestry["trained_on"]
    assert (origin["rows"], origin["recording"], clap.name) == (18, ["r0-bell", "r0-low hum", "r0-whistle", "r1-bell",
            "r1-low hum", "r1-whistle", "r2-bell", "r2-low hum", "r2-whistle"], "tones")  # fmt: skip
    assert "whistles" in clap.known_words and "rain" not in clap.known_words


def test_a_stopped_run_goes_on_with_the_same_losses(manifest, tmp_path):
    whole = train(config_of(manifest, 4), RunOptions(tmp_path / "whole", device="cpu"))
    train(config_of(manifest, 4), RunOptions(tmp_path / "parts", device="cpu", max_steps=2))
    parts = train(config_of(manifest, 4), RunOptions(tmp_path / "parts", device="cpu"))
    losses = [[row["loss"] for row in read_metrics(run)] for run in (whole, parts)]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert load_clap(whole).embed_texts(["a bell"]).equal(load_clap(parts).embed_texts(["a bell"]))


def test_another_split_divides_recordings_and_leaves_test_out(manifest):
    first, second = (divide(config_of(manifest, 1, split_seed=seed).data) for seed in (1, 2))
    for train_clips, dev_clips in (first, second):
        sides = [{clip.row["recording"] for clip in clips} for clips in (train_clips, dev_clips)]
        assert sides[1] and not sides[0] & sides[1]
        assert {clip.id for clip in train_clips + dev_clips} == {f"c{index}" for index in range(24)}
    assert {clip.id for clip in first[1]} != {clip.id for clip in second[1]}
    own = divide(config_of(manifest, 1).data)
    assert [len(clips) for clips in own] == [18, 6]


def test_manifests_without_captions_are_refused(tmp_path, manifest):
    rows = [{key: value for key, value in clip.row.items() if key != "caption"} for clip in read_manifest(manifest)]
    write_manifest(rows, tmp_path / "bare.jsonl")
    with pytest.raises(ConfigError, match="caption"):
        divide(ClapDataConfig(manifests=(str(tmp_path / "bare.jsonl"),)))
    with pytest.raises(ConfigError, match="manifests is empty"):
        divide(ClapDataConfig())


def test_batches_are_functions_of_step_and_seed(manifest):
    config = config_of(manifest, 1, mix_share=0.5)
    clips, _ = divide(config.data)
    one, two = CaptionedClips(config, clips), CaptionedClips(config, clips)
    two.batch(0)
    first, again, other = one.batch(3), two.batch(3), one.batch(4)
    assert torch.equal(first.wavs, again.wavs) and first.captions == again.captions
    assert not torch.equal(first.wavs, other.wavs)
    assert first.wavs.shape == (9, RATE) and float(first.wavs.abs().max()) <= 1.0001
    batches = [one.batch(step) for step in range(8)]
    mixed = [(name, label) for batch in batches for name, label in zip(batch.names, batch.labels, strict=True)
             if len(label) == 2]  # fmt: skip
    assert mixed
    for name, pair in mixed:
        assert all(label in name or SAY[label] in name for label in pair)
    plain = CaptionedClips(config_of(manifest, 1, mix_share=0, class_share=0, phrase_share=0), clips).batch(0)
    assert set(plain.captions) <= set(SAY.values()) and plain.captions == plain.names


def test_variants_are_made_once_and_drawn_from(manifest, monkeypatch):
    config = config_of(manifest, 1, mix_share=0, mask_share=0)
    clips, made = divide(config.data)[0][:1], []
    monkeypatch.setattr(clap_batches, "augment", lambda wav, *_: made.append(len(wav)) or wav)
    for variants, calls in ((2, 2), (0, 18)):
        made.clear()
        batches = CaptionedClips(replace(config, data=replace(config.data, variants=variants)), clips)
        batches.batch(0), batches.batch(1)  # 9 draws each
        assert len(made) == calls
    with pytest.raises(ConfigError, match=r"data\.variants"):
        ClapDataConfig(variants=-1)


@given(st.floats(-20, 20))
def test_mixed_sounds_differ_by_the_asked_level(decibels):
    rng = torch.Generator().manual_seed(0)
    first, second = 0.01 * torch.randn(2, 4000, generator=rng)
    both = mix(first, 5 * second, decibels)
    share = torch.linalg.lstsq(torch.stack([first, second], dim=1), both[:, None]).solution[:, 0]
    assert 20 * math.log10(share[1] * second.norm() / (share[0] * first.norm())) == pytest.approx(decibels, abs=0.01)
    assert torch.isfinite(mix(torch.zeros(9), second[:9], decibels)).all()


def test_masks_blank_a_part_of_some_spectra():
    spectra = torch.randn(40, 1, 50, 20, generator=torch.Generator().manual_seed(1))
    masked = mask_spectra(spectra, 0.5, generator(0, "mask"))
    changed = (masked != spectra).flatten(1).float().mean(dim=1)
    assert 8 <= int((changed > 0).sum()) <= 32 and changed.max() <= 1 - 0.8 * 0.8 + 1e-6
    assert torch.equal(mask_spectra(spectra, 0.0, generator(0, "mask")), spectra)


def batch_of(names, labels):
    return Batch(torch.zeros(len(names), 1), names, names, [frozenset(label) for label in labels])


def test_targets_know_paraphrases():
    batch = batch_of(["a dog barks", "rain", "a dog barking", "a dog barks", "wind"],
                     [{"dog"}, {"rain"}, {"dog"}, {"dog"}, set()])  # fmt: skip
    targets = soft_targets(batch, 0.5)
    torch.testing.assert_close(targets[0], torch.tensor([1, 0, 0.5, 1, 0]) / 2.5)
    torch.testing.assert_close(targets[1:2], torch.tensor([[0, 1.0, 0, 0, 0]]))
    assert torch.equal(soft_targets(batch_of(["a", "b"], [{"x"}, {"x"}]), 0.0), torch.eye(2))
    assert torch.equal(soft_targets(batch_of(["a", "b"], [set(), set()]), 1.0), torch.eye(2))


def test_the_loss_is_symmetric_infonce():
    rng = torch.Generator().manual_seed(0)
    audio, text = (F.normalize(torch.randn(6, 8, generator=rng), dim=1) for _ in range(2))
    scales = torch.tensor(2.0), torch.tensor(3.0)
    loss = contrastive_loss(audio, text, *scales, torch.eye(6))
    expected = 0.0
    for left, right, scale in ((audio, text, scales[0]), (text, audio, scales[1])):
        for index in range(6):
            scores = [math.exp(math.exp(scale) * float(left[index] @ right[other])) for other in range(6)]
            expected -= math.log(scores[index] / sum(scores)) / 12
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    blind = torch.ones(6, 8) / math.sqrt(8)
    assert float(contrastive_loss(blind, blind, *scales, torch.eye(6))) == pytest.approx(math.log(6), rel=1e-5)


@pytest.mark.parametrize(("label", "words"), [("toyland: bus start (2)", "bus start"), ("rain", "rain"), (None, ""),
                                              ("diesel/electric train", "diesel or electric train")])  # fmt: skip
def test_labels_become_words(label, words):
    assert label_of(Clip("a", None, 1.0, None, {"label": label})) == words


def test_the_preset_fits_its_bounds():
    config = configs.load("clap/tiny", ClapTrainConfig)
    texts = ["a dog barking", "rain"]
    model = build_model(config, config.model.text.vocab_size)
    numbers = sum(value.numel() for value in model.parameters())
    assert 2 * numbers < 1.8e6 and model.config.audio_config.num_mel_bins == 64
    small = replace(config, model=replace(config.model, text=replace(config.model.text, vocab_size=261)))
    assert len(build_tokenizer(small, texts)) == 261
    learnt = build_tokenizer(config, texts * 5)
    assert 261 < len(learnt) <= 512 and len(learnt("a dog barking").input_ids) < len("a dog barking")
    assert learnt.decode(learnt("雨 a dog", add_special_tokens=False).input_ids) == "雨 a dog"


@pytest.mark.parametrize("change", [{"window_s": 100}, {"mel_bands": 48}, {"heads": (2, 4)}, {"width": 33},
                                    {"highest_hz": 9000}, {"image_size": 192}])  # fmt: skip
def test_sizes_that_contradict_each_other_are_refused(change):
    config = configs.load("clap/tiny", ClapTrainConfig)
    with pytest.raises(ConfigError, match="audio"):
        replace(config.model.audio, **change)


def test_the_command_takes_data_and_says_what_it_will_do(cli, manifest, tmp_path):
    code, out, _ = cli("clap", "train", "clap/tiny", "--data", manifest, "--dry-run")
    assert code == 0 and "18 clips with 3 captions" in out and "MB in half precision" in out
    small = tmp_path / "small.yaml"
    configs.save(config_of(manifest, 2), small)
    code, out, err = cli("clap", "train", small, "--out", tmp_path / "run", "--json", "--seed", "3")
    assert code == 0 and json.loads(out) == {"run": str(tmp_path / "run")} and "recall@1" in err
    assert (tmp_path / "run" / "model" / "tokenizer.json").is_file()
    code, _, err = cli("clap", "train", "clap/tiny")
    assert code == 1 and "--data" in err
    code, _, err = cli("clap", "train", "clap/tiny", "--data", manifest, "--loss.mix-share", "2")
    assert code == 2 and "loss.mix_share" in err
