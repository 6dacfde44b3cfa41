"""LAION's published CLAP files as transformers' `ClapModel`: sizes from shapes, and a strict map of names.

Known layouts, all without feature fusion: `630k-audioset-best.pt` (HTSAT-tiny), `music_audioset_epoch_15_esc_90.14.pt`
and `music_speech_audioset_epoch_15_esc_89.98.pt` (HTSAT-base). Files tuned from them have the same.

Source: https://github.com/LAION-AI/CLAP, src/laion_clap/clap_module/{model,htsat}.py and model_configs/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig, RobertaTokenizer

from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.codec.torch_files import load_tensors
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.sound.clap import ClapEmbedder, check_vocabulary, need_tokenizer

LONGEST = 77
"""Tokens of a caption, in training and in the package."""
ROBERTA_HEAD = 64
"""Features of an attention head in every RoBERTa."""

RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^text_branch\.", "text_model."),
        (r"^audio_branch\.", "audio_model.audio_encoder."),
        (r"^(text|audio)_projection\.0\.", r"\1_projection.linear1."),
        (r"^(text|audio)_projection\.2\.", r"\1_projection.linear2."),
        (r"\.bn0\.", ".batch_norm."),
        (r"(\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
        (r"(\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.attn\.relative_position_", ".attention.self.relative_position_"),
    )
)
"""Names there -> names here, each applied in turn; `attn.qkv` becomes three tensors apart from these."""
UNUSED = re.compile(
    r"^(text|audio)_transform\."  # a second head, for training
    r"|^audio_branch\.(tscam_conv|head|spectrogram_extractor|logmel_extractor)\."  # classifier; filters, computed here
    r"|^audio_branch\.layers\.\d+\.blocks\.\d+\.attn_mask$"
    r"|^text_branch\.embeddings\.(position_ids|token_type_ids)$"
)
"""What a file holds beside; none of it acts on an embedding."""
QKV = re.compile(r"^(.*)\.attn\.qkv\.(weight|bias)$")
BLOCK = re.compile(r"^audio_branch\.layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$")


def load_laion_file(path: Path, device: str | torch.device = "cpu") -> ClapEmbedder:
    """One of LAION's files as an embedder. RoBERTa's vocabulary is read from the folder that it lies in.

    Args:
        path: the file, as published.
        device: where it computes.

    Raises:
        XcodecLMError: the file or the vocabulary is missing or damaged, or the file is of another layout.
    """
    tokenizer = roberta_tokenizer(path.parent)
    model = clap_from_laion(read_laion(path), path)
    check_vocabulary(tokenizer, model.config, path)
    return ClapEmbedder(
        model.eval().requires_grad_(False).to(device), tokenizer, laion_extractor(), path.stem,
        {"weights_from": path.name},
    )  # fmt: skip


def read_laion(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by LAION's names.

    Raises:
        XcodecLMError: it cannot be read, or is of a layout that is not known here.
    """
    tensors, _ = load_tensors(path)
    names = "those without fusion: 630k-audioset-best.pt, music_audioset_epoch_15_esc_90.14.pt, " \
            "music_speech_audioset_epoch_15_esc_89.98.pt"  # fmt: skip
    if any(key.startswith("audio_branch.patch_embed.fusion_model.") for key in tensors):
        raise XcodecLMError(f"{path} is a CLAP with feature fusion, whose long clips are cropped at random", names)
    if "audio_branch.patch_embed.proj.weight" not in tensors or "text_branch.pooler.dense.weight" not in tensors:
        raise XcodecLMError(f"{path} is not a CLAP with an HTSAT and a RoBERTa tower", f"known are {names}")
    return tensors


