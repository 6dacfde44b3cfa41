"""Parts of compare: stages that are made once, rows of equal seconds, judges that are related to a codec."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from xcodec_lm import configs
from xcodec_lm.codec.clips import Clip, write_manifest
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.configs.tts import TTSTrainConfig
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.tasks.compare.ancestry import doubt, shared_weights
from xcodec_lm.tasks.compare.equal import check_codec, equal_music, equal_tts
from xcodec_lm.tasks.compare.pipeline import check_names, claim
from xcodec_lm.tasks.compare.replication import Replication
from xcodec_lm.tasks.compare.result import judge_all
from xcodec_lm.tasks.compare.stages import Stages, corpus_key, key_of
from xcodec_lm.tasks.compare.table import format_result
from xcodec_lm.tasks.compare.tts import spread

SPEC = TokenSpec("fifty", 16_000, 16_000, 320, (1024,) * 8, fingerprint="f")
FAST = TokenSpec("seventy-five", 24_000, 24_000, 320, (1024,) * 8, fingerprint="g")
LONE = TokenSpec("one book", 16_000, 24_000, 320, (4096,), fingerprint="h")


# ------------------------------------------------------------------ stages


def test_a_stage_is_made_once_and_found_by_its_inputs(tmp_path, capsys):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "result").write_text("x")
        return {"rows": 3}

    stages = Stages(tmp_path)
    first = stages.run("tokens/a", {"codec": "f", "n": 1}, make)
    again = stages.run("tokens/a", {"n": 1, "codec": "f"}, make)
    other = stages.run("tokens/a", {"n": 2, "codec": "f"}, make)
    assert len(made) == 2 and first.folder == again.folder != other.folder
    assert (first.reused, again.reused) == (False, True) and again.facts == {"rows": 3}
    assert "already there, made with the same settings" in capsys.readouterr().err


def test_a_stage_that_was_stopped_is_gone_on_with_in_its_folder(tmp_path, capsys):
    def stop(folder):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt

    def finish(folder):
        return {"found": (folder / "half").read_text()}

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("lm/a", {"seed": 0}, stop)
    done = Stages(tmp_path).run("lm/a", {"seed": 0}, finish)
    assert done.facts == {"found": "1"} and not done.reused
    assert "going on with what an earlier call left" in capsys.readouterr().err


def test_a_note_of_a_stage_that_a_kill_cut_off_counts_as_none(tmp_path):
    folder = tmp_path / f"a-{key_of({})}"
    folder.mkdir()
    (folder / "stage.json").write_text('{"complete": tr')
    assert Stages(tmp_path).run("a", {}, lambda _: {"made": 1}).facts == {"made": 1}


def test_a_corpus_is_known_by_rows_and_audio_wherever_it_lies(tmp_path, write_wav):
    def corpus(name, text="x", seconds=0.2):
        folder = tmp_path / name
        folder.mkdir()
        write_wav("a.wav", seconds=seconds).rename(folder / "a.wav")
        write_manifest([{"id": "a", "audio": "a.wav", "duration": 0.2, "text": text}], folder / "m.jsonl")
        return corpus_key([folder / "m.jsonl"])

    assert corpus("one") == corpus("two") != corpus("three", text="y")
    assert corpus("four", seconds=0.3) != corpus("five")


# ------------------------------------------------------------------ equal seconds


def test_a_preset_is_unchanged_for_a_codec_of_fifty_frames():
    config = configs.load("music/tiny", LMTrainConfig)
    scaled, seconds = equal_music(config, SPEC)
    assert scaled == config
    assert (seconds.row_s, seconds.rows, seconds.steps) == (6.0, 2, 480)


@pytest.mark.parametrize("spec", [FAST, LONE])
def test_rows_and_steps_are_of_equal_seconds(spec):
    config = configs.load("music/tiny", LMTrainConfig)
    scaled, seconds = equal_music(config, spec)
    layout = layout_from(scaled.model.layout, spec)
    assert layout.frames_in(scaled.model.block) / spec.frame_rate == pytest.approx(6.0)
    assert len(layout.books) == min(4, spec.n_q)
    row = layout.frames_in(scaled.model.block) * len(layout.books)
    assert scaled.data.batch_codes // row == seconds.rows == 2
    assert scaled.optim == config.optim and scaled.model.layers == config.model.layers


def test_speech_keeps_its_room_for_text():
    config = configs.load("tts/tiny", TTSTrainConfig)  # 512 positions: 450 for 18 s in twos, 62 for text
    same, _ = equal_tts(config, SPEC, 18.0)
    assert same == config
    fast, seconds = equal_tts(config, FAST, 18.0)
    assert fast.model.block - 62 == 18 * 75 / 2
    assert fast.data.batch_codes // fast.model.block == seconds.rows == 6
    lone, _ = equal_tts(config, LONE, 18.0)
    assert (lone.model.n_q, lone.model.codebook_size, lone.stage) == (1, 4096, "ar")
    with pytest.raises(XcodecLMError, match="does not hold 40 s"):
        equal_tts(config, SPEC, 40.0)


def test_codecs_of_several_tracks_are_refused():
    with pytest.raises(XcodecLMError, match="2 tracks"):
        check_codec(replace(SPEC, tracks=("vocal", "band")))


def test_test_utterances_are_taken_in_turn_from_every_speaker():
    clips = [Clip(f"{name}{n}", None, 1.0, "test", {"speaker": name}) for name in "ab" for n in range(5)]  # type: ignore[arg-type]
    assert [clip.id for clip in spread([*clips, Clip("c0", None, 1, "test", {"speaker": "c"})], 5)] == [  # type: ignore[arg-type]
        "a0", "a1", "b0", "b1", "c0",
    ]  # fmt: skip


# ------------------------------------------------------------------ judges that are related


def test_a_judge_with_layers_of_the_codec_is_doubted():
    torch.manual_seed(0)
    teacher, codec = nn.Linear(32, 32), nn.Module()
    codec.semantic_model = teacher  # type: ignore[assignment]
    codec.other = nn.Linear(32, 32)
    codec.spec = SPEC  # type: ignore[assignment]
    tuned = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 9))
    judge = SimpleNamespace(name="listener", ancestry={}, model=tuned)
    assert doubt(judge, codec, "fifty", []) == ""
    tuned[0].load_state_dict({name: value.half() for name, value in teacher.state_dict().items()})
    assert shared_weights([tuned], [codec]) == 1
    assert "shares 1 tensors of weights with fifty" in doubt(judge, codec, "fifty", [])


def test_fresh_norms_and_biases_do_not_make_relatives():
    assert shared_weights([nn.LayerNorm(512), nn.Linear(1, 512)], [nn.LayerNorm(512)]) == 0


def test_a_judge_made_from_the_teacher_or_trained_on_what_is_tested_is_doubted():
    codec = SimpleNamespace(spec=SPEC, semantic_config=SimpleNamespace(teacher="models/hubert-ga"))
    made = SimpleNamespace(name="listener", ancestry={"weights_from": "hubert-ga"})
    assert "was made from hubert-ga" in doubt(made, codec, "fifty", [])
    heard = SimpleNamespace(name="listener", ancestry={"trained_on": [{"speaker": ["eve", "ann"]}]})
    tested = [Clip("a", None, 1.0, "test", {"speaker": "eve"})]  # type: ignore[arg-type]
    assert "tested speakers, such as eve" in doubt(heard, codec, "fifty", tested)
    twin = SimpleNamespace(spec=SPEC, semantic_config=SimpleNamespace(teacher="none"))
    assert doubt(SimpleNamespace(name="l", ancestry={"weights_from": "none"}), twin, "fifty", []) == ""


# ------------------------------------------------------------------ results


def spoken(codec, seed, model, shuffled=1.0, speakers=12, doubts=None):
    """A made-up replication of speech: word errors of four utterances of every speaker."""
    rng, items = np.random.default_rng(seed), []
    for system, rate in (("model", model), ("shuffled", shuffled), ("untrained", 1.2), ("recordings", 0.02)):
        for number in range(4 * speakers):
            errors = int(rng.binomial(20, min(1.0, rate))) if rate <= 1 else round(20 * rate)
            items.append({"system": system, "id": f"u{number}", "unit": f"s{number % speakers}", "errors": errors,
                          "words": 20})  # fmt: skip
    stages = {name: {"wall_s": 1.0, "cpu_s": 1.0} for name in ("tokens", "train", "score")}
    facts = {"codec": codec, "audio_s": 10.0, "bits_per_s": 100.0, "frame_rate": 50.0, "n_q": 8, "code_rate": 400.0,
             "steps": 5, "parameters": 1000, "stages": stages}  # fmt: skip
    return Replication("tts", codec, codec, seed, "tiny", Path(), Path(), items, doubts=doubts or {}, facts=facts,
                       result={"judges": {"recogniser": "tinyctc"}})  # fmt: skip


def pair_of(*found):
    (pair,) = judge_all(found)["pairs"]
    return pair


def test_fewer_word_errors_make_the_model_better():
    pair = pair_of(spoken("a", 0, 0.3), spoken("b", 0, 0.5), spoken("a", 1, 0.3), spoken("b", 1, 0.5))
    assert (pair["verdict"], pair["why"]) == ("better", "by WER[tinyctc] in %")
    assert pair["sentence"].startswith("a makes this tts model better than b does, by WER")
    assert pair["metrics"]["wer"]["value"] == pytest.approx(-0.2, abs=0.05)
    assert pair_of(spoken("a", 0, 0.5), spoken("b", 0, 0.3))["verdict"] == "worse"
    assert "one training seed, 0" in pair_of(spoken("a", 0, 0.5), spoken("b", 0, 0.3))["sentence"]


def test_two_models_that_do_not_follow_their_texts_are_not_compared():
    lost = pair_of(spoken("a", 0, 0.8, shuffled=0.8), spoken("b", 0, 0.95, shuffled=0.95))
    assert lost["metrics"]["wer"]["verdict"] == "better" and lost["verdict"] == "not decidable"
    assert "not shown to be better than shuffled" in lost["why"]
    # Where one of them does, the other's failure is a result.
    assert pair_of(spoken("a", 0, 0.3), spoken("b", 0, 0.95, shuffled=0.95))["verdict"] == "better"


def test_doubts_and_few_speakers_withhold_the_verdict():
    why = "the recogniser errs on 30% of the words of real recordings"
    doubted = pair_of(spoken("a", 0, 0.3, doubts={"wer": why}), spoken("b", 0, 0.5))
    assert (doubted["verdict"], doubted["why"]) == ("not decidable", why)
    few = pair_of(spoken("a", 0, 0.3, speakers=9), spoken("b", 0, 0.5, speakers=9))
    assert (few["verdict"], few["why"]) == ("not decidable", "9 speakers, fewer than 10")
    assert "at least 10 speakers" in few["needed"] or "about 10 speakers" in few["needed"]


def test_the_table_says_the_verdict_last_and_that_several_comparisons_are_several():
    result = judge_all([spoken("a", 0, 0.3), spoken("b", 0, 0.5), spoken("c", 0, 0.4)])
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("a", "b"), ("a", "c")]
    assert any("2 comparisons" in text for text in result["warnings"])
    lines = format_result(result).splitlines()
    said = [line for line in lines if line.startswith("VERDICT")]
    assert said == [f"VERDICT  {pair['sentence']}" for pair in result["pairs"]]
    assert any(line.startswith("recordings ") for line in lines)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "codecs, seeds, what",
    [
        (["a"], [0], "1 codec"),
        (["a", "b", "a"], [0], "a twice"),
        (["a", "b"], [], "--seeds"),
        (["a", "b"], [1, 1], "--seeds"),
    ],
)
def test_what_is_no_comparison_is_refused(codecs, seeds, what):
    with pytest.raises(UsageError, match=what):
        check_names(codecs, seeds)


def test_a_folder_belongs_to_one_comparison(tmp_path):
    settings = {"task": "music", "codecs": {"a": "f"}}
    claim(tmp_path / "out", settings)
    claim(tmp_path / "out", settings)
    with pytest.raises(XcodecLMError, match="another comparison: task differ"):
        claim(tmp_path / "out", settings | {"task": "tts"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(XcodecLMError, match="holds no comparison"):
        claim(tmp_path / "full", settings)
    assert json.loads((tmp_path / "out" / "settings.json").read_text()) == settings
