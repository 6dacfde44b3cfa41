"""A small judge of what a sound is: log-mel frames, their statistics and a few convolutions, trained on labelled clips.

It hears no level, so that a quiet dog is a dog. A few hundred clips train it within a minute on one core. How good it
is on real clips that it has not heard must be read before anything that it says of generated ones.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.codec import fbank
from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.runtime.order import derive_seed, generator
from xcodec_lm.codec.runtime.progress import say, track
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.provenance import describe_rows
from xcodec_lm.tasks.eval.judge_audio import RANGE, SAMPLE_RATE, check_clips
from xcodec_lm.tasks.eval.judge_files import (
    find_judge,
    load_weights,
    module_fingerprint,
    read_judge_config,
    save_judge,
)
from xcodec_lm.tasks.eval.reconstruction import unit_of
from xcodec_lm.tasks.sound.clap_batches import label_of

MODEL_TYPE = "xcodec_lm_sound_class"
FOLDER = "sound_class"
"""Its place in a folder of judges."""
NAME = "tinycnn"
"""Behind the metrics that rest on it."""
LEAST_RECORDINGS = 6
"""A class with fewer recordings in split train is not learnt; clips of it are not judged."""
FRAME_RATE = 50
CHANNELS = (16, 32, 64)
DIM = 64
SHORTEST_S, CROP_S, LONGEST_S = 1.0, 2.5, 20.0
"""Shorter clips are repeated up to the first; training crops; what is heard of a clip at most."""
BATCH, STEPS = 24, 300
LEARNING_RATE, WEIGHT_DECAY, SMOOTHING, DROPOUT = 3e-3, 0.05, 0.1, 0.4
BANDS_MASKED, FRAMES_MASKED = 12, 25


def class_of(clip: Clip) -> str:
    """A clip's class: the field `class`, else its label in plain words; "" where it has none."""
    named = clip.row.get("class")
    return named.strip() if isinstance(named, str) and named.strip() else label_of(clip)


