"""Sounds with captions: AudioCaps, WavCaps, and folders with captions beside the recordings.

The published lists name recordings that everybody fetches alone, and many are gone from where they were: what is not
found is for the caller to count and list, see `sources.scan_source`.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.scan import READABLE, UNREADABLE, walk
from xcodec_lm.tasks.data.source_items import SPLIT_NAMES, Item, read_lines

AUDIOCAPS_COLUMNS = ("youtube_id", "start_time", "caption")
LIST_FOLDERS = ("", "dataset", "csv_files", "metadata")
"""Where the lists of AudioCaps lie below its folder, as published or as others hand them on."""
WAVCAPS_PARTS = {"audioset": "AudioSet_SL", "bbc": "BBC_Sound_Effects", "freesound": "FreeSound",
                 "soundbible": "SoundBible"}  # fmt: skip
"""What a folder of a part of WavCaps has in its name -> the part's name."""
WAVCAPS_FILES = {"as": "audioset", "bbc": "bbc", "fsd": "freesound", "sb": "soundbible"}
"""How the file of a part begins, as in fsd_final.json."""
KEPT = ("title", "author", "href", "category", "tags")
"""Fields of WavCaps that go into the manifest as they are."""


class AudioIndex:
    """The audio files below a folder, by their name without the ending.

    Args:
        root: searched with its subfolders; links are followed.

    Raises:
        XcodecLMError: no such folder.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise XcodecLMError(f"{root} is not a folder", "give the folder that holds the lists and the audio")
        self.root = root.absolute()
        self.files: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(walk(self.root, {})):
            if path.suffix.lower() in READABLE | UNREADABLE and not path.name.startswith("."):
                self.files[path.stem].append(path)

    def find(self, stems: Sequence[str], part: str, others: Sequence[str] = ()) -> Path:
        """The file with the first of these names that there is.

        Args:
            stems: names without ending, the likeliest first.
            part: a file in a folder with this in its name goes before others.
            others: names of other parts, whose folders' files are no candidates.

        Returns:
            The file; a place where there is none, named after the first of the names, if none is found.
        """
        for stem in stems:
            candidates = self.files.get(stem, [])
            own = [path for path in candidates if self._within(path, part)]
            free = [path for path in candidates if not any(self._within(path, other) for other in others)]
            if found := own or free:
                return found[0]
        return self.root / f"{stems[0]}.wav"

    def _within(self, path: Path, name: str) -> bool:
        folders = path.relative_to(self.root).parts[:-1]
        return bool(name) and any(name in folder.lower() for folder in folders)


# ------------------------------------------------------------------ AudioCaps


def find_audiocaps(source: Path) -> list[Path]:
    """Lists of AudioCaps: the file itself, or train.csv, val.csv and test.csv below a folder."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".csv" and _is_audiocaps(source) else []
    places = (source / folder / f"{split}.csv" for folder in LIST_FOLDERS for split in ("train", "val", "test"))
    found = {path.stem: path for path in reversed([path for path in places if path.is_file() and _is_audiocaps(path)])}
    return [found[split] for split in ("train", "val", "test") if split in found]


