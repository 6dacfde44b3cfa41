"""Copies of training clips through codecs, so that a judge understands what codecs and their language models give back.

Every codec gets the same clips with the same numbers of layers and the same damage: a judge that is to compare codecs
must not know one better than the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, resample, save_audio
from xcodec_lm.codec.clips import Clip, read_manifests, relative_audio, write_manifest
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.progress import say, track
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE

FEW_LAYERS = 4
"""Half of the copies have all layers, the other half 1 to this many."""
DAMAGED_SHARE = 0.3
"""Share of the copies with damaged codes."""
MOST_DAMAGE = 0.3
"""Largest share of frames whose code is another frame's, in each layer of a damaged copy but the first."""


def make_copies(
    manifests: Sequence[str | Path], codecs: Mapping[str, AudioTokenizer], count: int, longest_s: float, out: Path,
    seed: int = 0,
) -> Path:  # fmt: skip
    """Writes copies of training clips and their manifest; what an earlier call with the same arguments wrote is kept.

    Args:
        manifests: whose split train is drawn from, evenly from each.
        codecs: name -> codec; each makes a copy of every chosen clip.
        count: clips that are chosen.
        longest_s: longer clips are not taken.
        out: folder; made if needed.
        seed: of the choice, the layers and the damage.

    Returns:
        The manifest `copies.jsonl`: rows as those of the clips, with `codec`, `n_q`, `damage` and the clip's id in
        `copy_of`.

    Raises:
        XcodecLMError: a recording cannot be read, or the folder cannot be written.
    """
    path, facts = out / "copies.jsonl", out / "copies.json"
    key = {
        "codecs": {name: codec.spec.fingerprint for name, codec in codecs.items()},
        "count": count, "longest_s": longest_s, "seed": seed,
        "manifests": [hashlib.sha256(Path(item).read_bytes()).hexdigest() for item in manifests],
    }  # fmt: skip
    if path.is_file() and facts.is_file() and json.loads(facts.read_text(encoding="utf-8")) == key:
        return path
    out.mkdir(parents=True, exist_ok=True)
    chosen = choose(manifests, count, longest_s, seed)
    say(f"copies: {len(chosen)} clips, {sum(clip.duration_s for clip in chosen):.0f} s, through {', '.join(codecs)}")
    rows = []
    for clip in track(chosen, "copying", len(chosen)):
        for name, codec in codecs.items():
            # Draws are keyed by the clip alone: they are the same for every codec.
            rng = generator(seed, "copy", clip.id)
            n_q = draw_layers(codec.spec.n_q, rng)
            damaged = float(torch.rand((), generator=rng)) < DAMAGED_SHARE
            damage = MOST_DAMAGE * float(torch.rand((), generator=rng)) if damaged else 0.0
            wav = load_audio(clip.path, codec.spec.sample_rate).wav[0]
            copy = through_codec(wav, codec, n_q, damage, rng)
            audio = out / f"{len(rows):05d}.flac"
            save_audio(audio, copy, SAMPLE_RATE)
            rows.append({
                **clip.row, "id": f"{clip.id}-{name}", "audio": relative_audio(audio, path), "split": "train",
                "duration": len(copy) / SAMPLE_RATE, "codec": name, "n_q": n_q, "damage": round(damage, 3),
                "copy_of": clip.id,
            })  # fmt: skip
    write_manifest(rows, path)
    facts.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    return path


def choose(manifests: Sequence[str | Path], count: int, longest_s: float, seed: int) -> list[Clip]:
    """At most `count` training clips, as evenly from each manifest as its size allows."""
    pools = []
    for clips in ([clip for clip in read_manifests([item], "train") if clip.duration_s <= longest_s]
                  for item in manifests):  # fmt: skip
        order = torch.randperm(len(clips), generator=generator(seed, "copies", len(pools))).tolist()
        pools.append([clips[index] for index in order])
    chosen: list[Clip] = []
    while len(chosen) < count and any(pools):
        for pool in pools:
            if pool and len(chosen) < count:
                chosen.append(pool.pop())
    return chosen


def draw_layers(n_q: int, rng: torch.Generator) -> int:
    """All layers as often as few ones."""
    if float(torch.rand((), generator=rng)) < 0.5:
        return n_q
    return int(torch.randint(min(FEW_LAYERS, n_q), (), generator=rng)) + 1


@torch.inference_mode()
def through_codec(
    wav: Tensor, codec: AudioTokenizer, n_q: int, damage: float = 0.0, rng: torch.Generator | None = None
) -> Tensor:
    """What a codec gives back of a clip, at 16 kHz.

    Args:
        wav: (N,) at the codec's input rate.
        codec: in eval mode.
        n_q: layers that are decoded.
        damage: share of the frames whose code is replaced by another frame's, in each layer but the first.
        rng: of the replaced frames; needed where damage is not 0.

    Returns:
        (N',) float32, of the clip's length.
    """
    tokens = codec.encode(wav[None, None])
    if damage and rng is not None:
        tokens = damage_codes(tokens, damage, rng)
    samples = max(1, round(len(wav) * codec.spec.output_sample_rate / codec.spec.sample_rate))
    decoded = codec.decode(tokens.take(n_q))[0][0, 0].float().cpu()[:samples]
    back = resample(decoded.numpy(), codec.spec.output_sample_rate, SAMPLE_RATE)
    return torch.from_numpy(back).clamp(-1, 1)


def damage_codes(tokens: AudioTokens, share: float, rng: torch.Generator) -> AudioTokens:
    """One row of tokens in which codes of every layer but the first are swapped for other frames' at random."""
    codes = tokens.codes.clone()
    frames = codes.shape[2]
    for layer in range(codes.shape[1]):
        hit = torch.rand(frames, generator=rng) < share
        other = torch.randint(frames, (frames,), generator=rng)
        if layer % tokens.spec.n_q:
            codes[0, layer] = torch.where(hit.to(codes.device), codes[0, layer, other], codes[0, layer])
    return replace(tokens, codes=codes)
