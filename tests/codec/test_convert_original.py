"""Original X-Codec checkpoints against transformers' XcodecModel: names, weight norm in every spelling, sizes."""

import collections
import dataclasses
import io
import json
import re
import warnings

import pytest
import torch
from transformers import AutoConfig, XcodecConfig, XcodecModel

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.convert import original
from xcodec_lm.codec.convert.files import convert_checkpoint
from xcodec_lm.codec.load import save_codec
from xcodec_lm.codec.torch_files import load_tensors
from xcodec_lm.configs.errors import ConfigError, XcodecLMError

UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
POSITIONAL = "semantic_model.encoder.pos_conv_embed.conv"


def original_key(key):
    """The name of one of transformers' tensors in the original, spelt out independently of the package's table."""

    def unit(match):
        block, number, part = int(match[1]), int(match[2]), match[3]
        return f"encoder.block.{block + 1}.block.{number - 1}.block.{UNIT[part]}."

    def decoder_unit(match):
        block, number, part = int(match[1]), int(match[2]), match[3]
        return f"decoder_2.model.{block + 1}.block.{number + 1}.block.{UNIT[part]}."

    rules = [
        (r"^acoustic_encoder\.conv1\.", "encoder.block.0."),
        (r"^acoustic_encoder\.block\.(\d)\.res_unit(\d)\.(\w+)\.", unit),
        (r"^acoustic_encoder\.block\.(\d)\.snake1\.", lambda m: f"encoder.block.{int(m[1]) + 1}.block.3."),
        (r"^acoustic_encoder\.block\.(\d)\.conv1\.", lambda m: f"encoder.block.{int(m[1]) + 1}.block.4."),
        (r"^acoustic_encoder\.snake1\.", "encoder.block.5."),
        (r"^acoustic_encoder\.conv2\.", "encoder.block.6."),
        (r"^acoustic_decoder\.conv1\.", "decoder_2.model.0."),
        (r"^acoustic_decoder\.block\.(\d)\.snake1\.", lambda m: f"decoder_2.model.{int(m[1]) + 1}.block.0."),
        (r"^acoustic_decoder\.block\.(\d)\.conv_t1\.", lambda m: f"decoder_2.model.{int(m[1]) + 1}.block.1."),
        (r"^acoustic_decoder\.block\.(\d)\.res_unit(\d)\.(\w+)\.", decoder_unit),
        (r"^acoustic_decoder\.snake1\.", "decoder_2.model.5."),
        (r"^acoustic_decoder\.conv2\.", "decoder_2.model.6."),
        (r"^(encoder|decoder)_semantic\.(conv\d?)\.", r"\1_semantic.\2.conv."),
        (r"^(\w+_semantic\.conv_blocks\.\d)\.conv\.", r"\1.conv.conv."),
        (r"^(\w+_semantic\.conv_blocks\.\d\.res_units\.\d)\.conv1\.", r"\1.conv1.conv."),
        (r"^quantizer\.quantizers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook."),
        (r"^fc\.", "fc_prior."),
        (r"^fc1\.", "fc_post1."),
        (r"^fc2\.", "fc_post2."),
    ]  # fmt: skip
    for pattern, new in rules:
        if re.search(pattern, key):
            return re.sub(pattern, new, key)
    return key


def is_normed(key, value):
    return re.match(r"acoustic_(en|de)coder\..*conv.*\.weight$", key) and value.dim() == 3


