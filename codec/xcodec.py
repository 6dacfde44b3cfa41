"""X-Codec, and its twin without semantics: the model, and the token interface over it.

    wav -> acoustic encoder -> A \
                                  concat -> fc -> RVQ -> fc2 -> acoustic decoder -> wav
    wav -> teacher -> encoder  -> S /              \\-> fc1 -> semantic decoder -> teacher's features

The twin is the same class with `semantic.teacher: none`: no teacher, no semantic stacks, no fc1; all else is equal.
Parameter names are those of `transformers.XcodecModel`. Read `encode` and `decode` first.

Differences from that peer: audio is padded on the right to whole frames and never shifted by half of one; rows of
unequal length are encoded without seeing each other's padding; `n_q` is any number of layers; bad input is refused.

Source: arXiv 2408.17175, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.codec import semantic as teachers
from xcodec_lm.codec.audio import check_wav
from xcodec_lm.codec.batching import buckets, frames_at_once, in_equal_windows, in_windows, keep, uneven, windows
from xcodec_lm.codec.nn.acoustic import Decoder, Encoder, add_weight_norm, folded_state, init_convolutions
from xcodec_lm.codec.nn.rvq import ResidualVectorQuantizer
from xcodec_lm.codec.nn.semantic import SemanticDecoder, SemanticEncoder
from xcodec_lm.codec.streaming import WindowedStreamDecoder, WindowedStreamEncoder
from xcodec_lm.codec.tokens import AudioTokens, Features, TokenSpec, stack_codes
from xcodec_lm.configs.codec import CodecModelConfig, SemanticConfig
from xcodec_lm.configs.errors import ConfigError, TokenError

WHOLE_FRAMES = 1000
"""Frames (20 s) up to which both branches are joined and quantized in one piece, in the arithmetic of the peer."""
COMPILED_FRAMES = 150
"""Frames of a chunk of compiled stacks, context included: 3 s at 50 frames/s."""
STREAM_CONTEXT_FRAMES, STREAM_LOOKAHEAD_FRAMES = 200, 50
"""What a streaming encoder with a teacher sees around the frames that it gives out; not exact, since attention is
global."""


@dataclass
class TrainingOutput:
    """What the losses need of one forward pass.

    Attributes:
        wav: (B, 1, N) reconstruction.
        codes: (B, n_q, T).
        commitment: scalar.
        semantic: scalar, squared error of the teacher's features; 0 for the twin.
        spread: scalar, see `FiniteScalarQuantizer.spread_loss`; None where the quantizer is another.
    """

    wav: Tensor
    codes: Tensor
    commitment: Tensor
    semantic: Tensor
    spread: Tensor | None = None


@dataclass
class Heard:
    """A teacher's features.

    Attributes:
        values: (B, T, D).
        frames: of each row, before padding.
    """

    values: Tensor
    frames: list[int]

    def part(self, start: int, stop: int) -> Heard:
        """Frames start..stop."""
        return Heard(self.values[:, start:stop], [min(max(count - start, 0), stop - start) for count in self.frames])


class XCodec(nn.Module):
    """An X-Codec or its twin.

    Args:
        model: sizes of the acoustic stacks and the quantizer.
        semantic: the teacher's width and the stacks around it.
        teacher: the frozen model, or None for the twin (`semantic.teacher: none`).
        decode_only: leave out all that only encoding needs.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    causal = False

    def __init__(
        self, model: CodecModelConfig, semantic: SemanticConfig, teacher: nn.Module | None, decode_only: bool = False
    ):
        super().__init__()
        self.config, self.semantic_config, self.decode_only = model, semantic, decode_only
        self.has_semantics = semantic.teacher != "none"
        width = model.latent_dim + (semantic.dim if self.has_semantics else 0)
        dim = model.quantizer.dim
        if self.has_semantics and not len(semantic.strides) == len(semantic.channel_ratios):
            raise ConfigError("semantic.strides and semantic.channel_ratios must have the same length")
        self.acoustic_decoder = Decoder(model.latent_dim, model.decoder_channels, model.decoder_strides)
        self.quantizer = ResidualVectorQuantizer(model.quantizer)
        self.fc2 = nn.Linear(dim, model.latent_dim)
        if not decode_only:
            self.acoustic_encoder = Encoder(model.encoder_channels, model.encoder_strides, model.latent_dim)
            self.fc = nn.Linear(width, dim)
            if self.has_semantics:
                if teacher is None:
                    raise ConfigError(f"semantic.teacher is {semantic.teacher!r}, but no teacher was given")
                self.semantic_model = teacher.eval()
                self.encoder_semantic = SemanticEncoder(semantic)
                self.decoder_semantic = SemanticDecoder(semantic)
                self.fc1 = nn.Linear(dim, semantic.dim)
                if self._plan(model.hop_samples * 50) is None:
                    raise ConfigError(
                        f"the teacher {semantic.teacher!r} does not give one frame per {model.hop_samples} samples, "
                        "so its features cannot be joined with the acoustic ones"
                    )
        self.lookahead_frames = self.acoustic_decoder.halo_frames
        self.spec = TokenSpec(
            name="xcodec" if self.has_semantics else "baseline",
            sample_rate=model.sample_rate,
            output_sample_rate=model.sample_rate,
            hop_samples=model.hop_samples,
            codebook_sizes=(model.quantizer.codebook_size,) * model.quantizer.n_q,
        )
        self._compiled: dict[str, Callable[[Tensor], Tensor]] = {}
        self.transformers_config: dict[str, Any] | None = (
            None  # of a codec that came from transformers, to save it back
        )

    # ------------------------------------------------------------------ training

    def init_for_training(self) -> None:
        """Gives fresh weights the initialisation and the parametrisation that training uses."""
        init_convolutions(self.acoustic_encoder, self.config.init_std)
        init_convolutions(self.acoustic_decoder, self.config.init_std)
        if self.config.weight_norm:
            add_weight_norm(self.acoustic_encoder)
            add_weight_norm(self.acoustic_decoder)

    def exported(self) -> XCodec:
        """A copy for inference with its weight norms folded; the training codec stays as it is."""
        teacher = teachers.teacher_from_config(self.semantic_model.config) if self.has_semantics else None
        copy = XCodec(self.config, self.semantic_config, teacher)
        copy.load_state_dict(folded_state(self, ("acoustic_encoder", "acoustic_decoder")))
        return copy.eval()

    def train(self, mode: bool = True) -> XCodec:
        """As `nn.Module.train`, but the teacher stays in eval mode."""
        super().train(mode)
        if hasattr(self, "semantic_model"):
            self.semantic_model.eval()
        return self

    def latents(self, wav: Tensor, features: Tensor | None) -> Tensor:
        """What the quantizer gets: (B, D, T).

        Args:
            wav: (B, 1, N), N a whole number of hops.
            features: (B, T, D) of the teacher; None for the twin.
        """
        heard = None if features is None else Heard(features, [features.shape[1]])
        return self.join(self.acoustic_encoder(wav), heard)

    def forward(self, wav: Tensor, n_q: int) -> TrainingOutput:
        """One training pass with `n_q` layers; wav is (B, 1, N) with N a whole number of hops."""
        features = self.teacher_features(wav)
        quantized = self.quantizer(self.latents(wav, features), n_q)
        semantic = quantized.commitment.new_zeros(())
        if features is not None:
            restored = self.decoder_semantic(self.fc1(quantized.quantized.transpose(1, 2)).transpose(1, 2))
            semantic = F.mse_loss(restored.float(), features.transpose(1, 2).float())
        return TrainingOutput(self._to_wav(quantized.quantized), quantized.codes, quantized.commitment, semantic)

    def teacher_features(self, wav: Tensor, lengths: Tensor | None = None) -> Tensor | None:
        """(B, T, D) of the teacher, always in fp32, or None for the twin.

        Args:
            wav: (B, 1, N), N a whole number of hops.
            lengths: (B,) samples of rows that are padded, whole hops.
        """
        if not self.has_semantics:
            return None
        with torch.autocast(wav.device.type, enabled=False):
            config, semantic = self.config, self.semantic_config
            return teachers.teacher_features(
                self.semantic_model, wav.float(), config.hop_samples, config.sample_rate,
                semantic.window_s, lengths, semantic.layers,
            )  # fmt: skip

    def compile_stacks(self) -> None:
        """Has torch compile the acoustic stacks for chunks of one shape, half a minute each at their first use."""
        stacks = {"decoder": self.acoustic_decoder}
        if not self.decode_only:
            stacks["encoder"] = self.acoustic_encoder
        self._compiled = {name: torch.compile(stack, dynamic=False) for name, stack in stacks.items()}

    # ------------------------------------------------------------------ token interface

    @property
    def device(self) -> torch.device:
        """Where the codec computes; audio and tokens from elsewhere are taken there."""
        return self.fc2.weight.device

    def frames(self, samples: int) -> int:
        """Frames that `samples` samples become: those of the next whole hop.

        Raises:
            ConfigError: the teacher gives no matching number of frames.
        """
        hop = self.config.hop_samples
        whole = math.ceil(samples / hop) * hop
        if self.decode_only:
            return whole // hop
        plan = self._plan(whole)
        if plan is None:
            raise ConfigError(f"{whole} samples give the teacher and the encoder different numbers of frames")
        return plan[0]

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

        Returns:
            `n_q` layers of codes; each row padded on its right to whole frames.

        Raises:
            AudioError: input that does not fit, see `codec.audio.check_wav`.
            TokenError: `n_q` out of range, or the codec was loaded for decoding only.
        """
        if self.decode_only:
            raise TokenError("this codec was loaded with decode_only=True and cannot encode", "load it without")
        lengths = check_wav(wav, lengths, self.spec.sample_rate, sample_rate)
        spec = self.spec if n_q is None else self.spec.take(n_q)
        rows: list[Tensor] = [wav.new_zeros(0)] * len(wav)
        for members, acoustic, features, frames in self.branches(wav, lengths):
            codes = self._codes(acoustic, features, frames, spec.n_q)
            for index, row, count in zip(members, codes, frames, strict=True):
                rows[index] = row[:, :count]
        return stack_codes(rows, spec, lengths.to(self.device))

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
        self.spec.check_same_codec(tokens.spec, "the token batch")
        tokens.check_range()
        device, hop = self.device, self.config.hop_samples
        tokens = tokens.to(device)
        full = tokens.lengths * hop
        lengths = full if tokens.samples is None else torch.minimum(tokens.samples, full)
        wav = torch.zeros(len(tokens), 1, int(lengths.max()), device=device)
        frames = tokens.lengths.tolist()
        limit = frames_at_once(self.acoustic_decoder.floats_per_frame, device)
        for members in buckets(frames, limit, device):
            counts = [frames[index] for index in members]
            rows = self._audio(tokens.codes[members, :, : max(counts)], uneven(counts, device))
            for index, row in zip(members, rows, strict=True):
                wav[index, :, : int(lengths[index])] = row[:, : int(lengths[index])]
        return wav, lengths

    def stream_decoder(self, batch: int = 1, lookahead_frames: int | None = None) -> WindowedStreamDecoder:
        """Codes in, audio out, a few frames at a time.

        Args:
            batch: rows.
            lookahead_frames: held back until they are followed by as many. None: what makes the stream equal to
                `decode` (10 with the published strides); fewer cost quality, see docs/codec.md.
        """
        halo = self.acoustic_decoder.halo_frames
        return WindowedStreamDecoder(self, batch, halo if lookahead_frames is None else lookahead_frames, halo)

    def stream_encoder(self, batch: int = 1, lookahead_frames: int | None = None) -> WindowedStreamEncoder:
        """Audio in, codes out, a few frames at a time.

        Args:
            batch: rows.
            lookahead_frames: None: for the twin what makes the stream equal to `encode` (28 with the published
                strides); with a teacher, whose attention is global, one second. How many codes agree is measured by
                `codec.streaming.declared_agreement`.
        """
        halo = self.acoustic_encoder.halo_frames
        context = STREAM_CONTEXT_FRAMES if self.has_semantics else halo
        ahead = max(halo, STREAM_LOOKAHEAD_FRAMES) if self.has_semantics else halo
        return WindowedStreamEncoder(self, batch, ahead if lookahead_frames is None else lookahead_frames, context)

    # ------------------------------------------------------------------ frame features

    @property
    def features(self) -> tuple[str, ...]:
        """What `extract` can give."""
        names = ("post_vq", "fc_post2") if self.decode_only else ("pre_vq", "post_vq", "fc_post2")
        return names + (("fc_post1", "sem_decoder", "ssl") if self.has_semantics and not self.decode_only else ())

    def extract(
        self, source: AudioTokens | Tensor, feature: str, n_q: int | None = None, lengths: Tensor | None = None
    ) -> Features:
        """Vectors over time, for probes and ABX; see `codec.xcodec_features.extract`."""
        from xcodec_lm.codec.xcodec_features import extract

        return extract(self, source, feature, n_q, lengths)

    # ------------------------------------------------------------------ parts of the above

    def join(self, acoustic: Tensor, heard: Heard | None) -> Tensor:
        """What the quantizer gets, (B, D, T), of both branches."""
        if heard is not None:
            lengths = uneven(heard.frames, acoustic.device)
            mask = None if lengths is None else keep(torch.ones_like(heard.values[:, None, :, 0]), lengths)  # (B, 1, T)
            semantic = self.encoder_semantic(heard.values.transpose(1, 2), mask)
            acoustic = torch.cat([acoustic, semantic], dim=1)  # (B, D_a + D_s, T)
        return self.fc(acoustic.transpose(1, 2)).transpose(1, 2)

    def _to_wav(self, quantized: Tensor) -> Tensor:
        return self.acoustic_decoder(self.fc2(quantized.transpose(1, 2)).transpose(1, 2))

    def _teacher_frames(self, whole: int) -> int:
        """Frames of the teacher on a whole number of hops, padded by half a hop on both sides; 0 for the twin."""
        if not self.has_semantics:
            return 0
        return teachers.frames_of(self.semantic_model.config, whole + self.config.hop_samples // 2 * 2)

    def _plan(self, whole: int) -> tuple[int, int] | None:
        """Frames of a whole number of hops, and the padding that the acoustic encoder needs to agree with the teacher.

        The peer pads the waveform by half a hop on both sides where the two branches disagree. With the published
        sizes they never do on whole hops; other teachers' front ends may.
        """
        frames = self.acoustic_encoder.out_length(whole)
        if not self.has_semantics:
            return frames, 0
        half = self.config.hop_samples // 2
        semantic = self._teacher_frames(whole)
        for block in self.encoder_semantic.conv_blocks:
            conv = block.conv
            semantic = (semantic + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1
        for padding in (0, half):
            if self.acoustic_encoder.out_length(whole + 2 * padding) == semantic >= 1:
                return semantic, padding
        return None

    def branches(self, wav: Tensor, lengths: Tensor) -> Iterator[tuple[list[int], Tensor, Heard | None, list[int]]]:
        """Both branches of rows that are worth computing together.

        Yields:
            Indices of rows, their acoustic latents (B', D, T), what the teacher heard, and the frames of each row.
        """
        device, hop = self.device, self.config.hop_samples
        whole = [math.ceil(int(length) / hop) for length in lengths]
        limit = frames_at_once(self.acoustic_encoder.floats_per_frame, device)
        for members in buckets(whole, limit, device):
            samples = [whole[index] * hop for index in members]
            batch = torch.zeros(len(members), 1, max(samples))
            for place, index in enumerate(members):
                batch[place, :, : int(lengths[index])] = wav[index, :, : int(lengths[index])]
            batch, padded = batch.to(device), uneven(samples, device)
            features = self.teacher_features(batch, padded)
            heard = None if features is None else Heard(features, [self._teacher_frames(count) for count in samples])
            yield members, self._acoustic(batch, padded), heard, [self.frames(count) for count in samples]

    def _codes(self, acoustic: Tensor, heard: Heard | None, frames: list[int], n_q: int) -> Tensor:
        """Codes (B, n_q, T), in windows where the audio is long, so that only the codes grow with it."""
        total = acoustic.shape[2]
        halo = 0 if heard is None else self.encoder_semantic.halo_frames
        if total <= WHOLE_FRAMES or halo is None:
            return self.quantizer.encode(self.join(acoustic, heard), n_q)
        parts = []
        for start, stop, left, right in windows(total, WHOLE_FRAMES, halo):
            latents = self.join(acoustic[:, :, left:right], None if heard is None else heard.part(left, right))
            parts.append(self.quantizer.encode(latents[:, :, start - left : stop - left], n_q))
        return torch.cat(parts, dim=2)

    def _acoustic(self, wav: Tensor, lengths: Tensor | None) -> Tensor:
        """Acoustic latents of (B, 1, N), in windows where it is long."""
        hop, encoder = self.config.hop_samples, self.acoustic_encoder
        plan = self._plan(wav.shape[2])
        if plan is None:
            raise ConfigError(f"{wav.shape[2]} samples give the teacher and the encoder different numbers of frames")
        padding, total, halo = plan[1], wav.shape[2] // hop, encoder.halo_frames
        if "encoder" in self._compiled and not padding and lengths is None and total >= COMPILED_FRAMES:
            return in_equal_windows(self._compiled["encoder"], wav, (hop, 1), halo, COMPILED_FRAMES)
        core = frames_at_once(encoder.floats_per_frame, wav.device) // len(wav)
        if padding or total <= core + halo:
            return encoder(F.pad(wav, (padding, padding)), None if lengths is None else lengths + 2 * padding)
        return in_windows(encoder, wav, lengths, (hop, 1), halo, core)

    def _audio(self, codes: Tensor, lengths: Tensor | None) -> Tensor:
        """Audio (B, 1, T * hop) of codes (B, n_q, T), in windows where it is long."""
        rates, total, decoder = (1, self.config.hop_samples), codes.shape[2], self.acoustic_decoder
        latents = self.fc2(self.quantizer.decode(codes).transpose(1, 2)).transpose(1, 2)
        if "decoder" in self._compiled and lengths is None and total >= COMPILED_FRAMES:
            return in_equal_windows(self._compiled["decoder"], latents, rates, decoder.halo_frames, COMPILED_FRAMES)
        core = max(1, frames_at_once(decoder.floats_per_frame, codes.device) // len(codes))
        if total <= core + decoder.halo_frames:
            return decoder(latents, lengths)
        return in_windows(decoder, latents, lengths, rates, decoder.halo_frames, core)
