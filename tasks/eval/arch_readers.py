"""The 12 data sets of the ARCH benchmark as rows, read from local folders in the layout in which they are published.

Nothing is downloaded, and no audio is opened. Every reader lists what the data set's own lists name, whether the audio
is there or not; data sets without a list are listed by their files' names. Rows come sorted by id.

Source: ARCH (La Quatra et al. 2024, arXiv 2405.00934) for which rows and labels are taken; the data sets' own pages for
their layouts.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xcodec_lm.configs.errors import XcodecLMError


@dataclass(frozen=True)
class ArchRow:
    """A recording of a data set.

    Attributes:
        id: path below the data set's root, with `/`.
        path: the audio file.
        labels: one, or several where the task is to find all.
        part: `train`, `valid` or `test` where the data set says so; else "".
        fold: the data set's fold, or the speaker where folds are speakers; else "".
        unit: what intervals are over: the speaker, or the recording that the clip was cut from.
    """

    id: str
    path: Path
    labels: tuple[str, ...]
    part: str = ""
    fold: str = ""
    unit: str = ""


Reader = Callable[[Path], list[ArchRow]]
MTT_TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano", "ambient",
    "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing", "vocals", "no vocals",
    "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop", "soft", "sitar", "solo", "man",
    "classic", "choir", "voice", "new age", "dance", "male voice", "female vocal", "beats", "harp", "cello", "no voice",
    "weird", "country", "metal", "female voice", "choral",
)  # fmt: skip
"""The 50 most frequent tags of MagnaTagATune, the usual ones of its benchmark."""
IRMAS = ("cel", "cla", "flu", "gac", "gel", "org", "pia", "sax", "tru", "vio", "voi")
RAVDESS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
"""By the third number of a file's name."""
AUDIOMNIST_FOLDS = (
    (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50),
    (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51),
    (28, 56, 7, 19, 35, 1, 6, 16, 23, 34, 46, 53),
    (36, 57, 9, 24, 37, 2, 8, 17, 29, 39, 48, 54),
    (43, 58, 14, 25, 38, 3, 10, 20, 30, 40, 49, 55),
)
"""Speakers of each fold, from the data set's own preprocessing."""


def esc50(root: Path) -> list[ArchRow]:
    """`meta/esc50.csv`, `audio/`."""
    return _rows(
        root,
        (
            (f"audio/{row['filename']}", (row["category"],), "", row["fold"], row["src_file"])
            for row in _table(root / "meta" / "esc50.csv", ("filename", "fold", "category", "src_file"))
        ),
    )


def us8k(root: Path) -> list[ArchRow]:
    """`metadata/UrbanSound8K.csv`, `audio/fold1/` ... `audio/fold10/`."""
    return _rows(
        root,
        (
            (f"audio/fold{row['fold']}/{row['slice_file_name']}", (row["class"],), "", row["fold"], row["fsID"])
            for row in _table(
                root / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fsID", "fold", "class")
            )
        ),
    )  # fmt: skip


def fsd50k(root: Path) -> list[ArchRow]:
    """`FSD50K.ground_truth/dev.csv` and `eval.csv`, `FSD50K.dev_audio/`, `FSD50K.eval_audio/`."""

    def rows() -> Iterator[tuple]:
        for name in ("dev", "eval"):
            wanted = ("fname", "labels", "split") if name == "dev" else ("fname", "labels")
            for row in _table(root / "FSD50K.ground_truth" / f"{name}.csv", wanted):
                part = {"train": "train", "val": "valid"}.get(row.get("split") or "", "") if name == "dev" else "test"
                if not part:
                    raise XcodecLMError(f"{root}: dev.csv gives {row['fname']} the split {row.get('split')!r}")
                yield f"FSD50K.{name}_audio/{row['fname']}.wav", tuple(row["labels"].split(",")), part, "", row["fname"]

    return _rows(root, rows())


