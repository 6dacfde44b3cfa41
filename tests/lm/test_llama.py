"""The single-stream model: what it reads and predicts, learning, exact resume, decoding, starting from transformers."""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false, reportOptionalSubscript=false

import importlib.util

import numpy as np
import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from xcodec_lm import configs
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, TokenError, XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig, LMRunConfig, RopeScalingConfig
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.configs.tts import SpeechDataConfig
from xcodec_lm.configs.tts_llama import LlamaTTSTrainConfig, LoraConfig
from xcodec_lm.lm.engine import Engine
from xcodec_lm.lm.examples import IGNORED
from xcodec_lm.lm.interop_llama import read_sizes, resized, take_over
from xcodec_lm.lm.layouts import FILLER, layout_from
from xcodec_lm.lm.llama import SpeechLlama, text_example
from xcodec_lm.lm.llama_train import SpokenTexts, describe, settled, summary, train_speech
from xcodec_lm.lm.load import find_model
from xcodec_lm.lm.lora import add_adapters, merged_weights
from xcodec_lm.lm.model_files import read_model_config
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import StoreWriter, TokenStore

K, BOOKS, TEXT = 16, 2, 8
SPEC = TokenSpec("toy", 16_000, 16_000, 320, (K,) * BOOKS, fingerprint="c" * 64)
LETTERS = "abcd"
FLAT = LayoutConfig("flatten", BOOKS, first_id=TEXT)
MODEL = GPTConfig("llama", layers=2, heads=2, kv_heads=1, dim=32, mlp_dim=64, block=96, layout=FLAT)
LAYOUT = layout_from(FLAT, SPEC)
HAS_PEFT = importlib.util.find_spec("peft") is not None


def encode(text):
    """bos, letters, eos; a space is a symbol, too."""
    return [0, *(2 + " abcd".index(letter) for letter in text), 1]


def speak(text, voice):
    """Codes (T, Q) of a text: a frame a letter; the second book depends on the first and on the voice."""
    first = np.array([LETTERS.index(letter) for letter in text if letter != " "]) + 4 * (voice % 2)
    return np.stack([first, (first * 3 + voice) % K], axis=1)


def make_store(folder, count=64, extra=(), letters=(2, 5)):
    rng = np.random.default_rng(0)
    with StoreWriter(folder, SPEC) as writer:
        for number in range(count):
            text, voice = "".join(rng.choice(list(LETTERS), rng.integers(*letters))), number % 4
            row = {"id": f"u{number}", "split": "dev" if number % 8 == 7 else "train", "text": text}
            writer.add({**row, "speaker": f"v{voice}"}, speak(text, voice))
        for row, codes in extra:
            writer.add(row, codes)
    return folder


def make_config(tokens, steps=6, model=MODEL, lr=1e-2, init="", lora=LoraConfig(), **data):  # noqa: B008
    data = {"batch_codes": 384, "micro_batch_codes": 192, "eval_batches": 4, "min_s": 0.01, **data}
    return LlamaTTSTrainConfig(
        model=model,
        data=SpeechDataConfig(tokens=(str(tokens),), **data),
        optim=OptimConfig(steps=steps, lr=lr, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", clip_norm=1.0),
        run=LMRunConfig(log_every=1, eval_every=3, save_every=3, samples=0),
        lora=lora,
        init=str(init),
    )


def options(out, **values):
    return RunOptions(out=out, device="cpu", **values)


def rows_of(folder):
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in read_metrics(folder)]


