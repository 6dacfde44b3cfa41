"""Speed and memory of the evaluation. Run by hand on an idle machine; prints one JSON line a case.

    python tests/bench/bench_eval.py [--case wer|frechet|moments|memory]

`seconds` are those of the clock, `cpu_s` of the processor, which a busy machine does not change.

Bars: word errors of 10,000 pairs of 20 words under 5 s; Fréchet distance of 600 rows of 2,048 dimensions under 2 s;
memory of the distance of many files is that of few.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = [f"{first}{second}" for first in ("ba", "di", "ko", "lu", "me") for second in ("na", "ri", "so", "tu", "ve")]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> dict[str, float]:
    now = clocks()
    return {"seconds": round(now[0] - start[0], 3), "cpu_s": round(now[1] - start[1], 3)}


def wer(count: int = 10_000) -> dict[str, float]:
    from xcodec_lm.tasks.eval.wer import Pair, rate_estimate, word_counts

    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        text = rng.choice(WORDS, 20)
        heard = np.where(rng.random(20) < 0.1, rng.choice(WORDS, 20), text)
        pairs.append(Pair(str(number), " ".join(text), " ".join(heard), f"s{number % 100}"))
    start = clocks()
    value = rate_estimate(word_counts(pairs), pairs).value
    return {**since(start), "bar_s": 5, "pairs": count, "wer": value}


def frechet() -> dict[str, float]:
    from xcodec_lm.tasks.eval.frechet import frechet_distance

    x, y = (np.random.default_rng(seed).standard_normal((600, 2048)) for seed in (0, 1))
    start = clocks()
    value = frechet_distance(x, y)
    return {**since(start), "bar_s": 2, "distance": value}


def moments() -> dict[str, float]:
    from xcodec_lm.tasks.eval.frechet import Moments, frechet_of_moments

    start, sets = clocks(), []
    for seed in (0, 1):
        moments = Moments(128)
        rng = np.random.default_rng(seed)
        for _ in range(200):
            moments.update(rng.standard_normal((500, 128)))
        sets.append(moments)
    value = frechet_of_moments(*sets)
    return {**since(start), "rows": 200_000, "distance": value}


def memory(files: int) -> dict[str, float]:
    """Peak memory of the moments of so many files of 128 x 128 numbers, in a process of its own."""
    from xcodec_lm.tasks.eval.set_scores import _Set

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        paths = [Path(folder) / f"{number}.npy" for number in range(files)]
        for path in paths:
            np.save(path, rng.standard_normal((128, 128)).astype(np.float32))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        vectors = _Set([], "")
        vectors.files = paths
        count = vectors.moments(128).count
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"files": files, "vectors": count, "peak_more_mb": (after - before) / 1024, "peak_mb": after / 1024}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=["wer", "frechet", "moments", "memory"])
    parser.add_argument("--files", type=int)
    options = parser.parse_args()
    if options.files:
        print(json.dumps({"case": "memory", **memory(options.files)}))
        return
    for name, case in (("wer", wer), ("frechet", frechet), ("moments", moments)):
        if options.case in (None, name):
            if name == "wer":
                wer(10)  # imports are not timed
            print(json.dumps({"case": name, **case()}), flush=True)
    if options.case in (None, "memory"):
        for files in (100, 1000, 5000):
            command = [sys.executable, __file__, "--files", str(files)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