def original_state(model, spelling):
    """The state dict that the original code would have saved of a model; the model gets the weights it stands for."""
    state = collections.OrderedDict()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, value in model.state_dict().items():
            if not is_normed(key, value) or spelling == "folded":
                state[original_key(key)] = value.clone()
                continue
            carrier = torch.nn.Module()  # torch's own hook decides what weight a length and a direction are
            carrier.weight = torch.nn.Parameter(value.clone())
            torch.nn.utils.weight_norm(carrier)
            carrier.weight_v *= 0.5 + torch.rand(len(value), 1, 1, generator=rng)
            normed = torch._weight_norm(carrier.weight_v, carrier.weight_g, 0)
            model.get_parameter(key).copy_(normed)
            names = ("weight_g", "weight_v")
            if spelling == "parametrizations":
                names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
            owner = original_key(key).removesuffix("weight")
            state[owner + names[0]], state[owner + names[1]] = carrier.weight_g.detach(), carrier.weight_v.detach()
    if spelling == "weight_g/weight_v":
        for number, letter in ((0, "g"), (1, "v")):
            value = state.pop(f"{POSITIONAL}.parametrizations.weight.original{number}")
            state[f"{POSITIONAL}.weight_{letter}"] = value
    return state


def build(kind="hubert", seed=0, **sizes):
    torch.manual_seed(seed)
    options = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 48,
        "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    teacher = AutoConfig.for_model(kind, **options | sizes.pop("teacher", {}))
    acoustic = AutoConfig.for_model(
        "dac", encoder_hidden_size=4, decoder_hidden_size=64, hidden_size=16, downsampling_ratios=[8, 5, 4, 2],
        upsampling_ratios=[8, 5, 4, 2],
    )  # fmt: skip
    config = XcodecConfig(acoustic_model_config=acoustic, semantic_model_config=teacher, **sizes)
    model = XcodecModel(config).eval()
    wav = 0.2 * torch.randn(1, 1, 320 * 40)
    with torch.no_grad():
        semantic = model.encoder_semantic(model._extract_semantic_features(wav).transpose(1, 2))
        residual = model.fc(torch.cat([model.acoustic_encoder(wav), semantic], 1).transpose(1, 2))[0]
        for layer in model.quantizer.quantizers:
            book = layer.codebook.embed
            book.copy_(residual.mean(0) + residual.std(0) * torch.randn(book.shape))
            layer.codebook.embed_avg.copy_(2 * book)
            residual = residual - book[layer.codebook.quantize(residual)]
    return model, wav


@pytest.fixture(scope="module", params=["hubert", "wavlm"])
def pair(request):
    return build(request.param)


@pytest.fixture(scope="module")
def hubert():
    return build("hubert", seed=3)


def check_same_codec(folder, model, wav):
    codec = load_codec(folder)
    with torch.no_grad():
        peer = model.encode(wav).audio_codes
        audio = model.decode(peer).audio_values
    tokens = codec.encode(wav)
    assert torch.equal(tokens.codes, peer) and len(peer[:, 0].unique()) > 10
    assert (codec.decode(tokens)[0] - audio).abs().max() <= 1e-5 * audio.abs().max()
    return codec


@pytest.mark.parametrize("spelling", ["weight_g/weight_v", "parametrizations", "folded"])
def test_every_spelling_becomes_the_codec_that_it_was(pair, spelling, tmp_path):
    model, wav = pair
    state = original_state(model, spelling)
    torch.save(state, tmp_path / "original.pth")
    done = convert_checkpoint(tmp_path / "original.pth", tmp_path / "ours")
    assert done.kind == "X-Codec" and spelling in done.layout and done.tensors == len(state)
    codec = check_same_codec(tmp_path / "ours", model, wav)
    assert codec.spec.name == "ours" and codec.spec.fingerprint == done.fingerprint
    theirs = XcodecModel.from_pretrained(tmp_path / "ours").state_dict()
    expected = model.state_dict()
    assert theirs.keys() == expected.keys() and all(torch.equal(theirs[key], expected[key]) for key in theirs)
    model.save_pretrained(tmp_path / "peer")
    assert load_codec(tmp_path / "peer").spec.fingerprint == done.fingerprint  # one codec, one fingerprint


