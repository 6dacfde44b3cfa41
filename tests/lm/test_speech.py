"""Utterances as examples, and AR and NAR trained on them: what is read, what is predicted, exact resume, learning."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, UsageError, XcodecLMError
from xcodec_lm.configs.lm import LMRunConfig
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.configs.tts import SpeechDataConfig, TTSTrainConfig
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.engine import Engine
from xcodec_lm.lm.examples import HIDDEN_RUN, IGNORED
from xcodec_lm.lm.load import find_model
from xcodec_lm.lm.model_files import read_model_config
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import StoreWriter, TokenStore
from xcodec_lm.lm.speech import NO_TEXT, PACE_SPREAD, Utterances, ar_example, hide, nar_example, text_places
from xcodec_lm.lm.valle_ar import ValleAR, ar_layout
from xcodec_lm.lm.valle_nar import ValleNAR, refine
from xcodec_lm.lm.valle_train import describe, summary, train_stage

K, BOOKS, RATE = 16, 3, 50
SPEC = TokenSpec("toy", 16_000, 16_000, 320, (K,) * BOOKS, fingerprint="c" * 64)
LETTERS = "abcd"
MODEL = ValleConfig(
    layers=2, heads=2, dim=32, mlp_dim=64, dropout=0.0, text_size=16, n_q=BOOKS, codebook_size=K, block=128,
    text_pace=3.0,
)  # fmt: skip


def encode(text):
    """bos, letters, eos; a space is a symbol, too."""
    if text == "?":
        raise UsageError("nothing to say")
    return [1, *(4 + " abcd".index(letter) for letter in text), 2]


def speak(text, voice):
    """Codes (T, Q) of a text: three frames a letter; the further books depend on those before and on the voice."""
    first = np.repeat([LETTERS.index(letter) for letter in text if letter != " "], 3) + 4 * (voice % 2)
    second = (first * 3 + voice) % K
    return np.stack([first, second, (first + second) % K], axis=1)


def make_store(folder, count=64, codec=None, extra=()):
    rng = np.random.default_rng(0)
    with StoreWriter(folder, SPEC, codec=codec) as writer:
        for number in range(count):
            text, voice = "".join(rng.choice(list(LETTERS), rng.integers(2, 6))), number % 4
            row = {"id": f"u{number}", "split": "dev" if number % 8 == 7 else "train", "text": text}
            writer.add({**row, "speaker": f"v{voice}"}, speak(text, voice))
        for row, codes in extra:
            writer.add(row, codes)
    return folder


def make_config(tokens, steps=6, stage="both", **data):
    data = {"batch_codes": 512, "micro_batch_codes": 256, "eval_batches": 4, "min_s": 0.01, **data}
    optim = OptimConfig(steps=steps, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, schedule="cosine", clip_norm=1.0)
    return TTSTrainConfig(
        stage=stage,
        model=MODEL,
        data=SpeechDataConfig(tokens=(str(tokens),), **data),
        optim=optim,
        nar_optim=optim,
        run=LMRunConfig(log_every=1, eval_every=3, save_every=3, samples=0),
    )


def options(out, **values):
    return RunOptions(out=out, device="cpu", **values)


def rows_of(folder):
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in read_metrics(folder)]


def utterances(folder, stage, split="train", block=128, over_speech=False, **data):
    settings = SpeechDataConfig(tokens=(str(folder),), batch_codes=512, min_s=0.01, **data)
    store = TokenStore.open(folder)
    return Utterances(store, split, encode, ar_layout(MODEL, SPEC), stage, BOOKS, block, settings, 0, over_speech)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("speech") / "tokens")


# ---------------------------------------------------------------------- examples


def test_the_ar_reads_text_bos_and_codes_and_predicts_codes_and_eos():
    layout = ar_layout(MODEL, SPEC)
    codes = speak("ab", 1).T
    example = ar_example(layout, encode("ab"), codes)
    bos, eos = layout.vocabulary.bos, layout.vocabulary.eos
    assert example.inputs[:, 0].tolist() == [*encode("ab"), bos, *codes[0].tolist()]
    assert example.targets[:, 0].tolist() == [IGNORED] * 4 + [*codes[0].tolist(), eos]
    assert example.text.tolist() == [True] * 4 + [False] * 7
    assert example.places.tolist() == [*range(4), *range(7)]


def test_units_stand_evenly_over_the_steps_of_their_own_stretch():
    assert text_places([(2, 8.0), (4, 6.0)]).tolist() == [0, 2, 6, 8.75, 10.25, 11.75, 13.25, 14]
    assert text_places([(0, 5.0), (1, 2.0)]).tolist() == [0, 6, 7]  # speech without its text in front
    assert text_places([(0, 0.0), (0, 0.0)]).tolist() == [0, 0]


def test_texts_stand_over_their_speech_in_training_at_a_pace_that_is_drawn(store):
    data = utterances(store, "ar", over_speech=True, join=0.5)
    stretched = []
    for position in range(400):
        place, batch = data.place(position), data.batch([[position]])
        lengths = [int(data.lengths[slot]) for slot in place.slots]
        assert batch.places[0, ~batch.text[0]].tolist() == list(range(sum(lengths) + 1))
        places = batch.places[0, batch.text[0]]
        assert (places.diff() > 0).all() and places[0] == 0
        begun = sum(lengths[:-1])  # the first of two stands exactly over its own speech
        units = len(encode(data.texts[place.slots[0]])) - 2
        if begun:
            assert places[1 : units + 1].tolist() == pytest.approx(
                [(unit + 0.5) * begun / units for unit in range(units)]
            ) and (places[units + 1] > begun)
        stretched.append(math.log((float(places[-1]) - begun) / lengths[-1]))
        assert torch.equal(data.batch([[position]]).places, batch.places)
    assert np.std(stretched) == pytest.approx(PACE_SPREAD, rel=0.15) and abs(np.mean(stretched)) < 0.03
    for slot in range(len(data)):  # dev and decoding by hand: exactly over the speech
        batch = data.fixed_batch([slot])
        assert float(batch.places[0, batch.text[0]][-1]) == pytest.approx(int(data.lengths[slot]))


@pytest.mark.parametrize("group", [1, 2])
def test_hidden_codes_are_asked_for_and_stand_in_runs(group):
    layout = ar_layout(replace(MODEL, group=group), SPEC)
    shown = ar_example(layout, encode("ab"), np.random.default_rng(0).integers(0, K, (BOOKS, 4000 * group)))
    for share in (0.0, 0.2, 0.6):
        example = hide(shown, layout, share, torch.Generator().manual_seed(1))
        assert torch.equal(example.targets, shown.targets)
        gone = example.inputs[:, 0] != shown.inputs[:, 0]
        assert not gone[:5].any(), "text and bos stay"
        assert set(example.inputs[gone].flatten().tolist()) <= {layout.vocabulary.pad}
        with torch.no_grad():
            assert ValleAR(replace(MODEL, group=group)).embed_audio(example.inputs[None]).isfinite().all()
        assert float(gone.float().mean()) == pytest.approx(share, abs=0.04)
        runs = int((gone[1:] & ~gone[:-1]).sum())
        assert runs == 0 or int(gone.sum()) / runs >= HIDDEN_RUN / 2


def test_only_training_hides_codes(store):
    data = utterances(store, "ar", hidden=0.9)
    pad = data.layout.vocabulary.pad
    rows = [data.batch([[position]]) for position in range(60)]
    assert any((batch.inputs == pad).any() for batch in rows)
    assert all(torch.equal(data.batch([[p]]).inputs, rows[p].inputs) for p in reversed(range(60)))
    assert not any((data.fixed_batch([slot]).inputs == pad).any() for slot in range(len(data)))


def test_a_share_of_the_examples_comes_without_text(store):
    data, all_shown = utterances(store, "ar", no_text=0.25, join=0.5), utterances(store, "ar", join=0.5)
    without = 0
    for position in range(400):
        batch, shown = data.batch([[position]]), all_shown.batch([[position]])
        text = batch.text[0]
        assert torch.equal(batch.targets, shown.targets) and torch.equal(batch.inputs[0, ~text], shown.inputs[0, ~text])
        without += bool((batch.inputs[0, text, 0] == NO_TEXT).all())
        assert torch.equal(batch.inputs, shown.inputs) or (batch.inputs[0, text, 0] == NO_TEXT).all()
    assert 0.18 < without / 400 < 0.32


@pytest.mark.parametrize("over_speech", [False, True])
def test_a_share_of_the_prompts_comes_without_their_text(store, over_speech):
    data = utterances(store, "ar", join=1.0, no_prompt_text=0.3, over_speech=over_speech)
    both, mute = 0, 0
    for position in range(300):
        place, batch = data.place(position), data.batch([[position]])
        shown = batch.inputs[0, batch.text[0], 0].tolist()
        whole, last = data.content(place.slots)[0], encode(data.texts[place.slots[-1]])
        assert int((~batch.text[0]).sum()) == 1 + sum(int(data.lengths[slot]) for slot in place.slots)  # with bos
        if len(place.slots) == 1:
            assert shown == list(last)
            continue
        both += 1
        assert shown in (list(whole), list(last))
        if shown == list(last):
            mute += 1
            begun = int(data.lengths[place.slots[0]])
            assert not over_speech or float(batch.places[0, 1]) > begun, "it stands behind the prompt"
    assert 0.2 < mute / both < 0.4
    assert all(len(data.fixed_batch([slot]).text[0].nonzero()) == len(encode(data.texts[slot])) for slot in range(5))


def test_the_nar_predicts_one_book_of_what_is_not_given():
    codes = speak("abc", 1).T  # 9 frames
    example = nar_example(encode("abc"), codes, stage=2, given=4, silent=(5, 7))
    wanted = [False] * 4 + [True, False, False, True, True]
    assert example.targets[:, 0].tolist() == [IGNORED] * 5 + [
        int(code) if here else IGNORED for code, here in zip(codes[2], wanted, strict=True)
    ]
    assert example.given.tolist() == [False] * 5 + [True] * 4 + [False] * 5
    assert torch.equal(example.inputs[5:], torch.from_numpy(codes.T))
    assert set(example.rows[example.targets != IGNORED].tolist()) == {1}


@pytest.mark.parametrize("stage", ["ar", "nar"])
@pytest.mark.parametrize("mode", [0, 1, 2, 4])
@pytest.mark.parametrize("join", [0.0, 1.0])
def test_rows_hold_whole_utterances_and_every_code_is_asked_for_at_most_once(store, stage, mode, join):
    data = utterances(store, stage, prompt_mode=mode, prompt_s=0.1, join=join)
    packer = data.packer()
    for row in packer.take(6):
        batch = data.batch([row])
        assert sum(data.steps(position) for position in row) == int((batch.document >= 0).sum()) <= 128
        for number, position in enumerate(row):
            here = batch.document[0] == number
            place = data.place(position)
            text = " ".join(data.texts[slot] for slot in place.slots)
            ids = batch.inputs[0, here & batch.text[0], 0].tolist()
            assert ids == encode(text)
            voices = {int(data.speakers[slot]) for slot in place.slots}
            assert len(voices) == 1 and len(place.slots) == (2 if join else 1)
            asked = int((batch.targets[0, here] != IGNORED).sum())
            frames = int(data.lengths[list(place.slots)].sum())
            if stage == "ar":
                assert asked == frames + 1
            else:
                silent = place.given if mode in (1, 2) else 0
                assert asked == frames - silent and (place.given > 0) == (mode > 0)
                assert batch.stage[0, here].unique().tolist() == [place.stage]


def test_a_prompt_in_front_is_the_same_voice_and_not_the_same_words(store):
    data = utterances(store, "nar", prompt_mode=4, prompt_s=0.1)
    for position in range(50):
        place = data.place(position)
        assert place.source not in place.slots
        assert data.speakers[place.source] == data.speakers[place.slots[0]]
        codes = data.batch([[position]]).inputs[0, len(encode(data.texts[place.slots[0]])) :]
        source = data.store.codes(int(data.slots[place.source]))[place.start : place.start + place.given]
        assert np.array_equal(codes[: place.given].numpy(), source)


def test_what_is_drawn_does_not_depend_on_who_asks_when(store):
    one, two = (utterances(store, "nar", join=0.5, prompt_mode=2) for _ in range(2))
    places = [one.place(position) for position in range(40)]
    assert [two.place(position) for position in reversed(range(40))] == places[::-1]
    assert {place.stage for place in places} == {1, 2}
    assert {len(place.slots) for place in places} == {1, 2}


def test_another_speed_is_another_voice(tmp_path):
    row = {"split": "train", "text": "ab", "speaker": "v0"}
    extra = [({**row, "id": f"x{n}@1.1", "speed": 1.1}, speak("ab", 0)) for n in range(3)]
    data = utterances(make_store(tmp_path / "tokens", 16, extra=extra), "ar", join=1.0)
    fast = {slot for slot in range(len(data)) if "@" in data.store.rows[data.recording(slot)]["id"]}
    for position in range(60):
        assert len({slot in fast for slot in data.place(position).slots}) == 1


def test_what_cannot_be_used_is_left_out_and_said(tmp_path):
    extra = [
        ({"id": "mute", "split": "train"}, speak("ab", 0)),
        ({"id": "blank", "split": "train", "text": "  "}, speak("ab", 0)),
        ({"id": "mark", "split": "train", "text": "?"}, speak("ab", 0)),
        ({"id": "long", "split": "train", "text": "ab" * 200}, speak("ab", 0)),
        ({"id": "slow", "split": "train", "text": "ab"}, np.zeros((RATE * 20, BOOKS), dtype=np.int64)),
    ]
    data = utterances(make_store(tmp_path / "tokens", 16, extra=extra), "ar")
    assert data.left_out == {
        "no text": ["mute", "blank"],
        "nothing that can be said": ["mark"],
        "longer than model.block 128": ["long"],
        "outside 0.01 to 14 s": ["slow"],
    }
    assert len(data) == 14 and "2 left out, no text: mute, blank" in data.summary()


def test_the_pace_of_the_training_data_is_measured(store):
    pace = utterances(store, "ar").pace()
    assert 0 < pace["least"] < pace["usual"] < pace["most"] < 3  # 3 frames a letter, and two symbols more


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("stage", ["ar", "nar"])
def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path, store, stage):
    config = make_config(store, join=0.5)
    train_stage(config, options(tmp_path / "whole"), stage, encode, 16)
    train_stage(config, options(tmp_path / "parts", max_steps=4), stage, encode, 16)
    torch.randn(7)
    train_stage(config, options(tmp_path / "parts"), stage, encode, 16)
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert whole == parts and len(whole) == 6 and "eval/bits" in whole[-1]
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_speaks_what_it_was_taught_in_the_voice_of_the_prompt(tmp_path):
    config = make_config(make_store(tmp_path / "tokens", 256), steps=300, join=0.7, hidden=0.3, no_text=0.1)
    config = replace(config, model=replace(MODEL, text_pace=0))
    for stage in ("ar", "nar"):
        train_stage(config, options(tmp_path / stage), stage, encode, 16)
    ar = ValleAR.from_pretrained(find_model(tmp_path / "ar"))
    nar = ValleNAR.from_pretrained(find_model(tmp_path / "nar"))
    layout = ar_layout(MODEL, SPEC)
    right, books, total = 0, 0, 0
    for voice in range(4):
        for text in ("abcd", "dacb", "ba", "ccd"):
            known, want = speak("db", voice).T, speak(text, voice).T
            ids = torch.tensor([encode(f"db {text}")])
            with torch.inference_mode():
                front = ar.text_prefix(ids)[0]
            request = Request(40, torch.from_numpy(known), Sampling(temperature=0), may_end=True, prefix=front)
            made = Engine(ar, layout).decode([request])[0]
            right += made.ended and np.array_equal(made.codes[0, 6:].numpy(), want[0])
            first = torch.from_numpy(np.concatenate([known[0], want[0]]))
            refined = refine(nar, [ids[0]], [torch.from_numpy(known)], [first])[0]
            books += int((refined[1:, 6:].numpy() == want[1:]).sum())
            total += want[1:].size
    assert right >= 12 and books > 0.95 * total  # 16 texts; chance is next to nothing
    facts = read_model_config(find_model(tmp_path / "ar"), ValleAR.kind)
    assert ar.config.text_pace == 3  # frames a letter
    assert facts["guidable"] and facts["codec"]["fingerprint"] == "c" * 64 and facts["pace"]["usual"] > 1


def test_starts_from_a_trained_model(tmp_path, store):
    config = make_config(store, steps=3)
    train_stage(config, options(tmp_path / "old" / "ar"), "ar", encode, 16)
    again = make_config(store, steps=3)
    again = TTSTrainConfig(**{**vars(again), "init": str(tmp_path / "old")})
    train_stage(again, options(tmp_path / "new"), "ar", encode, 16)
    first, last = rows_of(tmp_path / "new")[0]["loss"], rows_of(tmp_path / "old" / "ar")[0]["loss"]
    assert first < last


def test_describes_a_run_without_making_it(store):
    config = make_config(store)
    assert "further codebooks" in summary(describe(config.of_stage("nar"), "nar"))
    facts = describe(config, "ar")
    model = ValleAR(MODEL)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_refuses_what_cannot_be_trained(tmp_path, store):
    with pytest.raises(ConfigError, match="text_size 16 is below the 17 symbols"):
        train_stage(make_config(store), options(tmp_path / "a"), "ar", encode, 17)
    with pytest.raises(XcodecLMError, match="no utterance to train on"):
        train_stage(make_config(store, min_s=9.0), options(tmp_path / "b"), "ar", encode, 16)
    with pytest.raises(ConfigError, match="below model"):
        make_config(store, micro_batch_codes=64)
    with pytest.raises(ConfigError, match="leave no utterance"):
        make_config(store, min_s=20.0)


def test_presets_have_the_sizes_of_the_paper():
    from xcodec_lm import configs

    config = configs.load("tts/paper", TTSTrainConfig)
    sizes = [describe(config.of_stage(stage), stage)["parameters"] for stage in ("ar", "nar")]
    assert [round(size / 1e6, 2) for size in sizes] == [153.78, 213.61]
    assert configs.load("tts/valle2", TTSTrainConfig).model.group == 2
