"""Every figure of the demo's report, each beside what it must beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.evaluate import Evaluation, evaluate
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.tokens import stack_codes
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.lm import anchors
from xcodec_lm.lm.engine import continue_codes
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import TokenStore
from xcodec_lm.tasks.eval.frechet import Projection, frechet_distance
from xcodec_lm.tasks.eval.texture import texture
from xcodec_lm.tasks.music.continuation import MusicModel, load_music

SHOWN = 3
"""Excerpts with players in the report."""
N_QS = (1, 2, 4, 8)
TRAIN_CLIPS = 40
"""Training recordings that the texture projection is fitted on."""
PIECES_FOR_A_VERDICT = 10


@dataclass(frozen=True)
class Excerpt:
    """A held-out excerpt and what was made of it.

    Attributes:
        name: its recording and where it begins.
        piece: unit of resampling.
        original: (N,) prompt and what really follows.
        reconstructions: n_q -> (N,).
        continuations: system -> (N,), each beginning with the reconstructed prompt.
    """

    name: str
    piece: str
    original: Tensor
    reconstructions: dict[int, Tensor] = field(default_factory=dict)
    continuations: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What the demo measured.

    Attributes:
        reconstruction: the codec on the held-out excerpts.
        bits: system -> bits per token on held-out recordings.
        texture: system -> Fréchet distance of its continuations to what really follows.
        excerpts: those that were continued.
        pieces: how many different pieces they come from.
        tokens: how many held-out tokens the bits are a mean of.
        sample_rate: of all audio, in Hz.
        prompt_s: length of the prompts.
        n_q: codebooks of the language model.
        teacher: the codec's teacher.
        codec: its name.
        codebook_size: codes of one codebook.
        fingerprint: of the codec.
    """

    reconstruction: Evaluation
    bits: dict[str, float]
    texture: dict[str, float]
    excerpts: list[Excerpt]
    pieces: int
    tokens: int
    sample_rate: int
    prompt_s: float
    n_q: int
    teacher: str
    codec: str
    codebook_size: int
    fingerprint: str


def score(out: Path, manifest: Path, split: str, count: int, prompt_s: float, seconds: float, seed: int) -> Scores:
    """Scores a demo's codec and language model on held-out recordings and writes samples.

    Args:
        out: the demo's folder, with `tokens` and `music` done.
        manifest: of the corpus.
        split: held-out split.
        count: excerpts to continue, spread over the pieces.
        prompt_s: length of a prompt.
        seconds: length of a continuation.
        seed: of the continuations.
    """
    store = TokenStore.open(out / "tokens")
    music = load_music(out / "music")
    codec, layout = music.codec, music.layout
    if not isinstance(codec, XCodec):
        raise TypeError("the demo's codec is an XCodec")
    rate = codec.spec.sample_rate
    excerpts = cut_excerpts(read_manifests([manifest], split), rate, count, prompt_s + seconds)  # type: ignore[arg-type]
    say(f"measuring {len(excerpts)} excerpts of {split} recordings")
    reconstruction = evaluate(codec, [excerpt.original[None] for excerpt in excerpts], N_QS)
    train_codes, held_out = (
        [torch.from_numpy(store.codes(i).astype(np.int64)).T for i in store.split(name)] for name in ("train", split)
    )
    untrained = untrained_like(music.model, seed)
    sizes = codec.spec.codebook_sizes[: music.n_q]
    unigram = anchors.UnigramModel(sizes).fit(train_codes)
    bigrams = {
        "bigram": anchors.BigramModel(sizes).fit(train_codes),
        "bigram of one codebook": anchors.BigramModel(sizes, lag=len(sizes)).fit(train_codes),
    }
    bits = {
        "language model": float(anchors.model_bits(music.model, layout, held_out, unigram).mean()),
        "untrained model": float(anchors.model_bits(untrained, layout, held_out, unigram).mean()),
        "unigram": float(anchors.mean_bits(unigram, held_out).mean()),
        **{name: float(anchors.mean_bits(model, held_out).mean()) for name, model in bigrams.items()},
    }
    say("continuing the prompts")
    make_continuations(excerpts, music, untrained, bigrams["bigram"], prompt_s, seconds, seed)
    write_samples(out / "samples", excerpts, prompt_s, rate)
    return Scores(
        reconstruction=reconstruction,
        bits=bits,
        texture=texture_distances(excerpts, read_manifests([manifest], "train"), rate, prompt_s, seconds),
        excerpts=excerpts,
        pieces=len({excerpt.piece for excerpt in excerpts}),
        tokens=sum(codes.shape[1] for codes in held_out) * music.n_q,
        sample_rate=rate,
        prompt_s=prompt_s,
        n_q=music.n_q,
        teacher=codec.semantic_config.teacher,
        codec=codec.spec.name,
        codebook_size=max(codec.spec.codebook_sizes),
        fingerprint=codec.spec.fingerprint,
    )


