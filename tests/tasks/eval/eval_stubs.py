"""Plug-ins that are small enough to foresee: a recogniser of tones, a judge of voices, opinions, classes, captions."""

import hashlib

import numpy as np
import torch

from xcodec_lm.tasks.eval.judge_audio import check_clips, is_silent
from xcodec_lm.tasks.eval.plugins import EmbedderBase
from xcodec_lm.tasks.eval.registry import Entry

RATE = 16_000
WORDS = {"one": 400, "two": 700, "three": 1100, "four": 1600}
WORD_S = 0.2
KNOWN = {"trained_on": [{"speaker": ["heard"]}], "weights_from": "none", "seed": 5}


def say(text, level=0.3):
    """(N,) a tone for each word."""
    time = np.arange(round(WORD_S * RATE)) / RATE
    return np.concatenate([level * np.sin(2 * np.pi * WORDS[word] * time) for word in text.split()]).astype(np.float32)


class Tones:
    name, sample_rate, fingerprint = "tones", RATE, hashlib.sha256(b"tones").hexdigest()

    def __init__(self, ancestry=None, deaf=False):
        self.ancestry, self.deaf = ancestry or {}, deaf

    def transcribe(self, wavs):
        texts = []
        for wav in check_clips(wavs):
            if is_silent(wav):
                texts.append("")
                continue
            size = round(WORD_S * RATE)
            pieces = [wav[start : start + size] for start in range(0, len(wav) - size // 2, size)]
            texts.append("four four" if self.deaf else " ".join(self._word(piece) for piece in pieces))
        return texts

    def _word(self, piece):
        spectrum = torch.fft.rfft(piece, RATE).abs()
        return max(WORDS, key=lambda word: float(spectrum[WORDS[word] - 5 : WORDS[word] + 6].max()))


class Spectrum(EmbedderBase):
    """A vector of 12 bands; its classes are the words."""

    classes = tuple(WORDS)

    def __init__(self):
        super().__init__("bands", 12, RATE, hashlib.sha256(b"bands").hexdigest())

    def frames(self, wav):
        (clip,) = check_clips([wav])
        pieces = clip[: len(clip) // 1600 * 1600].view(-1, 1600) if len(clip) >= 1600 else clip[None]
        power = torch.fft.rfft(pieces, 1600).abs()[:, :240].unflatten(1, (12, 20)).mean(dim=2)
        return (power + 1e-3).log().numpy().astype(np.float32)

    def class_logits(self, wav):
        (clip,) = check_clips([wav])
        spectrum = torch.fft.rfft(clip, RATE).abs()
        return np.array([float(spectrum[hz - 5 : hz + 6].max()) for hz in WORDS.values()], np.float32) / 100


class Voices:
    name, sample_rate, fingerprint, ancestry = "loudness", RATE, "v" * 64, {}

    def embed(self, wavs):
        vectors = [np.array([1.0, 10 * float(wav.square().mean().sqrt())]) for wav in check_clips(wavs)]
        return np.stack([vector / np.linalg.norm(vector) for vector in vectors]).astype(np.float32)


class Opinions:
    name, sample_rate, fingerprint, ancestry = "peaks", RATE, "", {}
    scores = ("ovrl", "sig")

    def predict(self, wavs):
        return [{"ovrl": 5 - 4 * float(wav.diff().abs().mean()) if len(wav) > 1 else 1.0, "sig": 3.0}
                for wav in check_clips(wavs)]  # fmt: skip


class Captions:
    """Captions that name a word match sounds of its tone."""

    name, sample_rate, fingerprint, ancestry, dim = "toneclap", RATE, "c" * 64, {}, 4

    def embed_texts(self, texts):
        found = torch.tensor([[float(word in text.split()) for word in WORDS] for text in texts])
        return torch.nn.functional.normalize(found, dim=1)

    def embed_audio(self, wavs):
        rows = [torch.from_numpy(Spectrum().class_logits(wav)) for wav in wavs]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def load_tones(source, device):
    return Tones()


def load_deaf(source, device):
    return Tones(deaf=True)


def load_kin(source, device):
    return Tones(KNOWN)


def load_bands(source, device):
    return Spectrum()


def load_voices(source, device):
    return Voices()


def load_opinions(source, device):
    return Opinions()


def load_captions(source, device):
    return Captions()


def load_brittle(source, device):
    from xcodec_lm.configs.errors import XcodecLMError

    raise XcodecLMError(f"{source}: weights are missing or do not fit: conv.weight", "copy the folder again")


ENTRIES = (
    Entry("tones", "transcriber", "own", "eval_stubs:load_tones", "tones"),
    Entry("deaf", "transcriber", "own", "eval_stubs:load_deaf", "says four four"),
    Entry("kin", "transcriber", "own", "eval_stubs:load_kin", "trained on the speaker 'heard'"),
    Entry("brittle", "transcriber", "published", "eval_stubs:load_brittle", "a broken folder", "a folder"),
    Entry("bands", "embedder", "own", "eval_stubs:load_bands", "bands"),
    Entry("loudness", "speaker", "own", "eval_stubs:load_voices", "level"),
    Entry("peaks", "mos", "own", "eval_stubs:load_opinions", "peaks"),
    Entry("toneclap", "clap", "own", "eval_stubs:load_captions", "words and tones"),
)
