"""Original X-Codec 2 and NeuCodec checkpoints against transformers' models: names, attention, constants, errors."""

import json
import re

import pytest
import torch
from transformers import AutoConfig, AutoModel

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.convert import xcodec2
from xcodec_lm.codec.convert.files import convert_checkpoint
from xcodec_lm.codec.convert.state_dicts import rename_modules
from xcodec_lm.codec.torch_files import load_tensors
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.codec.xcodec2_folder import save_xcodec2
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
LAYER = {
    "self_attn.o_proj": "att.c_proj", "input_layernorm": "att_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip


def original_key(key):
    """The name of one of transformers' tensors in the original, spelt out independently of the package's table."""
    rules = [
        (r"^semantic_encoder\.", "semantic_model."),
        (r"^semantic_adapter\.conv1\.", "SemanticEncoder_module.initial_conv."),
        (r"^semantic_adapter\.conv2\.", "SemanticEncoder_module.residual_blocks.1."),
        (r"^semantic_adapter\.conv3\.", "SemanticEncoder_module.residual_blocks.3."),
        (r"^semantic_adapter\.conv4\.", "SemanticEncoder_module.final_conv."),
        (r"^acoustic_encoder\.conv1\.", "CodecEnc.conv_blocks.0."),
        (
            r"^acoustic_encoder\.block\.(\d)\.res_unit(\d)\.(\w+)\.",
            lambda m: f"CodecEnc.conv_blocks.{int(m[1]) + 1}.block.{int(m[2]) - 1}.block.{UNIT[m[3]]}.",
        ),
        (r"^acoustic_encoder\.block\.(\d)\.snake1\.", lambda m: f"CodecEnc.conv_blocks.{int(m[1]) + 1}.block.3."),
        (r"^acoustic_encoder\.block\.(\d)\.conv1\.", lambda m: f"CodecEnc.conv_blocks.{int(m[1]) + 1}.block.4."),
        (r"^acoustic_encoder\.snake1\.", "CodecEnc.conv_final_block.0."),
        (r"^acoustic_encoder\.conv2\.", "CodecEnc.conv_final_block.1."),
        (r"^fc_encoder\.", "fc_prior."),
        (r"^quantizer\.", "generator.quantizer."),
        (r"^acoustic_decoder\.fc\.", "fc_post_a."),
        (
            r"^acoustic_decoder\.layers\.(\d)\.(self_attn\.o_proj|\w+layernorm|mlp\.fc\d)\.",
            lambda m: f"generator.backbone.transformers.{m[1]}.{LAYER[m[2]]}.",
        ),
        (r"^acoustic_decoder\.norm\.", "generator.backbone.final_layer_norm."),
        (r"^acoustic_decoder\.head\.linear\.", "generator.head.out."),
        (r"^acoustic_decoder\.", "generator.backbone."),
    ]  # fmt: skip
    for pattern, new in rules:
        if re.search(pattern, key):
            return re.sub(pattern, new, key)
    raise AssertionError(key)


def build(kind, seed=0, **sizes):
    torch.manual_seed(seed)
    semantic = AutoConfig.for_model(
        "wav2vec2-bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        output_hidden_size=32,
    )  # fmt: skip
    options = {
        "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
        "num_key_value_heads": 4, "encoder_hidden_size": 2, "quantization_dim": 96, "semantic_model_config": semantic,
    }  # fmt: skip
    return AutoModel.from_config(AutoConfig.for_model(kind, **options | sizes)).eval()


GIVEN = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
"""Heads of 16, where 64 would be guessed."""


def original_state(model, extra_layers=1):
    """The state dict that the original code would have saved of a model, weights folded."""
    state, heads = {}, model.config.num_attention_heads
    for key, value in model.state_dict().items():
        if not re.search(r"\.[qkv]_proj\.", key):
            state[original_key(key)] = value.clone()
    for i in range(model.config.num_hidden_layers):
        parts = []
        for letter in "qkv":
            rows = model.state_dict()[f"acoustic_decoder.layers.{i}.self_attn.{letter}_proj.weight"]
            if letter != "v":  # channel 2 j of the original is channel j here, 2 j + 1 is half a head further
                half = rows.shape[0] // heads // 2
                order = [head * 2 * half + (j // 2) + half * (j % 2) for head in range(heads) for j in range(2 * half)]
                rows = rows[order]
            parts.append(rows)
        state[f"generator.backbone.transformers.{i}.att.c_attn.weight"] = torch.cat(parts)
    for key in list(state):
        if key.startswith("semantic_model.encoder.layers.1.") and extra_layers:
            state[key.replace("layers.1.", "layers.16.")] = state[key].clone()
    return state


@pytest.fixture(scope="module", params=["xcodec2", "neucodec"])
def model(request):
    return build(request.param)


def check_equal(folder, model):
    back = type(model).from_pretrained(folder)
    expected = model.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in back.state_dict().items())
    codes = torch.randint(0, 65536, (1, 1, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(back.decode(codes).audio_values, model.decode(codes).audio_values)
    return back


def test_lightning_file_becomes_transformers_folder(model, tmp_path):
    state = original_state(model)
    state["generator.head.istft.window"] = torch.hann_window(model.config.n_fft)
    state["CodecEnc.conv_final_block.0.upsample.filter"] = model.acoustic_encoder.snake1.upsample.filter.clone()
    state["CodecEnc.conv_final_block.0.downsample.lowpass.filter"] = xcodec2.anti_alias_filter()
    for name in ("discriminator.x.weight", "fc_post_s.weight", "SemanticDecoder_module.conv.weight", "model_spk.w"):
        state[name] = torch.ones(2)
    torch.save({"state_dict": state, "epoch": 2, "optimizer_states": []}, tmp_path / "last.ckpt")
    done = convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out", given=GIVEN)
    assert done.kind == {"xcodec2": "X-Codec 2", "neucodec": "NeuCodec"}[model.config.model_type]
    assert done.parameters == sum(value.numel() for value in model.state_dict().values())
    back = check_equal(tmp_path / "out", model)
    model.save_pretrained(tmp_path / "peer")
    assert load_codec(tmp_path / "peer").spec.fingerprint == done.fingerprint  # one codec, one fingerprint
    assert back.config.downsampling_ratios == [2, 2, 4, 4, 5] and back.config.hop_length == model.config.hop_length
    left = done.left_aside
    assert left["fc_post_s.weight"] == "used in training only" and left["epoch"] == "int 2"
    assert left["semantic_model.encoder.layers.16.ffn1.output_dense.bias"] == "the codec uses 16 layers of its teacher"
    assert left["generator.head.istft.window"] == "computed by the code"
    assert {name.split(".")[0] for name in left} == {
        "discriminator", "fc_post_s", "SemanticDecoder_module", "model_spk", "semantic_model", "generator", "CodecEnc",
        "epoch", "optimizer_states",
    }  # fmt: skip


def test_our_layout_keeps_what_the_others_leave_out(model, tmp_path):
    model.save_pretrained(tmp_path / "peer")
    done = convert_checkpoint(tmp_path / "peer", tmp_path / "ours")
    assert not done.left_aside and "transformers" in done.layout
    plain = load_codec(tmp_path / "ours")
    assert plain.spec.fingerprint == load_codec(tmp_path / "peer").spec.fingerprint == done.fingerprint
    full = XCodec2(plain.config, plain.semantic_config, plain.semantic_encoder, semantic_decoder=True)
    full.load_state_dict(plain.state_dict(), strict=False)
    save_xcodec2(full, tmp_path / "full", "full")
    assert not convert_checkpoint(tmp_path / "full", tmp_path / "copy").left_aside
    assert (tmp_path / "copy" / "semantic_decoder.safetensors").is_file()
    done = convert_checkpoint(tmp_path / "full", tmp_path / "theirs", "transformers")
    assert {key.split(".")[0] for key in done.left_aside} == {"semantic_decoder", "fc_semantic"}
    assert "xcodec_lm" not in json.loads((tmp_path / "theirs" / "config.json").read_text())
    check_equal(tmp_path / "theirs", model)


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_there_and_back_is_bit_identical(model, name, tmp_path):
    model.save_pretrained(tmp_path / "peer")
    convert_checkpoint(tmp_path / "peer", tmp_path / name, "original")
    written, _ = load_tensors(tmp_path / name)
    normed = {key.removesuffix("_g") for key in written if key.endswith("weight_g")}
    in_decoder = {key for key in normed if key.startswith("generator.")}
    assert "CodecEnc.conv_blocks.1.block.4.weight" in normed
    assert len(in_decoder) == (9 if model.config.model_type == "neucodec" else 0)  # 1 + 4 blocks of 2
    folded = set(original_state(model, extra_layers=0))
    constants = {key for key in written if key.endswith(("filter", "window"))}
    assert {re.sub("_[gv]$", "", key) for key in written} - constants == folded
    convert_checkpoint(tmp_path / name, tmp_path / "back", "transformers", GIVEN)
    check_equal(tmp_path / "back", model)


def test_attention_with_neighbouring_rotation_is_the_same(model):
    """Queries and keys as stored in the original, rotated pair by pair, give transformers' scores."""
    heads, width = 4, 16
    layer = model.acoustic_decoder.layers[0].self_attn
    joint = original_state(model)["generator.backbone.transformers.0.att.c_attn.weight"]
    x = torch.randn(5, 64)
    frequencies = 10000.0 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(heads)[:, None] * frequencies  # the original counts positions over heads

    def neighbours(rows):
        pairs = torch.view_as_complex((x @ rows.T).view(5, heads, width // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(2)

    def halves(linear):
        first, second = linear(x).view(5, heads, 2, width // 2).unbind(2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    with torch.no_grad():
        original = torch.einsum("thd,shd->hts", neighbours(joint[:64]), neighbours(joint[64:128]))
        ours = torch.einsum("thd,shd->hts", halves(layer.q_proj), halves(layer.k_proj))
    assert torch.allclose(original, ours, atol=1e-5) and ours.std() > 1e-3


def test_permutations_undo_each_other():
    rows = torch.randn(24, 5)
    there = xcodec2.rotate_halves(rows, 3)
    assert not torch.equal(there, rows) and torch.equal(xcodec2.rotate_neighbours(there, 3), rows)


def test_teacher_that_the_file_leaves_out(tmp_path):
    model = build("neucodec")
    state = {key: value for key, value in original_state(model).items() if not key.startswith("semantic_model.")}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(XcodecLMError, match="holds no teacher") as error:
        convert_checkpoint(tmp_path / "pytorch_model.bin", tmp_path / "out", given=GIVEN)
    assert "--teacher" in error.value.hint
    model.semantic_encoder.save_pretrained(tmp_path / "w2v-bert")
    convert_checkpoint(
        tmp_path / "pytorch_model.bin", tmp_path / "out", given=GIVEN, teacher=str(tmp_path / "w2v-bert")
    )
    check_equal(tmp_path / "out", model)
    with pytest.raises(XcodecLMError, match="--teacher: '/nowhere'"):
        convert_checkpoint(tmp_path / "pytorch_model.bin", tmp_path / "x", given=GIVEN, teacher="/nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc_prior.bias"), r"missing: fc_prior.bias \(1 in all\)"),
        (lambda s: s.pop("generator.backbone.transformers.1.att.c_attn.weight"), r"transformers.1.att.c_attn.weight"),
        (lambda s: s.pop("generator.backbone.transformers.1.mlp.fc1.weight"), r"missing: generator.*1.mlp.fc1"),
        (lambda s: s.pop("SemanticEncoder_module.final_conv.weight"), r"missing: SemanticEncoder_module.final_conv"),
        (lambda s: s.update({"generator.backbone.extra": torch.ones(1)}), r"does not have: generator.backbone.extra"),
        (lambda s: s.update({"CodecEnc.x.upsample.filter": torch.ones(1, 1, 12)}), r"is not the anti-aliasing filter"),
        (lambda s: s.update({"fc_post_a.bias": torch.ones(3)}), r"fc_post_a.bias has shape \(3,\), expected"),
    ],
)
def test_missing_and_unknown_tensors_are_named_as_in_the_file(change, message, tmp_path):
    state = original_state(build("xcodec2"))
    change(state)
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(XcodecLMError, match=message):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", given=GIVEN)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_sizes_that_make_no_model_and_misspelt_ones(tmp_path):
    torch.save({"state_dict": original_state(build("xcodec2"))}, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=r"it has no num_heads for xcodec2"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", given={"num_heads": 4})
    with pytest.raises(ConfigError, match=r"these sizes make no xcodec2"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", given=GIVEN | {"num_attention_heads": 5})


def test_published_sizes_are_inferred_without_help():
    """Names and shapes of the paper's size alone; no memory is needed for them."""
    for kind, hop in (("xcodec2", 320), ("neucodec", 480)):
        config = AutoConfig.for_model(kind)
        with torch.device("meta"):
            model = AutoModel.from_config(config)
            table = xcodec2.modules(5, 12)
            rest = {key: value for key, value in model.state_dict().items() if not re.search(r"\.[qkv]_proj", key)}
            theirs, unknown = rename_modules(rest, table, xcodec2.TEACHER)
        found = xcodec2.infer_config(theirs, {}, "x")
        assert not unknown and found.model_type == kind and found.hop_length == hop
        assert list(found.quantization_levels) == list(config.quantization_levels)
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "quantization_dim", "head_dim"):
            assert getattr(found, key) == getattr(config, key), key
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "left_max_position_embeddings"):
            assert getattr(found.semantic_model_config, key) == getattr(config.semantic_model_config, key), key
