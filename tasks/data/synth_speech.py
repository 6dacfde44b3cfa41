"""Synthetic speech for training: sentences of our own and strings of digits, said by espeak-ng in many voices.

A voice is a language's accent, a timbre of espeak-ng's (a "variant") and its own pitch, liveliness and tempo. Splits
share no timbre, whatever the seed: a model trained on `train` has never heard a voice of `test`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from xcodec_lm.codec.audio import resample
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.tasks.data import synth_dsp as dsp
from xcodec_lm.tasks.data.espeak import Espeak, Utterance
from xcodec_lm.tasks.data.synth_text import write_digits, write_sentence

VARIANTS = {
    "test": ("f5", "m7", "linda", "david", "grandma", "miguel", "klatt3", "aunty", "michel", "caleb"),
    "dev": ("f4", "m5", "belinda", "norbert", "Denis", "victor"),
    "train": (
        "f1", "f2", "f3", "m1", "m2", "m3", "m4", "m6", "m8", "Alex", "Alicia", "Andrea", "Andy", "Annie",
        "AnxiousAndy", "Diogo", "Gene", "Henrique", "Hugo", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen",
        "Reed", "RicishayMax", "Storm", "adam", "anika", "announcer", "benjamin", "boris", "croak", "ed", "edward",
        "edward2", "grandpa", "gustave", "ian", "iven3", "john", "kaukovalta", "klatt", "klatt2", "klatt4", "klatt6",
        "marcelo", "max", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis",
        "whisper", "whisperf", "zac",
    ),
}  # fmt: skip
"""Timbres of espeak-ng 1.52; robots are left out."""
VOICES = {"test": 20, "dev": 12, "train": 248}
"""Voices drawn for a seed: two of each timbre in dev and test, four in train."""
ACCENTS = {
    "en": ("en-us", "en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029"),
    "de": ("de",),
    "fr": ("fr", "fr-ch"),
    "es": ("es", "es-419"),
    "it": ("it",),
    "pt": ("pt", "pt-br"),
    "nl": ("nl",),
    "pl": ("pl",),
    "sv": ("sv",),
}
ENGLISH = 0.7
"""Share of voices that speak English."""
Texts = Literal["sentences", "digits", "mixed"]
"""What is said: sentences, strings of English digits, or half of either."""
SHORTEST_S, LONGEST_S = 1.0, 6.0
SPLIT_CYCLE = (*("train",) * 5, "dev", *("train",) * 3, "test")
"""Splits of clips in a row, so that a clip does not depend on how many follow it."""


@dataclass(frozen=True)
class Voice:
    """One speaker.

    Attributes:
        language: of its texts, such as `en`.
        accent: espeak-ng's name of the language.
        variant: espeak-ng's name of the timbre.
        pitch: 0..99, relative to the timbre's own, 50.
        pitch_range: 0..99, likewise.
        words_per_minute: tempo.
    """

    language: str
    accent: str
    variant: str
    pitch: int
    pitch_range: int
    words_per_minute: int

    @property
    def name(self) -> str:
        """The manifest's `speaker`."""
        return f"espeak-{self.accent}-{self.variant}-{self.pitch}-{self.pitch_range}-{self.words_per_minute}"


def split_of(index: int) -> str:
    """The split of clip `index`: eight of ten are for training."""
    return SPLIT_CYCLE[index % len(SPLIT_CYCLE)]


def draw_voice(seed: int, split: str, number: int) -> Voice:
    """Voice `number` of a split; each timbre comes once before one comes again."""
    rng = np.random.default_rng(derive_seed(seed, "synth", "voice", split, number))
    language = "en" if rng.random() < ENGLISH else str(rng.choice([name for name in ACCENTS if name != "en"]))
    return Voice(
        language=language,
        accent=str(rng.choice(ACCENTS[language])),
        variant=VARIANTS[split][number % len(VARIANTS[split])],
        pitch=int(rng.integers(25, 76)),
        pitch_range=int(rng.integers(25, 80)),
        words_per_minute=int(rng.integers(125, 206)),
    )


