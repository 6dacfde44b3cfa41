"""What a table of this command is, and running it: settings checked, stages run, report written."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import PartialError, UsageError, XcodecLMError
from xcodec_lm.tasks.reproduce import paper
from xcodec_lm.tasks.reproduce.page import write_report
from xcodec_lm.tasks.reproduce.settings import ROOTS, Settings
from xcodec_lm.tasks.reproduce.stages import Done, Facts, Place, Stage, Stopwatch, bind, claim, run

MODULES = {1: "speech", 2: "abx", 3: "music", 4: "sound", 5: "probing", 6: "reconstruction", 7: "music"}
"""The module of each table, with `TABLE` or, where it serves several, `TABLES`."""


@dataclass(frozen=True)
class Reproduction:
    """A table as this command makes it.

    Attributes:
        number: in the paper.
        needs: roots without which the real protocol cannot be run.
        uses: further choices that its result depends on outside the demo, beside the codecs and the seed.
        stages: place and settings -> its stages, but for `report`.
    """

    number: int
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    stages: Callable[[Place, Settings], list[Stage]]


@dataclass(frozen=True)
class Outcome:
    """A table that was run.

    Attributes:
        number: in the paper.
        text: the report, or what was done where the report's stage was not reached.
        data: plain values.
        wall_s: of this call.
        cpu_s: likewise.
    """

    number: int
    text: str
    data: dict[str, Any]
    wall_s: float
    cpu_s: float


def table(number: int) -> Reproduction:
    """The table of a number."""
    module = importlib.import_module(f"xcodec_lm.tasks.reproduce.{MODULES[number]}")
    return module.TABLES[number]


def reproduce(number: int, settings: Settings, out: Path, only: str | None = None) -> Outcome:
    """Makes a table, or one stage of it.

    Raises:
        XcodecLMError: data is missing, a stage is asked for before its predecessor, or OUT holds other settings.
    """
    this = table(number)
    if not settings.demo:
        check_roots(this, settings)
    facts = identity(this, settings)
    with Stopwatch() as watch:
        claim(out)
        place = Place(out, number, settings.device)
        bind(place, facts)
        stages = this.stages(place, settings)
        reporting = Stage("report", {}, lambda _, before: _report(place, settings, facts, stages, before), kept=False)
        done = run(place, [*stages, reporting], only)
    return _outcome(place, done, watch)


def _report(
    place: Place, settings: Settings, facts: Facts, stages: Sequence[Stage], before: Mapping[str, Facts]
) -> Facts:
    made = {record.name: record for record in _records(place, stages)}
    return write_report(
        place, paper.TABLES[place.table], before["score"], list(made.values()), facts,
        command_of(place.table, settings, place.out),
    )  # fmt: skip


def _records(place: Place, stages: Sequence[Stage]) -> list[Done]:
    from xcodec_lm.tasks.reproduce.stages import RECORD, read_json

    found = []
    for stage in stages:
        record = read_json(place.folder / stage.name / RECORD) or {}
        found.append(Done(stage.name, {}, record.get("wall_s", 0.0), record.get("cpu_s", 0.0), False))
    return found


def _outcome(place: Place, done: Mapping[str, Done], watch: Stopwatch) -> Outcome:
    times = [
        {"stage": name, "wall_s": one.wall_s, "cpu_s": one.cpu_s, "reused": one.reused} for name, one in done.items()
    ]
    data: dict[str, Any] = {"table": place.table, "stages": times, "reused": place.reused, "wall_s": watch.wall_s,
                            "cpu_s": watch.cpu_s}  # fmt: skip
    if "report" not in done:
        return Outcome(place.table, f"table {place.table}: {', '.join(done)} done", data, watch.wall_s, watch.cpu_s)
    report = done["report"].facts
    data |= {"json": str(place.path(report["json"])), "page": str(place.path(report["page"]))}
    reused = [name for name, one in done.items() if one.reused]
    lines = [report["text"], "", f"{watch.wall_s:.0f} s, {watch.cpu_s:.0f} s of processor time"]
    if reused or place.reused:
        lines.append("reused: " + ", ".join([*(f"stage {name}" for name in reused), *place.reused]))
    lines.append(f"report: {data['page']}, {data['json']}")
    return Outcome(place.table, "\n".join(lines), data, watch.wall_s, watch.cpu_s)


def reproduce_all(settings: Settings, out: Path) -> tuple[list[Outcome], PartialError | None]:
    """Makes all seven tables, those whose data is given.

    Returns:
        The tables, and an error that names those that could not be made.

    Raises:
        XcodecLMError: none can be made.
    """
    made: list[Outcome] = []
    failed: dict[int, XcodecLMError] = {}
    for number in MODULES:
        try:
            made.append(reproduce(number, settings, out))
        except UsageError:
            raise
        except XcodecLMError as error:
            say(f"table {number}: {error.message}")
            failed[number] = error
    if not failed:
        return made, None
    told = "; ".join(f"table {number}: {error.message}" for number, error in failed.items())
    hints = " ".join(dict.fromkeys(error.hint for error in failed.values() if error.hint))
    if not made:
        raise XcodecLMError(f"no table could be made: {told}", hints)
    return made, PartialError(f"{len(failed)} of {len(MODULES)} tables could not be made: {told}", hints)


# ---------------------------------------------------------------------- settings


def identity(this: Reproduction, settings: Settings) -> Facts:
    """What a table's folder is known by: the choices that its result depends on."""
    common = ("demo", "codecs", "seed", "weights", "judges")
    if settings.demo:
        return settings.facts((*common, "corpus", "quick", "runs", "steps", "preset", "clap"))
    return settings.facts((*common, *this.needs, *this.uses))


def check_roots(this: Reproduction, settings: Settings) -> None:
    """Refuses a table whose data is not given or not there; names all that is missing and what works without.

    Raises:
        XcodecLMError: as said.
    """
    unused = [name for name in ROOTS if getattr(settings, name) is not None and name not in (*this.needs, *this.uses)]
    for name in unused:
        say(f"note: table {this.number} does not use {option(name)}")
    missing = []
    for name in this.needs:
        path = getattr(settings, name)
        if path is None:
            missing.append(f"{option(name)}: {ROOTS[name]}")
        elif not path.exists():
            missing.append(f"{option(name)} {path} is not there: {ROOTS[name]}")
    if missing:
        raise XcodecLMError(
            f"table {this.number} needs data that is not there: {'; '.join(missing)}",
            f"put it anywhere on this machine and name it; without it `reproduce table{this.number} --demo` measures "
            "the same on a small corpus",
        )


def option(name: str) -> str:
    """A choice as it stands on the command line."""
    return f"--{name.replace('_', '-')}"


def command_of(number: int | str, settings: Settings, out: Path) -> str:
    """The command that makes a table."""
    words = ["xcodec-lm", "reproduce", f"table{number}" if isinstance(number, int) else number]
    default = Settings()
    for name in vars(default):
        value = getattr(settings, name)
        if value == getattr(default, name):
            continue
        if name == "weights":
            words += [option(name), *(f"{key}={path}" for key, path in value.items())]
        elif value is True:
            words.append(option(name))
        else:
            words += [option(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--out", str(out)])
