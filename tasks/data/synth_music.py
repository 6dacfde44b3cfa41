"""Little pieces of music from a seeded grammar: a plan, a score, and the instruments that play it.

`compose` draws a piece: key, tempo, chords, patterns, form. `perform` turns it into notes and renders them. A piece
repeats its phrases, bars and patterns, so a model that hears its beginning can tell how it goes on; pieces differ in
everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xcodec_lm.tasks.data import synth_dsp as dsp

STEPS = 16
"""Sixteenth notes in a bar; every piece is in 4/4."""
MODES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10), "dorian": (0, 2, 3, 5, 7, 9, 10)}
NOTE_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 3), (5, 3, 0, 4), (0, 3, 0, 4), (1, 4, 0, 5)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 2, 6, 3), (5, 6, 0, 0), (0, 3, 5, 4)),
    "dorian": ((0, 3, 0, 3), (0, 6, 3, 0), (0, 2, 3, 6), (0, 1, 3, 0)),
}
"""Scale degrees of four chords."""
FORMS = ("AABA", "AAAB", "ABAB", "AABB")
"""Phrases of a piece; the form starts again when it is over."""
BASS_LINES = ("x.......x.......", "x...x...x...x...", "x.....x.x.......", "x.x.x.x.x.x.x.x.", "x..x..x.x..x..x.")
CHORD_RHYTHMS = ("x...............", "x.......x.......", "....x.......x...", "..x...x...x...x.", "x..x..x.........")
ARPEGGIOS = ((0, 1, 2, 1), (0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 1, 2), (0, 2, 3, 1))
MELODY_RHYTHMS = ("x...x...x.x.x...", "x.x.x...x...x.x.", "x..x..x.x...x...", "x.......x.x.x.x.", "..x.x.x.x.....x.")
KICKS = ("x.......x.......", "x...x...x...x...", "x.....x.x.......", "x..x......x.....")
SNARES = ("....x.......x...", "....x..x....x...", "........x.......", "....x.......x..x")
HATS = ("x.x.x.x.x.x.x.x.", "xxxxxxxxxxxxxxxx", "..x...x...x...x.", "x.xxx.xxx.xxx.xx")


@dataclass(frozen=True)
class Timbre:
    """How a tone sounds.

    Attributes:
        kind: `tone` (partials that fade from bright to dull), `string` (plucked) or `metal` (frequency modulation).
        slope: of a tone; amplitude of partial k is k ** -slope at the attack.
        dull: of a tone; the same at its end.
        even: of a tone; amplitude of even partials relative to odd ones.
        fade_s: of a tone; time constant from bright to dull, in seconds.
        detune: of a tone; relative width of two detuned oscillators, 0 is one oscillator.
        brightness: of a string's pluck, 0..1.
        ring_s: of a string; time in which it falls by 60 dB.
        ratio: of metal; frequency of the modulator relative to the tone.
        depth: of metal; index of modulation at the attack.
        attack_s, decay_s, sustain, release_s: envelope of all kinds; a string has no sustain.
    """

    kind: Literal["tone", "string", "metal"] = "tone"
    slope: float = 1.0
    dull: float = 2.0
    even: float = 1.0
    fade_s: float = 0.3
    detune: float = 0.0
    brightness: float = 0.5
    ring_s: float = 3.0
    ratio: float = 1.0
    depth: float = 1.0
    attack_s: float = 0.01
    decay_s: float = 0.4
    sustain: float = 0.5
    release_s: float = 0.06


TIMBRES = {
    "saw": Timbre(slope=0.9, dull=1.5, decay_s=0.3, sustain=0.7, detune=0.002),
    "square": Timbre(slope=1.0, dull=1.4, even=0.05, sustain=0.6, decay_s=0.2),
    "organ": Timbre(slope=1.3, dull=1.3, even=0.8, sustain=1.0, attack_s=0.02),
    "flute": Timbre(slope=2.2, dull=2.6, attack_s=0.05, sustain=0.9, release_s=0.1),
    "brass": Timbre(slope=1.4, dull=0.9, fade_s=0.1, attack_s=0.04, sustain=0.8),
    "piano": Timbre(slope=1.2, dull=2.6, fade_s=0.15, attack_s=0.003, decay_s=0.35, sustain=0.1, release_s=0.12),
    "pad": Timbre(slope=1.1, dull=1.3, attack_s=0.12, sustain=0.9, release_s=0.2, detune=0.004),
    "bass": Timbre(slope=1.1, dull=2.4, fade_s=0.08, attack_s=0.004, decay_s=0.3, sustain=0.6),
    "guitar": Timbre(kind="string", brightness=0.7, ring_s=2.5),
    "harp": Timbre(kind="string", brightness=0.35, ring_s=4.0, release_s=0.2),
    "bells": Timbre(kind="metal", ratio=3.5, depth=2.8, decay_s=0.5, sustain=0.0, attack_s=0.002, release_s=0.2),
    "epiano": Timbre(kind="metal", ratio=1.0, depth=1.2, decay_s=0.6, sustain=0.2, attack_s=0.003, release_s=0.12),
}
MELODY_TIMBRES = ("saw", "square", "flute", "brass", "piano", "bells", "guitar")
CHORD_TIMBRES = ("pad", "organ", "piano", "saw", "epiano")
ARPEGGIO_TIMBRES = ("harp", "guitar", "epiano", "square", "bells")
BASS_TIMBRES = ("bass", "saw", "guitar", "square")


@dataclass(frozen=True)
class Piece:
    """Everything that decides a piece, before any note of it exists.

    Attributes:
        tempo: quarter notes per minute.
        root: pitch class of the key, 0 is C.
        mode: a key of MODES.
        chords: (A, B) degrees of four chords each.
        steps_per_chord: sixteenths that a chord lasts.
        form: phrases, such as AABA; a phrase is four chords.
        bass, chord_rhythm, kick, snare, hat: patterns of a bar.
        arpeggio: chord tones in turn; arpeggio_step sixteenths apart.
        melody_rhythms: (A, B) patterns of a bar.
        melody_steps: (A, B) scale steps above the chord's root, one per note of a bar.
        timbres: part -> name of a timbre.
        gains: part -> level.
        melody_from: phrase in which the melody enters.
        swing: part of an eighth by which every second sixteenth is late.
        ring_s: reverberation of the room.
    """

    tempo: int
    root: int
    mode: str
    chords: tuple[tuple[int, ...], tuple[int, ...]]
    steps_per_chord: int
    form: str
    bass: str
    chord_rhythm: str
    kick: str
    snare: str
    hat: str
    arpeggio: tuple[int, ...]
    arpeggio_step: int
    melody_rhythms: tuple[str, str]
    melody_steps: tuple[tuple[int, ...], tuple[int, ...]]
    timbres: dict[str, str]
    gains: dict[str, float]
    melody_from: int
    swing: float
    ring_s: float

    @property
    def key(self) -> str:
        """The key in words, such as `Eb minor`."""
        return f"{NOTE_NAMES[self.root]} {self.mode}"

    def pitch(self, degree: int, octave: int) -> int:
        """MIDI number of a scale degree counted from the key's root in `octave`."""
        octaves, step = divmod(degree, 7)
        return 12 * (octave + 1 + octaves) + self.root + MODES[self.mode][step]


