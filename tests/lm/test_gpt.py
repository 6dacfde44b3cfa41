"""The decoder: equal to transformers' GPT-2 and LLaMA, with and without a cache, of the paper's size, safe on disk."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from xcodec_lm import configs
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, XcodecLMError
from xcodec_lm.configs.lm import DepthConfig, GPTConfig, LayoutConfig, LMTrainConfig
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.interop import from_transformers
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.model_files import read_model_config

BARE = LayoutConfig(specials="none")
SMALL = GPTConfig(layers=3, heads=2, dim=32, block=40, layout=BARE)
LLAMA = GPTConfig("llama", layers=3, heads=4, kv_heads=2, dim=32, mlp_dim=48, block=40, layout=BARE)
both = pytest.mark.parametrize("config", [SMALL, LLAMA], ids=["gpt2", "llama"])


def make(config=SMALL, vocabulary=70, prefix=0, std=0.2):
    """A model whose weights are large enough that a mistake shows in the logits."""
    torch.manual_seed(1)
    model = GPT(config, vocabulary, prefix).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def numbers(rows, length, vocabulary=70):
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_logits_equal_transformers_both_ways():
    from transformers import GPT2LMHeadModel

    model, ids = make(), numbers(2, 40)
    theirs = model.to_transformers()
    assert isinstance(theirs, GPT2LMHeadModel)
    logits = model(ids)
    assert logits.abs().max() > 0.5
    torch.testing.assert_close(theirs(ids).logits, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(from_transformers(theirs)(ids), logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_transformers_folder_loads_with_equal_logits(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=70, n_positions=41, n_embd=32, n_layer=2, n_head=4)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    model, ids = from_transformers(tmp_path, LayoutConfig()), numbers(2, 41)
    assert model.config.block == 40 and model.positions == 41
    torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=0)


def test_refuses_another_gpt2_shape(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1, activation_function="relu")
    with pytest.raises(XcodecLMError, match="activation_function"):
        from_transformers(GPT2LMHeadModel(config))
    with pytest.raises(XcodecLMError, match="does not load"):
        from_transformers(tmp_path)


@torch.no_grad()
def test_a_model_without_biases_exports_with_zeros():
    config = GPTConfig(layers=2, heads=2, dim=16, block=12, bias=False, layout=LayoutConfig(specials="none"))
    model, ids = make(config), numbers(2, 12)
    assert not any(name.endswith("bias") for name in model.state_dict())
    torch.testing.assert_close(model.to_transformers()(ids).logits, model(ids), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [0, 1, 2, 4])
def test_llama_logits_equal_transformers(kv_heads):
    from transformers import LlamaForCausalLM

    model, ids = make(replace(LLAMA, kv_heads=kv_heads)), numbers(2, 40)
    theirs = model.to_transformers()
    assert isinstance(theirs, LlamaForCausalLM)
    torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=0)


@torch.no_grad()
@both
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 12, 20]])
def test_cached_logits_equal_the_uncached(config, pieces):
    model, ids = make(config), numbers(3, 40)
    cache, parts = model.new_cache(3, 40), ids.split(pieces, dim=1)
    torch.testing.assert_close(torch.cat([model(part, cache) for part in parts], 1), model(ids), atol=1e-5, rtol=0)
    cache.reset()
    torch.testing.assert_close(model(ids[:, :9], cache, last_only=True), model(ids)[:, 8:9], atol=1e-5, rtol=0)


@torch.no_grad()
@both
def test_rows_of_several_lengths_read_as_each_alone(config):
    model, ids, lengths = make(config), numbers(3, 40), [5, 20, 1]
    cache = model.new_cache(3, 40)
    for row, length in enumerate(lengths):
        model(ids[row : row + 1, :length], cache.rows(row, row + 1))
    assert cache.lengths.tolist() == lengths
    for step in range(15):
        read = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])[:, None]
        together = model(read, cache)
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, : length + step + 1])[:, -1:]
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
@both
def test_a_pass_of_fixed_shapes_equals_the_ordinary_one(config):
    model, ids = make(config), numbers(2, 40)
    cache = model.new_cache(2, 40)
    model(ids[:, :10], cache)
    for place in range(10, 30):
        places = torch.full((2, 1), place)
        hidden = model.hidden(ids[:, place : place + 1], cache, places=places, graph=True)
        torch.testing.assert_close(model.logits(hidden), model(ids[:, : place + 1])[:, -1:], atol=1e-5, rtol=0)


@torch.no_grad()
@both
def test_several_documents_in_a_row_do_not_see_each_other(config):
    model, ids = make(config), numbers(1, 30)
    places = torch.cat([torch.arange(12), torch.arange(18)])[None]
    document = torch.tensor([0] * 12 + [1] * 18)
    mask = ((document[:, None] == document) & torch.ones(30, 30).tril().bool())[None, None]
    packed = model(ids, places=places, mask=mask)
    torch.testing.assert_close(packed[:, :12], model(ids[:, :12]), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[:, 12:], model(ids[:, 12:]), atol=1e-5, rtol=0)


@both
def test_recomputing_activations_changes_no_gradient(config):
    ids, gradients = numbers(2, 20), []
    for recompute in (False, True):
        model = make(replace(config, recompute=recompute)).train()
        model(ids).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@torch.no_grad()
def test_slots_are_the_rows_of_their_ids_and_inputs_are_summed():
    layout = layout_from(LayoutConfig("delay", 3), TokenSpec("toy", 16_000, 16_000, 320, (10, 12, 9)))
    model = make(GPTConfig(layers=2, heads=2, dim=16, block=30, layout=LayoutConfig("delay", 3)), 64)
    ids = layout.pack(torch.randint(0, 9, (2, 3, 5), generator=torch.Generator().manual_seed(0)))  # (2, S, 3)
    logits = model(ids)
    assert logits.shape == (2, layout.plan(5, False).steps, 64)
    torch.testing.assert_close(model(ids.flip(2)), logits, atol=1e-5, rtol=0)  # a sum knows no order
    slots = model.slot_logits(model.hidden(ids), layout)
    assert [part.shape[2] for part in slots] == [11, 12, 9]
    torch.testing.assert_close(slots[1], logits[:, :, 10:22])
    torch.testing.assert_close(slots[0][..., 10], logits[..., layout.vocabulary.eos])


@torch.no_grad()
def test_the_inner_model_reads_slot_after_slot():
    config = LayoutConfig("depth", 3)
    layout = layout_from(config, TokenSpec("toy", 16_000, 16_000, 320, (10, 12, 9)))
    model = make(GPTConfig(layers=2, heads=2, dim=16, block=30, layout=config, depth=DepthConfig(2, 2, 8)), 64)
    ids = layout.pack(torch.randint(0, 9, (2, 3, 5), generator=torch.Generator().manual_seed(0)))
    hidden, inner = model.hidden(ids), model.inner
    slots = model.slot_logits(hidden, layout, ids)
    changed = ids.clone()
    changed[..., 1] = 11
    again = model.slot_logits(hidden, layout, changed)
    assert torch.equal(slots[0], again[0]) and torch.equal(slots[1], again[1]) and not torch.equal(slots[2], again[2])
    cache, joined = inner.new_cache(2), inner.join(hidden[:, 3])
    for slot in range(3):  # the same by one slot after the other
        logits = inner.step(joined, ids[:, 3, slot - 1] if slot else None, cache)
        torch.testing.assert_close(logits[:, layout.slot_ids(slot)], slots[slot][:, 3], atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_position_sees_what_comes_after_it():
    model, ids = make(), numbers(1, 40)
    changed = ids.clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % 70
    torch.testing.assert_close(model(changed)[:, :20], model(ids)[:, :20], atol=1e-6, rtol=0)
    assert (model(changed)[:, 20] - model(ids)[:, 20]).abs().max() > 1e-2


@torch.no_grad()
def test_a_prefix_of_embeddings_is_what_the_ids_would_be():
    model, ids = make(prefix=3), numbers(2, 20)
    assert model.positions == 43
    torch.testing.assert_close(model(ids[:, 3:], prefix=model.wte(ids[:, :3])), model(ids), atol=1e-6, rtol=0)


def test_more_positions_than_there_are_is_an_error():
    model = make()
    with pytest.raises(TokenError, match="41 positions do not fit the 40"):
        model(numbers(1, 41))
    with pytest.raises(TokenError, match="9 positions do not fit the 8"):
        model(numbers(1, 9), model.new_cache(1, 8))


def test_the_paper_preset_has_the_size_of_gpt2_medium():
    config = configs.load("music/paper", LMTrainConfig).model
    with torch.device("meta"):
        model = GPT(config, 1024)
    assert model.positions == config.block == 4096
    assert round(model.parameter_count() / 1e6, 1) == 307.6
    assert round((model.parameter_count() - model.wpe.weight.numel()) / 1e6, 1) == 303.4


def test_initial_weights_follow_gpt2():
    config = GPTConfig(layers=8, heads=4, dim=128, block=64, layout=LayoutConfig(specials="none"))
    torch.manual_seed(0)
    model = GPT(config, 512)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / 4 if name.endswith("proj.weight") else 0.02  # sqrt(2 * 8) = 4
            assert abs(parameter.std().item() / expected - 1) < 0.05, name
    logits = model(torch.randint(0, 512, (2, 64)))
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.randint(0, 512, (126,)))
    assert abs(loss.item() - torch.tensor(512.0).log().item()) < 0.2  # near the uniform guess


def test_saves_one_copy_of_the_tied_embedding_and_loads_it(tmp_path):
    model, ids = make(), numbers(2, 10)
    model.save_pretrained(tmp_path / "m", {"codec": {"fingerprint": "f"}})
    weights = load_file(tmp_path / "m" / "model.safetensors")
    assert sum(value.numel() for value in weights.values()) == model.parameter_count()
    assert (tmp_path / "m" / "model.safetensors").stat().st_mode & 0o777 == 0o644  # others may read it
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"model.safetensors", "config.json"}
    assert read_model_config(tmp_path / "m")["codec"] == {"fingerprint": "f"}
    loaded = GPT.from_pretrained(tmp_path / "m")
    assert not loaded.training and loaded.config == model.config
    assert torch.equal(loaded(ids), model(ids))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no language model"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "xcodec"}'), "'xcodec'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
    ],
)
def test_says_what_is_wrong_with_a_model_folder(tmp_path, change, words):
    make().save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(XcodecLMError, match=words):
        GPT.from_pretrained(tmp_path)


def test_refuses_a_version_it_does_not_know(tmp_path):
    make().save_pretrained(tmp_path)
    header = json.loads((tmp_path / "config.json").read_text()) | {"version": 7}
    (tmp_path / "config.json").write_text(json.dumps(header))
    with pytest.raises(XcodecLMError, match="version 7"):
        GPT.from_pretrained(tmp_path)
