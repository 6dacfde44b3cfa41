"""ABX on as many cells as the published comparison: seconds of one core within and across speakers. Run by hand.

    OMP_NUM_THREADS=1 python tests/bench/bench_abx.py [--dim 64] [--repeats 3]

Some 2,600 items of 3 to 14 frames in 14 contexts of 6 phones and 8 speakers, 23,520 cells across speakers, without any
sampling. Libri-light's code took 195 s for both modes of 23,037 such cells on one core. Prints JSON: the processor's
seconds (which a busy machine changes less than the clock's), the least of the repeats, and how many times that is less.
"""

import argparse
import json
import time

import numpy as np
import torch

from xcodec_lm.tasks.eval.abx import abx
from xcodec_lm.tasks.eval.abx_items import Item

LIBRI_LIGHT_S = 195.0


def made(dim: int, labels: int = 6, contexts: int = 14, speakers: int = 8) -> tuple[list[Item], list[torch.Tensor]]:
    rng = np.random.default_rng(0)
    centres = 0.4 * rng.standard_normal((labels, dim))
    items, vectors = [], []
    for label in range(labels):
        for context in range(contexts):
            for speaker in range(speakers):
                for _ in range(rng.integers(2, 7)):
                    items.append(Item("r", f"p{label}", f"s{speaker}", f"c{context}", "e"))
                    frames = centres[label] + rng.standard_normal((rng.integers(3, 15), dim))
                    vectors.append(torch.from_numpy(frames.astype(np.float32)))
    return items, vectors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    items, vectors = made(args.dim)
    found: dict[str, object] = {"items": len(items), "dim": args.dim}
    total = 0.0
    for mode in ("within", "across"):
        seconds = []
        for _ in range(args.repeats):
            start = time.process_time()
            result = abx(items, vectors, mode, most_distances=10**9)
            seconds.append(time.process_time() - start)
        total += min(seconds)
        found[mode] = {"cells": result.cells, "distances": result.distances, "seconds": round(min(seconds), 2)}
    print(json.dumps(found | {"seconds": round(total, 2), "times_libri_light": round(LIBRI_LIGHT_S / total, 1)}))


if __name__ == "__main__":
    main()
