"""The ARCH data sets: which reader, how long a clip, how it is split, and the lockfile that keeps the splits.

Splits that the data set does not state are drawn by a hash of seed and id, from sorted ids: the same on every machine,
whatever files are missing.

Source: ARCH (La Quatra et al. 2024, arXiv 2405.00934), https://github.com/MorenoLaQuatra/ARCH, for lengths and kinds
of splits. Its random splits depend on the order in which a file system lists files; these cannot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval import arch_readers as readers
from xcodec_lm.tasks.eval.arch_readers import ArchRow, Reader

Rule = Literal["folds", "folds, next validates", "units, tenth validates", "official", "official, fifth validates",
               "random 80/10/10", "random 64/16/20"]  # fmt: skip
VERSION = 1


@dataclass(frozen=True)
class ArchSet:
    """A data set.

    Attributes:
        read: its rows from its root.
        folders: names under which its root is looked for.
        domain: `sound`, `music` or `speech`.
        length_s: what is taken of a clip, and to what the preset `arch` pads it.
        rule: how it is split.
        multi: whether a recording has several labels: mean average precision over labels, else accuracy.
        unit: what its rows' units are.
        note: what a reader of the result must know.
    """

    read: Reader
    folders: tuple[str, ...]
    domain: str
    length_s: float
    rule: Rule
    unit: str
    multi: bool = False
    note: str = ""


SETS: dict[str, ArchSet] = {
    "esc50": ArchSet(readers.esc50, ("ESC-50", "ESC-50-master", "esc50"), "sound", 5, "folds", "recording"),
    "us8k": ArchSet(readers.us8k, ("UrbanSound8K", "us8k"), "sound", 5, "folds", "recording"),
    "fsd50k": ArchSet(readers.fsd50k, ("FSD50K", "fsd50k"), "sound", 10, "official", "recording", multi=True),
    "vivae": ArchSet(readers.vivae, ("VIVAE", "vivae"), "sound", 5, "folds, next validates", "speaker"),
    "fma_small": ArchSet(readers.fma_small, ("FMA", "fma", "fma_small"), "music", 30, "random 80/10/10", "artist",
                         note="random split: artists are in several parts, as in the reference"),
    "mtt": ArchSet(readers.mtt, ("MagnaTagATune", "magnatagatune", "mtt"), "music", 30, "official", "piece",
                   multi=True, note="musicnn's split"),
    "irmas": ArchSet(readers.irmas, ("IRMAS", "irmas"), "music", 5, "official, fifth validates", "piece", multi=True),
    "medley_solos": ArchSet(readers.medley_solos, ("Medley-solos-DB", "medley-solos-db", "medley_solos"), "music", 3,
                            "official", "piece"),
    "ravdess": ArchSet(readers.ravdess, ("RAVDESS", "ravdess"), "speech", 5, "random 64/16/20", "speaker",
                       note="random split: actors are in several parts, as in the reference"),
    "audiomnist": ArchSet(readers.audiomnist, ("AudioMNIST", "AudioMNIST-master", "audiomnist"), "speech", 5,
                          "folds, next validates", "speaker"),
    "slurp": ArchSet(readers.slurp, ("SLURP", "slurp", "slurp-master"), "speech", 10, "official", "recording"),
    "emovo": ArchSet(readers.emovo, ("EMOVO", "emovo"), "speech", 5, "units, tenth validates", "speaker"),
}  # fmt: skip
"""In the order of the paper's table 5: sound, music, speech."""


@dataclass(frozen=True)
class Fold:
    """Indices of rows."""

    train: list[int]
    valid: list[int]
    test: list[int]


@dataclass(frozen=True)
class ArchData:
    """A data set as it lies on the disk.

    Attributes:
        name: key of `SETS`.
        rows: all that its lists name.
        folds: of indices of rows, those of missing files included.
        missing: ids whose audio is not there.
    """

    name: str
    rows: list[ArchRow]
    folds: list[Fold]
    missing: list[str]

    @property
    def info(self) -> ArchSet:
        """Its entry in `SETS`."""
        return SETS[self.name]


def find_root(folder: Path, name: str) -> Path | None:
    """Where a data set lies below a folder, under one of the names that it goes by; None where it does not."""
    return next((folder / place for place in SETS[name].folders if (folder / place).is_dir()), None)


