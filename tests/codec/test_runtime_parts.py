"""The parts that runs are made of: seeded order, checkpoints, averages, progress, several processes."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xcodec_lm.codec.runtime import checkpoint, launch, progress
from xcodec_lm.codec.runtime.checkpoint import (
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.files import new_folder, write_files
from xcodec_lm.codec.runtime.order import DataOrder, derive_seed, generator
from xcodec_lm.configs.errors import UsageError, XcodecLMError

# ------------------------------------------------------------------ order


@given(st.integers(1, 40), st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_is_a_permutation(items, seed, epoch):
    order = DataOrder(items, seed)
    assert sorted(order[epoch * items + i] for i in range(items)) == list(range(items))


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(0, 99), st.lists(st.integers(0, 60), max_size=20))
def test_any_position_can_be_asked_at_any_time(items, seed, positions):
    whole = [DataOrder(items, seed)[i] for i in range(61)]
    order = DataOrder(items, seed)
    assert [order[position] for position in positions] == [whole[position] for position in positions]


def test_epochs_and_seeds_differ():
    def epoch(seed, number):
        order = DataOrder(50, seed)
        return [order[number * 50 + i] for i in range(50)]

    assert epoch(0, 0) != epoch(0, 1) and epoch(0, 0) != epoch(1, 0)


def test_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        DataOrder(0, 0)


def test_seeds_are_the_same_everywhere_and_for_ever():
    assert derive_seed(0) == 3456079177858693020
    assert derive_seed(7, "crop", 3, 12) == 7094412198121389136
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "b"]), st.integers(0, 5)), max_size=20, unique=True))
def test_seeds_of_different_purposes_differ(keys):
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)


# ------------------------------------------------------------------ checkpoints


def model_and_optimizer(seed=0, steps=1):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder, step, seed=0, keep=9):
    model, optimizer = model_and_optimizer(seed)
    return save_checkpoint(
        folder, step, {"model": model.state_dict()}, {"adam": optimizer.state_dict()}, {"world": 1}, keep
    )


def test_checkpoint_brings_back_model_and_optimizer(tmp_path):
    model, optimizer = model_and_optimizer(0, steps=3)
    path = save_checkpoint(
        tmp_path, 7, {"model": model.state_dict()}, {"adam": optimizer.state_dict()}, {"world": 2}, keep=1
    )
    other, other_optimizer = model_and_optimizer(1, steps=1)
    extra, others = load_checkpoint(path, {"model": other}, {"adam": other_optimizer})
    assert extra == {"step": 7, "world": 2} and others == {} and checkpoint_step(path) == 7
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    inputs = torch.randn(5, 4)
    for one, adam in ((model, optimizer), (other, other_optimizer)):
        one(inputs).square().sum().backward()
        adam.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_states_without_a_module_are_handed_back(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"model-average": {"w": torch.ones(2)}}, {}, {}, keep=1)
    _, others = load_checkpoint(path, {}, {})
    assert torch.equal(others["model-average"]["w"], torch.ones(2))


def test_newest_is_by_number_and_only_so_many_stay(tmp_path):
    for step in (2, 10, 9):
        save(tmp_path, step)
    assert latest_checkpoint(tmp_path).name == "step-10"
    save(tmp_path, 11, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11"]
    assert latest_checkpoint(tmp_path / "nowhere") is None
    with pytest.raises(XcodecLMError, match="its name is not step-N"):
        checkpoint_step(tmp_path)


@pytest.mark.parametrize("moment", ["save_file", "torch.save", "flush"])
def test_crash_in_the_middle_leaves_what_was_there(tmp_path, monkeypatch, moment):
    save(tmp_path, 1, seed=1)
    before = {path: path.read_bytes() for path in (tmp_path / "step-1").iterdir()}

    def crash(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if moment == "torch.save":
            patch.setattr(checkpoint.torch, "save", crash)
        else:
            patch.setattr(checkpoint, moment, crash)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 2)
    assert latest_checkpoint(tmp_path).name == "step-1" and not (tmp_path / "step-2").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "step-1").iterdir()} == before
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]  # no stale temporary folder


def test_same_step_may_be_saved_again(tmp_path):
    save(tmp_path, 1, seed=1)
    path = save(tmp_path, 1, seed=2)
    model, optimizer = model_and_optimizer(3)
    load_checkpoint(path, {"model": model}, {"adam": optimizer})
    assert torch.equal(model[0].weight, model_and_optimizer(2)[0][0].weight)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "shape", "state", "optimizer"])
def test_checkpoint_that_does_not_fit_is_refused(tmp_path, damage):
    path = save(tmp_path, 1)
    model, optimizer = model_and_optimizer()
    if damage == "missing":
        (path / "model.safetensors").unlink()
    elif damage == "cut":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-9])
    elif damage == "flipped":  # a byte within the tensors, which no format notices by itself
        content = bytearray((path / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (path / "model.safetensors").write_bytes(content)
    elif damage == "shape":
        model[0] = nn.Linear(5, 3)
    elif damage == "state":
        (path / "state.json").write_text("{")
    else:
        (path / "adam.optimizer.pt").write_bytes(b"no archive")
    with pytest.raises(XcodecLMError, match="step-1: the checkpoint does not fit this run") as caught:
        load_checkpoint(path, {"model": model}, {"adam": optimizer})
    assert "remove that folder" in caught.value.hint


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_checkpoints_run_no_code(tmp_path):
    path = save(tmp_path, 1)
    torch.save({"state": Bomb(tmp_path / "run"), "param_groups": []}, path / "adam.optimizer.pt")
    model, optimizer = model_and_optimizer()
    with pytest.raises(XcodecLMError, match="does not fit"):
        load_checkpoint(path, {"model": model}, {"adam": optimizer})
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ averages


def test_average_follows_its_closed_form():
    model = nn.Linear(2, 2)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    model.register_parameter("frozen", frozen)
    start = model.weight.detach().clone()
    average, decay, steps = WeightAverage(model, 0.9), 0.9, 12
    values = [torch.randn(2, 2, generator=generator(0, "w", step)) for step in range(steps)]
    for value in values:
        with torch.no_grad():
            model.weight.copy_(value)
        average.update(model)
    expected = decay**steps * start
    expected = expected + sum((1 - decay) * decay ** (steps - 1 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(average.state_dict()["weight"], expected)
    assert set(average.state_dict()) == {"weight", "bias"}

    again = WeightAverage(nn.Linear(2, 2), 0.9)
    again.load_state_dict({key: value.clone() for key, value in average.state_dict().items()})
    target = nn.Linear(2, 2)
    again.copy_to(target)
    torch.testing.assert_close(target.weight.detach(), expected)
    assert torch.equal(model.weight, values[-1])  # the followed module itself stays as it is


# ------------------------------------------------------------------ progress


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    monkeypatch.delenv("RANK", raising=False)


def test_plain_lines_where_there_is_no_terminal(plain, capsys):
    with progress.Progress("codec", total=3, done=1) as shown:
        shown.update(2, "loss 0.5")
        shown.update(3)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2
    assert lines[0].startswith("codec: 2/3, about ") and lines[0].endswith("left  loss 0.5")
    assert lines[1].startswith("codec: 3/3") and "\x1b" not in err


def test_no_line_before_its_time(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress.Progress("codec", total=100) as shown:
        for done in range(1, 101):
            now[0] += 1.0
            shown.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "codec: 30/100, about 1 min 10 s left",
        "codec: 60/100, about 40 s left",
        "codec: 90/100, about 10 s left",
    ]


def test_quiet_silences_notes_and_progress(plain, capsys):
    progress.set_quiet(True)
    progress.say("a note")
    with progress.Progress("codec", total=3) as shown:
        shown.update(2)
    assert capsys.readouterr() == ("", "")
    progress.set_quiet(False)
    progress.say("a note")
    assert capsys.readouterr() == ("", "a note\n")


def test_only_the_first_process_speaks(plain, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    progress.say("a note")
    with progress.Progress("codec", total=3) as shown:
        shown.update(2)
    assert capsys.readouterr() == ("", "")


def test_terminal_gets_a_live_line_that_goes_away(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress("codec", total=3) as shown:
        assert shown.live
        shown.update(2, "loss 0.5")
    shown.close()  # again does no harm
    out, err = capsys.readouterr()
    assert out == "" and "codec: 2/3" not in err


def test_track_gives_the_items(plain, capsys):
    assert list(progress.track("abc", "reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("reading: 3/3")


# ------------------------------------------------------------------ several processes


def test_command_starts_itself_again_under_torchrun(monkeypatch):
    calls = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(
        launch.subprocess, "run", lambda command, **_: calls.append(command) or SimpleNamespace(returncode=7)
    )
    assert launch.relaunch(["codec", "train", "xcodec/tiny"], 2) == 7
    (command,) = calls
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"] and "--nproc_per_node=2" in command
    assert command[-5:] == ["-m", "xcodec_lm.tasks.cli", "codec", "train", "xcodec/tiny"]


def test_one_process_and_children_go_on_themselves(monkeypatch):
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: pytest.fail("started a process"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.relaunch(["codec", "train"], 1) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.relaunch(["codec", "train"], 2) is None
    with pytest.raises(UsageError, match="--gpus must be at least 1, got 0"):
        launch.relaunch(["codec", "train"], 0)


# ------------------------------------------------------------------ files


def test_a_new_folder_takes_its_place_only_when_whole(tmp_path):
    out = tmp_path / "out"
    out.mkdir()  # empty: may be replaced
    for error, said in (
        (OSError("disk is full"), "cannot write .*out: disk is full"),
        (XcodecLMError("other"), "other"),
    ):
        with pytest.raises(XcodecLMError, match=said), new_folder(out) as folder:
            (folder / "half").write_text("x")
            raise error
        assert list(tmp_path.iterdir()) == [out] and not list(out.iterdir())
    with new_folder(out) as folder:
        (folder / "whole").write_text("x")
        assert not list(out.iterdir())
    assert list(tmp_path.iterdir()) == [out] and (out / "whole").read_text() == "x"


def test_files_are_all_written_or_none(tmp_path):
    def fails(path):
        path.write_text("half")
        raise OSError("disk is full")

    (tmp_path / "a").write_text("old")
    with pytest.raises(XcodecLMError, match="disk is full; what was there before is unchanged"):
        write_files(tmp_path, {"a": lambda path: path.write_text("new"), "b": fails})
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
    write_files(tmp_path / "deeper", {"a": lambda path: path.write_text("new")})
    assert (tmp_path / "deeper" / "a").read_text() == "new"
