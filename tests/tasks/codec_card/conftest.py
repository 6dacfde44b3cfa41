"""A codec of two layers whose codes can be worked out by hand, and a corpus of tones that stand for words."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec.tokens import AudioTokens, Features, TokenSpec

RATE, HOP = 16_000, 32


class Digits:
    """Two digits, of base 8, of every hop's first sample; its vectors are spectra of 40 decoded samples."""

    causal, lookahead_frames = True, 0
    features = ("post_vq", "pre_vq")

    def __init__(self, name="digits", spoil=0.0):
        self.spec = TokenSpec(name, RATE, RATE, HOP, (8, 8), fingerprint=name)
        self.spoil = spoil

    def frames(self, samples):
        return math.ceil(samples / HOP)

    def encode(self, wav, lengths=None, n_q=None, *, sample_rate=None):
        level = ((wav[0, 0, ::HOP].clamp(-0.999, 0.999) + 1) * 4).double()
        coarse = level.floor()
        codes = torch.stack([coarse, ((level - coarse) * 8).floor()]).long()[None]
        return AudioTokens(codes, torch.tensor([codes.shape[2]]), self.spec, torch.tensor([wav.shape[2]]))

    def _levels(self, tokens):
        codes = tokens.codes[0].double()
        level = codes[0] + (codes[1] + 0.5) / 8 if len(codes) > 1 else codes[0] + 0.5
        return (level / 4 - 1).float()

    def decode(self, tokens):
        wav = self._levels(tokens).repeat_interleave(HOP)
        wav = wav + self.spoil * torch.randn(len(wav), generator=torch.Generator().manual_seed(0))
        return wav.clamp(-1, 1)[None, None], torch.tensor([len(wav)])

    def stream_decoder(self, batch=1):
        raise AssertionError("not asked for here")

    def extract(self, source, feature, n_q=None, lengths=None):
        tokens = source if isinstance(source, AudioTokens) else self.encode(source)
        levels = self._levels(tokens if n_q is None else tokens.take(n_q))
        frames = levels[: len(levels) // 10 * 10].view(-1, 10)
        return Features(frames.T[None], torch.tensor([len(frames)]), Fraction(RATE, HOP * 10))


@pytest.fixture
def digits():
    """Makes the codec: `digits(name, spoil)`."""
    return Digits


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A manifest of two words, a low and a high tone, by 10 speakers of their own level; four of them in train."""
    folder = tmp_path_factory.mktemp("card")
    rows = []
    for speaker in range(10):
        for take in range(2):
            for word, hertz in (("low", 50), ("high", 220)):
                name = f"{speaker}-{word}-{take}"
                rng = np.random.default_rng([speaker, take, hertz])
                time = np.arange(RATE // 5) / RATE
                wav = (0.2 + 0.05 * speaker) * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6))
                sf.write(folder / f"{name}.wav", wav + 0.01 * rng.standard_normal(len(time)), RATE)
                rows.append({"id": name, "audio": f"{name}.wav", "duration": 0.2, "text": word,
                             "speaker": f"s{speaker}", "split": "train" if speaker < 4 else "test"})  # fmt: skip
    path = folder / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Ear:
    """Hears a tone's word by its pitch; below a level it hears nothing."""

    name, ancestry = "ear", {"made_from": "a rule"}

    def transcribe(self, wavs):
        texts = []
        for wav in wavs:
            spectrum = np.abs(np.fft.rfft(wav - wav.mean(), RATE))
            texts.append("low" if spectrum[40:60].max() > spectrum[210:230].max() else "high")
        return texts


class Level:
    """Tells speakers by how loud they are: a speaker's likeness to another falls with the distance of levels."""

    name, ancestry = "level", {"made_from": "a rule"}

    def embed(self, wavs):
        bands = [np.abs(np.fft.rfft(wav, 400))[:20] + 1e-6 for wav in wavs]
        return np.stack([(band / np.linalg.norm(band)).astype(np.float32) for band in bands])


@pytest.fixture
def ear():
    return Ear()


@pytest.fixture
def level():
    return Level()