@dataclass(frozen=True)
class Note:
    """One note: when (sixteenths from the start), how long (sixteenths), MIDI pitch, part and strength 0..1."""

    step: int
    steps: int
    pitch: int
    part: str
    strength: float = 1.0


def compose(rng: np.random.Generator) -> Piece:
    """Draws a piece."""

    def pick(options):
        return options[int(rng.integers(len(options)))]

    tempo = int(rng.integers(80, 141))
    mode = pick(tuple(MODES))
    rhythms = (pick(MELODY_RHYTHMS), pick(MELODY_RHYTHMS))
    return Piece(
        tempo=tempo,
        root=int(rng.integers(12)),
        mode=mode,
        chords=(pick(PROGRESSIONS[mode]), pick(PROGRESSIONS[mode])),
        steps_per_chord=STEPS if tempo >= 115 else STEPS // 2,  # a phrase lasts 4 to 8 seconds
        form=pick(FORMS),
        bass=pick(BASS_LINES),
        chord_rhythm=pick(CHORD_RHYTHMS),
        kick=pick(KICKS),
        snare=pick(SNARES),
        hat=pick(HATS),
        arpeggio=pick(ARPEGGIOS),
        arpeggio_step=pick((1, 2, 2)),
        melody_rhythms=rhythms,
        melody_steps=tuple(_contour(rng, rhythm.count("x")) for rhythm in rhythms),  # type: ignore[arg-type]
        timbres={
            "melody": pick(MELODY_TIMBRES),
            "chords": pick(CHORD_TIMBRES),
            "arpeggio": pick(ARPEGGIO_TIMBRES),
            "bass": pick(BASS_TIMBRES),
        },
        gains={
            "melody": float(rng.uniform(0.8, 1.1)),
            "chords": float(rng.uniform(0.35, 0.6)),
            "arpeggio": float(pick((0.0, 0.5, 0.7))),  # a third of the pieces has none
            "bass": float(rng.uniform(0.8, 1.1)),
            "drums": float(pick((0.0, 0.7, 0.9, 1.1))),  # a quarter has none
        },
        melody_from=pick((0, 0, 1)),
        swing=pick((0.0, 0.0, 0.3)),
        ring_s=float(rng.uniform(0.3, 1.0)),
    )


