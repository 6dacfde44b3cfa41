"""wav2vec 2.0 and WavLM in the layout of fairseq, s3prl and UniSpeech, as transformers' models.

Names are mapped one to one and sizes are read off the shapes. What no shape shows is as in every published model:
strides 5, 2, 2, 2, 2, 2, 2; heads of 64 features in wav2vec 2.0; layers that normalise first exactly where the
convolutions have layer norms (the Large models); WavLM's furthest distance 800.

Sources: https://github.com/facebookresearch/fairseq (wav2vec2.py), https://github.com/microsoft/unilm/tree/master/wavlm
for the names there; transformers' `modeling_wav2vec2` and `modeling_wavlm` for the names here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xcodec_lm.codec.convert.state_dicts import indices_after, refuse, shape_of
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.tasks.eval.backbones.weights import fill

STRIDES = (5, 2, 2, 2, 2, 2, 2)
HEAD_DIM = 64
FURTHEST = 800
_LAYER = r"^encoder\.layers\.(\d+)\."
RENAMES = tuple(
    (re.compile(pattern + "$"), name)
    for pattern, name in (
        (r"^mask_emb", "masked_spec_embed"),
        (r"^feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)", r"feature_extractor.conv_layers.\1.conv.\2"),
        (
            r"^feature_extractor\.conv_layers\.(\d+)\.2\.(weight|bias)",
            r"feature_extractor.conv_layers.\1.layer_norm.\2",
        ),
        (
            r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.(weight|bias)",
            r"feature_extractor.conv_layers.\1.layer_norm.\2",
        ),
        (r"^layer_norm\.(weight|bias)", r"feature_projection.layer_norm.\1"),
        (r"^post_extract_proj\.(weight|bias)", r"feature_projection.projection.\1"),
        (r"^encoder\.pos_conv\.0\.bias", "encoder.pos_conv_embed.conv.bias"),
        (r"^encoder\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
        (r"^encoder\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
        (r"^encoder\.layer_norm\.(weight|bias)", r"encoder.layer_norm.\1"),
        (_LAYER + r"self_attn\.([kvq]|out)_proj\.(weight|bias)", r"encoder.layers.\1.attention.\2_proj.\3"),
        (_LAYER + r"self_attn\.grep_linear\.(weight|bias)", r"encoder.layers.\1.attention.gru_rel_pos_linear.\2"),
        (_LAYER + r"self_attn\.grep_a", r"encoder.layers.\1.attention.gru_rel_pos_const"),
        (_LAYER + r"self_attn\.relative_attention_bias\.weight", r"encoder.layers.\1.attention.rel_attn_embed.weight"),
        (_LAYER + r"self_attn_layer_norm\.(weight|bias)", r"encoder.layers.\1.layer_norm.\2"),
        (_LAYER + r"fc1\.(weight|bias)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
        (_LAYER + r"fc2\.(weight|bias)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
        (_LAYER + r"final_layer_norm\.(weight|bias)", r"encoder.layers.\1.final_layer_norm.\2"),
    )
)
"""Names there -> names here."""


def model_from_fairseq(tensors: Mapping[str, Tensor], prefix: str, where: str) -> Any:
    """A `Wav2Vec2Model`, or a `WavLMModel` where attention has gated positions, with the weights of a file.

    Args:
        tensors: by the file's names; those under `prefix` belong to the model.
        prefix: such as `wav2vec2.`.
        where: the file, for errors.

    Returns:
        The model in eval mode, frozen, on the CPU.

    Raises:
        XcodecLMError: a tensor is missing, unknown or of another shape.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    renamed: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    unknown = []
    for key, value in own.items():
        if (name := _rename(key)) is None:
            unknown.append(prefix + key)
        else:
            renamed[name], names[name] = value, prefix + key
    if unknown:
        refuse(f"{where}: weights that this model does not have", unknown)
    sizes = _sizes(own, where)
    gates = "encoder.layers.0.self_attn.grep_a"
    if is_wavlm := gates in own:
        sizes["num_attention_heads"] = shape_of(own, gates, where)[1]
        buckets = shape_of(own, "encoder.layers.0.self_attn.relative_attention_bias.weight", where)[0]
        sizes |= {"num_buckets": buckets, "max_bucket_distance": FURTHEST}
    with quiet_transformers(), torch.device("meta"):
        model = WavLMModel(WavLMConfig(**sizes)) if is_wavlm else Wav2Vec2Model(Wav2Vec2Config(**sizes))
    fill(model, renamed, where, lambda name: names.get(name, prefix + _guess(name)), absent=("masked_spec_embed",))
    return model


def _rename(key: str) -> str | None:
    for pattern, name in RENAMES:
        if match := pattern.match(key):
            return match.expand(name)
    return None


def _guess(name: str) -> str:
    """The file's name of a weight that it lacks, near enough to find it: transformers' where there is no better one."""
    back = {"feature_projection.projection.": "post_extract_proj.", "feature_projection.layer_norm.": "layer_norm.",
            ".attention.": ".self_attn.", ".feed_forward.intermediate_dense.": ".fc1.",
            ".feed_forward.output_dense.": ".fc2.", "pos_conv_embed.conv.": "pos_conv.0.",
            "parametrizations.weight.original0": "weight_g",
            "parametrizations.weight.original1": "weight_v"}  # fmt: skip
    if re.match(r"encoder\.layers\.\d+\.layer_norm\.", name):
        name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
    for here, there in back.items():
        name = name.replace(here, there)
    return name


def _sizes(own: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """What the shapes say, as a transformers configuration; nothing is dropped or masked when a judge listens."""
    convs = indices_after(own, "feature_extractor.conv_layers.")
    if len(convs) != len(STRIDES):
        refuse(f"{where}: {len(STRIDES)} convolutions are expected, these are there", [str(index) for index in convs])
    shapes = [shape_of(own, f"feature_extractor.conv_layers.{index}.0.weight", where) for index in convs]
    hidden = shape_of(own, "post_extract_proj.weight", where)[0]
    kernel = shape_of(own, "encoder.pos_conv.0.weight_g", where)[2]
    large = "feature_extractor.conv_layers.0.2.1.weight" in own
    return {
        "conv_dim": [shape[0] for shape in shapes],
        "conv_kernel": [shape[2] for shape in shapes],
        "conv_stride": list(STRIDES),
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in own,
        "feat_extract_norm": "layer" if large else "group",
        "do_stable_layer_norm": large,
        "hidden_size": hidden,
        "num_hidden_layers": len(indices_after(own, "encoder.layers.")),
        "num_attention_heads": max(1, hidden // HEAD_DIM),
        "intermediate_size": shape_of(own, "encoder.layers.0.fc1.weight", where)[0],
        "num_conv_pos_embeddings": kernel,
        "num_conv_pos_embedding_groups": hidden // shape_of(own, "encoder.pos_conv.0.weight_v", where)[1],
        "layerdrop": 0.0,
    }
