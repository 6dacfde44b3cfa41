"""Speed of decoding against `transformers.GPT2LMHeadModel.generate`, same weights, same machine, same process.

    python tests/bench/bench_gpt.py --tokens 300 --repeats 5

GPT-2-small shape (12 layers, 12 heads, 768) with 1024 ids, prompt of 10 ids, greedy. The repetitions alternate, so that
other load on the machine falls on all alike. Prints JSON: tokens per second of wall clock and of CPU time (medians over
repetitions) and their ratios. With --threads 1 the CPU time is steady even on a loaded machine.
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
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.engine import GREEDY, generate
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from

PROMPT = 10


def measure(device: str, batch: int, tokens: int, uncached_tokens: int, repeats: int) -> dict[str, object]:
    """Times ours, transformers' and decoding without a cache."""
    torch.manual_seed(0)
    config = LayoutConfig("first", specials="none")
    layout = layout_from(config, TokenSpec("bench", 16_000, 16_000, 320, (1024,)))
    model = GPT(GPTConfig(layers=12, heads=12, dim=768, block=1024, layout=config), 1024).to(device).eval()
    theirs: Any = model.to_transformers()
    theirs.to(device)
    theirs.generation_config.pad_token_id = 0
    model.order_for_decoding()  # as a model that was loaded is
    prompt = torch.randint(0, 1024, (batch, PROMPT), device=device)

    def ours() -> torch.Tensor:
        return generate(model, layout, prompt, tokens, GREEDY)

    def peer() -> torch.Tensor:
        mask = torch.ones_like(prompt)
        made = theirs.generate(
            prompt, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )
        return made[:, PROMPT:]

    @torch.inference_mode()
    def uncached() -> torch.Tensor:
        ids = prompt
        for _ in range(uncached_tokens):
            ids = torch.cat([ids, model(ids, last_only=True)[:, -1].argmax(-1, keepdim=True)], 1)
        return ids[:, PROMPT:]

    same = (ours() == peer()).float().mean().item()  # also warms both up
    systems: dict[str, tuple[Callable[[], torch.Tensor], int]] = {
        "ours": (ours, tokens),
        "transformers": (peer, tokens),
    }
    if uncached_tokens:
        systems["uncached"] = (uncached, uncached_tokens)
    rates: dict[str, list[float]] = {name: [] for name in systems}
    cpu_rates: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(repeats):
        for name, (run, count) in systems.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            rates[name].append(batch * count / (time.perf_counter() - start))
            cpu_rates[name].append(batch * count / (time.process_time() - cpu_start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    cpu_medians = {name: statistics.median(values) for name, values in cpu_rates.items()}
    return {
        "batch": batch,
        "new_tokens": tokens,
        "tokens_per_s": {name: round(value, 2) for name, value in medians.items()},
        "all_tokens_per_s": {name: [round(value, 2) for value in values] for name, values in rates.items()},
        "tokens_per_cpu_s": {name: round(value, 2) for name, value in cpu_medians.items()},
        "ours_over_transformers_cpu": round(cpu_medians["ours"] / cpu_medians["transformers"], 3),
        "ours_over_transformers": round(medians["ours"] / medians["transformers"], 3),
        "ours_over_uncached": round(medians["ours"] / medians["uncached"], 3) if uncached_tokens else None,
        "uncached_new_tokens": uncached_tokens,
        "equal_ids": same,
    }


def main() -> None:
    """Runs the benchmark and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument(
        "--uncached-tokens", type=int, default=100, help="its cost grows with the square; 0 leaves it out"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's own choice")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args.device, args.batch, args.tokens, args.uncached_tokens, args.repeats)
    print(json.dumps({"bench": "gpt", "environment": environment(args.device), **result}, indent=1))


if __name__ == "__main__":
    main()
