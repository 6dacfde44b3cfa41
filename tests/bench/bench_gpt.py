"""Speed of decoding: against `transformers` generate, against no cache, in lower precision, in batches, by layout.

    python tests/bench/bench_gpt.py --threads 2 --repeats 5

GPT-2-small shape (12 layers, 12 heads, 768) with 1024 ids, prompt of 10 ids, greedy, 500 new ids, same weights in one
process. The repetitions alternate, so that other load falls on all alike; what reads everything again for every step
is timed once. Prints JSON: ids per second of wall clock (medians over repetitions, and the best) and of CPU time, the
ratios of both, and the floor: bytes of weights over the measured bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from xcodec_lm.codec.runtime.run import environment
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.lm import DepthConfig, GPTConfig, LayoutConfig
from xcodec_lm.lm.engine import GREEDY, continue_codes
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.precision import in_precision

PROMPT = 10
SHAPES = {
    "small": {"layers": 12, "heads": 12, "dim": 768, "block": 1024},
    "medium": {"layers": 24, "heads": 16, "dim": 1024, "block": 4096},
    "3b": {"layers": 28, "heads": 24, "dim": 3072, "block": 2048, "arch": "llama", "kv_heads": 8, "mlp_dim": 8192},
}
ONCE = ("no cache", "depth, read again")
System = tuple[Callable[[], object], int]
"""What is timed, and the ids that it makes."""


def build(shape: str, device: str, name: str = "first", n_q: int = 1) -> tuple[GPT, Any]:
    """A model with random weights, and its layout."""
    torch.manual_seed(0)
    config = LayoutConfig(name, n_q, specials="none" if n_q == 1 else "standard")  # type: ignore[arg-type]
    layout = layout_from(config, TokenSpec("bench", 16_000, 16_000, 320, (1024,) * n_q))
    sizes = GPTConfig(**SHAPES[shape], layout=config, depth=DepthConfig(4, 8, 512))  # type: ignore[arg-type]
    with torch.device(device):
        model = GPT(sizes, layout.vocabulary.size)
    return model.eval(), layout


def no_cache(model: GPT, prompt: torch.Tensor, count: int) -> Callable[[], object]:
    """Decoding that reads everything again for every id."""

    @torch.inference_mode()
    def run() -> torch.Tensor:
        ids = prompt
        for _ in range(count):
            ids = torch.cat([ids, model(ids, last_only=True)[:, -1].argmax(-1, keepdim=True)], 1)
        return ids

    return run


def one_sequence(shape: str, device: str, tokens: int, uncached: int) -> dict[str, System]:
    """Systems that decode one sequence."""
    model, layout = build(shape, device)
    theirs: Any = model.to_transformers().to(device)
    theirs.generation_config.pad_token_id = 0
    model.order_for_decoding()  # as a model that was loaded is
    prompt = torch.randint(0, 1024, (1, PROMPT), device=device)
    codes = prompt[:, None]

    def peer() -> torch.Tensor:
        made = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False,
        )  # fmt: skip
        return made[:, PROMPT:]

    def ours(of: GPT, rows: int = 1) -> Callable[[], torch.Tensor]:
        return lambda: continue_codes(of, layout, codes.expand(rows, -1, -1), tokens, GREEDY)

    systems: dict[str, System] = {"transformers": (peer, tokens), "ours": (ours(model), tokens)}
    same = (ours(model)()[:, 0] == peer()).float().mean().item()
    print(f"equal ids: {same:.4f}", flush=True)
    for precision in ("bf16", "int8") if device == "cpu" else ("bf16",):
        systems[precision] = (ours(in_precision(model, precision)), tokens)  # type: ignore[arg-type]
    systems["batch 8"] = (ours(model, 8), 8 * tokens)
    if uncached:
        systems["no cache"] = (no_cache(model, prompt, uncached), uncached)
    return systems


def depth(shape: str, device: str, frames: int, compared: int = 20) -> dict[str, System]:
    """The layout `depth` of eight codebooks, against reading everything again for every frame."""
    model, layout = build(shape, device, "depth", 8)
    model.order_for_decoding()
    prompt = torch.randint(0, 1024, (8, PROMPT))

    @torch.inference_mode()
    def again(count: int) -> torch.Tensor:
        codes = prompt
        assert model.inner is not None
        for _ in range(count):
            ids = layout.pack(codes)
            bos = torch.full((1, 8), layout.vocabulary.pad)
            bos[0, 0] = layout.vocabulary.bos
            hidden = model.hidden(torch.cat([bos, ids])[None].to(device))[:, -1]
            cache, joined, last, drawn = model.inner.new_cache(1), model.inner.join(hidden), None, []
            for slot in range(8):
                low, high = layout.vocabulary.id_range(slot)
                last = low + model.inner.step(joined, last, cache)[:, low:high].argmax(-1)
                drawn.append(int(last) - low)
            codes = torch.cat([codes, torch.tensor(drawn)[:, None]], 1)
        return codes

    def ours(count: int) -> torch.Tensor:
        return continue_codes(model, layout, prompt[None], count, GREEDY)

    same = (ours(compared)[0] == again(compared)[:, PROMPT:]).float().mean().item()
    print(f"depth, equal codes: {same:.4f}", flush=True)
    return {
        "depth": (lambda: ours(frames), 8 * frames),
        "depth, read again": (lambda: again(frames), 8 * frames),
    }


def timed(systems: dict[str, System], repeats: int, device: str) -> list[dict[str, float]]:
    """Ids per second of wall clock, the median and the best, and the median of those of CPU time."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    cpu_rates: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(repeats):
        for name, (run, count) in systems.items():
            if repeat and name in ONCE:
                continue
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            rates[name].append(count / (time.perf_counter() - start))
            cpu_rates[name].append(count / (time.process_time() - cpu_start))
    parts = ((statistics.median, rates), (max, rates), (statistics.median, cpu_rates))
    return [{name: round(of(values), 2) for name, values in part.items()} for of, part in parts]


