"""The commands on codecs and data, and the options of training: what they print, write and hand on."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
import os

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file, save_file

from xcodec_lm import configs
from xcodec_lm.codec import load_codec
from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.runtime import launch
from xcodec_lm.codec.tokens import AudioTokens
from xcodec_lm.configs import CodecTrainConfig, LMTrainConfig

RATE = 16_000

# ------------------------------------------------------------------ codec


def test_codec_info_says_what_it_is(cli, codec_folder):
    code, out, err = cli("codec", "info", codec_folder)
    assert (code, err) == (0, "")
    spec = load_codec(codec_folder).spec
    assert spec.fingerprint in out and "16000 Hz, 50 frames/s, 4 x 64 codes, 1.2 kbps" in out
    assert ("untrained teacher: no semantic claim" in out) == (codec_folder.name == "tiny-teacher")
    code, out, _ = cli("codec", "info", codec_folder, "--json", "--verify")
    data = json.loads(out)
    assert code == 0 and data["verified"] is True and data["fingerprint"] == spec.fingerprint
    assert data["parameters"] == sum(data["parts"].values()) > 0


def test_verify_finds_weights_that_are_not_the_stated_ones(cli, twin_folder, tmp_path):
    for file in twin_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["fc.bias"][0] += 1e-3
    save_file(weights, tmp_path / "model.safetensors")
    code, _, err = cli("codec", "info", tmp_path, "--verify")
    assert code == 1 and "states fingerprint" in err and "the weights have" in err


@pytest.mark.parametrize("n_q", [None, 1, 3])
def test_encode_and_decode_are_those_of_the_api(cli, codec_folder, write_wav, tmp_path, n_q):
    wav, tokens, back = write_wav(seconds=0.51), tmp_path / "a.tokens", tmp_path / "b.wav"
    flags = [] if n_q is None else ["--n-q", n_q]
    code, out, err = cli("codec", "encode", wav, "--codec", codec_folder, "-o", tokens, *flags)
    assert code == 0 and err == "" and f"{tokens}: 26 frames x {n_q or 4} codes for 0.51 s" in out
    codec = load_codec(codec_folder)
    expected = codec.encode(load_audio(wav, RATE).wav[None], n_q=n_q)
    stored = AudioTokens.load(tokens)
    assert torch.equal(stored.codes, expected.codes) and stored.spec == expected.spec
    code, out, _ = cli("codec", "decode", tokens, "--codec", codec_folder, "-o", back)
    assert code == 0 and "0.51 s" in out
    audio = load_audio(back, RATE)
    assert audio.wav.shape == (1, 8160) and audio.conversions == ()
    assert (audio.wav - codec.decode(expected)[0][0].clamp(-1, 1)).abs().max() <= 1.01 / 32_768


def test_decode_with_fewer_layers(cli, twin_folder, write_wav, tmp_path):
    tokens = tmp_path / "a.tokens"
    cli("codec", "encode", write_wav(seconds=0.2), "--codec", twin_folder, "-o", tokens)
    assert cli("codec", "decode", tokens, "--codec", twin_folder, "-o", tmp_path / "b.wav", "--n-q", 2)[0] == 0
    codec = load_codec(twin_folder)
    expected = codec.decode(AudioTokens.load(tokens).take(2))[0][0].clamp(-1, 1)
    assert (load_audio(tmp_path / "b.wav", RATE).wav - expected).abs().max() <= 1.01 / 32_768
    code, _, err = cli("codec", "decode", tokens, "--codec", twin_folder, "-o", tmp_path / "c.wav", "--n-q", 5)
    assert code == 1 and "n_q must lie in 1..4" in err and not (tmp_path / "c.wav").exists()


def test_conversions_are_said_on_stderr(cli, twin_folder, write_wav, tmp_path):
    wav = write_wav(rate=8000, channels=2, seconds=0.2)
    arguments = ["codec", "encode", wav, "--codec", twin_folder, "-o", tmp_path / "a.tokens"]
    code, out, err = cli(*arguments, "--json")
    said = "mixed 2 channels to mono, resampled 8000 to 16000 Hz"
    assert code == 0 and err == f"note: {wav}: {said}\n"
    assert json.loads(out)["conversions"] == said.split(", ")
    code, out, err = cli(*arguments, "-q")
    assert code == 0 and err == "" and "frames" in out  # results are no notes


def test_json_is_all_that_stdout_holds(cli, twin_folder, write_wav, tmp_path):
    tokens, back = tmp_path / "a.tokens", tmp_path / "b.flac"
    code, out, _ = cli("codec", "encode", write_wav(), "--codec", twin_folder, "-o", tokens, "--json")
    data = json.loads(out)
    assert code == 0 and data["frames"] == 50 and data["n_q"] == 4 and data["seconds"] == 1.0
    assert data["fingerprint"] == load_codec(twin_folder).spec.fingerprint
    code, out, _ = cli("codec", "decode", tokens, "--codec", twin_folder, "-o", back, "--json")
    assert code == 0 and json.loads(out)["audio"] == str(back) and sf.info(back).format == "FLAC"


def test_clipping_is_said(cli, twin_folder, tmp_path, monkeypatch):
    codec = load_codec(twin_folder)
    codec.encode(torch.zeros(1, 1, 640)).save(tmp_path / "a.tokens")
    loud = torch.full((1, 1, 640), 2.0)
    monkeypatch.setattr(type(codec), "decode", lambda self, tokens: (loud, torch.tensor([640])))
    code, _, err = cli("codec", "decode", tmp_path / "a.tokens", "--codec", twin_folder, "-o", tmp_path / "b.wav")
    assert code == 0 and "640 samples beyond full scale were clipped" in err


@pytest.fixture
def manifest(write_wav, tmp_path):
    rows = []
    for index, split in enumerate(["train", "dev", "test", "test"]):
        write_wav(f"{index}.wav", seconds=0.4, kind="noise" if index % 2 else "sine")
        rows.append({"id": str(index), "audio": f"{index}.wav", "duration": 0.4, "split": split})
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_eval_prints_distances_beside_anchors(cli, twin_folder, manifest):
    code, out, _ = cli("codec", "eval", twin_folder, manifest)
    assert code == 0 and out.startswith("2 clips, 0.8 s")
    for row in ("n_q 1", "n_q 4", "silence", "white noise", "shaped noise", "codes in use"):
        assert row in out
    code, out, _ = cli("codec", "eval", twin_folder, manifest, "--json", "--split", "all", "--clip-s", 0.2)
    data = json.loads(out)
    assert code == 0 and data["clips"] == 4 and data["seconds"] == pytest.approx(0.8)
    assert set(data["codec"]) == {"n_q 1", "n_q 2", "n_q 4"}
    assert set(data["anchors"]) == {"silence", "white noise", "shaped noise"}
    assert all(np.isfinite(list(values.values())).all() for values in data["codec"].values())


def test_eval_of_an_empty_split_is_refused(cli, twin_folder, manifest):
    lines = [line for line in manifest.read_text().splitlines() if '"test"' not in line]
    manifest.write_text("\n".join(lines) + "\n")
    code, _, err = cli("codec", "eval", twin_folder, manifest)
    assert code == 1 and "no row has split: test" in err and "--split" in err


def test_tokens_of_another_codec_are_refused(cli, twin_folder, other_folder, write_wav, tmp_path):
    tokens, back = tmp_path / "a.tokens", tmp_path / "b.wav"
    cli("codec", "encode", write_wav(), "--codec", other_folder, "-o", tokens)
    code, _, err = cli("codec", "decode", tokens, "--codec", twin_folder, "-o", back)
    assert code == 1 and "made by another codec" in err and "tiny-other" in err and "tiny-twin" in err
    assert not back.exists()


@pytest.mark.parametrize("what", ["nowhere", "empty", "unfinished"])
def test_codec_that_is_not_there_is_refused(cli, tmp_path, what):
    folder = tmp_path / what
    if what != "nowhere":
        folder.mkdir()
    if what == "unfinished":
        (folder / "config.yaml").write_text("")
    code, _, err = cli("codec", "info", folder)
    said = {"nowhere": "no such codec", "empty": "it has no config.json", "unfinished": "has not finished"}[what]
    assert code == 1 and said in err and str(folder) in err


def test_run_folder_is_taken_for_its_model(cli, twin_folder, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    for file in twin_folder.iterdir():
        (tmp_path / "run" / "model" / file.name).write_bytes(file.read_bytes())
    code, out, _ = cli("codec", "info", tmp_path / "run")
    assert code == 0 and load_codec(twin_folder).spec.fingerprint in out


# ------------------------------------------------------------------ data


def test_data_commands_chain(cli, write_wav, twin_folder, tmp_path):
    for index in range(3):
        write_wav(f"audio/{index}.wav", seconds=0.3 + 0.1 * index, rate=8000 if index == 2 else RATE)
    (tmp_path / "audio" / "words.wav").write_text("no audio")
    listed, store = tmp_path / "corpus.jsonl", tmp_path / "store"
    code, out, err = cli("data", "scan", tmp_path / "audio", "-o", listed)
    assert code == 3 and "3 recordings" in out and "words.wav" in err and "could not be read" in err
    code, out, _ = cli("data", "check", listed)
    assert code == 0 and "0 errors" in out
    arguments = ["data", "tokenize", listed, "--codec", twin_folder, "--out", store]
    code, out, _ = cli(*arguments)
    assert code == 0 and "3 recordings encoded, 0 already there, 0 failed" in out
    code, out, _ = cli(*arguments, "--json")
    assert code == 0 and {"store": str(store), "done": 0, "skipped": 3, "failed": 0}.items() <= json.loads(out).items()


def test_tokenize_says_a_conversion_once(cli, write_wav, twin_folder, tmp_path):
    write_wav("a.wav", seconds=0.2, rate=8000)
    listed = tmp_path / "corpus.jsonl"
    listed.write_text(json.dumps({"id": "a", "audio": "a.wav", "duration": 0.2}) + "\n")
    _, _, err = cli("data", "tokenize", listed, "--codec", twin_folder, "--out", tmp_path / "store")
    assert err.count("resampled 8000 to 16000 Hz") == 1


def test_recordings_that_fail_give_exit_code_3_and_a_list(cli, write_wav, twin_folder, tmp_path):
    write_wav("good.wav", seconds=0.2)
    (tmp_path / "bad.wav").write_text("no audio")
    listed = tmp_path / "corpus.jsonl"
    rows = [{"id": name, "audio": f"{name}.wav", "duration": 0.2} for name in ("bad", "good")]
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = cli("data", "tokenize", listed, "--codec", twin_folder, "--out", tmp_path / "store")
    assert code == 3 and "1 recordings encoded" in out and "failed.jsonl" in err
    (failed,) = (tmp_path / "store" / "failed.jsonl").read_text().splitlines()
    assert json.loads(failed)["id"] == "bad"
    code, out, _ = cli("data", "check", listed, "--json")
    assert code == 1 and json.loads(out)


# ------------------------------------------------------------------ training flags


@pytest.fixture
def trained(monkeypatch):
    """Replaces both trainers; holds what they were called with."""
    import xcodec_lm.codec.train
    import xcodec_lm.tasks.music.training

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    calls = []
    for module in (xcodec_lm.codec.train, xcodec_lm.tasks.music.training):
        monkeypatch.setattr(module, "train", lambda config, options: calls.append((config, options)) or options.out)
    return calls


def test_train_takes_a_preset_and_its_flags(cli, trained, tmp_path):
    code, out, err = cli(
        "codec", "train", "xcodec/tiny", "--out", tmp_path / "run", "--seed", 5, "--precision", "bf16",
        "--max-steps", 7, "--resume", "never", "--device", "cpu", "--optim.lr", "1e-3", "--loss.mel-weight", "2",
        "--model.quantizer.n-q-choices", "1", "2", "--data.manifests", "a.jsonl", "b.jsonl",
    )  # fmt: skip
    assert (code, err) == (0, "") and out == f"run: {tmp_path / 'run'}\n"
    ((config, options),) = trained
    preset = configs.load("xcodec/tiny", CodecTrainConfig)
    assert (config.run.seed, config.run.precision, config.optim.lr, config.loss.mel_weight) == (5, "bf16", 1e-3, 2)
    assert config.model.quantizer.n_q_choices == (1, 2) and config.data.manifests == ("a.jsonl", "b.jsonl")
    assert config.model.encoder_channels == preset.model.encoder_channels and config.optim.steps == preset.optim.steps
    assert (options.out, options.max_steps, options.resume, options.device) == (tmp_path / "run", 7, "never", "cpu")
    assert options.command.startswith("xcodec-lm codec train xcodec/tiny --out ")


def test_twin_is_trained_by_a_flag_as_by_its_preset(cli, trained):
    cli("codec", "train", "xcodec/tiny", "--semantic.teacher", "none")
    cli("codec", "train", "baseline/tiny")
    assert trained[0][0] == trained[1][0]


def test_train_takes_a_file_and_names_the_run_after_it(cli, trained, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: music/tiny\nrun: {seed: 8}\n")
    assert cli("music", "train", tmp_path / "mine.yaml", "--data.tokens", "store", "--json")[0] == 0
    ((config, options),) = trained
    assert isinstance(config, LMTrainConfig) and config.run.seed == 8 and config.data.tokens == ("store",)
    assert str(options.out) == os.path.join("runs", "mine") and options.device == "auto" and options.max_steps is None
    cli("music", "train", "music/tiny")
    assert str(trained[1][1].out) == os.path.join("runs", "music-tiny")


@pytest.mark.parametrize(
    ("noun", "argv", "said"),
    [
        ("codec", ["xcodec/tinny"], "did you mean 'xcodec/tiny'"),
        ("codec", ["nowhere.yaml"], "nowhere.yaml: file not found"),
        ("music", ["xcodec/tiny"], "unknown key"),
    ],
)
def test_configuration_that_does_not_fit_has_exit_code_1(cli, trained, noun, argv, said):
    code, _, err = cli(noun, "train", *argv)
    assert code == 1 and said in err and trained == []


def test_mistyped_flag_gets_the_nearest(cli, trained):
    code, out, err = cli("codec", "train", "xcodec/tiny", "--optim.lrr", "1")
    assert code == 2 and "--optim.lr" in out + err and trained == []


def test_train_without_a_preset_lists_them(cli):
    code, _, err = cli("music", "train")
    assert code == 2 and "music/tiny" in err and "xcodec/tiny" not in err


def test_several_processes_get_the_same_command(cli, trained, monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "relaunch", lambda argv, processes: asked.append((argv, processes)) or 6)
    for flag in (["--gpus", "2"], ["--gpus=2"]):
        code, out, _ = cli("codec", "train", "xcodec/tiny", *flag, "--seed", "1", "-q")
        assert code == 6 and out == ""
    assert trained == [] and asked[0] == asked[1]
    argv, processes = asked[0]
    assert processes == 2 and argv[:5] == ["codec", "train", "xcodec/tiny", "--seed", "1"]
    assert "-q" in argv  # the children are as quiet as they were asked to be


def test_dry_run_describes_and_writes_nothing(cli, trained, manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = cli("codec", "train", "xcodec/tiny", "--data.manifests", manifest, "--dry-run")
    assert code == 0 and "M" in out and len(out.splitlines()) > 2
    code, out, _ = cli("music", "train", "music/tiny", "--dry-run")
    assert code == 0 and "parameters" in out
    code, out, _ = cli("music", "train", "music/tiny", "--dry-run", "--json")
    assert code == 0 and "parameters" in json.loads(out)["description"]
    assert trained == [] and sorted(tmp_path.rglob("*")) == before
