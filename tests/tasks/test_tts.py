"""Speaking with VALL-E: what is written, how it ended, bad input. The models are untrained; what they say is noise."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.tokens import TokenSpec, stack_codes
from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.layouts import FILLER
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import StoreWriter
from xcodec_lm.lm.valle_ar import ValleAR
from xcodec_lm.lm.valle_nar import ValleNAR
from xcodec_lm.tasks.tts.drafts import PROMPT_PACE, Task, find_loop, least_frames, most_frames, places_of
from xcodec_lm.tasks.tts.speech import Line, Prompt, Speaking, adjusted
from xcodec_lm.tasks.tts.symbols import TextEncoder
from xcodec_lm.tasks.tts.texts import text_encoder
from xcodec_lm.tasks.tts.voice import TTS, load_tts

TINY = ValleConfig(layers=1, heads=2, dim=16, mlp_dim=32, dropout=0.0, text_size=48, n_q=4, codebook_size=64, block=400)
PACE = {"least": 0.5, "usual": 1.0, "most": 1.5}
WORDS = "zero one two three four five six seven eight nine, a dog and a cat."


def make_run(folder, codec_folder, nar=True):
    """A run folder as training leaves it, with untrained models."""
    codec = load_codec(codec_folder)
    facts = {"codec": {"path": str(codec_folder), "fingerprint": codec.spec.fingerprint, "spec": codec.spec.to_dict()}}
    torch.manual_seed(0)
    ValleAR(TINY).save_pretrained(folder / "ar" / "model", {**facts, "pace": PACE})
    if nar:
        ValleNAR(TINY).save_pretrained(folder / "nar" / "model", facts)
    TextEncoder.build(TextConfig(), [WORDS, "abcdefghijklmnopqrstuvwxyz ,.?!'-"]).save(folder / "text")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, twin_folder):
    return make_run(tmp_path_factory.mktemp("tts") / "run", twin_folder)


@pytest.fixture(scope="module")
def tts(run):
    return load_tts(run)


@pytest.fixture
def voice(write_wav):
    return write_wav("voice.wav", seconds=1.5, kind="noise", level=0.3)


QUICK = Speaking(Sampling(top_p=0.9), retries=0)


def test_speech_is_a_function_of_text_voice_and_seed_whatever_is_spoken_beside_it(tts, voice):
    prompt = tts.prompt(voice, "one two")
    lines = [Line("three four.", prompt, 1), Line("a dog and a cat. two cats", None, 2), Line("six", prompt, 3)]
    together = tts.say_all(lines, QUICK)
    for line, one in zip(lines, together, strict=True):
        alone = tts.say_all([line], QUICK)[0]
        assert [s.text for s in alone.sentences] == [s.text for s in one.sentences]
        for mine, other in zip(alone.sentences, one.sentences, strict=True):
            assert torch.equal(mine.codes, other.codes) and mine.ended == other.ended
        assert torch.allclose(alone.wav, one.wav, atol=1e-5)
    assert not torch.equal(together[0].sentences[0].codes, tts.say("three four.", prompt, seed=7).sentences[0].codes)


def test_every_utterance_says_how_it_ended_and_how_long_it_took(tts, voice):
    spoken = tts.say("one two three", tts.prompt(voice), speaking=QUICK)
    facts = spoken.report()
    assert facts["ended"] in ("eos", "limit", "loop") and facts["real_time_factor"] > 0
    sentence = spoken.sentences[0]
    assert least_frames(tts.pace, sentence.units) <= sentence.codes.shape[1] <= most_frames(tts.pace, sentence.units)
    assert sentence.codes.shape[0] == 4 and facts["sentences"][0]["score"] < 0
    assert spoken.wav.shape == (1, sentence.codes.shape[1] * 320)
    assert facts["frames_per_unit"] == pytest.approx(sentence.codes.shape[1] / sentence.units, abs=0.01)


def test_the_first_codebook_alone_is_that_of_all(tts, voice):
    prompt = tts.prompt(voice)
    whole = tts.say("five", prompt, speaking=QUICK).sentences[0].codes
    first = tts.say("five", prompt, speaking=Speaking(QUICK.sampling, "ar", retries=0)).sentences[0].codes
    assert first.shape[0] == 1 and torch.equal(first[0], whole[0])


def test_guidance_goes_away_from_speech_without_text(tts, voice):
    strong = Speaking(Sampling(temperature=0, cfg_scale=50.0), retries=0)
    with pytest.raises(UsageError, match="never spoke without a text"):
        tts.say("five", speaking=strong)
    guidable = copy.copy(tts)
    guidable.guidable = True
    prompt = tts.prompt(voice)
    lines = [Line(text, prompt) for text in ("five", "a dog and a cat", "nine nine")]
    together = guidable.say_all(lines, strong)
    for line, one in zip(lines, together, strict=True):
        alone = guidable.say_all([line], strong)[0]
        assert torch.equal(alone.sentences[0].codes, one.sentences[0].codes)
        # The first code is the one that the text makes likelier most of all, against no text.
        ids = torch.tensor([tts.encoder.encode(line.text).ids])
        with torch.inference_mode():
            given = torch.cat([torch.tensor([[tts.layout.vocabulary.bos]]), prompt.codes[:1]], dim=1)
            read = [tts.ar.logits(tts.ar.hidden(given, prefix=tts.ar.text_prefix(x)))[0, -1] for x in (ids, ids * 0)]
        wanted = (read[1] + 50 * (read[0] - read[1]))[: TINY.codebook_size].argmax()
        assert int(one.sentences[0].codes[0, 0]) == int(wanted)


def test_the_best_of_several_drafts_is_the_likeliest_that_ended(tts):
    drafts = Speaking(QUICK.sampling, best_of=4, retries=0)
    best = tts.say("seven eight", speaking=drafts).sentences[0]
    first = tts.say("seven eight", speaking=QUICK).sentences[0]
    assert best.drafts == 4 and first.drafts == 1
    assert (best.ended == "eos", best.score) >= (first.ended == "eos", first.score)


def test_drafts_can_be_ranked_by_what_the_text_adds_to_them(tts):
    by_text = Speaking(QUICK.sampling, best_of=4, rank="text", retries=0)
    with pytest.raises(UsageError, match="leave --rank text out"):
        tts.say("seven eight", speaking=by_text)
    guidable = copy.copy(tts)
    guidable.guidable = True
    best = guidable.say("seven eight", seed=3, speaking=by_text).sentences[0]
    ids = list(tts.encoder.encode("seven eight").ids)
    whole = [tts.ar.spoken_nats(tts.layout, text, best.codes[:1].numpy(), best.ended == "eos")
             for text in (ids, [0] * len(ids))]  # fmt: skip
    with_text, without = (-float(nats[rows != FILLER].mean()) for nats, rows in whole)
    assert best.score == pytest.approx(with_text - without, abs=1e-5)


def test_a_model_speaks_as_its_file_says_and_options_change_it(tts, run, tmp_path):
    assert tts.speaking == Speaking()
    told = tmp_path / "told"
    shutil.copytree(run, told)
    (told / "speaking.json").write_text('{"temperature": 0.5, "best_of": 2, "retries": 0}')
    other = load_tts(told)
    assert other.speaking == Speaking(Sampling(0.5, top_p=0.95, ras_window=10), best_of=2, retries=0)
    assert other.say("seven").sentences[0].drafts == 2
    assert adjusted(other.speaking, {"best_of": 1, "cfg": 2.0, "top_k": None}).sampling.cfg_scale == 2
    with pytest.raises(UsageError, match="no setting 'heat'"):
        adjusted(other.speaking, {"heat": 1})
    for wrong in ("{", "[1]", '{"heat": 1}', '{"best_of": 0}', '{"temperature": "warm"}'):
        (told / "speaking.json").write_text(wrong)
        with pytest.raises(XcodecLMError, match=r"speaking.json cannot be read"):
            load_tts(told)


def test_what_did_not_end_is_tried_again(tts):
    never = Speaking(Sampling(temperature=0), retries=2)
    sentence = tts.say("nine", speaking=never).sentences[0]
    assert sentence.drafts == (1 if sentence.ended == "eos" else 3)


def test_long_text_is_split_and_nothing_of_it_is_lost(tts):
    text = "one two three. " * 20 + "and a cat"
    spoken = tts.say(text, speaking=Speaking(QUICK.sampling, "ar", retries=0, most_units=60))
    assert len(spoken.sentences) > 4
    assert " ".join(s.text for s in spoken.sentences).split() == text.split()
    assert spoken.wav.shape[1] == sum(s.codes.shape[1] for s in spoken.sentences) * 320


def test_a_stream_is_what_is_spoken_at_once(tts):
    speaking = Speaking(QUICK.sampling, retries=0, most_units=15)
    pieces = list(tts.stream("one two three. four five six.", seed=4, speaking=speaking))
    whole = tts.say("one two three. four five six.", seed=4, speaking=speaking)
    assert len(pieces) == 2
    assert torch.allclose(torch.cat([piece.wav for piece in pieces], dim=1), whole.wav, atol=1e-5)


def test_an_utterance_is_gone_on_with_from_its_own_beginning(tts, voice):
    prompt = tts.prompt(voice, seconds=0.5)
    assert prompt.codes.shape[1] == 25 and prompt.text is None
    line = Line("one two three four five six seven eight nine", prompt, continual=True)
    sentence = tts.say_all([line], QUICK)[0].sentences[0]
    assert sentence.codes.shape[1] <= max(1, most_frames(tts.pace, sentence.units) - 25)
    assert tts.heard(prompt, 16_000).shape == (8000,)


def test_loops_are_found_and_speech_is_not_taken_for_one():
    rng = np.random.default_rng(0)
    speech = rng.integers(0, 64, 300)
    assert find_loop(speech, 50.0) is None
    for period in (1, 7, 50):
        start = 120
        looped = np.concatenate([speech[:start], np.tile(speech[start : start + period], 400)[:160]])
        assert find_loop(looped, 50.0) == pytest.approx(start + period, abs=2)
    assert find_loop(np.concatenate([speech[:50], np.full(60, 5), speech[50:]]), 50.0) is None  # a pause of 1.2 s


# ---------------------------------------------------------------------- prompts and other bad input


def test_prompts_are_checked(tts, write_wav, capsys):
    with pytest.raises(UsageError, match="is silent"):
        tts.prompt(write_wav("silent.wav", level=0.0))
    long = tts.prompt(write_wav("long.wav", seconds=60.0), "so many words")
    assert long.codes.shape[1] == 500 and long.text is None
    assert "its first 10 s are the prompt" in capsys.readouterr().err
    short = tts.prompt(write_wav("short.wav", seconds=0.1), "o")
    assert short.codes.shape[1] == 5 and "hardly carries a voice" in capsys.readouterr().err
    tts.prompt(write_wav("clipped.wav", seconds=2.0, kind="noise", level=30.0, subtype="PCM_16"))
    assert "is clipped" in capsys.readouterr().err
    assert tts.prompt(write_wav("stereo.wav", seconds=1.0, rate=44_100, channels=2)).codes.shape == (4, 50)


@pytest.mark.parametrize("text", ["", "   ", "\N{GRINNING FACE}"])
def test_nothing_to_say_is_refused(tts, text):
    with pytest.raises(UsageError):
        tts.say(text)


def test_any_text_is_spoken_and_what_is_not_is_reported(tts, capsys):
    speaking = Speaking(QUICK.sampling, "ar", retries=0)
    spoken = tts.say("one \N{GRINNING FACE} two Привет, @x", speaking=speaking)
    assert [sentence.text for sentence in spoken.sentences] == ["one two, at x"]
    assert spoken.report()["sentences"][0]["unknown"] == ["Привет"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "Cyrillic (Привет)" in line]
    assert len(lines) == 1


def test_without_a_nar_the_first_codebook_speaks_and_it_is_said(tmp_path, twin_folder, capsys):
    tts = load_tts(make_run(tmp_path / "run", twin_folder, nar=False))
    assert "the first codebook is spoken alone" in capsys.readouterr().err
    assert tts.say("two", speaking=QUICK).sentences[0].codes.shape[0] == 1


def test_codes_stand_for_what_the_codec_adds_up(tts):
    codes = torch.randint(64, (4, 5), generator=torch.Generator().manual_seed(3))
    first = codes[:1].repeat(4, 1)
    first[1:] = 0
    whole, base = (tts.codec.extract(stack_codes([part], tts.codec.spec.take(4)), "post_vq", 4).values[0]
                   for part in (codes, first))  # fmt: skip
    added = sum(vectors[row] - vectors[0] for vectors, row in zip(tts.code_vectors, codes[1:], strict=True))
    assert torch.allclose((whole - base).T, added, atol=1e-5)
    hidden = load_tts_without_features(tts)
    assert hidden.code_vectors is None and hidden.say("two", speaking=QUICK).sentences[0].codes.shape[0] == 4


def load_tts_without_features(tts):
    """The same models on a codec that shows nothing but audio."""

    class Plain:
        def __init__(self, codec):
            self.spec, self.decode, self.encode = codec.spec, codec.decode, codec.encode

    return TTS(tts.ar, tts.nar, tts.layout, tts.encoder, Plain(tts.codec), tts.pace)


def test_another_codec_is_refused(run, other_folder):
    with pytest.raises(TokenError):
        load_tts(run, other_folder)


def test_a_folder_without_a_speech_model_is_named(tmp_path):
    with pytest.raises(XcodecLMError, match="holds no speech model"):
        load_tts(tmp_path)


def test_a_run_keeps_its_front_end(tmp_path, cli):
    """A second call finds the symbols of the first, a sentencepiece model of another place included."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps({"id": str(n), "audio": "x.wav", "duration": 1.0, "split": "train",
                                            "text": WORDS}) + "\n" for n in range(20)))  # fmt: skip
    code, _, err = cli("data", "spm", manifest, "--out", tmp_path / "text.model", "--vocab-size", 284)
    assert code == 0, err
    spec = TokenSpec("toy", 16_000, 16_000, 320, (64,), fingerprint="c" * 64)
    with StoreWriter(tmp_path / "tokens", spec) as writer:
        writer.add({"id": "a", "split": "train", "text": WORDS}, np.zeros((50, 1), dtype=np.int64))
    config, tokens = TextConfig("sentencepiece", model=str(tmp_path / "text.model")), (str(tmp_path / "tokens"),)
    first = text_encoder(config, tokens, "", tmp_path / "run")
    again = text_encoder(config, tokens, "", tmp_path / "run")
    assert first.encode(WORDS).ids == again.encode(WORDS).ids
    with pytest.raises(XcodecLMError, match="was begun with the front end"):
        text_encoder(TextConfig(), tokens, "", tmp_path / "run")