def ratios(rates: dict[str, float], floor: float) -> dict[str, float]:
    """What the goals speak of, of ids per second; those whose systems were not timed are left out."""
    pairs = [("ours", "transformers"), ("int8", "transformers"), ("bf16", "transformers"), ("batch 8", "ours"),
             ("ours", "no cache"), ("depth", "depth, read again")]  # fmt: skip
    known = {f"{one} / {other}": rates[one] / rates[other] for one, other in pairs if one in rates and other in rates}
    return {name: round(value, 2) for name, value in (known | {"ours / floor": rates["ours"] / floor}).items()}


def bandwidth(device: str) -> float:
    """Bytes a second that a product with one column reads, the best of five."""
    matrix = torch.ones(8192, 8192, device=device)
    vector, best = torch.ones(8192, device=device), 0.0
    for _ in range(5):
        start = time.perf_counter()
        _ = matrix @ vector
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, matrix.numel() * 4 / (time.perf_counter() - start))
    return best


def main() -> None:
    """Runs the benchmark and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--no-cache-tokens", type=int, default=100, help="grows with the square; 0 leaves it out")
    parser.add_argument("--depth-frames", type=int, default=100, help="0 leaves the layout out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's own choice")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    systems = one_sequence(args.shape, args.device, args.tokens, args.no_cache_tokens)
    if args.depth_frames:
        systems |= depth(args.shape, args.device, args.depth_frames)
    wall, best, cpu = timed(systems, args.repeats, args.device)
    weights = 4 * sum(p.numel() for name, p in build(args.shape, "meta")[0].named_parameters() if name != "wpe.weight")
    rate = bandwidth(args.device)
    result = {
        "bench": "gpt", "environment": environment(args.device), "shape": args.shape, "new_ids": args.tokens,
        "ids_per_s": wall, "best_ids_per_s": best, "ids_per_cpu_s": cpu, "floor_ids_per_s": round(rate / weights, 1),
        "bandwidth_gb_per_s": round(rate / 1e9, 1),
        "ratios": ratios(wall, rate / weights), "best_ratios": ratios(best, rate / weights),
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
