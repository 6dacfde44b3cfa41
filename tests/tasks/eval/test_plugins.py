"""The registry: every entry can be found, says what it needs, and keeps the promises of its protocol.

Published weights are not here. Plug-ins that need them are built small and random where that is cheap.
"""

import importlib
import json

import eval_stubs as stubs
import numpy as np
import pytest
import torch
from contract import check_contract

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.configs.evaluators import RecogniserConfig, SpeakerConfig
from xcodec_lm.tasks.eval import registry
from xcodec_lm.tasks.eval.ancestry import Origin, read_origin, related, same_family, shared
from xcodec_lm.tasks.eval.metric_table import METRICS, SUITES, parse_metrics
from xcodec_lm.tasks.eval.plan import JUDGES, find_sources
from xcodec_lm.tasks.eval.tiny_ctc import Alphabet, TinyCTC, save_tiny_ctc
from xcodec_lm.tasks.eval.tiny_speaker import TinySpeaker, save_tiny_speaker
from xcodec_lm.tasks.sound.sound_class import SoundClassifier, SoundClassJudge, save_sound_class


def make_ctc(folder):
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir()
    signs = ["<pad>", "<unk>", "|", *"ABCDEFGH"]
    (folder / "vocab.json").write_text(json.dumps({sign: index for index, sign in enumerate(signs)}))
    tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json", pad_token="<pad>", unk_token="<unk>",
                                     word_delimiter_token="|", bos_token=None, eos_token=None)  # fmt: skip
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(sampling_rate=16_000), tokenizer).save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=len(signs), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)


BUILDERS = {
    "tinyctc": lambda folder: save_tiny_ctc(
        TinyCTC(RecogniserConfig(), Alphabet("words", ("one", "two"))).eval(), folder, {}
    ),
    "tinyspeaker": lambda folder: save_tiny_speaker(TinySpeaker(SpeakerConfig()).eval(), folder, {}),
    "tinycnn": lambda folder: save_sound_class(SoundClassJudge(SoundClassifier(("hum", "hiss")).eval()), folder),
    "hubert-ctc": make_ctc,
}
"""Writes what `load` takes. Tests of a backbone beside its converter build the others."""


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: entry.name)
def test_every_plugin_keeps_the_contract(entry, tmp_path):
    if entry.missing():
        pytest.skip(f"{entry.missing()[0]} is not installed")
    if entry.weights and entry.name not in BUILDERS:
        pytest.skip("built by the tests beside its converter")
    source = None
    if entry.weights:
        source = tmp_path / entry.name
        torch.manual_seed(0)
        BUILDERS[entry.name](source)
    check_contract(entry.load(source), entry.kind)


