"""Batches of sounds with captions for the training of a CLAP: drawn, varied, mixed, and their captions with them.

Every draw is a function of (seed, step, item), so a run that was stopped goes on exactly.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.clap import ClapDataConfig, ClapTrainConfig
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.tasks.data.provenance import describe_rows
from xcodec_lm.tasks.eval.judge_augment import augment
from xcodec_lm.tasks.sound.clap import fill_window

JOINS = ("{} and {}", "{} with {}", "{} while {}", "{}, {}", "{} in {}")
PHRASES = ("the sound of {}", "{} can be heard", "a recording of {}", "{} nearby", "{} in the distance", "{}.")
SILENT_POWER = 1e-10


@dataclass(frozen=True)
class Batch:
    """Sounds with their captions.

    Attributes:
        wavs: (B, N) windows.
        captions: what is read.
        names: the captions before any phrase was put around them; equal ones say the same.
        labels: labels of what is heard; empty where a clip has none.
    """

    wavs: Tensor
    captions: list[str]
    names: list[str]
    labels: list[frozenset[str]]


def caption_of(clip: Clip) -> str:
    """A clip's caption; "" where it has none."""
    caption = clip.row.get("caption")
    return " ".join(caption.split()) if isinstance(caption, str) else ""


def label_of(clip: Clip) -> str:
    """A clip's label in plain words, without groups and numbers: "toyland: bus start (2)" is "bus start"."""
    label = clip.row.get("label")
    if not isinstance(label, str):
        return ""
    return " ".join(re.sub(r"\([^)]*\)", " ", label.rpartition(":")[2]).replace("/", " or ").replace("_", " ").split())


def unit_of(clip: Clip) -> str:
    """What must not be on both sides of a split: the original recording, else the clip."""
    return str(clip.row.get("recording") or clip.id)


def divide(config: ClapDataConfig) -> tuple[list[Clip], list[Clip]]:
    """Captioned clips to train on and clips to validate on; rows of split test are in neither.

    Raises:
        ConfigError: no manifest, or fewer than two captions to train on.
    """
    if not config.manifests:
        raise ConfigError("data.manifests is empty", "name manifests: --data corpus/sound.jsonl")
    rows = [clip for clip in read_manifests(config.manifests) if clip.split != "test"]
    clips = [clip for clip in rows if caption_of(clip)]
    if len(clips) < len(rows):
        say(f"note: {len(rows) - len(clips)} of {len(rows)} clips have no `caption` and are left out")
    if config.split_seed:
        units = sorted({unit_of(clip) for clip in clips})
        order = torch.randperm(len(units), generator=generator(config.split_seed, "clap split")).tolist()
        held_out = {units[index] for index in order[: max(1, round(config.dev_share * len(units)))]}
        train = [clip for clip in clips if unit_of(clip) not in held_out]
        dev = [clip for clip in clips if unit_of(clip) in held_out]
    else:
        train = [clip for clip in clips if clip.split != "dev"]
        dev = [clip for clip in clips if clip.split == "dev"]
    if len({caption_of(clip) for clip in train}) < 2:
        raise ConfigError(
            f"{len(train)} training clips have fewer than two different captions",
            "give manifests whose rows of split train have `caption`",
        )
    return train, dev


def ancestry_of(config: ClapTrainConfig, clips: Sequence[Clip]) -> dict[str, Any]:
    """What a CLAP descends from: the clips that it was trained on, by manifest, and how."""
    entries = []
    for manifest in map(Path, config.data.manifests):
        own = {clip.id for clip in read_manifests([manifest])}
        rows = [{**clip.row, "id": clip.id, "duration": clip.duration_s} for clip in clips if clip.id in own]
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        entries.append({"manifest": manifest.name, "sha256": digest, **describe_rows(manifest.name, rows)})
    return {
        "trained_on": entries,
        "split_seed": config.data.split_seed,
        "weights_from": "none: random initial values",
        "seed": config.run.seed,
        "steps": config.optim.steps,
    }