def make_model(config=MODEL, seed=0, std=0.2):
    torch.manual_seed(seed)
    model = SpeechLlama(config, layout_from(config.layout, SPEC).vocabulary.size).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def make_llama(folder=None, ids=TEXT, seed=0, **values):
    """A tiny LLaMA of transformers with random weights, saved if a folder is given."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=ids, num_key_value_heads=2, max_position_embeddings=96, **{**sizes, **values})
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if folder is not None:
        model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("speech") / "tokens")


def texts_of(folder, split="train", **data):
    settings = SpeechDataConfig(tokens=(str(folder),), batch_codes=384, min_s=0.01, **data)
    return SpokenTexts(TokenStore.open(folder), split, encode, LAYOUT, "ar", BOOKS, MODEL.block, settings, seed=0)


# ---------------------------------------------------------------------- examples


def test_text_bos_and_codes_are_read_codes_and_eos_predicted_and_pad_is_neither():
    ids, codes = LAYOUT.vocabulary, speak("ab", 1).T
    example = text_example(LAYOUT, encode("ab"), codes)
    speech = (codes + TEXT + K * np.arange(BOOKS)[:, None]).T.reshape(-1).tolist()
    assert example.inputs[:, 0].tolist() == [*encode("ab"), ids.bos, *speech]
    assert example.targets[:, 0].tolist() == [IGNORED] * 4 + [*speech, ids.eos]
    assert (example.rows[:4] == FILLER).all() and min(speech) >= TEXT and max(speech) < ids.bos
    assert len({ids.bos, ids.eos, ids.pad}) == 3 and ids.pad not in example.inputs


def test_rows_hold_whole_documents_whose_positions_count_on(store):
    data = texts_of(store, join=0.5)
    for row in data.packer().take(4):
        batch = data.batch([row])
        held = batch.document[0] >= 0 if batch.document is not None else torch.ones(batch.places.shape[1]).bool()
        assert sum(data.steps(position) for position in row) == int(held.sum()) <= MODEL.block
        for number, position in enumerate(row):
            here = torch.ones_like(held) if batch.document is None else batch.document[0] == number
            assert batch.places[0, here].tolist() == list(range(int(here.sum())))
            frames = int(data.lengths[list(data.place(position).slots)].sum())
            assert int((batch.targets[0, here] != IGNORED).sum()) == frames * BOOKS + 1


@torch.no_grad()
def test_documents_of_a_row_are_read_as_alone(store):
    from xcodec_lm.lm.objective import Cells

    data, model = texts_of(store), make_model()
    row = next(data.packer())
    assert len(row) > 1
    objective, packed = Cells(model, LAYOUT), data.batch([row])
    together = objective(*objective.prepare(packed))[0]
    for number, position in enumerate(row):
        alone = objective(*objective.prepare(data.batch([[position]])))[0]
        torch.testing.assert_close(together[packed.document[0] == number], alone, atol=1e-5, rtol=0)


def test_what_does_not_fit_is_left_out_and_said(tmp_path):
    extra = [
        ({"id": "long", "split": "train", "text": "ab" * 20}, speak("ab" * 20, 0)),
        ({"id": "x", "split": "train"}, speak("ab", 0)),
    ]
    data = texts_of(make_store(tmp_path / "tokens", 16, extra))
    assert data.left_out == {"longer than model.block 96": ["long"], "no text": ["x"]}


# ---------------------------------------------------------------------- training and decoding


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path, store):
    config = make_config(store, join=0.5)
    train_speech(config, options(tmp_path / "whole"), encode, TEXT)
    train_speech(config, options(tmp_path / "parts", max_steps=4), encode, TEXT)
    torch.randn(7)
    train_speech(config, options(tmp_path / "parts"), encode, TEXT)
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert whole == parts and len(whole) == 6 and {"eval/bits", "eval/bits_q2"} <= set(whole[-1])
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_speaks_what_it_was_taught_in_the_voice_of_the_prompt_and_alone_as_in_a_batch(tmp_path):
    store = make_store(tmp_path / "tokens", 128, letters=(2, 3))
    config = make_config(store, steps=200, join=1.0, micro_batch_codes=384)
    train_speech(config, options(tmp_path / "run"), encode, TEXT)
    model = SpeechLlama.from_pretrained(find_model(tmp_path / "run"))
    wanted, requests = [], []
    for voice in range(4):
        for text in ("ab", "dc", "bb", "ca"):
            known, want = speak("db", voice).T, speak(text, voice).T
            with torch.inference_mode():
                front = model.text_prefix(torch.tensor([encode(f"db {text}")]))[0]
            requests.append(Request(8, torch.from_numpy(known), Sampling(temperature=0), may_end=True, prefix=front))
            wanted.append(want)
    made = Engine(model, LAYOUT, lanes=5).decode(requests)
    right = [
        one.ended and np.array_equal(one.codes[:, 2:].numpy(), want) for one, want in zip(made, wanted, strict=True)
    ]
    assert sum(right) >= 12  # of 16; chance is next to nothing
    for request, one in zip(requests[::5], made[::5], strict=True):
        alone = Engine(model, LAYOUT).decode([request])[0]
        assert torch.equal(alone.codes, one.codes) and alone.ended == one.ended
    facts = read_model_config(find_model(tmp_path / "run"), SpeechLlama.kind)
    assert facts["codec"]["fingerprint"] == "c" * 64 and facts["pace"]["usual"] == 0.5


@torch.no_grad()
def test_the_cost_of_an_utterance_is_that_of_its_steps():
    model, codes = make_model(), speak("ab", 1).T
    nats, rows = model.spoken_nats(LAYOUT, encode("ab"), codes, True)
    example = text_example(LAYOUT, encode("ab"), codes)
    logits = model(example.inputs[None, :, 0])[0]
    want = -logits.log_softmax(-1)[torch.arange(4, 9), example.targets[4:, 0]]
    torch.testing.assert_close(nats[:, 0], want, atol=1e-5, rtol=0)
    assert rows[:, 0].tolist() == [0, 1] * 2 + [-2]


def test_a_text_must_be_text_and_leave_room():
    model = make_model()
    with pytest.raises(TokenError, match="text id 8 is outside"):
        model.text_prefix(torch.tensor([[1, 8]]))
    with pytest.raises(TokenError, match="no room for speech"):
        model.text_prefix(torch.zeros(1, 96, dtype=torch.int64))


def test_starts_from_a_run_of_its_kind_and_refuses_others(tmp_path, store):
    train_speech(make_config(store, steps=3), options(tmp_path / "old"), encode, TEXT)
    train_speech(make_config(store, steps=3, init=tmp_path / "old"), options(tmp_path / "new"), encode, TEXT)
    assert rows_of(tmp_path / "new")[0]["loss"] < rows_of(tmp_path / "old")[-1]["loss"]
    with pytest.raises(XcodecLMError, match="holds no language model"):
        train_speech(make_config(store, init=tmp_path), options(tmp_path / "x"), encode, TEXT)


# ---------------------------------------------------------------------- transformers


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e4}, LLAMA3], ids=["default", "llama3"])
@torch.no_grad()
def test_a_text_model_with_more_ids_says_of_text_what_it_said_before(tmp_path, tied, rope):
    theirs = make_llama(tmp_path, tie_word_embeddings=tied, rope_parameters=rope, rms_norm_eps=1e-6)
    sizes = read_sizes(tmp_path, 80, FLAT)
    assert (sizes.tied, sizes.norm_eps, sizes.block, sizes.kv_heads) == (tied, 1e-6, 80, 2)
    model = SpeechLlama(sizes, LAYOUT.vocabulary.size).eval()
    new = take_over(model, tmp_path, TEXT + K * BOOKS, torch.Generator().manual_seed(0))
    assert new == model.vocab_size - TEXT
    ids = torch.randint(0, TEXT, (2, 60), generator=torch.Generator().manual_seed(1))
    logits = theirs(ids).logits
    assert logits.abs().max() > 0.5
    torch.testing.assert_close(model(ids)[..., :TEXT], logits, atol=1e-5, rtol=0)
    again = model.to_transformers()  # and back, with all ids
    every = torch.randint(0, model.vocab_size, (2, 60), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(again(every).logits, model(every), atol=1e-5, rtol=0)


def test_new_rows_lie_around_the_mean_of_the_old():
    old = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    rows = resized(old, 400, 2400, torch.Generator().manual_seed(0))
    assert torch.equal(rows[:400], old[:400]) and rows.shape == (2400, 8)
    torch.testing.assert_close(rows[400:].mean(0), old[:400].mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(rows[400:].std(0), 0.1 * old[:400].std(0), atol=0.03, rtol=0)


@torch.no_grad()
def test_ids_of_speech_that_are_there_are_kept(tmp_path):
    theirs = make_llama(tmp_path, ids=TEXT + K * BOOKS)  # as a finished LLaSA
    model = SpeechLlama(read_sizes(tmp_path, 96, FLAT), LAYOUT.vocabulary.size)
    assert take_over(model, tmp_path, TEXT + K * BOOKS, torch.Generator()) == model.vocab_size - TEXT - K * BOOKS
    assert torch.equal(model.wte.weight[: TEXT + K * BOOKS], theirs.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 16}, "head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters"),
    ],
)
def test_llamas_of_another_shape_are_refused(tmp_path, values, says):
    make_llama(tmp_path, **values)
    with pytest.raises(XcodecLMError, match=f"not of the published shape: {says}"):
        read_sizes(tmp_path, 96, FLAT)


def test_other_models_are_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(XcodecLMError, match="'gpt2', not a LLaMA"):
        read_sizes(tmp_path, 96, FLAT)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(XcodecLMError, match="does not load as a LlamaForCausalLM"):
        take_over(make_model(), tmp_path, TEXT + K * BOOKS, torch.Generator())


def test_a_run_takes_sizes_and_weights_of_a_text_model(tmp_path, store):
    make_llama(tmp_path / "llama")
    free = LayoutConfig("flatten", BOOKS)
    config = make_config(store, 3, GPTConfig("llama", block=96, layout=free), 1e-3, tmp_path / "llama")
    train_speech(config, options(tmp_path / "run"), encode, TEXT)
    model = SpeechLlama.from_pretrained(find_model(tmp_path / "run"))
    assert (model.config.dim, model.config.layers, model.text_size) == (32, 2, TEXT)
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 3 and rows[-1]["loss"] < rows[0]["loss"]


# ---------------------------------------------------------------------- adapters


@pytest.mark.parametrize("embedding", [False, True])
def test_adapters_alone_learn_and_are_merged_on_export(tmp_path, store, embedding, monkeypatch):
    if not HAS_PEFT:
        with pytest.raises(XcodecLMError, match=r"pip install 'xcodec-lm\[lora\]'"):
            add_adapters(make_model(), LoraConfig(rank=2))
        return
    train_speech(make_config(store, steps=3), options(tmp_path / "old"), encode, TEXT)
    lora = LoraConfig(rank=4, dropout=0.1, targets=("qkv", "fc"), embedding=embedding)
    config = make_config(store, 6, init=tmp_path / "old", lora=lora)
    train_speech(config, options(tmp_path / "new"), encode, TEXT)
    train_speech(config, options(tmp_path / "parts", max_steps=4), encode, TEXT)
    train_speech(config, options(tmp_path / "parts"), encode, TEXT)
    old, new, parts = (
        SpeechLlama.from_pretrained(find_model(tmp_path / name)).state_dict() for name in ("old", "new", "parts")
    )
    changed = {name for name, value in old.items() if not torch.equal(value, new[name])}
    layers = {f"blocks.{index}.{name}.weight" for index in range(2) for name in ("attn.qkv", "fc")}
    assert old.keys() == new.keys() and changed == layers | ({"wte.weight"} if embedding else set())
    assert all(torch.equal(value, parts[name]) for name, value in new.items())
    assert rows_of(tmp_path / "new")[-1]["loss"] < rows_of(tmp_path / "old")[-1]["loss"]
    rank = torch.linalg.matrix_rank(new["blocks.0.fc.weight"] - old["blocks.0.fc.weight"], rtol=1e-4)
    assert int(rank) == 4


@torch.no_grad()
def test_the_merged_model_computes_what_its_adapters_compute():
    if not HAS_PEFT:
        return
    model, plain = make_model(), make_model()
    ids = torch.randint(0, model.vocab_size, (1, 30), generator=torch.Generator().manual_seed(0))
    add_adapters(model, LoraConfig(rank=3, alpha=8))
    torch.testing.assert_close(model(ids), plain(ids), atol=1e-6, rtol=0)  # nothing learnt yet
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    want = model(ids)
    assert (want - plain(ids)).abs().max() > 0.1
    plain.load_state_dict(merged_weights(model))
    torch.testing.assert_close(plain(ids), want, atol=1e-4, rtol=0)


def test_adapters_without_peft_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(XcodecLMError, match=r"pip install 'xcodec-lm\[lora\]'"):
        add_adapters(make_model(), LoraConfig(rank=2))


def test_adapters_that_cannot_learn_speech_are_refused(tmp_path, store):
    make_llama(tmp_path / "llama")
    config = make_config(store, init=tmp_path / "llama", lora=LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="has no ids of speech"):
        train_speech(config, options(tmp_path / "run"), encode, TEXT)


# ---------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: GPTConfig("gpt2", block=96, layout=FLAT), "model.arch is gpt2"),
        (lambda: GPTConfig("llama", block=96, layout=LayoutConfig("delay", 2)), "not one stream"),
        (lambda: GPTConfig("llama", block=96, layout=LayoutConfig("flatten", 2, specials="none")), "begin and the end"),
        (lambda: GPTConfig("llama", block=4096, layout=FLAT), "below model.block 4096"),
        (lambda: GPTConfig("llama", rope_scaling=RopeScalingConfig(factor=0.5)), "rope_scaling"),
    ],
)
def test_configurations_are_checked(store, change, says):
    with pytest.raises(ConfigError, match=says):
        make_config(store, model=change())


def test_more_text_ids_than_there_is_room_for_are_refused(tmp_path, store):
    with pytest.raises(ConfigError, match="first_id 8 is below the 9 symbols"):
        train_speech(make_config(store), options(tmp_path / "run"), encode, 9)
    with pytest.raises(ConfigError, match=r"lora.targets is \('head',\)"):
        LoraConfig(rank=1, targets=("head",))
    assert (
        settled(
            make_config(store, model=GPTConfig("llama", layout=LayoutConfig("first"), block=96)), 11
        ).model.layout.first_id
        == 11
    )


def test_the_paper_s_model_has_the_published_size():
    config = configs.load("llasa/paper", LlamaTTSTrainConfig)
    facts = describe(config)
    assert facts["vocabulary"] == 193_856  # 193,800 and three special ids, rounded up to 64
    # LLaMA-3.2-1B has 1,235,814,400 parameters with 128,256 ids, each a row of 2048.
    assert facts["parameters"] == 1_235_814_400 + (193_856 - 128_256) * 2048
    assert "128264 of text" in summary(facts) and facts["row_s"] == 40.96
