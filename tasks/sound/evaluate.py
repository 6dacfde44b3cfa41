"""Text to sound measured: what runs make of the captions of unseen recordings, beside what it must beat and what it
cannot beat.

Of every run: sounds from the captions; from captions of other classes; by the same model untrained; the codec's
resynthesis of the recordings; and codes of the recordings dealt out at random. Beside them training recordings of the
same classes, which is what a perfect model would give, and white noise. All systems stand for the same rows, so
differences are paired.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcodec_lm.codec.audio import load_audio, resample, save_audio
from xcodec_lm.codec.clips import Clip, Split, read_manifests
from xcodec_lm.codec.distances import white_noise
from xcodec_lm.codec.runtime.order import derive_seed, generator
from xcodec_lm.codec.runtime.progress import Progress, say, track
from xcodec_lm.codec.tokens import AudioTokens, stack_codes
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.lm.conditioning import ConditionedGPT
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.tasks.eval.reconstruction import unit_of
from xcodec_lm.tasks.eval.train_evaluators import thin
from xcodec_lm.tasks.sound.captions import captions_of
from xcodec_lm.tasks.sound.judging import Judges, check_judges, hear
from xcodec_lm.tasks.sound.make import SoundModel, file_stem
from xcodec_lm.tasks.sound.scoring import REAL, Scores, System, score
from xcodec_lm.tasks.sound.sound_class import class_of

MOST_TRAINING = 400
"""Training clips, spread evenly, that projections are fitted on and copies are looked for in."""
LONGEST_S = 30.0
"""Of a training clip."""


@dataclass(frozen=True)
class Making:
    """How sounds are made.

    Attributes:
        seconds: of each; None takes the median of the recordings, at most what every model sees at once.
        samples: sounds of each caption.
        guidance: None for each model's usual one.
        sampling: how codes are drawn.
        seed: of draws, controls and intervals.
    """

    seconds: float | None = None
    samples: int = 1
    guidance: float | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0


def evaluate_sound(
    runs: Sequence[tuple[str, SoundModel]], manifests: Sequence[Path], judges: Judges, out: Path | None = None,
    making: Making = Making(), split: Split = "test", most: int | None = None, controls: bool = True,
    rate: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Makes a sound for every caption of a split with every run, and measures the sounds.

    Args:
        runs: names and models; the first is compared with each of the others.
        manifests: rows with `audio`, and `caption` or `captions`; where known `label` or `class`, and `recording`.
        judges: who judges; `check_judges` is asked whether they may.
        out: folder for the sounds; None writes none.
        making: how sounds are made.
        split: of the captions.
        most: take the first so many rows alone.
        controls: also other captions, untrained models and shuffled codes.
        rate: at which all are judged, in Hz; None takes the lowest of the codecs.

    Returns:
        Plain values: `systems`, `differences`, `nearest`, `items`, `judges`; `scoring.format_sound` makes a table.

    Raises:
        UsageError: no row with a caption, or two runs of one name.
        XcodecLMError: a judge that conditions a run, or a recording that cannot be read.
    """
    if len({name for name, _ in runs}) < len(runs):
        raise UsageError("two runs have one name", "copy or rename one of the folders")
    clips = read_captioned(manifests, split)[:most]
    training = thin(read_manifests(list(manifests), "train"), MOST_TRAINING)
    check_judges(judges, [(name, sound.clap) for name, sound in runs], clips)
    seconds = making.seconds or default_seconds(clips, [sound for _, sound in runs])
    rate = rate or min(sound.codec.spec.output_sample_rate for _, sound in runs)
    real = [
        load_audio(clip.path, rate, duration_s=seconds).wav[0].numpy() for clip in track(clips, "reading", len(clips))
    ]
    known = [load_audio(clip.path, rate, duration_s=LONGEST_S).wav[0].numpy()
             for clip in track(training, "reading", len(training))]  # fmt: skip
    systems = [
        System(REAL, [real]),
        System("training recordings", [_counterparts(clips, training, known, making.seed, round(seconds * rate))]),
    ]
    others = other_rows(clips, making.seed)
    if controls and others is None:
        say("all captions are of one class: there is no other caption to compare with")
    with Progress("sound eval", len(runs) * (2 + 3 * controls)) as shown:
        for name, sound in runs:
            tokens = [_encode(sound, clip, seconds) for clip in clips]
            captions = [captions_of(clip.row)[0] if sound.clap else class_of(clip) for clip in clips]
            for what, make in _jobs(sound, captions, others, tokens, seconds, making, controls):
                sets = [[_played(wav, own, rate) for wav in wavs] for wavs, own in make()]
                systems.append(System(f"{name}: {what}", sets, run=name))
                shown.update(len(systems) - 2)
    noise = [white_noise(torch.from_numpy(wav), derive_seed(making.seed, "noise", row)).clamp(-1, 1).numpy()
             for row, wav in enumerate(real)]  # fmt: skip
    systems.append(System("white noise", [noise]))
    if out is not None:
        for system in systems[2:]:
            _write(system, clips, out, rate)
    for system in track(systems, "judging", len(systems)):
        system.heard = [hear(judges, wavs, rate) for wavs in system.sets]
    material = Scores(
        clips, [unit_of(clip)[1] for clip in clips], [class_of(clip) for clip in clips],
        [captions_of(clip.row)[0] for clip in clips], training, known, rate, seconds, [name for name, _ in runs],
        judges, making.seed, {name: sound.codec for name, sound in runs},
    )  # fmt: skip
    data = score(material, systems)
    return {
        "split": split, "rows": len(clips), "seconds": seconds, "samples": making.samples, "sample_rate": rate,
        "runs": {name: _run_facts(sound, making) for name, sound in runs}, "judges": judges.facts(), **data,
    }  # fmt: skip


