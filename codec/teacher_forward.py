"""What a frozen teacher computes of audio: the same features for a recording alone, in a padded batch, or in chunks.

The models are transformers' own, and so are the modules called here; only the order of the calls is ours, because
transformers' forward lets a batch's padding into the first normalisation and holds every hidden state at once.

    audio -> convolutions (one recording at a time, long ones in chunks) -> transformer (a batch, under a mask) -> mean

The convolutions never see a batch's padding: each recording passes them by itself. That costs nothing on a CPU and
little on a GPU, and its first layer's GroupNorm spans the whole recording anyway. Of a recording longer than
`WHOLE_FRAMES` the first layer is run twice: once for the statistics of its GroupNorm, in double precision, and once
in the chunks that pass through all layers, so that memory does not grow with length.

In the transformer, frames beyond a row's end are zero before the positional convolution and are not attended to.
Attention is global, so beyond `window_s` the teacher hears windows with context; the convolutions stay exact.

Source: the features are the unweighted mean of all hidden states (arXiv 2408.17175, section 4.1.2) or one of them
(X-Codec 2, arXiv 2502.04128), on audio padded by half a hop on both sides.
"""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Iterator
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from xcodec_lm.codec.batching import windows
from xcodec_lm.codec.runtime.progress import say

KINDS = ("hubert", "wav2vec2", "wavlm", "wav2vec2-bert")
"""`model_type` of the teachers whose input and layers this module knows."""
WINDOW_LIMIT_S = {"wavlm": 20.0, "wav2vec2-bert": 20.0}
"""Longest window of teachers whose position bias takes memory that grows with the square of the length: at 20 s and
12 heads one such tensor has 48 MB (WavLM), and 256 MB at w2v-BERT's relative keys; at 60 s nine times as much."""
CONTEXT_S = 2.0
"""Audio on either side of a window that the teacher sees and whose frames are dropped."""
WHOLE_FRAMES = 1000
"""Recordings up to this length pass the convolutions in one piece, as in transformers, bit for bit."""
CHUNK_FRAMES, LEAST_CHUNK_FRAMES = 100, 10
"""Frames of a chunk of longer ones, over all rows, and at least of each row. Small tensors are faster on a CPU, which
does not have to map them anew each time."""
FBANK_WINDOW, FBANK_SHIFT, FBANK_STACK = 400, 160, 2
"""Kaldi filter bank of w2v-BERT at 16 kHz: 25 ms every 10 ms, two frames stacked into one."""