def read_set(name: str, root: Path, seed: int = 42) -> ArchData:
    """Rows and folds of a data set; audio that is missing is counted, and splits do not depend on it.

    Args:
        name: key of `SETS`.
        root: its folder.
        seed: of the splits that are drawn.

    Raises:
        XcodecLMError: a list is missing or damaged, all audio is missing, or a part would be empty.
    """
    rows = SETS[name].read(root)
    folds = make_folds(rows, SETS[name].rule, seed)
    for number, fold in enumerate(folds):
        for part in ("train", "valid", "test"):
            if not getattr(fold, part):
                raise XcodecLMError(
                    f"{name} in {root}: fold {number + 1} has nothing to {part}", "its rows are too few"
                )
    missing = [row.id for row in rows if not row.path.is_file()]
    if len(missing) == len(rows):
        raise XcodecLMError(f"{name}: no audio is there, such as {rows[0].path}", "see docs/probing.md")
    return ArchData(name, rows, folds, missing)


def make_folds(rows: Sequence[ArchRow], rule: Rule, seed: int = 42) -> list[Fold]:
    """Folds of rows by a rule, see `SETS`."""
    every = list(range(len(rows)))
    if rule.startswith("random"):
        shuffled = _shuffled(every, rows, seed)
        shares = (0.8, 0.1) if rule == "random 80/10/10" else (0.64, 0.16)
        first = round(shares[0] * len(rows))
        second = first + round(shares[1] * len(rows))
        return [Fold(sorted(shuffled[:first]), sorted(shuffled[first:second]), sorted(shuffled[second:]))]
    if rule.startswith("official"):
        parts = {part: [i for i in every if rows[i].part == part] for part in ("train", "valid", "test")}
        if rule == "official, fifth validates":
            parts["train"], parts["valid"] = _held_out(parts["train"], rows, 0.2, seed)
        return [Fold(**parts)]
    names = sorted({row.fold for row in rows}, key=lambda name: (len(name), name))  # 10 after 9
    folds = []
    for place, name in enumerate(names):
        test = [i for i in every if rows[i].fold == name]
        rest = [i for i in every if rows[i].fold != name]
        if rule == "folds, next validates":
            following = names[(place + 1) % len(names)]
            valid = [i for i in rest if rows[i].fold == following]
            train = [i for i in rest if rows[i].fold != following]
        else:
            train, valid = _held_out(rest, rows, 0.2 if rule == "folds" else 0.1, seed)
        folds.append(Fold(train, valid, test))
    return folds


def _held_out(members: list[int], rows: Sequence[ArchRow], share: float, seed: int) -> tuple[list[int], list[int]]:
    shuffled = _shuffled(members, rows, seed)
    count = round(share * len(members))
    return sorted(shuffled[count:]), sorted(shuffled[:count])


def _shuffled(members: list[int], rows: Sequence[ArchRow], seed: int) -> list[int]:
    return sorted(members, key=lambda i: hashlib.sha256(f"{seed} {rows[i].id}".encode()).digest())


def lock(data: Sequence[ArchData], path: Path) -> None:
    """Writes the splits to a file, or checks that they are those of the file.

    Each fold is a text with one letter a row, in the order of the ids: t trains, v validates, x tests. Data sets that
    the file does not have yet are added.

    Raises:
        XcodecLMError: a data set's rows or splits are not those of the file, or it cannot be read or written.
    """
    known: dict[str, Any] = {}
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            known = stored["sets"] if stored.get("version") == VERSION else {}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise XcodecLMError(f"{path} is no lockfile of splits: {error}", "remove it to draw them anew") from None
    for found in data:
        entry = {
            "rule": found.info.rule, "ids": [row.id for row in found.rows],
            "labels_sha256": hashlib.sha256(json.dumps([row.labels for row in found.rows]).encode()).hexdigest(),
            "folds": [_letters(fold, len(found.rows)) for fold in found.folds],
        }  # fmt: skip
        if found.name in known and known[found.name] != entry:
            what = next(key for key in entry if known[found.name].get(key) != entry[key])
            raise XcodecLMError(
                f"{found.name}: {what} differ from those in {path}",
                "results of both would not be comparable; use another output folder for another copy of the data",
            )
        known[found.name] = entry
    text = json.dumps({"version": VERSION, "sets": known}) + "\n"
    write_files(path.parent, {path.name: lambda place: place.write_text(text, encoding="utf-8")})


def _letters(fold: Fold, count: int) -> str:
    letters = ["-"] * count
    for letter, members in (("t", fold.train), ("v", fold.valid), ("x", fold.test)):
        for index in members:
            letters[index] = letter
    return "".join(letters)
