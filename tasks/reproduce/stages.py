"""The stages of a table: each makes something in a folder of its own, is known by a key, and is not made twice.

    OUT/reproduce.json          tells a folder of this command from others
    OUT/tableN/settings.json    what the table is made of; other settings need another folder
    OUT/tableN/STAGE/stage.json key, result, time     OUT/tableN/STAGE/files.sha256   lists that it wrote
    OUT/shared/KIND-KEY/        corpora, tokens, judges and models that several tables use, see `tasks.compare.stages`

A key is a hash of the stage's settings, of its inputs and of what the stages before it gave, so a result is reused
exactly where it would come out the same. Training and tokenizing go on where they were stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.compare.stages import Stage as Work
from xcodec_lm.tasks.compare.stages import Stages as Works

STAGES = ("prepare", "tokenize", "train", "generate", "score", "report")
VERSION = 1
"""Raised whenever the same settings begin to give other results."""
MARK, RECORD, LOCK = "reproduce.json", "stage.json", "files.sha256"

Facts = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage of a table.

    Attributes:
        name: one of `STAGES`.
        settings: everything that decides its result, but for what earlier stages gave; plain values.
        make: makes it: its folder, and the results of the stages before by name -> its own result, plain values.
        files: names of the lists that it writes into its folder, which are locked.
        kept: reuse it; otherwise it is made in every call.
    """

    name: str
    settings: Mapping[str, Any]
    make: Callable[[Path, Mapping[str, Facts]], Facts]
    files: tuple[str, ...] = ()
    kept: bool = True


@dataclass(frozen=True)
class Done:
    """A stage that is made.

    Attributes:
        name: of the stage.
        facts: its result.
        wall_s: how long it took when it was made.
        cpu_s: processor time of it.
        reused: whether it was made by an earlier call.
    """

    name: str
    facts: Facts
    wall_s: float
    cpu_s: float
    reused: bool


