"""The music model measured: bits per second of audio beside anchors, and continuations with all they are compared to.

Bits per second are what the model needs to write down the codec's tokens of one second of unseen music. A codec with
little to say has few of them, so code entropy and the quality of the tokens' own resynthesis stand beside.
The sets of audio that are written are those of the X-Codec paper's section 4.2:
10 s of prompt and 30 s of continuation, or 5 s and 5 s where the model speaks several codebooks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.clips import Clip, Split, read_manifests
from xcodec_lm.codec.distances import mel_distance, shaped_noise
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say, track
from xcodec_lm.codec.tokens import AudioTokens, stack_codes
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.lm.anchors import BigramModel, UnigramModel
from xcodec_lm.lm.engine import continue_codes
from xcodec_lm.lm.examples import recording_bits
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import JoinedStore, TokenStore
from xcodec_lm.tasks.eval.intervals import Estimate, difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.reconstruction import unit_of
from xcodec_lm.tasks.music.continuation import MusicModel

PAPER_CUTS = {1: (10.0, 30.0)}
"""Codebooks -> seconds of prompt and of continuation."""
SEVERAL_BOOKS = (5.0, 5.0)
SETS = ("prompt", "reference", "resynthesis", "continuation")
CONTROLS = ("untrained", "shuffled")
"""Sets that a continuation must beat: the same model untrained; what really follows, its codes dealt out at random."""
TOGETHER = 16
"""Prompts that are continued at once; what is made of one does not depend on the others."""


@dataclass(frozen=True)
class BitsOfSystem:
    """How many bits a system needs.

    Attributes:
        per_second: over recordings.
        per_book: mean bits per code of each codebook.
        against_model: of the language model minus this system, in bits per second; None for the model itself.
        by_recording: bits per second of each recording.
    """

    per_second: Estimate
    per_book: list[float]
    against_model: Estimate | None
    by_recording: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        difference = self.against_model
        return {
            "bits_per_s": self.per_second.to_dict(),
            "bits_per_code": self.per_book,
            "model_minus_this": None if difference is None else difference.to_dict(),
        }


def evaluate_music(
    music: MusicModel,
    manifests: list[Path],
    train: TokenStore | JoinedStore,
    out: Path | None = None,
    split: Split = "test",
    prompt_s: float | None = None,
    seconds: float | None = None,
    prompts: int = 20,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    controls: bool = False,
) -> dict[str, Any]:
    """Measures a music model on unseen recordings.

    Args:
        music: the model with its codec.
        manifests: of the recordings.
        train: tokens that the anchors are fitted on, of the same codec.
        out: folder for the sets of audio; None makes none.
        split: of the recordings that are measured.
        prompt_s: length of prompts; None takes the paper's for the model's codebooks.
        seconds: length of continuations; None takes the paper's.
        prompts: most prompts to continue, spread over the recordings.
        seed: of draws and intervals.
        sampling: of the continuations.
        controls: also write the sets of `CONTROLS`.

    Returns:
        Plain values: `bits` by system, `items` (bits per second of each recording by system), `code_entropy`,
        `resynthesis`, and `sets` where there are.

    Raises:
        XcodecLMError: no recording, or tokens of another codec.
    """
    clips = read_manifests(manifests, split)
    if not clips:
        raise XcodecLMError(
            f"no recording of split {split} in {', '.join(map(str, manifests))}", "choose another split"
        )
    music.spec.check_same_codec(train.spec, str(train.folder))
    codes = [_encode(music, clip) for clip in track(clips, "encoding", len(clips))]
    units = [unit_of(clip)[1] for clip in clips]
    known = [torch.from_numpy(train.codes(i).astype(np.int64).T)[: music.n_q] for i in train.split("train")]
    bits = bits_by_system(music, codes, known, units, seed)
    sizes = music.spec.codebook_sizes[: music.n_q]
    data: dict[str, Any] = {
        "split": split,
        "recordings": len(clips),
        "seconds": float(sum(part.shape[1] for part in codes) / music.spec.frame_rate),
        "codec": music.codec.spec.name,
        "fingerprint": music.spec.fingerprint,
        "layout": music.layout.name,
        "n_q": music.n_q,
        "frame_rate": float(music.spec.frame_rate),
        "bits": {name: system.to_dict() for name, system in bits.items()},
        "items": [
            {"id": clip.id, "unit": unit,
             "bits_per_s": {name: system.by_recording[index] for name, system in bits.items()}}
            for index, (clip, unit) in enumerate(zip(clips, units, strict=True))
        ],
        "code_entropy": code_entropy(codes, sizes),
    }  # fmt: skip
    default = PAPER_CUTS.get(music.n_q, SEVERAL_BOOKS)
    cut = (default[0] if prompt_s is None else prompt_s, default[1] if seconds is None else seconds)
    places = cut_places(clips, sum(cut), prompts)
    skipped = sum(clip.duration_s < sum(cut) - 1e-6 for clip in clips)
    if skipped:
        say(f"{skipped} of {len(clips)} recordings are shorter than {sum(cut):g} s and give no prompt")
    data["resynthesis"] = resynthesis(music, places, sum(cut), seed)
    if out is not None and places:
        data["sets"] = {"folder": str(out), "prompt_s": cut[0], "continuation_s": cut[1], "prompts": len(places)}
        write_sets(music, places, cut, out, seed, sampling, controls)
    return data


def _encode(music: MusicModel, clip: Clip) -> Tensor:
    """(n_q, T) codes of a recording."""
    audio = load_audio(clip.path, music.codec.spec.sample_rate)
    device = getattr(music.codec, "device", "cpu")
    with torch.inference_mode():
        return music.codec.encode(audio.wav[None].to(device), n_q=music.n_q).codes[0].cpu().clone()


def bits_by_system(
    music: MusicModel, codes: list[Tensor], train: list[Tensor], units: list[str], seed: int = 0
) -> dict[str, BitsOfSystem]:
    """Bits per second and per code of the language model, an untrained one, and n-grams of the training tokens.

    Args:
        music: the model.
        codes: (n_q, T) of each recording.
        train: (n_q, T) of each training recording.
        units: what each recording is resampled with.
        seed: of the untrained model and the intervals.
    """
    sizes, rate = music.spec.codebook_sizes[: music.n_q], float(music.spec.frame_rate)
    unigram = UnigramModel(sizes).fit(train)
    ngrams = {
        "unigram": unigram,
        "bigram": BigramModel(sizes).fit(train),
        **({"bigram of one codebook": BigramModel(sizes, lag=len(sizes)).fit(train)} if len(sizes) > 1 else {}),
    }
    found: dict[str, list[np.ndarray]] = {}
    for name, model in (("language model", music.model), ("untrained", untrained(music, seed).model)):
        rows = [recording_bits(model, music.layout, part) for part in track(codes, name, len(codes))]
        found[name] = [np.where(np.isnan(row), unigram.bits(part), row) for row, part in zip(rows, codes, strict=True)]
    found |= {name: [model.bits(part) for part in codes] for name, model in ngrams.items()}
    seconds = {name: [bits.sum(axis=0).mean() * rate for bits in rows] for name, rows in found.items()}
    result = {}
    for name, rows in found.items():
        against = None
        if name != "language model":
            against = difference_estimate(seconds["language model"], seconds[name], units, seed)
        per_book = np.concatenate(rows, axis=1).mean(axis=1).tolist()
        by_recording = [float(value) for value in seconds[name]]
        result[name] = BitsOfSystem(mean_estimate(seconds[name], units, seed), per_book, against, by_recording)
    return result


def untrained(music: MusicModel, seed: int = 0) -> MusicModel:
    """The same model with the weights that training starts from."""
    model = music.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained"))
        fresh = GPT(model.config, model.vocab_size, model.prefix).to(model.device).eval()
    return MusicModel(fresh, music.layout, music.codec, music.spec)


def code_entropy(codes: Iterable[Tensor], sizes: tuple[int, ...]) -> dict[str, list[float]]:
    """Entropy in bits and perplexity of each codebook's codes on the measured recordings."""
    counts = [np.zeros(size) for size in sizes]
    for part in codes:
        for count, row in zip(counts, part.numpy(), strict=True):
            count += np.bincount(row, minlength=len(count))
    shares = [count[count > 0] / count.sum() for count in counts]
    entropy = [float(-(share * np.log2(share)).sum()) for share in shares]
    return {"bits": entropy, "perplexity": [2**bits for bits in entropy]}


