"""Frozen self-supervised teachers: HuBERT, wav2vec 2.0, WavLM, through transformers.

A teacher is never trained and never leaves eval mode: in train mode its dropout, layer drop and SpecAugment would act
on the codec's input and target. Its features are the unweighted mean of all hidden states (arXiv 2408.17175, section
4.1.2), computed on the waveform padded by half a hop on both sides so that its frames fall on the codec's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, HubertConfig, HubertModel, PretrainedConfig

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.codec import SemanticConfig
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

KINDS = ("hubert", "wav2vec2", "wavlm")
"""`model_type` of the teachers whose waveform front end and hidden states this module knows."""
UNTRAINED_NOTICE = "untrained teacher: no semantic claim"
CONTEXT_S = 2.0
"""Audio on either side of a window that the teacher sees and whose frames are dropped."""


def build_teacher(config: SemanticConfig) -> nn.Module:
    """A frozen teacher, as `config.teacher` names it.

    Args:
        config: `teacher` is `random:SEED`, a model folder, or a hub id.

    Raises:
        ConfigError: the name means nothing, or the teacher's width is not `semantic.dim`.
        XcodecLMError: the hub was asked for and did not answer.
    """
    if config.teacher.startswith("random:"):
        teacher = _random_hubert(config)
    else:
        try:
            teacher = AutoModel.from_pretrained(config.teacher, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise XcodecLMError(
                f"semantic.teacher: {config.teacher!r} is neither a model folder nor a hub model within reach "
                f"({str(error).splitlines()[0]})",
                "give a local folder, random:SEED, or none",
            ) from None
    if teacher.config.model_type not in KINDS:
        raise ConfigError(f"semantic.teacher: a {teacher.config.model_type} model; supported are {', '.join(KINDS)}")
    if teacher.config.hidden_size != config.dim:
        raise ConfigError(
            f"semantic.dim is {config.dim}, but the teacher {config.teacher!r} has width {teacher.config.hidden_size}",
            f"set semantic.dim: {teacher.config.hidden_size}",
        )
    return freeze(teacher)


def teacher_from_config(config: dict | PretrainedConfig) -> nn.Module:
    """A teacher without weights, from a transformers configuration, in eval mode.

    For inference. It is not frozen: the attention of transformers' WavLM takes another path for weights that need no
    gradient, whose last bits differ from those that users of transformers get.
    """
    if isinstance(config, dict):
        config = AutoConfig.for_model(**config)
    return AutoModel.from_config(config, dtype=torch.float32).eval()


def freeze(teacher: nn.Module) -> nn.Module:
    """Takes the teacher out of training for good: no gradients, eval mode."""
    return teacher.requires_grad_(False).eval()


def is_untrained(teacher: str) -> bool:
    """Whether a teacher's name says that it has learnt nothing."""
    return teacher.startswith("random:")


def _random_hubert(config: SemanticConfig) -> nn.Module:
    try:
        seed = int(config.teacher.removeprefix("random:"))
    except ValueError:
        raise ConfigError(f"semantic.teacher: {config.teacher!r} should be random:SEED with a whole number") from None
    # A fork keeps the caller's generator, whose state decides the codec's own initial weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "teacher"))
        return HubertModel(
            HubertConfig(
                hidden_size=config.dim,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=2 * config.dim,
                conv_dim=(32,) * 7,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
            )
        )


def frames_of(teacher_config: PretrainedConfig, samples: int) -> int:
    """Frames that a teacher's valid convolutions make of so many samples; less than 1 if there are too few."""
    for kernel, stride in zip(teacher_config.conv_kernel, teacher_config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


@torch.no_grad()
def teacher_features(teacher: nn.Module, wav: Tensor, hop_samples: int, sample_rate: int, window_s: float) -> Tensor:
    """Mean of all hidden states.

    Args:
        teacher: a frozen model of `KINDS`.
        wav: (B, 1, N), N a whole number of hops.
        hop_samples: the codec's hop.
        sample_rate: of wav, in Hz.
        window_s: longest stretch seen at once; longer audio is cut into windows that overlap by `CONTEXT_S` on both
            sides. The result then differs from that of the whole, since attention and GroupNorm see a window only.

    Returns:
        (B, T, D).
    """
    half = hop_samples // 2
    total = wav.shape[2] // hop_samples
    window = max(1, math.floor(window_s * sample_rate / hop_samples))
    if total <= window:
        return _mean_of_states(teacher, F.pad(wav[:, 0], (half, half)))
    say(
        f"note: the teacher sees {window_s:g} s at a time, this audio has {total * hop_samples / sample_rate:.0f} s; "
        "codes near a window's edge can differ from those of the whole (semantic.window_s)"
    )
    context = min(round(CONTEXT_S * sample_rate / hop_samples), window // 4)
    parts = []
    for start, stop, left, right in windows(total, window - 2 * context, context):
        piece = F.pad(wav[:, 0, left * hop_samples : right * hop_samples], (half, half))
        parts.append(_mean_of_states(teacher, piece)[:, start - left : stop - left])
    return torch.cat(parts, dim=1)


def windows(total: int, core: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """Cuts `total` frames into cores with context.

    Yields:
        (start, stop, left, right): frames start..stop are the core, left..right what must be seen for it.
    """
    for start in range(0, total, core):
        stop = min(total, start + core)
        yield start, stop, max(0, start - halo), min(total, stop + halo)


def _mean_of_states(teacher: nn.Module, wav: Tensor) -> Tensor:
    states = teacher(wav, output_hidden_states=True).hidden_states
    return torch.stack(states, dim=1).mean(dim=1)  # (B, T, D)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and warnings off the terminal while a model is built or loaded."""
    before = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