def test_folder_in_transformers_layout_is_like_one_of_its_own(hubert, tmp_path):
    model, wav = hubert
    torch.save(original_state(model, "weight_g/weight_v"), tmp_path / "original.pth")
    done = convert_checkpoint(tmp_path / "original.pth", tmp_path / "theirs", "transformers")
    data = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert data["model_type"] == "xcodec" and "xcodec_lm" not in data
    assert data["acoustic_model_config"]["upsampling_ratios"] == [8, 5, 4, 2]
    assert json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())["hop_length"] == 320
    assert check_same_codec(tmp_path / "theirs", model, wav).spec.fingerprint == done.fingerprint


def test_ours_to_original_and_back_is_bit_identical(pair, tmp_path):
    model, _ = pair
    model.save_pretrained(tmp_path / "peer")
    with torch.no_grad():
        before = {key: value.clone() for key, value in model.state_dict().items()}
    done = convert_checkpoint(tmp_path / "peer", tmp_path / "original.pth", "original")
    assert any("semantic.dim 64" in note for note in done.notes)  # the original code has 768 built in
    written = torch.load(tmp_path / "original.pth", weights_only=True)
    expected = {original_key(key) for key in before}
    assert {re.sub(r"weight_[gv]$|parametrizations.weight.original[01]$", "weight", key) for key in written} == {
        re.sub(r"parametrizations.weight.original[01]$", "weight", key) for key in expected
    }
    assert f"{POSITIONAL}.weight_g" in written and written["encoder.block.0.weight_g"].shape == (4, 1, 1)
    assert written["decoder_2.model.1.block.1.weight_g"].shape[0] == 64  # of a transposed convolution: input channels
    convert_checkpoint(tmp_path / "original.pth", tmp_path / "ours")
    back = XcodecModel.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(back[key], value) for key, value in before.items())
    assert load_codec(tmp_path / "ours").spec.fingerprint == load_codec(tmp_path / "peer").spec.fingerprint


def test_torch_loads_the_split_weights_that_are_written(hubert, tmp_path):
    """As the original's modules would: a convolution with torch's hook gets the weight back."""
    model, _ = hubert
    model.save_pretrained(tmp_path / "peer")
    convert_checkpoint(tmp_path / "peer", tmp_path / "x.pth", "original")
    state, _ = load_tensors(tmp_path / "x.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.nn.utils.weight_norm(torch.nn.ConvTranspose1d(64, 32, 16, 8, padding=4))
    prefix = "decoder_2.model.1.block.1."
    layer.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    layer(torch.zeros(1, 64, 3))  # the hook computes the weight
    assert torch.equal(layer.weight, model.acoustic_decoder.block[0].conv_t1.weight)


def test_a_dead_channel_survives_the_way_there_and_back(hubert, tmp_path):
    model, _ = build("hubert", seed=4)
    with torch.no_grad():
        model.acoustic_encoder.block[0].conv1.weight[2] = 0
    model.save_pretrained(tmp_path / "peer")
    convert_checkpoint(tmp_path / "peer", tmp_path / "x.pth", "original")
    convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    back = XcodecModel.from_pretrained(tmp_path / "ours").state_dict()
    assert torch.equal(back["acoustic_encoder.block.0.conv1.weight"], model.acoustic_encoder.block[0].conv1.weight)


def test_training_file_with_stray_values(hubert, tmp_path):
    model, wav = hubert
    state = original_state(model, "weight_g/weight_v")
    state["quantizer.vq.layers.0.stray"] = io.BytesIO(b"left over")
    state["encoder.block.0.weight"] = torch.zeros(4, 1, 7)  # stale, as a hook leaves it
    wrapped = {
        "codec_model": {f"module.{key}": value for key, value in state.items()},
        "optimizer_g": {"state": {}, "param_groups": []}, "epoch": 7, "mfd": {"w": torch.ones(2)},
    }  # fmt: skip
    torch.save(wrapped, tmp_path / "train.pth")
    done = convert_checkpoint(tmp_path / "train.pth", tmp_path / "ours")
    assert done.left_aside == {
        "optimizer_g": "dict of 2", "epoch": "int 7", "mfd": "dict of 1",
        "module.quantizer.vq.layers.0.stray": "BytesIO of 9 bytes, not read",
        "encoder.block.0.weight": "stale: a split weight lies beside it",
    }  # fmt: skip
    check_same_codec(tmp_path / "ours", model, wav)


@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel_size": 5, "unit_kernel_size": 5, "channel_ratios": [2, 1], "codebook_size": 128},
        {"target_bandwidths": [0.5, 1.5], "teacher": {"mask_time_prob": 0.0}},
        {"teacher": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}},
    ],
)
def test_sizes_follow_from_the_tensors(sizes, tmp_path):
    model, wav = build(seed=6, **sizes)
    torch.save(original_state(model, "weight_g/weight_v"), tmp_path / "x.pth")
    convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    check_same_codec(tmp_path / "ours", model, wav)


