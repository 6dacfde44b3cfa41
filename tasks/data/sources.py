"""Manifests of corpora in their own layouts: `data scan SOURCE --format NAME`.

Each format is a function from a place to recordings. What all share is here: which format a place has, the headers that
are read for durations, splits, parts cut out of longer files, and the manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import soundfile as sf

from xcodec_lm.codec.clips import relative_audio
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data.scan import SplitBy, read_header, scan
from xcodec_lm.tasks.data.scan_result import ScanResult, Wanted, beside, finish, list_missing
from xcodec_lm.tasks.data.source_captions import find_audiocaps, find_wavcaps
from xcodec_lm.tasks.data.source_items import Item
from xcodec_lm.tasks.data.source_speech import Microphone, find_common_voice, find_ljspeech, find_vctk
from xcodec_lm.tasks.data.splits import assign_splits, check_shares

Format = Literal[
    "auto", "folder", "librispeech", "libritts", "ljspeech", "vctk", "commonvoice", "musdb18", "audiocaps", "wavcaps",
    "captions", "kaldi", "jsonl", "datasets",
]  # fmt: skip
MAY_LACK_AUDIO: tuple[Format, ...] = ("audiocaps", "wavcaps")
"""Formats whose lists name recordings that everybody fetches alone: what is not there is counted and listed."""


def scan_source(
    source: str | Path,
    out: str | Path,
    format: Format = "auto",
    dev: float = 0.05,
    test: float = 0.05,
    split_by: SplitBy = "file",
    keys: dict[str, str] | None = None,
    wanted: Wanted | None = None,
    microphone: Microphone = "mic1",
) -> tuple[Format, ScanResult]:
    """Writes the manifest of a corpus.

    Splits that a corpus has are kept. Where it has none, `dev` and `test` are shares by speaker where several speakers
    are known, else by recording (see `assign_splits`).

    Args:
        source: a folder, a JSON-lines file, or the name of a Hugging Face dataset (`NAME` or `NAME:CONFIG`).
        out: the manifest; audio that is no file of its own is written beside it.
        format: layout of the source; `auto` finds out.
        dev: share for the dev split, 0..1.
        test: share for the test split, 0..1.
        split_by: of plain folders, see `scan`.
        keys: for JSON lines and datasets, our key -> theirs, where the usual names do not fit.
        wanted: which recordings are taken; all by default.
        microphone: of VCTK.

    Returns:
        The format that was taken, and what was found.

    Raises:
        UsageError: options that do not fit together.
        XcodecLMError: the source is not of the format, or holds nothing that can be read.
    """
    check_shares(dev, test)
    source, out = Path(source), Path(out)
    if out.resolve() == source.resolve():
        raise UsageError(f"the manifest would overwrite {source}", "name another file with --out")
    if format == "auto":
        format = detect(source)
    if keys and format not in ("jsonl", "datasets"):
        raise UsageError(f"--keys does not fit the format {format}", "it is for jsonl and datasets")
    if format == "folder":
        return format, scan(source, out, dev=dev, test=test, split_by=split_by, wanted=wanted)
    items: Iterable[Item] = reader(format, out, keys or {}, microphone)(source)
    missing: list[Item] = []
    if format in MAY_LACK_AUDIO:
        items, missing = _with_audio(list(items), source)
    found = collect(items, source, out, dev, test, wanted)
    return format, list_missing(found, [{"id": item.id, **item.keys} for item in missing])


def _with_audio(items: list[Item], source: Path) -> tuple[list[Item], list[Item]]:
    """Recordings whose file is there, and the others.

    Raises:
        XcodecLMError: none is there.
    """
    there = {item.id for item in items if item.audio.is_file()}
    if not there:
        raise XcodecLMError(
            f"{source}: none of the {len(items)} recordings of its lists is there",
            "put the audio into a folder below it, named as the lists name it",
        )
    return [item for item in items if item.id in there], [item for item in items if item.id not in there]


def detect(source: Path) -> Format:
    """The format of a place on this machine.

    Raises:
        XcodecLMError: there is nothing.
    """
    if source.is_file():
        return "audiocaps" if find_audiocaps(source) else "wavcaps" if find_wavcaps(source) else "jsonl"
    if not source.is_dir():
        raise XcodecLMError(
            f"{source} is no file and no folder",
            "give a folder or a JSON-lines file; a dataset of the Hugging Face hub needs --format datasets",
        )
    if (source / "wav.scp").is_file() or any(source.glob("*/wav.scp")):
        return "kaldi"
    if any((source / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return "datasets"
    if any(any(source.glob(f"{split}/{what}")) for split in ("train", "test") for what in ("*/mixture.wav", "*.mp4")):
        return "musdb18"
    if find_audiocaps(source):
        return "audiocaps"
    if find_wavcaps(source):
        return "wavcaps"
    if find_common_voice(source):
        return "commonvoice"
    if find_ljspeech(source):
        return "ljspeech"
    if find_vctk(source):
        return "vctk"
    first = next(source.rglob("*.trans.txt"), None)
    if first is not None:
        return "librispeech"
    return "libritts" if next(source.rglob("*.normalized.txt"), None) is not None else "folder"


def reader(
    format: Format, out: Path, keys: dict[str, str] | None = None, microphone: Microphone = "mic1"
) -> Callable[[Path], Iterator[Item]]:
    """The function that lists the recordings of a place; for every format but `auto` and `folder`.

    Args:
        format: of the place.
        out: the manifest to be; audio that is no file of its own is written beside it.
        keys: see `scan_source`.
        microphone: of VCTK.
    """
    from xcodec_lm.tasks.data import source_captions, source_corpora, source_datasets, source_lists, source_speech

    if format == "datasets":
        return lambda source: source_datasets.datasets_items(source, beside(out, "audio"), keys or {})
    if format == "jsonl":
        return lambda source: source_lists.jsonl_items(source, keys or {})
    if format == "vctk":
        return lambda source: source_speech.vctk_items(source, microphone)
    return {
        "librispeech": source_corpora.librispeech_items,
        "libritts": source_corpora.libritts_items,
        "ljspeech": source_speech.ljspeech_items,
        "commonvoice": source_speech.common_voice_items,
        "musdb18": source_corpora.musdb18_items,
        "audiocaps": source_captions.audiocaps_items,
        "wavcaps": source_captions.wavcaps_items,
        "captions": source_captions.caption_folder_items,
        "kaldi": source_lists.kaldi_items,
    }[format]


def collect(
    items: Iterable[Item], source: Path, out: Path, dev: float, test: float, wanted: Wanted | None = None
) -> ScanResult:
    """Reads the headers of recordings and writes their manifest, in the order of the ids.

    Raises:
        XcodecLMError: none can be used or is wanted, two have one id, or the manifest or a part cannot be written.
    """
    rows, unreadable = read_items(items, source, out)
    splits, notes = assign_splits([(row["id"], _speaker(row), row.get("split")) for row in rows], dev, test)
    placed = [_place(row, split) for row, split in zip(rows, splits, strict=True)]
    return finish(placed, out, wanted or Wanted(), unreadable, notes=notes)


def read_items(items: Iterable[Item], source: Path, out: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Manifest rows of recordings, from their headers and in the order of the ids; and those without a row -> why.

    Raises:
        XcodecLMError: none can be used, two have one id, or a part cannot be written.
    """
    listed = sorted(items, key=lambda item: item.id)
    double = [name for name, count in Counter(item.id for item in listed).items() if count > 1]
    if double:
        raise XcodecLMError(f"{source}: {len(double)} ids are used twice, such as {double[0]!r}", "make them unique")
    rows: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for item in track(listed, "scan", len(listed)):
        info = item.problem or (read_header(item.audio) if item.audio.is_file() else "file not found")
        audio = item.audio
        if not isinstance(info, str) and item.part is not None:
            audio, info = _cut(item, info, beside(out, "parts") / f"{quote(item.id, safe='')}.wav")
        if isinstance(info, str):
            unreadable[item.id] = f"{item.audio}: {info}"
            continue
        row: dict[str, Any] = {"id": item.id, "audio": relative_audio(audio, out)}
        row["duration"] = round(info.frames / info.samplerate, 6)
        if item.split:
            row["split"] = item.split
        taken = {key: value for key, value in item.keys.items() if key not in (*row, "split") and value is not None}
        rows.append(row | taken | {"sample_rate": info.samplerate, "channels": info.channels})
    if not rows:
        why = f": {next(iter(unreadable.values()))}" if unreadable else ""
        raise XcodecLMError(
            f"{source}: none of {len(listed)} recordings can be used{why}", "WAV, FLAC, OGG and MP3 files are read"
        )
    return rows, unreadable


