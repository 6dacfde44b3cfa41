"""What tests of text to sound share: labelled sounds made at run time, and a stand-in for CLAP."""

import hashlib

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.clips import write_manifest

RATE = 16_000
KINDS = {"hum": "a low hum", "whistle": "someone whistles", "clicks": "something clicks"}


def sound_of(kind, rng, seconds=0.8):
    """(N,) of a kind: no two are alike."""
    time = np.arange(round(seconds * RATE)) / RATE
    if kind == "hum":
        wav = sum(np.sin(2 * np.pi * rng.uniform(90, 130) * k * time + rng.uniform(0, 6)) / k for k in (1, 2, 3))
    elif kind == "whistle":
        wav = np.sin(2 * np.pi * (rng.uniform(1800, 2600) * time + np.sin(2 * np.pi * rng.uniform(3, 6) * time)))
    else:
        wav = np.zeros(len(time))
        wav[rng.integers(0, len(time) - 50, 6)] = 1
        wav = np.convolve(wav, np.exp(-np.arange(60) / 12) * rng.standard_normal(60))[: len(time)]
    wav = wav / np.abs(wav).max() * rng.uniform(0.2, 0.8)
    return (wav + 0.002 * rng.standard_normal(len(time))).astype(np.float32)


class StandIn:
    """Sounds as loudness in bands; captions as the mean of what sounds of that kind are like."""

    def __init__(self, name="stand-in", seed=0, trained_on=()):
        self.name, self.dim, self.sample_rate = name, 12, RATE
        self.fingerprint = hashlib.sha256(f"{name}{seed}".encode()).hexdigest()
        self.ancestry = {"seed": seed, "trained_on": [{"recording": list(trained_on)}], "weights_from": "none"}

    def embed_audio(self, wavs):
        rows = []
        for wav in wavs:
            bands = np.array_split(np.abs(np.fft.rfft(wav)), np.geomspace(20, len(wav) // 2, self.dim).astype(int)[:-1])
            means = np.array([band.mean() for band in bands])
            row = np.log(means / max(means.max(), 1e-6) + 0.02)
            rows.append(torch.from_numpy(row - row.mean()).float())
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def embed_texts(self, texts):
        rng, rows = np.random.default_rng(0), []
        for text in texts:
            kind = next((kind for kind, caption in KINDS.items() if caption.split()[-1] in text), "hum")
            rows.append(self.embed_audio([sound_of(kind, rng) for _ in range(4)]).mean(dim=0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


@pytest.fixture(scope="session")
def make_clap():
    """Makes stand-ins: `make_clap("judge", seed=1)`."""
    return StandIn


@pytest.fixture(scope="session")
def make_sound():
    """Makes sounds: `make_sound("hum", rng)`."""
    return sound_of


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """A manifest of three kinds of sounds: 18 train and 12 test, each a recording of its own."""
    folder = tmp_path_factory.mktemp("sounds")
    rng, rows = np.random.default_rng(0), []
    for number in range(30):
        kind = list(KINDS)[number % 3]
        sf.write(folder / f"{number}.wav", sound_of(kind, rng), RATE)
        row = {"id": f"s{number}", "audio": f"{number}.wav", "duration": 0.8, "split": "train", "label": kind}
        row |= {"caption": KINDS[kind], "recording": f"r{number}"}
        rows.append(row | ({} if number < 18 else {"split": "test"}))
    write_manifest(rows, folder / "sounds.jsonl")
    return folder / "sounds.jsonl"


@pytest.fixture(scope="session")
def class_judge(sounds):
    """A judge of the three kinds."""
    from xcodec_lm.codec.clips import read_manifests
    from xcodec_lm.tasks.sound.sound_class import train_sound_class

    return train_sound_class(read_manifests([sounds], "train"), steps=16)
