"""The command `codec convert`: what it prints and returns. What it does is tested in tests/codec."""

import json

import pytest
import torch

from xcodec_lm.codec import load_codec
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.tasks.commands.convert import codec_convert


@pytest.fixture
def original(teacher_folder, tmp_path):
    """A training file of the original code, and the sizes that it does not show."""
    codec_convert(str(teacher_folder), out=tmp_path / "weights.pth", to="original")
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    torch.save({"codec_model": state, "epoch": 3, "mfd": {"a.w": torch.ones(1)}}, tmp_path / "train.pth")
    (tmp_path / "sizes.yaml").write_text("semantic_model_config: {num_attention_heads: 4}\n")
    return tmp_path / "train.pth"


def test_report_and_result(original, teacher_folder, tmp_path):
    result = codec_convert(str(original), out=tmp_path / "ours", config=tmp_path / "sizes.yaml")
    codec = load_codec(tmp_path / "ours")
    assert codec.spec.fingerprint == load_codec(teacher_folder).spec.fingerprint
    lines = result.text.splitlines()
    assert lines[0] == "read: X-Codec, original, weight norm: weight_g/weight_v"
    assert "left aside: epoch: int 3" in lines and "left aside: mfd: dict of 1" in lines
    assert lines[-1] == f"fingerprint: {codec.spec.fingerprint}" and "M parameters" in lines[-2]
    data = json.loads(json.dumps(result.data))
    assert (
        data["left_aside"] == {"epoch": "int 3", "mfd": "dict of 1"} and data["fingerprint"] == codec.spec.fingerprint
    )
    assert data["tensors"] > data["parameters"] ** 0.3 and data["out"] == str(tmp_path / "ours")


def test_note_for_sizes_that_the_original_code_has_not(teacher_folder, tmp_path):
    result = codec_convert(str(teacher_folder), out=tmp_path / "x.pth", to="original")
    assert "note: the original code has other sizes built in" in result.text and "encoder_channels 1" in result.text
    assert "--config: semantic_model_config.num_attention_heads 4" in result.text


def test_groups_of_names_are_counted(tmp_path, monkeypatch):
    from xcodec_lm.codec.convert import files

    left = {f"discriminator.{i}.weight": "used in training only" for i in range(40)} | {"epoch": "int 1"}
    done = files.Conversion("X-Codec 2", "original", tmp_path / "out", left_aside=left)
    monkeypatch.setattr(files, "convert_checkpoint", lambda *_: done)
    lines = codec_convert("x.ckpt", out=tmp_path / "out").text.splitlines()
    assert lines[1:3] == ["left aside: discriminator.* (40): used in training only", "left aside: epoch: int 1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "is empty"),
        ("notes.txt", b"my notes", "not a file of torch.save"),
        ("cut.pth", None, "damaged, cut off"),
    ],
)
def test_files_that_are_no_checkpoints(original, name, content, message, tmp_path):
    whole = original.read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(XcodecLMError, match=message):
        codec_convert(str(tmp_path / name), out=tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_folders_and_names_that_hold_no_codec(tmp_path):
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / "folder", tmp_path / "nothing.pth"):
        with pytest.raises(XcodecLMError, match=source.name):
            codec_convert(str(source), out=tmp_path / "ours")


@pytest.mark.parametrize("content", ["- 1\n", "{", "\tx: 1"])
def test_sizes_that_are_no_mapping(original, content, tmp_path):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"bad.yaml"):
        codec_convert(str(original), out=tmp_path / "ours", config=tmp_path / "bad.yaml")


def test_a_run_that_attacks_is_refused_by_the_command(tmp_path):
    class Attack:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"weight": torch.ones(1), "x": Attack()}, tmp_path / "evil.pth")
    with pytest.raises(XcodecLMError, match=r"asks for __builtin__.eval"):
        codec_convert(str(tmp_path / "evil.pth"), out=tmp_path / "ours")
    assert not (tmp_path / "ran").exists()