def _speaker(row: dict[str, Any]) -> str | None:
    return None if row.get("speaker") in (None, "") else str(row["speaker"])


def _place(row: dict[str, Any], split: str | None) -> dict[str, Any]:
    """The row with its split, behind what every row has."""
    if split is None:
        return row
    return {key: row[key] for key in ("id", "audio", "duration")} | {"split": split} | row


def _cut(item: Item, info: Any, path: Path) -> tuple[Path, Any]:
    """Writes the part of a file that an item is, sample for sample.

    Returns:
        The file with that part, and its header or why it cannot be cut.
    """
    start_s, stop_s = item.part or (0.0, None)
    start = round(start_s * info.samplerate)
    stop = info.frames if stop_s is None or stop_s < 0 else min(round(stop_s * info.samplerate), info.frames)
    if (start, stop) == (0, info.frames):
        return item.audio, info
    if not 0 <= start < stop:
        length_s = info.frames / info.samplerate
        return item.audio, f"the part from {start_s:g} s to {stop_s} s is not within its {length_s:g} s"
    exact = info.subtype.startswith("PCM") and sf.check_format("WAV", info.subtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with sf.SoundFile(item.audio) as file:
            file.seek(start)
            samples = file.read(stop - start, dtype="int32" if exact else "float32")
        sf.write(path, samples, info.samplerate, subtype=info.subtype if exact else "FLOAT")
    except (sf.LibsndfileError, RuntimeError) as error:
        return item.audio, f"not readable as audio: {str(error).rstrip('.')}"
    except OSError as error:
        raise XcodecLMError(f"cannot write {path}: {error.strerror}", "choose another --out") from None
    return path, read_header(path)
