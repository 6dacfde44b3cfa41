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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xcodec_lm.codec import semantic as teachers
from xcodec_lm.codec.audio import check_wav
from xcodec_lm.codec.nn.acoustic import Decoder, Encoder, add_weight_norm, folded_state, init_convolutions
from xcodec_lm.codec.nn.rvq import ResidualVectorQuantizer
from xcodec_lm.codec.nn.semantic import SemanticDecoder, SemanticEncoder
from xcodec_lm.codec.tokens import AudioTokens, TokenSpec, stack_codes
from xcodec_lm.configs.codec import CodecModelConfig, SemanticConfig
from xcodec_lm.configs.errors import ConfigError, TokenError

ACTIVATION_BYTES = 32 * 2**20
"""Largest activation on a CPU: beyond it the C library maps fresh pages for every tensor, which costs a third of the
time of decoding. Chunks with a halo keep below it and give the same result."""
WHOLE_ENCODE_S = 20.0
"""Audio up to this length is encoded in one piece."""


@dataclass
class TrainingOutput:
    """What the losses need of one forward pass.

    Attributes:
        wav: (B, 1, N) reconstruction.
        codes: (B, n_q, T).
        commitment: scalar.
        semantic: scalar, squared error of the teacher's features; 0 for the twin.
    """

    wav: Tensor
    codes: Tensor
    commitment: Tensor
    semantic: Tensor


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
        acoustic = self.acoustic_encoder(wav)
        return self._join(acoustic, features)

    def forward(self, wav: Tensor, n_q: int) -> TrainingOutput:
        """One training pass with `n_q` layers; wav is (B, 1, N) with N a whole number of hops."""
        features = self.teacher_features(wav)
        quantized = self.quantizer(self.latents(wav, features), n_q)
        semantic = quantized.commitment.new_zeros(())
        if features is not None:
            restored = self.decoder_semantic(self.fc1(quantized.quantized.transpose(1, 2)).transpose(1, 2))
            semantic = F.mse_loss(restored.float(), features.transpose(1, 2).float())
        return TrainingOutput(self._to_wav(quantized.quantized), quantized.codes, quantized.commitment, semantic)

    def teacher_features(self, wav: Tensor) -> Tensor | None:
        """(B, T, D) of the teacher, always in fp32, or None for the twin."""
        if not self.has_semantics:
            return None
        with torch.autocast(wav.device.type, enabled=False):
            config = self.config
            return teachers.teacher_features(
                self.semantic_model, wav.float(), config.hop_samples, config.sample_rate, self.semantic_config.window_s
            )

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
        device = self.device
        hop = self.config.hop_samples
        rows: list[Tensor | None] = [None] * len(wav)
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(lengths.tolist()):
            groups.setdefault(math.ceil(length / hop) * hop, []).append(index)
        for whole, members in groups.items():
            batch = torch.stack([_fit(wav[i, :, : int(lengths[i])], whole) for i in members]).to(device, torch.float32)
            for part, chosen in self._affordable(batch, members, self.acoustic_encoder.floats_per_frame, whole // hop):
                codes = self.quantizer.encode(self._latents_in_chunks(part), spec.n_q)
                for index, row in zip(chosen, codes, strict=True):
                    rows[index] = row
        return stack_codes([row for row in rows if row is not None], spec, lengths.to(device))

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
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(tokens.lengths.tolist()):
            groups.setdefault(length, []).append(index)
        for length, members in groups.items():
            codes = tokens.codes[members, :, :length]
            for part, chosen in self._affordable(codes, members, self.acoustic_decoder.floats_per_frame, length):
                for index, row in zip(chosen, self._decode_in_chunks(part), strict=True):
                    wav[index, :, : int(lengths[index])] = row[:, : int(lengths[index])]
        return wav, lengths

    # ------------------------------------------------------------------ parts of the above

    def _join(self, acoustic: Tensor, features: Tensor | None) -> Tensor:
        if features is not None:
            semantic = self.encoder_semantic(features.transpose(1, 2))
            acoustic = torch.cat([acoustic, semantic], dim=1)  # (B, D_a + D_s, T)
        return self.fc(acoustic.transpose(1, 2)).transpose(1, 2)

    def _to_wav(self, quantized: Tensor) -> Tensor:
        return self.acoustic_decoder(self.fc2(quantized.transpose(1, 2)).transpose(1, 2))

    def _plan(self, whole: int) -> tuple[int, int] | None:
        """Frames of a whole number of hops, and the padding that the acoustic encoder needs to agree with the teacher.

        The peer pads the waveform by half a hop on both sides where the two branches disagree. With the published
        sizes they never do on whole hops; other teachers' front ends may.
        """
        frames = self.acoustic_encoder.out_length(whole)
        if not self.has_semantics:
            return frames, 0
        half = self.config.hop_samples // 2
        semantic = teachers.frames_of(self.semantic_model.config, whole + 2 * half)
        for block in self.encoder_semantic.conv_blocks:
            conv = block.conv
            semantic = (semantic + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1
        for padding in (0, half):
            if self.acoustic_encoder.out_length(whole + 2 * padding) == semantic >= 1:
                return semantic, padding
        return None

    def _latents_in_chunks(self, wav: Tensor) -> Tensor:
        """Latents of (B, 1, N); long audio passes the acoustic encoder in chunks whose halo makes them exact."""
        hop = self.config.hop_samples
        plan = self._plan(wav.shape[2])
        if plan is None:
            raise ConfigError(f"{wav.shape[2]} samples give the teacher and the encoder different numbers of frames")
        features = self.teacher_features(wav)
        padded = F.pad(wav, (plan[1], plan[1]))
        total = padded.shape[2] // hop
        core = max(1, round(WHOLE_ENCODE_S * self.config.sample_rate / hop))
        if total <= core or plan[1]:
            return self._join(self.acoustic_encoder(padded), features)
        parts = []
        for start, stop, left, right in teachers.windows(total, core, self.acoustic_encoder.halo_frames):
            latents = self.acoustic_encoder(padded[:, :, left * hop : right * hop])
            parts.append(latents[:, :, start - left : stop - left])
        return self._join(torch.cat(parts, dim=2), features)

    def _decode_in_chunks(self, codes: Tensor) -> Tensor:
        """Audio (B, 1, T * hop) of codes (B, n_q, T), through the decoder in chunks whose halo makes them exact."""
        hop, total = self.config.hop_samples, codes.shape[2]
        core = self._frames_at_once(self.acoustic_decoder.floats_per_frame, codes.device) // len(codes)
        latents = self.fc2(self.quantizer.decode(codes).transpose(1, 2)).transpose(1, 2)
        halo = self.acoustic_decoder.halo_frames
        if total <= core + halo:
            return self.acoustic_decoder(latents)
        parts = []
        for start, stop, left, right in teachers.windows(total, core, halo):
            wav = self.acoustic_decoder(latents[:, :, left:right])
            parts.append(wav[:, :, (start - left) * hop : (stop - left) * hop])
        return torch.cat(parts, dim=2)

    def _frames_at_once(self, floats_per_frame: int, device: torch.device) -> int:
        budget = ACTIVATION_BYTES if device.type == "cpu" else 64 * ACTIVATION_BYTES
        return max(100, budget // (4 * floats_per_frame))

    def _affordable(
        self, batch: Tensor, members: list[int], floats_per_frame: int, frames: int
    ) -> list[tuple[Tensor, list[int]]]:
        """A batch in parts whose activations fit; single rows where they are long."""
        rows = max(1, self._frames_at_once(floats_per_frame, batch.device) // max(1, frames))
        return [(batch[i : i + rows], members[i : i + rows]) for i in range(0, len(batch), rows)]


def _fit(wav: Tensor, samples: int) -> Tensor:
    """(1, N) padded on the right with zeros to `samples`."""
    return F.pad(wav, (0, samples - wav.shape[1]))
