"""EnCodec, DAC and Mimi: adapters over the models of transformers.

The models are transformers' own; what is here is the way in and out of them. Codes equal those of the peer's `encode`
on the same audio (DAC: padded to whole hops, as its feature extractor does), for any number of layers.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DacModel, EncodecModel, MimiModel

from xcodec_lm.codec.adapters.base import CHUNK_S, Adapter, in_chunks, reach, run
from xcodec_lm.codec.fingerprints import hash_tensors
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError

ENCODE_SIDE = ("encoder.", "encoder_transformer.", "downsample.", "quantizer.")
TRAINING_ONLY = (".embed_avg", ".cluster_size", ".inited", ".initialized")
MIMI_NAMES = {  # newer releases put Mimi's encoder into a module of its own; fingerprints keep the published names
    "encoder.encoder_seanet.": "encoder.",
    "encoder.encoder_transformer.": "encoder_transformer.",
    "encoder.downsample.": "downsample.",
}


class EncodecAdapter(Adapter):
    """EnCodec at 24 kHz: causal, 75 frames per second, up to 32 codebooks of 1024.

    Its convolutions mirror the beginning of the signal, so the first audio of a stream waits for as many frames as the
    first kernel is long. A recurrent layer remembers more than any window; `context_frames` is one second.

    Args:
        model: with weights.
        name: under which its tokens are known.
        decode_only: drop the encoder.

    Raises:
        ConfigError: a stereo or a normalised model; their codes alone do not hold the audio.

    Source: arXiv 2210.13438.
    """

    def __init__(self, model: EncodecModel, name: str | None = None, decode_only: bool = False):
        config: Any = model.config
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise ConfigError(
                f"this EnCodec ({config.sampling_rate} Hz, {config.audio_channels} channels"
                f"{', normalised' if config.normalize else ''}) codes stereo or scaled one-second chunks, "
                "which one row of codes cannot hold",
                "use the 24 kHz model, facebook/encodec_24khz",
            )
        rate, hop = config.sampling_rate, config.hop_length
        sizes = (config.codebook_size,) * len(model.quantizer.layers)
        self._split(model, config.norm_type == "weight_norm", round(CHUNK_S * rate / hop), hop)
        side = 0 if config.use_causal_conv else math.ceil(reach(model.decoder) / 2)
        super().__init__(
            model,
            TokenSpec(name or f"encodec-{rate // 1000}k", rate, rate, hop, sizes, fingerprint=_fingerprint(model)),
            causal=config.use_causal_conv,
            lookahead_frames=side,
            context_frames=round(rate / hop),
            start_frames=config.kernel_size if config.pad_mode == "reflect" else 0,
            decode_only=decode_only,
        )
        if decode_only:
            model.encoder = None

    def _split(self, model: EncodecModel, local: bool, core: int, hop: int) -> None:
        """Convolutions that may run in chunks, before and after the recurrent layers, which see the whole.

        A norm over time makes nothing local; then the whole model sees the whole.
        """
        recurrent = next(i for i, layer in enumerate(model.encoder.layers) if type(layer).__name__ == "EncodecLSTM")
        front = model.encoder.layers[: recurrent if local else 0]
        self._front_frames = {
            "halo": math.ceil(reach(front) / hop) + 1,
            "core": core,
            "into": hop,
        }
        self._encoder_split, self._decoder_split = len(front), 2 if local else len(model.decoder.layers)
        self._back_frames = {
            "halo": math.ceil(reach(model.decoder.layers[self._decoder_split :])),
            "core": core,
            "out": hop,
        }

    def _latents(self, wav: Tensor) -> Tensor:
        layers = self.model.encoder.layers
        if self._encoder_split:
            wav = in_chunks(partial(run, layers[: self._encoder_split]), wav, **self._front_frames)
        return run(layers[self._encoder_split :], wav)

    def _quantize(self, latents: Tensor, n_q: int) -> Tensor:
        return _residual_codes(self.model.quantizer.layers[:n_q], latents)

    def _dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes.transpose(0, 1))

    def _synthesize(self, quantized: Tensor) -> Tensor:
        layers = self.model.decoder.layers
        x = run(layers[: self._decoder_split], quantized)
        if self._decoder_split == len(layers):
            return x
        return in_chunks(partial(run, layers[self._decoder_split :]), x, **self._back_frames)


class DacAdapter(Adapter):
    """Descript Audio Codec at 16, 24 or 44.1 kHz: convolutional and not causal, 9 to 32 codebooks of 1024.

    Its decoder ends a few samples before the last frame does (8 of them at 16 kHz); silence stands there.

    Args:
        model: with weights.
        name: under which its tokens are known.
        decode_only: drop the encoder.

    Source: arXiv 2306.06546.
    """

    def __init__(self, model: DacModel, name: str | None = None, decode_only: bool = False):
        config: Any = model.config
        rate, hop = config.sampling_rate, config.hop_length
        sizes = (config.codebook_size,) * config.n_codebooks
        core = round(CHUNK_S * rate / hop)
        halo = math.ceil(reach(model.decoder) / 2)
        self._encoder_frames = {"halo": math.ceil(reach(model.encoder) / hop / 2) + 1, "core": core, "into": hop}
        self._decoder_frames = {"halo": halo, "core": core, "out": hop}
        super().__init__(
            model,
            TokenSpec(name or f"dac-{rate // 1000}k", rate, rate, hop, sizes, fingerprint=_fingerprint(model)),
            causal=False,
            lookahead_frames=halo,
            context_frames=halo,
            decode_only=decode_only,
        )
        if decode_only:
            model.encoder = None

    def padded_samples(self, samples: int) -> int:
        """Length of the next whole hop."""
        return self.frames(samples) * self.spec.hop_samples

    def _latents(self, wav: Tensor) -> Tensor:
        return in_chunks(self.model.encoder, wav, **self._encoder_frames)

    def _quantize(self, latents: Tensor, n_q: int) -> Tensor:
        return self.model.quantizer(latents, n_q)[1]

    def _dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.from_codes(codes)[0]

    def _synthesize(self, quantized: Tensor) -> Tensor:
        return in_chunks(self.model.decoder, quantized, **self._decoder_frames)


class MimiAdapter(Adapter):
    """Mimi: causal, 12.5 frames per second, up to 32 codebooks of 2048 of which the first is semantic.

    Its transformers look back over a sliding window in every layer; a streaming window repeats one such window.

    Args:
        model: with weights.
        name: under which its tokens are known.
        decode_only: drop the encoder.

    Source: arXiv 2410.00037, section 3.3.
    """

    def __init__(self, model: MimiModel, name: str | None = None, decode_only: bool = False):
        config: Any = model.config
        parts = _mimi_parts(model)
        down = parts["downsample"].conv.stride[0]
        self._hop, core = math.prod(config.upsampling_ratios), round(CHUNK_S * config.encodec_frame_rate)
        self._encoder_frames = {
            "halo": math.ceil(reach(parts["encoder"]) / self._hop) + 1,
            "core": core,
            "into": self._hop,
        }
        self._decoder_frames = {"halo": math.ceil(reach(parts["decoder"])), "core": core, "out": self._hop}
        rate = config.sampling_rate
        sizes = (config.codebook_size,) * config.num_quantizers
        spec = TokenSpec(
            name or f"mimi-{rate // 1000}k", rate, rate, self._hop * down, sizes, fingerprint=_fingerprint(model)
        )
        super().__init__(
            model,
            spec,
            causal=config.use_causal_conv,
            lookahead_frames=0 if config.use_causal_conv else math.ceil(reach(parts["decoder"]) / down) + 1,
            context_frames=math.ceil(config.sliding_window / down),
            decode_only=decode_only,
        )
        if decode_only:
            model.encoder = None
            for part in ("encoder_transformer", "downsample"):
                if part in model._modules:
                    setattr(model, part, None)

    def _apply(self, fn: Any, recurse: bool = True) -> MimiAdapter:
        """As `nn.Module._apply`; drops the codebooks that the model keeps aside, which would stay where they were."""
        super()._apply(fn, recurse)
        for module in self.modules():
            if hasattr(module, "_embed"):
                module._embed = None
        return self

    def _latents(self, wav: Tensor) -> Tensor:
        parts = _mimi_parts(self.model)
        x = in_chunks(parts["encoder"], wav, **self._encoder_frames).transpose(1, 2)  # (B, 2 T, D)
        return parts["downsample"](parts["encoder_transformer"](x)[0].transpose(1, 2))

    def _quantize(self, latents: Tensor, n_q: int) -> Tensor:
        quantizer = self.model.quantizer
        semantic, acoustic = quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer
        first = min(n_q, quantizer.num_semantic_quantizers)
        codes = semantic.encode(latents, first)
        if n_q > first:
            codes = torch.cat([codes, acoustic.encode(latents, n_q - first)])
        return codes.transpose(0, 1)

    def _dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes)

    def _synthesize(self, quantized: Tensor) -> Tensor:
        parts = _mimi_parts(self.model)
        x = parts["upsample"](quantized).transpose(1, 2)  # (B, 2 T, D)
        x = parts["decoder_transformer"](x)[0].transpose(1, 2)
        return in_chunks(parts["decoder"], x, **self._decoder_frames)


def _mimi_parts(model: MimiModel) -> dict[str, Any]:
    """The parts of a Mimi by their published names, in either layout that transformers has given the model."""
    parts = {}
    for side, names in {
        "encoder": ("encoder_transformer", "downsample"),
        "decoder": ("decoder_transformer", "upsample"),
    }.items():
        half = getattr(model, side)
        nested = hasattr(half, f"{side}_seanet")
        parts[side] = getattr(half, f"{side}_seanet") if nested else half
        if half is not None:
            parts |= {name: getattr(half if nested else model, name) for name in names}
    return parts


def _residual_codes(layers: nn.ModuleList, latents: Tensor) -> Tensor:
    """(B, n_q, T) codes, each layer's of what the layers before it have left over."""
    codes = []
    for layer in layers:
        codes.append(layer.encode(latents))
        latents = latents - layer.decode(codes[-1])
    return torch.stack(codes, dim=1)