def cut_places(clips: list[Clip], length_s: float, most: int) -> list[tuple[Clip, float]]:
    """Stretches side by side, taken in turn from every recording that is long enough: (clip, start in s)."""
    places = []
    for clip in clips:
        for turn, start in enumerate(np.arange(0, clip.duration_s - length_s + 1e-6, length_s)):
            places.append((turn, clip, float(start)))
    places.sort(key=lambda place: place[0])
    return [(clip, start) for _, clip, start in places[:most]]


def _excerpt(music: MusicModel, clip: Clip, start: float, length_s: float) -> Tensor:
    """(1, 1, N) of a recording."""
    rate = music.codec.spec.sample_rate
    wav = load_audio(clip.path, rate, start_s=start, duration_s=length_s).wav[0]
    return torch.nn.functional.pad(wav, (0, round(length_s * rate) - len(wav)))[None, None]


def resynthesis(music: MusicModel, places: list[tuple[Clip, float]], length_s: float, seed: int) -> dict[str, Any]:
    """Mel distance of what the tokens alone sound like to the recordings, beside noise of the same envelope."""
    values, noise, units, rate = [], [], [], music.codec.spec.sample_rate
    if music.codec.spec.output_sample_rate != rate:
        return {}  # the two cannot be laid beside each other
    for clip, start in track(places, "resynthesis", len(places)):
        wav = _excerpt(music, clip, start, length_s)
        with torch.inference_mode():
            tokens = music.codec.encode(wav.to(getattr(music.codec, "device", "cpu")), n_q=music.n_q)
            back = music.codec.decode(tokens)[0][0, 0].cpu()
        values.append(mel_distance(back[: wav.shape[2]], wav[0, 0], rate))
        noise.append(mel_distance(shaped_noise(wav[0, 0], rate, seed), wav[0, 0], rate))
        units.append(unit_of(clip)[1])
    return {
        "mel": mean_estimate(values, units, seed).to_dict(),
        "mel_shaped_noise": mean_estimate(noise, units, seed).to_dict(),
    }


