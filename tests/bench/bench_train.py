"""Speed of training against a plain loop of its own: the same model shape, batch, optimizer and data.

    python tests/bench/bench_train.py --threads 2 --repeats 5

GPT-2-medium shape (24 layers, 16 heads, 1024) with 1024 ids. The reference is a model and a loop as short as they can
be written; ours is the trainer's own step: rows from a token store, loss by codebook, clipping, schedule. Steps of the
two alternate. Prints JSON: ids per second (medians), their ratio, and MFU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm import configs
from xcodec_lm.codec.runtime.run import Run, RunOptions, environment
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm.flops import find_peak, flops_per_position, mfu
from xcodec_lm.lm.shards import StoreWriter, TokenStore
from xcodec_lm.lm.train import make_trainer

IDS = 1024


class PlainBlock(nn.Module):
    """A block of GPT-2."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        b, length, d = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(b, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, length, d)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class Plain(nn.Module):
    """GPT-2."""

    def __init__(self, layers: int, heads: int, dim: int, block: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(IDS, dim), nn.Embedding(block, dim)
        self.blocks = nn.ModuleList(PlainBlock(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of ids (B, L)."""
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def main() -> None:
    """Runs the benchmark and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(args, Path(name)), indent=1))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Times steps of the two in turn."""
    spec = TokenSpec("bench", 16_000, 16_000, 320, (IDS,), fingerprint="b" * 64)
    rng = np.random.default_rng(0)
    with StoreWriter(folder / "tokens", spec) as writer:
        for number in range(8):
            writer.add({"id": str(number), "split": "train"}, rng.integers(0, IDS, (20 * args.block, 1)))
    codes = args.block * args.rows
    keys = {
        "model.layers": args.layers, "model.block": args.block, "data.tokens": [str(folder / "tokens")],
        "data.batch_codes": codes, "data.micro_batch_codes": codes, "run.precision": args.precision,
        "run.threads": args.threads or None, "run.compile": args.compile,
    }  # fmt: skip
    config = configs.load("music/paper", LMTrainConfig, keys)
    store = TokenStore.open(folder / "tokens")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Run(config, RunOptions(out=folder / "run", device=device), "bench") as run:
        trainer = make_trainer(run, config, store)
        forward = run.accelerator.prepare_model(trainer.objective)
        torch.manual_seed(0)
        plain = Plain(args.layers, 16, 1024, args.block).to(device)
        if args.compile:
            forward, plain = torch.compile(forward), torch.compile(plain)
        optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        data = torch.from_numpy(rng.integers(0, IDS, (args.rows, args.block + 1))).to(device)

        def ours(step: int) -> None:
            trainer.step(step, forward)

        def reference(step: int) -> None:
            with torch.autocast(device, torch.bfloat16, enabled=args.precision == "bf16"):
                loss = plain(data[:, :-1], data[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        times: dict[str, list[float]] = {"ours": [], "plain loop": []}
        for step in range(args.repeats + 2):  # two to warm up
            for system, one in (("ours", ours), ("plain loop", reference)):
                start = time.perf_counter()
                one(step)
                if device == "cuda":
                    torch.cuda.synchronize()
                if step > 1:
                    times[system].append(time.perf_counter() - start)
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        peak, known = find_peak(device, dtype)
        flops = codes * flops_per_position(trainer.objective.weights, args.layers, 1024, args.block)
    seconds = {system: statistics.median(values) for system, values in times.items()}
    return {
        "bench": "train", "environment": environment(device), "layers": args.layers, "rows": args.rows,
        "block": args.block, "precision": args.precision, "compiled": args.compile,
        "ids_per_s": {system: round(codes / value, 1) for system, value in seconds.items()},
        "ours_over_plain": round(seconds["plain loop"] / seconds["ours"], 3),
        "peak_gflops": round(peak / 1e9), "peak_is": known, "mfu": round(mfu(flops, seconds["ours"], peak), 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
