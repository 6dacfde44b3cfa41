"""A small corpus made by arithmetic: music, captioned sounds and speech, seeded, free of anybody's rights.

    synth.json music.jsonl music/*.flac sound.jsonl sound/*.flac speech.jsonl speech/*.flac

Speech needs espeak-ng and is made on request only. The corpus is the demo's input and a playground without downloads;
nobody should judge a codec by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, get_args

import numpy as np
import torch

from xcodec_lm.codec.audio import save_audio
from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data.espeak import Espeak, find_espeak
from xcodec_lm.tasks.data.synth_music import compose, perform
from xcodec_lm.tasks.data.synth_sound import KINDS, make_sound
from xcodec_lm.tasks.data.synth_speech import Texts, make_speech, split_of

SYNTH_VERSION = 1
"""Raised whenever the same settings begin to give other audio."""
LICENCE = "CC0-1.0"
LOWEST_RATE = 8_000
LATER = {"speech_clips": 0, "speech_texts": "sentences", "speech_level_dbfs": None}
"""Settings that corpora of before do not name, and what they were made with."""


@dataclass(frozen=True)
class SynthSettings:
    """Everything that decides a synthetic corpus.

    Attributes:
        seed: the same seed gives the same files, byte for byte, on the same versions of numpy, libsndfile and
            espeak-ng. Ids carry it, but for 0.
        music_clips: pieces of music, one clip each.
        sound_clips: captioned sounds.
        clip_s: length of a music clip in seconds.
        sound_s: length of a sound in seconds.
        sample_rate: in Hz.
        version: of the generator.
        speech_clips: utterances, 1 to 6 seconds each and 2.6 on average.
        speech_texts: what they say: sentences, 3 to 6 digits in a row (voices that speak English only), or both.
        speech_level_dbfs: their RMS in dB below full scale; None draws it for each.
    """

    seed: int = 0
    music_clips: int = 60
    sound_clips: int = 40
    clip_s: float = 12.0
    sound_s: float = 4.0
    sample_rate: int = 16_000
    version: int = SYNTH_VERSION
    speech_clips: int = 0
    speech_texts: Texts = "sentences"
    speech_level_dbfs: float | None = None

    def __post_init__(self):
        counts = (self.music_clips, self.sound_clips, self.speech_clips)
        if min(counts) < 0 or sum(counts) == 0:
            raise UsageError(
                f"cannot make {counts[0]} music clips, {counts[1]} sounds and {counts[2]} clips of speech",
                "ask for at least one clip of any",
            )
        for name, value in (("clip_s", self.clip_s), ("sound_s", self.sound_s)):
            if not 0.1 <= value < math.inf:
                raise UsageError(f"{name} must be at least 0.1 seconds, got {value}")
        if self.speech_texts not in get_args(Texts):
            raise UsageError(f"speech_texts must be one of {', '.join(get_args(Texts))}, got {self.speech_texts!r}")
        if self.speech_level_dbfs is not None and not -80 <= self.speech_level_dbfs <= -10:
            raise UsageError(f"speech_level_dbfs must lie in -80..-10, got {self.speech_level_dbfs}")
        if self.sample_rate < LOWEST_RATE:
            raise UsageError(f"sample_rate must be at least {LOWEST_RATE} Hz, got {self.sample_rate}")


@dataclass(frozen=True)
class SynthResult:
    """Where a synthetic corpus is.

    Attributes:
        music: its music manifest; there is no such file when it has no music.
        sound: its sound manifest; there is no such file when it has no sounds.
        speech: its speech manifest; there is no such file when it has no speech.
        made: False when it was there already.
    """

    music: Path
    sound: Path
    speech: Path
    made: bool

    @property
    def manifests(self) -> list[Path]:
        """The manifests that exist."""
        return [path for path in (self.music, self.sound, self.speech) if path.is_file()]


def synth(
    out: str | Path,
    seed: int = 0,
    music_clips: int = 60,
    sound_clips: int = 40,
    clip_s: float = 12.0,
    sound_s: float = 4.0,
    sample_rate: int = 16_000,
    speech_clips: int = 0,
    speech_texts: Texts = "sentences",
    speech_level_dbfs: float | None = None,
    workers: int = 1,
) -> SynthResult:
    """Makes a synthetic corpus, or finds the one that the same settings made before.

    Args:
        out: its folder.
        seed: see SynthSettings, as for the rest.
        music_clips: pieces of music; a tenth, and from 12 pieces on at least four, are for testing.
        sound_clips: captioned sounds, split likewise.
        clip_s: length of a music clip in seconds.
        sound_s: length of a sound in seconds.
        sample_rate: in Hz.
        speech_clips: utterances; one of ten is for testing, in a voice that no other split has.
        speech_texts: what they say.
        speech_level_dbfs: their RMS in dB below full scale; None draws it for each.
        workers: espeak-ng processes that speak side by side; the files do not depend on it.

    Raises:
        UsageError: settings that make no corpus.
        XcodecLMError: the folder holds something else, or cannot be written; speech is wanted and there is no
            espeak-ng.
    """
    settings = SynthSettings(
        seed,
        music_clips,
        sound_clips,
        clip_s,
        sound_s,
        sample_rate,
        speech_clips=speech_clips,
        speech_texts=speech_texts,
        speech_level_dbfs=speech_level_dbfs,
    )
    if workers < 1:
        raise UsageError(f"cannot work with {workers} workers", "give at least one")
    out = Path(out)
    result = SynthResult(out / "music.jsonl", out / "sound.jsonl", out / "speech.jsonl", made=True)
    if _is_complete(out, settings, result):
        say(f"synth: {out} is there already, made with the same settings")
        return replace(result, made=False)
    parts = [(result.music, _music(out, settings)), (result.sound, _sounds(out, settings))]
    folders = [out, out / "music", out / "sound"]
    if speech_clips:
        find_espeak()  # refuses before anything is made
        parts.append((result.speech, _speech(out, settings, workers)))
        folders.append(out / "speech")
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        _write_settings(out, settings, complete=False)
    except OSError as error:
        raise XcodecLMError(f"cannot write {out}: {error.strerror}", "choose another folder with --out") from None
    with Progress("synth", music_clips + sound_clips + speech_clips) as progress:
        done = 0
        for manifest, rows in parts:
            made = []
            for row in rows:
                made.append(row)
                done += 1
                progress.update(done, row["id"])
            if made:
                write_manifest(made, manifest)
    _write_settings(out, settings, complete=True)
    return result


def _is_complete(out: Path, settings: SynthSettings, result: SynthResult) -> bool:
    """Whether the corpus of these settings stands in `out`; refuses a folder that holds another."""
    if not (out / "synth.json").is_file():
        if result.manifests:
            raise XcodecLMError(
                f"{result.manifests[0]} exists and was not made here", "choose another folder with --out"
            )
        return False
    try:
        found: dict[str, Any] = json.loads((out / "synth.json").read_text(encoding="utf-8"))
        there, complete = {**LATER, **found["settings"]}, bool(found["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        there, complete = "unknown ones, synth.json cannot be read", False
    if there != asdict(settings):
        raise XcodecLMError(
            f"{out} holds a corpus made with other settings: {there}",
            "choose another folder with --out, or remove this one",
        )
    parts = (("music", settings.music_clips), ("sound", settings.sound_clips), ("speech", settings.speech_clips))
    return complete and all(
        len(list((out / name).glob("*.flac"))) == count and (out / f"{name}.jsonl").is_file() == (count > 0)
        for name, count in parts
    )


def _write_settings(out: Path, settings: SynthSettings, complete: bool) -> None:
    temporary = out / "synth.json.tmp"
    text = json.dumps({"settings": asdict(settings), "complete": complete}, indent=1)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(out / "synth.json")


def draw_splits(count: int, rng: np.random.Generator) -> list[str]:
    """A split for each of `count` units: about 80/10/10, with 2 dev and 4 test units at least where 12 units exist."""
    test = min(max(4, round(0.1 * count)), count // 3)
    dev = min(max(2, round(0.1 * count)), count // 6)
    splits = ["test"] * test + ["dev"] * dev + ["train"] * (count - test - dev)
    return [splits[index] for index in rng.permutation(count)]


def _music(out: Path, settings: SynthSettings) -> Iterator[dict[str, Any]]:
    splits = draw_splits(settings.music_clips, _random(settings, "music splits"))
    for index, split in enumerate(splits):
        rng = _random(settings, "music", index)
        piece = compose(rng)
        name = f"{_prefix(settings)}-music-{index:03d}"
        audio = perform(piece, rng, settings.clip_s, settings.sample_rate)
        own = {"piece": name, "rendered": True, "start": 0.0, "tempo": piece.tempo, "key": piece.key}
        yield _save(out, "music", name, audio, split, settings) | own


def _sounds(out: Path, settings: SynthSettings) -> Iterator[dict[str, Any]]:
    splits = draw_splits(settings.sound_clips, _random(settings, "sound splits"))
    for index, split in enumerate(splits):
        kind = KINDS[index % len(KINDS)]
        name = f"{_prefix(settings)}-sound-{index:03d}"
        rng = _random(settings, "sound", index)
        audio, caption = make_sound(kind, rng, settings.sound_s, settings.sample_rate)
        own = {"caption": caption, "label": kind.label, "recording": name}
        yield _save(out, "sound", name, audio, split, settings) | own


def _speech(out: Path, settings: SynthSettings, workers: int) -> Iterator[dict[str, Any]]:
    idle: SimpleQueue[Espeak] = SimpleQueue()
    kind = "speech" if settings.speech_texts == "sentences" else settings.speech_texts

    def make(index: int) -> dict[str, Any]:
        name, engine = f"{_prefix(settings)}-{kind}-{index:04d}", idle.get()
        try:
            audio, voice, text = make_speech(
                engine, settings.seed, index, settings.sample_rate, settings.speech_texts, settings.speech_level_dbfs
            )
        finally:
            idle.put(engine)
        own = {"text": text, "language": voice.language, "speaker": voice.name}
        return _save(out, "speech", name, audio, split_of(index), settings) | own

    with ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(Espeak()))
        # threads do: most of the work is espeak-ng's, or leaves Python's lock
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        yield from pool.map(make, range(settings.speech_clips))


def _prefix(settings: SynthSettings) -> str:
    """What ids begin with: corpora of two seeds may be trained on together, so they share no id."""
    return f"synth-s{settings.seed}" if settings.seed else "synth"


def _random(settings: SynthSettings, *key: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(settings.seed, "synth", *key))


def _save(out: Path, folder: str, name: str, audio: np.ndarray, split: str, settings: SynthSettings) -> dict[str, Any]:
    relative = f"{folder}/{name}.flac"
    save_audio(out / relative, torch.from_numpy(audio), settings.sample_rate)
    return {
        "id": name,
        "audio": relative,
        "duration": len(audio) / settings.sample_rate,
        "speaker": None,
        "split": split,
        "source": "synth",
        "licence": LICENCE,
    }
