"""Signal building blocks of the synthetic corpus: oscillators, envelopes, strings, noise, a room, levels.

Signals are (N,) float64 arrays. Randomness comes from the generator that is passed in, so the same seed gives the
same samples.
"""

from __future__ import annotations

import math

import numpy as np

Signal = np.ndarray
TABLE = 2048
"""Points of a wavetable; with linear interpolation its error lies below 16 bit."""
HIGHEST_PARTIAL = 0.47
"""Partials above this fraction of the sample rate are left out, so nothing aliases."""
CEILING = 0.95
"""Largest sample that `level` lets through."""


def seconds(duration_s: float, rate: int) -> np.ndarray:
    """(N,) times in seconds of the samples of a signal of this duration, at least one sample."""
    return np.arange(max(1, round(duration_s * rate))) / rate


def wavetable(amplitudes: np.ndarray, frequency: float, rate: int) -> np.ndarray:
    """One period of a tone, band-limited for its pitch.

    Args:
        amplitudes: (K,) of partials 1..K; those too high for `rate` are left out.
        frequency: fundamental in Hz.
        rate: sample rate in Hz.

    Returns:
        (TABLE,) samples of one period.
    """
    count = max(1, min(len(amplitudes), int(HIGHEST_PARTIAL * rate / frequency)))
    spectrum = np.zeros(TABLE // 2 + 1, dtype=np.complex128)
    # Schroeder phases spread the energy over the period, which keeps peaks low
    order = np.arange(1, count + 1)
    spectrum[1 : count + 1] = amplitudes[:count] * np.exp(-1j * np.pi * order * (order - 1) / count)
    return np.fft.irfft(spectrum) * TABLE / 2


def oscillate(table: np.ndarray, frequency: float | np.ndarray, n: int, rate: int, phase: float = 0.0) -> Signal:
    """A tone read from a wavetable.

    Args:
        table: one period.
        frequency: in Hz; a number, or (N,) for a tone that glides.
        n: samples.
        rate: sample rate in Hz.
        phase: where in the period to begin, 0..1.
    """
    turns = np.cumsum(frequency) / rate if isinstance(frequency, np.ndarray) else np.arange(n) * (frequency / rate)
    position = ((turns + phase) % 1.0) * len(table)
    index = position.astype(np.int64)
    fraction = position - index
    return table[index % len(table)] * (1 - fraction) + table[(index + 1) % len(table)] * fraction


def adsr(n: int, rate: int, attack_s: float, decay_s: float, sustain: float, release_s: float) -> np.ndarray:
    """(N,) envelope: linear attack, exponential decay to `sustain` (0..1), linear release that ends with the signal."""
    time = np.arange(n) / rate
    decayed = sustain + (1 - sustain) * np.exp(-np.maximum(time - attack_s, 0) / max(decay_s, 1e-3))
    envelope = np.minimum(time / max(attack_s, 1e-4), 1.0) * decayed
    return envelope * np.clip((n - np.arange(n)) / max(1.0, release_s * rate), 0, 1)


def decay(n: int, rate: int, time_s: float) -> np.ndarray:
    """(N,) exponential that falls by 60 dB in `time_s`."""
    return np.exp(np.arange(n) * (-6.91 / (time_s * rate)))


def pluck(frequency: float, n: int, rate: int, rng: np.random.Generator, brightness: float, ring_s: float) -> Signal:
    """A plucked string after Karplus and Strong (Computer Music Journal 7(2), 1983), one period at a time.

    A period depends on the one before it alone, so a whole period is one vector operation. Whole periods are out of
    tune at high pitches; the string is made at the nearest whole period and read at the right speed.

    Args:
        frequency: pitch in Hz.
        n: samples.
        rate: sample rate in Hz.
        rng: source of the burst that excites the string.
        brightness: 0 (thumb) to 1 (plectrum).
        ring_s: time in which the fundamental falls by 60 dB.
    """
    period = max(2, round(rate / frequency - 0.5))  # the averaging filter adds half a sample
    speed = frequency * (period + 0.5) / rate
    count = math.ceil(n * speed / period) + 2
    string = np.empty((count, period))
    burst = rng.uniform(-1, 1, period)
    dull = (burst + np.roll(burst, 1) + np.roll(burst, 2) + np.roll(burst, 3)) / 4
    string[0] = brightness * burst + (1 - brightness) * dull
    string[0] -= string[0].mean()
    loss = math.exp(-6.91 / (ring_s * frequency))
    previous_last = 0.0
    for row in range(1, count):
        before = string[row - 1]
        string[row, 0] = before[0] + previous_last
        string[row, 1:] = before[1:] + before[:-1]
        string[row] *= 0.5 * loss
        previous_last = before[-1]
    samples = string.reshape(-1)
    position = np.arange(n) * speed
    index = position.astype(np.int64)
    return samples[index] + (position - index) * (samples[index + 1] - samples[index])


def band_noise(rng: np.random.Generator, n: int, rate: int, low: float, high: float, slope_db: float = 0.0) -> Signal:
    """Noise of RMS 1 between two frequencies.

    Args:
        rng: source of randomness.
        n: samples.
        rate: sample rate in Hz.
        low: lower edge in Hz; edges are a third of an octave soft.
        high: upper edge in Hz; half the sample rate and more leave the top open.
        slope_db: change per octave, in dB; negative is darker.
    """
    size = max(256, 1 << (n - 1).bit_length())
    frequency = np.fft.rfftfreq(size, 1 / rate)
    octave = np.log2(np.maximum(frequency, 1.0))
    gain = 1 / (1 + np.exp(-12 * (octave - math.log2(low)))) / (1 + np.exp(12 * (octave - math.log2(high))))
    gain *= 10 ** (slope_db * (octave - math.log2(low)) / 20)
    gain[0] = 0
    spectrum = gain * (rng.standard_normal(len(gain)) + 1j * rng.standard_normal(len(gain)))
    signal = np.fft.irfft(spectrum, size)[:n]
    return signal / max(float(np.sqrt(np.mean(signal**2))), 1e-9)


def drift(rng: np.random.Generator, n: int, rate: int, per_second: float) -> np.ndarray:
    """(N,) slow random curve between 0 and 1, with about `per_second` turns a second."""
    knots = max(4, math.ceil(n / rate * per_second) + 3)
    values = rng.uniform(0, 1, knots)
    position = np.linspace(0, knots - 1.001, n)
    index = position.astype(np.int64)
    smooth = (1 - np.cos(np.pi * (position - index))) / 2
    return values[index] * (1 - smooth) + values[index + 1] * smooth


def mix_in(target: Signal, start: int, sound: Signal, gain: float = 1.0) -> None:
    """Adds a sound to `target` from sample `start` on; what reaches beyond the end is cut."""
    end = min(len(target), start + len(sound))
    if start < end:
        target[start:end] += gain * sound[: end - start]


def room(signal: Signal, rng: np.random.Generator, rate: int, ring_s: float, wet: float) -> Signal:
    """The signal in a room: convolved with noise that dies away.

    Args:
        signal: (N,).
        rng: source of the echoes.
        rate: sample rate in Hz.
        ring_s: time in which the echoes fall by 60 dB.
        wet: RMS of the echoes relative to the signal.
    """
    n = round(ring_s * rate)
    response = band_noise(rng, n, rate, 150, 0.4 * rate, -2) * decay(n, rate, ring_s)
    response[: round(0.008 * rate)] = 0
    response *= wet / np.sqrt(np.sum(response**2))
    size = 1 << (len(signal) + n - 1).bit_length()
    echoes = np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)
    return signal + echoes[: len(signal)]


def level(signal: Signal, rms_db: float, rate: int) -> Signal:
    """The signal at a level, without clipping and without clicks at its ends.

    Args:
        signal: (N,).
        rms_db: RMS in dB below full scale; peaks beyond CEILING are bent, which may cost a few tenths of a dB.
        rate: sample rate in Hz.
    """
    scaled = signal * (10 ** (rms_db / 20) / max(float(np.sqrt(np.mean(signal**2))), 1e-9))
    bent = CEILING * np.tanh(scaled / CEILING)
    ramp = np.linspace(0, 1, min(round(0.005 * rate), len(bent) // 2) + 1)[1:]
    bent[: len(ramp)] *= ramp
    bent[len(bent) - len(ramp) :] *= ramp[::-1]
    return bent
