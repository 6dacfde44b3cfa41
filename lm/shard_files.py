"""Files of a token store: their names, the header, the lines that name recordings.

    store.json             version, spec of the codec, dtype of the codes, where the codec was
    rows.jsonl             one line a recording: manifest row, frames, shard, first frame within the shard, place in
                           the manifest
    shard-NNNNN.bin        raw little-endian codes (T, Q), one recording after another
    failed.jsonl           recordings that could not be encoded, with the reason; absent when there are none
    index-*.safetensors    what `xcodec_lm.lm.shard_index` makes of the rows

These are the files of process 0. Process R of several that write one store has files of its own:
`rows-RRRRR.jsonl`, `shard-RRRRR-NNNNN.bin`, `failed-RRRRR.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError

STORE_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 had one writer and no places in the manifest: its lines stand in the order of the manifest."""
TEMPORARY = ".tmp-"
HINT = "make a store with xcodec-lm data tokenize"
AGAIN = "run the same data tokenize command again; it encodes what is missing"


class Entry(NamedTuple):
    """A line of a rows file.

    Attributes:
        line: counted from 1.
        offset: of its first byte in the file.
        text: all of it, with the line feed.
        frames: of the recording.
        shard: number of the file of codes.
        start: the recording's first frame in it.
        index: the recording's place in the manifest.
        row: the manifest's row.
    """

    line: int
    offset: int
    text: bytes
    frames: int
    shard: int
    start: int
    index: int
    row: dict[str, Any]

    @property
    def stop(self) -> int:
        """The frame of its shard at which it ends, exclusive."""
        return self.start + self.frames


def rows_path(folder: Path, rank: int) -> Path:
    """The file in which process `rank` names its recordings."""
    return folder / (f"rows-{rank:05d}.jsonl" if rank else "rows.jsonl")


def failed_path(folder: Path, rank: int) -> Path:
    """The file in which process `rank` lists what it could not encode."""
    return folder / (f"failed-{rank:05d}.jsonl" if rank else "failed.jsonl")


def shard_path(folder: Path, rank: int, number: int) -> Path:
    """A file of codes of process `rank`."""
    return folder / (f"shard-{rank:05d}-{number:05d}.bin" if rank else f"shard-{number:05d}.bin")


def ranks(folder: Path, kind: str = "rows") -> list[int]:
    """Processes that have a file of a kind (`rows` or `failed`) in the store, ascending."""
    matches = (re.fullmatch(rf"{kind}(?:-(\d{{5}}))?\.jsonl", name) for name in os.listdir(folder))
    return sorted(int(match[1] or 0) for match in matches if match)


def shard_numbers(folder: Path, rank: int) -> list[int]:
    """Numbers of the files of codes of process `rank`, ascending."""
    pattern = rf"shard-{rank:05d}-(\d{{5,}})\.bin" if rank else r"shard-(\d{5,})\.bin"
    matches = (re.fullmatch(pattern, name) for name in os.listdir(folder))
    return sorted(int(match[1]) for match in matches if match)


def columns_of(spec: TokenSpec) -> int:
    """Codes of one frame: quantizers of all tracks."""
    return spec.n_q * len(spec.tracks)


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a store.

    Raises:
        TokenError: not a store, of an unknown version, or damaged.
    """
    path = folder / "store.json"
    if not path.is_file():
        raise TokenError(f"{folder} is not a token store: it has no store.json", HINT)
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header["version"]
        if version not in READABLE_VERSIONS:
            raise TokenError(
                f"{folder} has token-store version {version}; this release reads up to {STORE_VERSION}",
                "update xcodec-lm, or tokenize again",
            )
        TokenSpec.from_dict(header["spec"])
        np.dtype(header["dtype"])
    except TokenError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TokenError(f"{path} cannot be read: {type(error).__name__}: {error}", HINT) from None
    return header


def read_entries(path: Path) -> Iterator[Entry]:
    """The lines of a rows file, one at a time. A last line that a kill cut off is left out.

    Raises:
        TokenError: a line is damaged.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                data = json.loads(line)
                frames, shard, start = data["frames"], data["shard"], data["start"]
                index = data.get("index", number - 1)
                whole = type(frames) is type(shard) is type(start) is type(index) is int
                if not whole or frames < 1 or shard < 0 or start < 0 or index < 0 or "id" not in data["row"]:
                    raise ValueError("not the row of a store")
            except (ValueError, KeyError, TypeError) as error:
                raise TokenError(f"{path} line {number} is damaged: {error}", "tokenize into a new folder") from None
            yield Entry(number, offset, line, frames, shard, start, index, data["row"])
            offset += len(line)


def write_atomic(path: Path, text: str) -> None:
    """Writes a file whole or not at all, also while processes of other machines write the same one."""
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def relative_codec(folder: Path, codec: str | Path) -> str:
    """A codec's folder relative to the store, so that both can move together; names and hub ids stay as they are."""
    return os.path.relpath(Path(codec).resolve(), folder.resolve()) if Path(codec).exists() else str(codec)


def resolve_codec(folder: Path, codec: str | None) -> str | None:
    """The codec that a header names, as something that can be loaded from here."""
    if codec is None:
        return None
    path = folder.resolve() / codec
    return str(path.resolve()) if path.exists() else codec