def _is_audiocaps(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = next(csv.reader([file.readline()]), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return set(AUDIOCAPS_COLUMNS) <= set(header)


def audiocaps_items(source: Path) -> Iterator[Item]:
    """The clips of train.csv, val.csv and test.csv with columns audiocap_id, youtube_id, start_time, caption.

    A clip with several captions (there are five in val and test) is one recording. Its file, anywhere below the folder,
    is named YOUTUBEID_START, YOUTUBEID, YYOUTUBEID or after an audiocap_id.

    Raises:
        XcodecLMError: there are no such lists, or a row lacks a field.

    Source: https://github.com/cdjkim/audiocaps, dataset/.
    """
    lists = find_audiocaps(source)
    if not lists:
        raise XcodecLMError(
            f"{source} has no list of AudioCaps: a CSV with the columns {', '.join(AUDIOCAPS_COLUMNS)}",
            "give the folder that holds train.csv, val.csv or test.csv and the audio",
        )
    root = source if source.is_dir() else source.parent
    index = AudioIndex(root.parent if source.is_file() and root.name in LIST_FOLDERS[1:] else root)
    for path in lists:
        split = SPLIT_NAMES.get(path.stem.lower())
        clips: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
        for number, row in enumerate(csv.DictReader(read_lines(path)), start=2):
            video, start, caption = (str(row.get(key) or "").strip() for key in AUDIOCAPS_COLUMNS)
            if not video or not caption:
                raise XcodecLMError(f"{path} line {number} has no youtube_id or no caption", "fetch the list again")
            clips[video, _seconds(start)].append({"caption": caption, "id": str(row.get("audiocap_id") or "").strip()})
        for (video, start), rows in clips.items():
            captions = list(dict.fromkeys(row["caption"] for row in rows))
            numbers = [row["id"] for row in rows if row["id"]]
            stems = [f"{video}_{start}", video, f"Y{video}_{start}", f"Y{video}", *numbers]
            keys: dict[str, Any] = {
                "caption": captions[0],
                "captions": captions if len(captions) > 1 else None,
                "recording": f"youtube_{video}",
                "start_time": float(start) if start else None,
                "source": "AudioCaps",
            }
            yield Item(f"{video}_{start}" if start else video, index.find(stems, path.stem.lower()), split, keys)


def _seconds(text: str) -> str:
    """130 and 130.000 are the same start."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


# ------------------------------------------------------------------ WavCaps


def find_wavcaps(source: Path) -> list[Path]:
    """Lists of WavCaps: the file itself, or those below a folder: json_files/PART/NAME.json, or NAME_final.json."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" and _is_wavcaps(source) else []
    found = [path for pattern in ("json_files/*/*.json", "*/*_final*.json", "*_final*.json")
             for path in sorted(source.glob(pattern)) if "blacklist" not in path.as_posix()]  # fmt: skip
    return list(dict.fromkeys(found))


def _is_wavcaps(path: Path) -> bool:
    """Whether a file is named or begins like a list of WavCaps; other lists of JSON lines are called .json, too."""
    if path.absolute().parent.parent.name == "json_files" or "_final" in path.stem:
        return True
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(4096).lstrip()
    except (OSError, UnicodeDecodeError):
        return False
    return head.startswith("[") or re.search(r'"data"\s*:\s*\[', head) is not None


def wavcaps_items(source: Path) -> Iterator[Item]:
    """The clips of WavCaps' lists: JSON with `data`, a list of objects with `id` and `caption`.

    The file of a clip, anywhere below the folder, has the id as its name. Clips of FreeSound and SoundBible may have
    the same number, so a file in a folder named after another part is not taken. Where a part has several lists
    (FreeSound has one of clips above 2 s), the first is read.

    Raises:
        XcodecLMError: there are no such lists, or one is not of this form.

    Source: Mei et al. 2023, arXiv 2303.17395; https://github.com/XinhaoMei/WavCaps, data/json_files.
    """
    lists = find_wavcaps(source)
    if not lists:
        raise XcodecLMError(
            f"{source} has no list of WavCaps, such as json_files/FreeSound/fsd_final.json",
            "give one of the JSON files, or the folder that holds json_files and the audio",
        )
    root = source if source.is_dir() else source.absolute().parent
    if source.is_file() and root.parent.name == "json_files":
        root = root.parent.parent
    index, read = AudioIndex(root), set[str]()
    for path in lists:
        key = _wavcaps_part(path)
        if key and key in read:
            continue
        read.add(key)
        part = WAVCAPS_PARTS.get(key, path.stem)
        for number, row in enumerate(_wavcaps_rows(path)):
            name, caption = row.get("id"), row.get("caption")
            if not isinstance(name, str | int) or not caption:
                raise XcodecLMError(f"{path}: entry {number} of data has no id or no caption", "fetch the list again")
            stem = _without_ending(str(name))
            captions = [caption] if isinstance(caption, str) else [str(one) for one in caption]
            keys: dict[str, Any] = {
                "caption": captions[0],
                "captions": captions if len(captions) > 1 else None,
                "recording": f"{key or part}_{stem}",
                "source": f"WavCaps/{part}",
                **{kept: row[kept] for kept in KEPT if row.get(kept)},
            }
            audio = index.find([stem, f"Y{stem}"], key, [other for other in WAVCAPS_PARTS if other != key])
            yield Item(f"{part}/{stem}", audio, None, keys)


def _wavcaps_part(path: Path) -> str:
    """Which of `WAVCAPS_PARTS` a list is of, by its folder or its name; "" where neither tells."""
    folder = path.absolute().parent.name.lower()
    return next((key for key in WAVCAPS_PARTS if key in folder), WAVCAPS_FILES.get(path.stem.split("_")[0].lower(), ""))


def _wavcaps_rows(path: Path) -> list[dict[str, Any]]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        hint = "fetch it again; a file of Git LFS that was not pulled is only a pointer"
        raise XcodecLMError(f"{path} cannot be read as JSON: {error}", hint) from None
    rows = loaded.get("data") if isinstance(loaded, dict) else loaded
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise XcodecLMError(f"{path} is no list of WavCaps: it has no `data` with a list of objects")
    return rows


def _without_ending(name: str) -> str:
    return name[: -len(suffix)] if (suffix := Path(name).suffix).lower() in READABLE | UNREADABLE else name


# ------------------------------------------------------------------ captions beside the recordings


def caption_folder_items(root: Path) -> Iterator[Item]:
    """All recordings below a folder with the captions of NAME.txt beside NAME.wav, one a line; some may have none.

    Raises:
        XcodecLMError: no such folder, or no recording in it has captions.
    """
    index, captioned = AudioIndex(root), 0
    items = []
    for path in sorted(path for paths in index.files.values() for path in paths):
        beside = path.with_suffix(".txt")
        captions = [line.strip() for line in read_lines(beside)] if beside.is_file() else []
        captions = list(dict.fromkeys(" ".join(line.split()) for line in captions if line))
        captioned += bool(captions)
        keys = {"caption": captions[0] if captions else None, "captions": captions if len(captions) > 1 else None}
        name = path.relative_to(index.root)
        stem = name.with_suffix("").as_posix()
        several = sum(other.parent == path.parent for other in index.files[path.stem]) > 1
        items.append(Item(name.as_posix() if several else stem, path, None, keys))
    if not captioned:
        raise XcodecLMError(
            f"{root}: no recording has a .txt with captions beside it", "write the captions of dog.wav into dog.txt"
        )
    yield from items