def vivae(root: Path) -> list[ArchRow]:
    """`full_set/S01_EMOTION_INTENSITY_NUMBER.wav`."""

    def rows() -> Iterator[tuple]:
        for name in _files(root, "full_set/*.wav"):
            words = Path(name).stem.split("_")
            if len(words) >= 3 and words[0][1:].isdigit():
                yield name, (words[1],), "", words[0], words[0]

    return _rows(root, rows())


def fma_small(root: Path) -> list[ArchRow]:
    """`fma_metadata/tracks.csv`, `fma_small/000/000002.mp3`; the metadata may lie beside the folder of the audio."""
    table = next((p for p in (root / "fma_metadata" / "tracks.csv", root / "tracks.csv") if p.is_file()), None)
    if table is None:
        raise _absent(root / "fma_metadata" / "tracks.csv")
    with table.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        heads = list(zip(next(lines), next(lines), strict=True))  # two header lines, then one that names the index
        next(lines)
        try:
            subset, genre, artist = (
                heads.index(p) for p in (("set", "subset"), ("track", "genre_top"), ("artist", "id"))
            )
        except ValueError:
            raise XcodecLMError(f"{table} has no columns set/subset, track/genre_top and artist/id") from None
        chosen = [(int(row[0]), row[genre], row[artist]) for row in lines if row and row[subset] == "small"]
    return _rows(
        root, ((f"fma_small/{n // 1000:03d}/{n:06d}.mp3", (label,), "", "", by) for n, label, by in chosen if label)
    )  # fmt: skip


def mtt(root: Path) -> list[ArchRow]:
    """`annotations_final.csv`, musicnn's `train_gt_mtt.tsv`, `val_gt_mtt.tsv`, `test_gt_mtt.tsv`, `0/` ... `f/`.

    Clips without any of the 50 tags are left out, as in musicnn's lists.
    """
    parts = {}
    for part, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        path = root / f"{name}_gt_mtt.tsv"
        for line in _text(path).split("\n"):
            if line.strip():
                parts[line.split("\t")[0].strip()] = part

    def rows() -> Iterator[tuple]:
        for row in _table(root / "annotations_final.csv", ("clip_id", "mp3_path", *MTT_TAGS), "\t"):
            tags = tuple(tag for tag in MTT_TAGS if row[tag] == "1")
            if tags and row["clip_id"] in parts:
                piece = Path(row["mp3_path"]).stem.rsplit("-", 2)[0]  # ends in -BEGIN-END, in seconds
                yield row["mp3_path"], tags, parts[row["clip_id"]], "", piece

    return _rows(root, rows())


def irmas(root: Path) -> list[ArchRow]:
    """`IRMAS-TrainingData/cel/` ..., `IRMAS-TestingData-Part1/Part1/` to 3, a .txt of labels beside each test file."""

    def rows() -> Iterator[tuple]:
        for label in IRMAS:
            for name in _files(root, f"IRMAS-TrainingData/{label}/*.wav"):
                yield name, (label,), "train", "", name
        for part in (1, 2, 3):
            for name in _files(root, f"IRMAS-TestingData-Part{part}/Part{part}/*.wav"):
                words = _text((root / name).with_suffix(".txt")).split()
                yield name, tuple(dict.fromkeys(words)), "test", "", name.rsplit("-", 1)[0]

    return _rows(root, rows())


def medley_solos(root: Path) -> list[ArchRow]:
    """`Medley-solos-DB_metadata.csv` (or in `annotation/`), `audio/Medley-solos-DB_SUBSET-INSTRUMENT_UUID.wav`."""
    place = "annotation/" if (root / "annotation" / "Medley-solos-DB_metadata.csv").is_file() else ""
    parts = {"training": "train", "validation": "valid", "test": "test"}

    def rows() -> Iterator[tuple]:
        columns = ("subset", "instrument_id", "song_id", "uuid4")
        for row in _table(root / f"{place}Medley-solos-DB_metadata.csv", columns):
            name = f"audio/Medley-solos-DB_{row['subset']}-{row['instrument_id']}_{row['uuid4']}.wav"
            yield name, (row["instrument_id"],), parts.get(row["subset"], ""), "", row["song_id"]

    return _rows(root, rows())


