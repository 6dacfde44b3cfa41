"""Seeded order, checkpoints, averages, runs and their resumption, progress, several processes."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xcodec_lm import configs
from xcodec_lm.codec.runtime import checkpoint, launch, progress
from xcodec_lm.codec.runtime.checkpoint import (
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import DataOrder, derive_seed, generator
from xcodec_lm.codec.runtime.run import Interrupted, Run, RunOptions, read_metrics
from xcodec_lm.configs import CodecTrainConfig
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.configs.run import OptimConfig, RunConfig

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
    return save_checkpoint(folder, step, {"model": model.state_dict()}, {"adam": optimizer}, {"world": 1}, keep)


def test_checkpoint_brings_back_model_and_optimizer(tmp_path):
    model, optimizer = model_and_optimizer(0, steps=3)
    path = save_checkpoint(tmp_path, 7, {"model": model.state_dict()}, {"adam": optimizer}, {"world": 2}, keep=1)
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


@pytest.mark.parametrize("damage", ["missing", "cut", "shape", "state", "optimizer"])
def test_checkpoint_that_does_not_fit_is_refused(tmp_path, damage):
    path = save(tmp_path, 1)
    model, optimizer = model_and_optimizer()
    if damage == "missing":
        (path / "model.safetensors").unlink()
    elif damage == "cut":
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-9])
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


# ------------------------------------------------------------------ runs


def config_of(steps=6, **run):
    run = {"log_every": 1, "eval_every": 100, "save_every": 2} | run
    return CodecTrainConfig(optim=OptimConfig(steps=steps, lr=0.05), run=RunConfig(**run))


def train(config, folder, *, on_step=lambda step: None, average=False, **options):
    """A toy trainer with all that the real ones use; returns the losses of the steps it made."""
    losses = {}
    with Run(config, RunOptions(out=folder, command="xcodec-lm toy", device="cpu", **options), "toy") as run:
        model = nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr)
        ema = {"model": WeightAverage(model, 0.5)} if average else None
        run.track_state({"model": model}, {"adam": optimizer}, ema)
        done = run.resume()
        for step in run.steps(done):
            inputs = torch.randn(8, 4, generator=generator(config.run.seed, "data", step))
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if ema:
                ema["model"].update(model)
            losses[step] = loss.item()
            run.log(step, {"loss": loss.item()}, show=("loss",))
            on_step(step)
        final = {key: value.clone() for key, value in (ema["model"] if ema else model).state_dict().items()}
    return losses, final


def test_run_folder_says_what_was_run(tmp_path):
    config = config_of(steps=4, keep_checkpoints=1)
    losses, _ = train(config, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "command.txt", "env.json", "metrics.jsonl", "samples", "checkpoints"}
    assert configs.load(tmp_path / "run", CodecTrainConfig) == config
    assert (tmp_path / "run" / "command.txt").read_text() == "xcodec-lm toy\n"
    environment = json.loads((tmp_path / "run" / "env.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__ and environment["device"].startswith("cpu")
    assert read_metrics(tmp_path / "run") == [{"step": step + 1, "loss": losses[step]} for step in range(4)]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-4"]


@pytest.mark.parametrize("average", [False, True])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, average):
    config = config_of()
    losses, final = train(config, tmp_path / "whole", average=average)
    train(config, tmp_path / "parts", average=average, max_steps=2)

    def die(step):
        if step == 4:
            raise MemoryError  # a crash after the checkpoint of step 4

    with pytest.raises(MemoryError):
        train(config, tmp_path / "parts", average=average, on_step=die)
    rest, again = train(config, tmp_path / "parts", average=average)
    assert rest == {step: losses[step] for step in (4, 5)}
    assert all(torch.equal(again[key], final[key]) for key in final)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_finished_run_has_nothing_to_do(tmp_path):
    train(config_of(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    losses, _ = train(config_of(), tmp_path)
    assert losses == {} and (tmp_path / "metrics.jsonl").read_text() == before


def test_max_steps_keeps_the_schedule_and_more_steps_go_on(tmp_path):
    train(config_of(), tmp_path, max_steps=3)
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-3"
    losses, _ = train(config_of(steps=8), tmp_path)
    assert sorted(losses) == [3, 4, 5, 6, 7]


def test_rows_after_the_checkpoint_and_half_rows_are_dropped(tmp_path):
    train(config_of(), tmp_path, max_steps=4)
    kept = read_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]  # a killed run can still be read
    seen = []
    train(config_of(), tmp_path, max_steps=5, on_step=lambda _: seen.extend(read_metrics(tmp_path)))
    assert seen[:4] == kept and [row["step"] for row in seen] == [1, 2, 3, 4, 5]


def test_metrics_of_no_run_are_empty(tmp_path):
    assert read_metrics(tmp_path) == []


def test_folder_of_another_configuration_is_refused_with_the_keys(tmp_path):
    config = config_of()
    train(config, tmp_path, max_steps=2)
    before = (tmp_path / "config.yaml").read_text()
    other = replace(config, optim=replace(config.optim, lr=0.5), run=replace(config.run, seed=3))
    with pytest.raises(XcodecLMError) as caught:
        train(other, tmp_path)
    assert "optim.lr: 0.05 -> 0.5" in caught.value.message and "run.seed: 0 -> 3" in caught.value.message
    assert "choose another --out" in caught.value.hint
    assert (tmp_path / "config.yaml").read_text() == before
    quantizer = replace(config.model.quantizer, dim=64)
    with pytest.raises(XcodecLMError, match=r"configuration: model\.quantizer\.dim: 1024 -> 64\n"):
        train(replace(config, model=replace(config.model, quantizer=quantizer)), tmp_path)


def test_settings_that_change_no_result_may_change(tmp_path):
    train(config_of(), tmp_path, max_steps=2)
    losses, _ = train(config_of(save_every=1, log_every=2, keep_checkpoints=5), tmp_path)
    assert sorted(losses) == [2, 3, 4, 5]


def test_resume_never_refuses_a_run_that_is_there(tmp_path):
    train(config_of(), tmp_path / "run", max_steps=2, resume="never")
    with pytest.raises(XcodecLMError, match="already holds a run of 2 steps"):
        train(config_of(), tmp_path / "run", resume="never")


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(XcodecLMError, match=r"cannot write .*file/run") as caught:
        train(config_of(), tmp_path / "file" / "run")
    assert "--out" in caught.value.hint


def test_full_disk_is_said_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch):
    config = config_of()
    losses, _ = train(config, tmp_path / "whole")

    def fill_disk(step):
        if step == 3:
            monkeypatch.setattr(checkpoint.torch, "save", full)

    def full(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with pytest.raises(XcodecLMError, match="cannot write the checkpoint of step 4") as caught:
        train(config, tmp_path / "run", on_step=fill_disk)
    assert "free disk space" in caught.value.hint
    monkeypatch.undo()
    rest, _ = train(config, tmp_path / "run")
    assert rest == {step: losses[step] for step in (2, 3, 4, 5)}


def test_devices_that_are_not_there_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(XcodecLMError, match="no CUDA device"),
        Run(config_of(), RunOptions(tmp_path, device="cuda"), ""),
    ):
        pass
    with pytest.raises(UsageError, match="--device must be"), Run(config_of(), RunOptions(tmp_path, device="tpu"), ""):
        pass
    assert not (tmp_path / "config.yaml").exists()


def test_ctrl_c_saves_says_how_to_go_on_and_gives_the_same_result(tmp_path, capsys):
    config = config_of(save_every=100)
    losses, final = train(config, tmp_path / "whole")

    def press(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after step 3") as caught:
        train(config, tmp_path / "run", on_step=press)
    assert caught.value.exit_code == 130 and "same command again" in caught.value.hint
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-3"
    rest, again = train(config, tmp_path / "run")
    assert rest == {step: losses[step] for step in (3, 4, 5)}
    assert all(torch.equal(again[key], final[key]) for key in final)


def test_second_ctrl_c_stops_at_once(tmp_path):
    def press_twice(step):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        train(config_of(), tmp_path, on_step=press_twice)
    assert latest_checkpoint(tmp_path / "checkpoints") is None


def test_ctrl_c_belongs_to_the_caller_again_after_an_error_in_a_step(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def fail(step):
        raise ValueError("in a step")

    with pytest.raises(ValueError, match="in a step") as caught:  # keeps the traceback, and with it the frames
        train(config_of(), tmp_path, on_step=fail)
    assert caught.tb is not None and signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_no_number_stops_the_run(tmp_path, loss):
    with Run(config_of(), RunOptions(tmp_path, device="cpu"), "toy") as run:
        run.check_finite(3, 1.0)
        with pytest.raises(XcodecLMError, match=r"the loss of step 4 is (nan|inf)"):
            run.check_finite(3, loss)


def test_what_is_due_is_due_at_the_end_too(tmp_path):
    with Run(config_of(steps=7), RunOptions(tmp_path, device="cpu"), "toy") as run:
        assert [step for step in range(7) if run.due(step, 3)] == [2, 5, 6]


def test_initial_weights_depend_on_the_seed_alone(tmp_path):
    def weights(folder, seed):
        torch.manual_seed(int(time.time_ns() % 2**31))
        with Run(config_of(seed=seed), RunOptions(tmp_path / folder, device="cpu"), "toy"):
            return nn.Linear(3, 3).weight

    assert torch.equal(weights("a", 0), weights("b", 0))
    assert not torch.equal(weights("a", 0), weights("c", 1))


def test_tensorboard_gets_the_metrics_by_flag(tmp_path):
    train(config_of(steps=2, track="tensorboard"), tmp_path / "a")
    train(config_of(steps=2), tmp_path / "b")
    events = [list((tmp_path / name).rglob("events.out.tfevents*")) for name in "ab"]
    assert len(events[0]) == 1 and b"loss" in events[0][0].read_bytes() and events[1] == []


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


def test_copied_run_folder_goes_on_elsewhere(tmp_path):
    config = config_of()
    losses, _ = train(config, tmp_path / "whole")
    train(config, tmp_path / "a", max_steps=3)
    shutil.move(tmp_path / "a", tmp_path / "b")
    rest, _ = train(config, tmp_path / "b")
    assert rest == {step: losses[step] for step in (3, 4, 5)}
