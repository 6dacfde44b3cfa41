"""ARCH from audio to accuracy: padding, caching, missing and broken files, and the command."""

import json
from fractions import Fraction

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.tokens import Features
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.commands.arch import eval_arch, format_arch
from xcodec_lm.tasks.eval import linear_head
from xcodec_lm.tasks.eval.arch import ArchSource, embed, run_arch
from xcodec_lm.tasks.eval.arch_sets import read_set
from xcodec_lm.tasks.eval.linear_head import Recipe

RATE, SAMPLES = 8_000, 1920


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(linear_head.RECIPES, "masked", Recipe(60, 64, 5e-2, True))
    monkeypatch.setitem(linear_head.RECIPES, "arch", Recipe(60, 16, 5e-2, False))


@pytest.fixture
def emovo(tmp_path, arch_tree):
    """Three speakers and two emotions, a low and a high tone of a quarter of a second, a whole number of frames."""
    root = tmp_path / "sets" / "EMOVO"
    arch_tree("emovo", root)
    for speaker in ("f1", "f2", "m1"):
        for emotion in ("dis", "gio"):
            for number in range(17):  # with the tree's three, 20; fewer leave too little to validate on
                (root / speaker / f"{emotion}-{speaker}-n{number}.wav").touch()
    for path in root.glob("*/*.wav"):
        time = np.arange(SAMPLES) / RATE
        rng = np.random.default_rng(list(path.stem.encode()))
        tone = 0.3 * np.sin(2 * np.pi * (300 if "dis" in path.stem else 1500) * time)
        sf.write(path, tone + 0.01 * rng.standard_normal(len(time)), RATE)
    return root


def source(name="spectra", noise=0.0, fingerprint="f" * 64, calls=None):
    """Logarithms of the levels of eight bands of frames of 160 samples."""

    def extract(wav):
        if calls is not None:
            calls.append(wav.shape[2])
        frames = wav[0, 0, : wav.shape[2] // 160 * 160].view(-1, 160)
        spectra = (torch.fft.rfft(frames).abs()[:, 1:].reshape(-1, 8, 10).sum(2) + 1e-3).log()
        if noise:
            rng = torch.Generator().manual_seed(round(float(wav.abs().sum() * 1e4)))
            spectra = noise * torch.randn(spectra.shape, generator=rng)
        return {"spectra": Features(spectra.T[None], torch.tensor([len(spectra)]), Fraction(50))}

    return ArchSource(name, RATE, fingerprint, ("spectra",), extract)


@pytest.mark.parametrize("preset", ["masked", "arch"])
def test_what_is_in_the_audio_is_found(preset, emovo):
    rows = run_arch([source(), source("noise", noise=1.0, fingerprint="")], [read_set("emovo", emovo)], preset, (0, 1))
    heard, noise = rows
    assert heard["value"] >= {"masked": 100, "arch": 60}[preset]  # 80 rows are few for the small steps of `arch`
    assert heard["metric"] == "accuracy" and heard["classes"] == 2
    assert (heard["recordings"], heard["units"], heard["unit"], len(heard["by_fold"])) == (120, 3, "speaker", 3)
    assert len(heard["by_seed"]) == 2 and heard["low"] <= heard["value"] <= heard["high"]
    assert 5 < noise["value"] < 95 and noise["chance"] == 50
    assert noise["difference"]["value"] == pytest.approx(heard["value"] - noise["value"])
    assert noise["difference"]["verdict"] == "not decidable"  # three speakers
    text = format_arch(rows)
    assert "emovo: accuracy, 2 classes, 120 recordings, chance 50.0" in text and "the first is" in text


def test_padding_is_averaged_in_by_one_preset_only(emovo):
    data = read_set("emovo", emovo)
    calls = []
    masked, _ = embed(source(calls=calls), data, "masked")
    padded, _ = embed(source(calls=calls), data, "arch")
    assert set(calls[:120]) == {SAMPLES} and set(calls[120:]) == {5 * RATE}
    silence = torch.log(torch.tensor(1e-3))
    share = SAMPLES / (5 * RATE)
    torch.testing.assert_close(padded["spectra"], share * masked["spectra"] + (1 - share) * silence, rtol=0, atol=1e-3)


def test_vectors_are_kept_until_something_changes(emovo, tmp_path):
    calls = []
    made = source(calls=calls)
    first, _ = embed(made, read_set("emovo", emovo), "masked", tmp_path / "kept")
    again, _ = embed(made, read_set("emovo", emovo), "masked", tmp_path / "kept")
    assert len(calls) == 120 and torch.equal(first["spectra"], again["spectra"])
    embed(source(calls=calls, fingerprint="e" * 64), read_set("emovo", emovo), "masked", tmp_path / "kept")
    assert len(calls) == 240


def test_broken_files_are_counted_and_the_rest_stays_in_place(emovo, tmp_path):
    (emovo / "f1" / "dis-f1-b1.wav").write_bytes(b"no audio")
    data = read_set("emovo", emovo)
    for _ in range(2):  # the second time from what was kept
        vectors, failed = embed(source(), data, "masked", tmp_path / "kept")
        assert list(failed) == ["f1/dis-f1-b1.wav"] and torch.isnan(vectors["spectra"]).any(dim=1).sum() == 1
    (row,) = run_arch([source()], [data], "masked", (0,))
    assert row["recordings"] == 119 and row["failed_ids"] == ["f1/dis-f1-b1.wav"] and row["value"] == 100
    for path in emovo.glob("*/*.wav"):
        path.write_bytes(b"")
    with pytest.raises(XcodecLMError, match="no recording can be read"):
        run_arch([source()], [data])


def test_several_labels_give_mean_average_precision(tmp_path, arch_tree):
    root = tmp_path / "FSD50K"
    arch_tree("fsd50k", root)
    data = read_set("fsd50k", root)
    for row in data.rows:
        hertz = 1500 if "Dog" in row.labels else 300
        sf.write(row.path, 0.3 * np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE), RATE)
    (row,) = run_arch([source()], [data], "masked", (0,))
    assert row["metric"] == "mAP" and row["value"] == pytest.approx(100) and row["low"] is None
    assert row["chance"] == 50 and row["classes"] == 3


def test_command(emovo, tmp_path, twin_folder, capsys):
    out = tmp_path / "out"
    arguments = {"codecs": (str(twin_folder),), "features": ("post_vq", "pre_vq"), "seeds": 1, "device": "cpu"}
    result = eval_arch(emovo.parent, out, **arguments)
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["feature"] for row in rows] == ["post_vq n_q 4", "pre_vq"] and rows == result.data["rows"]
    assert (out / "splits.json").is_file() and len(list((out / "vectors").iterdir())) == 1
    assert "esc50 is left out: it is not in" in capsys.readouterr().err
    with pytest.raises(XcodecLMError, match="esc50 is not in"):
        eval_arch(emovo.parent, out, datasets=("esc50",), **arguments)
    with pytest.raises(XcodecLMError, match="no data set is called 'esc51'"):
        eval_arch(emovo.parent, out, datasets=("esc51",), **arguments)
    with pytest.raises(XcodecLMError, match="has none of the features"):
        eval_arch(emovo.parent, out, **arguments | {"features": ("ssl",)})