def write_sets(
    music: MusicModel, places: list[tuple[Clip, float]], cut: tuple[float, float], out: Path, seed: int,
    sampling: Sampling, controls: bool = False,
) -> None:  # fmt: skip
    """Writes prompts, what really follows, what the codec makes of it, and what the model adds, as FLAC.

    `sets.jsonl` names the files of each prompt. All but the prompt leave the prompt out. With `controls` there are two
    files more, see `CONTROLS`.
    """
    rate, spec = music.codec.spec.output_sample_rate, music.codec.spec
    frames = music.frames(cut[0])
    for name in (*SETS, *(CONTROLS if controls else ())):
        (out / name).mkdir(parents=True, exist_ok=True)
    rows, border = [], round(frames / spec.frame_rate * rate)
    source = round(frames / spec.frame_rate * spec.sample_rate)
    fresh = untrained(music, seed) if controls else None
    for first in track(range(0, len(places), TOGETHER), "continuing", -(-len(places) // TOGETHER)):
        numbers = range(first, min(first + TOGETHER, len(places)))
        wholes = [_excerpt(music, *places[number], sum(cut)) for number in numbers]
        with torch.inference_mode():
            known = [music.codec.encode(whole.to(getattr(music.codec, "device", "cpu")), n_q=music.n_q)
                     for whole in wholes]  # fmt: skip
        seeds = [derive_seed(seed, "prompt", number) for number in numbers]
        made = _continue(music, known, frames, cut[1], seeds, sampling)
        others = None if fresh is None else _continue(fresh, known, frames, cut[1], seeds, sampling)
        for place, number in enumerate(numbers):
            whole, tokens = wholes[place], known[place]
            wavs = {
                "prompt": (whole[0, :, :source], spec.sample_rate),
                "reference": (whole[0, :, source:], spec.sample_rate),
                "resynthesis": (_decoded(music, tokens)[:, border:], rate),
                "continuation": (made[place][:, border:], rate),
            }
            if others is not None:
                dealt = _shuffled(tokens, frames, derive_seed(seed, "shuffled", number))
                wavs |= {"untrained": (others[place][:, border:], rate),
                         "shuffled": (_decoded(music, dealt)[:, border:], rate)}  # fmt: skip
            clip, start = places[number]
            row = {"id": f"{number:03d}", "source": clip.id, "start": start, "piece": unit_of(clip)[1]}
            for name, (wav, its_rate) in wavs.items():
                save_audio(out / name / f"{number:03d}.flac", wav, its_rate)
                row[name] = f"{name}/{number:03d}.flac"
            rows.append(row)
    (out / "sets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _continue(
    music: MusicModel, known: list[AudioTokens], frames: int, seconds: float, seeds: list[int], sampling: Sampling
) -> list[Tensor]:
    """(1, N) audio of each prompt, the first `frames` of its tokens, and what a model adds to them."""
    prompts = torch.cat([tokens.codes[:, : music.n_q, :frames] for tokens in known])
    new = continue_codes(music.model, music.layout, prompts, music.frames(seconds), sampling, seeds).to(prompts.device)
    spec = music.codec.spec.take(music.n_q)
    return [_decoded(music, stack_codes([row], spec)) for row in torch.cat([prompts, new], dim=2)]


def _decoded(music: MusicModel, tokens: AudioTokens) -> Tensor:
    """(1, N) audio of one row of tokens."""
    with torch.inference_mode():
        return music.codec.decode(tokens)[0][0].cpu()


def _shuffled(tokens: AudioTokens, frames: int, seed: int) -> AudioTokens:
    """Tokens whose codes behind the first `frames` are dealt out anew, each codebook by itself."""
    rng, codes = torch.Generator().manual_seed(seed % 2**63), tokens.codes.clone()
    for book in range(codes.shape[1]):
        order = frames + torch.randperm(codes.shape[2] - frames, generator=rng)
        codes[0, book, frames:] = codes[0, book, order.to(codes.device)]
    return replace(tokens, codes=codes)


def format_music(data: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{data['codec']}, {data['layout']} of {data['n_q']} codebook(s); {data['recordings']} recordings of split "
        f"{data['split']}, {data['seconds']:.0f} s",
        "",
        f"{'':24}{'bits per second':>28}   bits per code, by codebook",
    ]
    for name, system in data["bits"].items():
        value = system["bits_per_s"]
        interval = "" if value["low"] is None else f" [{value['low']:.0f}, {value['high']:.0f}]"
        books = " ".join(f"{bits:.2f}" for bits in system["bits_per_code"])
        lines.append(f"{name:24}{value['value']:>12.1f}{interval:>16}   {books}")
    entropy = " ".join(f"{bits:.2f}" for bits in data["code_entropy"]["bits"])
    total = sum(data["code_entropy"]["bits"]) * data["frame_rate"]
    lines.append(f"{'entropy of these codes':24}{total:>12.1f}{'':16}   {entropy}")
    model = data["bits"]["language model"]["bits_per_s"]["value"]
    for name in ("unigram", "bigram", "bigram of one codebook"):
        if name in data["bits"]:
            less = 1 - model / data["bits"][name]["bits_per_s"]["value"]
            lines.append(f"the model needs {abs(less):.1%} {'less' if less > 0 else 'more'} than the {name}")
    if data["resynthesis"]:
        mel, noise = (data["resynthesis"][key]["value"] for key in ("mel", "mel_shaped_noise"))
        if mel is not None:
            lines.append(f"resynthesis of the real tokens: mel {mel:.3f} (shaped noise {noise:.3f})")
    if "sets" in data:
        lines.append(f"sets of {data['sets']['prompts']} prompts: {data['sets']['folder']}")
    return "\n".join(lines)
