"""What the adapters over other projects' codecs share: batches, lengths, guards, chunks, features, streaming.

An adapter names five steps of its model (pad, to latents, quantize, back from codes, to audio); this module makes the
token interface of them. Rows are grouped by padded length, so that no row ever sees another one's padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.codec.audio import check_wav
from xcodec_lm.codec.batching import equal_rows, windows
from xcodec_lm.codec.streaming import WindowedStreamDecoder
from xcodec_lm.codec.tokens import AudioTokens, Features, TokenSpec, stack_codes
from xcodec_lm.configs.errors import TokenError

CHUNK_S = 20.0
"""Longer audio passes convolutional stacks in chunks of this length, with a halo that makes them exact."""
SAMPLES_AT_ONCE = 2**20
"""Rows of a batch go through the model together up to this many samples."""


class Adapter(nn.Module):
    """A foreign codec behind `AudioTokenizer` and `FrameFeatures`.

    Args:
        model: the codec's own module, in eval mode and fp32.
        spec: what its tokens are.
        causal: whether no later frame acts on a sample, but for the beginning (see `start_frames`).
        lookahead_frames: frames after t that act on the audio of frame t.
        context_frames: past frames that a streaming window repeats.
        start_frames: frames that the first audio of a stream waits for.
        decode_only: the model has no encoder.
    """

    features = ("pre_vq", "post_vq")

    def __init__(
        self,
        model: nn.Module,
        spec: TokenSpec,
        *,
        causal: bool,
        lookahead_frames: int,
        context_frames: int,
        start_frames: int = 0,
        decode_only: bool = False,
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.spec, self.causal, self.decode_only = spec, causal, decode_only
        self.lookahead_frames, self.context_frames, self.start_frames = lookahead_frames, context_frames, start_frames
        self.frame_samples = spec.hop_samples * spec.output_sample_rate // spec.sample_rate

    # ------------------------------------------------------------------ what an adapter fills in

    def frames(self, samples: int) -> int:
        """Frames that `samples` samples become: by default those of the next whole hop."""
        return math.ceil(samples / self.spec.hop_samples)

    def padded_samples(self, samples: int) -> int:
        """Length to which audio is padded with zeros on its right before the model; by default none is added."""
        return samples

    def _latents(self, wav: Tensor) -> Tensor:
        """(B, 1, N) -> (B, D, T), what the quantizer gets."""
        raise TypeError(f"{type(self).__name__} cannot encode")

    def _quantize(self, latents: Tensor, n_q: int) -> Tensor:
        """(B, D, T) -> (B, n_q, T) int64."""
        raise TypeError(f"{type(self).__name__} cannot encode")

    def _dequantize(self, codes: Tensor) -> Tensor:
        """(B, n_q, T) -> (B, D, T), what the decoder gets."""
        raise TypeError(f"{type(self).__name__} cannot decode")

    def _synthesize(self, quantized: Tensor) -> Tensor:
        """(B, D, T) -> (B, 1, about T * frame_samples)."""
        raise TypeError(f"{type(self).__name__} cannot decode")

    # ------------------------------------------------------------------ token interface

    @property
    def device(self) -> torch.device:
        """Where the codec computes; audio and tokens from elsewhere are taken there."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Adapter:
        """Stays in eval mode: adapters are not trained."""
        return super().train(False)

    @torch.inference_mode()
    def encode(
        self, wav: Tensor, lengths: Tensor | None = None, n_q: int | None = None, *, sample_rate: int | None = None
    ) -> AudioTokens:
        """Tokens of a batch; every row's are those that it would get alone.

        Args:
            wav: (B, 1, N) float in [-1, 1] at `spec.sample_rate`.
            lengths: (B,) valid samples of each row; None when all are.
            n_q: layers, 1..Q; None for all.
            sample_rate: the rate of wav if the caller wants it checked.

        Raises:
            AudioError: input that does not fit, see `codec.audio.check_wav`.
            TokenError: `n_q` out of range, or the codec was loaded for decoding only.
        """
        lengths = self._check_input(wav, lengths, sample_rate)
        spec = self.spec if n_q is None else self.spec.take(n_q)
        rows: dict[int, Tensor] = {}
        for members, latents in self._latent_groups(wav, lengths):
            rows |= zip(members, self._quantize(latents, spec.n_q), strict=True)
        return stack_codes([rows[i] for i in range(len(wav))], spec, lengths.to(self.device))

    @torch.inference_mode()
    def decode(self, tokens: AudioTokens) -> tuple[Tensor, Tensor]:
        """Audio of a batch of tokens.

        Args:
            tokens: of this codec, any number of its layers.

        Returns:
            wav (B, 1, N) at `spec.output_sample_rate`, zero beyond each row's length, and lengths (B,) in samples:
            those of the audio that was encoded where the tokens know them.

        Raises:
            TokenError: tokens of another codec, or codes out of range.
        """
        self._check_tokens(tokens)
        tokens = tokens.to(self.device)
        lengths = full = tokens.lengths * self.frame_samples
        if tokens.samples is not None:
            ratio = Fraction(self.spec.output_sample_rate, self.spec.sample_rate)
            asked = (tokens.samples * ratio.numerator + ratio.denominator - 1) // ratio.denominator
            lengths = torch.minimum(asked, full)
        wav = torch.zeros(len(tokens), 1, int(lengths.max()), device=self.device)
        for length, members in equal_rows(tokens.lengths.tolist(), SAMPLES_AT_ONCE // self.frame_samples):
            audio = self._synthesize(self._dequantize(tokens.codes[members, :, :length]))
            for index, row in zip(members, audio, strict=True):
                count = min(int(lengths[index]), row.shape[1])  # some decoders end a few samples early
                wav[index, :, :count] = row[:, :count]
        return wav, lengths

    def stream_decoder(
        self, batch: int = 1, lookahead_frames: int | None = None, context_frames: int | None = None
    ) -> WindowedStreamDecoder:
        """A decoder that is given codes as they come; `codec.streaming.declared_error` says how exact it is.

        Args:
            batch: rows that are decoded side by side.
            lookahead_frames: frames held back; None for what the decoder needs.
            context_frames: past frames that are decoded again; None for the adapter's own number.
        """
        context = self.context_frames if context_frames is None else context_frames
        return WindowedStreamDecoder(self, batch, lookahead_frames, context, self.start_frames)

    @torch.inference_mode()
    def extract(
        self, source: AudioTokens | Tensor, feature: str, n_q: int | None = None, lengths: Tensor | None = None
    ) -> Features:
        """Latents before quantization (`pre_vq`), or what the decoder is given (`post_vq`).

        Args:
            source: tokens, or wav (B, 1, N); `pre_vq` needs wav.
            feature: one of `features`.
            n_q: layers that make up `post_vq`; None for all that there are.
            lengths: (B,) valid samples of wav.

        Raises:
            TokenError: an unknown feature, `pre_vq` of tokens, or `n_q` out of range.
            AudioError: wav that does not fit.
        """
        if feature not in self.features:
            raise TokenError(f"{self.spec.name} has no feature {feature!r}; it has {', '.join(self.features)}")
        rows: dict[int, Tensor] = {}
        if feature == "pre_vq":
            if isinstance(source, AudioTokens):
                raise TokenError("pre_vq is lost in tokens", "give the audio, or ask for post_vq")
            lengths = self._check_input(source, lengths, None)
            for members, latents in self._latent_groups(source, lengths):
                rows |= zip(members, latents, strict=True)
        else:
            tokens = source if isinstance(source, AudioTokens) else self.encode(source, lengths, n_q)
            self._check_tokens(tokens)
            tokens = (tokens if n_q is None else tokens.take(n_q)).to(self.device)
            for length, members in equal_rows(tokens.lengths.tolist(), SAMPLES_AT_ONCE // self.frame_samples):
                rows |= zip(members, self._dequantize(tokens.codes[members, :, :length]), strict=True)
        counts = torch.tensor([rows[i].shape[1] for i in range(len(rows))], device=self.device)
        values = torch.stack([_fit(rows[i], int(counts.max())) for i in range(len(rows))])  # (B, D, T)
        return Features(values, counts, self.spec.frame_rate)

    # ------------------------------------------------------------------ parts of the above

    def _check_input(self, wav: Tensor, lengths: Tensor | None, sample_rate: int | None) -> Tensor:
        if self.decode_only:
            raise TokenError("this codec was loaded with decode_only=True and cannot encode", "load it without")
        return check_wav(wav, lengths, self.spec.sample_rate, sample_rate)

    def _check_tokens(self, tokens: AudioTokens) -> None:
        self.spec.check_same_codec(tokens.spec, "the token batch")
        tokens.check_range()

    def _latent_groups(self, wav: Tensor, lengths: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        counts = lengths.tolist()
        for whole, members in equal_rows([self.padded_samples(count) for count in counts], SAMPLES_AT_ONCE):
            batch = torch.stack([_fit(wav[i, :, : counts[i]], whole) for i in members])
            yield members, self._latents(batch.to(self.device, torch.float32))


def in_chunks(
    stack: Callable[[Tensor], Tensor], x: Tensor, halo: int, core: int, into: int = 1, out: int = 1
) -> Tensor:
    """`stack(x)` of a convolutional stack, computed in chunks where x is long; the result is the same.

    Args:
        stack: from (B, C, F * into) to (B, D, F * out), where F counts frames.
        x: (B, C, L); the last frame may be cut short.
        halo: frames to either side beyond which no input acts on a frame.
        core: frames that a chunk gives.
        into: input steps of a frame.
        out: output steps of a frame.
    """
    total = math.ceil(x.shape[2] / into)
    if total <= core + 2 * halo:
        return stack(x)
    parts = []
    for start, stop, left, right in windows(total, core, halo):
        y = stack(x[:, :, left * into : right * into])
        end = y.shape[2] if stop == total else (stop - left) * out
        parts.append(y[:, :, (start - left) * out : end])
    return torch.cat(parts, dim=2)


def reach(layers: nn.Module | Iterable[nn.Module]) -> Fraction:
    """Input steps that one output step of stacked convolutions spans, less one (an upper bound).

    Args:
        layers: whose convolutions stand in the order in which they act; parallel ones are counted one after another.
    """
    modules = [layers] if isinstance(layers, nn.Module) else list(layers)
    step, span = Fraction(1), Fraction(0)
    for module in (inner for outer in modules for inner in outer.modules()):
        if isinstance(module, nn.Conv1d):
            span += step * module.dilation[0] * (module.kernel_size[0] - 1)
            step *= module.stride[0]
        elif isinstance(module, nn.ConvTranspose1d):
            span += step * (math.ceil(module.kernel_size[0] / module.stride[0]) - 1)
            step /= module.stride[0]
    return span


def run(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Layers one after another."""
    for layer in layers:
        x = layer(x)
    return x


def _fit(rows: Tensor, length: int) -> Tensor:
    """(C, L) padded on the right with zeros to `length`."""
    return F.pad(rows, (0, length - rows.shape[1]))