def cut_excerpts(clips: list[Clip], rate: int, count: int, length_s: float) -> list[Excerpt]:
    """Up to `count` excerpts side by side, taken in turn from every recording that is long enough."""
    places = []
    for clip in clips:
        starts = np.arange(0, clip.duration_s - length_s + 1e-6, length_s)
        places += [(round_, clip, float(start)) for round_, start in enumerate(starts)]
    places.sort(key=lambda place: place[0])
    excerpts = []
    for _, clip, start in places[:count]:
        wav = load_audio(clip.path, rate, start_s=start, duration_s=length_s).wav[0]
        wav = torch.nn.functional.pad(wav, (0, round(length_s * rate) - len(wav)))
        piece = str(clip.row.get("piece") or clip.id)
        excerpts.append(Excerpt(f"{clip.id} from {start:.0f} s", piece, wav))
    return excerpts


def untrained_like(model: GPT, seed: int) -> GPT:
    """A model of the same sizes with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained"))
        return GPT(model.config, model.vocab_size, model.prefix).eval()


@torch.inference_mode()
def make_continuations(
    excerpts: list[Excerpt], music: MusicModel, untrained: GPT, bigram: anchors.BigramModel,
    prompt_s: float, seconds: float, seed: int,
) -> None:  # fmt: skip
    """Fills in every excerpt's reconstructions and continuations."""
    codec, layout = music.codec, music.layout
    originals = torch.stack([excerpt.original for excerpt in excerpts])[:, None]  # (B, 1, N)
    tokens = codec.encode(originals)
    for n_q in (n for n in N_QS if n <= codec.spec.n_q):
        for excerpt, wav in zip(excerpts, codec.decode(tokens.take(n_q))[0], strict=True):
            excerpt.reconstructions[n_q] = wav[0]
    prompt_frames, frames = music.frames(prompt_s), music.frames(seconds)
    prompts = codec.encode(originals[:, :, : round(prompt_s * codec.spec.sample_rate)], n_q=music.n_q).codes.clone()
    following = tokens.codes[:, : music.n_q, prompt_frames : prompt_frames + frames].clone()
    sampling = Sampling(temperature=1.0)
    made = {
        "language model": continue_codes(music.model, layout, prompts, frames, sampling, seed),
        "untrained model": continue_codes(untrained, layout, prompts, frames, sampling, seed),
        "bigram": torch.stack([bigram.sample(row, frames, seed + i) for i, row in enumerate(prompts)]),
        "repeat last frame": torch.stack([anchors.repeat_last_frame(row, frames) for row in prompts]),
        "shuffled tokens": torch.stack([anchors.shuffled(row, seed + i) for i, row in enumerate(following)]),
        "codec, real tokens": following,
    }
    spec = codec.spec.take(music.n_q)
    for system, codes in made.items():
        whole = torch.cat([prompts, codes], dim=2)
        for excerpt, wav in zip(excerpts, codec.decode(stack_codes(list(whole), spec))[0], strict=True):
            excerpt.continuations[system] = wav[0]
    for excerpt in excerpts:
        silent = excerpt.continuations["language model"].clone()
        silent[round(prompt_s * codec.spec.sample_rate) :] = 0
        excerpt.continuations["silence"] = silent


def texture_distances(
    excerpts: list[Excerpt], train: list[Clip], rate: int, prompt_s: float, seconds: float
) -> dict[str, float]:
    """Fréchet distance of texture features between what really follows and what each system made."""
    known = np.concatenate([texture(load_audio(clip.path, rate).wav[0], rate) for clip in train[:TRAIN_CLIPS]])
    project = Projection.fit(known)
    start, stop = round(prompt_s * rate), round((prompt_s + seconds) * rate)

    def features(wavs: list[Tensor]) -> np.ndarray:
        return project(np.concatenate([texture(wav[start:stop], rate) for wav in wavs]))

    real = features([excerpt.original for excerpt in excerpts])
    systems = list(excerpts[0].continuations)
    result = {name: frechet_distance(real, features([e.continuations[name] for e in excerpts])) for name in systems}
    return result | {"training recordings": frechet_distance(real, project(known))}


def write_samples(folder: Path, excerpts: list[Excerpt], prompt_s: float, rate: int) -> None:
    """Prompt, original and continuation of every excerpt as FLAC."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, excerpt in enumerate(excerpts):
        save_audio(folder / f"{index:02d}-prompt.flac", excerpt.original[: round(prompt_s * rate)], rate)
        save_audio(folder / f"{index:02d}-original.flac", excerpt.original, rate)
        save_audio(folder / f"{index:02d}-continuation.flac", excerpt.continuations["language model"], rate)
