"""The index of a token store: where every recording lies, as columns of numbers that need no parsing.

A store of a million recordings has hundreds of megabytes of rows. They are read once, when the store is first opened
after a change; from then on opening maps the columns, and a row's JSON is read when somebody asks for that row. The
file's name carries a stamp of the rows files (name, size, time of change), so an index that has become old is not
found rather than wrongly used. Small stores have none: reading their rows takes no time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm import shard_files as files

FORMAT = "1"
SAVED_FROM = 2_000
"""Recordings from which on the index is kept in a file."""
SPLITS = ("train", "dev", "test")
OTHER_SPLIT = -1
COLUMNS = ("shard", "start", "frames", "source", "offset", "size", "split", "id_key", "row_key")


@dataclass(frozen=True)
class Index:
    """Columns (N,) int64, one value a recording, in the order of the manifest whoever encoded what.

    Attributes:
        shards: rank, number and needed frames of each file of codes.
        sources: rank of each rows file.
        columns: by name: `shard` (place in `shards`), `start` (first frame in it), `frames`, `source` (place in
            `sources`), `offset` and `size` of its line in bytes, `split` (place in `SPLITS`, or `OTHER_SPLIT`),
            `id_key` and `row_key` (hashes of the id and of the whole manifest row).
    """

    shards: list[list[int]]
    sources: list[int]
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["frames"])


def load_index(folder: Path) -> Index:
    """The index of a store, from its file if that is up to date.

    Raises:
        TokenError: a row is damaged, two rows claim the same id, or the same codes.
    """
    stamps = [(rank, files.rows_path(folder, rank).stat()) for rank in files.ranks(folder)]
    facts = [FORMAT, *((rank, stat.st_size, stat.st_mtime_ns) for rank, stat in stamps)]
    path = folder / f"index-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.safetensors"
    with contextlib.suppress(FileNotFoundError, SafetensorError, OSError, KeyError, ValueError):
        return _read(path)
    index = build_index(folder, [rank for rank, _ in stamps])
    if len(index) >= SAVED_FROM:
        _save(index, path)
    return index


def build_index(folder: Path, sources: list[int]) -> Index:
    """The index made from the rows files of the processes `sources`."""
    numbers = array("q")  # a row of them a recording
    shards: dict[tuple[int, int], list[int]] = {}
    for source, rank in enumerate(sources):
        for entry in files.read_entries(files.rows_path(folder, rank)):
            shard = shards.setdefault((rank, entry.shard), [len(shards), 0])
            shard[1] = max(shard[1], entry.stop)
            split = entry.row.get("split") or "train"
            values = (
                shard[0],
                entry.start,
                entry.frames,
                source,
                entry.offset,
                len(entry.text),
                SPLITS.index(split) if split in SPLITS else OTHER_SPLIT,
                _key(str(entry.row["id"]).encode(errors="replace")),
                _key(entry.text.partition(b'"row": ')[2]),  # the last key of a line, so the row and nothing else
                entry.index,
            )
            numbers.extend(values)
    names = (*COLUMNS, "index")
    table = np.frombuffer(numbers, np.int64) if len(numbers) else np.zeros(0, np.int64)
    columns = dict(zip(names, table.reshape(-1, len(names)).T, strict=True))
    order = np.lexsort((columns["id_key"], columns.pop("index")))  # ties come from manifests tokenized one by one
    index = Index(
        [[*place, needed] for place, (_, needed) in shards.items()],
        sources,
        {name: column[order] for name, column in columns.items()},
    )
    _check(folder, index)
    return index


def read_row(line: bytes) -> dict[str, Any]:
    """The manifest row of a line of a rows file, and its `frames`."""
    data = json.loads(line)
    return {**data["row"], "frames": data["frames"]}


def _key(text: bytes) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def _check(folder: Path, index: Index) -> None:
    """Refuses recordings that are stored twice, and codes that two recordings claim."""
    columns = index.columns
    order = np.argsort(columns["id_key"], kind="stable")
    twice = np.flatnonzero(np.diff(columns["id_key"][order]) == 0)
    for place in twice[:1]:
        name, first, second = (
            _line_of(folder, index, int(which)) for which in (order[place], order[place], order[place + 1])
        )
        raise TokenError(
            f"{folder}: {len(twice)} recordings are stored twice, such as {name[0]!r} in {first[1]} and {second[1]}",
            "processes of different --world, or of different manifests, wrote it; run the data tokenize command of "
            "the higher rank again: it drops what a lower rank holds",
        )
    order = np.lexsort((columns["start"], columns["shard"]))
    shard, start = columns["shard"][order], columns["start"][order]
    ends = start + columns["frames"][order]
    for place in np.flatnonzero((shard[1:] == shard[:-1]) & (start[1:] < ends[:-1]))[:1]:
        first, second = (_line_of(folder, index, int(order[place + step])) for step in (0, 1))
        raise TokenError(
            f"{folder} is damaged: {first[0]!r} in {first[1]} and {second[0]!r} in {second[1]} name the same codes",
            "tokenize into a new folder",
        )


def _line_of(folder: Path, index: Index, place: int) -> tuple[str, str]:
    """Id of a recording, and the name of its rows file."""
    path = files.rows_path(folder, index.sources[index.columns["source"][place]])
    with path.open("rb") as file:
        file.seek(int(index.columns["offset"][place]))
        return str(read_row(file.read(int(index.columns["size"][place])))["id"]), path.name


def _read(path: Path) -> Index:
    with safe_open(path, framework="pt") as file:  # maps the file
        facts = json.loads(file.metadata()["facts"])
        columns = {name: file.get_tensor(name).numpy() for name in COLUMNS}
    return Index(facts["shards"], facts["sources"], columns)


def _save(index: Index, path: Path) -> None:
    temporary = path.with_name(f"{files.TEMPORARY}{uuid.uuid4().hex}")
    facts = json.dumps({"shards": index.shards, "sources": index.sources})
    try:
        try:
            save_file({k: torch.from_numpy(v) for k, v in index.columns.items()}, temporary, metadata={"facts": facts})
            temporary.chmod(0o644)
            for old in path.parent.glob("index-*.safetensors"):
                old.unlink(missing_ok=True)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        say(f"{path.parent}: its index cannot be kept ({error}), so every opening reads all rows")
