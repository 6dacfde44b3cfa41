"""The single-stream model as a voice: training by command, speaking, streaming, tokenizers, export, bad input."""
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import json

import numpy as np
import pytest
import soundfile as sf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xcodec_lm.codec import load_codec
from xcodec_lm.configs.errors import ConfigError, TokenError, UsageError, XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.lm.engine import GREEDY, Engine
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.llama import SpeechLlama
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.serving import SECTION, CodeLogitsProcessor, IdRules
from xcodec_lm.lm.shards import StoreWriter
from xcodec_lm.tasks.data.spm import train_spm
from xcodec_lm.tasks.export import export_transformers
from xcodec_lm.tasks.tts.evaluate import untrained
from xcodec_lm.tasks.tts.speech import Line, Speaking
from xcodec_lm.tasks.tts.symbols import TextEncoder
from xcodec_lm.tasks.tts.texts import text_encoder
from xcodec_lm.tasks.tts.voice import load_tts

WORDS = "zero one two three four five six seven eight nine, a dog and a cat."
PACE = {"least": 0.5, "usual": 1.0, "most": 1.5}
QUICK = Speaking(Sampling(top_p=0.9), retries=0)


def make_run(folder, codec_folder, name="flatten", n_q=4):
    """A run folder as training leaves it, with an untrained model."""
    codec = load_codec(codec_folder)
    encoder = TextEncoder.build(TextConfig(), [WORDS, "abcdefghijklmnopqrstuvwxyz ,.?!'-"])
    encoder.save(folder / "text")
    layout = LayoutConfig(name, n_q, first_id=encoder.size)
    torch.manual_seed(0)
    model = SpeechLlama(
        GPTConfig("llama", layers=1, heads=2, dim=16, mlp_dim=32, block=600, layout=layout),
        layout_from(layout, codec.spec).vocabulary.size,
    )
    facts = {"path": str(codec_folder), "fingerprint": codec.spec.fingerprint, "spec": codec.spec.to_dict()}
    model.save_pretrained(folder / "model", {"codec": facts, "pace": PACE})
    return folder


def make_store(folder, codec_folder, count=10):
    """A store of random codes with texts."""
    rng, spec = np.random.default_rng(0), load_codec(codec_folder).spec
    with StoreWriter(folder, spec, codec=str(codec_folder)) as writer:
        for number in range(count):
            text = " ".join(rng.choice(WORDS.replace(",", "").split(), 2))
            row = {"id": f"u{number}", "split": "dev" if number % 5 == 4 else "train", "text": text, "speaker": "v"}
            writer.add(row, rng.integers(0, 64, (16, 4)))
    return folder


