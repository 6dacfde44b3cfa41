"""Replications of speech and of sounds with models of a few steps: every system has its figures, for every item."""

import numpy as np
import pytest
import soundfile as sf

from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.tasks.compare import tts
from xcodec_lm.tasks.compare.job import JudgeFolder
from xcodec_lm.tasks.compare.metrics import statistic
from xcodec_lm.tasks.compare.replicate import replicate
from xcodec_lm.tasks.sound import sound_class
from xcodec_lm.tasks.tts.evaluate import Judges

RATE = 16_000
WORDS = ("one", "two", "three", "four")
LM = {"model.layers": 1, "model.dim": 16, "model.heads": 2, "model.mlp_dim": 32, "optim.steps": 2,
      "optim.warmup_steps": 1, "run.eval_every": 2, "run.save_every": 2, "run.log_every": 1}  # fmt: skip
SIZE = """
base: compare/quick
tts: {most: 4, min_s: 0.3}
sound: {most: 4, seconds: 0.4}
"""


class ByPitch:
    """A recogniser that hears "one two" in anything below 400 Hz and nothing else."""

    name, ancestry = "bypitch", {}

    def transcribe(self, wavs):
        peaks = [np.abs(np.fft.rfft(wav)).argmax() * RATE / len(wav) for wav in wavs]
        return ["one two" if peak < 400 else "" for peak in peaks]


@pytest.fixture
def size(tmp_path):
    (tmp_path / "size.yaml").write_text(SIZE)
    return str(tmp_path / "size.yaml")


def tones(folder, rows):
    """Writes a recording for each row, of the row's `hertz`, and the manifest."""
    for number, row in enumerate(rows):
        time = np.arange(int(0.5 * RATE)) / RATE
        noise = 0.01 * np.random.default_rng(number).standard_normal(len(time))
        wav = 0.3 * np.sin(2 * np.pi * row["hertz"] * time) + noise
        sf.write(folder / f"{number}.wav", wav.astype(np.float32), RATE)
        row |= {"id": f"c{number}", "audio": f"{number}.wav", "duration": 0.5}
    write_manifest(rows, folder / "rows.jsonl")
    return [folder / "rows.jsonl"]


def test_speech(tmp_path, size, twin_folder, monkeypatch):
    rows = [{"split": split, "speaker": f"{split}{number % 2}", "text": f"{WORDS[number % 4]} two", "hertz": 300}
            for split, count in (("train", 8), ("dev", 2), ("test", 6)) for number in range(count)]  # fmt: skip
    corpus = tones(tmp_path, rows)
    monkeypatch.setattr(tts, "load_judges", lambda *_: Judges(ByPitch(), None))
    overrides = LM | {"nar.dim": 16, "nar.heads": 2, "nar.layers": 1, "nar.mlp_dim": 32, "nar_optim.steps": 2,
                      "nar_optim.warmup_steps": 1, "data.max_s": 2.0}  # fmt: skip
    found = replicate("tts", twin_folder, corpus, 3, size, tmp_path / "out", judges=JudgeFolder(tmp_path, "fixed"),
                      device="cpu", overrides=overrides)  # fmt: skip
    systems = {"model", "first codebook", "recordings", "resynthesis", "shuffled", "untrained"}
    assert {item["system"] for item in found.items} == systems
    assert all(len(found.of(system)) == 4 for system in systems)  # `most`, two of each speaker
    assert sorted(item["unit"] for item in found.of("model")) == ["test0", "test0", "test1", "test1"]
    truth = {item["id"]: item for item in found.of("recordings")}
    assert all(item["errors"] == sum(a != b for a, b in zip(item["text"].split(), ["one", "two"], strict=True))
               for item in truth.values())  # fmt: skip
    wer = statistic(found, "wer", "recordings")
    assert wer is not None and wer.value == pytest.approx(sum(i["errors"] for i in truth.values()) / 8)
    assert found.facts["n_q"] == 3 and found.facts["audio_s"] > 0 and found.facts["seed"] == 3
    assert "errs on" in found.doubts["wer"]  # the recogniser hears "one" everywhere


def test_sounds(tmp_path, size, twin_folder, monkeypatch):
    monkeypatch.setattr(sound_class, "STEPS", 3)
    kinds = {"hum": 200, "whistle": 3000}
    rows = [{"split": split, "label": label, "caption": f"a {label}", "hertz": hertz, "recording": f"{split}{label}{n}"}
            for split, count in (("train", 7), ("dev", 1), ("test", 2)) for n in range(count)
            for label, hertz in kinds.items()]  # fmt: skip
    corpus = tones(tmp_path, rows)
    found = replicate("sound", twin_folder, corpus, 0, size, tmp_path / "out", device="cpu", overrides=LM)
    assert {"model", "resynthesis", "shuffled", "untrained", "recordings", "training recordings"} <= {
        item["system"] for item in found.items
    }
    assert {item["class"] for item in found.of("model")} <= {0.0, 1.0} and len(found.of("model")) == 4
    assert found.features["model"].shape == found.features["recordings"].shape and len(found.feature_units) == 4
    agreement = statistic(found, "class")
    assert agreement is not None and agreement.value == np.mean([item["class"] for item in found.of("model")])
    assert "class" in found.doubts  # three steps make no judge
    again = replicate("sound", twin_folder, corpus, 1, size, tmp_path / "out", device="cpu", overrides=LM)
    assert again.facts["stages"]["tokens"]["reused"]
    assert not np.array_equal(again.features["model"], found.features["model"])
    assert len(list((tmp_path / "out" / "judges").iterdir())) == 1  # one judge for both
