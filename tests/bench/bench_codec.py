"""Encoding and decoding against `transformers.XcodecModel` with the same weights. Run by hand; prints JSON.

    python tests/bench/bench_codec.py [--size paper|small] [--repeats 5] [--threads 2] [--compile] [--batch]

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

ENCODE_S, DECODE_S = 10, 12
UNEQUAL_S = (0.5, 7.3, 1.2, 4.4, 2.0, 3.1, 0.9, 5.6, 1.7, 2.6, 6.5, 0.7, 3.8, 1.4, 4.9, 2.3)
"""Lengths of the 16 clips of the unequal batch."""


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


def compare(name: str, mine, theirs, repeats: int) -> dict:
    mine(), theirs()
    times = [(seconds_of(mine), seconds_of(theirs)) for _ in range(repeats)]
    ours_s, peer_s = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    return {"what": name, "ours_s": round(ours_s, 3), "peer_s": round(peer_s, 3), "ratio": round(ratio, 3)}


def rates(threads: int) -> dict:
    """What the machine can do: matrix products and copies beyond the caches."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    product = min(seconds_of(lambda: a @ b) for _ in range(20))
    long, other = torch.randn(2**25), torch.empty(2**25)
    copy = min(seconds_of(lambda: other.copy_(long)) for _ in range(10))
    return {
        "threads": threads,
        "matrix_gflops": round(2 * 1024**3 / product / 1e9, 1),
        "copy_gbytes_per_s": round(2 * 4 * 2**25 / copy / 1e9, 1),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=["paper", "small"], default="paper")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="also with load_codec(compile=True)")
    parser.add_argument("--batch", action="store_true", help="also 16 clips of unequal length")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = build(options.size)
    codecs = {}
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        codecs["eager"] = load_codec(folder)
        if options.compile:
            codecs["compiled"] = load_codec(folder, compile=True)
    wav = torch.randn(1, 1, ENCODE_S * 16000) * 0.1
    codes = peer.encode(torch.randn(1, 1, DECODE_S * 16000) * 0.1, return_dict=True).audio_codes
    rows = []
    for kind, ours in codecs.items():
        tokens = ours.encode(torch.randn(1, 1, DECODE_S * 16000) * 0.1)
        tokens.codes.copy_(codes)
        different = int((ours.encode(wav).codes != peer.encode(wav, return_dict=True).audio_codes).sum())
        encoding = compare(
            f"encode {ENCODE_S} s, {kind}", lambda o=ours: o.encode(wav), lambda: peer.encode(wav), options.repeats
        )
        rows.append({**encoding, "codes_that_differ": different})
        rows.append(
            compare(
                f"decode {DECODE_S} s, {kind}",
                lambda o=ours, t=tokens: o.decode(t),
                lambda t=tokens: peer.decode(t.codes),
                options.repeats,
            )
        )
    if options.batch:
        clips = [torch.randn(1, 1, round(s * 50) * 320) * 0.1 for s in UNEQUAL_S]
        lengths = torch.tensor([clip.shape[2] for clip in clips])
        batch = torch.zeros(len(clips), 1, int(lengths.max()))
        for row, clip in zip(batch, clips, strict=True):
            row[:, : clip.shape[2]] = clip[0]
        singles = [peer.encode(clip, return_dict=True).audio_codes for clip in clips]
        ours = codecs["eager"]
        together = ours.encode(batch, lengths)
        different = sum(int((together.row(i).codes != single).sum()) for i, single in enumerate(singles))
        row = compare(
            "encode 16 unequal clips in a batch, peer one by one",
            lambda: ours.encode(batch, lengths),
            lambda: [peer.encode(clip) for clip in clips],
            options.repeats,
        )
        rows.append({**row, "codes_that_differ": different, "codes": sum(single.numel() for single in singles)})
    print(json.dumps({"size": options.size, "machine": rates(options.threads), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
