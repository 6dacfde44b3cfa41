"""Encoding and decoding against `transformers.XcodecModel` with the same weights. Run by hand; prints JSON.

    python tests/bench/bench_codec.py [--size paper|small] [--repeats 5] [--threads 2]

Both sides run in turn in one process, so a busy machine slows both; compare ratios, not seconds.
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from transformers import AutoConfig, XcodecConfig, XcodecModel

from xcodec_lm.codec import load_codec

SECONDS = 10


def build(size: str) -> XcodecModel:
    torch.manual_seed(0)
    if size == "paper":
        config = XcodecConfig()
    else:
        teacher = AutoConfig.for_model(
            "hubert", hidden_size=192, num_hidden_layers=4, num_attention_heads=4, intermediate_size=768
        )
        acoustic = AutoConfig.for_model(
            "dac", encoder_hidden_size=16, decoder_hidden_size=256, hidden_size=64,
            downsampling_ratios=[8, 5, 4, 2], upsampling_ratios=[8, 5, 4, 2],
        )  # fmt: skip
        config = XcodecConfig(acoustic_model_config=acoustic, semantic_model_config=teacher)
    model = XcodecModel(config).eval()
    for layer in model.quantizer.quantizers:
        layer.codebook.embed.normal_()
    return model


def seconds_of(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=["paper", "small"], default="paper")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = build(options.size)
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = load_codec(folder)
    rows = []
    for clips in (1, 4):
        wav = torch.randn(clips, 1, SECONDS * 16000) * 0.1
        tokens = ours.encode(wav)
        pairs = {
            "encode": (lambda wav=wav: ours.encode(wav), lambda wav=wav: peer.encode(wav)),
            "decode": (lambda tokens=tokens: ours.decode(tokens), lambda tokens=tokens: peer.decode(tokens.codes)),
        }
        for name, (mine, theirs) in pairs.items():
            mine(), theirs()
            times = [(seconds_of(mine), seconds_of(theirs)) for _ in range(options.repeats)]
            ours_s, peer_s = (statistics.median(column) for column in zip(*times, strict=True))
            rows.append(
                {"what": name, "clips": clips, "ours_s": round(ours_s, 3), "peer_s": round(peer_s, 3),
                 "ratio": round(statistics.median(b / a for a, b in times), 3)}
            )  # fmt: skip
    print(json.dumps({"size": options.size, "threads": options.threads, "clip_s": SECONDS, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