def test_what_shapes_do_not_show_comes_from_the_caller(tmp_path):
    model, wav = build(seed=7, teacher={"num_attention_heads": 4}, block_dilations=[1, 3])
    torch.save(original_state(model, "folded"), tmp_path / "x.pth")
    convert_checkpoint(tmp_path / "x.pth", tmp_path / "guessed")
    with torch.no_grad():
        assert not torch.equal(load_codec(tmp_path / "guessed").encode(wav).codes, model.encode(wav).audio_codes)
    given = {"block_dilations": [1, 3], "semantic_model_config": {"num_attention_heads": 4}}
    convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours", given=given)
    check_same_codec(tmp_path / "ours", model, wav)
    with pytest.raises(ConfigError, match=r"no num_attention_head$"):
        convert_checkpoint(
            tmp_path / "x.pth", tmp_path / "a", given={"semantic_model_config": {"num_attention_head": 4}}
        )
    with pytest.raises(ConfigError, match="codebook_size, which the weights decide"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "a", given={"codebook_size": 4})


def test_widths_that_no_head_count_fits_ask_for_one(teacher_folder, tmp_path):
    convert_checkpoint(teacher_folder, tmp_path / "x.pth", "original")
    with pytest.raises(ConfigError, match="width 16, and no shape tells its number of attention heads"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    given = {"semantic_model_config": {"num_attention_heads": 4}}
    done = convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours", given=given)
    assert done.fingerprint == load_codec(teacher_folder).spec.fingerprint


def test_codebooks_narrower_than_both_branches_stay_in_our_layout(tmp_path):
    from xcodec_lm.codec.semantic import build_teacher
    from xcodec_lm.codec.xcodec import XCodec
    from xcodec_lm.configs.codec import CodecModelConfig, QuantizerConfig, SemanticConfig

    semantic = SemanticConfig(teacher="random:0", dim=64)
    model = CodecModelConfig(
        encoder_channels=1, latent_dim=8, decoder_channels=16, quantizer=QuantizerConfig(n_q=4, codebook_size=8, dim=16)
    )
    save_codec(XCodec(model, semantic, build_teacher(semantic)).eval(), tmp_path / "narrow")
    done = convert_checkpoint(tmp_path / "narrow", tmp_path / "x.pth", "original")
    assert "quantizer.dim 16" in done.notes[0]
    given = {"semantic_model_config": {"num_attention_heads": 4}}
    back = convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours", given=given)
    assert back.fingerprint == load_codec(tmp_path / "narrow").spec.fingerprint
    with pytest.raises(XcodecLMError, match="as wide as both branches together"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "theirs", "transformers", given)


# ---------------------------------------------------------------------- errors


def broken(state, change):
    state = dict(state)
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc_post2.weight"), r"weights are missing: fc_post2.weight \(1 in all\)"),
        (lambda s: s.pop("encoder.block.2.block.4.bias"), r"missing: encoder.block.2.block.4.bias \(1 in all\)"),
        (lambda s: s.pop("encoder.block.2.block.4.weight_v"), "encoder.block.2.block.4.weight_v is missing"),
        (lambda s: s.pop("encoder.block.2.block.4.weight_g"), "block.4.weight_v is there, but not the lengths"),
        (lambda s: s.pop("quantizer.vq.layers.3._codebook.embed"), r"quantizer.vq.layers.3._codebook.embed"),
        (lambda s: s.pop("semantic_model.encoder.layers.1.final_layer_norm.bias"), "layers.1.final_layer_norm.bias"),
        (lambda s: s.update({"decoder.x.weight": torch.ones(1)}), r"does not have: decoder.x.weight \(1 in all\)"),
        (lambda s: s.update({"fc_prior.scale": torch.ones(1)}), r"does not have: fc_prior.scale \(1 in all\)"),
        (lambda s: s.update({"fc_post1.weight": torch.ones(3, 3)}), r"fc_post1.weight has shape \(3, 3\), expected"),
        (lambda s: s.update({"encoder.block.0.weight_g": torch.ones(5, 1, 1)}), "does not fit a direction"),
        (lambda s: s.update({"encoder.block.1.block.4.weight_v": torch.ones(8, 4, 7)}), "belongs to no stride"),
    ],
)  # fmt: skip
def test_missing_and_unknown_tensors_are_named_as_in_the_file(hubert, change, message, tmp_path):
    state = broken(original_state(hubert[0], "weight_g/weight_v"), change)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(XcodecLMError, match=message) as error:
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    assert "x.pth" in error.value.message and error.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth"]


