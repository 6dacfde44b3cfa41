"""Plug-ins whose weights come inside optional packages: front ends without these, and the whole where installed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_references import hann, random_state, slaney_bank

from xcodec_lm.configs.errors import AudioError, XcodecLMError
from xcodec_lm.tasks.eval import registry
from xcodec_lm.tasks.eval.backbones import dnsmos, pocketsphinx, resemblyzer
from xcodec_lm.tasks.eval.backbones.weights import need_package

RATE = 16_000


def noise(seconds, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("module", [dnsmos, pocketsphinx, resemblyzer])
def test_what_is_missing_is_told_with_the_line_that_installs_it(module, monkeypatch):
    import importlib.util

    name = module.__name__.rsplit(".", 1)[1]
    entry = registry.find(name)
    assert entry.install == module.INSTALL
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(XcodecLMError) as caught:
        entry.load()
    assert caught.value.hint == module.INSTALL and name in caught.value.message


def test_a_package_that_does_not_import_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "halfbuilt.py").write_text("import surely_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(XcodecLMError, match=r"halfbuilt cannot be imported: .*surely_not_there"):
        need_package("halfbuilt", "pip install halfbuilt")
    with pytest.raises(XcodecLMError, match="nowhere_to_be_found is not installed"):
        need_package("nowhere_to_be_found", "pip install it")


# ------------------------------------------------------------------ DNSMOS


@pytest.mark.parametrize(
    ("seconds", "count"), [(0.1, 3), (5.0, 1), (9.01, 1), (9.5, 1), (10.99, 1), (11.0, 2), (12.5, 3), (60.0, 51)]
)
def test_windows_of_dnsmos(seconds, count):
    wav = torch.from_numpy(noise(seconds))
    found = dnsmos.windows(wav)
    assert found.shape == (count, 144_160)
    if len(wav) < 144_160:  # doubled, so it begins again where it ended
        rest = found[0, len(wav) : 2 * len(wav)]
        assert torch.equal(found[0, : len(rest)], rest)
    for index in range(count if seconds > 9 else 0):
        assert torch.equal(found[index], wav[index * RATE :][:144_160])


def test_spectrum_of_p808_equals_its_definition():
    wav = noise(9.01)
    (found,) = dnsmos.p808_features(torch.from_numpy(wav)[None]).numpy()
    padded = np.pad(wav[:144_000].astype(np.float64), 160)
    bank = slaney_bank(RATE, 321, 120, 0, 8000)
    rows = [np.abs(np.fft.rfft(padded[160 * t : 160 * t + 321] * hann(321))) ** 2 @ bank for t in range(900)]
    decibels = 10 * np.log10(np.maximum(np.array(rows), 1e-10))
    expected = (np.maximum(decibels - decibels.max(), -80) + 40) / 40
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (900, 120) and found.max() == 1.0
    silent = dnsmos.p808_features(torch.zeros(1, 144_160))
    assert torch.equal(silent, torch.ones(1, 900, 120))  # nothing is louder than anything else


class FakeRuntime:
    """Networks that answer 3, 3, 3 and 2.5."""

    class SessionOptions:
        intra_op_num_threads = inter_op_num_threads = 0

    class InferenceSession:
        def __init__(self, path, options, providers):
            self.p835 = "sig_bak_ovr" in path
            assert options.intra_op_num_threads == 1

        def run(self, _, given):
            rows = len(given["input_1"])
            assert rows <= dnsmos.BATCH
            return [np.full((rows, 3) if self.p835 else (rows, 1), 3.0 if self.p835 else 2.5, np.float32)]


def test_dnsmos_calibrates_and_averages(tmp_path, monkeypatch):
    for name in (dnsmos.P835, dnsmos.P808):
        (tmp_path / name).write_bytes(b"weights")
    monkeypatch.setattr(dnsmos, "need_package", lambda *_: FakeRuntime)
    judge = dnsmos.load(tmp_path)
    clips = [noise(0.5), noise(25.0), np.full(RATE, 1.4, np.float32)]
    # a x^2 + b x + c at 3, by hand
    expected = {"ovrl": 2.78345, "sig": 2.91200, "bak": 3.24640, "p808": 2.5}
    for found in judge.predict(clips):
        assert list(found) == ["ovrl", "sig", "bak", "p808"]
        assert found == pytest.approx(expected, abs=1e-4)
    with pytest.raises(AudioError):
        judge.predict([np.array([np.nan], np.float32)])
    with pytest.raises(XcodecLMError, match=re.escape(dnsmos.P835)):
        dnsmos.load(tmp_path / "empty")


# ------------------------------------------------------------------ Resemblyzer


def test_pauses_are_cut_by_votes():
    """Five of eight windows make one voiced, and three more on either side stay."""
    votes = np.zeros(40, bool)
    votes[20:25] = True  # five in a row: the mean of eight is above one half where all five are within
    kept = np.flatnonzero(resemblyzer.keep_voiced(votes))
    assert (kept.min(), kept.max()) == (20 - 3, 23 + 3)
    votes[24] = False  # four of eight are not more than half
    assert not resemblyzer.keep_voiced(votes).any()
    assert resemblyzer.keep_voiced(np.ones(9, bool)).all() and not len(resemblyzer.keep_voiced(np.zeros(0, bool)))


@pytest.mark.parametrize(("seconds", "count"), [(0.1, 1), (1.6, 1), (1.9, 1), (2.0, 2), (2.4, 2), (3.2, 3), (60.0, 77)])
def test_stretches_of_resemblyzer(seconds, count):
    wav = noise(seconds)
    found = resemblyzer.stretches(torch.from_numpy(wav)).numpy()
    assert found.shape == (count, 160, 40)
    padded = np.pad(wav.astype(np.float64), (200, 30_000))
    bank = slaney_bank(RATE, 400, 40, 0, 8000)
    for row, frame in ((0, 0), (0, 5), (count - 1, 7)):
        start = 160 * (77 * row + frame)
        expected = np.abs(np.fft.rfft(padded[start : start + 400] * hann(400))) ** 2 @ bank
        np.testing.assert_allclose(found[row, frame], expected, rtol=1e-4, atol=1e-7)


def test_resemblyzer_reads_its_file_strictly(tmp_path, monkeypatch):
    shapes = {"similarity_weight": (1,), "similarity_bias": (1,), "linear.weight": (6, 5), "linear.bias": (6,)}
    for layer, size in enumerate((40, 5, 5)):
        shapes |= {f"lstm.weight_ih_l{layer}": (20, size), f"lstm.weight_hh_l{layer}": (20, 5)}
        shapes |= {f"lstm.bias_ih_l{layer}": (20,), f"lstm.bias_hh_l{layer}": (20,)}
    state = random_state(shapes)
    path = tmp_path / "pretrained.pt"

    class Detector:
        class Vad:
            def __init__(self, mode):
                assert mode == 3

            def is_speech(self, samples, rate):
                assert (len(samples), rate) == (960, RATE)
                return bool(np.abs(np.frombuffer(samples, np.int16)).max() > 100)

    monkeypatch.setattr(resemblyzer, "need_package", lambda *_: Detector)
    torch.save({"step": 5, "model_state": state, "optimizer_state": {"state": {}, "param_groups": []}}, path)
    judge = resemblyzer.load(path)
    speech = noise(2.0)
    paused = np.concatenate([speech, np.zeros(3 * RATE, np.float32)])
    found = judge.embed([speech, paused, np.zeros(RATE, np.float32), noise(0.02)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found[0] @ found[1] > 0.999  # the pause is not heard
    np.testing.assert_array_equal(judge.embed([speech]), found[:1])
    for key in ("lstm.weight_hh_l1", "linear.bias"):
        torch.save({"model_state": {name: value for name, value in state.items() if name != key}}, path)
        with pytest.raises(XcodecLMError, match=key.replace(".", r"\.")):
            resemblyzer.load(path)


# ------------------------------------------------------------------ with the packages


def clips_of(corpus, source, split, count):
    from xcodec_lm.codec.audio import load_audio
    from xcodec_lm.codec.clips import read_manifests

    rows = [clip for clip in read_manifests([corpus / "speech.jsonl"], split) if clip.row.get("source") == source]
    return [(clip, load_audio(clip.path, RATE).wav[0].numpy()) for clip in rows[:count]]


@pytest.fixture(scope="module")
def corpus():
    import os

    if not os.environ.get("XCODEC_LM_CORPUS"):
        pytest.skip("XCODEC_LM_CORPUS is not set")
    return Path(os.environ["XCODEC_LM_CORPUS"])


def test_pocketsphinx_hears_words_and_forgets_clips(corpus):
    pytest.importorskip("pocketsphinx")
    judge = pocketsphinx.load()
    pairs = clips_of(corpus, "rhasspy/dataset-voice-kathleen", "dev", 3)
    wavs = [wav for _, wav in pairs]
    heard = judge.transcribe([*wavs, np.zeros(RATE, np.float32), noise(0.1)])
    assert heard[3] == ""
    assert heard[:3] == [judge.transcribe([wav])[0] for wav in reversed(wavs)][::-1]
    said = [set(clip.row["text"].split()) for clip, _ in pairs]
    right = [words & set(text.split()) for words, text in zip(said, heard, strict=False)]
    assert sum(map(len, right)) > 0.4 * sum(map(len, said))
    assert len(judge.fingerprint) == 64


def test_dnsmos_orders_noise_and_equals_its_package(corpus):
    pytest.importorskip("onnxruntime")
    package = pytest.importorskip("speechmos")
    judge = dnsmos.load()
    ((_, wav),) = clips_of(corpus, "resemble-ai/Resemblyzer", "dev", 1)
    level = float(np.sqrt((wav**2).mean()))
    noisy = [np.clip(wav + noise(len(wav) / RATE, level=level * 10 ** (-snr / 20)), -1, 1) for snr in (20, 5)]
    scores = [row["ovrl"] for row in judge.predict([wav, *noisy])]
    assert scores[0] > scores[1] > scores[2]
    assert package is not None
    try:
        from speechmos import dnsmos as theirs
    except ImportError:
        pytest.skip("the package's own code needs librosa")
    expected = theirs.run(wav, RATE)
    found = judge.predict([wav])[0]
    for name, other in (("ovrl", "ovrl_mos"), ("sig", "sig_mos"), ("bak", "bak_mos"), ("p808", "p808_mos")):
        assert found[name] == pytest.approx(float(expected[other]), abs=2e-3)


def test_resemblyzer_tells_voices_apart(corpus):
    pytest.importorskip("webrtcvad")
    import importlib.util

    if importlib.util.find_spec("resemblyzer") is None:
        pytest.skip("resemblyzer is not installed")
    judge = resemblyzer.load()
    pairs = clips_of(corpus, "resemble-ai/Resemblyzer", "test", 40)
    vectors = judge.embed([wav for _, wav in pairs])
    scores = vectors @ vectors.T
    names = np.array([clip.row["speaker"] for clip, _ in pairs])
    same = (names[:, None] == names) & ~np.eye(len(names), dtype=bool)
    assert scores[same].mean() > scores[names[:, None] != names].mean() + 0.1