class CaptionedClips:
    """Training clips as batches.

    Args:
        config: of the run.
        clips: with captions.
    """

    def __init__(self, config: ClapTrainConfig, clips: Sequence[Clip]):
        self.config, self.clips, self.seed = config, clips, config.run.seed
        audio = config.model.audio
        self.rate, self.window = audio.sample_rate, audio.window_s * audio.sample_rate
        counts = Counter(label_of(clip) for clip in clips)
        self.weights = torch.tensor(
            [counts[label_of(clip)] ** -config.data.balance if label_of(clip) else 1.0 for clip in clips]
        )
        self._load = lru_cache(maxsize=config.data.cached_clips)(self._read)
        self._variant = lru_cache(maxsize=config.data.cached_clips * config.data.variants)(self._vary)

    def batch(self, step: int) -> Batch:
        """The clips of a step."""
        items = [self._item(generator(self.seed, "clap", step, item)) for item in range(self.config.data.batch_clips)]
        wavs, captions, names, labels = zip(*items, strict=True)
        return Batch(torch.stack(wavs), list(captions), list(names), list(labels))

    def _item(self, rng: torch.Generator) -> tuple[Tensor, str, str, frozenset[str]]:
        loss = self.config.loss

        def chance(share: float) -> bool:
            return float(torch.rand((), generator=rng)) < share

        first = self._draw(rng)
        wav, name, labels = self._sound(first, rng), self._name(first, chance(loss.class_share)), {label_of(first)}
        if chance(loss.mix_share):
            second = self._draw(rng)
            if label_of(second) not in labels or not label_of(second):  # two barking dogs are not "a dog and a dog"
                other_name = self._name(second, chance(loss.class_share))
                decibels = loss.mix_db * (2 * float(torch.rand((), generator=rng)) - 1)
                wav, name = mix(wav, self._sound(second, rng), decibels), pick(JOINS, rng).format(name, other_name)
                labels.add(label_of(second))
        caption = pick(PHRASES, rng).format(name) if chance(loss.phrase_share) else name
        return wav, caption, name, frozenset() if "" in labels else frozenset(labels)

    def _draw(self, rng: torch.Generator) -> Clip:
        return self.clips[int(torch.multinomial(self.weights, 1, generator=rng))]

    def _name(self, clip: Clip, by_class: bool) -> str:
        return label_of(clip) if by_class and label_of(clip) else caption_of(clip)

    def _sound(self, clip: Clip, rng: torch.Generator) -> Tensor:
        """A varied window (N,) of a clip: cropped where it is long, else repeated and turned round its end."""
        longest = 1.25 * self.window / self.rate  # room for the change of speed
        if clip.duration_s > 2 * longest:
            start = float(torch.rand((), generator=rng)) * (clip.duration_s - longest)
            wav = augment(load_audio(clip.path, self.rate, start, longest).wav[0], self.config.augment, rng)
        elif variants := self.config.data.variants:
            wav = self._variant(clip.path, clip.id, int(torch.randint(variants, (), generator=rng))).float()
        else:
            wav = augment(self._load(clip.path), self.config.augment, rng)
        place = float(torch.rand((), generator=rng))
        if len(wav) > self.window:
            start = int(place * (len(wav) - self.window + 1))
            return wav[start : start + self.window]
        return fill_window(wav, self.window).roll(int(place * self.window))

    def _read(self, path: Path) -> Tensor:
        return load_audio(path, self.rate).wav[0]

    def _vary(self, path: Path, name: str, number: int) -> Tensor:
        """One of a clip's variations (N,), in half precision to hold many; which it is does not depend on the step."""
        return augment(self._read(path), self.config.augment, generator(self.seed, "variant", name, number)).half()


def mix(first: Tensor, second: Tensor, decibels: float) -> Tensor:
    """Two sounds (N,) at once, the second louder by so many decibels; the peak stays within full scale."""
    powers = [wav.square().mean().clamp_min(SILENT_POWER) for wav in (first, second)]
    both = first + second * (powers[0] / powers[1]).sqrt() * 10 ** (decibels / 20)
    return both / both.abs().max().clamp_min(1)


def mask_spectra(spectra: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """(B, 1, T, bands) with a stretch of up to a fifth of the time and of the bands set to the mean, in some rows."""
    spectra = spectra.clone()
    for row in spectra[:, 0]:  # (T, bands)
        if float(torch.rand((), generator=rng)) >= share:
            continue
        mean = row.mean()
        for axis, size in enumerate(row.shape):
            width = int(torch.randint(size // 5 + 1, (), generator=rng))
            start = int(torch.randint(size - width + 1, (), generator=rng))
            row.narrow(axis, start, width).fill_(mean)
    return spectra


def pick(options: Sequence[str], rng: torch.Generator) -> str:
    """One of the options."""
    return options[int(torch.randint(len(options), (), generator=rng))]
