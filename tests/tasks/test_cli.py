"""The command line: finding commands, exit codes, options, and what the commands around a codec print and write."""
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
from xcodec_lm.configs.errors import PartialError, XcodecLMError
from xcodec_lm.tasks import cli as command_line

RATE = 16_000
NAMES = list(command_line.COMMANDS)

# ------------------------------------------------------------------ finding a command


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_overview_lists_every_command(cli, argv):
    code, out, err = cli(*argv)
    assert code == 0 and err == ""
    assert all(f"  {name} " in out for name in NAMES)


@pytest.mark.parametrize("noun", ["codec", "data", "music"])
@pytest.mark.parametrize("flag", [[], ["--help"]])
def test_noun_lists_its_verbs(cli, noun, flag):
    code, out, _ = cli(noun, *flag)
    listed = [name for name in NAMES if f"  {name} " in out]
    assert code == 0 and listed == [name for name in NAMES if name.startswith(noun + " ")]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(cli, name):
    code, out, err = cli(*name.split(), "--help")
    assert code == 0 and f"xcodec-lm {name}" in out and err == ""
    assert "--help" in out and len(out.splitlines()) > 5


def test_version(cli):
    code, out, _ = cli("--version")
    assert code == 0 and out.startswith("xcodec-lm ")


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["codec", "encod"], "codec encode"),
        (["coddec", "encode"], "codec encode"),
        (["codec-train"], "codec train"),
        (["preset"], "presets"),
        (["data", "tokenise"], "data tokenize"),
    ],
)
def test_unknown_command_gets_a_suggestion_and_exit_code_2(cli, argv, meant):
    code, out, err = cli(*argv)
    assert code == 2 and out == ""
    assert f"no command is called '{' '.join(argv)}'" in err and f"did you mean `xcodec-lm {meant}`" in err
    assert "hint: list them: xcodec-lm --help" in err


def test_command_like_no_other_gets_no_suggestion(cli):
    code, _, err = cli("zzzzz")
    assert code == 2 and "did you mean" not in err


# ------------------------------------------------------------------ exit codes


def raising(monkeypatch, error):
    def function():
        """A command that fails."""
        raise error

    monkeypatch.setitem(command_line.COMMANDS, "fail", command_line.Command(function, "fails"))


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (XcodecLMError("a.wav is broken", "mend it"), 1),
        (configs.ConfigError("bad key"), 1),
        (PartialError("2 of 3 done"), 3),
        (RuntimeError("oh"), 4),
        (KeyError("x"), 4),
        (MemoryError(), 4),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
    ],
)
def test_exit_codes(cli, monkeypatch, error, exit_code):
    raising(monkeypatch, error)
    code, out, err = cli("fail")
    assert code == exit_code and out == ""
    assert "Traceback" not in err
    if exit_code in (1, 3):
        assert err.startswith(f"error: {error.message}\n") and (not error.hint or f"hint: {error.hint}" in err)
    if exit_code == 4:
        assert f"internal error: {type(error).__name__}" in err and "-v" in err


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_shows_the_traceback(cli, monkeypatch, flag):
    raising(monkeypatch, RuntimeError("oh"))
    code, _, err = cli("fail", flag)
    assert code == 4 and "Traceback" in err and "RuntimeError: oh" in err


def test_only_the_first_process_prints(cli, monkeypatch):
    raising(monkeypatch, XcodecLMError("broken"))
    monkeypatch.setenv("RANK", "1")
    assert cli("fail") == (1, "", "")
    assert cli("presets", "ls") == (0, "", "")


@pytest.mark.parametrize(
    "argv",
    [
        ["codec", "encode"],
        ["codec", "encode", "a.wav"],
        ["codec", "info", "x", "--no-such-flag"],
        ["codec", "encode", "a.wav", "--codec", "c", "-o", "o", "--n-q", "many"],
        ["presets", "delete"],
        ["music", "continue", "a.wav"],
        ["data", "check"],
        ["codec", "train"],
        ["codec", "train", "--out", "x"],
        ["codec", "train", "xcodec/tiny", "--gpus", "0"],
        ["codec", "train", "xcodec/tiny", "--device", "tpu"],
        ["codec", "train", "xcodec/tiny", "--resume", "perhaps"],
        ["codec", "train", "xcodec/tiny", "--optim.lr", "0"],
    ],
)
def test_usage_errors_have_exit_code_2(cli, argv, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    code, out, err = cli(*argv)
    assert code == 2 and "Traceback" not in err
    assert err.strip() or out.strip()


# ------------------------------------------------------------------ presets


def test_presets_are_listed(cli):
    code, out, err = cli("presets", "ls")
    assert (code, err) == (0, "") and out.split() == configs.presets()
    assert cli("presets") == (0, out, "")
    code, out, _ = cli("presets", "ls", "--json")
    assert code == 0 and json.loads(out) == configs.presets()


def test_preset_is_shown_as_text_and_as_values(cli):
    code, out, _ = cli("presets", "show", "baseline/tiny")
    assert code == 0 and out.strip() == configs.preset_text("baseline/tiny").strip()
    code, out, _ = cli("presets", "show", "baseline/tiny", "--json")
    assert configs.from_dict(json.loads(out), CodecTrainConfig, "") == configs.load("baseline/tiny", CodecTrainConfig)


def test_preset_is_copied_to_a_file_that_trains_the_same(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("presets", "cp", "xcodec/tiny")
    assert code == 0 and out.strip() == "tiny.yaml"
    assert configs.load(tmp_path / "tiny.yaml", CodecTrainConfig) == configs.load("xcodec/tiny", CodecTrainConfig)
    code, _, err = cli("presets", "cp", "xcodec/tiny")
    assert code == 1 and "tiny.yaml exists already" in err
    assert cli("presets", "cp", "xcodec/tiny", "-o", tmp_path / "other.yaml")[0] == 0
    assert (tmp_path / "other.yaml").is_file()


@pytest.mark.parametrize("action", ["show", "cp"])
def test_unknown_preset_gets_a_suggestion(cli, action):
    code, _, err = cli("presets", action, "xcodec/tinny")
    assert code == 1 and "did you mean 'xcodec/tiny'" in err
    assert cli("presets", action)[0] in (1, 2)


@pytest.mark.parametrize("place", ["file/a.yaml", "nowhere/a.yaml"])
def test_preset_cannot_be_copied_where_nothing_can_be_written(cli, tmp_path, place):
    (tmp_path / "file").write_text("")
    code, _, err = cli("presets", "cp", "xcodec/tiny", "-o", tmp_path / place)
    assert code == 1 and f"cannot write {tmp_path / place}" in err


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
    assert code == 0 and json.loads(out) == {"store": str(store), "done": 0, "skipped": 3, "failed": 0}


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
    import xcodec_lm.lm.train

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    calls = []
    for module in (xcodec_lm.codec.train, xcodec_lm.lm.train):
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
    assert isinstance(config, LMTrainConfig) and config.run.seed == 8 and config.data.tokens == "store"
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
