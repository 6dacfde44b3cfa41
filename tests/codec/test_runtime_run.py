"""Runs: their folders, resumption, interruption, errors."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from xcodec_lm import configs
from xcodec_lm.codec.runtime import checkpoint
from xcodec_lm.codec.runtime.checkpoint import latest_checkpoint
from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.run import Interrupted, Run, RunOptions, read_metrics
from xcodec_lm.configs import CodecTrainConfig
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.configs.run import OptimConfig, RunConfig


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


def test_copied_run_folder_goes_on_elsewhere(tmp_path):
    config = config_of()
    losses, _ = train(config, tmp_path / "whole")
    train(config, tmp_path / "a", max_steps=3)
    shutil.move(tmp_path / "a", tmp_path / "b")
    rest, _ = train(config, tmp_path / "b")
    assert rest == {step: losses[step] for step in (3, 4, 5)}


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
