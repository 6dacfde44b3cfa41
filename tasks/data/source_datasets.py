"""Hugging Face datasets, from a local folder or by name; needs the extra [datasets].

Audio is taken as the file that it is, never decoded on the way: no sample changes, and torchcodec is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.source_items import SPLIT_NAMES, Item
from xcodec_lm.tasks.data.source_lists import rename

SUFFIXES = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"FORM": ".aiff"}
"""First bytes of audio formats, for files whose name is lost."""


def datasets_items(source: Path, audio_folder: Path, keys: dict[str, str]) -> Iterator[Item]:
    """All rows of all splits; ids are SPLIT-NUMBER where the rows have none.

    Args:
        source: what `save_to_disk` made, a folder that `load_dataset` reads, or `NAME` or `NAME:CONFIG` on the hub.
        audio_folder: audio that lies inside the dataset's tables is written here.
        keys: our key -> theirs, for columns that are not among `USUAL_KEYS`.

    Raises:
        XcodecLMError: the extra is missing, the dataset cannot be loaded, or it has no column of audio.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise XcodecLMError(
            "the format datasets needs the Python package datasets", 'install it: pip install "xcodec-lm[datasets]"'
        ) from None
    for split, table in _load(datasets, source).items():
        columns = dict(table.features)
        audio = keys.get("audio") or next((n for n, kind in columns.items() if isinstance(kind, datasets.Audio)), None)
        if audio is not None and isinstance(columns.get(audio), datasets.Audio):
            table = table.cast_column(audio, datasets.Audio(decode=False))
        labels = {name: kind for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)}
        for number, row in enumerate(table):
            row = {name: labels[name].int2str(value) if name in labels else value for name, value in row.items()}
            named = keys if audio is None else {**keys, "audio": audio}
            found, rest = rename(row, named, f"{source}, split {split}, row {number}")
            if "audio" not in found:
                raise XcodecLMError(
                    f"{source} has no column of audio; its columns are {', '.join(columns)}",
                    "name the column: --keys audio=THEIR_COLUMN",
                )
            name = str(found.pop("id", None) or f"{split}-{number:06d}")
            path = _file_of(found.pop("audio"), audio_folder / quote(name, safe=""))
            found.pop("split", None)
            plain = {key: value for key, value in rest.items() if isinstance(value, str | int | float | bool)}
            known = SPLIT_NAMES.get(str(split).split("[")[0].split(".")[0].split("_")[0].lower())
            problem = "" if path else "the row has no audio"
            yield Item(name, path or Path(name), known, plain | found, problem=problem)


def _load(datasets: Any, source: Path) -> dict[str, Any]:
    """Split -> table."""
    try:
        if any((source / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(source))
        else:
            name, _, config = str(source).partition(":")
            loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # whatever a builder of a dataset raises; the cause says more where there is one
        why = error.__cause__ or error
        raise XcodecLMError(
            f"the dataset {source} cannot be loaded: {type(why).__name__}: {why}",
            "give a folder that save_to_disk wrote, or NAME or NAME:CONFIG as on the hub",
        ) from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _file_of(audio: Any, place: Path) -> Path | None:
    """The file of a row's audio; what has none on this machine is written to `place` with the ending of its format."""
    if isinstance(audio, str):
        return Path(audio).absolute()
    path, data = (audio or {}).get("path"), (audio or {}).get("bytes")
    if path and Path(path).is_file():
        return Path(path).absolute()
    if not data:
        return Path(path) if path else None
    suffix = Path(path).suffix if path else SUFFIXES.get(bytes(data[:4]), ".mp3")
    target = place.with_name(place.name + suffix)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    except OSError as error:
        raise XcodecLMError(f"cannot write {target}: {error.strerror}", "choose another --out") from None
    return target.absolute()
