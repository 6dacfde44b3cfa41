"""`codec card`: words and voices of the resynthesis, the whole card, its page and the command."""

import json

import numpy as np
import pytest

from xcodec_lm.codec.clips import read_manifest
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.commands.codec_card import codec_card
from xcodec_lm.tasks.eval import codec_card as card
from xcodec_lm.tasks.eval import probe, signal
from xcodec_lm.tasks.eval.codec_card import CardSettings, measure_card
from xcodec_lm.tasks.eval.codec_card_page import card_report, format_card
from xcodec_lm.tasks.eval.resynthesis import judged
from xcodec_lm.tasks.report import render_html

SETTINGS = CardSettings(clips=12, fit_clips=8, word_clips=24, per_class=20, shaken_clips=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(probe, "ITERATIONS", 5)
    monkeypatch.setattr(probe, "PENALTIES", (0.1,))
    monkeypatch.setattr(signal, "missing_libraries", lambda: ("pystoi", "pesq"))


def spoken(words):
    return [clip for clip in read_manifest(words) if clip.split == "test"]


def test_words_and_voices_get_worse_with_the_codec(digits, words, ear, level):
    codecs = {"codec": digits(), "against": digits("spoilt", spoil=30.0)}
    found = judged(codecs, spoken(words), (1, 2), ear, level)
    assert found["clips"] == 24 and found["speakers"] == 6
    assert found["recordings"]["wer"]["value"] == 0 and found["recordings"]["others"]["value"] < 1
    assert found["codec"]["n_q 2"]["wer"]["value"] == 0 < found["against"]["n_q 2"]["wer"]["value"]
    assert found["against"]["n_q 2"]["sim"]["value"] < found["codec"]["n_q 2"]["sim"]["value"] <= 1
    assert found["difference"]["n_q 2"]["wer"]["value"] == -found["against"]["n_q 2"]["wer"]["value"]
    assert found["difference"]["n_q 2"]["wer"]["verdict"] == "not decidable"  # six speakers
    assert found["judges"]["recogniser"] == "ear" and found["judges"]["voices"] == "level"


def test_a_recogniser_that_errs_gives_figures_and_no_verdict(digits, words, ear):
    ear.transcribe = lambda wavs: ["something else"] * len(wavs)
    codecs = {"codec": digits(), "against": digits("other")}
    found = judged(codecs, spoken(words), (2,), ear, None)
    assert found["recordings"]["wer"]["value"] == 200
    assert found["difference"]["n_q 2"]["wer"]["verdict"].startswith("withheld")
    assert "sim" not in found["codec"]["n_q 2"]


def test_nobody_who_hears_and_nothing_to_hear(digits, words, ear):
    assert judged({"codec": digits()}, spoken(words), (1,), None, None) is None
    assert judged({"codec": digits()}, spoken(words), (1,), ear, None, clip_s=0.1) is None


def test_card_of_two_codecs(digits, words, ear, level, read_page):
    codecs = {"codec": digits(), "against": digits("spoilt", spoil=0.3)}
    data = measure_card(codecs, [words], SETTINGS, transcriber=ear, embedder=level)
    json.dumps(data, allow_nan=False)
    assert data["n_q"] == [1, 2] and data["codecs"]["codec"]["tokens_per_s"] == 1000
    domain = data["domains"]["words"]
    assert (
        domain["clips"] == 12 and domain["codec"]["n_q 2"]["mel"]["value"] < domain["against"]["n_q 2"]["mel"]["value"]
    )
    assert {(row["mode"], row["feature"]) for row in data["abx"]} >= {("within", "post_vq"), ("across", "codes")}
    assert {row["n_q"] for row in data["probes"] if row["feature"] == "post_vq"} == {1, 2}
    assert data["codes"]["codec"] == data["codes"]["against"]  # it spoils what it decodes, not what it encodes
    assert data["robustness"]["codec"]["clips"] == 2
    assert data["decoding"]["codec"]["seconds_per_second"] > 0
    text = format_card(data)
    assert "word errors of resynthesis [%], n_q 2 (lower is better)" in text and "digits" in text and "spoilt" in text
    page = read_page(render_html(card_report(data, "xcodec-lm codec card digits")))
    for words_of_it in ("digits and spoilt: a tokenizer for language models", "ABX errors in percent",
                        "Linear probes", "Codes of digits", "Equal codes of spoilt", "What judges hear",
                        "6 in words: not decidable", "Fewer bits are not better"):  # fmt: skip
        assert words_of_it in page.text
    assert not [attrs for attrs in page.all("script") if attrs.get("src")]


def test_card_of_one_codec_without_judges(digits, words, read_page):
    data = measure_card({"codec": digits()}, [words], SETTINGS)
    json.dumps(data, allow_nan=False)
    assert data["judged"] is None and "against" not in data["domains"]["words"]
    page = read_page(render_html(card_report(data, "c")))
    assert "Words and voices were not judged" in page.text and "difference" not in page.text


def test_counts_come_from_train(digits, words, monkeypatch):
    seen = []
    monkeypatch.setattr(card, "code_statistics", lambda spec, fitted, measured: seen.append((fitted, measured)) or {})
    measure_card({"codec": digits()}, [words], SETTINGS)
    (fitted, measured) = seen[0]
    assert (len(fitted), len(measured)) == (8, 12)
    clips = {clip.id: clip for clip in read_manifest(words)}
    chosen = card._fitted([words], set(), 100)
    assert {clips[clip.id].split for clip in chosen} == {"train"} and len(chosen) == 16


def test_words_are_taken_evenly(words):
    clips = spoken(words)
    chosen = card._words(clips, 12)
    assert len({(clip.row["text"], clip.row["speaker"]) for clip in chosen}) == 12


def test_command(twin_folder, other_folder, words, tmp_path, monkeypatch):
    for name in ("fit_clips", "word_clips", "per_class", "clips"):
        monkeypatch.setattr(CardSettings, name, 6)
    result = codec_card(
        str(twin_folder), (words,), tmp_path / "card", against=str(other_folder), quick=True, device="cpu", clips=6
    )
    data = json.loads((tmp_path / "card" / "card.json").read_text())
    assert data["codecs"]["codec"]["parameters"] > 0 and data["command"].startswith("xcodec-lm codec card")
    assert np.isfinite(data["encoding"]["ratio"]["value"]) and "index.html" in result.text
    assert "<!doctype html>" in (tmp_path / "card" / "index.html").read_text().lower()
    with pytest.raises(UsageError, match="at least one manifest"):
        codec_card(str(twin_folder), (), tmp_path)
    with pytest.raises(UsageError, match="must be positive"):
        codec_card(str(twin_folder), (words,), tmp_path, clips=0)
