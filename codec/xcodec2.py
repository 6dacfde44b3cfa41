"""X-Codec 2 and NeuCodec: the model, and the token interface over it.

    wav -> teacher -> adapter  -> S \
                                     concat -> fc -> FSQ -> decoder: transformer, inverse STFT -> wav
    wav -> acoustic encoder    -> A /                  \\-> fc_semantic -> adapter -> teacher's features (training)

One codebook of 65,536 codes, 50 frames a second. Parameter names are those of `transformers.Xcodec2Model` and
`NeuCodecModel`, the second being the same codec with an output of 24 kHz. Read `encode` and `decode` first.

Differences from these peers: audio is padded on the right to whole frames, so N samples are ceil(N / hop) frames, where
their feature extractors add one sample first (X-Codec 2: floor(N / hop) + 1 frames; NeuCodec: floor(N / hop), which
drops the tail). On the same padded input the codes are the same. Rows of unequal length are computed without each
other's padding, which attention and GroupNorm would see; `decode` gives back the length that came in; bad input is
refused. New models may use rotary positions over time, have a causal decoder, another teacher, or none.

Source: arXiv 2502.04128, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.codec import semantic as teachers
from xcodec_lm.codec.audio import check_wav
from xcodec_lm.codec.batching import equal_rows, frames_at_once, windows
from xcodec_lm.codec.nn.acoustic import add_weight_norm, folded_state
from xcodec_lm.codec.nn.bigcodec import Encoder
from xcodec_lm.codec.nn.fsq import FiniteScalarQuantizer
from xcodec_lm.codec.nn.semantic_adapter import SemanticAdapter
from xcodec_lm.codec.nn.transformer import Decoder
from xcodec_lm.codec.streaming import WindowedStreamDecoder
from xcodec_lm.codec.tokens import AudioTokens, Features, TokenSpec, stack_codes
from xcodec_lm.codec.xcodec import TrainingOutput
from xcodec_lm.codec.xcodec2_teacher import extra_hops, features_of
from xcodec_lm.configs.errors import ConfigError, TokenError
from xcodec_lm.configs.xcodec2 import Xcodec2ModelConfig, Xcodec2SemanticConfig

STREAM_LOOKAHEAD_FRAMES, STREAM_CONTEXT_FRAMES = 25, 150
"""Window of the stream of a decoder that is not causal: it comes near the offline result, which sees the whole clip."""


class XCodec2(nn.Module):
    """An X-Codec 2, a NeuCodec, a streaming variant, or a twin without semantics.

    Args:
        model: sizes of the encoder, quantizer and decoder.
        semantic: what of the teacher is used.
        teacher: the frozen model, or None with `semantic.teacher: none`.
        decode_only: leave out all that only encoding needs.
        semantic_decoder: with the stack that restores the teacher's features, which training and `extract` use and
            the published weights lack.

    Attributes:
        latency_samples: how far, in output samples, the audio of a causal decoder looks ahead: changing frame t and all
            later ones changes no sample before t * hop - latency_samples. None where it sees the whole clip.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    def __init__(
        self,
        model: Xcodec2ModelConfig,
        semantic: Xcodec2SemanticConfig,
        teacher: nn.Module | None,
        decode_only: bool = False,
        semantic_decoder: bool = False,
    ):
        super().__init__()
        self.config, self.semantic_config, self.decode_only = model, semantic, decode_only
        self.has_semantics = semantic.teacher != "none"
        self.acoustic_decoder = Decoder(model.decoder, model.quantizer_dim, model.dim, model.output_hop_samples)
        self.quantizer = FiniteScalarQuantizer(model.quantizer, model.quantizer_dim)
        self.extra_hops = 0
        if not decode_only:
            width = model.dim + (semantic.dim if self.has_semantics else 0)
            self.acoustic_encoder = Encoder(model.encoder_channels, model.encoder_strides, model.dim)
            self.fc_encoder = nn.Linear(width, model.quantizer_dim)
            if self.has_semantics:
                if teacher is None:
                    raise ConfigError(f"semantic.teacher is {semantic.teacher!r}, but no teacher was given")
                self.semantic_encoder = teacher.eval()
                self.semantic_adapter = SemanticAdapter(semantic.dim)
                self.extra_hops = extra_hops(teacher.config, semantic, model.hop_samples)
        if semantic_decoder and self.has_semantics:
            self.fc_semantic = nn.Linear(model.quantizer_dim, semantic.dim)
            self.semantic_decoder = SemanticAdapter(semantic.dim)
        self.causal = model.decoder.causal
        head = self.acoustic_decoder.head
        self.latency_samples = head.lookahead_samples if self.causal else None
        self.lookahead_frames = (
            math.ceil(head.lookahead_samples / head.hop_samples) if self.causal else STREAM_LOOKAHEAD_FRAMES
        )
        self.spec = TokenSpec(
            name="xcodec2" if model.output_sample_rate == model.sample_rate else "neucodec",
            sample_rate=model.sample_rate,
            output_sample_rate=model.output_sample_rate,
            hop_samples=model.hop_samples,
            codebook_sizes=(self.quantizer.codebook_size,),
        )

    # ------------------------------------------------------------------ training

    def init_for_training(self) -> None:
        """Gives fresh weights the initialisation and the parametrisation that training uses."""
        std = self.config.init_std
        self.acoustic_encoder.init(std)
        self.acoustic_decoder.init(std)
        if self.config.weight_norm:
            add_weight_norm(self.acoustic_encoder)

    def freeze_encoder(self) -> None:
        """Takes all that decides the codes out of training, to train a new decoder on an old tokenizer."""
        for name in ("acoustic_encoder", "fc_encoder", "semantic_adapter", "semantic_encoder"):
            if hasattr(self, name):
                getattr(self, name).requires_grad_(False)
        self.quantizer.project_in.requires_grad_(False)

    def exported(self) -> XCodec2:
        """A copy for inference with its weight norms folded; the training codec stays as it is."""
        teacher = teachers.teacher_from_config(self.semantic_encoder.config) if self.has_semantics else None
        copy = XCodec2(
            self.config, self.semantic_config, teacher, semantic_decoder=hasattr(self, "semantic_decoder")
        ).to(self.device)
        copy.load_state_dict(folded_state(self, ("acoustic_encoder",)))
        copy.spec = self.spec
        return copy.eval()

    def train(self, mode: bool = True) -> XCodec2:
        """As `nn.Module.train`, but the teacher stays in eval mode."""
        super().train(mode)
        if hasattr(self, "semantic_encoder"):
            self.semantic_encoder.eval()
        return self

    def forward(self, wav: Tensor, features: Tensor | None = None) -> TrainingOutput:
        """One training pass.

        Args:
            wav: (B, 1, N), N a whole number of hops, T = N / hop.
            features: (B, T, D) of `teacher_features(wav)` if they are at hand; None computes them.

        Returns:
            wav (B, 1, T * output hop), codes (B, 1, T), the semantic loss (0 without a semantic decoder), a commitment
            loss of 0, which FSQ does not have, and the spread loss.
        """
        features = self.teacher_features(wav) if features is None else features
        latents = self.latents(wav, features)
        vectors, codes = self.quantizer(latents)
        none = vectors.new_zeros(())
        semantic = none
        if features is not None and hasattr(self, "semantic_decoder"):
            restored = self.semantic_decoder(self.fc_semantic(vectors).transpose(1, 2))
            semantic = F.mse_loss(restored.float(), features.transpose(1, 2).float())
        spread = self.quantizer.spread_loss(latents)
        return TrainingOutput(self.acoustic_decoder(vectors), codes[:, None], none, semantic, spread)

    def forward_codes(self, codes: Tensor) -> Tensor:
        """Audio (B, 1, T * output hop) of codes (B, 1, T), with gradients for the decoder."""
        return self.acoustic_decoder(self.quantizer.decode(codes[:, 0]))

    def latents(self, wav: Tensor, features: Tensor | None) -> Tensor:
        """What the quantizer gets: (B, T, D).

        Args:
            wav: (B, 1, T * hop); long audio passes the acoustic encoder in chunks whose halo makes them exact.
            features: (B, T, D) of the teacher; None without one.
        """
        hop, total = self.config.hop_samples, wav.shape[2] // self.config.hop_samples
        if self.extra_hops:  # as the peer does, whose acoustic encoder hears the zeros after the audio, too
            wav = F.pad(wav, (0, self.extra_hops * hop))
        halo, end = self.acoustic_encoder.halo_frames, wav.shape[2] // hop
        core = max(halo, frames_at_once(self.acoustic_encoder.floats_per_frame, wav.device))
        parts = []
        for start, stop, left, right in windows(end, core, halo):
            latents = self.acoustic_encoder(wav[:, :, left * hop : right * hop])
            parts.append(latents[:, :, start - left : stop - left])
        joined = torch.cat(parts, dim=2)[:, :, :total] if len(parts) > 1 else parts[0][:, :, :total]
        if features is not None:
            joined = torch.cat([self.semantic_adapter(features.transpose(1, 2)), joined], dim=1)  # (B, D_s + D_a, T)
        return self.fc_encoder(joined.transpose(1, 2))

    def teacher_features(self, wav: Tensor) -> Tensor | None:
        """(B, T, D) of the teacher for wav (B, 1, T * hop), always in fp32; None without one."""
        if not self.has_semantics:
            return None
        return features_of(self.semantic_encoder, wav, self.config, self.semantic_config)

    # ------------------------------------------------------------------ token interface

    @property
    def device(self) -> torch.device:
        """Where the codec computes; audio and tokens from elsewhere are taken there."""
        return self.quantizer.project_out.weight.device

    def frames(self, samples: int) -> int:
        """Frames that `samples` samples become: those of the next whole hop."""
        return math.ceil(samples / self.config.hop_samples)

    @torch.inference_mode()
    def encode(
        self, wav: Tensor, lengths: Tensor | None = None, n_q: int | None = None, *, sample_rate: int | None = None
    ) -> AudioTokens:
        """Tokens of a batch; every row's are those that it would get alone.

        Args:
            wav: (B, 1, N) float in [-1, 1] at `spec.sample_rate`.
            lengths: (B,) valid samples of each row; None when all are.
            n_q: 1 or None; there is one quantizer.
            sample_rate: the rate of wav if the caller wants it checked.

        Returns:
            One layer of codes; each row padded on its right to whole frames.

        Raises:
            AudioError: input that does not fit, see `codec.audio.check_wav`.
            TokenError: `n_q` out of range, or the codec was loaded for decoding only.
        """
        self._check_can_encode()
        lengths = check_wav(wav, lengths, self.spec.sample_rate, sample_rate)
        spec = self.spec if n_q is None else self.spec.take(n_q)
        rows: list[Any] = [None] * len(wav)
        for part, chosen in self._whole_rows(wav, lengths):
            codes = self.quantizer.encode(self.latents(part, self.teacher_features(part)))
            for index, row in zip(chosen, codes, strict=True):
                rows[index] = row[None]  # (1, T)
        return stack_codes(rows, spec, lengths.to(self.device))

    @torch.inference_mode()
    def decode(self, tokens: AudioTokens) -> tuple[Tensor, Tensor]:
        """Audio of a batch of tokens; every row is that which it would be alone.

        Args:
            tokens: of this codec.

        Returns:
            wav (B, 1, N) at `spec.output_sample_rate`, zero beyond each row's length, and lengths (B,) in samples:
            those of the audio that was encoded, rounded up to the output rate, where the tokens know them.

        Raises:
            TokenError: tokens of another codec, or codes out of range.
        """
        self.spec.check_same_codec(tokens.spec, "the token batch")
        tokens.check_range()
        tokens, model = tokens.to(self.device), self.config
        lengths = tokens.lengths * model.output_hop_samples
        if tokens.samples is not None:
            came_in = -(-tokens.samples * model.output_sample_rate // model.sample_rate)
            lengths = torch.minimum(came_in, lengths)
        wav = torch.zeros(len(tokens), 1, int(lengths.max()), device=self.device)
        for codes, chosen in self._token_rows(tokens):
            for index, row in zip(chosen, self.forward_codes(codes), strict=True):
                wav[index, :, : int(lengths[index])] = row[:, : int(lengths[index])]
        return wav, lengths

    def stream_decoder(self, batch: int = 1, lookahead_frames: int | None = None) -> WindowedStreamDecoder:
        """A decoder that is given codes as they come.

        Exact for a causal decoder, up to rounding. Any other sees the whole clip offline and a window here; how far
        the two are apart is measured by `codec.streaming.declared_error`.

        Args:
            batch: rows that are decoded side by side.
            lookahead_frames: frames held back; None for what the decoder needs.
        """
        context = self.acoustic_decoder.context_frames if self.causal else STREAM_CONTEXT_FRAMES
        return WindowedStreamDecoder(self, batch, lookahead_frames, context)

    # ------------------------------------------------------------------ features

    @property
    def features(self) -> tuple[str, ...]:
        """Names that `extract` takes."""
        encoding = () if self.decode_only else ("pre_vq", *(("ssl",) if self.has_semantics else ()))
        return ("post_vq", *encoding, *(("sem_decoder",) if hasattr(self, "semantic_decoder") else ()))

    @torch.inference_mode()
    def extract(
        self, source: AudioTokens | Tensor, feature: str, n_q: int | None = None, lengths: Tensor | None = None
    ) -> Features:
        """Inner vectors of tokens or audio.

        Args:
            source: tokens of this codec, or wav (B, 1, N) at `spec.sample_rate`.
            feature: `post_vq` and `sem_decoder` of either; `pre_vq` and `ssl` of audio.
            n_q: 1 or None.
            lengths: (B,) valid samples of each row of wav.

        Returns:
            (B, D, T).

        Raises:
            TokenError: a feature that this codec or tokens do not have, or tokens that do not fit.
            AudioError: audio that does not fit.
        """
        if feature not in self.features:
            raise TokenError(f"{self.spec.name} has no feature {feature!r}", f"choose from {', '.join(self.features)}")
        if n_q is not None:
            self.spec.take(n_q)
        found: dict[int, Tensor] = {}
        if feature in ("pre_vq", "ssl"):
            if isinstance(source, AudioTokens):
                raise TokenError(f"{feature} is not in the tokens", "give the audio that they were made from")
            lengths = check_wav(source, lengths, self.spec.sample_rate, None)
            for part, chosen in self._whole_rows(source, lengths):
                ssl = self.teacher_features(part)
                values = self.latents(part, ssl) if feature == "pre_vq" else ssl
                assert values is not None
                found |= dict(zip(chosen, values.transpose(1, 2), strict=True))
        else:
            tokens = source if isinstance(source, AudioTokens) else self.encode(source, lengths)
            self.spec.check_same_codec(tokens.spec, "the token batch")
            tokens.check_range()
            for codes, chosen in self._token_rows(tokens.to(self.device)):
                values = self.quantizer.decode(codes[:, 0])
                if feature == "sem_decoder":
                    values = self.semantic_decoder(self.fc_semantic(values).transpose(1, 2)).transpose(1, 2)
                found |= dict(zip(chosen, values.transpose(1, 2), strict=True))
        rows = [found[index].T for index in range(len(found))]  # (T, D)
        counts = torch.tensor([len(row) for row in rows], device=self.device)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, T, D)
        return Features(padded.transpose(1, 2), counts, self.spec.frame_rate)

    # ------------------------------------------------------------------ parts of the above

    def _check_can_encode(self) -> None:
        if self.decode_only:
            raise TokenError("this codec was loaded with decode_only=True and cannot encode", "load it without")

    def _whole_rows(self, wav: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
        """Rows of equal numbers of frames together, as (B', 1, T * hop), with their indices."""
        hop, counts = self.config.hop_samples, lengths.tolist()
        limit = frames_at_once(self.acoustic_encoder.floats_per_frame, self.device)
        for frames, members in equal_rows([self.frames(count) for count in counts], limit):
            rows = [F.pad(wav[i, :, : counts[i]], (0, frames * hop - counts[i])) for i in members]
            yield torch.stack(rows).to(self.device, torch.float32), members

    def _token_rows(self, tokens: AudioTokens) -> Iterator[tuple[Tensor, list[int]]]:
        """Rows of equal length together, as (B', 1, T), with their indices."""
        widest = max(self.config.decoder.mlp_dim, 4 * self.config.output_hop_samples)
        for length, members in equal_rows(tokens.lengths.tolist(), frames_at_once(widest, self.device)):
            yield tokens.codes[members, :, :length], members
