"""Speech corpora in the folders that their archives unpack to: LJSpeech, VCTK, Common Voice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.source_items import Item, read_lines

Microphone = Literal["mic1", "mic2"]
VCTK_FOLDERS = ("wav48_silence_trimmed", "wav48")
"""Where releases 0.92 and 0.80 keep their recordings."""
COMMON_VOICE_SPLITS = {"train.tsv": "train", "dev.tsv": "dev", "test.tsv": "test"}
COMMON_VOICE_ALL = "validated.tsv"


def find_ljspeech(root: Path) -> Path | None:
    """The folder that holds metadata.csv and wavs/: the place itself or one below it."""
    lists = (path for path in (root / "metadata.csv", *sorted(root.glob("*/metadata.csv"))) if path.is_file())
    return next((path.parent for path in lists if (path.parent / "wavs").is_dir()), None)


def find_vctk(root: Path) -> Path | None:
    """The folder that holds txt/ and the recordings: the place itself or one below it."""
    for folder in (root, *sorted(path.parent for path in root.glob("*/txt"))):
        if (folder / "txt").is_dir() and any((folder / name).is_dir() for name in VCTK_FOLDERS):
            return folder
    return None


def find_common_voice(root: Path) -> list[Path]:
    """The folders of languages that hold clips/ and lists: the place itself, or those one or two below it."""
    places = [root, *sorted(path.parent for pattern in ("*/clips", "*/*/clips") for path in root.glob(pattern))]
    return [place for place in places if (place / "clips").is_dir() and _common_voice_lists(place)]


def ljspeech_items(root: Path) -> Iterator[Item]:
    """wavs/NAME.wav, with NAME|text|normalised text in metadata.csv; one speaker.

    `text` is the normalised one, in which numbers and abbreviations are words.

    Raises:
        XcodecLMError: no such layout, or a line that is no row.

    Source: https://keithito.com/LJ-Speech-Dataset/.
    """
    folder = find_ljspeech(root)
    if folder is None:
        raise XcodecLMError(f"{root} has no metadata.csv beside a folder wavs", "give the folder LJSpeech-1.1")
    speaker = folder.absolute().name.split("-")[0]
    for number, line in enumerate(read_lines(folder / "metadata.csv"), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 2 or not fields[0]:
            raise XcodecLMError(
                f"{folder / 'metadata.csv'} line {number}: no NAME|text: {line[:60]!r}", "mend the line"
            )
        name = fields[0].removesuffix(".wav")
        normal = fields[2] if len(fields) > 2 and fields[2] else fields[1]
        keys = {"text": normal or None, "raw_text": fields[1] or None, "speaker": speaker}
        yield Item(name, folder.absolute() / "wavs" / f"{name}.wav", None, keys)


def vctk_items(root: Path, microphone: Microphone = "mic1") -> Iterator[Item]:
    """wav48_silence_trimmed/SPEAKER/NAME_mic1.flac (0.92) or wav48/SPEAKER/NAME.wav; texts in txt/SPEAKER/NAME.txt.

    Speaker p315 has no texts, and p280 and p315 no second microphone; `gender` comes from speaker-info.txt.

    Args:
        root: folder of the corpus.
        microphone: which of the two recordings of 0.92.

    Raises:
        XcodecLMError: no such layout, or no recordings of the microphone.

    Source: https://datashare.ed.ac.uk/handle/10283/3443.
    """
    folder = find_vctk(root)
    if folder is None:
        raise XcodecLMError(
            f"{root} has no folders txt and {VCTK_FOLDERS[0]} (or {VCTK_FOLDERS[1]})", "give the folder of VCTK"
        )
    folder = folder.absolute()
    trimmed = folder / VCTK_FOLDERS[0]
    if trimmed.is_dir():
        audio = sorted(trimmed.glob(f"*/*_{microphone}.flac"))
    else:
        audio = sorted((folder / VCTK_FOLDERS[1]).glob("*/*.wav"))
    if not audio:
        raise XcodecLMError(f"{folder} has no recordings of {microphone}", "unpack the corpus again, or take the other")
    genders = _vctk_genders(folder / "speaker-info.txt")
    for path in audio:
        speaker, name = path.parent.name, path.stem.removesuffix(f"_{microphone}")
        text = folder / "txt" / speaker / f"{name}.txt"
        words = " ".join(" ".join(read_lines(text)).split()) if text.is_file() else ""
        yield Item(name, path, None, {"text": words or None, "speaker": speaker, "gender": genders.get(speaker)})


def _vctk_genders(path: Path) -> dict[str, str]:
    """Speaker -> F or M, from lines of ID, age, gender and more."""
    if not path.is_file():
        return {}
    rows = [line.split() for line in read_lines(path)]
    named = [(row[0], row[2]) for row in rows if len(row) > 2 and row[2] in ("F", "M")]
    # release 0.80 has numbers alone where its folders have p and the number
    return {name: gender for short, gender in named for name in (short, f"p{short}")}


def common_voice_items(root: Path) -> Iterator[Item]:
    """clips/NAME.mp3, with client_id, path and sentence in train.tsv, dev.tsv and test.tsv.

    Where none of these is there, all of validated.tsv is taken, without splits. Several languages may lie side by side.

    Raises:
        XcodecLMError: no such layout, or a list without these columns.

    Source: https://github.com/common-voice/cv-dataset.
    """
    folders = find_common_voice(root)
    if not folders:
        raise XcodecLMError(
            f"{root} has no folder clips beside train.tsv or {COMMON_VOICE_ALL}", "give the folder of a language"
        )
    for folder in folders:
        for path in _common_voice_lists(folder):
            for row in _table(path):
                name = row["path"].removesuffix(".mp3")
                keys = {
                    "text": _unquoted(row["sentence"]) or None,
                    "speaker": row["client_id"] or None,
                    "language": row.get("locale") or None,
                    **{key: row[key] for key in ("age", "gender", "accents") if row.get(key)},
                }
                audio = folder.absolute() / "clips" / f"{name}.mp3"
                yield Item(name, audio, COMMON_VOICE_SPLITS.get(path.name), keys)


def _common_voice_lists(folder: Path) -> list[Path]:
    split = [folder / name for name in COMMON_VOICE_SPLITS if (folder / name).is_file()]
    return split or [path for path in (folder / COMMON_VOICE_ALL,) if path.is_file()]


def _table(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a table with tabs. Quotation marks mean nothing in these lists, so the module csv would join lines."""
    lines = read_lines(path)
    names = lines[0].rstrip("\r").split("\t") if lines else []
    missing = [name for name in ("client_id", "path", "sentence") if name not in names]
    if missing:
        raise XcodecLMError(f"{path} has no column {missing[0]}; it has {', '.join(names)}", "unpack the corpus again")
    for number, line in enumerate(lines[1:], start=2):
        fields = line.rstrip("\r").split("\t")
        if not line.strip():
            continue
        if len(fields) <= max(map(names.index, ("client_id", "path", "sentence"))):
            raise XcodecLMError(f"{path} line {number} has {len(fields)} of {len(names)} columns", "mend the line")
        yield dict(zip(names, fields, strict=False))


def _unquoted(sentence: str) -> str:
    """A sentence without the quotation marks that some releases put around it."""
    sentence = sentence.strip()
    if len(sentence) > 1 and sentence.startswith('"') and sentence.endswith('"'):
        sentence = sentence[1:-1].replace('""', '"').strip()
    return sentence