@dataclass
class Place:
    """Where a table's results go.

    Attributes:
        out: folder of the reproduction.
        table: number of the table.
        device: where to compute.
        reused: folders of shared works that an earlier table or call had made.
    """

    out: Path
    table: int
    device: str = "cpu"
    reused: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of the table."""
        return self.out / f"table{self.table}"

    def path(self, text: str) -> Path:
        """A path that a result names: relative to OUT, or absolute."""
        return self.out / text

    def name(self, path: Path) -> str:
        """How a result names a path: relative to OUT where it lies inside."""
        path, out = path.absolute(), self.out.absolute()
        return path.relative_to(out).as_posix() if path.is_relative_to(out) else str(path)

    def shared(self, kind: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """A folder that every table with the same inputs uses; made where it is not there yet.

        Args:
            kind: what it holds, in a word.
            inputs: everything that decides it; plain values.
            make: fills the folder; called again after an interruption, so it goes on where it stopped.
        """
        made = self.works.run(kind, {"what": kind, **inputs}, make)
        self.note(made)
        return made.folder

    @property
    def works(self) -> Works:
        """What tables share, see `tasks.compare.stages`."""
        return Works(self.out / "shared")

    def note(self, work: Work) -> Work:
        """Remembers that a shared work was there already."""
        name = self.name(work.folder)
        if work.reused and name not in self.reused:
            self.reused.append(name)
        return work


class Stopwatch:
    """Wall and processor time of a block, children included."""

    wall_s = cpu_s = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.monotonic(), _cpu()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.monotonic() - self._start[0], _cpu() - self._start[1]


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# ---------------------------------------------------------------------- folders


def claim(out: Path) -> None:
    """Takes a folder for reproductions.

    Raises:
        XcodecLMError: it holds something else, or cannot be written.
    """
    try:
        if not (out / MARK).is_file():
            if out.is_file() or (out.is_dir() and any(out.iterdir())):
                raise XcodecLMError(f"{out} holds something that reproduce did not make", "name another folder: --out")
            out.mkdir(parents=True, exist_ok=True)
        write_json(out / MARK, {"version": VERSION})
    except OSError as error:
        raise XcodecLMError(f"cannot write {out}: {error.strerror}", "name another folder: --out") from None


def bind(place: Place, settings: Facts) -> None:
    """Notes what a table's folder is made of.

    Raises:
        XcodecLMError: it is made of something else.
    """
    path = place.folder / "settings.json"
    wanted = {"table": place.table, **settings}
    found = read_json(path)
    if found is not None:
        others = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if others:
            told = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} asked for" for key in others)
            raise XcodecLMError(
                f"{place.folder} holds table {found.get('table')} of other settings ({told})",
                "name another folder with --out, or repeat the settings of this one",
            )
    place.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


# ---------------------------------------------------------------------- running


def run(place: Place, stages: Sequence[Stage], only: str | None = None) -> dict[str, Done]:
    """Makes the stages of a table in order, but for those that are made already.

    Args:
        place: of the table.
        stages: in order.
        only: make this stage alone; those before it must be made.

    Returns:
        The stages by name, up to `only`.

    Raises:
        XcodecLMError: no such stage, a stage before it is not made, or a list was changed by hand.
    """
    names = [stage.name for stage in stages]
    if only is not None and only not in names:
        raise XcodecLMError(f"table {place.table} has no stage {only!r}", f"its stages are {', '.join(names)}")
    found: dict[str, Done] = {}
    for stage in stages:
        key = _key(place, stage, found)
        done = _reusable(place, stage, key)
        if done is None and only is not None and stage.name != only:
            why = "is not made yet" if read_json(_record(place, stage)) is None else "was made from other inputs"
            raise XcodecLMError(
                f"table {place.table}: stage {only} needs {stage.name}, which {why}",
                f"run it first: --stage {stage.name}, or leave out --stage",
            )
        if done is None:
            done = _make(place, stage, key, found)
        else:
            say(f"table {place.table}: {stage.name} reused ({done.wall_s:.0f} s saved)")
        found[stage.name] = done
        if stage.name == only:
            break
    return found


def _make(place: Place, stage: Stage, key: str, before: Mapping[str, Done]) -> Done:
    folder = place.folder / stage.name
    (folder / RECORD).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"table {place.table}: {stage.name}")
    with Stopwatch() as watch:
        facts = stage.make(folder, {name: done.facts for name, done in before.items()})
    locked = {name: hash_file(folder / name) for name in stage.files}
    if locked:  # the format of sha256sum, which checks it with -c
        (folder / LOCK).write_text("".join(f"{value}  {name}\n" for name, value in locked.items()), encoding="utf-8")
    record = {
        "table": place.table, "stage": stage.name, "key": key, "settings": stage.settings, "files": locked,
        "facts": facts, "wall_s": watch.wall_s, "cpu_s": watch.cpu_s,
    }  # fmt: skip
    write_json(folder / RECORD, record)
    say(f"table {place.table}: {stage.name} done in {watch.wall_s:.0f} s ({watch.cpu_s:.0f} s of processor time)")
    return Done(stage.name, facts, watch.wall_s, watch.cpu_s, reused=False)


def _reusable(place: Place, stage: Stage, key: str) -> Done | None:
    record = read_json(_record(place, stage))
    if record is None or record.get("key") != key or not stage.kept:
        return None
    for name, value in record["files"].items():
        path = place.folder / stage.name / name
        if not path.is_file() or hash_file(path) != value:
            raise XcodecLMError(
                f"{path} is not as stage {stage.name} wrote it (see {LOCK} beside it)",
                f"put it back, or remove {path.parent} to make it anew",
            )
    return Done(stage.name, record["facts"], record["wall_s"], record["cpu_s"], reused=True)


def _record(place: Place, stage: Stage) -> Path:
    return place.folder / stage.name / RECORD


def _key(place: Place, stage: Stage, before: Mapping[str, Done]) -> str:
    given = {name: digest(done.facts) for name, done in before.items()}
    locked = {
        name: record.get("files") for name in before if (record := read_json(place.folder / name / RECORD)) is not None
    }
    return digest({"table": place.table, "stage": stage.name, "version": VERSION, "settings": stage.settings,
                   "given": given, "files": locked})  # fmt: skip


# ---------------------------------------------------------------------- files and hashes


def digest(value: Any) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_names(folder: Path) -> str:
    """sha256 of the names and sizes of all files below a folder: tells whether a data set was changed, in moments."""
    rows = []
    for base, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(base) / name
            rows.append((path.relative_to(folder).as_posix(), path.stat().st_size if path.exists() else -1))
    return digest(rows)


def write_json(path: Path, value: Any) -> None:
    """Writes plain values, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Facts | None:
    """What a file of ours holds; None where there is none, or only half of one.

    Raises:
        XcodecLMError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    except OSError as error:
        raise XcodecLMError(f"cannot read {path}: {error.strerror}", "name another folder: --out") from None
    return found if isinstance(found, dict) else None
