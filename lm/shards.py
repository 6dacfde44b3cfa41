"""Token store: the codes of a corpus on disk, memory-mapped, resumable, bound to the codec that made them.

A store holds all quantizers; layouts are applied on reading. Codes of several tracks lie side by side, track-major: Q
then means M*Q. `xcodec_lm.lm.shard_files` says which files there are, `xcodec_lm.lm.shard_writer` writes them.
Opening costs the same for ten recordings and for a million, and reading needs no memory but the pages being read.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm import shard_files as files
from xcodec_lm.lm.shard_index import OTHER_SPLIT, SPLITS, Index, load_index, read_row
from xcodec_lm.lm.shard_writer import StoreWriter

__all__ = ["JoinedStore", "Rows", "StoreWriter", "TokenStore", "check_same_codec", "open_stores"]

MOST_MAPS = 256
"""Files mapped at once; every map holds a file handle, of which a process has about a thousand."""
RELEASE_BYTES = 32 << 20
LEAST_READ = 256 << 10
"""A page fault brings in its neighbours, too: on Linux this much, as measured."""


class Maps:
    """Files mapped into memory when they are first read, and their pages given back while reading goes on.

    Pages that were read count as the process's memory until they are released; the operating system keeps them cached
    all the same, so releasing costs next to nothing.
    """

    def __init__(self):
        self._maps: dict[Path, mmap.mmap] = {}
        self._read = 0

    def get(self, path: Path, reading: int) -> mmap.mmap:
        """The bytes of a file, of which `reading` are about to be read."""
        if path not in self._maps:
            if len(self._maps) >= MOST_MAPS:
                self._maps.pop(next(iter(self._maps)))  # arrays that still use it keep it open
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._read += max(reading, LEAST_READ)
        if self._read > RELEASE_BYTES:
            self._read = 0
            for held in self._maps.values():
                if hasattr(mmap, "MADV_DONTNEED"):
                    held.madvise(mmap.MADV_DONTNEED)
        return self._maps[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"_maps": {}, "_read": 0}  # a map cannot go to another process; it is made there anew


class Rows(Sequence[dict[str, Any]]):
    """Manifest rows with `frames` added, each read from disk when it is asked for."""

    def __init__(self, folder: Path, index: Index, maps: Maps):
        self._folder, self._index, self._maps = folder, index, maps

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        source, offset, size = (int(self._index.columns[name][index]) for name in ("source", "offset", "size"))
        path = files.rows_path(self._folder, self._index.sources[source])
        try:
            return read_row(self._maps.get(path, size)[offset : offset + size])
        except (ValueError, KeyError, TypeError, OSError):
            raise TokenError(f"{path} has changed while it was being read", "open the store again") from None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))


class TokenStore:
    """A store opened for reading; `TokenStore.open(folder)`.

    Attributes:
        folder: where it lies.
        spec: the codec that made it.
        rows: one a recording: its manifest row, and "frames"; read when used.
        lengths: (N,) int64 frames of every recording.
        codec: path or name of the codec's folder as the writer knew it, or None.
    """

    def __init__(self, folder: Path, header: dict[str, Any], index: Index):
        self.folder = folder
        self.spec = TokenSpec.from_dict(header["spec"])
        self.dtype = np.dtype(header["dtype"])
        self.codec = files.resolve_codec(folder, header.get("codec"))
        self.index = index
        self.lengths: np.ndarray = index.columns["frames"]
        self._maps = Maps()
        self.rows = Rows(folder, index, self._maps)
        self._paths = [files.shard_path(folder, rank, number) for rank, number, _ in index.shards]

    @staticmethod
    def open(folder: str | Path) -> TokenStore:
        """Opens a store.

        Raises:
            TokenError: not a store, of an unknown version, or a file of it is missing, cut off or unreadable.
        """
        folder = Path(folder)
        header = files.read_header(folder)
        store = TokenStore(folder, header, load_index(folder))
        for path, (rank, _, frames) in zip(store._paths, store.index.shards, strict=True):
            size = frames * files.columns_of(store.spec) * store.dtype.itemsize
            held = path.stat().st_size if path.is_file() else 0
            if held < size:
                rows = files.rows_path(folder, rank).name
                raise TokenError(f"{path} is damaged: it has {held} bytes, but {rows} names {size}", files.AGAIN)
        return store

    def __len__(self) -> int:
        return len(self.index)

    def codes(self, index: int) -> np.ndarray:
        """Codes of one recording, (T, Q) unsigned or int32, a view of the file that is read when used."""
        columns = self.index.columns
        return self.frames(int(columns["shard"][index]), int(columns["start"][index]), int(columns["frames"][index]))

    def frames(self, shard: int, start: int, count: int) -> np.ndarray:
        """`count` frames of a file of codes, (count, Q), whatever recordings they belong to.

        Args:
            shard: place in `index.shards`.
            start: first frame.
            count: frames.
        """
        wide = files.columns_of(self.spec)
        size = self.dtype.itemsize * wide
        data = self._maps.get(self._paths[shard], count * size)
        return np.frombuffer(data, self.dtype, count * wide, start * size).reshape(count, wide)

    def split(self, name: str) -> list[int]:
        """Indices of the recordings of a split; a row without `split` belongs to train."""
        known = self.index.columns["split"]
        if name in SPLITS:
            return np.flatnonzero(known == SPLITS.index(name)).tolist()
        return [i for i in np.flatnonzero(known == OTHER_SPLIT).tolist() if self.rows[i]["split"] == name]

    def digest(self) -> str:
        """Hash of codec, rows and lengths in their order; the same however many processes wrote the store."""
        spec = self.spec
        digest = hashlib.sha256(repr((spec.fingerprint, spec.codebook_sizes, spec.tracks)).encode())
        for name in ("row_key", "frames"):
            digest.update(np.ascontiguousarray(self.index.columns[name]).data)
        return digest.hexdigest()


class JoinedStore:
    """Several stores of one codec, read as one: the recordings of the first, then those of the second, and so on.

    Attributes:
        stores: what it joins.
        folder: that of the first store.
        spec: the codec that made them all.
        rows: of all, one after the other.
        lengths: (N,) int64 frames of every recording.
        codec: path or name of the codec, of the first store that knows it.

    Raises:
        TokenError: different codecs or numbers of quantizers, or one id in two stores.
    """

    def __init__(self, stores: Sequence[TokenStore]):
        check_same_codec(stores)
        self.stores = list(stores)
        self.folder, self.spec = stores[0].folder, stores[0].spec
        self.codec = next((store.codec for store in stores if store.codec is not None), None)
        self.lengths = np.concatenate([store.lengths for store in stores])
        self._firsts = np.cumsum([0, *map(len, stores)])
        self.rows = _JoinedRows(self)
        keys = np.concatenate([store.index.columns["id_key"] for store in stores])
        order = np.argsort(keys, kind="stable")
        for place in np.flatnonzero(np.diff(keys[order]) == 0)[:1]:
            one, other = (self.locate(int(order[place + step])) for step in (0, 1))
            raise TokenError(
                f"id {one[0].rows[one[1]]['id']!r} is in {one[0].folder} and in {other[0].folder}",
                "a recording would count twice; name each store once, and give recordings ids of their own",
            )

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def locate(self, index: int) -> tuple[TokenStore, int]:
        """The store of a recording, and its index there."""
        index = range(len(self))[index]
        place = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.stores[place], index - int(self._firsts[place])

    def codes(self, index: int) -> np.ndarray:
        """Codes of one recording, (T, Q), a view as of `TokenStore.codes`."""
        store, place = self.locate(index)
        return store.codes(place)

    def split(self, name: str) -> list[int]:
        """Indices of the recordings of a split."""
        return [
            int(first) + i for first, store in zip(self._firsts, self.stores, strict=False) for i in store.split(name)
        ]

    def digest(self) -> str:
        """Hash of what `TokenStore.digest` hashes, of all stores in their order."""
        return hashlib.sha256("".join(store.digest() for store in self.stores).encode()).hexdigest()


class _JoinedRows(Sequence[dict[str, Any]]):
    def __init__(self, joined: JoinedStore):
        self._joined = joined

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        store, place = self._joined.locate(index)
        return store.rows[place]


def open_stores(folders: str | Path | Sequence[str | Path]) -> TokenStore | JoinedStore:
    """One store, or several as one.

    Raises:
        TokenError: none is given, one cannot be opened, or they do not fit together.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    if not folders:
        raise TokenError("no token store is given", files.HINT)
    stores = [TokenStore.open(folder) for folder in folders]
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def check_same_codec(stores: Sequence[TokenStore]) -> None:
    """Refuses stores whose tokens do not mean the same.

    Raises:
        TokenError: another codec, another number of quantizers or other tracks; names the first two that differ.
    """
    for store in stores[1:]:
        first, other = stores[0].spec, store.spec
        if first.fingerprint != other.fingerprint:
            raise TokenError(
                f"{store.folder} was made by another codec than {stores[0].folder}: {other.name} "
                f"({other.fingerprint[:12]}) and {first.name} ({first.fingerprint[:12]})",
                "give stores of one codec: tokenize the recordings of one of them again with the codec of the other",
            )
        if (first.codebook_sizes, first.tracks) != (other.codebook_sizes, other.tracks):
            raise TokenError(
                f"{store.folder} holds {other.n_q} quantizers and {len(other.tracks)} tracks, but {stores[0].folder} "
                f"{first.n_q} and {len(first.tracks)} of the same codec",
                "tokenize one of them again with the same --n-q",
            )
