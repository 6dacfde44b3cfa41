"""Token store: the codes of a corpus on disk, memory-mapped, resumable, bound to the codec that made them.

    store.json          version, spec of the codec, dtype of the codes, where the codec was
    shard-NNNNN.bin     raw little-endian codes (T, Q), one recording after another
    rows.jsonl          one line a recording: manifest row, frames, shard, first frame within the shard
    failed.jsonl        recordings that could not be encoded, with the reason; absent when there are none

A store holds all quantizers; layouts are applied on reading. A recording's codes are handed to the operating system
before the line that names them, so whatever moment a writer is killed at, every named recording is whole.
Codes of several tracks lie side by side, track-major: Q then means M*Q.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, XcodecLMError

STORE_VERSION = 1
_HINT = "make a store with xcodec-lm data tokenize"


class TokenStore:
    """A store opened for reading; `TokenStore.open(folder)`.

    Attributes:
        folder: where it lies.
        spec: the codec that made it.
        rows: one a recording: its manifest row, and "frames".
        codec: path or name of the codec's folder as the writer knew it, or None.
    """

    def __init__(self, folder: Path, header: dict[str, Any], entries: list[dict[str, Any]]):
        self.folder = folder
        self.spec = TokenSpec.from_dict(header["spec"])
        self.dtype = np.dtype(header["dtype"])
        self.codec = _resolve_codec(folder, header.get("codec"))
        self.rows: list[dict[str, Any]] = [{**entry["row"], "frames": entry["frames"]} for entry in entries]
        self._places = [(int(entry["shard"]), int(entry["start"]), int(entry["frames"])) for entry in entries]
        self._maps: dict[int, np.ndarray] = {}

    @staticmethod
    def open(folder: str | Path) -> TokenStore:
        """Opens a store.

        Raises:
            TokenError: not a store, of an unknown version, or a file of it is missing, cut off or unreadable.
        """
        folder = Path(folder)
        header = _read_header(folder)
        entries, _ = _read_entries(folder)
        store = TokenStore(folder, header, entries)
        needed: dict[int, int] = {}
        for shard, start, frames in store._places:
            needed[shard] = max(needed.get(shard, 0), start + frames)
        for shard, frames in needed.items():
            path, size = _shard(folder, shard), frames * _columns(store.spec) * store.dtype.itemsize
            held = path.stat().st_size if path.is_file() else 0
            if held < size:
                raise TokenError(
                    f"{path} is damaged: it has {held} bytes, but rows.jsonl names {size}",
                    "run the same data tokenize command again; it encodes what is missing",
                )
        return store

    def __len__(self) -> int:
        return len(self.rows)

    def codes(self, index: int) -> np.ndarray:
        """Codes of one recording, (T, Q) unsigned or int32, a view of the file that is read when used."""
        shard, start, frames = self._places[index]
        if shard not in self._maps:
            flat = np.memmap(_shard(self.folder, shard), dtype=self.dtype, mode="r")
            columns = _columns(self.spec)
            self._maps[shard] = flat[: len(flat) // columns * columns].reshape(-1, columns)
        return self._maps[shard][start : start + frames]

    def split(self, name: str) -> list[int]:
        """Indices of the recordings of a split; a row without `split` belongs to train."""
        return [index for index, row in enumerate(self.rows) if (row.get("split") or "train") == name]


class StoreWriter:
    """Writes a store, or goes on with one. Use as a context manager.

    Args:
        folder: the store; made if it does not exist.
        spec: of the codec, with all its quantizers.
        shard_bytes: a shard that would grow beyond this is closed and the next one begun.
        codec: folder or name of the codec, kept so that a language model can find it again.

    Attributes:
        done: ids that are stored.

    Raises:
        TokenError: the folder holds a store of another codec or number of quantizers.
        XcodecLMError: the folder holds something else, or cannot be written.
    """

    def __init__(
        self, folder: str | Path, spec: TokenSpec, shard_bytes: int = 256 << 20, codec: str | Path | None = None
    ):
        self.folder, self.spec, self.shard_bytes = Path(folder), spec, shard_bytes
        self.dtype = np.dtype("<u2" if max(spec.codebook_sizes) <= 65_536 else "<i4")
        self.done: set[str] = set()
        self._number, self._frames = 0, 0
        self._data: BinaryIO | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / "store.json").exists():
                self._resume(codec)
            elif any(self.folder.iterdir()):
                raise XcodecLMError(f"{self.folder} is not empty and not a token store", "choose another --out")
            else:
                header = {"version": STORE_VERSION, "spec": spec.to_dict(), "dtype": self.dtype.str}
                if codec is not None:
                    header["codec"] = _relative_codec(self.folder, codec)
                _write_atomic(self.folder / "store.json", json.dumps(header, indent=1) + "\n")
            (self.folder / "failed.jsonl").unlink(missing_ok=True)  # earlier failures are tried again
            self._rows = (self.folder / "rows.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise XcodecLMError(f"cannot write {self.folder}: {error.strerror}", "choose another --out") from None

    def _resume(self, codec: str | Path | None) -> None:
        header = _read_header(self.folder)
        old = TokenSpec.from_dict(header["spec"])
        self.spec.check_same_codec(old, str(self.folder))
        if (old.codebook_sizes, old.tracks) != (self.spec.codebook_sizes, self.spec.tracks):
            raise TokenError(
                f"{self.folder} holds {old.n_q} quantizers and {len(old.tracks)} tracks of this codec, "
                f"not {self.spec.n_q} and {len(self.spec.tracks)}",
                "choose another --out, or give the same settings to go on with it",
            )
        self.dtype = np.dtype(header["dtype"])
        if codec is not None and header.get("codec") != _relative_codec(self.folder, codec):  # the codec has moved
            header["codec"] = _relative_codec(self.folder, codec)
            _write_atomic(self.folder / "store.json", json.dumps(header, indent=1) + "\n")
        entries, cut = _read_entries(self.folder)
        whole = [entry for entry in entries if self._is_held(entry)]
        if cut or len(whole) < len(entries):  # the machine, not only the process, went down
            _write_atomic(self.folder / "rows.jsonl", "".join(json.dumps(entry) + "\n" for entry in whole))
        ends: dict[int, int] = {}
        for entry in whole:
            ends[entry["shard"]] = max(ends.get(entry["shard"], 0), entry["start"] + entry["frames"])
            self.done.add(str(entry["row"]["id"]))
        for path in self.folder.glob("shard-*.bin"):
            number = int(path.stem.removeprefix("shard-"))
            if number in ends:
                os.truncate(path, ends[number] * self._frame_bytes)  # codes that no row names
            else:
                path.unlink()
        if ends:
            self._number = max(ends)
            self._frames = ends[self._number]

    def _is_held(self, entry: dict[str, Any]) -> bool:
        path = _shard(self.folder, entry["shard"])
        return path.is_file() and path.stat().st_size >= (entry["start"] + entry["frames"]) * self._frame_bytes

    @property
    def _frame_bytes(self) -> int:
        return _columns(self.spec) * self.dtype.itemsize

    def add(self, row: dict[str, Any], codes: np.ndarray) -> None:
        """Stores one recording.

        Args:
            row: its manifest row; `id` is required and unique within the store.
            codes: (T, Q) integers, every column within its codebook.

        Raises:
            TokenError: no id, an id that is stored already, a wrong shape, or a code out of range.
            XcodecLMError: the disk cannot take it.
        """
        name, codes = _row_id(row), np.asarray(codes)
        if name in self.done:
            raise TokenError(
                f"{self.folder}: id {name!r} is stored already", "give every manifest row an id of its own"
            )
        columns = _columns(self.spec)
        if codes.ndim != 2 or codes.shape[1] != columns or not len(codes) or codes.dtype.kind not in "iu":
            raise TokenError(f"{name}: codes must be integers (T, {columns}), got {codes.dtype} {codes.shape}")
        sizes = np.array(self.spec.codebook_sizes * len(self.spec.tracks))
        if ((codes < 0) | (codes >= sizes)).any():
            raise TokenError(f"{name}: codes lie outside their codebooks of {self.spec.codebook_sizes} codes")
        if self._frames and (self._frames + len(codes)) * self._frame_bytes > self.shard_bytes:
            self._close_shard()
            self._number, self._frames = self._number + 1, 0
        try:
            if self._data is None:
                self._data = _shard(self.folder, self._number).open("ab")
            self._data.write(np.ascontiguousarray(codes, dtype=self.dtype).tobytes())
            self._data.flush()
            entry = {"frames": len(codes), "shard": self._number, "start": self._frames, "row": row}
            self._rows.write(json.dumps(entry) + "\n")
            self._rows.flush()
        except OSError as error:
            raise XcodecLMError(
                f"cannot write {self.folder}: {error.strerror}", "free disk space and run it again"
            ) from None
        self._frames += len(codes)
        self.done.add(name)

    def fail(self, row: dict[str, Any], reason: str) -> None:
        """Notes a recording that could not be encoded; a later run tries it again."""
        with (self.folder / "failed.jsonl").open("a", encoding="utf-8") as file:
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


def _columns(spec: TokenSpec) -> int:
    return spec.n_q * len(spec.tracks)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.bin"


def _row_id(row: dict[str, Any]) -> str:
    if row.get("id") in (None, ""):
        raise TokenError(f"a manifest row has no id: {json.dumps(row)[:120]}", "give every row a unique `id`")
    return str(row["id"])


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    if not path.is_file():
        raise TokenError(f"{folder} is not a token store: it has no store.json", _HINT)
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version = header["version"]
        if version != STORE_VERSION:
            raise TokenError(
                f"{folder} has token-store version {version}; this release reads {STORE_VERSION}",
                "update xcodec-lm, or tokenize again",
            )
        TokenSpec.from_dict(header["spec"])
        np.dtype(header["dtype"])
    except TokenError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TokenError(f"{path} cannot be read: {type(error).__name__}: {error}", _HINT) from None
    return header


def _read_entries(folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of rows.jsonl, and whether the last one was cut off by a kill (it is left out)."""
    path = folder / "rows.jsonl"
    if not path.is_file():
        return [], False
    lines = path.read_text(encoding="utf-8").split("\n")
    cut = lines.pop() != ""  # a whole file ends with a line feed
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if "id" not in entry["row"] or min(entry["frames"] - 1, entry["shard"], entry["start"]) < 0:
                raise ValueError("not the row of a store")
        except (ValueError, KeyError, TypeError) as error:
            raise TokenError(f"{path} line {number} is damaged: {error}", "tokenize into a new folder") from None
        entries.append(entry)
    return entries, cut


def _write_atomic(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _relative_codec(folder: Path, codec: str | Path) -> str:
    """A codec's folder relative to the store, so that both can move together; names and hub ids stay as they are."""
    return os.path.relpath(Path(codec).resolve(), folder.resolve()) if Path(codec).exists() else str(codec)


def _resolve_codec(folder: Path, codec: str | None) -> str | None:
    if codec is None:
        return None
    path = folder.resolve() / codec
    return str(path.resolve()) if path.exists() else codec