def draw_speaker(seed: int, split: str, rng: np.random.Generator, digits: bool) -> Voice:
    """One of a split's voices; for digits one that speaks English."""
    if not digits:
        return draw_voice(seed, split, int(rng.integers(VOICES[split])))
    voices = _english(seed, split)
    return voices[int(rng.integers(len(voices)))]


@lru_cache
def _english(seed: int, split: str) -> tuple[Voice, ...]:
    voices = (draw_voice(seed, split, number) for number in range(VOICES[split]))
    return tuple(voice for voice in voices if voice.language == "en")


def make_speech(
    engine: Espeak,
    seed: int,
    index: int,
    sample_rate: int,
    texts: Texts = "sentences",
    level_dbfs: float | None = None,
) -> tuple[np.ndarray, Voice, str]:
    """Clip `index` of the synthetic speech of a seed.

    Args:
        engine: a running espeak-ng.
        seed: of everything.
        index: from 0 on; it also decides the split.
        sample_rate: in Hz.
        texts: what is said.
        level_dbfs: RMS in dB below full scale; None draws it.

    Returns:
        (N,) samples of 1 to 6 seconds; the voice; the text.

    Raises:
        XcodecLMError: espeak-ng lacks a voice, or died.
    """
    split = split_of(index)
    rng = np.random.default_rng(derive_seed(seed, "synth", "speech", index))
    digits = texts == "digits" or (texts == "mixed" and derive_seed(seed, "synth", "texts", index) % 2 == 0)
    voice = draw_speaker(seed, split, rng, digits)
    for attempt in range(100):
        text = write_digits(rng) if digits else write_sentence(rng, voice.language, short=attempt > 5)
        audio = utter(engine, voice, text, rng, sample_rate)
        if SHORTEST_S <= len(audio) / sample_rate <= LONGEST_S:
            return place(audio, rng, sample_rate, level_dbfs), voice, text
    raise AssertionError(f"no text of {voice} fits into {LONGEST_S} s")


def utter(engine: Espeak, voice: Voice, text: str, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """(N,) samples of a text in a voice, with short silence at both ends.

    Args:
        engine: a running espeak-ng.
        voice: who speaks.
        text: what.
        rng: source of the lengths of the silence.
        sample_rate: in Hz.

    Raises:
        XcodecLMError: espeak-ng lacks the voice, or died.
    """
    utterance = Utterance(text, voice.accent, voice.variant, voice.pitch, voice.pitch_range, voice.words_per_minute)
    samples = np.frombuffer(engine.speak(utterance), dtype=np.int16).astype(np.float32) / 32_768
    return trim(resample(samples, engine.sample_rate, sample_rate), rng, sample_rate)


def trim(audio: np.ndarray, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Speech with silence of up to 0.3 s, drawn, in place of espeak-ng's at either end.

    Args:
        audio: (N,).
        rng: source of the lengths.
        rate: sample rate in Hz.
    """
    loud = np.flatnonzero(np.abs(audio) > 0.01 * max(float(np.abs(audio).max(initial=0)), 1e-9))
    if not len(loud):
        return audio[:0]
    before, after = (round(rng.uniform(0.03, 0.3) * rate) for _ in range(2))
    return np.pad(audio[loud[0] : loud[-1] + 1], (before, after))


def place(audio: np.ndarray, rng: np.random.Generator, rate: int, level_dbfs: float | None = None) -> np.ndarray:
    """Speech as a microphone hears it: half of it in a room, a third with noise, at many levels.

    Args:
        audio: (N,).
        rng: source of the place.
        rate: sample rate in Hz.
        level_dbfs: RMS in dB below full scale; None draws it.
    """
    heard = audio.astype(np.float64)
    if rng.random() < 0.5:
        heard = dsp.room(heard, rng, rate, ring_s=rng.uniform(0.1, 0.5), wet=rng.uniform(0.05, 0.4))
    if rng.random() < 0.35:
        noise = dsp.band_noise(rng, len(heard), rate, rng.uniform(40, 200), 0.5 * rate, rng.uniform(-6, -1))
        heard = heard + noise * np.sqrt(np.mean(heard**2)) * 10 ** (-rng.uniform(15, 40) / 20)
    drawn = rng.uniform(-34, -19)
    return dsp.level(heard, drawn if level_dbfs is None else level_dbfs, rate)
