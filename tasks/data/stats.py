"""What a token store holds: hours, recordings, tokens, and how much each codebook says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.codec.runtime.progress import Progress
from xcodec_lm.configs.errors import TokenError
from xcodec_lm.lm import shard_files as files
from xcodec_lm.lm.shard_index import OTHER_SPLIT, SPLITS
from xcodec_lm.lm.shards import TokenStore
from xcodec_lm.tasks.eval.codebook import entropy_bits

BLOCK_FRAMES = 1 << 17
"""Frames counted at once: some megabytes."""


@dataclass(frozen=True)
class Book:
    """How one codebook is used.

    Attributes:
        track: name of its track.
        number: of the quantizer, from 0.
        size: codes it has.
        used: codes that occur.
        entropy_bits: of the distribution of its codes over all frames; at most log2(size).
    """

    track: str
    number: int
    size: int
    used: int
    entropy_bits: float

    @property
    def perplexity(self) -> float:
        """The number of equally frequent codes that would say as much."""
        return 2**self.entropy_bits


@dataclass(frozen=True)
class Part:
    """What one split, or the whole store, holds.

    Attributes:
        recordings: how many.
        frames: of all of them.
        tokens: frames times quantizers times tracks.
        hours: of audio; a recording's last frame counts whole.
    """

    recordings: int
    frames: int
    tokens: int
    hours: float


@dataclass(frozen=True)
class Stats:
    """What a store holds.

    Attributes:
        folder: the store.
        codec: its name.
        fingerprint: of the codec.
        total: everything.
        splits: by name.
        books: one a quantizer, in the order of the columns.
        entropy_bits_per_s: sum over the codebooks of a frame, times frames per second; an upper bound of what a model
            that ignores all context needs.
        longest_s: the longest recording.
        doubles: recordings whose codes repeat those of an earlier one.
        doubles_across: of them, those whose twin is in another split.
        examples: ids of some such pairs.
        failed: recordings that the last run could not encode.
    """

    folder: str
    codec: str
    fingerprint: str
    total: Part
    splits: dict[str, Part]
    books: list[Book]
    entropy_bits_per_s: float
    longest_s: float
    doubles: int
    doubles_across: int
    examples: list[tuple[str, str]]
    failed: int


def stats(folder: str | Path) -> Stats:
    """Reads a store once, from front to back; memory does not grow with it, but for 8 bytes a recording.

    Raises:
        TokenError: the store cannot be opened, is empty, or holds codes that its codec does not have.
    """
    store = TokenStore.open(folder)
    if not len(store):
        raise TokenError(f"{folder} holds no recordings", "encode some with xcodec-lm data tokenize")
    spec = store.spec
    sizes = np.array(spec.codebook_sizes * len(spec.tracks))
    counts, keys = _count(store, sizes)
    entropies = [entropy_bits(count) for count in counts]
    books = [
        Book(spec.tracks[place // spec.n_q], place % spec.n_q, len(count), int((count > 0).sum()), bits)
        for place, (count, bits) in enumerate(zip(counts, entropies, strict=True))
    ]
    names, rate = _split_names(store), float(spec.frame_rate)

    def part(lengths: np.ndarray) -> Part:
        frames = int(lengths.sum())
        return Part(len(lengths), frames, frames * len(sizes), frames / rate / 3600)

    splits = {name: part(store.lengths[names == name]) for name in sorted(set(names.tolist()))}
    first, second = _doubles(keys)
    return Stats(
        str(folder),
        spec.name,
        spec.fingerprint,
        part(store.lengths),
        splits,
        books,
        sum(entropies) * rate,
        float(store.lengths.max()) / rate,
        len(second),
        int((names[first] != names[second]).sum()),
        [(str(store.rows[a]["id"]), str(store.rows[b]["id"])) for a, b in zip(first[:3], second[:3], strict=True)],
        sum(_lines(files.failed_path(store.folder, rank)) for rank in files.ranks(store.folder, "failed")),
    )


def as_dict(found: Stats) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        **vars(found),
        "total": vars(found.total),
        "splits": {name: vars(part) for name, part in found.splits.items()},
        "books": [vars(book) | {"perplexity": book.perplexity, "share": book.used / book.size} for book in found.books],
    }


def as_text(found: Stats) -> str:
    """Tables for people."""
    lines = [f"{found.folder}: codec {found.codec}, fingerprint {found.fingerprint[:12]}", ""]
    lines.append(f"{'split':<8}{'recordings':>12}{'hours':>12}{'frames':>16}{'tokens':>18}")
    for name, part in [*found.splits.items(), ("all", found.total)]:
        lines.append(f"{name:<8}{part.recordings:>12,}{part.hours:>12.3f}{part.frames:>16,}{part.tokens:>18,}")
    lines += ["", f"{'codebook':<12}{'codes':>8}{'used':>8}{'bits':>8}{'of':>8}{'perplexity':>12}"]
    for book in found.books:
        name = str(book.number) if len({b.track for b in found.books}) == 1 else f"{book.track} {book.number}"
        lines.append(
            f"{name:<12}{book.size:>8,}{book.used / book.size:>8.1%}{book.entropy_bits:>8.3f}"
            f"{np.log2(book.size):>8.3f}{book.perplexity:>12.1f}"
        )
    lines += ["", f"entropy {found.entropy_bits_per_s:.1f} bits per second; longest recording {found.longest_s:.1f} s"]
    if found.doubles:
        pairs = ", ".join(f"{one} = {other}" for one, other in found.examples)
        lines.append(
            f"{found.doubles} recordings have the codes of an earlier one, {found.doubles_across} of them in another "
            f"split, such as {pairs}"
        )
    if found.failed:
        lines.append(f"{found.failed} recordings could not be encoded; failed*.jsonl in the store lists them")
    return "\n".join(lines)


def _count(store: TokenStore, sizes: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """How often every code occurs, by column; and a hash (N,) of each recording's codes."""
    counts = [np.zeros(size, np.int64) for size in sizes]
    keys = np.zeros(len(store), np.int64)
    done = 0
    with Progress("stats", 2 * int(store.lengths.sum())) as progress:  # once for counts, once for hashes
        for index, codes in _blocks(store):
            high = codes.max(axis=0)
            if (high >= sizes).any() or codes.min() < 0:
                row = store.rows[index]
                raise TokenError(
                    f"{store.folder}: codes at or after {row['id']!r} reach {int(high.max())}, which its codec has not",
                    "a shard is damaged; tokenize into a new folder",
                )
            for column, count in enumerate(counts):
                count += np.bincount(codes[:, column], minlength=len(count))
            done += len(codes)
            progress.update(done)
        for index in np.lexsort((store.index.columns["start"], store.index.columns["shard"])).tolist():
            digest = hashlib.blake2b(store.codes(index).data, digest_size=8).digest()
            keys[index] = int.from_bytes(digest, "big", signed=True)
            done += int(store.lengths[index])
            progress.update(done)
    return counts, keys