def make_text_model(folder, hidden=16):
    """A tiny LLaMA with a byte-level tokenizer of its own, as its authors would publish it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    whole.save_pretrained(folder)
    sizes = {"hidden_size": hidden, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(whole), max_position_embeddings=256, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def train_arguments(store, out, *more):
    return [
        "tts", "train", "llasa/tiny", "--data.tokens", store, "--out", out, "--data.min-s", "0.01", "--model.block",
        "160", "--data.batch-codes", "320", "--data.micro-batch-codes", "320", "--optim.steps", "2", "--device", "cpu",
        "--model.layers", "1", "--model.heads", "2", "--model.dim", "16", "--model.mlp-dim", "24", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, twin_folder):
    return make_run(tmp_path_factory.mktemp("llama") / "run", twin_folder)


@pytest.fixture(scope="module")
def tts(run):
    return load_tts(run)


@pytest.fixture(scope="module")
def store(tmp_path_factory, twin_folder):
    return make_store(tmp_path_factory.mktemp("llama-store") / "tokens", twin_folder)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return make_text_model(tmp_path_factory.mktemp("text-model") / "llama")


@pytest.fixture
def voice(write_wav):
    return write_wav("voice.wav", seconds=1.2, kind="noise", level=0.3)


# ---------------------------------------------------------------------- speaking


def test_all_codebooks_are_spoken_alone_as_beside_others(tts, voice):
    prompt = tts.prompt(voice, "one")
    lines = [Line("three four.", prompt, 1), Line("a cat. two", None, 2)]
    for line, one in zip(lines, tts.say_all(lines, QUICK), strict=True):
        alone = tts.say_all([line], QUICK)[0]
        for mine, other in zip(alone.sentences, one.sentences, strict=True):
            assert torch.equal(mine.codes, other.codes) and mine.score == pytest.approx(other.score, abs=1e-4)
            assert mine.codes.shape[0] == 4 and mine.score < 0
        assert one.wav.shape[1] == sum(s.codes.shape[1] for s in one.sentences) * 320
    assert tts.heard(prompt, 16_000).shape == (1.2 * 16_000,)


def test_the_likeliest_of_several_drafts_is_kept_and_the_first_codebook_can_be_had_alone(tts):
    best = tts.say("seven", speaking=Speaking(QUICK.sampling, best_of=3, retries=0)).sentences[0]
    first = tts.say("seven", speaking=QUICK).sentences[0]
    assert best.drafts == 3 and (best.ended == "eos", best.score) >= (first.ended == "eos", first.score)
    alone = tts.say("seven", speaking=Speaking(QUICK.sampling, "ar", retries=0)).sentences[0]
    assert torch.equal(alone.codes, first.codes[:1])


def test_a_stream_gives_audio_before_the_sentence_has_ended_and_is_what_is_said_at_once(tts, voice):
    prompt = tts.prompt(voice, "one")
    speaking = Speaking(Sampling(), retries=0, most_units=30)
    text = "one two three four five. six seven eight nine."
    pieces = list(tts.stream(text, prompt, seed=4, speaking=speaking))
    whole = tts.say(text, prompt, seed=4, speaking=speaking)
    assert [s.ended for s in whole.sentences] == [
        p.sentences[0].ended for p in pieces if p.sentences
    ] and "loop" not in whole.ended
    spoken = [piece.sentences[0].codes for piece in pieces if piece.sentences]
    assert all(torch.equal(one, s.codes) for one, s in zip(spoken, whole.sentences, strict=True))
    assert len(pieces) > len(whole.sentences) + 2
    torch.testing.assert_close(torch.cat([piece.wav for piece in pieces], dim=1), whole.wav, atol=1e-4, rtol=0)


def test_control_of_an_evaluation_has_other_weights(tts):
    other = untrained(tts, seed=5)
    assert not torch.equal(other.ar.wte.weight, tts.ar.wte.weight) and other.layout is tts.layout
    assert other.say("one", speaking=QUICK).sentences[0].codes.shape[0] == 4


def test_commands_speak_stream_and_take_manifests(cli, run, voice, tmp_path):
    code, text, _ = cli(
        "tts", "say", "--run", run, "--text", "one two", "--prompt", voice, "-o", tmp_path / "a.wav", "--json"
    )
    assert code == 0 and json.loads(text)["ended"] in ("eos", "limit", "loop")
    code, text, err = cli(
        "tts", "say", "--run", run, "--text", "a dog. a cat.", "-o", tmp_path / "b.wav", "--stream", "--json"
    )
    pieces = json.loads(text)["pieces"]
    assert code == 0 and "'a dog. a cat.'" in err and len(pieces) == 1
    assert sf.info(tmp_path / "b.wav").duration == pytest.approx(pieces[0]["seconds"], abs=1e-2)
    (tmp_path / "m.jsonl").write_text('{"id": "x", "text": "two"}\n')
    code, text, _ = cli(
        "tts", "say", "--run", run, "--manifest", tmp_path / "m.jsonl", "-o", tmp_path / "out", "--json"
    )
    assert code == 0 and json.loads(text)["spoken"] == 1


def test_bad_runs_are_named(run, other_folder, tmp_path, tts):
    with pytest.raises(TokenError):
        load_tts(run, other_folder)
    (tmp_path / "text").mkdir()
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(XcodecLMError, match="has not finished"):
        load_tts(tmp_path)
    with pytest.raises(UsageError, match="the text is empty"):
        tts.say(" ")


# ---------------------------------------------------------------------- training and export


def test_the_command_trains_a_run_that_speaks_and_exports(cli, store, tmp_path):
    code, _, err = cli(*train_arguments(store, tmp_path / "run"))
    assert code == 0 and "flatten, 4 of 4 codebooks" in err, err
    tts = load_tts(tmp_path / "run")
    assert tts.say("one two", speaking=QUICK).sentences[0].codes.shape[0] == 4
    assert tts.layout.vocabulary.base == tts.encoder.size
    code, text, _ = cli("export", tmp_path / "run", "-o", tmp_path / "out", "--json")
    assert code == 0 and json.loads(text)["architecture"] == "LlamaForCausalLM"
    assert TextEncoder.load(tmp_path / "out").encode("one").ids == tts.encoder.encode("one").ids
    code, text, _ = cli("tts", "train", "llasa/paper", "--dry-run")
    assert code == 0 and "1370.16 M parameters" in text


def test_a_text_model_becomes_a_voice_with_its_own_tokenizer(cli, store, text_model, tmp_path):
    code, _, err = cli(*train_arguments(store, tmp_path / "run", "--init", text_model))
    assert code == 0 and "ids are new" in err, err
    code, _, err = cli(*train_arguments(store, tmp_path / "run", "--init", text_model))  # goes on: nothing to do
    assert code == 0, err
    tts = load_tts(tmp_path / "run")
    theirs = AutoTokenizer.from_pretrained(text_model)
    text = "One two <s> nine"
    want = theirs(tts.encoder.normalise(text).text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert tts.encoder.encode(text).ids == [theirs.bos_token_id, *want] and theirs.bos_token_id not in want
    assert tts.ar.text_size == len(theirs) == tts.encoder.size
    assert tts.say("one two", speaking=QUICK).sentences[0].codes.shape[0] == 4
    done = export_transformers(tmp_path / "run", tmp_path / "out")
    assert done.difference < 1e-4
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("a dog").input_ids == theirs("a dog").input_ids


@torch.no_grad()
def test_an_exported_voice_speaks_as_ours(text_model, run, tmp_path):
    tts = load_tts(run)
    export_transformers(run, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    section, ids = getattr(theirs.config, SECTION), tts.layout.vocabulary
    rules = IdRules.from_dict(section)
    assert (
        section["text_ids"] == tts.encoder.size == rules.ranges[0][0]
        and theirs.generation_config.eos_token_id == ids.eos
    )
    words = tts.encoder.encode("one two").ids
    read = torch.tensor([[*words, ids.bos]])
    torch.testing.assert_close(theirs(read).logits, tts.ar(read), atol=1e-5, rtol=0)
    made = theirs.generate(
        read, attention_mask=torch.ones_like(read), do_sample=False, max_length=None, max_new_tokens=24,
        logits_processor=[CodeLogitsProcessor(rules, read.shape[1], min_frames=6)],
    )  # fmt: skip
    prefix = tts.ar.text_prefix(torch.tensor([words]))[0]
    ours = Engine(tts.ar, tts.layout).decode([Request(6, sampling=GREEDY, prefix=prefix)])[0]
    assert torch.equal(tts.layout.unpack(made[0, read.shape[1] :, None]), ours.codes)


# ---------------------------------------------------------------------- tokenizers


def test_a_tokenizer_is_kept_with_the_run(text_model, tmp_path):
    encoder = TextEncoder.build(TextConfig("transformers", model=str(text_model)), ["any"])
    encoder.save(tmp_path / "text")
    again = TextEncoder.load(tmp_path / "text")
    assert again.encode("five six 7").ids == encoder.encode("five six 7").ids
    assert again.split("one. two. three.", 4) == encoder.split("one. two. three.", 4)
    assert again.facts["front_end"] == "transformers" and again.facts["symbols"] == encoder.size
    for text, says in (("", "is empty"), ("?!", "nothing that can be said")):
        with pytest.raises(UsageError, match=says):
            again.encode(text)
    path = tmp_path / "text" / "tokenizer.json"
    path.write_text(path.read_text().replace('"</s>"', '"</t>"'))
    with pytest.raises(XcodecLMError, match="not the one that this run was trained with"):
        TextEncoder.load(tmp_path / "text")


def test_folders_without_tokenizer_or_model_are_refused(cli, store, tmp_path):
    with pytest.raises(ConfigError, match="needs text"):
        TextConfig("transformers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(XcodecLMError, match="holds no tokenizer"):
        TextEncoder.build(TextConfig("transformers", model=str(tmp_path / "empty")), []).encode("one")
    code, _, err = cli(*train_arguments(store, tmp_path / "run", "--init", tmp_path / "empty"))
    assert code == 1 and "holds no language model" in err


def test_a_run_with_a_model_of_pieces_goes_on_with_its_own_copy(store, tmp_path):
    manifest = tmp_path / "m.jsonl"
    rows = [{"id": str(number), "audio": "a", "duration": 1.0, "text": WORDS} for number in range(9)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_spm([manifest], tmp_path / "pieces.model", vocab_size=280)
    config = TextConfig("sentencepiece", model=str(tmp_path / "pieces.model"))
    first = text_encoder(config, (str(store),), "", tmp_path / "run")
    again = text_encoder(config, (str(store),), "", tmp_path / "run")
    assert again.encode("five six").ids == first.encode("five six").ids
    with pytest.raises(XcodecLMError, match="was begun with the front end"):
        text_encoder(TextConfig(), (str(store),), "", tmp_path / "run")
