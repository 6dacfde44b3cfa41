"""Writing a token store: by one process or by many, on one machine or on several, each killed at any moment.

A recording's codes are handed to the operating system before the line that names them, so whatever moment a writer is
killed at, every named recording is whole. Processes share no file: process R writes `rows-RRRRR.jsonl` and shards of
its own, and reads the others' rows only to know what is stored already.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.lm import shard_files as files


class StoreWriter:
    """Writes a store, or goes on with one. Use as a context manager.

    Args:
        folder: the store; made if it does not exist.
        spec: of the codec, with all its quantizers.
        shard_bytes: a shard that would grow beyond this is closed and the next one begun.
        codec: folder or name of the codec, kept so that a language model can find it again.
        rank: which of the processes this is, 0..world - 1.
        world: processes that write the store together; another number may go on with it.

    Attributes:
        done: ids that are stored, by any process.

    Raises:
        UsageError: the rank is none of the world's.
        TokenError: the folder holds a store of another codec or number of quantizers.
        XcodecLMError: the folder holds something else, cannot be written, or another process writes this rank's files.
    """

    def __init__(
        self,
        folder: str | Path,
        spec: TokenSpec,
        shard_bytes: int = 256 << 20,
        codec: str | Path | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        if not 0 <= rank < world <= 100_000:
            raise UsageError(f"rank {rank} is none of a world of {world}", "ranks count from 0 to world - 1")
        self.folder, self.spec, self.shard_bytes = Path(folder), spec, shard_bytes
        self.rank, self.world = rank, world
        self.dtype = np.dtype("<u2" if max(spec.codebook_sizes) <= 65_536 else "<i4")
        self.done: set[str] = set()
        self._number, self._frames, self._next_index = 0, 0, 0
        self._data: BinaryIO | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The header is the first file of a store: where there are others of ours, it is there by then.
            strangers = [name for name in os.listdir(self.folder) if not name.startswith(files.TEMPORARY)]
            if (self.folder / "store.json").exists():
                self._check_header(codec)
            elif strangers:
                raise XcodecLMError(f"{self.folder} is not empty and not a token store", "choose another --out")
            else:
                header = {"version": files.STORE_VERSION, "spec": spec.to_dict(), "dtype": self.dtype.str}
                if codec is not None:
                    header["codec"] = files.relative_codec(self.folder, codec)
                files.write_atomic(self.folder / "store.json", json.dumps(header, indent=1) + "\n")
            self._rows = self._claim(rank)
            self._resume()
            for other in files.ranks(self.folder, "failed"):  # earlier failures are tried again
                if self._owns(other):
                    files.failed_path(self.folder, other).unlink(missing_ok=True)
        except OSError as error:
            raise XcodecLMError(f"cannot write {self.folder}: {error.strerror}", "choose another --out") from None

    def _check_header(self, codec: str | Path | None) -> None:
        header = files.read_header(self.folder)
        old = TokenSpec.from_dict(header["spec"])
        self.spec.check_same_codec(old, str(self.folder))
        if (old.codebook_sizes, old.tracks) != (self.spec.codebook_sizes, self.spec.tracks):
            raise TokenError(
                f"{self.folder} holds {old.n_q} quantizers and {len(old.tracks)} tracks of this codec, "
                f"not {self.spec.n_q} and {len(self.spec.tracks)}",
                "choose another --out, or give the same settings to go on with it",
            )
        self.dtype = np.dtype(header["dtype"])
        new = header | {"version": files.STORE_VERSION}
        if codec is not None:
            new["codec"] = files.relative_codec(self.folder, codec)  # the codec may have moved
        if new != header:
            files.write_atomic(self.folder / "store.json", json.dumps(new, indent=1) + "\n")

    def _owns(self, rank: int) -> bool:
        """Whether this process looks after the files of a rank: its own, and process 0 those that nobody writes now."""
        return rank == self.rank or (self.rank == 0 and rank >= self.world)

    def _claim(self, rank: int) -> TextIO:
        """The rows file of a rank, locked as long as it is open, against a second process of that rank."""
        file = files.rows_path(self.folder, rank).open("a", encoding="utf-8")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise XcodecLMError(
                f"another process is writing {files.rows_path(self.folder, rank)}",
                "wait until it has ended, or give every process a --rank of its own",
            ) from None
        except (ImportError, OSError):
            pass  # a system or a network drive without locks
        return file

    def _resume(self) -> None:
        """Learns what is stored and mends the files that this process looks after.

        What two processes have stored belongs to the lower rank, a rule that needs no agreement.
        """
        for rank in files.ranks(self.folder):
            path, sizes = files.rows_path(self.folder, rank), dict[int, int]()
            whole, ends, end = [], dict[int, int](), 0
            for entry in files.read_entries(path):
                name, shard, end = str(entry.row["id"]), entry.shard, entry.offset + len(entry.text)
                if shard not in sizes:
                    sizes[shard] = _size_of(files.shard_path(self.folder, rank, shard))
                kept = entry.stop * self._frame_bytes <= sizes[shard] and name not in self.done
                whole.append(kept)
                if kept:
                    ends[shard] = max(ends.get(shard, 0), entry.stop)
                    self.done.add(name)
                    self._next_index = max(self._next_index, entry.index + 1)
            if self._owns(rank):
                self._mend(rank, whole, ends, cut=_size_of(path) > end)

    def _mend(self, rank: int, whole: list[bool], ends: dict[int, int], cut: bool) -> None:
        """Drops lines without codes, codes without a line, and a line cut off: the machine went down, or a kill."""
        path = files.rows_path(self.folder, rank)
        lock = None if rank == self.rank else self._claim(rank)
        if cut or not all(whole):
            with path.open("rb") as file:
                kept = [line for line, keep in zip(file, whole, strict=False) if keep]
            files.write_atomic(path, b"".join(kept).decode())
            if rank == self.rank:  # the lock went with the old file
                self._rows.close()
                self._rows = self._claim(rank)
        for number in files.shard_numbers(self.folder, rank):
            shard = files.shard_path(self.folder, rank, number)
            if number in ends:
                os.truncate(shard, ends[number] * self._frame_bytes)
            else:
                shard.unlink()
        if rank == self.rank and ends:
            self._number = max(ends)
            self._frames = ends[self._number]
        if lock is not None:
            lock.close()

    @property
    def _frame_bytes(self) -> int:
        return files.columns_of(self.spec) * self.dtype.itemsize

    def add(self, row: dict[str, Any], codes: np.ndarray, index: int | None = None) -> None:
        """Stores one recording.

        Args:
            row: its manifest row; `id` is required and unique within the store.
            codes: (T, Q) integers, every column within its codebook.
            index: its place in the manifest, by which readers order recordings; by default after all before it.

        Raises:
            TokenError: no id, an id that is stored already, a wrong shape, or a code out of range.
            XcodecLMError: the disk cannot take it.
        """
        name, codes = _row_id(row), np.asarray(codes)
        if name in self.done:
            raise TokenError(
                f"{self.folder}: id {name!r} is stored already", "give every manifest row an id of its own"
            )
        columns = files.columns_of(self.spec)
        if codes.ndim != 2 or codes.shape[1] != columns or not len(codes) or codes.dtype.kind not in "iu":
            raise TokenError(f"{name}: codes must be integers (T, {columns}), got {codes.dtype} {codes.shape}")
        sizes = np.array(self.spec.codebook_sizes * len(self.spec.tracks))
        if ((codes < 0) | (codes >= sizes)).any():
            raise TokenError(f"{name}: codes lie outside their codebooks of {self.spec.codebook_sizes} codes")
        if self._frames and (self._frames + len(codes)) * self._frame_bytes > self.shard_bytes:
            self._close_shard()
            self._number, self._frames = self._number + 1, 0
        index = self._next_index if index is None else index
        try:
            if self._data is None:
                self._data = files.shard_path(self.folder, self.rank, self._number).open("ab")
            self._data.write(np.ascontiguousarray(codes, dtype=self.dtype).tobytes())
            self._data.flush()
            place = {"frames": len(codes), "shard": self._number, "start": self._frames, "index": index}
            self._rows.write(json.dumps(place | {"row": row}) + "\n")
            self._rows.flush()
        except OSError as error:
            raise XcodecLMError(
                f"cannot write {self.folder}: {error.strerror}", "free disk space and run it again"
            ) from None
        self._frames += len(codes)
        self._next_index = max(self._next_index, index + 1)
        self.done.add(name)

    def fail(self, row: dict[str, Any], reason: str) -> None:
        """Notes a recording that could not be encoded; a later run tries it again."""
        with files.failed_path(self.folder, self.rank).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"id": row.get("id"), "reason": reason, "row": row}) + "\n")

    def close(self) -> None:
        """Ends writing, with everything on the disk itself."""
        self._close_shard()
        if not self._rows.closed:
            os.fsync(self._rows.fileno())
            self._rows.close()

    def _close_shard(self) -> None:
        if self._data is not None:
            os.fsync(self._data.fileno())
            self._data.close()
            self._data = None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _row_id(row: dict[str, Any]) -> str:
    if row.get("id") in (None, ""):
        raise TokenError(f"a manifest row has no id: {json.dumps(row)[:120]}", "give every row a unique `id`")
    return str(row["id"])


def _size_of(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
