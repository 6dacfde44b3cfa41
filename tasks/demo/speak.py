"""The demo's second page: what speech models say, in voices that no training split has.

    speech/lines.jsonl  speech/*.flac  speak.html

Texts are strings of digits, which the smallest models speak. Where the corpus has isolated digits in its test split,
they are joined to texts and prompts from different takes; else espeak-ng speaks both in voices of the synthetic test
split.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xcodec_lm.codec.audio import save_audio
from xcodec_lm.codec.clips import Clip, read_manifest, relative_audio, write_manifest
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.espeak import Espeak, find_espeak
from xcodec_lm.tasks.data.join import JoinSettings, join
from xcodec_lm.tasks.data.synth_dsp import level
from xcodec_lm.tasks.data.synth_speech import draw_speaker, utter
from xcodec_lm.tasks.data.synth_text import DIGITS, write_digits
from xcodec_lm.tasks.tts.evaluate import Judges, evaluate_tts
from xcodec_lm.tasks.tts.page import write_page
from xcodec_lm.tasks.tts.voice import PRETRAINED, TTS, find_run, load_tts

SHIPPED = "tts-tiny"
"""The shipped speech model, which is taken where none is named."""
MOST_TEXTS = 4
TAKES = 8
"""Recordings of a word that are used, the first ones: half of them for prompts. Later takes may have taught a judge."""
FEWEST_WORDS = 5
"""Different digits that a speaker must have said."""
LEVEL_DBFS = -25.0
RATE = 16_000


def speech_models(named: Sequence[str]) -> list[str]:
    """The speech models of the page: those that are named, else the shipped one; says so where that is not there.

    Raises:
        XcodecLMError: one of the named holds no speech model.
    """
    for run in named:
        find_run(run)
    if named:
        return list(named)
    if (PRETRAINED / SHIPPED).is_dir():
        return [SHIPPED]
    say(f"{SHIPPED} is not installed, so nothing is spoken: --speak RUN adds a page of what a speech model says")
    return []


def speak(out: Path, models: Sequence[str], judges: Judges, corpus: Path | None, seed: int) -> Path | None:
    """Writes `out/speak.html`; None, and a word why, where there is nothing to speak with.

    Args:
        out: the demo's folder.
        models: of `speech_models`.
        judges: who listens.
        corpus: a manifest; it, or `speech.jsonl` beside it, may hold isolated digits.
        seed: of texts and draws.

    Raises:
        XcodecLMError: a model, or its codec, is not there.
    """
    folder = out / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    digits = digit_recordings(corpus)
    if not digits:
        try:
            find_espeak()
        except XcodecLMError as error:
            say(f"no speak page: no digits are recorded in the corpus's test split, and {error.message}; {error.hint}")
            return None
    lines = folder / "lines.jsonl"
    rows = join_lines(digits, folder, seed) if digits else synthetic_lines(folder, seed)
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    runs = name_runs([(run, load_tts(run)) for run in models])
    data = evaluate_tts(runs, lines, judges, folder, seed=seed, controls=False)
    return write_page(data, lines, folder, out / "speak.html", {"Music": "report.html"})


def name_runs(runs: Sequence[tuple[str, TTS]]) -> list[tuple[str, TTS]]:
    """Models by the name of their folder and of their codec, each name once."""
    named: dict[str, TTS] = {}
    for run, tts in runs:
        name = base = f"{Path(run).resolve().name} on {tts.codec.spec.name}"
        for number in range(2, len(runs) + 1):
            name = base if base not in named else name if name not in named else f"{base} ({number})"
        named[name] = tts
    return list(named.items())


def digit_recordings(corpus: Path | None) -> list[Clip]:
    """Isolated digits of the test split: words with two takes at least, of speakers with enough such words.

    Args:
        corpus: a manifest, which is looked through first, then `speech.jsonl` beside it.
    """
    for manifest in dict.fromkeys([corpus, corpus.parent / "speech.jsonl"] if corpus is not None else []):
        if not manifest.is_file():
            continue
        takes: dict[tuple[str, str], list[Clip]] = {}
        for clip in read_manifest(manifest):
            speaker, text = clip.row.get("speaker"), str(clip.row.get("text") or "").strip().lower()
            if clip.split == "test" and speaker and text in DIGITS:
                takes.setdefault((str(speaker), text), []).append(clip)
        takes = {key: clips for key, clips in takes.items() if len(clips) > 1}
        words = Counter(speaker for speaker, _ in takes)
        found = [clip for (speaker, _), clips in takes.items() if words[speaker] >= FEWEST_WORDS for clip in clips]
        if found:
            return found
    return []


def join_lines(digits: Sequence[Clip], folder: Path, seed: int) -> list[dict[str, Any]]:
    """Rows of a list of texts to be said: real recordings joined, prompts and texts from different takes.

    Args:
        digits: of `digit_recordings`.
        folder: of the list.
        seed: of what is joined.
    """
    takes: dict[tuple[str, str], list[Clip]] = {}
    for clip in sorted(digits, key=_take):
        takes.setdefault((str(clip.row["speaker"]), str(clip.row["text"]).strip().lower()), []).append(clip)
    parts: dict[str, list[dict[str, Any]]] = {}
    for place, name in enumerate(("prompt", "text")):
        manifest = folder / f"{name}-takes.jsonl"
        chosen = [clip for clips in takes.values() for clip in clips[: min(TAKES, len(clips) // 2 * 2)][place::2]]
        write_manifest([clip.row | {"audio": relative_audio(clip.path, manifest)} for clip in chosen], manifest)
        made = folder / name
        (made / "speech.jsonl").unlink(missing_ok=True)  # of a call before
        settings = JoinSettings(MOST_TEXTS, split="test", seed=seed, sample_rate=RATE, level_dbfs=LEVEL_DBFS)
        others = [folder / "prompt" / "speech.jsonl"] if name == "text" else []
        parts[name] = join(manifest, made, settings, others).rows
    return [
        row
        | {"audio": f"text/{row['audio']}", "prompt_id": prompt["id"], "prompt_text": prompt["text"],
           "prompt_audio": f"prompt/{prompt['audio']}"}
        for row, prompt in zip(parts["text"], parts["prompt"], strict=True)
    ]  # fmt: skip


def _take(clip: Clip) -> tuple[int, str]:
    number = re.search(r"(\d+)$", clip.id)
    return (int(number[1]) if number else 0), clip.id


def synthetic_lines(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Rows as `join_lines` gives, said by espeak-ng in as many voices of the synthetic test split.

    Args:
        folder: of the list.
        seed: of voices and digits.

    Raises:
        XcodecLMError: there is no espeak-ng, or it died.
    """
    rows = []
    with Espeak() as engine:
        for index in range(MOST_TEXTS):
            rng = np.random.default_rng(derive_seed(seed, "demo", "speak", index))
            voice = draw_speaker(seed, "test", rng, digits=True)
            row: dict[str, Any] = {"id": f"text-{index}", "speaker": voice.name, "source": "synth", "split": "test"}
            for key, name in (("prompt_", f"prompt-{index}"), ("", row["id"])):
                text = write_digits(rng)
                audio = level(utter(engine, voice, text, rng, RATE).astype(np.float64), LEVEL_DBFS, RATE)
                save_audio(folder / f"{name}.flac", torch.from_numpy(audio)[None].float(), RATE)
                row |= {f"{key}text": text, f"{key}audio": f"{name}.flac"}
            rows.append(row | {"prompt_id": f"prompt-{index}"})
    return rows
