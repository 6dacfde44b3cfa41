"""The shared token interface: what a codec promises, and the tokens that it gives.

Language models, stores and tasks depend on this module alone, so any object with the `AudioTokenizer` protocol drives
all of them. Axis letters are those of docs/shapes.md: B batch, M tracks, Q quantizers, T frames, N samples.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xcodec_lm.configs.errors import TokenError

TOKENS_VERSION = 1


@dataclass(frozen=True)
class TokenSpec:
    """What the tokens of a codec are, without the codec.

    Attributes:
        name: how the codec calls itself; for people, never compared.
        sample_rate: of the audio that is encoded, in Hz.
        output_sample_rate: of the audio that is decoded, in Hz.
        hop_samples: samples per frame at `sample_rate`.
        codebook_sizes: number of codes of each of the Q quantizers.
        tracks: names of the M parallel sources.
        fingerprint: of everything that decides the codes (architecture and encode-side weights).
    """

    name: str
    sample_rate: int
    output_sample_rate: int
    hop_samples: int
    codebook_sizes: tuple[int, ...]
    tracks: tuple[str, ...] = ("mix",)
    fingerprint: str = ""

    def __post_init__(self):
        if not self.tracks or not self.codebook_sizes:
            raise TokenError(f"the token spec of {self.name} has no tracks or no codebooks")
        if min(self.sample_rate, self.output_sample_rate, self.hop_samples, *self.codebook_sizes) < 1:
            raise TokenError(f"the token spec of {self.name} has a rate, hop or codebook size below 1")

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second, exactly."""
        return Fraction(self.sample_rate, self.hop_samples)

    @property
    def n_q(self) -> int:
        """Number of quantizers."""
        return len(self.codebook_sizes)

    @property
    def bitrate_kbps(self) -> float:
        """Kilobits per second of one track with all quantizers."""
        return float(self.frame_rate) * sum(math.log2(size) for size in self.codebook_sizes) / 1000

    def take(self, n_q: int) -> TokenSpec:
        """The spec of the first `n_q` quantizers.

        Raises:
            TokenError: `n_q` lies outside 1..Q.
        """
        if not 1 <= n_q <= self.n_q:
            raise TokenError(f"n_q must lie in 1..{self.n_q} for {self.name}, got {n_q}")
        return replace(self, codebook_sizes=self.codebook_sizes[:n_q])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"codebook_sizes": list(self.codebook_sizes), "tracks": list(self.tracks)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> TokenSpec:
        """The spec that `to_dict` wrote."""
        values = dict(data)
        values["codebook_sizes"] = tuple(data["codebook_sizes"])
        values["tracks"] = tuple(data.get("tracks", ("mix",)))
        return TokenSpec(**values)

    def check_same_codec(self, other: TokenSpec, what: str) -> None:
        """Refuses tokens of another codec.

        Args:
            other: the spec that the tokens carry.
            what: what carries it, for the message.

        Raises:
            TokenError: the fingerprints differ.
        """
        if self.fingerprint != other.fingerprint:
            raise TokenError(
                f"{what} was made by another codec: it carries fingerprint {other.fingerprint[:12]} ({other.name}), "
                f"but this codec is {self.fingerprint[:12]} ({self.name})",
                "use the codec that made the tokens, or encode the audio again with this one",
            )


