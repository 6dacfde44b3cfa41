"""What a person sees while something runs: one live line on a terminal, a plain line every 30 s elsewhere.

Everything here goes to stderr; stdout is for results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PLAIN_EVERY_S = 30.0
_state = {"quiet": False}


def set_quiet(quiet: bool) -> None:
    """Silences `say` and progress, for `-q`."""
    _state["quiet"] = quiet


def is_main_process() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line for the user, on stderr, from the main process only."""
    if is_main_process() and not _state["quiet"]:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Progress of a job of known length.

    Args:
        label: what is being done.
        total: how many units it has.
        done: units done before, on resume.
    """

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.start_done = label, total, done
        self.start = time.monotonic()
        self.last_line = self.start
        self.live = sys.stderr.isatty() and is_main_process() and not _state["quiet"]
        self._bar = None
        if self.live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(label, total=total, completed=done, text="")
            self._bar.start()

    def update(self, done: int, text: str = "") -> None:
        """Shows that `done` units are finished, with a few words on how it goes."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
            return
        now = time.monotonic()
        if now - self.last_line >= PLAIN_EVERY_S:
            self.last_line = now
            speed = (done - self.start_done) / (now - self.start)
            left = f", about {_duration((self.total - done) / speed)} left" if speed > 0 else ""
            say(f"{self.label}: {done}/{self.total}{left}{'  ' + text if text else ''}")

    def close(self) -> None:
        """Ends the live line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """The items, with progress shown while they are used."""
    with Progress(label, total) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