ARCHITECTURE = {
    "encodec": (
        "sampling_rate upsampling_ratios norm_type use_causal_conv pad_mode dilation_growth_rate num_residual_layers"
    ),
    "dac": "sampling_rate downsampling_ratios",
    "mimi": (
        "sampling_rate upsampling_ratios use_causal_conv pad_mode dilation_growth_rate num_residual_layers hidden_act "
        "sliding_window num_attention_heads num_key_value_heads norm_eps num_semantic_quantizers"
    ),
}
"""What decides the codes beside tensors and their shapes, by model type."""


def _fingerprint(model: EncodecModel | DacModel | MimiModel) -> str:
    """sha256 of what decides the codes, under the names of the published files."""
    config = model.config.to_dict()
    kind = config["model_type"]
    sizes = {key: _plain(config[key]) for key in ARCHITECTURE[kind].split()}
    tensors = {}
    for key, value in model.state_dict().items():
        for new, published in MIMI_NAMES.items() if kind == "mimi" else ():
            key = published + key.removeprefix(new) if key.startswith(new) else key
        if key.startswith(ENCODE_SIDE) and not key.endswith(TRAINING_ONLY):
            tensors[key] = value.detach().float().cpu()
    return hash_tensors(sorted(tensors.items()), {"model_type": kind, **sizes})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
