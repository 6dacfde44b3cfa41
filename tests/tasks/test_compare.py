"""compare from end to end with models of a few steps: results, reuse, resume, refusals, the page."""

import json
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.compare import music, pipeline
from xcodec_lm.tasks.compare.page import write_page
from xcodec_lm.tasks.compare.pipeline import compare, write_result
from xcodec_lm.tasks.compare.replicate import load_size, replicate
from xcodec_lm.tasks.compare.result import judge_all
from xcodec_lm.tasks.compare.table import format_result

RATE = 16_000
LM = {"model.layers": 1, "model.dim": 16, "model.heads": 2, "optim.steps": 3, "optim.warmup_steps": 1,
      "run.eval_every": 3, "run.save_every": 1, "run.log_every": 1}  # fmt: skip
SIZE = """
base: compare/quick
music: {prompt_s: 0.4, seconds: 0.6, most: 12}
"""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Short tones: 10 pieces for training, 1 for dev, 11 for the test."""
    folder = tmp_path_factory.mktemp("pieces")
    rows = []
    for number in range(22):
        split = "train" if number < 10 else "dev" if number < 11 else "test"
        rng = np.random.default_rng(number)
        time = np.arange(int(1.1 * RATE)) / RATE
        wav = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 900) * time) + 0.02 * rng.standard_normal(len(time))
        sf.write(folder / f"{number}.wav", wav.astype(np.float32), RATE)
        name = f"p{number}"
        rows.append({"id": name, "audio": f"{number}.wav", "duration": 1.1, "split": split, "piece": name})
    write_manifest(rows, folder / "music.jsonl")
    (folder / "size.yaml").write_text(SIZE)
    return folder


@pytest.fixture(scope="module")
def compared(pieces, twin_folder, other_folder, tmp_path_factory):
    """A finished comparison of two codecs with two seeds."""
    out = tmp_path_factory.mktemp("compared") / "out"
    result, found = run(pieces, [twin_folder, other_folder], out, seeds=(0, 1))
    return result, found, out


def run(pieces, codecs, out, seeds=(0,), task: Any = "music"):
    return compare([str(codec) for codec in codecs], task, out, [pieces / "music.jsonl"], str(pieces / "size.yaml"),
                   seeds, device="cpu", overrides=LM)  # fmt: skip


def test_every_codec_has_every_seed_and_the_same_training(compared):
    result, found, _ = compared
    names = result["codecs"]
    assert [(one.codec, one.seed) for one in found] == [(name, seed) for seed in (0, 1) for name in names]
    facts = [one.facts for one in found]
    for key in ("steps", "rows_per_step", "row_s", "audio_s", "parameters", "code_rate"):
        assert len({fact[key] for fact in facts}) == 1, key
    assert facts[0]["audio_s"] == pytest.approx(3 * 2 * 6.0, rel=0.2)  # steps, rows, seconds
    assert result["units"] == 11 and result["seeds"] == [0, 1] and result["unit"] == "piece"


def test_figures_of_items_and_sets_are_paired_and_judged(compared):
    result, found, _ = compared
    (pair,) = result["pairs"]
    assert set(pair["metrics"]) == {"frechet", "kid", "bits_per_s"}
    bits = pair["metrics"]["bits_per_s"]
    by_seed = []
    for seed in (0, 1):
        sides = [np.mean([item["bits_per_s"] for item in one.of("model")]) for one in found if one.seed == seed]
        by_seed.append(sides[0] - sides[1])
    assert bits["by_seed"] == pytest.approx(by_seed) and bits["verdict"] == ""
    frechet = pair["metrics"]["frechet"]
    assert frechet["low"] <= frechet["value"] <= frechet["high"] and frechet["units"] == 11
    assert pair["a"] in pair["sentence"] and pair["verdict"] in pair["sentence"]
    systems = {(row["codec"], row["system"]) for row in result["rows"]}
    for codec in result["codecs"]:
        assert {(codec, name) for name in ("model", "resynthesis", "shuffled", "untrained", "unigram")} <= systems


def test_files_table_and_page(compared, read_page):
    result, found, out = compared
    write_result(result, found, out)
    assert json.loads((out / "compare.json").read_text())["pairs"][0]["verdict"] == result["pairs"][0]["verdict"]
    rows = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert len(rows) == sum(len(one.items) for one in found) and {"codec", "seed", "system", "unit"} <= set(rows[0])
    text = format_result(result)
    assert text.count("VERDICT") == 1 and "shown, never a verdict" in text and "by seed" in text
    page = read_page(write_page(result, found, out, "xcodec-lm compare").read_text(encoding="utf-8"))
    assert result["pairs"][0]["why"] in page.text and len(page.all("audio")) >= 8


def test_the_same_again_makes_nothing(compared, pieces, twin_folder, other_folder, capsys):
    result, _, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("stage.json")}
    again, _ = run(pieces, [twin_folder, other_folder], out, seeds=(0, 1))
    told = capsys.readouterr().err
    assert len(before) == 10  # 2 of tokens, 4 models, 4 of scores
    assert told.count("already there, made with the same settings") == 12  # tokens are looked for by every seed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("stage.json")} == before
    assert again["pairs"] == result["pairs"] and again["rows"] == result["rows"]


def test_a_kill_between_stages_repeats_nothing_that_was_done(pieces, twin_folder, tmp_path, monkeypatch, compared):
    _, found, _ = compared

    def stop(*_):
        raise KeyboardInterrupt

    arguments = {"size": str(pieces / "size.yaml"), "out": tmp_path / "out", "device": "cpu", "overrides": LM}
    with monkeypatch.context() as patch:
        patch.setattr(music, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            replicate("music", twin_folder, [pieces / "music.jsonl"], 0, **arguments)
    trained = next((tmp_path / "out").glob("lm/*/stage.json")).stat().st_mtime_ns
    monkeypatch.setattr(music.training, "train", stop)  # must not be called again
    one = replicate("music", twin_folder, [pieces / "music.jsonl"], 0, **arguments)
    assert next((tmp_path / "out").glob("lm/*/stage.json")).stat().st_mtime_ns == trained
    assert one.facts["stages"]["train"]["reused"] and not one.facts["stages"]["score"]["reused"]
    same = next(other for other in found if (other.codec, other.seed) == (one.codec, 0))
    assert one.items == same.items  # the result of a run that was never stopped


def test_other_settings_are_another_stage(pieces, twin_folder, compared):
    _, _, out = compared
    changed = replicate("music", twin_folder, [pieces / "music.jsonl"], 0, str(pieces / "size.yaml"), out,
                        device="cpu", overrides=LM | {"optim.steps": 2})  # fmt: skip
    assert changed.facts["stages"]["tokens"]["reused"] and not changed.facts["stages"]["train"]["reused"]
    assert changed.facts["steps"] == 2


def test_few_pieces_and_one_seed_are_said(compared):
    _, found, _ = compared
    one_seed = [one for one in found if one.seed == 0]
    assert any("one training seed" in text for text in judge_all(one_seed)["warnings"])
    with pytest.raises(ValueError, match="every codec needs every seed"):
        judge_all(found[:3])


# ------------------------------------------------------------------ refusals


def test_a_folder_with_another_comparison_is_refused(compared, pieces, twin_folder, teacher_folder):
    _, _, out = compared
    with pytest.raises(XcodecLMError, match="holds another comparison: codecs differ"):
        run(pieces, [twin_folder, teacher_folder], out)


def test_an_unknown_codec_is_named_before_anything_is_made(pieces, twin_folder, tmp_path):
    with pytest.raises(XcodecLMError, match="no-such-codec: no such codec"):
        run(pieces, [twin_folder, "no-such-codec"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_codec_under_two_names_is_refused(pieces, twin_folder, tmp_path):
    with pytest.raises(UsageError, match="they are one codec"):
        run(pieces, [twin_folder, twin_folder / "." / ".." / twin_folder.name], tmp_path / "out")


@pytest.mark.parametrize("task, what", [("tts", "has a `text`"), ("sound", "has a `caption`")])
def test_a_corpus_without_what_the_task_needs_is_refused(pieces, twin_folder, other_folder, tmp_path, task, what):
    with pytest.raises(UsageError, match=what):
        run(pieces, [twin_folder, other_folder], tmp_path / "out", task=task)
    assert not (tmp_path / "out").exists()


def test_captions_without_labels_need_a_clap(pieces, tmp_path):
    from xcodec_lm.tasks.compare import sound

    rows = [{"id": f"s{split}", "audio": str(pieces / "0.wav"), "duration": 1.1, "split": split, "caption": "a tone"}
            for split in ("train", "test")]  # fmt: skip
    write_manifest(rows, tmp_path / "sound.jsonl")
    with pytest.raises(UsageError, match="no CLAP is given"):
        sound.check_corpus([tmp_path / "sound.jsonl"])
    sound.check_corpus([tmp_path / "sound.jsonl"], "clap-tiny")


def test_a_missing_extra_is_named(pieces, twin_folder, other_folder, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(XcodecLMError, match="jiwer") as refused:
        run(pieces, [twin_folder, other_folder], tmp_path / "out", task="tts")
    assert "xcodec-lm[eval]" in refused.value.hint


def test_codecs_of_different_rates_are_judged_at_the_lowest(capsys):
    from types import SimpleNamespace

    codecs = {name: SimpleNamespace(spec=SimpleNamespace(output_sample_rate=rate))
              for name, rate in (("a", 24_000), ("b", 16_000))}  # fmt: skip
    assert pipeline.common_rate(codecs) == 16_000
    assert "judged at 16000 Hz" in capsys.readouterr().err
    assert pipeline.common_rate({"a": codecs["a"]}) == 24_000


def test_an_unknown_size_or_task_is_told_apart(pieces, twin_folder, tmp_path):
    with pytest.raises(XcodecLMError, match="compare/huge"):
        load_size("huge")
    with pytest.raises(UsageError, match="no task is called 'speech'"):
        replicate("speech", twin_folder, [pieces / "music.jsonl"], out=tmp_path)  # type: ignore[arg-type]


def test_recordings_too_short_for_a_prompt_are_said(pieces, twin_folder, tmp_path):
    (tmp_path / "size.yaml").write_text("base: compare/quick\nmusic: {prompt_s: 5.0}\n")
    with pytest.raises(UsageError, match="no recording of split test lasts 9 s"):
        replicate("music", twin_folder, [pieces / "music.jsonl"], 0, str(tmp_path / "size.yaml"), tmp_path / "out",
                  device="cpu", overrides=LM)  # fmt: skip
