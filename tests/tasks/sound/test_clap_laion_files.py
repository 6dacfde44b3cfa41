"""LAION's files as transformers' model: every tensor goes where it belongs, and nothing else is taken."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.sound import clap_laion
from xcodec_lm.tasks.sound.clap import load_clap
from xcodec_lm.tasks.sound.clap_laion_files import clap_from_laion, config_from_laion, rename_laion
from xcodec_lm.tasks.sound.clap_train import save_clap

SMALL = {"width": 16, "depths": (2, 1), "heads": (2, 4), "hidden": 64, "layers": 1, "inner": 32, "vocabulary": 300,
         "positions": 90, "dim": 32}  # fmt: skip
ROBERTA = {"hidden": 768, "layers": 12, "inner": 3072, "vocabulary": 50265, "positions": 514, "dim": 512}
TINY = {"width": 96, "depths": (2, 2, 6, 2), "heads": (4, 8, 16, 32), **ROBERTA}
BASE = {"width": 128, "depths": (2, 2, 12, 2), "heads": (4, 8, 16, 32), **ROBERTA}


def layout(width, depths, heads, hidden, layers, inner, vocabulary, positions, dim):
    """Names and shapes of a published file."""

    def linear(name, outputs, inputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name, size):
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    a, t, shapes = "audio_branch", "text_branch", {"logit_scale_a": (), "logit_scale_t": ()}
    shapes |= {f"{a}.spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
               f"{a}.spectrogram_extractor.stft.conv_imag.weight": (513, 1, 1024),
               f"{a}.logmel_extractor.melW": (513, 64), **norm(f"{a}.bn0", 64),
               f"{a}.bn0.running_mean": (64,), f"{a}.bn0.running_var": (64,), f"{a}.bn0.num_batches_tracked": (),
               f"{a}.patch_embed.proj.weight": (width, 1, 4, 4), f"{a}.patch_embed.proj.bias": (width,),
               **norm(f"{a}.patch_embed.norm", width)}  # fmt: skip
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        size, place = width * 2**stage, f"{a}.layers.{stage}"
        for index in range(depth):
            block = f"{place}.blocks.{index}"
            shapes |= norm(f"{block}.norm1", size) | linear(f"{block}.attn.qkv", 3 * size, size)
            shapes |= linear(f"{block}.attn.proj", size, size) | norm(f"{block}.norm2", size)
            shapes |= {f"{block}.attn.relative_position_bias_table": (225, count),
                       f"{block}.attn.relative_position_index": (64, 64)}  # fmt: skip
            shapes |= linear(f"{block}.mlp.fc1", 4 * size, size) | linear(f"{block}.mlp.fc2", size, 4 * size)
            if index % 2 and stage < 3:  # of shifted windows, where there is more than one
                shapes[f"{block}.attn_mask"] = ((8 // 2**stage) ** 2, 64, 64)
        if stage < len(depths) - 1:
            shapes |= {f"{place}.downsample.reduction.weight": (2 * size, 4 * size)}
            shapes |= norm(f"{place}.downsample.norm", 4 * size)
    shapes |= norm(f"{a}.norm", size) | linear(f"{a}.head", 527, 527)
    shapes |= {f"{a}.tscam_conv.weight": (527, size, 2, 3), f"{a}.tscam_conv.bias": (527,)}
    words = {"word": vocabulary, "position": positions, "token_type": 1}
    shapes |= {f"{t}.embeddings.{name}_embeddings.weight": (count, hidden) for name, count in words.items()}
    shapes |= {f"{t}.embeddings.position_ids": (1, positions), **norm(f"{t}.embeddings.LayerNorm", hidden)}
    for index in range(layers):
        layer = f"{t}.encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", hidden, hidden)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", hidden) | norm(f"{layer}.output.LayerNorm", hidden)
        shapes |= linear(f"{layer}.intermediate.dense", inner, hidden) | linear(f"{layer}.output.dense", hidden, inner)
    shapes |= linear(f"{t}.pooler.dense", hidden, hidden)
    for side, inputs in (("text", hidden), ("audio", size)):
        shapes |= linear(f"{side}_projection.0", dim, inputs) | linear(f"{side}_projection.2", dim, dim)
        shapes |= linear(f"{side}_transform.sequential.0", dim, dim)
        shapes |= linear(f"{side}_transform.sequential.3", dim, dim)
    return shapes


def random_tensors(sizes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layout(**sizes).items():
        value = 0.1 * torch.randn(shape, generator=rng)
        if name.endswith("running_var"):
            value = 300 + value.abs()
        elif name.endswith(("position_ids", "num_batches_tracked", "relative_position_index")):
            value = torch.randint(0, 200, shape, generator=rng)
        tensors[name] = value
    return tensors


@pytest.fixture
def laion_file(tmp_path):
    """A file as published, with RoBERTa's kind of vocabulary beside it."""
    path = tmp_path / "630k-audioset-best.pt"
    prefixed = {f"module.{name}": value for name, value in random_tensors(SMALL).items()}
    torch.save({"epoch": 45, "name": "run", "state_dict": prefixed, "optimizer": {}}, path)
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values()]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return path