@pytest.mark.parametrize("entry", stubs.ENTRIES[:3] + stubs.ENTRIES[4:], ids=lambda entry: entry.name)
def test_the_plugins_of_the_tests_keep_it_too(entry):
    if entry.name in ("loudness", "toneclap", "kin", "deaf"):
        pytest.skip("a shortcut of the tests")
    check_contract(entry.load(), entry.kind, 2.0)


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: entry.name)
def test_entries_name_loaders_that_are_there(entry):
    module, function = entry.loader.split(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert entry.licence and entry.what
    assert (entry.tier in ("package", "own")) == (not entry.weights)
    assert bool(entry.packages) == bool(entry.install)


def test_metrics_name_plugins_of_their_kind_and_suites_name_metrics():
    for metric in METRICS:
        for name in metric.plugins:
            assert registry.find(name).kind == metric.kind
    assert len({entry.name for entry in registry.entries()}) == len(registry.entries())
    for suite in SUITES:
        assert [want.metric.name for want in parse_metrics(suite)] == list(SUITES[suite])
    assert all(registry.find(name).tier == "trained" for name in JUDGES.values())


def test_what_is_not_known_or_missing_is_said():
    with pytest.raises(UsageError, match="did you mean 'tinyctc'"):
        registry.find("tinyct")
    with pytest.raises(UsageError, match="is a transcriber, and a speaker is needed"):
        registry.find("tinyctc", ("speaker",))
    with pytest.raises(XcodecLMError, match="--weights cnn14-16k=PATH"):
        registry.find("cnn14-16k").load()
    absent = registry.Entry("x", "mos", "package", "eval_stubs:load_tones", "", packages=("no_such_package",),
                            install="pip install it")  # fmt: skip
    assert absent.missing() == ("no_such_package",)
    with pytest.raises(XcodecLMError, match="pip install it"):
        absent.load()


def test_a_folder_with_a_wrong_key_is_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    BUILDERS["tinycnn"](tmp_path / "judge")
    path = tmp_path / "judge" / "model.safetensors"
    weights = load_file(path)
    save_file({name.replace("head", "haed"): value for name, value in weights.items()}, path)
    with pytest.raises(XcodecLMError, match="haed"):
        registry.find("tinycnn").load(tmp_path / "judge")
    with pytest.raises(XcodecLMError, match="another kind of recogniser"):
        BUILDERS["tinyctc"](tmp_path / "ctc")
        registry.find("hubert-ctc").load(tmp_path / "ctc")


def test_fingerprints_follow_the_weights_and_nothing_else(tmp_path):
    judges = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        torch.manual_seed(seed)
        BUILDERS["tinyctc"](tmp_path / name)
        judges.append(registry.find("tinyctc").load(tmp_path / name))
    assert judges[0].fingerprint == judges[1].fingerprint != judges[2].fingerprint


def test_judges_of_a_folder_and_given_weights_are_found(tmp_path):
    BUILDERS["tinyctc"](tmp_path / "recogniser" / "model")
    found = find_sources((f"tinycnn={tmp_path}",), tmp_path)
    assert set(found) == {"tinyctc", "tinycnn"} and found["tinycnn"].path == str(tmp_path)
    with pytest.raises(UsageError, match="twice"):
        find_sources((f"tinycnn={tmp_path}",) * 2)


def test_ancestry_is_shared_by_models_or_by_data_never_by_what_is_unknown(tmp_path):
    own = {"trained_on": [{"speaker": ["a"]}], "seed": 1, "fingerprints": ["base"]}
    assert shared("j", "f", own, {"s": Origin(frozenset({"base"}))}) == "j shares a model with what made s"
    assert shared("j", "f", own, {"s": Origin(frozenset({"f"}))})
    assert "ancestry" in shared("j", "f", own, {"s": Origin(ancestry={"trained_on": own["trained_on"], "seed": 1})})
    assert shared("j", "f", own, {"s": Origin(ancestry={"trained_on": own["trained_on"], "seed": 2})}) == ""
    assert shared("j", "", {}, {"s": Origin(frozenset({""}))}) == "" and not related({}, {})
    random = {"weights_from": "none: random initial values"}
    assert not related(random, random) and related(random | {"seed": 1}, random | {"seed": 1})
    assert related({"weights_from": "a.pt"}, {"weights_from": "a.pt"})
    run = tmp_path / "run" / "model"
    run.mkdir(parents=True)
    facts = {"codec": {"fingerprint": "one", "spec": {"fingerprint": "two"}}, "ancestry": {"seed": 3}, "name": "x"}
    (run / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    assert read_origin(tmp_path / "run") == Origin(frozenset({"one", "two"}), {"seed": 3})
    (run / "config.json").write_text(json.dumps({"semantic_model_config": {"model_type": "wavlm"}}), encoding="utf-8")
    origins = {"x": read_origin(tmp_path / "run")}
    assert origins["x"].families == {"wavlm"}
    assert "made from wavlm, as is a part of x" in same_family("j", {"base": "WavLM-Large, tuned"}, origins)
    assert same_family("j", {"base": "wav2vec 2.0 Base"}, origins) == "" == same_family("j", {}, origins)
    with pytest.raises(UsageError, match="no run, no model folder"):
        read_origin(tmp_path / "nowhere")


def test_an_embedder_without_its_own_pooling_takes_the_mean():
    wav = stubs.say("one two")
    plugin = stubs.Spectrum()
    np.testing.assert_allclose(plugin.clip(wav), plugin.frames(wav).mean(axis=0), rtol=1e-6)