def ravdess(root: Path) -> list[ArchRow]:
    """`Actor_01/03-01-05-01-02-01-01.wav`: speech (not song) of audio alone, the emotion third."""

    def rows() -> Iterator[tuple]:
        for name in _files(root, "Actor_*/*.wav"):
            words = Path(name).stem.split("-")
            if len(words) == 7 and words[:2] == ["03", "01"] and 1 <= int(words[2]) <= len(RAVDESS):
                yield name, (RAVDESS[int(words[2]) - 1],), "", "", f"actor {words[6]}"

    return _rows(root, rows())


def audiomnist(root: Path) -> list[ArchRow]:
    """`data/01/0_01_0.wav`: digit, speaker, take."""
    fold_of = {speaker: str(number) for number, fold in enumerate(AUDIOMNIST_FOLDS) for speaker in fold}

    def rows() -> Iterator[tuple]:
        for name in _files(root, "data/*/*.wav"):
            words = Path(name).stem.split("_")
            if len(words) == 3 and words[1].isdigit() and int(words[1]) in fold_of:
                yield name, (words[0],), "", fold_of[int(words[1])], f"speaker {words[1]}"

    return _rows(root, rows())


def slurp(root: Path) -> list[ArchRow]:
    """`train.jsonl`, `devel.jsonl`, `test.jsonl` (or in `dataset/slurp/`), `slurp_real/` (or in `audio/`)."""
    lists = root / "dataset" / "slurp" if (root / "dataset" / "slurp").is_dir() else root
    place = "audio/slurp_real" if (root / "audio" / "slurp_real").is_dir() else "slurp_real"

    def rows() -> Iterator[tuple]:
        for part, name in (("train", "train"), ("valid", "devel"), ("test", "test")):
            path = lists / f"{name}.jsonl"
            for number, line in enumerate(_text(path).split("\n"), start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    for recording in row["recordings"]:
                        yield f"{place}/{recording['file']}", (str(row["intent"]),), part, "", recording["file"]
                except (ValueError, KeyError, TypeError) as error:
                    raise XcodecLMError(f"{path} line {number}: no intent or recordings: {error}") from None

    return _rows(root, rows())


def emovo(root: Path) -> list[ArchRow]:
    """`f1/dis-f1-b1.wav` (or in `EMOVO/`): emotion, speaker, sentence."""

    def rows() -> Iterator[tuple]:
        for name in (*_files(root, "*/*.wav"), *_files(root, "EMOVO/*/*.wav")):
            words = Path(name).stem.split("-")
            if len(words) == 3 and words[1] == Path(name).parent.name:
                yield name, (words[0],), "", words[1], words[1]

    return _rows(root, rows())


def _rows(root: Path, found: Iterable[tuple]) -> list[ArchRow]:
    rows = [ArchRow(name, root / name, labels, part, fold, unit) for name, labels, part, fold, unit in found]
    if not rows:
        raise XcodecLMError(f"{root} has no recording of this data set", "see docs/probing.md for where files go")
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise XcodecLMError(f"{root}: {twice[0]} is listed twice", "its lists are damaged; fetch them again")
    return sorted(rows, key=lambda row: row.id)


def _files(root: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))


def _table(path: Path, wanted: tuple[str, ...], separator: str = ",") -> list[dict[str, str]]:
    rows = list(csv.DictReader(_text(path).splitlines(), delimiter=separator))
    missing = [name for name in wanted if not rows or rows[0].get(name) is None]
    if missing:
        raise XcodecLMError(f"{path} has no rows with the column {missing[0]!r}", "fetch the list again")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise _absent(path) from None


def _absent(path: Path) -> XcodecLMError:
    return XcodecLMError(f"{path} is missing or cannot be read", "see docs/probing.md for where files go")
