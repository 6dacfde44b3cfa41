"""Longer utterances out of short recordings of one speaker, such as strings of digits out of isolated digits.

    OUT/speech.jsonl  OUT/speech/NAME-00000.flac ...

Speakers, words and the recordings of a word come up equally often, whatever their number in the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.clips import Clip, read_manifest, write_manifest
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import AudioError, UsageError, XcodecLMError

PAUSE_S = (0.04, 0.15)
"""Shortest and longest silence between two recordings, and at both ends."""
FADE_S = 0.005
"""Length of the fades at both ends of a recording: without them a pause begins and ends with a click."""
CEILING = 0.99
"""Highest peak after a gain."""
ROUNDS = 4
"""A word is dealt so many times before all others have been: less than at random, but `three three one` occurs."""
TRIES = 2_000
"""Strings drawn before giving up on one that is not excluded."""


@dataclass(frozen=True)
class JoinSettings:
    """What is joined, and how.

    Attributes:
        count: utterances to make.
        shortest: fewest recordings in one.
        longest: most recordings in one.
        split: of the recordings; the utterances have it too.
        seed: of every choice.
        sample_rate: of the utterances, in Hz.
        level_dbfs: RMS of the joined recordings (their pauses apart) in dB below full scale, one gain an utterance;
            None leaves levels as they are.
        id_pattern: regular expression that an id must hold.
        takes: first and last take to use. A recording's take is what the first group of `id_pattern` matches, else
            its key `take`, else the number at the end of its id.
    """

    count: int
    shortest: int = 3
    longest: int = 6
    split: str = "train"
    seed: int = 0
    sample_rate: int = 16_000
    level_dbfs: float | None = None
    id_pattern: str = ""
    takes: tuple[int, int] | None = None

    def __post_init__(self):
        if self.count < 1:
            raise UsageError(f"cannot make {self.count} utterances", "ask for at least one")
        if not 1 <= self.shortest <= self.longest:
            raise UsageError(f"cannot join {self.shortest} to {self.longest} recordings", "give 1 <= min <= max")
        if self.level_dbfs is not None and not -80 <= self.level_dbfs <= 0:
            raise UsageError(f"a level of {self.level_dbfs} dBFS is none", "levels are negative, such as -25")
        try:
            re.compile(self.id_pattern)
        except re.error as error:
            raise UsageError(f"{self.id_pattern!r} is no regular expression: {error}", "correct --id-pattern") from None


@dataclass(frozen=True)
class JoinResult:
    """What was made.

    Attributes:
        manifest: of the utterances.
        rows: its rows.
        unused: recordings of the split without text or speaker, or that cannot be read -> why.
        lowered: utterances whose peaks allowed only a lower level than was asked for.
    """

    manifest: Path
    rows: list[dict[str, Any]]
    unused: dict[str, str] = field(default_factory=dict)
    lowered: int = 0

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return sum(row["duration"] for row in self.rows)


def join(
    manifest: str | Path, out: str | Path, settings: JoinSettings, exclude: Sequence[str | Path] = ()
) -> JoinResult:
    """Makes utterances of one speaker each; the same inputs give the same files.

    Args:
        manifest: of recordings with `text` and `speaker`.
        out: folder to make; its name begins the ids.
        settings: see there.
        exclude: manifests of which no row's whole text may occur, such as those that a model trains on.

    Raises:
        UsageError: no recording fits, or all strings of the drawn length are excluded.
        XcodecLMError: a manifest cannot be read, or the folder holds a manifest or cannot be written.
    """
    out = Path(out)
    if (out / "speech.jsonl").exists():
        raise XcodecLMError(f"{out / 'speech.jsonl'} exists already", "choose another --out, or remove this one")
    pieces, unused = _sort(_chosen(read_manifest(manifest), settings), settings)
    if not pieces:
        why = f"; such as {next(iter(unused.items()))}" if unused else ""
        raise UsageError(
            f"{manifest} has no recordings of split {settings.split} to join{why}",
            "they need text and speaker; look at --split, --id-pattern and --takes",
        )
    forbidden = {" ".join(str(clip.row.get("text", "")).split()) for path in exclude for clip in read_manifest(path)}
    try:
        (out / "speech").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XcodecLMError(f"cannot write {out}: {error.strerror}", "choose another folder with --out") from None
    speakers = sorted(pieces)
    decks = {name: _Deck(pieces[name], derive_seed(settings.seed, "join", name)) for name in speakers}
    rows, lowered = [], 0
    for index in track(range(settings.count), "join", settings.count):
        rng = np.random.default_rng(derive_seed(settings.seed, "join", "utterance", index))
        length = int(rng.integers(settings.shortest, settings.longest + 1))
        parts = decks[speakers[index % len(speakers)]].deal(length, forbidden)
        audio, bent = _assemble(parts, rng, settings)
        lowered += bent
        name = f"{out.absolute().name}-{index:05d}"
        save_audio(out / "speech" / f"{name}.flac", torch.from_numpy(audio), settings.sample_rate)
        rows.append({
            "id": name,
            "audio": f"speech/{name}.flac",
            "duration": len(audio) / settings.sample_rate,
            "text": " ".join(map(_text, parts)),
            "split": settings.split,
            **_shared(parts),
            "joined_from": [part.id for part in parts],
        })  # fmt: skip
    write_manifest(rows, out / "speech.jsonl")
    return JoinResult(out / "speech.jsonl", rows, unused, lowered)


def _chosen(clips: Iterable[Clip], settings: JoinSettings) -> list[Clip]:
    """The recordings of the split whose ids and takes fit."""
    chosen = []
    for clip in clips:
        match = re.search(settings.id_pattern, clip.id)
        if match is None or (clip.split or "train") != settings.split:
            continue
        if settings.takes is not None:
            number = match.group(1) if match.re.groups else clip.row.get("take")
            if number is None and (end := re.search(r"(\d+)$", clip.id)) is not None:
                number = end.group(1)
            try:
                if not settings.takes[0] <= int(number) <= settings.takes[1]:  # type: ignore[arg-type]
                    continue
            except (TypeError, ValueError):
                raise UsageError(
                    f"--takes: the recording {clip.id!r} has no number of a take",
                    "tell where it stands: --id-pattern with a group, such as 'digit-.*_([0-9]+)$'",
                ) from None
        chosen.append(clip)
    return chosen


def _sort(clips: Iterable[Clip], settings: JoinSettings) -> tuple[dict[str, dict[str, list[Clip]]], dict[str, str]]:
    """Speaker -> text -> recordings, and the ids of those that cannot be used -> why."""
    sorted_clips: dict[str, dict[str, list[Clip]]] = {}
    unused: dict[str, str] = {}
    for clip in clips:
        speaker, text = clip.row.get("speaker"), _text(clip)
        if not text or speaker in (None, ""):
            unused[clip.id] = "no speaker" if text else "no text"
            continue
        try:
            if not _load(clip.path, settings.sample_rate).any():
                unused[clip.id] = "silence"
                continue
        except AudioError as error:
            unused[clip.id] = error.message
            continue
        sorted_clips.setdefault(str(speaker), {}).setdefault(text, []).append(clip)
    return sorted_clips, unused


class _Deck:
    """One speaker's words, dealt like cards: every word and every recording of it equally often."""

    def __init__(self, words: dict[str, list[Clip]], seed: int):
        self.words = {word: sorted(clips, key=lambda clip: clip.id) for word, clips in sorted(words.items())}
        self.rng = np.random.default_rng(seed)
        self.waiting: list[str] = []
        self.recordings: dict[str, list[Clip]] = {word: [] for word in self.words}

    def deal(self, length: int, forbidden: set[str]) -> list[Clip]:
        """Recordings whose texts in a row are none of `forbidden`.

        Raises:
            UsageError: no such row was found.
        """
        for _ in range(TRIES):
            while len(self.waiting) < length:
                self.waiting += self._shuffled(list(self.words) * ROUNDS)
            if " ".join(self.waiting[:length]) not in forbidden:
                break
            if len(self.waiting) < 2 * length:
                self.waiting += list(self.words) * ROUNDS
            self.waiting = self._shuffled(self.waiting)
        else:
            raise UsageError(
                f"{TRIES} strings of {length} recordings were drawn and all are excluded",
                "make longer ones (--min), or exclude less",
            )
        chosen, self.waiting = self.waiting[:length], self.waiting[length:]
        return [self._recording(word) for word in chosen]

    def _recording(self, word: str) -> Clip:
        if not self.recordings[word]:
            self.recordings[word] = self._shuffled(self.words[word])
        return self.recordings[word].pop()

    def _shuffled(self, items: list[Any]) -> list[Any]:
        return [items[index] for index in self.rng.permutation(len(items))]