# ---------------------------------------------------------------------- commands


def test_the_command_writes_a_file_and_reports(cli, run, voice, tmp_path):
    out = tmp_path / "said.wav"
    code, text, err = cli("tts", "say", "--run", run, "--text", "one two", "--prompt", voice, "-o", out, "--json")
    data = json.loads(text)
    assert code == 0 and data["ended"] in ("eos", "limit", "loop") and "used without text" in err
    assert sf.info(out).duration == pytest.approx(data["seconds"], abs=1e-3)


def test_a_manifest_is_spoken_and_failures_are_listed(cli, run, voice, tmp_path):
    rows = [
        {"id": "a", "text": "one two", "prompt_audio": "voice.wav", "prompt_text": "nine"},
        {"id": "b", "text": "  "},
        {"id": "c", "audio": "voice.wav", "prompt_s": 0.5, "text": "six seven eight"},
        {"id": "d"},
    ]
    manifest = tmp_path / "lines.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, text, _ = cli(
        "tts", "say", "--run", run, "--manifest", manifest, "-o", tmp_path / "out", "--retries", "0", "--json"
    )
    data = json.loads(text)
    assert code == 0 and data["spoken"] == 2 and [row["id"] for row in data["failed"]] == ["b", "d"]
    spoken = [json.loads(line) for line in (tmp_path / "out" / "spoken.jsonl").read_text().splitlines()]
    assert [row["id"] for row in spoken] == ["a", "c"] and (tmp_path / "out" / "a.flac").is_file()
    manifest.write_text('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n')
    code, _, err = cli("tts", "say", "--run", run, "--manifest", manifest, "-o", tmp_path / "out")
    assert code == 2 and "the id a twice" in err