def test_layouts_that_cannot_hold_a_codec_say_so(twin_folder, tmp_path):
    with pytest.raises(XcodecLMError, match="the original code has no such model"):
        convert_checkpoint(twin_folder, tmp_path / "x.pth", "original")
    with pytest.raises(XcodecLMError, match="transformers has no such model"):
        convert_checkpoint(twin_folder, tmp_path / "x", "transformers")
    with pytest.raises(ConfigError, match="a folder has its own"):
        convert_checkpoint(twin_folder, tmp_path / "x", "ours", {"sample_rate": 1})
    assert not any(tmp_path.iterdir())


def test_a_codec_of_one_teacher_layer_stays_in_our_layout(teacher_folder, tmp_path):
    codec = load_codec(teacher_folder)
    codec.semantic_config = dataclasses.replace(codec.semantic_config, layers=1)
    save_codec(codec, tmp_path / "one")
    for to in ("original", "transformers"):
        with pytest.raises(XcodecLMError, match="uses layer 1 of its teacher"):
            convert_checkpoint(tmp_path / "one", tmp_path / "x", to)


def test_what_stands_at_the_target_is_kept(hubert, tmp_path, monkeypatch):
    torch.save(original_state(hubert[0], "folded"), tmp_path / "x.pth")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(XcodecLMError, match="exists already"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours")
    with pytest.raises(XcodecLMError, match="exists already"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "x.pth", "original")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xcodec_lm.codec.load.save_file", full)
    with pytest.raises(XcodecLMError, match="No space left"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "new")
    monkeypatch.setattr("xcodec_lm.codec.convert.files.torch.save", full)
    with pytest.raises(XcodecLMError, match="No space left"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "new.pth", "original")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "x.pth"]
    assert (tmp_path / "ours" / "notes.txt").read_text() == "mine"


def test_a_file_of_something_else_is_named(tmp_path):
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(XcodecLMError, match=r"no checkpoint of X-Codec.*layer.weight"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "ours")


def test_modules_of_both_layouts_are_one_to_one():
    table = original.modules(original.Depths(4, 4, 2, 2, 8))
    assert len(set(table.values())) == len(table)
    assert all(original_key(f"{ours}.weight") == f"{theirs}.weight" for ours, theirs in table.items())
