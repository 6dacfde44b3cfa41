"""A run folder and the loop around training steps: accelerator, metrics, checkpoints, resume, Ctrl-C.

    config.yaml command.txt env.json metrics.jsonl samples/ checkpoints/step-N/ model/

A trainer opens a `Run`, gives it what must survive (`track_state`), and iterates over `run.steps()`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from safetensors import SafetensorError

from xcodec_lm import configs
from xcodec_lm.codec.runtime.checkpoint import (
    Stateful,
    all_checkpoints,
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.memory import keep_freed_memory
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.configs.run import OptimConfig, RunConfig


class Interrupted(XcodecLMError):
    """The user pressed Ctrl-C; what was done is saved."""

    exit_code = 130


@dataclass(frozen=True)
class RunOptions:
    """How a command wants its run made; none of it changes the result.

    Attributes:
        out: the run folder.
        command: the command line that asks for it, for `command.txt`.
        resume: `auto` continues the run in `out`, `never` refuses a folder that holds one.
        device: `auto`, `cpu`, `cuda`.
        max_steps: stop after this step, with the schedule of the whole run; a later call continues.
    """

    out: Path
    command: str = ""
    resume: Literal["auto", "never"] = "auto"
    device: str = "auto"
    max_steps: int | None = None


class Run:
    """An open run folder. Use as a context manager.

    Args:
        config: the train config; its `run` and `optim` groups are read here.
        options: folder, device, resume.
        label: what the progress line says.

    Raises:
        XcodecLMError: the folder holds another run, or cannot be written.
    """

    def __init__(self, config: Any, options: RunOptions, label: str):
        self.config, self.options, self.label = config, options, label
        self.settings: RunConfig = config.run
        self.optim: OptimConfig = config.optim
        self.folder = options.out
        resumable = latest_checkpoint(self.folder / "checkpoints")
        if resumable is not None and options.resume == "never":
            raise XcodecLMError(
                f"{self.folder} already holds a run of {checkpoint_step(resumable)} steps",
                "choose another --out, or leave out --resume never to continue it",
            )
        if options.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device must be auto, cpu or cuda, got {options.device!r}")
        if options.device == "cuda" and not torch.cuda.is_available():
            raise XcodecLMError("--device cuda was asked for, but torch sees no CUDA device", "leave out --device")
        on_cpu = options.device == "cpu" or not torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="bf16" if self.settings.precision == "bf16" else "no",
            log_with="tensorboard" if self.settings.track == "tensorboard" else None,
            project_dir=str(self.folder),
            # Buffers (codebooks) are kept equal by their own updates; a broadcast in every forward would undo nothing.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != asked:
            raise XcodecLMError(
                f"{asked} processes were started, but accelerate joined {self.accelerator.num_processes}"
            )
        self.device = self.accelerator.device
        self._threads_before = torch.get_num_threads()
        if self.device.type == "cpu":
            keep_freed_memory()
            torch.set_num_threads(self.settings.threads or self._threads_before)
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self._modules: Mapping[str, Stateful] = {}
        self._optimizers: Mapping[str, Stateful] = {}
        self._averages: dict[str, WeightAverage] = {}
        self._extra: Callable[[], dict[str, Any]] | None = None
        self.restored: dict[str, Any] = {}
        self._interrupted = False
        self._last_metrics: dict[str, float] = {}
        if self.is_main:
            self._write_header(resumable is not None)
        self.accelerator.wait_for_everyone()
        if self.settings.track == "tensorboard":
            try:
                self.accelerator.init_trackers("tensorboard")
            except ImportError as error:
                raise XcodecLMError(
                    f"run.track: tensorboard is not installed ({error})", "pip install 'xcodec-lm[track]'"
                ) from None
        torch.manual_seed(derive_seed(self.settings.seed, "init"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the folder."""
        return self.accelerator.is_main_process

    @property
    def model_folder(self) -> Path:
        """Where the trained model goes."""
        return self.folder / "model"

    def _write_header(self, resuming: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "samples").mkdir(exist_ok=True)
            path = self.folder / "config.yaml"
            if resuming:
                self._check_same_config(path)
            configs.save(self.config, path)
            command = self.options.command or shlex.join(sys.argv)
            (self.folder / "command.txt").write_text(command + "\n", encoding="utf-8")
            (self.folder / "env.json").write_text(json.dumps(environment(self.device), indent=1), encoding="utf-8")
        except OSError as error:
            raise XcodecLMError(f"cannot write {self.folder}: {error.strerror}", "choose another --out") from None

    def _check_same_config(self, path: Path) -> None:
        old, new = (dotted(configs.to_dict(item)) for item in (configs.load(path, type(self.config)), self.config))
        free = {
            "optim.steps",
            "run.log_every",
            "run.eval_every",
            "run.save_every",
            "run.keep_checkpoints",
            "run.track",
            "data.workers",
        }
        changed = [
            f"{key}: {old[key]!r} -> {value!r}" for key, value in new.items() if key not in free and old[key] != value
        ]
        if changed:
            raise XcodecLMError(
                f"{self.folder} holds a run with another configuration: {'; '.join(changed)}",
                "choose another --out, or give the same settings to continue it",
            )

    def track_state(
        self,
        modules: Mapping[str, Stateful],
        optimizers: Mapping[str, Stateful],
        averages: dict[str, WeightAverage] | None = None,
        extra: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Names what a checkpoint holds: unwrapped modules, their optimizers, averages of weights, JSON values.

        What `extra` gave is in `restored` after `resume`.
        """
        self._modules, self._optimizers, self._averages = modules, optimizers, averages or {}
        self._extra = extra

    def resume(self) -> int:
        """Restores the newest checkpoint, if there is one.

        Returns:
            Steps done so far.

        Raises:
            XcodecLMError: no checkpoint can be read.
        """
        paths, step = all_checkpoints(self.folder / "checkpoints"), 0
        for index, path in enumerate(paths):
            try:
                self.restored, others = load_checkpoint(path, self._modules, self._optimizers)
            except XcodecLMError as error:
                if index + 1 == len(paths):
                    raise
                say(f"{self.label}: {error}; trying the one before it")
                continue
            for name, average in self._averages.items():
                average.load_state_dict(others[f"{name}-average"])
            step = checkpoint_step(path)
            say(f"{self.label}: continuing {self.folder} after step {step}")
            break
        if self.is_main:
            _drop_rows_after(self.folder / "metrics.jsonl", step)
        self.accelerator.wait_for_everyone()
        return step

    def save_checkpoint(self, step: int) -> None:
        """Writes a checkpoint from the main process; all processes call it."""
        self.accelerator.wait_for_everyone()
        # On every process: what is spread over them is gathered by all.
        tensors = {name: module.state_dict() for name, module in self._modules.items()}
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        if self.is_main:
            tensors |= {f"{name}-average": average.state_dict() for name, average in self._averages.items()}
            keep = self.settings.keep_checkpoints
            folder, extra = self.folder / "checkpoints", {"world": self.world, **(self._extra() if self._extra else {})}
            try:
                save_checkpoint(folder, step, tensors, optimizers, extra, keep)
            except (OSError, RuntimeError, SafetensorError) as error:  # each writer has its own for a full disk
                raise XcodecLMError(
                    f"cannot write the checkpoint of step {step} in {folder}: {error}",
                    "free disk space; the same command then continues after the checkpoint before it",
                ) from None
        self.accelerator.wait_for_everyone()

    def steps(self, done: int) -> Iterator[int]:
        """Steps to train, counted from 0; saves checkpoints between them and at the end.

        The trainer finishes a step before it asks for the next. Ctrl-C lets the step end, saves and stops.

        Args:
            done: steps done so far, from `resume`.

        Raises:
            Interrupted: after Ctrl-C.
        """
        last = self.optim.steps if self.options.max_steps is None else min(self.optim.steps, self.options.max_steps)
        previous = signal.getsignal(signal.SIGINT)

        def on_interrupt(*_: object) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            say("stopping after this step; press Ctrl-C again to stop at once, without saving")

        try:
            signal.signal(signal.SIGINT, on_interrupt)
        except ValueError:  # not the main thread
            previous = None
        try:
            with Progress(self.label, last, done) as progress:
                for step in range(done, last):
                    yield step
                    finished = step + 1
                    progress.update(finished, "  ".join(f"{k} {v:.4g}" for k, v in self._last_metrics.items()))
                    self._interrupted = self._any_process(self._interrupted)
                    if self._interrupted or finished == last or finished % self.settings.save_every == 0:
                        self.save_checkpoint(finished)
                    if self._interrupted:
                        raise Interrupted(
                            f"stopped after step {finished}; {self.folder} is saved",
                            "give the same command again to continue",
                        )
        finally:
            if previous is not None:
                signal.signal(signal.SIGINT, previous)

    def _any_process(self, flag: bool) -> bool:
        """Whether a flag is set on any process, so that all of them stop at the same step."""
        if self.world == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(int(flag), device=self.device), reduction="sum") > 0)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens after this step."""
        return (step + 1) % every == 0 or step + 1 == self.optim.steps

    def log(self, step: int, metrics: dict[str, float], show: tuple[str, ...] = ()) -> None:
        """Appends a row to metrics.jsonl and to the tracker.

        Args:
            step: step that the metrics belong to, counted from 0; written as steps done.
            metrics: name -> value.
            show: names that the progress line shows.
        """
        if show:
            self._last_metrics = {name: metrics[name] for name in show}
        if self.is_main:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step + 1, **metrics}) + "\n")
        if self.settings.track != "none":
            self.accelerator.log(metrics, step=step + 1)

    def mean_over_processes(self, metrics: dict[str, float]) -> dict[str, float]:
        """The same metrics, averaged over processes; all processes call it."""
        if self.world == 1:
            return metrics
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self.device)
        values = cast(torch.Tensor, self.accelerator.reduce(values, reduction="mean"))
        return dict(zip(metrics, values.tolist(), strict=True))

    def check_finite(self, step: int, loss: float) -> None:
        """Stops a run whose loss is not a number; the last checkpoint stays.

        Raises:
            XcodecLMError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise XcodecLMError(
                f"the loss of step {step + 1} is {loss}; training cannot go on",
                "lower optim.lr or optim.clip_norm and start from the last checkpoint",
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.accelerator.end_training()
        torch.set_num_threads(self._threads_before)
        # accelerate keeps the first run's device and precision for the whole process otherwise.
        AcceleratorState._reset_state(reset_partial_state=True)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, oldest first; empty if there is none. A row cut off by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [row for row, _ in _whole_rows(path)]


def environment(device: torch.device | str) -> dict[str, Any]:
    """Versions, machine and source revision, for provenance."""
    names = ("xcodec-lm", "torch", "transformers", "accelerate", "numpy", "soundfile", "soxr")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    root = Path(__file__).resolve().parents[2]
    revision = None
    if (root / ".git").exists():  # a checkout, not a package inside somebody else's repository
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
            revision = git.stdout.strip() or None
    name = (
        torch.cuda.get_device_name()
        if torch.device(device).type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git": revision,
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
    }


def _drop_rows_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [line for row, line in _whole_rows(path) if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _whole_rows(path: Path) -> list[tuple[dict[str, float], str]]:
    """The rows of a metrics.jsonl with their lines, without what a kill cut off."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append((json.loads(line), line))
        except ValueError:
            continue
    return rows


def dotted(group: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested groups as one dictionary with dotted keys, such as `optim.lr`."""
    flat: dict[str, Any] = {}
    for key, value in group.items():
        flat |= dotted(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat
