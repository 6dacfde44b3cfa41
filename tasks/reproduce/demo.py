"""The small corpus of `--demo`: recordings of a folder, or music, sounds and speech made by arithmetic and espeak-ng.

Single words, which ABX and probes need, are said by espeak-ng in its test voices, each take with a pitch, tempo and
room of its own: voices that no shipped model was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcodec_lm.codec.audio import save_audio
from xcodec_lm.codec.clips import write_manifest
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.reproduce.settings import Scale, Settings
from xcodec_lm.tasks.reproduce.stages import Place, hash_file

DOMAINS = ("speech", "music", "sound")
RATE = 16_000
LEVEL_DBFS = -25.0


@dataclass(frozen=True)
class Corpus:
    """Manifests of the small corpus.

    Attributes:
        manifests: `speech`, `music`, `sound` and `words` -> manifest; those that there are.
        origin: what it is, for people.
        missing: domain -> why it is not there.
    """

    manifests: dict[str, Path]
    origin: str
    missing: dict[str, str]

    def of(self, *domains: str) -> list[Path]:
        """The manifests of domains.

        Raises:
            XcodecLMError: one is missing; names what still works.
        """
        for domain in domains:
            if domain not in self.manifests:
                raise XcodecLMError(f"{self.origin} has no {domain}: {self.missing[domain]}", _still(self))
        return [self.manifests[domain] for domain in domains]

    def facts(self, place: Place) -> dict[str, Any]:
        """Plain values for a stage's result; changed manifests change them."""
        return {
            "origin": self.origin, "missing": self.missing,
            "manifests": {name: place.name(path) for name, path in self.manifests.items()},
            "sha256": {name: hash_file(path) for name, path in self.manifests.items()},
        }  # fmt: skip


TABLES_OF = {"speech": (1, 2, 6), "music": (3, 7), "sound": (4,)}
"""Which tables' demos need which domain; table 5 takes what there is."""


def _still(corpus: Corpus) -> str:
    works = [table for domain, tables in TABLES_OF.items() if domain in corpus.manifests for table in tables]
    return (
        f"tables {', '.join(map(str, sorted([*works, 5])))} work with what is there"
        if works
        else "name another --corpus"
    )


def find_corpus(place: Place, settings: Settings, wanted: Sequence[str]) -> Corpus:
    """The corpus of a demo; a synthetic one is made where it is not there yet.

    Args:
        place: of the table.
        settings: its `corpus`, `scale` and `seed` count.
        wanted: domains that the table looks at, `words` among them; others are not made.

    Raises:
        XcodecLMError: the folder holds none of them.
    """
    return _given(settings.corpus, wanted) if settings.corpus else _synthetic(place, settings, wanted)


def _given(folder: Path, wanted: Sequence[str]) -> Corpus:
    if not folder.is_dir():
        raise XcodecLMError(f"--corpus {folder} is not a folder", "give the folder that holds speech.jsonl and others")
    there = {name: folder / f"{name}.jsonl" for name in DOMAINS if (folder / f"{name}.jsonl").is_file()}
    if "speech" in there:
        there["words"] = there["speech"]  # rows of one word are found in it
    if not set(there) & set(wanted):
        names = " or ".join(f"{name}.jsonl" for name in DOMAINS)
        raise XcodecLMError(f"--corpus {folder} has no {names} that this table needs", "make one: xcodec-lm data scan")
    missing = {name: f"there is no {name}.jsonl in {folder}" for name in (*DOMAINS, "words") if name not in there}
    missing |= {"words": missing["speech"]} if "speech" in missing else {}
    return Corpus(there, f"the recordings of {folder.name}", missing)


def _synthetic(place: Place, settings: Settings, wanted: Sequence[str]) -> Corpus:
    from xcodec_lm.tasks.data.espeak import find_espeak

    scale, seed, origin = settings.scale, settings.seed, "the synthetic corpus"
    sizes: dict[str, dict[str, Any]] = {
        "music": {"music_clips": scale.music_clips, "sound_clips": 0, "clip_s": scale.music_s},
        "sound": {"music_clips": 0, "sound_clips": scale.sound_clips},
        "speech": {"music_clips": 0, "sound_clips": 0, "speech_clips": scale.speech_clips, "speech_texts": "digits",
                   "speech_level_dbfs": LEVEL_DBFS},
    }  # fmt: skip
    there, missing = {}, {}
    for name in wanted:
        if name in ("speech", "words"):
            try:
                find_espeak()
            except XcodecLMError as error:
                missing[name] = f"{error.message}; {error.hint}"
                say(f"no synthetic {name}: {missing[name]}")
                continue
        if name == "words":
            facts = {"voices": scale.voices, "takes": scale.takes, "seed": seed}
            folder = place.shared("words", facts, lambda to: _words(to, scale, seed))
            there["words"] = folder / "words.jsonl"
            continue
        own = sizes[name]
        folder = place.shared(f"corpus-{name}", own | {"seed": seed}, lambda to, own=own: _synth(to, seed, own))
        there[name] = folder / "corpus" / f"{name}.jsonl"
    missing |= {name: "this table does not need it" for name in (*DOMAINS, "words") if name not in {*there, *missing}}
    return Corpus(there, origin, missing)


def _synth(out: Path, seed: int, sizes: dict[str, Any]) -> None:
    from xcodec_lm.tasks.data.synth import synth

    synth(out / "corpus", seed=seed, **sizes)  # a folder of its own: synth takes no folder that holds other files


def _words(out: Path, scale: Scale, seed: int) -> None:
    make_words(out, scale, seed)


def make_words(out: Path, scale: Scale, seed: int) -> Path:
    """Writes words.jsonl: the ten digits, one a recording, `takes` of each in `voices` English voices.

    Raises:
        XcodecLMError: espeak-ng is not there, or died.
    """
    from xcodec_lm.tasks.data.espeak import Espeak
    from xcodec_lm.tasks.data.synth_speech import VOICES, draw_voice, place, utter
    from xcodec_lm.tasks.data.synth_text import DIGITS

    voices = [voice for number in range(VOICES["test"]) if (voice := draw_voice(seed, "test", number)).language == "en"]
    rows = []
    (out / "words").mkdir(parents=True, exist_ok=True)
    with Espeak() as engine:
        for voice in voices[: scale.voices]:
            for word in DIGITS:
                for take in range(scale.takes):
                    rng = np.random.default_rng(derive_seed(seed, "word", voice.name, word, take))
                    said = replace(
                        voice, pitch=int(np.clip(voice.pitch + rng.integers(-6, 7), 0, 99)),
                        words_per_minute=int(voice.words_per_minute * rng.uniform(0.9, 1.1)),
                    )  # fmt: skip
                    audio = place(utter(engine, said, word, rng, RATE), rng, RATE, LEVEL_DBFS)
                    name = f"{voice.name}-{word}-{take}"
                    save_audio(out / "words" / f"{name}.flac", torch.from_numpy(audio)[None].float(), RATE)
                    rows.append({
                        "id": name, "audio": f"words/{name}.flac", "duration": len(audio) / RATE, "text": word,
                        "speaker": voice.name, "split": "test", "source": "synth", "licence": "CC0-1.0",
                    })  # fmt: skip
    write_manifest(rows, out / "words.jsonl")
    return out / "words.jsonl"