def _blocks(store: TokenStore) -> Iterator[tuple[int, np.ndarray]]:
    """All frames that rows name, in the order of the disk, each block with the index of its first recording.

    Neighbours are counted together: a call for each of a million short recordings would take minutes.
    """
    columns = store.index.columns
    order = np.lexsort((columns["start"], columns["shard"]))
    shard, start = columns["shard"][order], columns["start"][order]
    stop = start + columns["frames"][order]
    fresh = np.flatnonzero((shard[1:] != shard[:-1]) | (start[1:] != stop[:-1])) + 1
    for first, last in zip([0, *fresh], [*fresh, len(order)], strict=True):
        for begin in range(int(start[first]), int(stop[last - 1]), BLOCK_FRAMES):
            count = min(BLOCK_FRAMES, int(stop[last - 1]) - begin)
            here = first + int(np.searchsorted(stop[first:last], begin, side="right"))
            yield int(order[here]), store.frames(int(shard[first]), begin, count)


def _split_names(store: TokenStore) -> np.ndarray:
    """Split of every recording (N,)."""
    names = np.array([*SPLITS, ""], dtype=object)[store.index.columns["split"]]
    for index in np.flatnonzero(store.index.columns["split"] == OTHER_SPLIT).tolist():
        names[index] = str(store.rows[index]["split"])
    return names


def _doubles(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of recordings that others repeat, and of those that repeat them."""
    order = np.argsort(keys, kind="stable")  # the earlier recording first
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    return order[same], order[same + 1]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")
