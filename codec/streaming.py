"""Streaming by windows: codes in and audio out, or audio in and codes out, a few frames at a time, with any codec.

A window is what was given out last (context), what is given out now, and what comes after it (look-ahead). It goes
through the codec's own `decode` or `encode`, and its middle is given out. Where context and look-ahead cover the
receptive field of a convolutional codec, the stream equals the offline result; elsewhere (recurrent layers, attention,
norms over time) it comes near, and `declared_error` and `declared_agreement` say how near.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from xcodec_lm.codec.audio import check_wav
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, StreamDecoder
from xcodec_lm.configs.errors import TokenError


@dataclass
class _Row:
    """What a stream remembers of one row of its batch.

    Attributes:
        buffer: (C, L) codes or samples, from `history` frames before the first one that was not given out.
        history: frames at the start of `buffer` that were given out.
        given: frames given out since the start.
        ended: flushed, and not reset since.
    """

    buffer: Tensor
    history: int = 0
    given: int = 0
    ended: bool = False

    def advance(self, frames: int, context: int, frame_length: int) -> None:
        """Notes that the next `frames` were given out, and forgets what lies before the context."""
        self.given += frames
        drop = max(0, self.history + frames - context)
        self.history += frames - drop
        self.buffer = self.buffer[:, drop * frame_length :]


class _WindowedStream:
    """Rows, their groups and their ends; what decoders and encoders share."""

    def __init__(self, codec: AudioTokenizer, batch: int, lookahead_frames: int | None, context_frames: int):
        self.codec, self.batch = codec, batch
        self.latency_frames = codec.lookahead_frames if lookahead_frames is None else lookahead_frames
        self.context_frames = context_frames
        if batch < 1 or self.latency_frames < 0 or context_frames < 0:
            raise TokenError(
                f"a stream needs batch >= 1, look-ahead >= 0 and context >= 0, "
                f"got {batch}, {self.latency_frames} and {context_frames}"
            )
        self._rows: list[_Row] = []
        self.reset()

    def reset(self, rows: list[int] | None = None) -> None:
        """Starts these rows of the batch anew; all of them with None.

        Raises:
            TokenError: a row that the batch does not have; nothing was reset.
        """
        if rows is None:
            self._rows = [self._fresh() for _ in range(self.batch)]
            self.emitted = torch.zeros(self.batch, dtype=torch.int64)
            return
        for row in self._checked(rows):
            self._rows[row] = self._fresh()

    def _fresh(self) -> _Row:
        raise TypeError("a stream is a decoder or an encoder")

    def _checked(self, rows: Iterable[int] | None) -> list[int]:
        chosen = list(range(self.batch) if rows is None else rows)
        if bad := [row for row in chosen if not 0 <= row < self.batch]:
            raise TokenError(f"row {bad[0]} is outside 0..{self.batch - 1} of this stream's batch")
        return chosen

    def _check_open(self) -> None:
        if ended := [index for index, row in enumerate(self._rows) if row.ended]:
            raise TokenError(
                f"row {ended[0]} of this stream was flushed and takes no more", "call reset() to start a new one"
            )

    def _append(self, new: Tensor) -> None:
        for row, part in zip(self._rows, new, strict=True):
            row.buffer = torch.cat([row.buffer, part], dim=1)

    def _groups(self, rows: Iterable[int]) -> list[list[int]]:
        """Rows whose windows have one shape; those that were reset at different times may differ."""
        groups: dict[tuple[bool, int, int], list[int]] = {}
        for index in rows:
            row = self._rows[index]
            groups.setdefault((row.given == 0, row.history, row.buffer.shape[1]), []).append(index)
        return list(groups.values())

    def _joined(self, parts: dict[int, Tensor], empty: Tensor, frame_length: int) -> Tensor:
        """Parts (C, n_i) of some rows as (B, C, max n), zero on the right; `emitted` gets their lengths."""
        self.emitted = torch.zeros(self.batch, dtype=torch.int64)
        longest = max((part.shape[1] for part in parts.values()), default=0)
        out = empty.new_zeros(self.batch, empty.shape[0], longest)
        for index, part in parts.items():
            out[index, :, : part.shape[1]] = part
            self.emitted[index] = part.shape[1]
            self._rows[index].advance(part.shape[1] // frame_length, self.context_frames, self._input_per_frame)
        return out

    _input_per_frame = 1


class WindowedStreamDecoder(_WindowedStream):
    """Codes in, audio out, with any codec; a `StreamDecoder`.

    Args:
        codec: any codec.
        batch: rows that are decoded side by side; they get codes together and may be reset one by one.
        lookahead_frames: frames that are held back until later ones are known; None is the codec's own look-ahead.
        context_frames: past frames that are decoded again with each window.
        start_frames: frames that must be there before the first audio is given out; for decoders whose padding
            mirrors the beginning of the signal.

    Attributes:
        latency_frames: the look-ahead.
        emitted: (B,) valid samples of each row in the last result. They differ only between rows that were started at
            different times; shorter rows are zero on the right.

    Raises:
        TokenError: a negative size, or a codec whose frames are not a whole number of output samples.
    """

    def __init__(
        self,
        codec: AudioTokenizer,
        batch: int = 1,
        lookahead_frames: int | None = None,
        context_frames: int = 0,
        start_frames: int = 0,
    ):
        super().__init__(codec, batch, lookahead_frames, context_frames)
        self.start_frames = start_frames
        samples = codec.spec.output_sample_rate / codec.spec.frame_rate
        if samples.denominator != 1:
            raise TokenError(f"a frame of {codec.spec.name} is {samples} output samples, so it cannot be streamed")
        self.frame_samples = int(samples)
        self.n_q: int | None = None

    def push(self, codes: Tensor) -> Tensor:
        """Audio that has become certain.

        Args:
            codes: (B, n_q, T) int64; T may be 0. The first push decides n_q, until all rows are reset.

        Returns:
            (B, 1, N) at `spec.output_sample_rate`; N may be 0.

        Raises:
            TokenError: codes of a wrong shape, dtype or range, or a stream that was flushed; the state is unchanged.
        """
        self._check(codes)
        self.n_q = codes.shape[1]
        self._append(codes.to(getattr(self.codec, "device", codes.device)))
        return self._emit(range(self.batch), final=False)

    def flush(self, rows: list[int] | None = None) -> Tensor:
        """The audio (B, 1, N) of the frames still held back, as if the codes of these rows (None: all) ended here."""
        chosen = [row for row in self._checked(rows) if not self._rows[row].ended]
        wav = self._emit(chosen, final=True)
        for row in chosen:
            self._rows[row].ended = True
        return wav

    def reset(self, rows: list[int] | None = None) -> None:
        """Starts these rows of the batch anew; all of them with None, which also frees n_q."""
        if rows is None:
            self.n_q = None
        super().reset(rows)

    def _fresh(self) -> _Row:
        return _Row(torch.zeros(self.n_q or 0, 0, dtype=torch.int64))

    def _append(self, new: Tensor) -> None:
        for row in self._rows:
            if not row.buffer.shape[1]:
                row.buffer = new.new_zeros(new.shape[1], 0)
        super()._append(new)

    def _check(self, codes: Tensor) -> None:
        self._check_open()
        if not isinstance(codes, Tensor) or codes.dtype != torch.int64:
            raise TokenError(f"codes must be an int64 tensor, got {getattr(codes, 'dtype', type(codes).__name__)}")
        if codes.dim() != 3 or codes.shape[0] != self.batch:
            raise TokenError(f"codes must have shape ({self.batch}, n_q, T), got {tuple(codes.shape)}")
        if self.n_q not in (None, codes.shape[1]):
            raise TokenError(
                f"this stream began with {self.n_q} rows of codes, this push has {codes.shape[1]}",
                "give the same number of quantizers with every push, or call reset()",
            )
        tokens = self._tokens(codes)  # checks the number of layers
        if codes.shape[2]:
            tokens.check_range()

    def _tokens(self, codes: Tensor) -> AudioTokens:
        spec = self.codec.spec
        spec = spec.take(codes.shape[1] // len(spec.tracks))
        if not codes.shape[2]:  # tokens have at least one frame; none are decoded
            codes = codes.new_zeros(*codes.shape[:2], 1)
        lengths = torch.full((codes.shape[0],), codes.shape[2], device=codes.device)
        return AudioTokens(codes, lengths, spec)

    def _emit(self, rows: Iterable[int], final: bool) -> Tensor:
        parts: dict[int, Tensor] = {}
        empty = torch.zeros(1, 0, device=getattr(self.codec, "device", None))
        for members in self._groups(rows):
            first = self._rows[members[0]]
            length = first.buffer.shape[1]
            ready = length - first.history - (0 if final else self.latency_frames)
            if ready <= 0 or (not final and not first.given and length < self.start_frames):
                continue
            wav, _ = self.codec.decode(self._tokens(torch.stack([self._rows[i].buffer for i in members])))
            begin, end = (frame * self.frame_samples for frame in (first.history, first.history + ready))
            parts |= {index: row[:, begin:end] for index, row in zip(members, wav, strict=True)}
            empty = wav[0, :, :0]
        return self._joined(parts, empty, self.frame_samples)


class WindowedStreamEncoder(_WindowedStream):
    """Audio in, codes out, with any codec.

    Args:
        codec: any codec that can encode.
        batch: rows that are encoded side by side.
        lookahead_frames: frames of audio that must follow a frame before its codes are given out.
        context_frames: past frames of audio that are encoded again with each window.
        n_q: layers; None for all.

    Attributes:
        latency_frames: the look-ahead.
        emitted: (B,) valid frames of each row in the last result; see `WindowedStreamDecoder`.

    Raises:
        TokenError: a negative size, or n_q out of range.
    """

    def __init__(
        self,
        codec: AudioTokenizer,
        batch: int = 1,
        lookahead_frames: int = 0,
        context_frames: int = 0,
        n_q: int | None = None,
    ):
        super().__init__(codec, batch, lookahead_frames, context_frames)
        self.spec = codec.spec if n_q is None else codec.spec.take(n_q)
        self._input_per_frame = codec.spec.hop_samples

    def push(self, wav: Tensor, *, sample_rate: int | None = None) -> Tensor:
        """Codes that have become certain.

        Args:
            wav: (B, 1, N) float in [-1, 1] at `spec.sample_rate`; N may be 0.
            sample_rate: the rate of wav if the caller wants it checked.

        Returns:
            (B, n_q, T) int64; T may be 0.

        Raises:
            AudioError: audio that does not fit; the state is unchanged.
            TokenError: another batch, or a stream that was flushed.
        """
        self._check_open()
        if isinstance(wav, Tensor) and wav.dim() == 3 and wav.shape[0] != self.batch:
            raise TokenError(f"this stream has {self.batch} rows, the audio has {wav.shape[0]}")
        if not (isinstance(wav, Tensor) and wav.shape == (self.batch, 1, 0)):
            check_wav(wav, None, self.codec.spec.sample_rate, sample_rate)
        self._append(wav.to(getattr(self.codec, "device", wav.device), torch.float32))
        return self._emit(range(self.batch), final=False)

    def flush(self, rows: list[int] | None = None) -> Tensor:
        """The codes (B, n_q, T) of the audio still held back, its last frame padded as the codec pads it."""
        chosen = [row for row in self._checked(rows) if not self._rows[row].ended]
        codes = self._emit(chosen, final=True)
        for row in chosen:
            self._rows[row].ended = True
        return codes

    def _fresh(self) -> _Row:
        return _Row(torch.zeros(1, 0, device=getattr(self.codec, "device", None)))

    def _emit(self, rows: Iterable[int], final: bool) -> Tensor:
        parts: dict[int, Tensor] = {}
        hop, channels = self._input_per_frame, len(self.spec.tracks) * self.spec.n_q
        empty = torch.zeros(channels, 0, dtype=torch.int64, device=getattr(self.codec, "device", None))
        for members in self._groups(rows):
            first = self._rows[members[0]]
            samples = first.buffer.shape[1]
            if not final:
                samples = samples // hop * hop
            frames = self.codec.frames(samples) if samples else 0
            ready = frames - first.history - (0 if final else self.latency_frames)
            if ready <= 0:
                continue
            wav = torch.stack([self._rows[i].buffer[:, :samples] for i in members])
            codes = self.codec.encode(wav, n_q=self.spec.n_q).codes
            parts |= {i: row[:, first.history : first.history + ready] for i, row in zip(members, codes, strict=True)}
        return self._joined(parts, empty, 1)


@dataclass(frozen=True)
class StreamError:
    """How far a streamed result is from the offline one.

    Attributes:
        relative_error: norm of the difference over the norm of the offline audio.
        snr_db: the same in decibels; infinite where they are equal.
        max_error: largest difference of a sample.
        latency_frames: look-ahead of the stream.
    """

    relative_error: float
    snr_db: float
    max_error: float
    latency_frames: int


def declared_error(
    codec: AudioTokenizer, tokens: AudioTokens, decoder: StreamDecoder | None = None, push_frames: int = 10
) -> StreamError:
    """Streams tokens through a decoder, and compares with decoding them at once.

    Args:
        codec: whose `decode` is the reference.
        tokens: any number of rows.
        decoder: of batch 1; None for the codec's own.
        push_frames: frames in each push; fewer are harder where the stream is not exact.
    """
    decoder = codec.stream_decoder(1) if decoder is None else decoder
    power = noise = largest = 0.0
    for index in range(len(tokens)):
        row = tokens.row(index)
        whole = codec.decode(AudioTokens(row.codes, row.lengths, row.spec))[0]
        decoder.reset()
        parts = [decoder.push(part) for part in row.codes.split(push_frames, dim=2)]
        difference = torch.cat([*parts, decoder.flush()], dim=2) - whole
        power += float(whole.double().square().sum())
        noise += float(difference.double().square().sum())
        largest = max(largest, float(difference.abs().max()))
    relative = math.sqrt(noise / power) if power else math.sqrt(noise)
    snr = -20 * math.log10(relative) if relative else math.inf
    return StreamError(relative, snr, largest, decoder.latency_frames)


@dataclass(frozen=True)
class StreamAgreement:
    """How many streamed codes are the offline ones.

    Attributes:
        layers: share of equal codes in each layer, 0 to 1.
        frames: frames compared.
        latency_frames: look-ahead of the stream.
    """

    layers: tuple[float, ...]
    frames: int
    latency_frames: int

    @property
    def total(self) -> float:
        """Share of equal codes in all layers."""
        return sum(self.layers) / len(self.layers)


def declared_agreement(
    codec: AudioTokenizer, wav: Tensor, encoder: WindowedStreamEncoder, push_samples: int = 1600
) -> StreamAgreement:
    """Streams audio through an encoder, and compares with encoding it at once.

    Args:
        codec: whose `encode` is the reference.
        wav: (B, 1, N).
        encoder: of batch B.
        push_samples: samples in each push.
    """
    whole = codec.encode(wav, n_q=encoder.spec.n_q).codes
    encoder.reset()
    parts = [encoder.push(part) for part in wav.split(push_samples, dim=2)]
    same = torch.cat([*parts, encoder.flush()], dim=2) == whole
    return StreamAgreement(tuple(same.double().mean(dim=(0, 2)).tolist()), whole.shape[2], encoder.latency_frames)
