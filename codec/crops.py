"""Training crops and validation clips of the codecs, and how a step's crops are spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from xcodec_lm.codec.audio import load_audio, resample
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.runtime.order import DataOrder, generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.codec import CodecTrainConfig
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.xcodec2 import Xcodec2TrainConfig

TrainConfig = CodecTrainConfig | Xcodec2TrainConfig

CROP_DRAWS = 4
"""Places of a recording that are tried for a crop that is not silent."""
QUIET = 1e-3
"""RMS level (-60 dB) under which a crop counts as silent."""
CACHE_BYTES = 512 * 2**20
"""Decoded recordings kept in memory, so that small corpora are decoded once."""


def output_rate(config: TrainConfig) -> int:
    """Samples per second of the audio that the codec is to give back."""
    if isinstance(config, Xcodec2TrainConfig):
        return config.model.output_sample_rate
    return config.model.sample_rate


@dataclass(frozen=True)
class StepPlan:
    """How the clips of one optimizer step are spread over processes and micro-batches.

    Process r takes the contiguous clips r*local .. (r+1)*local of the step, so the order of clips does not depend on
    the number of processes.

    Attributes:
        clips: in a step, over all processes.
        local: of one process.
        micro: at once.
    """

    clips: int
    local: int
    micro: int

    @staticmethod
    def of(config: TrainConfig, world: int) -> StepPlan:
        """The plan for `world` processes.

        Raises:
            ConfigError: the clips cannot be spread evenly.
        """
        data = config.data
        clips = max(1, round(data.batch_s / data.crop_s))
        if clips % world:
            raise ConfigError(
                f"a step has {clips} clips (data.batch_s {data.batch_s} / data.crop_s {data.crop_s}), "
                f"which {world} processes cannot share evenly",
                f"choose data.batch_s as a multiple of {world * data.crop_s:g}",
            )
        local = clips // world
        micro = max(1, min(local, int(data.micro_batch_s / data.crop_s)))
        while local % micro:
            micro -= 1
        return StepPlan(clips, local, micro)


class Crops:
    """Training crops and validation clips of the manifests.

    Crop k of the run is a function of the seed and k alone. A recording counts once for every crop length it holds.
    Recordings shorter than a crop are followed by others that are, and silent stretches are passed over: in digital
    silence log spectra have gradients a thousand times those of sound, and clipping would leave nothing else of a step.
    Crops have the rate of the codec's output, validation clips that of its input; `heard` gives a crop's input.
    """

    def __init__(self, config: TrainConfig):
        data = config.data
        if not data.manifests:
            raise ConfigError("data.manifests is empty", "name a manifest: --data.manifests corpus/music.jsonl")
        self.config, self.seed = data, config.run.seed
        self.input_rate, self.rate = config.model.sample_rate, output_rate(config)
        self.samples = round(data.crop_s * self.rate)
        clips = read_manifests(data.manifests, "train")
        if not clips:
            raise ConfigError(f"{', '.join(data.manifests)}: no row has split: train")
        self.items = [clip for clip in clips for _ in range(max(1, int(clip.duration_s // data.crop_s)))]
        self.recordings, self.seconds = len(clips), sum(clip.duration_s for clip in clips)
        self.short = [clip for clip in clips if clip.duration_s < data.crop_s]
        self.order = DataOrder(len(self.items), self.seed)
        self._cache: dict[Path, Tensor] = {}
        self._cached_bytes = 0

    def __getitem__(self, position: int) -> Tensor:
        """Crop (1, N) number `position` of the run."""
        rng = generator(self.seed, "crop", position)
        wav = self._recording(self.items[self.order[position]])
        while wav.shape[1] < self.samples and self.short:
            other = self.short[int(torch.randint(len(self.short), (), generator=rng))]
            wav = torch.cat([wav, self._recording(other)], dim=1)
        wav = nn.functional.pad(wav, (0, max(0, self.samples - wav.shape[1])))
        crops = []
        for _ in range(CROP_DRAWS):
            start = int(torch.rand((), generator=rng).item() * (wav.shape[1] - self.samples + 1))
            crops.append(wav[:, start : start + self.samples])
            if not self.config.skip_silence or crops[-1].square().mean().sqrt() >= QUIET:
                break
        return max(crops, key=lambda crop: crop.square().mean().item()) * self.config.gain

    def heard(self, crops: Tensor) -> Tensor:
        """What the encoder gets of crops (B, 1, N) on the CPU: the same at its own rate."""
        if self.rate == self.input_rate:
            return crops
        samples = crops.shape[2] * self.input_rate // self.rate
        rows = [torch.from_numpy(resample(crop[0].numpy(), self.rate, self.input_rate))[:samples] for crop in crops]
        return torch.stack([nn.functional.pad(row, (0, samples - len(row)))[None] for row in rows])  # (B, 1, N')

    def validation(self) -> list[Tensor]:
        """The fixed validation clips, (1, N_i) each."""
        clips = read_manifests(self.config.manifests, "dev")
        if not clips:
            say("note: no row has split: dev; validation uses training clips")
            clips = read_manifests(self.config.manifests, "train")
        chosen = torch.randperm(len(clips), generator=generator(self.seed, "validation"))[: self.config.eval_clips]
        limit = self.config.eval_clip_s
        return [load_audio(clips[i].path, self.input_rate, duration_s=limit).wav for i in sorted(chosen.tolist())]

    def _recording(self, clip: Clip) -> Tensor:
        if clip.path in self._cache:
            return self._cache[clip.path]
        wav = load_audio(clip.path, self.rate).wav
        if self._cached_bytes + wav.nbytes <= CACHE_BYTES:
            self._cache[clip.path] = wav
            self._cached_bytes += wav.nbytes
        return wav


class CropLoader(torch.utils.data.Dataset):
    """The crops of this process, position by position, for a DataLoader."""

    def __init__(self, crops: Crops, plan: StepPlan, rank: int, first_step: int):
        self.crops, self.plan, self.offset = crops, plan, rank * plan.local
        self.first_step = first_step

    def __len__(self) -> int:
        return 2**62  # the run ends it

    def __getitem__(self, index: int) -> Tensor:
        step, clip = divmod(index, self.plan.local)
        return self.crops[(self.first_step + step) * self.plan.clips + self.offset + clip]


def count_up() -> Iterator[int]:
    """0, 1, 2 and so on: the order in which a `CropLoader` is read."""
    position = 0
    while True:
        yield position
        position += 1
