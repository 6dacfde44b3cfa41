"""Everyday sounds made from noise, tones and timing: twelve kinds, each with captions.

A recipe takes a random generator, a number of samples and a sample rate; it returns the signal and the word that says
which variation it drew. The captions carry that word, so they tell more than the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xcodec_lm.tasks.data import synth_dsp as dsp

FLOOR = 1e-3
"""RMS of the noise floor relative to the peak: recordings are never digitally silent."""
Recipe = Callable[[np.random.Generator, int, int], tuple[np.ndarray, str]]


@dataclass(frozen=True)
class SoundKind:
    """A kind of sound.

    Attributes:
        label: its name.
        recipe: makes one.
        captions: sentences in which `{}` stands for the variation.
    """

    label: str
    recipe: Recipe
    captions: tuple[str, str, str]


def _events(rng: np.random.Generator, n: int, rate: int, gap_s: float, jitter: float) -> list[int]:
    """Start samples of events that follow each other every `gap_s` seconds, give or take `jitter` (0..1) of it."""
    starts, time = [], rng.uniform(0, 0.5) * gap_s
    while time * rate < n:
        starts.append(round(time * rate))
        time += gap_s * (1 + jitter * rng.uniform(-1, 1))
    return starts


def rain(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Hiss, and drops on something hard."""
    heavy = rng.random() < 0.5
    signal = dsp.band_noise(rng, n, rate, 700, 0.49 * rate, -2) * (0.9 + 0.1 * dsp.drift(rng, n, rate, 2))
    size = round(0.012 * rate)
    for start in rng.integers(0, n, int(n / rate * (220 if heavy else 60))):
        drop = dsp.band_noise(rng, size, rate, rng.uniform(1500, 4000), 0.49 * rate) * dsp.decay(size, rate, 0.01)
        dsp.mix_in(signal, int(start), drop, float(rng.uniform(0.5, 3)) * (1.0 if heavy else 1.5))
    return signal, "heavy" if heavy else "light"


