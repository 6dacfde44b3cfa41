"""The command line: finding commands, exit codes, presets."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json

import pytest

from xcodec_lm import configs
from xcodec_lm.configs import CodecTrainConfig
from xcodec_lm.configs.errors import PartialError, XcodecLMError
from xcodec_lm.tasks import cli as command_line

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