def read_captioned(manifests: Sequence[Path], split: Split) -> list[Clip]:
    """The clips of a split that have a caption.

    Raises:
        UsageError: there are none.
    """
    rows = read_manifests(list(manifests), split)
    clips = [clip for clip in rows if captions_of(clip.row)]
    if len(clips) < len(rows):
        say(f"{len(rows) - len(clips)} of {len(rows)} rows of split {split} have no caption and are left out")
    if len(clips) < 2:
        raise UsageError(
            f"{', '.join(map(str, manifests))}: {len(clips)} rows of split {split} have a caption",
            "give a manifest with `caption` or `captions`, or another --split",
        )
    return clips


def default_seconds(clips: Sequence[Clip], sounds: Sequence[SoundModel]) -> float:
    """The median length of recordings, at most what every model sees at once."""
    return round(min(float(np.median([clip.duration_s for clip in clips])), *(sound.seen_s for sound in sounds)), 2)


def other_rows(clips: Sequence[Clip], seed: int = 0) -> list[int] | None:
    """For each row another one of another class, or without classes of another caption; None if there is none."""
    said = [class_of(clip) or captions_of(clip.row)[0] for clip in clips]
    if len(set(said)) < 2:
        return None
    order = torch.randperm(len(clips), generator=generator(seed, "other captions")).tolist()
    place = {row: number for number, row in enumerate(order)}
    found = []
    for row in range(len(clips)):
        following = (order[(place[row] + step) % len(order)] for step in range(1, len(order)))
        found.append(next(other for other in following if said[other] != said[row]))
    return found


def untrained(sound: SoundModel, seed: int = 0) -> SoundModel:
    """The same model with the weights that training starts from."""
    model = sound.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained"))
        fresh = ConditionedGPT(model.config, model.vocab_size, model.condition.config)
    other = copy.copy(sound)
    other.model = fresh.to(model.device).order_for_decoding().eval()
    return other


# ------------------------------------------------------------------ what is made

Sets = list[tuple[list[np.ndarray], int]]
"""Sounds of all rows, and their rate; as many as there are samples."""