def test_the_published_sizes_are_told_from_shapes():
    for sizes, width, depths, millions in ((TINY, 768, [2, 2, 6, 2], 153.5), (BASE, 1024, [2, 2, 12, 2], 193.9)):
        tensors = {name: torch.empty(shape, device="meta") for name, shape in layout(**sizes).items()}
        config = config_from_laion(tensors)
        audio, text = config.audio_config, config.text_config
        assert (audio.hidden_size, audio.depths, audio.num_attention_heads) == (width, depths, [4, 8, 16, 32])
        assert (audio.patch_embeds_hidden_size, audio.window_size, audio.num_mel_bins) == (sizes["width"], 8, 64)
        assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
        assert (text.layer_norm_eps, text.vocab_size, config.projection_dim) == (1e-5, 50265, 512)
        model = clap_from_laion(tensors, "file")
        if sizes is BASE:
            assert len(tensors) == 505  # of music_audioset_epoch_15_esc_90.14, with position_ids
        assert round(sum(value.numel() for value in model.parameters()) / 1e6, 1) == millions


def test_every_tensor_goes_where_it_belongs():
    tensors = random_tensors(SMALL)
    model = clap_from_laion(tensors, "file")
    found = model.state_dict()
    place = "audio_model.audio_encoder.layers.0.blocks.1"
    qkv = tensors["audio_branch.layers.0.blocks.1.attn.qkv.weight"]
    for index, part in enumerate(("query", "key", "value")):
        assert torch.equal(found[f"{place}.attention.self.{part}.weight"], qkv[16 * index : 16 * (index + 1)])
    for ours, theirs in {
        f"{place}.layernorm_after.bias": "audio_branch.layers.0.blocks.1.norm2.bias",
        f"{place}.output.dense.weight": "audio_branch.layers.0.blocks.1.mlp.fc2.weight",
        f"{place}.attention.output.dense.weight": "audio_branch.layers.0.blocks.1.attn.proj.weight",
        "audio_model.audio_encoder.batch_norm.running_var": "audio_branch.bn0.running_var",
        "audio_model.audio_encoder.norm.weight": "audio_branch.norm.weight",
        "text_model.encoder.layer.0.output.dense.weight": "text_branch.encoder.layer.0.output.dense.weight",
        "text_projection.linear2.weight": "text_projection.2.weight",
        "logit_scale_a": "logit_scale_a",
    }.items():
        assert torch.equal(found[ours], tensors[theirs]), ours
    used = sum(value.numel() for value in rename_laion(tensors).values())
    beside = [name for name in tensors if "transform" in name or name.endswith(("attn_mask", "position_ids"))]
    beside += [name for name in tensors if any(f".{part}" in name for part in ("extractor", "head.", "tscam"))
               or "_extractor" in name]  # fmt: skip
    assert used == sum(value.numel() for name, value in tensors.items() if name not in beside)


@pytest.mark.parametrize("name", ["audio_branch.layers.0.blocks.0.attn.qkv.bias", "text_projection.0.weight",
                                  "audio_branch.bn0.running_mean", "text_branch.pooler.dense.bias"])  # fmt: skip
def test_missing_extra_and_misshapen_tensors_are_refused(name):
    tensors = random_tensors(SMALL)
    value = tensors.pop(name)
    with pytest.raises(XcodecLMError, match="missing"):
        clap_from_laion(tensors, "file")
    with pytest.raises(XcodecLMError, match=r"not known: audio_model\.audio_encoder\.extra"):
        clap_from_laion({**tensors, name: value, "audio_branch.extra": value}, "file")
    with pytest.raises(XcodecLMError, match="has the shape"):
        clap_from_laion({**tensors, name: torch.cat([value, value])}, "file")


