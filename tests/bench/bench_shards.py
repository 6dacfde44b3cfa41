"""Opening and reading a large token store: time to open, time of a random window, memory. Run by hand; prints JSON.

    python tests/bench/bench_shards.py [--tokens 1e8] [--recordings 0] [--folder FOLDER] [--reads 10000]

Makes a synthetic store of 8 codebooks of 1024 codes in a temporary folder (2 bytes a token), or uses the one that an
earlier run left in FOLDER. A window is 500 frames, or a whole recording that has fewer. Every measurement runs in a
process of its own, so that none warms another's memory; "cold" asks the system to forget the store's pages first.
Beside the time of the clock stands the processor's, which a busy machine changes less.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.lm.shard_files import STORE_VERSION, shard_path
from xcodec_lm.lm.shards import TokenStore

BOOKS, WINDOW = 8, 500
SHARD_FRAMES = (256 << 20) // (2 * BOOKS)


def make(folder: Path, tokens: int, recordings: int) -> None:
    """A store as `StoreWriter` leaves it, written in large pieces because only reading is measured."""
    rng = np.random.default_rng(0)
    frames = tokens // BOOKS
    spec = TokenSpec("synthetic", 16_000, 16_000, 320, (1024,) * BOOKS, fingerprint="f" * 64)
    header = {"version": STORE_VERSION, "spec": spec.to_dict(), "dtype": "<u2"}
    lengths = rng.multinomial(frames - recordings, rng.dirichlet(np.full(recordings, 4.0))) + 1
    shard = start = 0
    with (folder / "rows.jsonl").open("w") as rows:
        for index, count in enumerate(lengths.tolist()):
            if start and start + count > SHARD_FRAMES:
                write_codes(shard_path(folder, 0, shard), start, rng)
                shard, start = shard + 1, 0
            text = "as many words as a sentence of a few seconds of speech commonly has, give or take"
            row = {"id": f"speaker-{index % 997}/{index:08d}", "audio": f"../audio/{index:08d}.flac", "text": text}
            place = {"frames": count, "shard": shard, "start": start, "index": index}
            rows.write(json.dumps(place | {"row": row | {"duration": count / 50, "split": "train"}}) + "\n")
            start += count
    write_codes(shard_path(folder, 0, shard), start, rng)
    (folder / "store.json").write_text(json.dumps(header))


def write_codes(path: Path, frames: int, rng: np.random.Generator) -> None:
    with path.open("wb") as file:
        for begin in range(0, frames, 1 << 20):
            size = (min(1 << 20, frames - begin), BOOKS)
            file.write(rng.integers(0, 1024, size, dtype=np.uint16).tobytes())
        file.flush()
        os.fsync(file.fileno())


def memory_mb() -> dict[str, float]:
    """Resident memory now, in megabytes: all, and what is not a mapped file."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: round(int(fields[key].split()[0]) / 1024, 1) for name, key in (("rss", "VmRSS"), ("anonymous", "RssAnon"))
    }


def forget(folder: Path) -> None:
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(folder: Path, reads: int, cold: bool) -> dict:
    if cold:
        forget(folder)
    before = memory_mb()
    start, cpu = time.perf_counter(), time.process_time()
    store = TokenStore.open(folder)
    open_s, open_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    opened = memory_mb()
    start = time.perf_counter()
    parsed = len(store.rows[len(store) // 2])
    row_s = time.perf_counter() - start
    rng, total, lengths = np.random.default_rng(1), parsed, store.lengths
    picks = rng.integers(0, len(store), reads).tolist()
    start, cpu = time.perf_counter(), time.process_time()
    for index in picks:
        begin = int(rng.integers(0, max(1, lengths[index] - WINDOW + 1)))
        total += int(store.codes(index)[begin : begin + WINDOW].astype(np.int64).sum())
    window_us, window_cpu_us = ((now / reads) * 1e6 for now in (time.perf_counter() - start, time.process_time() - cpu))
    return {
        "what": "cold" if cold else "warm",
        "recordings": len(store),
        "tokens": int(lengths.sum()) * BOOKS,
        "open_ms": round(open_s * 1e3, 1),
        "open_cpu_ms": round(open_cpu_s * 1e3, 1),
        "first_row_ms": round(row_s * 1e3, 2),
        "window_us": round(window_us, 1),
        "window_cpu_us": round(window_cpu_us, 1),
        "memory_before_mb": before,
        "memory_open_mb": opened,
        "memory_after_reads_mb": memory_mb(),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "checksum": total,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=float, default=1e8)
    parser.add_argument("--recordings", type=int, default=0, help="default: one a 1000 frames")
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keeps the store for the next run; default: a temporary one")
    parser.add_argument("--measure", choices=["cold", "warm"], help="(used by itself)")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.reads, options.measure == "cold")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "store.json").is_file():
            tokens = int(options.tokens)
            make(folder, tokens, options.recordings or max(1, tokens // (BOOKS * 1000)))
        if not any(folder.glob("index-*")):
            start, cpu = time.perf_counter(), time.process_time()
            TokenStore.open(folder)
            seconds = {"s": round(time.perf_counter() - start, 2), "cpu_s": round(time.process_time() - cpu, 2)}
            print(json.dumps({"what": "first opening, makes the index", **seconds}))
        own = [sys.executable, __file__, "--folder", str(folder), "--reads", str(options.reads)]
        for kind in ("cold", "warm"):
            subprocess.run([*own, "--measure", kind], check=True)


if __name__ == "__main__":
    main()