def _contour(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    steps = [int(rng.choice((0, 2, 4)))]
    for _ in range(count - 1):
        steps.append(int(np.clip(steps[-1] + rng.choice((-2, -1, -1, 1, 1, 2)), -3, 8)))
    return tuple(steps)


def write_score(piece: Piece, steps: int) -> list[Note]:
    """The notes of the first `steps` sixteenths of a piece, without its drums."""
    notes = []
    for step in range(steps):
        phrase, in_phrase = divmod(step, 4 * piece.steps_per_chord)
        variant = "AB".index(piece.form[phrase % len(piece.form)])
        degree = piece.chords[variant][in_phrase // piece.steps_per_chord]
        left = piece.steps_per_chord - in_phrase % piece.steps_per_chord
        in_bar = step % STEPS
        if piece.bass[in_bar] == "x":
            fifth = 4 if in_bar >= 12 and piece.bass.count("x") > 2 else 0
            length = min(left, _until_next(piece.bass, in_bar))
            notes.append(Note(step, length, piece.pitch(degree + fifth, 2), "bass", 1.0 if in_bar == 0 else 0.8))
        if piece.chord_rhythm[in_bar] == "x" or (left == piece.steps_per_chord and piece.chord_rhythm[0] == "x"):
            length = min(left, _until_next(piece.chord_rhythm, in_bar))
            notes += [Note(step, length, _near(piece.pitch(degree + third, 4), 57), "chords") for third in (0, 2, 4)]
        if piece.gains["arpeggio"] and step % piece.arpeggio_step == 0:
            tone = piece.arpeggio[step // piece.arpeggio_step % len(piece.arpeggio)]
            pitch = piece.pitch(degree + (0, 2, 4, 7)[tone], 4)
            notes.append(Note(step, 2 * piece.arpeggio_step, pitch, "arpeggio", 1.0 if step % 4 == 0 else 0.75))
        rhythm = piece.melody_rhythms[variant]
        if phrase >= piece.melody_from and rhythm[in_bar] == "x":
            interval = piece.melody_steps[variant][rhythm[:in_bar].count("x")]
            on_beat = in_bar % 8 == 0
            interval -= interval % 2 if on_beat else 0  # strong beats take chord tones: 0, 2, 4 steps up
            notes.append(
                Note(step, _until_next(rhythm, in_bar), _near(piece.pitch(degree + interval, 5), 74), "melody")
            )
    return notes


def _until_next(pattern: str, position: int) -> int:
    """Steps from one onset of a bar to the next, over the bar line if need be."""
    return (pattern + pattern).index("x", position + 1) - position


def _near(pitch: int, centre: int) -> int:
    """The pitch in the octave nearest to `centre`."""
    return pitch - 12 * round((pitch - centre) / 12)


def perform(piece: Piece, rng: np.random.Generator, duration_s: float, rate: int) -> np.ndarray:
    """Plays the beginning of a piece.

    Args:
        piece: what `compose` drew.
        rng: source of the noises: plucks, drums, the room.
        duration_s: length in seconds.
        rate: sample rate in Hz.

    Returns:
        (N,) float64 at about -20 dBFS.
    """
    n = round(duration_s * rate)
    step_s = 60 / piece.tempo / 4
    steps = int(np.ceil(duration_s / step_s))

    def begin(step: int) -> int:
        return round((step + (piece.swing if step % 2 else 0.0)) * step_s * rate)

    parts = {part: np.zeros(n) for part in ("melody", "chords", "arpeggio", "bass", "drums")}
    played = dict[tuple[str, int, int], np.ndarray]()
    for note in write_score(piece, steps):
        timbre = TIMBRES[piece.timbres[note.part]]
        sound = (note.part, note.pitch, note.steps)
        if sound not in played:
            played[sound] = play(timbre, note.pitch, note.steps * step_s, rate, rng)
        dsp.mix_in(parts[note.part], begin(note.step), played[sound], note.strength)
    kit = make_kit(rng, rate)
    for step in range(steps):
        fill = step // STEPS % 4 == 3 and step % STEPS >= 12  # the last beat of every fourth bar
        for name, pattern in (("kick", piece.kick), ("snare", "xxxx" * 4 if fill else piece.snare), ("hat", piece.hat)):
            if pattern[step % STEPS] == "x":
                dsp.mix_in(parts["drums"], begin(step), kit[name], 1.0 if step % 4 == 0 else 0.7)
    mixed = np.zeros(n)
    for part, signal in parts.items():
        loudness = float(np.sqrt(np.mean(signal**2)))
        if loudness > 0:
            mixed += piece.gains[part] * signal / loudness
    return dsp.level(dsp.room(mixed, rng, rate, piece.ring_s, 0.35), -20.0, rate)


def play(timbre: Timbre, pitch: int, length_s: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """One tone.

    Args:
        timbre: how it sounds.
        pitch: MIDI number.
        length_s: until it is let go, in seconds; the release follows.
        rate: sample rate in Hz.
        rng: source of the pluck.
    """
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    n = len(dsp.seconds(length_s + timbre.release_s, rate))
    if timbre.kind == "string":
        string = dsp.pluck(frequency, n, rate, rng, timbre.brightness, timbre.ring_s)
        return string * dsp.adsr(n, rate, 0.001, 1.0, 1.0, timbre.release_s)
    envelope = dsp.adsr(n, rate, timbre.attack_s, timbre.decay_s, timbre.sustain, timbre.release_s)
    if timbre.kind == "metal":
        # frequency modulation (Chowning, J. Audio Eng. Soc. 21(7), 1973); the depth keeps the side bands in band
        time = np.arange(n) / rate
        depth = min(timbre.depth, (dsp.HIGHEST_PARTIAL * rate / frequency - 1) / timbre.ratio - 1)
        bend = max(depth, 0.0) * np.exp(-time / timbre.decay_s) * np.sin(2 * np.pi * timbre.ratio * frequency * time)
        return np.sin(2 * np.pi * frequency * time + bend) * envelope
    partials = np.arange(1, 129)
    evenness = np.where(partials % 2 == 0, timbre.even, 1.0)
    bright = dsp.wavetable(evenness * partials**-timbre.slope, frequency, rate)
    dull = dsp.wavetable(evenness * partials**-timbre.dull, frequency, rate)
    share = np.exp(-np.arange(n) / (timbre.fade_s * rate))
    tone = np.zeros(n)
    for detune in (-timbre.detune, timbre.detune) if timbre.detune else (0.0,):
        tone += share * dsp.oscillate(bright, frequency * (1 + detune), n, rate)
        tone += (1 - share) * dsp.oscillate(dull, frequency * (1 + detune), n, rate)
    return tone * envelope


def make_kit(rng: np.random.Generator, rate: int) -> dict[str, np.ndarray]:
    """Drums: a swept sine, a noise burst with a tone in it, a short hiss; each kit is tuned a little differently."""
    low, body = rng.uniform(45, 60), rng.uniform(170, 240)
    time = dsp.seconds(0.3, rate)
    sweep = np.cumsum(low + 140 * np.exp(-time / 0.03)) / rate
    kick = np.sin(2 * np.pi * sweep) * dsp.decay(len(time), rate, 0.35)
    kick[: round(0.004 * rate)] += 0.4 * rng.standard_normal(round(0.004 * rate))
    rattle = dsp.band_noise(rng, len(time), rate, 900, 0.47 * rate) * dsp.decay(len(time), rate, rng.uniform(0.15, 0.3))
    snare = 0.35 * rattle + 0.5 * np.sin(2 * np.pi * body * time) * dsp.decay(len(time), rate, 0.15)
    n = round(0.12 * rate)
    hat = 0.25 * dsp.band_noise(rng, n, rate, 0.3 * rate, 0.49 * rate) * dsp.decay(n, rate, rng.uniform(0.06, 0.15))
    return {"kick": kick, "snare": snare, "hat": hat}