_told_of_windows: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def frames_of(config: PretrainedConfig, samples: int) -> int:
    """Frames that a teacher makes of so many samples, padding included; less than 1 if there are too few."""
    if config.model_type == "wav2vec2-bert":
        return ((samples - FBANK_WINDOW) // FBANK_SHIFT + 1) // FBANK_STACK
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def hop_of(config: PretrainedConfig) -> int:
    """Samples between a teacher's frames."""
    return FBANK_SHIFT * FBANK_STACK if config.model_type == "wav2vec2-bert" else math.prod(config.conv_stride)


@torch.no_grad()
def teacher_features(
    teacher: nn.Module,
    wav: Tensor,
    hop_samples: int,
    sample_rate: int,
    window_s: float,
    lengths: Tensor | None = None,
    layers: Literal["mean"] | int = "mean",
    pad_samples: int | None = None,
) -> Tensor:
    """Features of each row as it would have them alone.

    Args:
        teacher: a frozen model of `KINDS`; put into eval mode if it is not.
        wav: (B, 1, N), N a whole number of hops.
        hop_samples: the codec's hop.
        sample_rate: of wav, in Hz.
        window_s: longest stretch that attention sees at once, at most the teacher's `WINDOW_LIMIT_S`; longer audio is
            cut into windows that overlap by `CONTEXT_S` on both sides. The result then differs from that of the
            whole, which is said once for each teacher, with a measure of the difference.
        lengths: (B,) samples of each row, whole hops; None when all have N.
        layers: `mean` of all hidden states, or the index of one (0 is the first layer's input).
        pad_samples: zeros on either side of each row; None for half a hop, which puts the teacher's frames on the
            codec's.

    Returns:
        (B, T, D), zero beyond each row's own frames.
    """
    if teacher.training:  # dropout, layer drop and SpecAugment would act on the codec's input and target
        teacher.eval()
    pad = hop_samples // 2 if pad_samples is None else pad_samples
    counts = [wav.shape[2]] * len(wav) if lengths is None else [int(n) for n in lengths]
    limit = min(window_s, WINDOW_LIMIT_S.get(teacher.config.model_type, window_s))
    window = max(1, math.floor(limit * sample_rate / hop_samples))
    if max(counts) <= window * hop_samples and len(set(counts)) == 1:
        local = LocalFeatures(teacher, F.pad(wav[:, 0, : counts[0]], (pad, pad)))
        return pooled_states(teacher, local(0, local.total), None, layers)
    rows = [LocalFeatures(teacher, F.pad(row[:, :n], (pad, pad))) for row, n in zip(wav, counts, strict=True)]
    if max(counts) <= window * hop_samples:
        frames = torch.tensor([row.total for row in rows], device=wav.device)
        x = nn.utils.rnn.pad_sequence([row(0, row.total)[0] for row in rows], batch_first=True)  # (B, T, C)
        valid = torch.arange(x.shape[1], device=wav.device) < frames[:, None]
        return pooled_states(teacher, x, valid, layers).masked_fill(~valid[..., None], 0)
    context = min(round(CONTEXT_S * sample_rate / hop_samples), window // 4)
    features, agreement = [], []
    for row in rows:
        feature, shares = _in_windows(teacher, row, window, context, layers)
        features.append(feature[0])
        agreement += shares
    if teacher not in _told_of_windows:
        _told_of_windows.add(teacher)
        measured = f"; where windows meet, they share {fmean(agreement):.2%} of the variance" if agreement else ""
        say(
            f"note: the teacher sees {limit:g} s at a time (semantic.window_s), this audio has "
            f"{max(counts) / sample_rate:.0f} s, so codes can differ from those of the whole{measured}"
        )
    return nn.utils.rnn.pad_sequence(features, batch_first=True)


def _in_windows(
    teacher: nn.Module, local: LocalFeatures, window: int, context: int, layers: Literal["mean"] | int
) -> tuple[Tensor, list[float]]:
    """(1, T, D) of one recording, and the share of variance on which neighbouring windows agree around each seam.

    Every seam lies `context` frames inside both windows; the middle half of what both saw is compared.
    """
    if local.total <= window:
        return pooled_states(teacher, local(0, local.total), None, layers), []
    parts, agreement = [], []
    before, before_left = None, 0
    for start, stop, left, right in windows(local.total, window - 2 * context, context):
        seen = pooled_states(teacher, local(left, right), None, layers)  # (1, right - left, D)
        reach = min(context // 2, right - start)
        if before is not None and reach:
            old = before[:, start - reach - before_left : start + reach - before_left]
            new = seen[:, start - reach - left : start + reach - left]
            spread = (new - new.mean(1, keepdim=True)).square().sum().clamp_min(1e-12)
            agreement.append(float(1 - (new - old).square().sum() / spread))
        parts.append(seen[:, start - left : stop - left])
        before, before_left = seen, left
    return torch.cat(parts, dim=1), agreement


class LocalFeatures:
    """The part of a teacher that looks at short stretches: what its transformer is given, for any range of frames.

    Args:
        teacher: the model.
        wav: (B, N) padded recordings of one length.

    Attributes:
        total: frames of the recordings.
    """

    def __init__(self, teacher: nn.Module, wav: Tensor):
        self.wav, self.total = wav, frames_of(teacher.config, wav.shape[1])
        self._whole: Tensor | None = None
        if teacher.config.model_type == "wav2vec2-bert":
            from xcodec_lm.codec.fbank import w2v_bert_features

            self._whole = w2v_bert_features(wav)  # (B, T, 160): too small to be worth chunks
            return
        self.layers = teacher.feature_extractor.conv_layers
        if self.total <= WHOLE_FRAMES:
            self._whole = teacher.feature_extractor(wav).transpose(1, 2)  # (B, T, C)
            return
        self.hop, self.receptive = 1, 1
        for kernel, stride in zip(teacher.config.conv_kernel, teacher.config.conv_stride, strict=True):
            self.receptive += (kernel - 1) * self.hop
            self.hop *= stride
        self.step = max(LEAST_CHUNK_FRAMES, CHUNK_FRAMES // len(wav))
        grouped = isinstance(getattr(self.layers[0], "layer_norm", None), nn.GroupNorm)
        self.affine = self._first_norm(self.layers[0]) if grouped else None

    def __call__(self, start: int, stop: int) -> Tensor:
        """(B, stop - start, C) of the frames from `start` on."""
        if self._whole is not None:
            return self._whole[:, start:stop]
        parts = []
        for left in range(start, stop, self.step):
            right = min(stop, left + self.step)
            x = self.wav[:, None, left * self.hop : (right - 1) * self.hop + self.receptive]
            for index, layer in enumerate(self.layers):
                if index == 0 and self.affine is not None:
                    scale, shift = self.affine
                    x = layer.activation(torch.addcmul(shift, layer.conv(x), scale))
                else:
                    x = layer(x)
            parts.append(x.transpose(1, 2))  # (B, right - left, C)
        return torch.cat(parts, dim=1)

    def _first_norm(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """Scale and shift (B, C, 1) that the first layer's GroupNorm, one channel a group, applies to the whole."""
        (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
        count = (self.wav.shape[1] - kernel) // stride + 1
        step = self.step * self.hop // stride
        total = squares = 0.0
        for left in range(0, count, step):
            right = min(count, left + step)
            y = layer.conv(self.wav[:, None, left * stride : (right - 1) * stride + kernel])  # (B, C, right - left)
            total = total + y.sum(2, dtype=torch.float64)
            squares = squares + torch.linalg.vector_norm(y, dim=2, dtype=torch.float64).square()
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        scale = layer.layer_norm.weight * (variance + layer.layer_norm.eps).rsqrt()
        shift = layer.layer_norm.bias - mean * scale
        return scale.float()[..., None], shift.float()[..., None]


def pooled_states(teacher: nn.Module, x: Tensor, valid: Tensor | None, layers: Literal["mean"] | int) -> Tensor:
    """The mean of all hidden states, or one of them; no two are held at once.

    Args:
        teacher: the model.
        x: (B, T, C) of `LocalFeatures`.
        valid: (B, T) bool, or None when all frames are.
        layers: `mean`, or the index of a hidden state.

    Returns:
        (B, T, D); what lies beyond a row's end means nothing.
    """
    states = hidden_states(teacher, x, valid)
    if layers != "mean":
        return next(itertools.islice(states, layers, None))
    total, count = next(states).clone(), 1
    for state in states:
        total, count = total.add_(state), count + 1
    return total.div_(count)


def hidden_states(teacher: nn.Module, x: Tensor, valid: Tensor | None) -> Iterator[Tensor]:
    """The transformer's hidden states in order, as transformers' `output_hidden_states` numbers them.

    Args:
        teacher: the model.
        x: (B, T, C) of `LocalFeatures`.
        valid: (B, T) bool, or None when all frames are.

    Yields:
        (B, T, D): the first layer's input, then each layer's output. None is changed later.
    """
    kind, encoder = teacher.config.model_type, teacher.encoder
    x = teacher.feature_projection(x)
    x = x[0] if isinstance(x, tuple) else x  # (B, T, D)
    mask = None
    if valid is not None:
        x = x.masked_fill(~valid[..., None], 0)
        # One row of keys for all queries: additive, which every attention of transformers' takes, and never (T, T).
        mask = torch.zeros_like(valid, dtype=x.dtype).masked_fill(~valid, torch.finfo(x.dtype).min)[:, None, None]
    options: dict[str, Tensor | None] = {"attention_mask": mask}
    if kind == "wav2vec2-bert":
        embed = encoder.embed_positions
        options |= {
            "relative_position_embeddings": None if embed is None else embed(x),
            "conv_attention_mask": valid,
        }
    else:
        x = x + _positions(encoder.pos_conv_embed, x, valid)
        if not teacher.config.do_stable_layer_norm:
            x = encoder.layer_norm(x)
    yield x
    if kind == "wavlm":
        options = {"attention_mask": valid, "position_bias": None}
    for layer in encoder.layers:
        with warnings.catch_warnings():
            # WavLM's attention is given a bool mask beside a float bias, which torch calls deprecated.
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
            x = layer(x, **options)
        if kind == "wavlm":  # the first layer makes the position bias that all others gate
            x, options["position_bias"] = x
        yield x


def _positions(embedding: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, T, D) of the positional convolution."""
    norm = getattr(embedding, "batch_norm", None)
    if norm is None or valid is None:
        return embedding(x)
    # Some HuBERT models normalise before they convolve, which would fill the zeros beyond a row's end.
    y = norm(x.transpose(1, 2)).masked_fill(~valid[:, None], 0)
    return embedding.activation(embedding.padding(embedding.conv(y))).transpose(1, 2)