def clap_from_laion(tensors: Mapping[str, Tensor], where: str | Path) -> ClapModel:
    """A model with the weights of a file.

    Args:
        tensors: by LAION's names.
        where: what an error names as the place.

    Raises:
        XcodecLMError: a tensor is missing, left over or of another shape.
    """
    try:
        config = config_from_laion(tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise XcodecLMError(f"{where}: the sizes of the model cannot be told: {error}") from None
    weights = rename_laion(tensors)
    with quiet_transformers(), torch.device("meta"):
        model = ClapModel(config)
    expected = model.state_dict()
    positions = torch.arange(config.text_config.max_position_embeddings)[None]
    weights["text_model.embeddings.position_ids"] = positions
    weights["text_model.embeddings.token_type_ids"] = torch.zeros_like(positions)
    for key, counter in expected.items():
        if key.endswith("num_batches_tracked"):  # acts on nothing; some files come without
            weights.setdefault(key, torch.zeros(counter.shape, dtype=torch.int64))
    if missing := sorted(set(expected) - set(weights)):
        raise XcodecLMError(f"{where}: tensors are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    if extra := sorted(set(weights) - set(expected)):
        raise XcodecLMError(f"{where}: tensors that are not known: {', '.join(extra[:3])} ({len(extra)} in all)")
    for key, value in expected.items():
        if value.shape != weights[key].shape:
            raise XcodecLMError(
                f"{where}: {key} has the shape {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
            )
    floating = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    model.load_state_dict({key: value.contiguous() for key, value in floating.items()}, assign=True)
    return model


def rename_laion(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of transformers; what acts on no embedding is left out."""
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if UNUSED.search(key):
            continue
        if match := QKV.match(key):
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[_rename(f"{match[1]}.attention.self.{part}.{match[2]}")] = tensor
        else:
            renamed[_rename(key)] = value
    return renamed


def config_from_laion(tensors: Mapping[str, Tensor]) -> ClapConfig:
    """The sizes of a file's model, from the shapes of its tensors."""
    depths: dict[int, int] = {}
    heads: dict[int, int] = {}
    for key, value in tensors.items():
        if match := BLOCK.match(key):
            stage = int(match[1])
            depths[stage] = max(depths.get(stage, 0), int(match[2]) + 1)
            heads[stage] = value.shape[1]
            window = (round(value.shape[0] ** 0.5) + 1) // 2
    width, _, patch, _ = tensors["audio_branch.patch_embed.proj.weight"].shape
    stages = sorted(depths)
    words, hidden = tensors["text_branch.embeddings.word_embeddings.weight"].shape
    layers = {int(key.split(".")[3]) for key in tensors if key.startswith("text_branch.encoder.layer.")}
    text = ClapTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=hidden // ROBERTA_HEAD,
        intermediate_size=tensors["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=tensors["text_branch.embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-5,  # RoBERTa's; the default of ClapTextConfig is BERT's
    )
    audio = ClapAudioConfig(
        spec_size=256,
        num_mel_bins=tensors["audio_branch.bn0.weight"].shape[0],
        patch_size=patch,
        patch_stride=[patch, patch],
        window_size=window,
        patch_embeds_hidden_size=width,
        hidden_size=width * 2 ** (len(stages) - 1),
        depths=[depths[stage] for stage in stages],
        num_attention_heads=[heads[stage] for stage in stages],
        num_hidden_layers=len(stages),
    )
    dim = tensors["text_projection.2.weight"].shape[0]
    return ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=dim)


def laion_extractor() -> ClapFeatureExtractor:
    """The spectrogram of LAION's models: 64 bands of 50 to 14000 Hz every 10 ms, of 10 s at 48 kHz.

    The extractor's own default begins at 0 Hz, which moves every embedding by some 2e-3.
    """
    return ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad")


def roberta_tokenizer(folder: Path) -> Any:
    """The tokenizer whose files lie in a folder, at LAION's length.

    Raises:
        XcodecLMError: files are missing, or damaged.
    """
    need_tokenizer(folder, "RoBERTa (roberta-base)")
    try:
        with quiet_transformers():
            tokenizer = RobertaTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # what a broken file raises depends on the file
        raise XcodecLMError(f"{folder}: the tokenizer cannot be loaded: {error}", "copy its files again") from None
    tokenizer.model_max_length = LONGEST
    return tokenizer


def _rename(key: str) -> str:
    for pattern, name in RENAMES:
        key = pattern.sub(name, key)
    return key