def _assemble(parts: list[Clip], rng: np.random.Generator, settings: JoinSettings) -> tuple[np.ndarray, bool]:
    """(N,) samples of the recordings with pauses, and whether peaks kept them below the level that was asked for."""
    pieces = [_load(part.path, settings.sample_rate) for part in parts]
    gain, lowered = 1.0, False
    if settings.level_dbfs is not None:
        power = sum(float(np.sum(np.square(piece, dtype=np.float64))) for piece in pieces) / sum(map(len, pieces))
        gain = 10 ** (settings.level_dbfs / 20) / np.sqrt(power)
        highest = CEILING / max(float(np.abs(piece).max()) for piece in pieces)
        gain, lowered = min(gain, highest), gain > highest
    pauses = [np.zeros(round(rng.uniform(*PAUSE_S) * settings.sample_rate), np.float32) for _ in range(len(parts) + 1)]
    joined = [pauses[0]]
    for piece, pause in zip(pieces, pauses[1:], strict=True):
        joined += [piece * np.float32(gain), pause]
    return np.concatenate(joined), lowered


@lru_cache(maxsize=4_096)
def _load(path: Path, sample_rate: int) -> np.ndarray:
    """(N,) samples without offset, faded in and out."""
    audio = load_audio(path, sample_rate).wav[0].numpy()
    audio = audio - audio.mean()
    n = min(round(FADE_S * sample_rate), len(audio) // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(n, dtype=np.float32) + 0.5) / max(n, 1))
    audio[:n] *= ramp
    audio[len(audio) - n :] *= ramp[::-1]
    return audio


def _text(clip: Clip) -> str:
    return " ".join(str(clip.row.get("text") or "").split())


def _shared(parts: list[Clip]) -> dict[str, Any]:
    """Keys of manifest rows with one value in all recordings, such as speaker, source and licence."""
    own = {"id", "audio", "duration", "text", "split", "take", "joined_from"}
    first = parts[0].row
    return {
        key: value for key, value in first.items() if key not in own and all(p.row.get(key) == value for p in parts)
    }