def test_a_file_embeds_and_keeps_its_fingerprint_as_a_folder(laion_file, tmp_path):
    clap = load_clap(laion_file)
    assert (clap.sample_rate, clap.dim, clap.longest, clap.window) == (48_000, 32, 77, 480_000)
    assert clap.extractor.frequency_min == 50 and clap.name == "630k-audioset-best"
    wav = (0.2 * np.random.default_rng(0).standard_normal(4800)).astype(np.float32)
    heard, read = clap.embed_audio([wav]), clap.embed_texts(["rain", "дождь"])
    assert heard.shape == (1, 32) and torch.isfinite(heard).all() and torch.isfinite(read).all()
    with torch.no_grad():
        for tensor in clap.model.state_dict().values():  # what half precision holds
            tensor.copy_(tensor.half() if tensor.is_floating_point() else tensor)
    save_clap(clap, tmp_path / "folder")
    assert load_clap(tmp_path / "folder").fingerprint == clap.fingerprint


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_vocabulary_is_named_with_its_place(laion_file, name):
    (laion_file.parent / name).unlink()
    with pytest.raises(XcodecLMError) as error:
        load_clap(laion_file)
    assert name in error.value.message and str(laion_file.parent) in error.value.hint


def test_a_vocabulary_of_another_model_is_refused(laion_file):
    vocabulary = json.loads((laion_file.parent / "vocab.json").read_text())
    vocabulary |= {f"word{index}": len(vocabulary) + index for index in range(100)}
    (laion_file.parent / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(XcodecLMError, match="the model 300"):
        load_clap(laion_file)


def test_other_files_are_refused(laion_file):
    tensors = random_tensors(SMALL)
    torch.save({**tensors, "audio_branch.patch_embed.fusion_model.x": torch.zeros(1)}, laion_file)
    with pytest.raises(XcodecLMError, match="feature fusion"):
        load_clap(laion_file)
    torch.save({"audio_branch.conv_block1.conv1.weight": torch.zeros(3)}, laion_file)
    with pytest.raises(XcodecLMError, match="HTSAT"):
        load_clap(laion_file)
    laion_file.write_bytes(b"not a file of weights")
    with pytest.raises(XcodecLMError):
        load_clap(laion_file)


STUB = """
import os, sys
sys.path.append(os.path.join(os.path.dirname(__file__), "inside"))
import torchvision.datasets as datasets
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms import Compose, Normalize
from transformers import BartTokenizer, BertTokenizer, RobertaModel, RobertaTokenizer
import torch
import torch.nn.functional as F

TOKENIZERS = [cls.from_pretrained(name) for cls, name in
              ((BertTokenizer, "bert-base-uncased"), (RobertaTokenizer, "roberta-base"), (BartTokenizer, "bart"))]

class Model(torch.nn.Module):
    def load_state_dict(self, tensors):
        self.names = set(tensors)

class CLAP_Module(torch.nn.Module):
    def __init__(self, enable_fusion, device, amodel):
        super().__init__()
        self.amodel, self.model, self.longest = amodel, Model(), 0
        self.roberta = RobertaModel.from_pretrained("roberta-base")

    def get_text_embedding(self, x, tokenizer, use_tensor):
        return F.normalize(tokenizer(x)["input_ids"].float()[:, :3], dim=-1)

    def get_audio_embedding_from_data(self, x, use_tensor):
        self.longest = max(self.longest, *map(len, x))
        return torch.stack([F.normalize(wav[:3], dim=0) for wav in x])
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A package of the same name that asks for the same things when it is imported."""
    (tmp_path / "site" / "laion_clap").mkdir(parents=True)
    (tmp_path / "site" / "laion_clap" / "__init__.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(clap_laion.TOWERS, 16, "HTSAT-small")
    importlib.invalidate_caches()
    yield
    sys.modules.pop("laion_clap", None)


def test_the_package_gets_what_it_would_fetch(stub, laion_file):
    before = list(sys.path)
    clap = load_clap(f"laion-clap:{laion_file}")
    package = sys.modules["laion_clap"]
    assert sys.path == before and not [name for name in sys.modules if name.startswith("torchvision")]
    assert all(tokenizer is clap.tokenizer for tokenizer in package.TOKENIZERS)
    assert package.RobertaModel.from_pretrained.__name__ == "from_pretrained"
    assert clap.module.roberta.config.vocab_size == 300 and clap.module.amodel == "HTSAT-small"
    assert "text_branch.embeddings.position_ids" not in clap.module.model.names
    assert "audio_branch.layers.0.blocks.1.attn_mask" in clap.module.model.names
    assert clap.fingerprint == load_clap(laion_file).fingerprint and clap.dim == 32


def test_the_package_never_crops(stub, laion_file):
    clap = load_clap(f"laion-clap:{laion_file}")
    wav = (0.2 * np.random.default_rng(0).standard_normal(48_000 * 23)).astype(np.float32)
    first, again = clap.embed_audio([wav, wav[:100]]), clap.embed_audio([wav, wav[:100]])
    assert torch.equal(first, again) and clap.module.longest == 480_000
    assert clap.embed_texts(["rain"]).shape == (1, 3)