def wind(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Bands of noise that swell one after the other, with a whistle."""
    strong = rng.random() < 0.5
    signal = np.zeros(n)
    for low in (80, 200, 500, 1200):
        gust = dsp.drift(rng, n, rate, 1.2 if strong else 0.6)
        signal += dsp.band_noise(rng, n, rate, low, 2.5 * low) * gust**2 * (200 / low) ** (0.3 if strong else 0.6)
    pitch = 450 + 500 * dsp.drift(rng, n, rate, 0.8)
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / rate) * dsp.drift(rng, n, rate, 1) ** 2
    signal += (0.5 if strong else 0.15) * tone + 0.02 * dsp.band_noise(rng, n, rate, 2000, 0.49 * rate)
    return signal, "strong" if strong else "gentle"


def engine(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Firing pulses with jitter, idling or speeding up, over rumble."""
    revving = rng.random() < 0.5
    slow = rng.uniform(22, 40)
    rise = 1 + 2 * np.linspace(0, 1, n) ** 2 if revving else np.ones(n)
    pitch = slow * rise * (1 + 0.02 * dsp.drift(rng, n, rate, 15))
    partials = np.arange(1, 60)
    table = dsp.wavetable(partials**-0.7 * rng.uniform(0.4, 1, len(partials)), 3 * slow, rate)
    firing = dsp.oscillate(table, pitch, n, rate)
    hiss = dsp.band_noise(rng, n, rate, 300, 0.45 * rate, -4) * (1 + np.sin(2 * np.pi * np.cumsum(pitch) / rate))
    return firing + 0.5 * hiss + 0.4 * dsp.band_noise(rng, n, rate, 40, 160), "revving" if revving else "idling"


def bell(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Strokes of a bell: inharmonic partials that die away, the high ones first."""
    small = rng.random() < 0.5
    strike = rng.uniform(700, 1200) if small else rng.uniform(180, 350)
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.51, 2.67, 3.01, 4.1, 5.43, 6.8, 8.2])
    ratios = ratios[ratios * strike < dsp.HIGHEST_PARTIAL * rate]
    time = dsp.seconds(3.0, rate)
    stroke = np.zeros(len(time))
    for ratio in ratios:
        ring = (1.5 if small else 4) / ratio**0.6
        phase = rng.uniform(0, 2 * np.pi)
        stroke += ratio**-0.5 * np.sin(2 * np.pi * ratio * strike * time + phase) * dsp.decay(len(time), rate, ring)
    signal = np.zeros(n)
    for start in _events(rng, n, rate, rng.uniform(0.5, 0.9) if small else rng.uniform(1.2, 2), 0.03):
        dsp.mix_in(signal, start, stroke)
    return signal, "small" if small else "large"


def siren(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """A horn that glides up and down, or changes between two tones."""
    two_tone = rng.random() < 0.5
    low = rng.uniform(450, 650)
    high = low * (4 / 3 if two_tone else rng.uniform(1.8, 2.4))
    cycle = (np.arange(n) / rate / rng.uniform(0.8, 1.4) + rng.random()) % 1
    pitch = np.where(cycle < 0.5, low, high) if two_tone else low + (high - low) * (1 - np.cos(2 * np.pi * cycle)) / 2
    table = dsp.wavetable(np.arange(1, 30) ** -1.0, high, rate)
    return dsp.oscillate(table, pitch, n, rate), "two-tone" if two_tone else "wailing"


def footsteps(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """A thump and a scrape for each step."""
    running = rng.random() < 0.5
    signal = np.zeros(n)
    size = round(0.16 * rate)
    for index, start in enumerate(_events(rng, n, rate, 0.33 if running else 0.6, 0.04)):
        thump = dsp.band_noise(rng, size, rate, 60, 250) * dsp.decay(size, rate, 0.12)
        scrape = dsp.band_noise(rng, size, rate, 1200, 0.48 * rate, -2) * dsp.adsr(size, rate, 0.02, 0.03, 0.0, 0.02)
        dsp.mix_in(signal, start, 1.5 * thump + scrape, 1.0 if index % 2 else 0.8)
    return signal, "running" if running else "walking"


def birds(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Whistles that sweep; one bird repeats its call, or several answer each other."""
    several = rng.random() < 0.5
    signal = 0.02 * dsp.band_noise(rng, n, rate, 300, 0.48 * rate, -3)
    top = 0.42 * rate
    for _ in range(3 if several else 1):
        base, sweep = rng.uniform(2200, 4500), rng.uniform(-0.3, 0.6)
        time = dsp.seconds(rng.uniform(0.05, 0.16), rate)
        trill = 1 + 0.06 * np.sin(2 * np.pi * rng.uniform(20, 60) * time)
        pitch = np.minimum(base * (1 + sweep * time / time[-1]) * trill, top)
        chirp = np.sin(2 * np.pi * np.cumsum(pitch) / rate) * np.sin(np.pi * time / time[-1])
        notes, loudness = int(rng.integers(2, 6)), rng.uniform(0.4, 1)
        for start in _events(rng, n, rate, rng.uniform(0.8, 1.5), 0.2):
            for note in range(notes):
                dsp.mix_in(signal, start + round(note * 1.25 * len(time)), chirp, loudness)
    return signal, "several birds" if several else "one bird"


def clock(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Ticks of two kinds in turn."""
    fast = rng.random() < 0.5
    size = round(0.05 * rate)
    ticks = []
    for _ in range(2):
        ring = np.sin(2 * np.pi * rng.uniform(1800, 5000) * np.arange(size) / rate) * dsp.decay(size, rate, 0.03)
        ticks.append(ring + 0.5 * dsp.band_noise(rng, size, rate, 2000, 0.49 * rate) * dsp.decay(size, rate, 0.01))
    signal = 0.003 * dsp.band_noise(rng, n, rate, 100, 4000)
    for index, start in enumerate(_events(rng, n, rate, 0.2 if fast else 0.5, 0.0)):
        dsp.mix_in(signal, start, ticks[index % 2])
    return signal, "fast" if fast else "slow"


def drips(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Drops into water: short tones that rise in pitch, in a hollow room."""
    quick = rng.random() < 0.5
    signal = np.zeros(n)
    time = dsp.seconds(0.12, rate)
    for start in _events(rng, n, rate, 0.22 if quick else 0.7, 0.5):
        pitch = rng.uniform(500, 1400) * (1 + 6 * time)
        drop = np.sin(2 * np.pi * np.cumsum(pitch) / rate) * dsp.adsr(len(time), rate, 0.002, 0.025, 0.0, 0.03)
        dsp.mix_in(signal, start, drop, float(rng.uniform(0.5, 1)))
    signal = dsp.room(signal, rng, rate, 0.8, 0.4)
    return signal + 0.002 * dsp.band_noise(rng, n, rate, 200, 0.48 * rate), "quick" if quick else "slow"


def waves(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Surf: noise that swells, darker when it is far."""
    near = rng.random() < 0.5
    cycle = (np.arange(n) / rate / rng.uniform(2, 3) + rng.random()) % 1
    swell = 0.15 + np.minimum(cycle / 0.6, 1) * np.minimum((1 - cycle) / 0.4, 1)
    body = dsp.band_noise(rng, n, rate, 60, 1500, -4)
    foam = dsp.band_noise(rng, n, rate, 1000, 0.49 * rate, -1 if near else -5)
    return body * swell + (0.9 if near else 0.3) * foam * swell**2, "nearby" if near else "distant"


def alarm(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Beeps with hard edges."""
    high = rng.random() < 0.5
    pitch = rng.uniform(1500, 2500) if high else rng.uniform(500, 900)
    partials = np.arange(1, 20)
    table = dsp.wavetable(np.where(partials % 2, 1 / partials, 0), pitch, rate)
    length, signal = rng.uniform(0.08, 0.2), 0.001 * dsp.band_noise(rng, n, rate, 100, 0.48 * rate)
    size = len(dsp.seconds(length, rate))
    beep = dsp.oscillate(table, float(pitch), size, rate) * dsp.adsr(size, rate, 0.003, 1.0, 1.0, 0.003)
    for start in _events(rng, n, rate, 2 * length, 0.0):
        dsp.mix_in(signal, start, beep)
    return signal, "high-pitched" if high else "low-pitched"


def fire(rng: np.random.Generator, n: int, rate: int) -> tuple[np.ndarray, str]:
    """Crackles of very different strength over a soft roar."""
    large = rng.random() < 0.5
    signal = (1.0 if large else 0.3) * dsp.band_noise(rng, n, rate, 60, 700, -3) * (0.6 + dsp.drift(rng, n, rate, 4))
    for start in rng.integers(0, n, int(n / rate * rng.uniform(12, 40))):
        size = round(rng.uniform(0.003, 0.02) * rate)
        crack = dsp.band_noise(rng, size, rate, 800, 0.49 * rate) * dsp.decay(size, rate, 0.02)
        dsp.mix_in(signal, int(start), crack, float(rng.exponential(2.0)))
    return signal, "large" if large else "small"


KINDS = (
    SoundKind("rain", rain, ("{} rain falling", "the sound of {} rain on a roof", "{} rain outside")),
    SoundKind("wind", wind, ("a {} wind blowing", "the howling of a {} wind", "{} wind outdoors")),
    SoundKind("engine", engine, ("an engine {}", "the {} of a motor", "the sound of a car {}")),
    SoundKind("bell", bell, ("a {} bell ringing", "strokes of a {} bell", "somebody rings a {} bell")),
    SoundKind("siren", siren, ("a {} siren", "a {} siren sounding", "an emergency vehicle with a {} siren")),
    SoundKind("footsteps", footsteps, ("footsteps of a person {}", "someone {} past", "steps, a person is {}")),
    SoundKind("birds", birds, ("{} chirping", "birdsong, {} singing", "the chirping of {} in the trees")),
    SoundKind("clock", clock, ("a clock ticking at a {} pace", "{} clicking", "the {} ticking of a clock")),
    SoundKind("water drops", drips, ("{} dripping of water", "water drops falling, {}", "a {} drip in a cave")),
    SoundKind("sea waves", waves, ("{} waves of the sea", "the surf of a {} sea", "waves breaking on a {} shore")),
    SoundKind("alarm", alarm, ("a {} alarm beeping", "the {} beeps of an alarm", "an alarm with a {} tone")),
    SoundKind("fire", fire, ("a {} fire crackling", "the crackle of a {} fire", "a {} fire burning")),
)


def make_sound(kind: SoundKind, rng: np.random.Generator, duration_s: float, rate: int) -> tuple[np.ndarray, str]:
    """One sound and its caption.

    Args:
        kind: what it is.
        rng: source of everything that varies.
        duration_s: length in seconds.
        rate: sample rate in Hz.

    Returns:
        (N,) float64 at -30 to -18 dBFS, and the caption.
    """
    n = round(duration_s * rate)
    signal, variation = kind.recipe(rng, n, rate)
    signal = dsp.room(signal, rng, rate, 0.25, 0.15)
    signal = signal / max(float(np.abs(signal).max()), 1e-9) + FLOOR * dsp.band_noise(rng, n, rate, 60, 0.5 * rate, -1)
    loudness = 20 * np.log10(np.sqrt(np.mean(signal**2)))  # of the signal with peaks at full scale
    target = min(float(rng.uniform(-26, -18)), loudness - 1)  # sparse sounds stay quiet: peaks below full scale
    caption = kind.captions[int(rng.integers(3))].format(variation)
    return dsp.level(signal, target, rate), caption
