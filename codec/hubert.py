"""HuBERT-General-Audio: masked prediction of a codec's first codes, around `transformers.HubertModel`.

    wav -> front end -> mask -> transformer -> projection -> cosine similarity to K label embeddings / temperature

What is learnt sits in `hubert`, which is saved alone; projection and label embeddings serve the loss only.

Source: arXiv 2408.17175 section 4.2.1 (labels from a codec's first layer, no k-means); arXiv 2106.07447 sections II
and III (masking, projection, temperature, loss on masked frames).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.codec.teacher_forward import frames_of
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.hubert import HubertLossConfig, HubertModelConfig

IGNORED = -1
"""Label of a frame that has none: padding."""


@dataclass
class Prediction:
    """Sums over the frames of a batch that have a label; divide by the counts for means.

    Attributes:
        masked_loss: scalar, cross entropy in nats on masked frames.
        unmasked_loss: scalar, the same on the others; 0 when it has no weight.
        correct: scalar, masked frames whose label is predicted best.
    """

    masked_loss: Tensor
    unmasked_loss: Tensor
    correct: Tensor


class MaskedPrediction(nn.Module):
    """A HuBERT and its prediction head.

    Args:
        model: sizes.
        loss: temperature and weights.
        labels: number of different labels K.

    Raises:
        ConfigError: the front end does not give one frame per hop.
    """

    def __init__(self, model: HubertModelConfig, loss: HubertLossConfig, labels: int):
        super().__init__()
        self.config, self.temperature, self.predicts_unmasked = model, loss.temperature, loss.unmasked_weight > 0
        settings = transformers_config(model)
        hop = model.hop_samples
        if frames_of(settings, 50 * hop + 2 * (hop // 2)) != 50:
            raise ConfigError(
                f"model.conv_kernel {model.conv_kernel} and model.conv_stride {model.conv_stride} do not give one "
                f"frame per {hop} samples when the audio is padded by half of that on both sides",
                "the published kernels are 10, 3, 3, 3, 3, 2, 2 with strides 5, 2, 2, 2, 2, 2, 2",
            )
        with quiet_transformers():
            self.hubert = HubertModel(settings)
        self.projection = nn.Linear(model.hidden_size, model.projection_dim)
        self.label_embeddings = nn.Parameter(torch.randn(labels, model.projection_dim))

    def forward(self, wav: Tensor, mask: Tensor, labels: Tensor) -> Prediction:
        """The losses of a batch.

        Args:
            wav: (B, N), N a whole number of hops.
            mask: (B, T) bool, frames that the transformer does not see.
            labels: (B, T) int64, `IGNORED` where there is none.
        """
        hidden = self.hidden(wav, mask)
        known = labels != IGNORED
        masked, seen = mask & known, ~mask & known
        logits, answers = self.logits(hidden[masked]), labels[masked]
        unmasked_loss = logits.new_zeros(())
        if self.predicts_unmasked:
            unmasked_loss = F.cross_entropy(self.logits(hidden[seen]), labels[seen], reduction="sum")
        return Prediction(
            masked_loss=F.cross_entropy(logits, answers, reduction="sum"),
            unmasked_loss=unmasked_loss,
            correct=(logits.argmax(-1) == answers).sum(),
        )

    def hidden(self, wav: Tensor, mask: Tensor | None) -> Tensor:
        """Last hidden state (B, T, D) of wav (B, N), N a whole number of hops; frames are those of the codec."""
        half = self.config.hop_samples // 2
        return self.hubert(F.pad(wav, (half, half)), mask_time_indices=mask).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., K) of hidden states (..., D), in fp32 also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            projected = F.normalize(self.projection(hidden.float()), dim=-1)
            return projected @ F.normalize(self.label_embeddings.float(), dim=-1).T / self.temperature


def transformers_config(model: HubertModelConfig) -> HubertConfig:
    """The same sizes as transformers names them.

    The model's own SpecAugment must stay switched on, for it owns the mask embedding; masks come from the caller.
    """
    return HubertConfig(
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.intermediate_size,
        conv_dim=model.conv_dim,
        conv_kernel=model.conv_kernel,
        conv_stride=model.conv_stride,
        conv_bias=model.conv_bias,
        feat_extract_norm=model.feat_extract_norm,
        do_stable_layer_norm=model.do_stable_layer_norm,
        num_conv_pos_embeddings=model.num_conv_pos_embeddings,
        num_conv_pos_embedding_groups=model.num_conv_pos_embedding_groups,
        feat_proj_dropout=model.dropout,
        hidden_dropout=model.dropout,
        attention_dropout=model.dropout,
        activation_dropout=0.0,
        final_dropout=model.dropout,
        layerdrop=0.0,
        mask_feature_prob=0.0,
    )


def span_mask(frames: int, prob: float, length: int, generator: torch.Generator) -> Tensor:
    """A mask of random spans, which may overlap.

    Args:
        frames: T.
        prob: share of the frames that the spans would cover without overlap.
        length: frames of a span; at most half of T.
        generator: decides the starts.

    Returns:
        (T,) bool with at least one masked frame and, if T > 1, one that is not.
    """
    length = max(1, min(length, frames // 2))
    first, second = torch.rand(2, generator=generator).tolist()
    spans = max(1, int(prob * frames / length + first))  # the fraction left over is rounded at random
    starts = torch.randperm(frames - length + 1, generator=generator)[:spans]
    mask = torch.zeros(frames, dtype=torch.bool)
    mask[(starts[:, None] + torch.arange(length)).flatten()] = True
    if frames > 1 and bool(mask.all()):
        mask[int(second * frames)] = False
    return mask


def save_hubert(hubert: HubertModel, folder: str | Path, sample_rate: int, facts: dict[str, Any]) -> None:
    """Writes a model folder that `AutoModel`, `AutoFeatureExtractor` and `semantic.teacher` read.

    Args:
        hubert: the model without its prediction head.
        folder: where to; made if needed.
        sample_rate: of its audio, in Hz.
        facts: JSON values on how it was made, for `targets.json` beside the weights.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".tmp-{folder.name}")
    extractor = Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=sample_rate, padding_value=0.0, do_normalize=False, return_attention_mask=False
    )
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        with quiet_transformers():
            hubert.save_pretrained(temporary)
            extractor.save_pretrained(temporary)
        (temporary / "targets.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # written whole before the old one goes
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise XcodecLMError(f"cannot write {folder}: {error}", "choose a folder that can be written") from None