class SoundClassifier(nn.Module):
    """The network.

    Args:
        classes: their names.
    """

    def __init__(self, classes: Sequence[str]):
        super().__init__()
        self.classes = tuple(classes)
        sizes = (1, *CHANNELS)
        self.convs = nn.ModuleList(
            nn.Conv2d(one, two, 3, padding=1, bias=False) for one, two in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in CHANNELS)
        pooled = 2 * CHANNELS[-1] + 4 * fbank.BANDS
        self.scaled = nn.BatchNorm1d(pooled)
        self.dropout = nn.Dropout(DROPOUT)
        self.embed = nn.Linear(pooled, DIM)
        self.head = nn.Linear(DIM, len(classes))

    def vectors(self, frames: Tensor) -> Tensor:
        """(B, T, 80) of `sound_frames` -> (B, 64), what the classes are read from."""
        change = frames.diff(dim=1).abs()
        statistics = [frames.mean(dim=1), frames.std(dim=1), frames.amax(dim=1), change.mean(dim=1)]
        x = F.avg_pool2d(frames[:, None], (1, 2))  # (B, 1, T, 40)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.avg_pool2d(F.relu(norm(conv(x))), 2, ceil_mode=True)
        x = x.mean(dim=3)  # (B, C, T')
        pooled = torch.cat([x.mean(dim=2), x.amax(dim=2), *statistics], dim=1)
        return self.embed(self.dropout(self.scaled(pooled)))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, 80) -> logits (B, classes)."""
        return self.head(F.relu(self.vectors(frames)))


class SoundClassJudge:
    """A trained `SoundClassifier` as a judge.

    Args:
        model: in eval mode.
        ancestry: what it was trained on.
        name: shown in reports.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, model: SoundClassifier, ancestry: dict[str, Any] | None = None, name: str = NAME):
        self.model, self.ancestry, self.name = model, ancestry or {}, name
        self.classes, self.dim = model.classes, DIM

    @cached_property
    def fingerprint(self) -> str:
        """See `plugins.PlugIn`."""
        return module_fingerprint(self.model, {"classes": list(self.classes)})

    @torch.inference_mode()
    def clip(self, wav: np.ndarray) -> np.ndarray:
        """(64,) float32 of one clip, of its own length; see `plugins.Embedder`."""
        return self._vector(wav)[0].cpu().numpy()

    def frames(self, wav: np.ndarray) -> np.ndarray:
        """(1, 64): a clip has one vector."""
        return self.clip(wav)[None]

    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """(n, 64), see `plugins.Embedder`."""
        return np.stack([self.clip(wav) for wav in wavs]) if len(wavs) else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def class_logits(self, wav: np.ndarray) -> np.ndarray:
        """(K,) float32, see `plugins.Classifier`."""
        return self.model.head(F.relu(self._vector(wav)))[0].cpu().numpy()

    def _vector(self, wav: np.ndarray) -> Tensor:
        (checked,) = check_clips([wav])
        return self.model.vectors(sound_frames(checked)[None].to(self.model.head.weight.device))

    @torch.inference_mode()
    def judge(self, wavs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What is heard; each clip by itself.

        Args:
            wavs: (N,) float each at 16 kHz, in [-1, 1].

        Returns:
            (n, classes) probabilities, and (n, 64) the vectors that they are read from, of unit length.

        Raises:
            AudioError: a clip is empty, not finite, or not on the scale of [-1, 1].
        """
        device = self.model.head.weight.device
        shares, vectors = [], []
        for wav in check_clips(wavs):
            vector = self.model.vectors(sound_frames(wav)[None].to(device))
            shares.append(self.model.head(F.relu(vector)).softmax(dim=1)[0].cpu())
            vectors.append(F.normalize(vector, dim=1)[0].cpu())
        if not shares:
            return np.zeros((0, len(self.classes)), np.float32), np.zeros((0, self.dim), np.float32)
        return torch.stack(shares).numpy(), torch.stack(vectors).numpy()


def sound_frames(wav: Tensor) -> Tensor:
    """Log-mel frames every 20 ms between 0 and 1: 1 is the clip's loudest point, 0 is 60 dB below it.

    Args:
        wav: (N,) at 16 kHz; less than a second is repeated up to one, what lies beyond 20 s is not heard.

    Returns:
        (T, 80) float32, T at least 48.
    """
    least = round(SHORTEST_S * SAMPLE_RATE)
    wav = wav.repeat(-(-least // len(wav)))[:least] if len(wav) < least else wav[: round(LONGEST_S * SAMPLE_RATE)]
    x = fbank.log_mel(wav[None])[0].float()  # (frames of 10 ms, 80)
    step = 100 // FRAME_RATE
    x = x[: len(x) // step * step].unflatten(0, (-1, step)).logsumexp(dim=1)
    return ((x - x.max()) / RANGE + 1).clamp_min(0)


# ------------------------------------------------------------------ training


def learnable(clips: Sequence[Clip]) -> list[Clip]:
    """Clips of classes that have enough recordings."""
    units: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        units[class_of(clip)].add(unit_of(clip)[1])
    return [clip for clip in clips if class_of(clip) and len(units[class_of(clip)]) >= LEAST_RECORDINGS]


def train_sound_class(clips: Sequence[Clip], seed: int = 0, steps: int | None = None) -> SoundClassJudge:
    """A judge of the classes of clips, trained on them; classes are drawn evenly.

    Args:
        clips: of split train.
        seed: of weights and draws.
        steps: of 24 clips each; None takes `STEPS`.

    Raises:
        XcodecLMError: fewer than two classes have enough recordings, or a recording cannot be read.
    """
    known, steps = learnable(clips), STEPS if steps is None else steps
    classes = sorted({class_of(clip) for clip in known})
    if len(classes) < 2:
        raise XcodecLMError(
            f"{len(classes)} classes have {LEAST_RECORDINGS} recordings or more: no judge of classes can be trained",
            "give a manifest whose rows have `class` or `label`",
        )
    frames: dict[str, list[Tensor]] = {name: [] for name in classes}
    for clip in track(known, "reading clips for the judge of classes", len(known)):
        wav = load_audio(clip.path, SAMPLE_RATE, duration_s=LONGEST_S).wav[0]
        frames[class_of(clip)].append(sound_frames(wav))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "sound class"))
        model = SoundClassifier(classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
        for step in track(range(steps), "training the judge of classes", steps):
            batch, answers = _batch(frames, classes, seed, step)
            loss = F.cross_entropy(model(batch), answers, label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    counts = Counter(class_of(clip) for clip in known)
    say(f"{FOLDER}: {len(classes)} classes of {min(counts.values())} to {max(counts.values())} clips, {steps} steps")
    rows = [{**clip.row, "id": clip.id, "duration": clip.duration_s} for clip in known]
    ancestry = {"trained_on": [describe_rows("train", rows)], "seed": seed, "steps": steps,
                "weights_from": "none: random initial values"}  # fmt: skip
    return SoundClassJudge(model.eval().requires_grad_(False), ancestry)


def _batch(frames: dict[str, list[Tensor]], classes: Sequence[str], seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Crops (B, T, 80) with bands and stretches blanked, and shares of their classes (B, K): pairs are mixed."""
    crop = round(CROP_S * FRAME_RATE)
    rows, answers = [], []
    for item in range(BATCH):
        rng = generator(seed, "sound class", step, item)

        def draw(count: int, rng: torch.Generator = rng) -> int:
            return int(torch.randint(max(1, count), (), generator=rng))

        number = draw(len(classes))
        clip = frames[classes[number]][draw(len(frames[classes[number]]))]
        clip = clip.repeat(-(-crop // len(clip)), 1) if len(clip) < crop else clip
        start = draw(len(clip) - crop + 1)
        x = clip[start : start + crop].clone()
        band, frame = draw(fbank.BANDS), draw(crop)
        x[:, band : band + draw(BANDS_MASKED)] = 0
        x[frame : frame + draw(FRAMES_MASKED)] = 0
        tilt = (torch.rand((), generator=rng) - 0.5) * torch.linspace(-0.2, 0.2, fbank.BANDS)
        rows.append((x + tilt * (x > 0)).clamp(0, 1.2))
        answers.append(F.one_hot(torch.tensor(number), len(classes)).float())
    batch, targets = torch.stack(rows), torch.stack(answers)
    share = 0.3 * torch.rand((BATCH, 1), generator=generator(seed, "sound class", step, "mix"))
    batch = (1 - share[:, :, None]) * batch + share[:, :, None] * batch.roll(1, dims=0)
    return batch, (1 - share) * targets + share * targets.roll(1, dims=0)


# ------------------------------------------------------------------ files


def save_sound_class(judge: SoundClassJudge, folder: Path) -> None:
    """Writes a judge; `load_sound_class` reads it.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    save_judge(judge.model, folder, MODEL_TYPE, {"classes": list(judge.classes), "ancestry": judge.ancestry})


def load_sound_class(source: str | Path, device: str | torch.device = "cpu") -> SoundClassJudge:
    """A judge of classes from its folder, or from a folder of judges.

    Raises:
        XcodecLMError: none is there, or it is damaged.
    """
    folder = find_judge(source, FOLDER)
    header = read_judge_config(folder)
    classes = header.get("classes")
    if header.get("model_type") != MODEL_TYPE or not isinstance(classes, list):
        raise XcodecLMError(f"{folder / 'config.json'} describes no judge of sound classes", "train it again")
    model = SoundClassifier(classes)
    load_weights(model, folder)
    return SoundClassJudge(model.to(device), header.get("ancestry"))