def test_a_stream_goes_to_a_file_sentence_by_sentence(cli, run, tmp_path):
    out = tmp_path / "said.wav"
    code, text, err = cli("tts", "say", "--run", run, "--text", "one two. six seven.", "-o", out, "--stream")
    assert code == 0 and "one two." in err
    assert sf.info(out).frames > 0 and "sentence" in text


def test_text_or_manifest_must_be_given(cli, run, tmp_path):
    code, _, err = cli("tts", "say", "--run", run, "-o", tmp_path / "x.wav")
    assert code == 2 and "--text or --manifest" in err


def test_texts_that_lie_over_their_speech_stand_behind_the_prompt_at_about_its_pace():
    ar = ValleAR(replace(TINY, group=2, text_over_speech=True, text_pace=8.0)).eval()
    prompt = Prompt(torch.zeros(4, 80, dtype=torch.int64), "two words")  # 40 steps, 20 a unit
    ids, own = list(range(1, 8)), 5  # 2 units of the prompt and 3 of the sentence, and begin and end
    pace = 8 * (20 / 8) ** PROMPT_PACE
    assert 8 < pace < 20
    found = places_of(ar, Task(0, "", ids, own, prompt, 0))
    assert found.tolist() == pytest.approx([0, 10, 30, *(40 + pace * (unit + 0.5) for unit in range(3)), 40 + 3 * pace])
    mute = places_of(ar, Task(0, "", ids[:5], own, Prompt(prompt.codes, None), 0))
    assert mute.tolist() == pytest.approx([0, 44, 52, 60, 64]), "words that are not known leave the prompt's room"
    alone = places_of(ar, Task(0, "", ids[:5], own, None, 0))
    assert alone.tolist() == pytest.approx([0, 4, 12, 20, 24])
    continual = places_of(ar, Task(0, "", ids, 7, prompt, 0, begun=80))
    assert continual.tolist() == pytest.approx([0, 4, 12, 20, 28, 36, 40])
    assert places_of(ValleAR(TINY), Task(0, "", ids, own, prompt, 0)) is None
