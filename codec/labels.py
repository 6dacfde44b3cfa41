"""Training crops with a codec's first codes as labels, for masked prediction.

A crop begins on a whole hop of its recording, so frame t of the model and label t of the codec lie over the same
samples. A recording is encoded once, whole; its codes and its samples stay in memory while there is room.

Recordings are far from equally long (a spoken digit, a song), and zeros teach nothing. So a slot of `crop_s` seconds
holds one crop of that length, or several recordings of one shorter length: lengths are crop_s divided by powers of
the square root of 2, and a recording goes where it is padded least.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.hubert import IGNORED, span_mask
from xcodec_lm.codec.runtime.order import DataOrder, derive_seed, generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.hubert import HubertTrainConfig

CACHE_BYTES = 512 * 2**20
"""Decoded recordings and their labels kept in memory."""
SHORTEST_FRAMES = 16
"""Crops are never shorter; shorter recordings are padded, and padding has no label."""


@dataclass(frozen=True)
class Crop:
    """One example.

    Attributes:
        wav: (N,) with N a whole number of hops.
        labels: (T,) int64, `IGNORED` on padding.
        mask: (T,) bool.
    """

    wav: Tensor
    labels: Tensor
    mask: Tensor


class Labeller:
    """Recordings with their labels, each encoded once.

    Args:
        codec: gives the labels.
        sample_rate: of the model's audio, in Hz.
        hop_samples: of the model.

    Raises:
        ConfigError: the codec's frames are not the model's.
    """

    def __init__(self, codec: AudioTokenizer, sample_rate: int, hop_samples: int):
        if codec.spec.frame_rate != Fraction(sample_rate, hop_samples):
            raise ConfigError(
                f"targets.codec: {codec.spec.name} has {float(codec.spec.frame_rate):g} frames per second, the model "
                f"{sample_rate / hop_samples:g} (model.sample_rate / product of model.conv_stride)",
                "choose a codec with the model's frame rate, or other strides",
            )
        self.codec, self.sample_rate, self.hop = codec, sample_rate, hop_samples
        self._cache: dict[Path, tuple[Tensor, Tensor]] = {}
        self._cached_bytes = 0

    @property
    def classes(self) -> int:
        """Number of different labels K."""
        return self.codec.spec.codebook_sizes[0]

    def recording(self, path: Path) -> tuple[Tensor, Tensor]:
        """Samples (N,), padded on the right to whole hops, and labels (N / hop,) of a file."""
        if path in self._cache:
            return self._cache[path]
        wav = load_audio(path, self.sample_rate).wav  # (1, N)
        rate = self.codec.spec.sample_rate
        heard = wav if rate == self.sample_rate else load_audio(path, rate).wav
        codes = self.codec.encode(heard[None], n_q=1).codes[0, 0].cpu()
        frames = -(-wav.shape[1] // self.hop)
        wav = F.pad(wav[0], (0, frames * self.hop - wav.shape[1]))
        # A codec with a law of its own for the last frame may give one less or one more.
        codes = F.pad(codes, (0, max(0, frames - len(codes))), value=IGNORED)[:frames].to(torch.int32)
        if self._cached_bytes + wav.nbytes + codes.nbytes <= CACHE_BYTES:
            self._cache[path] = (wav, codes)
            self._cached_bytes += wav.nbytes + codes.nbytes
        return wav, codes

    def crop(self, path: Path, frames: int, where: float) -> tuple[Tensor, Tensor]:
        """Samples (frames * hop,) and labels (frames,) from a recording, padded if it is shorter.

        Args:
            path: the recording.
            frames: length.
            where: in [0, 1): where to begin, among all places that are possible.
        """
        wav, labels = self.recording(path)
        start = int(where * (max(0, len(labels) - frames) + 1))
        wav, labels = wav[start * self.hop : (start + frames) * self.hop], labels[start : start + frames].long()
        missing = frames - len(labels)
        return F.pad(wav, (0, missing * self.hop)), F.pad(labels, (0, missing), value=IGNORED)


class LabelledCrops:
    """The slots of a run and its validation clips. Slot p is a function of the seed and p alone.

    Raises:
        ConfigError: no training audio.
    """

    def __init__(self, config: HubertTrainConfig, labeller: Labeller | None):
        data = config.data
        if not data.manifests:
            raise ConfigError("data.manifests is empty", "name a manifest: --data.manifests corpus/music.jsonl")
        self.config, self.labeller, self.seed = config, labeller, config.run.seed
        self.rate, self.hop = config.model.sample_rate, config.model.hop_samples
        clips = read_manifests(data.manifests, "train")
        if not clips:
            raise ConfigError(f"{', '.join(data.manifests)}: no row has split: train")
        self.recordings, self.seconds = len(clips), sum(clip.duration_s for clip in clips)
        self.lengths = crop_lengths(round(data.crop_s * self.rate) // self.hop)
        self.buckets: list[list[Clip]] = [[] for _ in self.lengths]
        for clip in clips:
            frames = -(-round(clip.duration_s * self.rate) // self.hop)
            bucket = max(i for i, length in enumerate(self.lengths) if i == 0 or frames <= length)
            self.buckets[bucket] += [clip] * max(1, frames // self.lengths[0])
        self.per_slot = [self.lengths[0] // length for length in self.lengths]
        self.slots = [-(-len(bucket) // n) for bucket, n in zip(self.buckets, self.per_slot, strict=True)]
        self.order = DataOrder(sum(self.slots), self.seed)
        self.orders = [
            DataOrder(max(1, len(bucket)), derive_seed(self.seed, "bucket", index))
            for index, bucket in enumerate(self.buckets)
        ]

    def __len__(self) -> int:
        """Slots of one pass over the data."""
        return sum(self.slots)

    def slot(self, position: int) -> list[Crop]:
        """The crops of slot number `position` of the run, all of one length."""
        if self.labeller is None:
            raise ConfigError("targets.codec is empty", "name the codec that gives the labels: --targets.codec RUN")
        epoch, item = position // len(self), self.order[position]
        bucket = 0
        while item >= self.slots[bucket]:
            item -= self.slots[bucket]
            bucket += 1
        first = (epoch * self.slots[bucket] + item) * self.per_slot[bucket]
        crops = []
        for member in range(self.per_slot[bucket]):
            clip = self.buckets[bucket][self.orders[bucket][first + member]]
            where = torch.rand((), generator=generator(self.seed, "crop", position, member)).item()
            wav, labels = self.labeller.crop(clip.path, self.lengths[bucket], where)
            crops.append(Crop(wav, labels, self.mask(self.lengths[bucket], "mask", position, member)))
        return crops

    def validation(self) -> list[Crop]:
        """The fixed validation clips with fixed masks, of several lengths."""
        if self.labeller is None:
            raise ConfigError("targets.codec is empty", "name the codec that gives the labels: --targets.codec RUN")
        data = self.config.data
        clips = read_manifests(data.manifests, "dev")
        if not clips:
            say("note: no row has split: dev; validation uses training clips")
            clips = read_manifests(data.manifests, "train")
        chosen = torch.randperm(len(clips), generator=generator(self.seed, "validation"))[: data.eval_clips]
        limit = max(1, round(data.eval_clip_s * self.rate) // self.hop)
        crops = []
        for number, index in enumerate(sorted(chosen.tolist())):
            _, labels = self.labeller.recording(clips[index].path)
            frames = min(limit, len(labels))
            wav, labels = self.labeller.crop(clips[index].path, frames, 0.0)
            crops.append(Crop(wav, labels, self.mask(frames, "validation mask", number)))
        return crops

    def mask(self, frames: int, *key: str | int) -> Tensor:
        """The mask (T,) of one example."""
        loss = self.config.loss
        return span_mask(frames, loss.mask_time_prob, loss.mask_time_length, generator(self.seed, *key))


def crop_lengths(longest: int) -> list[int]:
    """Lengths of crops in frames, longest first: divided by the square root of 2 down to `SHORTEST_FRAMES`."""
    lengths = [longest]
    while (shorter := round(longest / 2 ** (len(lengths) / 2))) >= SHORTEST_FRAMES:
        lengths.append(shorter)
    return lengths