def _jobs(
    sound: SoundModel, captions: list[str], others: list[int] | None, tokens: list[AudioTokens], seconds: float,
    making: Making, controls: bool,
) -> list[tuple[str, Callable[[], Sets]]]:  # fmt: skip
    """What is made with a run, by name."""

    def made(model: SoundModel, texts: list[str], samples: int) -> Sets:
        seeds = [derive_seed(making.seed, "row", row) for row in range(len(texts))]  # equal captions, other sounds
        found = model.make(texts, seconds, seeds, making.guidance, making.sampling, samples)
        wavs = [wav[0].float().numpy() for wav in found.wavs]
        return [(wavs[number::samples], found.sample_rate) for number in range(samples)]

    jobs: list[tuple[str, Callable[[], Sets]]] = [
        ("made", lambda: made(sound, captions, making.samples)),
        ("resynthesis", lambda: [_decoded(sound, tokens)]),
    ]
    if controls:
        if others is not None:
            jobs.append(("other caption", lambda: made(sound, [captions[row] for row in others], 1)))
        jobs.append(("untrained", lambda: made(untrained(sound, making.seed), captions, 1)))
        jobs.append(("shuffled codes", lambda: [_decoded(sound, shuffle_codes(tokens, making.seed))]))
    return jobs


def _encode(sound: SoundModel, clip: Clip, seconds: float) -> AudioTokens:
    """Codes of a recording, with as many codebooks as the model speaks."""
    audio = load_audio(clip.path, sound.codec.spec.sample_rate, duration_s=seconds)
    with torch.inference_mode():
        wav = audio.wav[None].to(getattr(sound.codec, "device", "cpu"))
        tokens = sound.codec.encode(wav, n_q=len(sound.layout.books))
    return stack_codes([tokens.codes[0, :, : int(tokens.lengths[0])].cpu().clone()], tokens.spec)


def _decoded(sound: SoundModel, tokens: Sequence[AudioTokens]) -> tuple[list[np.ndarray], int]:
    wavs = [sound.decode(one)[0].float().numpy() for one in tokens]
    return wavs, sound.codec.spec.output_sample_rate


def shuffle_codes(tokens: Sequence[AudioTokens], seed: int = 0) -> list[AudioTokens]:
    """The codes of all recordings dealt out anew, each codebook by itself: how often each occurs is all that stays."""
    pool = torch.cat([one.codes[0] for one in tokens], dim=1)  # (n_q, all frames)
    rng = generator(seed, "shuffled codes")
    dealt = torch.stack([book[torch.randperm(pool.shape[1], generator=rng)] for book in pool])
    parts = dealt.split([one.codes.shape[2] for one in tokens], dim=1)
    return [stack_codes([part], one.spec) for part, one in zip(parts, tokens, strict=True)]


def _counterparts(
    clips: Sequence[Clip], training: Sequence[Clip], wavs: Sequence[np.ndarray], seed: int, samples: int
) -> list[np.ndarray]:
    """For each row the sound of a training clip of its class, or of any where its class is not known there."""
    if not training:
        raise XcodecLMError("the manifests have no row of split train", "they are needed to compare with")
    found = []
    for row, clip in enumerate(clips):
        alike = [index for index, one in enumerate(training) if class_of(one) == class_of(clip)]
        pool = alike if class_of(clip) and alike else list(range(len(training)))
        chosen = pool[int(torch.randint(len(pool), (), generator=generator(seed, "counterpart", row)))]
        found.append(wavs[chosen][:samples])
    return found


def _played(wav: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """A sound as a file would hold it, at the rate at which all are judged; none at all is a moment of silence."""
    if not len(wav):
        return np.zeros(to_rate // 10, np.float32)
    return np.clip(resample(wav, rate, to_rate), -1, 1).astype(np.float32)


def _write(system: System, clips: Sequence[Clip], out: Path, rate: int) -> None:
    for number, wavs in enumerate(system.sets):
        for clip, wav in zip(clips, wavs, strict=True):
            path = sound_file(out, system.name, clip.id, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_audio(path, torch.from_numpy(wav)[None], rate)


def sound_file(out: Path, system: str, row: str, sample: int = 0) -> Path:
    """Where a system's sound for a row lies."""
    return out / file_stem(system) / f"{row}{f'-{sample + 1}' if sample else ''}.flac"


def _run_facts(sound: SoundModel, making: Making) -> dict[str, Any]:
    return {
        "codec": sound.codec.spec.name,
        "fingerprint": sound.spec.fingerprint,
        "layout": sound.layout.name,
        "n_q": len(sound.layout.books),
        "conditioner": sound.clap.name if sound.clap else "labels",
        "conditioner_fingerprint": sound.clap.fingerprint if sound.clap else None,
        "cfg": sound.default_guidance if making.guidance is None else making.guidance,
    }
