"""The teacher of X-Codec 2: which one, how much of it, and its features at the codec's frames.

The computation is `codec.teacher_forward`'s. What differs from X-Codec: one hidden state in place of the mean, the
layers after it left out, and in NeuCodec a teacher that is shown the audio without padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from xcodec_lm.codec import semantic as teachers
from xcodec_lm.codec.teacher_forward import frames_of, hop_of, teacher_features
from xcodec_lm.configs.codec import SemanticConfig
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.xcodec2 import Xcodec2ModelConfig, Xcodec2SemanticConfig


def build_teacher(config: Xcodec2SemanticConfig) -> nn.Module | None:
    """The frozen teacher that a configuration names, without the layers that it does not use; None for `none`.

    Raises:
        ConfigError: a teacher that does not fit; see also `codec.semantic.build_teacher`.
        XcodecLMError: it cannot be found or read.
    """
    if config.teacher == "none":
        return None
    teacher = teachers.build_teacher(SemanticConfig(teacher=config.teacher, layers=config.layers, dim=config.dim))
    if teacher.config.model_type == "wav2vec2-bert":
        if teacher.config.add_adapter or teacher.config.use_intermediate_ffn_before_adapter:
            raise ConfigError(
                f"semantic.teacher: {config.teacher!r} has an adapter after its layers, which is not used"
            )
        if config.layers != "mean":
            teacher.encoder.layers = teacher.encoder.layers[: config.layers]
            teacher.config.num_hidden_layers = config.layers
    return teacher


def extra_hops(teacher: PretrainedConfig, semantic: Xcodec2SemanticConfig, hop_samples: int) -> int:
    """Hops of zeros after the audio that a teacher needs to give as many frames as the audio has hops.

    Raises:
        ConfigError: it does not give one frame per hop.
    """
    for extra in (0, 1):
        samples = (1 + extra) * hop_samples + 2 * semantic.pad_samples
        if hop_of(teacher) == hop_samples and frames_of(teacher, samples) == 1:
            return extra
    raise ConfigError(
        f"the teacher {semantic.teacher!r} does not give one frame per {hop_samples} samples with "
        f"semantic.pad_samples {semantic.pad_samples}, so its features cannot be joined with the acoustic ones"
    )


@torch.no_grad()
def features_of(teacher: nn.Module, wav: Tensor, model: Xcodec2ModelConfig, semantic: Xcodec2SemanticConfig) -> Tensor:
    """One hidden state of the teacher, or their mean.

    Args:
        teacher: in eval mode.
        wav: (B, 1, T * hop).
        model: for the hop and the rate.
        semantic: what is used of the teacher.

    Returns:
        (B, T, D) fp32. Audio beyond `semantic.window_s`, or the teacher's own limit, is seen in windows.
    """
    hop, rate = model.hop_samples, model.sample_rate
    wav = F.pad(wav, (0, extra_hops(teacher.config, semantic, hop) * hop)).float()
    with torch.autocast(wav.device.type, enabled=False):
        return teacher_features(
            teacher, wav, hop, rate, semantic.window_s, layers=semantic.layers, pad_samples=semantic.pad_samples
        )
