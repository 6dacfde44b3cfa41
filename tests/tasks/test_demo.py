"""The demo: every stage at the size of a minute, resumed, and on a corpus that holds nothing out."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.runtime.run import read_metrics
from xcodec_lm.tasks.cli import main
from xcodec_lm.tasks.demo import scores


@pytest.fixture(scope="module")
def demo(tmp_path_factory, speech_run):
    out = tmp_path_factory.mktemp("demo") / "demo"
    speech = speech_run(out.parent / "digits")
    assert main(["demo", "--quick", "--from-scratch", "--out", str(out), "--speak", str(speech)]) == 0
    return out


def test_every_stage_leaves_an_ordinary_run(demo):
    for name in (
        "corpus/music.jsonl",
        "codec/model/config.json",
        "tokens/store.json",
        "music/model/config.json",
        "report.html",
    ):
        assert (demo / name).is_file(), name
    assert len(list((demo / "samples").glob("*-continuation.flac"))) == 2
    assert sf.info(demo / "samples" / "00-continuation.flac").duration == pytest.approx(6.0, abs=0.02)
    assert sf.info(demo / "samples" / "00-prompt.flac").duration == pytest.approx(2.0)
    for run in ("codec", "music"):
        assert (
            (demo / run / "command.txt")
            .read_text()
            .startswith(f"xcodec-lm {run} train {'x' if run == 'codec' else ''}")
        )


def test_report_says_what_it_must(demo):
    page = (demo / "report.html").read_text()
    assert "untrained teacher: no semantic claim" in page
    for words in (
        "shaped noise",
        "bigram",
        "untrained model",
        "repeat last frame",
        "shuffled tokens",
        "silence",
        "unigram",
    ):
        assert words in page, words
    assert page.count("<audio") >= 2 * 7
    assert "xcodec-lm codec train xcodec/quick" in page


def test_the_page_of_speech_and_the_report_lead_to_each_other(demo):
    pytest.importorskip("espeakng_loader")
    speech = (demo / "speak.html").read_text()
    assert '<a href="speak.html">Speech</a>' in (demo / "report.html").read_text()
    assert '<a href="report.html">Music</a>' in speech and "digits on tiny-twin: AR+NAR" in speech
    assert "No recogniser listened" in speech


def test_figures_are_those_of_real_systems(demo):
    values = json.loads((demo / "scores.json").read_text())
    assert set(values["reconstruction"]) == {"n_q 1", "n_q 2", "n_q 4", "n_q 8"}
    assert values["bits_per_token"]["untrained model"] == pytest.approx(10, abs=0.3)  # uniform over 1024 codes
    assert values["texture"]["codec, real tokens"] < values["texture"]["silence"]
    assert all(np.isfinite(value) for value in [*values["texture"].values(), *values["bits_per_token"].values()])


def test_second_call_repeats_nothing(demo, capsys):
    before = {name: read_metrics(demo / name) for name in ("codec", "music")}
    tokens = (demo / "tokens" / "shard-00000.bin").read_bytes()
    speech = str(demo.parent / "digits")
    assert main(["demo", "--quick", "--from-scratch", "--out", str(demo), "--speak", speech]) == 0
    assert {name: read_metrics(demo / name) for name in before} == before
    assert (demo / "tokens" / "shard-00000.bin").read_bytes() == tokens
    assert capsys.readouterr().out.strip() == f"report: {demo / 'report.html'}"


def test_other_settings_in_the_same_folder_are_refused(demo, capsys):
    assert main(["demo", "--quick", "--from-scratch", "--seed", "1", "--out", str(demo)]) == 1
    assert "error:" in capsys.readouterr().err


def test_the_shipped_codec_is_not_trained(tmp_path):
    out = tmp_path / "demo"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    assert not (out / "codec").exists()
    page = (out / "report.html").read_text()
    assert "xcodec-tiny ships with the toolkit" in page and "untrained teacher" not in page


def test_corpus_without_held_out_recordings_is_refused(tmp_path, capsys):
    sf.write(tmp_path / "a.wav", np.zeros(16000 * 7, np.float32), 16000)
    write_manifest([{"id": "a", "audio": "a.wav", "duration": 7.0, "split": "train"}], tmp_path / "m.jsonl")
    assert main(["demo", "--corpus", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "demo")]) == 1
    assert "no row with split: test or dev lasts 6 s" in capsys.readouterr().err


def test_excerpts_are_spread_over_recordings(tmp_path):
    rows = []
    for name, seconds in (("a", 13), ("b", 6.5), ("c", 3)):
        sf.write(tmp_path / f"{name}.wav", np.zeros(int(16000 * seconds), np.float32), 16000)
        rows.append({"id": name, "audio": f"{name}.wav", "duration": seconds, "piece": f"piece {name}"})
    write_manifest(rows, tmp_path / "m.jsonl")
    clips = scores.read_manifests([Path(tmp_path / "m.jsonl")])
    names = [excerpt.name for excerpt in scores.cut_excerpts(clips, 16000, 5, 6.0)]
    assert names == ["a from 0 s", "b from 0 s", "a from 6 s"]
    assert all(len(e.original) == 96000 for e in scores.cut_excerpts(clips, 16000, 5, 6.0))
    assert torch.equal(scores.cut_excerpts(clips, 16000, 1, 6.0)[0].original, torch.zeros(96000))
