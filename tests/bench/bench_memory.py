"""Peak memory of encoding and decoding long audio, ours and `transformers.XcodecModel`'s. Run by hand; prints JSON.

    python tests/bench/bench_memory.py [--size paper|small]

Every case runs in a process of its own; the figure is what it took beyond the loaded model, in MB (Linux).
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from xcodec_lm.codec import load_codec

sys.path.insert(0, str(Path(__file__).parent))
from bench_codec import build

CASES = (
    ("encode", "peer", 60), ("encode", "ours", 60), ("encode", "ours", 600),
    ("decode", "peer", 60), ("decode", "ours", 60), ("decode", "ours", 600),
)  # fmt: skip


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@torch.inference_mode()
def one(size: str, what: str, side: str, seconds: int) -> None:
    import tempfile

    model = build(size)
    if side == "ours":
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = load_codec(folder)
    wav = torch.randn(1, 1, seconds * 16000) * 0.1
    codes = torch.randint(0, 1024, (1, 8, seconds * 50))
    if side == "ours":
        tokens = model.encode(wav[..., :320])
        tokens = type(tokens)(codes, torch.tensor([codes.shape[2]]), tokens.spec)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mb()
    if what == "encode":
        model.encode(wav)
    else:
        model.decode(tokens if side == "ours" else codes)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    print(json.dumps({"what": what, "side": side, "seconds": seconds, "peak_mb": round(peak - before)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=["paper", "small"], default="paper")
    parser.add_argument("--case", nargs=3, metavar=("WHAT", "SIDE", "SECONDS"))
    options = parser.parse_args()
    if options.case:
        one(options.size, options.case[0], options.case[1], int(options.case[2]))
        return
    for what, side, seconds in CASES:
        command = [sys.executable, __file__, "--size", options.size, "--case", what, side, str(seconds)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
