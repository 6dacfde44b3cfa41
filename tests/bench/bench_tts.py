"""Speed of speaking: VALL-E at the paper's size against a version that reads everything again for every frame, and its
AR against a GPT-2 of the same size in `transformers`.

    python tests/bench/bench_tts.py --threads 2

Random weights, a text of 100 ids, a prompt of 3 s (150 frames) and 10 s to speak (500 frames), greedy. The version
without cache is timed at some lengths and summed over all of them by the trapezoid rule, which is said; it must choose
the same codes there. Both share the NAR's seven passes. Prints JSON: seconds, and ratios of the peer's seconds to ours,
above 1 where ours is faster. The codec's part is not timed. `--small` checks the script in seconds; its ratios say
nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from xcodec_lm.codec.runtime.run import environment
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.engine import GREEDY, Engine
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.valle_ar import ValleAR, ar_layout
from xcodec_lm.lm.valle_nar import ValleNAR, refine

TEXT, PROMPT = 100, 150
PAPER = ValleConfig(dropout=0.0)
SMALL = ValleConfig(layers=2, heads=2, dim=64, mlp_dim=256, dropout=0.0)
SPEC = TokenSpec("bench", 16_000, 16_000, 320, (1024,) * 8)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The best of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


@torch.inference_mode()
def measure(config: ValleConfig, frames: int, repeats: int, lengths: int) -> dict[str, Any]:
    """Times all systems."""
    torch.manual_seed(0)
    ar, nar = ValleAR(config).eval().order_for_decoding(), ValleNAR(config).eval().order_for_decoding()
    layout = ar_layout(config, SPEC)
    text = torch.randint(4, 500, (1, TEXT))
    prompt = torch.randint(0, 1024, (8, PROMPT))
    front = ar.text_prefix(text)
    request = Request(frames, prompt[:1], GREEDY, prefix=front[0])
    engine = Engine(ar, layout)
    made = engine.decode([request])[0].codes
    ours_ar = seconds(lambda: engine.decode([request]), repeats)
    ours_nar = seconds(lambda: refine(nar, [text[0]], [prompt], [made[0]]), repeats)

    def again(place: int) -> torch.Tensor:
        """(1, V) logits of a frame, all before it read again."""
        ids = torch.cat([torch.tensor([layout.vocabulary.bos]), made[0, : PROMPT + place]])[None]
        return ar.logits(ar.hidden(ids, prefix=front)[:, -1])

    places = [int(place) for place in np.unique(np.linspace(0, frames - 1, lengths).round())]
    equal = [int(again(place)[0, :1024].argmax()) == int(made[0, PROMPT + place]) for place in places]
    each = [seconds(lambda place=place: again(place), repeats) for place in places]
    no_cache = float(np.trapezoid(each, places)) + (each[0] + each[-1]) / 2  # the sum over all frames

    sizes = GPT2Config(
        vocab_size=1027, n_positions=TEXT + 1 + PROMPT + frames, n_embd=config.dim, n_layer=config.layers,
        n_head=config.heads, n_inner=config.mlp_dim,
    )  # fmt: skip
    theirs: Any = GPT2LMHeadModel(sizes).eval()
    theirs.generation_config.pad_token_id = 0
    ids = torch.randint(0, 1024, (1, TEXT + 1 + PROMPT))
    peer = seconds(
        lambda: theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=frames, min_new_tokens=frames, do_sample=False
        ),
        repeats,
    )
    return {
        "parameters_m": {"ar": round(ar.parameter_count() / 1e6, 1), "nar": round(nar.parameter_count() / 1e6, 1),
                         "gpt2": round(theirs.num_parameters() / 1e6, 1)},
        "frames": frames,
        "seconds": {"ar": round(ours_ar, 2), "nar": round(ours_nar, 2), "ar, no cache": round(no_cache, 1),
                    "transformers GPT-2, cache": round(peer, 2)},
        "no_cache_timed_at": places,
        "no_cache_equal_codes": f"{sum(equal)} of {len(equal)}",
        "ratios": {
            "no cache / ours, ar+nar": round((no_cache + ours_nar) / (ours_ar + ours_nar), 2),
            "no cache / ours, ar": round(no_cache / ours_ar, 1),
            "transformers / ours, ar": round(peer / ours_ar, 2),
        },
        "real_time_factor": round((ours_ar + ours_nar) / (frames / 50), 2),
    }  # fmt: skip


def main() -> None:
    """Runs the benchmark and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--lengths", type=int, default=6, help="at which the version without cache is timed")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's own choice")
    parser.add_argument("--small", action="store_true", help="models of less than a million weights")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if min(args.frames, args.lengths) < 2:
        parser.error("--frames and --lengths must be at least 2")
    found = measure(SMALL if args.small else PAPER, args.frames, args.repeats, args.lengths)
    result = {"bench": "tts", "environment": environment("cpu"), **found}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