@dataclass(frozen=True)
class AudioTokens:
    """Codes of a batch of recordings.

    Attributes:
        codes: (B, M*Q, T) int64, track-major; entries beyond `lengths` are 0 and mean nothing.
        lengths: (B,) int64, valid frames of each row.
        spec: the codec that made them.
        samples: (B,) int64, samples that each row's audio had at `spec.sample_rate`, or None when unknown.
    """

    codes: Tensor
    lengths: Tensor
    spec: TokenSpec
    samples: Tensor | None = None

    def __post_init__(self):
        rows = len(self.spec.tracks) * self.spec.n_q
        if self.codes.dim() != 3 or self.codes.shape[1] != rows:
            raise TokenError(
                f"codes must have shape (B, {rows}, T) for {self.spec.name}, got {tuple(self.codes.shape)}"
            )
        for name in ("codes", "lengths", "samples"):
            if (tensor := getattr(self, name)) is not None and tensor.dtype != torch.int64:
                raise TokenError(f"{name} must be int64, got {tensor.dtype}")
        if self.lengths.shape != self.codes.shape[:1]:
            raise TokenError(f"lengths must have shape ({self.codes.shape[0]},), got {tuple(self.lengths.shape)}")
        if len(self.lengths) and not 1 <= int(self.lengths.min()) <= int(self.lengths.max()) <= self.codes.shape[2]:
            raise TokenError(f"lengths must lie in 1..{self.codes.shape[2]}, got {self.lengths.tolist()}")
        if self.samples is not None and (self.samples.shape != self.lengths.shape or bool((self.samples < 1).any())):
            raise TokenError(f"samples must be {len(self.lengths)} numbers above 0, got {self.samples.tolist()}")

    def __len__(self) -> int:
        return self.codes.shape[0]

    @property
    def valid(self) -> Tensor:
        """(B, T) bool, True on valid frames."""
        return torch.arange(self.codes.shape[2], device=self.codes.device) < self.lengths[:, None]

    def check_range(self) -> None:
        """Refuses codes outside their codebook.

        Raises:
            TokenError: a valid code is negative or at least its codebook's size.
        """
        sizes = torch.tensor(self.spec.codebook_sizes * len(self.spec.tracks), device=self.codes.device)[None, :, None]
        bad = ((self.codes < 0) | (self.codes >= sizes)) & self.valid[:, None]
        if bad.any():
            row, book, frame = bad.nonzero()[0].tolist()
            raise TokenError(
                f"code {int(self.codes[row, book, frame])} of row {row}, quantizer {book % self.spec.n_q}, "
                f"frame {frame} is outside 0..{int(sizes[0, book, 0]) - 1}"
            )

    def take(self, n_q: int) -> AudioTokens:
        """The first `n_q` quantizers of every track; codes of few quantizers are a prefix of those of more."""
        spec = self.spec.take(n_q)
        codes = self.codes.unflatten(1, (len(spec.tracks), self.spec.n_q))[:, :, :n_q].flatten(1, 2)
        return replace(self, codes=codes, spec=spec)

    def crop(self, start: int, stop: int) -> AudioTokens:
        """Frames `start` to `stop` (exclusive) of every row, which all must have them."""
        if not 0 <= start < stop <= int(self.lengths.min()):
            raise TokenError(
                f"crop {start}..{stop} does not lie within every row's 0..{int(self.lengths.min())} frames"
            )
        lengths = torch.full_like(self.lengths, stop - start)
        return replace(self, codes=self.codes[:, :, start:stop], lengths=lengths, samples=None)

    def row(self, index: int) -> AudioTokens:
        """One row as a batch of one, without padding."""
        length = int(self.lengths[index])
        return replace(
            self,
            codes=self.codes[index : index + 1, :, :length],
            lengths=self.lengths[index : index + 1],
            samples=None if self.samples is None else self.samples[index : index + 1],
        )

    def concat(self, other: AudioTokens) -> AudioTokens:
        """Each row of `self` followed in time by the same row of `other`."""
        self.spec.check_same_codec(other.spec, "the second part")
        if self.spec.n_q != other.spec.n_q or len(self) != len(other):
            raise TokenError(
                f"cannot join {len(self)} rows of {self.spec.n_q} quantizers with {len(other)} rows of {other.spec.n_q}"
            )
        rows = [
            torch.cat([a.codes[0], b.codes[0]], dim=1)
            for a, b in ((self.row(i), other.row(i)) for i in range(len(self)))
        ]
        return stack_codes(rows, self.spec)

    def to(self, device: torch.device | str) -> AudioTokens:
        """The same tokens on another device."""
        samples = None if self.samples is None else self.samples.to(device)
        return replace(self, codes=self.codes.to(device), lengths=self.lengths.to(device), samples=samples)

    def save(self, path: str | Path) -> None:
        """Writes a `.tokens` file: safetensors with the spec as JSON in its header.

        Raises:
            TokenError: the file cannot be written.
        """
        tensors = {"codes": self.codes.to(torch.int32).cpu().contiguous(), "lengths": self.lengths.cpu()}
        if self.samples is not None:
            tensors["samples"] = self.samples.cpu()
        header = {"version": str(TOKENS_VERSION), "spec": json.dumps(self.spec.to_dict())}
        try:
            save_file(tensors, path, metadata=header)
        except (OSError, SafetensorError) as error:
            raise TokenError(
                f"cannot write {path}: {error}", "choose a folder that exists and can be written"
            ) from None

    @staticmethod
    def load(path: str | Path) -> AudioTokens:
        """Reads a `.tokens` file.

        Raises:
            TokenError: not a token file, of a version that this release does not know, or with codes that do not fit.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise TokenError(f"{path}: file not found") from None
        except (SafetensorError, OSError) as error:
            raise TokenError(f"{path} is not a token file: {error}", "make one with xcodec-lm codec encode") from None
        if "spec" not in header or "codes" not in tensors or "lengths" not in tensors:
            raise TokenError(f"{path} is not a token file: its header has no token spec")
        if header.get("version") != str(TOKENS_VERSION):
            raise TokenError(
                f"{path} has token-file version {header.get('version')}; this release reads {TOKENS_VERSION}",
                "update xcodec-lm, or encode the audio again",
            )
        try:
            spec = TokenSpec.from_dict(json.loads(header["spec"]))
        except (ValueError, TypeError, KeyError) as error:
            raise TokenError(f"{path}: the token spec in its header cannot be read: {error}") from None
        codes = tensors["codes"].long() if tensors["codes"].dtype == torch.int32 else tensors["codes"]
        try:
            tokens = AudioTokens(codes, tensors["lengths"], spec, tensors.get("samples"))
            tokens.check_range()
        except TokenError as error:
            raise TokenError(f"{path}: {error.message}", "encode the audio again") from None
        return tokens


def stack_codes(rows: list[Tensor], spec: TokenSpec, samples: Tensor | None = None) -> AudioTokens:
    """Codes of several lengths as one right-padded batch.

    Args:
        rows: (M*Q, T_i) int64 each.
        spec: their codec.
        samples: (B,) samples of each row's audio, if known.
    """
    lengths = torch.tensor([row.shape[1] for row in rows], device=rows[0].device)
    codes = torch.zeros(len(rows), rows[0].shape[0], int(lengths.max()), dtype=torch.int64, device=rows[0].device)
    for index, row in enumerate(rows):
        codes[index, :, : row.shape[1]] = row
    return AudioTokens(codes, lengths, spec, samples)


@runtime_checkable
class AudioTokenizer(Protocol):
    """What every codec offers to the rest of the toolkit."""

    spec: TokenSpec
    causal: bool
    lookahead_frames: int

    def frames(self, samples: int) -> int:
        """Frames that `samples` samples become; a pure function."""
        ...

    def encode(
        self, wav: Tensor, lengths: Tensor | None = None, n_q: int | None = None, *, sample_rate: int | None = None
    ) -> AudioTokens:
        """Tokens of wav (B, 1, N) in [-1, 1] at `spec.sample_rate`, of which `lengths` (B,) samples are valid."""
        ...

    def decode(self, tokens: AudioTokens) -> tuple[Tensor, Tensor]:
        """Wav (B, 1, N) at `spec.output_sample_rate` and its lengths (B,) in samples."""
        ...

    def stream_decoder(self, batch: int = 1) -> StreamDecoder:
        """A decoder that is given codes as they come."""
        ...


class StreamDecoder(Protocol):
    """Codes in, audio out, a few frames at a time.

    Attributes:
        latency_frames: frames that are held back until later ones are known.
    """

    latency_frames: int

    def push(self, codes: Tensor) -> Tensor:
        """Audio (B, 1, N) that has become certain with codes (B, n_q, T); N may be 0."""
        ...

    def flush(self) -> Tensor:
        """The audio (B, 1, N) of the frames still held back, as if the codes ended here."""
        ...

    def reset(self, rows: list[int] | None = None) -> None:
        """Starts these rows of the batch anew; all of them with None."""
        ...


@dataclass(frozen=True)
class Features:
    """Vectors over time, for probes and ABX.

    Attributes:
        values: (B, D, T) float, zero beyond each row's length.
        lengths: (B,) frames.
        frame_rate: frames per second.
    """

    values: Tensor
    lengths: Tensor
    frame_rate: Fraction


@runtime_checkable
class FrameFeatures(Protocol):
    """Codecs and teachers whose inner vectors can be looked at.

    Attributes:
        features: names that `extract` takes: `pre_vq`, `post_vq`, `fc_post1`, `sem_decoder`, `ssl`, ...
    """

    features: tuple[str, ...]

    def extract(
        self, source: AudioTokens | Tensor, feature: str, n_q: int | None = None, lengths: Tensor | None = None
    ) -> Features:
        """One kind of vectors of tokens or of wav (B, 1, N), of which `lengths` (B,) samples are valid."""
        ...
