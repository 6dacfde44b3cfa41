"""Measuring zero-shot speech: word errors and likeness of the voice, beside what they cannot be better than and what
they must be better than.

For every run: the first codebook alone and all of them, as the paper's Table 1; the codec's resynthesis of the same
recordings; the same model given other texts; and a model that was never trained. All systems speak the same rows, so
differences are paired.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from xcodec_lm.codec.audio import load_audio, resample, save_audio
from xcodec_lm.codec.clips import Clip, read_manifest
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.lm.valle_nar import ValleNAR
from xcodec_lm.tasks.eval.intervals import LEAST_UNITS
from xcodec_lm.tasks.eval.speaker import (
    SimilarityReport,
    SpeakerEmbedder,
    Voice,
    compare_with_prompts,
    load_speaker_embedder,
)
from xcodec_lm.tasks.eval.train_evaluators import thin
from xcodec_lm.tasks.eval.transcribers import Transcriber, load_transcriber
from xcodec_lm.tasks.eval.wer import Counts, Pair, difference_estimate, rate_estimate, word_counts
from xcodec_lm.tasks.report.document import Marked
from xcodec_lm.tasks.tts.batch import make_line, read_lines
from xcodec_lm.tasks.tts.page import system_folder
from xcodec_lm.tasks.tts.speech import Ending, Line, Speaking, Spoken
from xcodec_lm.tasks.tts.voice import TTS

RATE = 16_000
MOST_WER = 0.10
"""A recogniser that errs more on real recordings gives no verdict."""
TRUTH = "ground truth"
VOICES_EACH, LONGEST_VOICE_S = 10, 6.0
"""Of each other speaker that likeness is compared with."""


@dataclass
class System:
    """What one system made of all rows.

    Attributes:
        name: shown in the table.
        wavs: (N,) at 16 kHz of each row.
        heard: what the recogniser heard; empty without one.
        counts: its word errors; likewise.
        likeness: of the voices to their prompts; None without a judge of voices.
        endings: how each utterance ended; empty where no model spoke.
    """

    name: str
    wavs: list[np.ndarray]
    heard: list[str]
    counts: list[Counts]
    likeness: SimilarityReport | None
    endings: list[Ending]


@dataclass(frozen=True)
class Judges:
    """Who listens.

    Attributes:
        transcriber: hears words; None leaves that out.
        embedder: compares voices; likewise.
    """

    transcriber: Transcriber | None = None
    embedder: SpeakerEmbedder | None = None


def load_judges(folder: Path | None, device: str | torch.device = "cpu") -> Judges:
    """Who listens: the recogniser of a folder, and its judge of voices if it holds one; without a folder nobody.

    Raises:
        XcodecLMError: the folder holds no recogniser.
    """
    if folder is None:
        return Judges()
    voices = any((folder / "speaker" / part / "config.json").is_file() for part in ("", "model"))
    if not voices:
        say(f"{folder} holds no judge of voices (speaker/): likeness is not measured")
    return Judges(load_transcriber(folder, device), load_speaker_embedder(folder, str(device)) if voices else None)


def evaluate_tts(
    runs: Sequence[tuple[str, TTS]], manifest: Path, judges: Judges, out: Path | None = None,
    speaking: Speaking = Speaking(), seed: int = 0, most: int | None = None, controls: bool = True,  # noqa: B008
    voices: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Lets runs speak a list, and measures what they say.

    Args:
        runs: names and models; the first is compared with each of the others.
        manifest: of `data continual`: rows with `audio`, `text`, `speaker`, and a prompt. Without `audio` there is
            neither ground truth nor resynthesis, and no verdict.
        judges: who listens; neither may have been made from what it judges.
        out: folder for the audio and items.jsonl; None writes nothing.
        speaking: how the runs speak.
        seed: of draws and intervals.
        most: take the first so many rows alone.
        controls: also the same models with shuffled texts, and untrained ones.
        voices: manifest of recordings with `speaker` and `source`; likeness is compared with these as well.

    Returns:
        Plain values: `systems`, `differences`, `rows`, `judges`; `format_tts` makes a table of them.

    Raises:
        UsageError: the list cannot be read, or a row has no recording.
    """
    rows = read_lines(manifest)[:most]
    for row in rows:
        if not (row.get("audio") or row.get("prompt_audio")) or not isinstance(row.get("text"), str):
            raise UsageError(f"row {row['id']} of {manifest} has no audio or no text", "make it with data continual")
    spoken = all(row.get("audio") for row in rows)
    if not spoken:
        say(f"{manifest} has rows without a recording of their text: nothing to compare with but the controls")
    real = [load_audio(manifest.parent / row["audio"], RATE).wav[0].numpy() for row in rows] if spoken else []
    prompts = [_prompt_voice(row, manifest.parent) for row in rows]
    others = [] if voices is None or judges.embedder is None else other_voices(voices, prompts)
    listen = _Listener(rows, prompts, judges, out, seed, others)
    systems = [listen(TRUTH, real, [])] if spoken else []
    jobs = sum(spoken + 1 + (tts.nar is not None) + 2 * controls for _, tts in runs)
    with Progress("tts eval", jobs) as shown:
        for name, tts in runs:
            lines = [make_line(tts, row, manifest.parent, seed + index, None, {}) for index, row in enumerate(rows)]
            made: list[tuple[str, Callable[[], tuple[list[np.ndarray], list[Ending]]]]] = []
            if spoken:
                made.append(("resynthesis", lambda tts=tts: ([_resynthesis(tts.codec, wav) for wav in real], [])))
            said = cache(lambda tts=tts, lines=lines: _say(tts, lines, speaking))  # both hear the same codes
            first = None if tts.nar is None else 1  # a single stream's AR speaks all
            made.append(("AR", lambda tts=tts, lines=lines, said=said, first=first: _hear(tts, lines, said(), first)))
            if tts.nar is not None:
                made.append(("AR+NAR", lambda tts=tts, lines=lines, said=said: _hear(tts, lines, said())))
            if controls:
                other = [
                    replace(line, text=lines[index - 1].text) if not line.continual else line
                    for index, line in enumerate(lines)
                ]
                once = replace(speaking, best_of=1, retries=0)  # no draft of noise is better than another
                controlled = (("shuffled text", tts, other, speaking), ("untrained", untrained(tts, seed), lines, once))
                for what, who, texts, how in controlled:
                    made.append((what, lambda who=who, texts=texts, how=how: _hear(who, texts, _say(who, texts, how))))
            for what, make in made:
                systems.append(listen(f"{name}: {what}", *make()))
                shown.update(len(systems) - spoken)
    return _result(systems, rows, judges, [name for name, _ in runs], seed)


def untrained(tts: TTS, seed: int = 0) -> TTS:
    """The same models with the weights that training starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ar = tts.ar.fresh()
        nar = None if tts.nar is None else ValleNAR(tts.nar.config).to(tts.device).eval()
    other = copy.copy(tts)
    other.ar, other.nar = ar, nar
    return other


class _Listener:
    """Judges what a system made."""

    def __init__(
        self, rows: list[dict[str, Any]], prompts: list[Voice], judges: Judges, out: Path | None, seed: int,
        others: list[Voice],
    ):  # fmt: skip
        self.rows, self.prompts, self.judges, self.out, self.seed = rows, prompts, judges, out, seed
        self.others = others

    def __call__(self, name: str, wavs: list[np.ndarray], endings: list[Ending]) -> System:
        wavs = [np.clip(wav, -1, 1) for wav in wavs]  # as a file would hold it
        heard = [] if self.judges.transcriber is None else self.judges.transcriber.transcribe(wavs)
        counts = word_counts(_pairs(self.rows, heard)) if heard else []
        likeness = None
        if self.judges.embedder is not None:
            likeness = compare_with_prompts(self.judges.embedder, wavs, self.prompts, self.others, self.seed)
        if self.out is not None:
            folder = self.out / system_folder(name)
            folder.mkdir(parents=True, exist_ok=True)
            for row, wav in zip(self.rows, wavs, strict=True):
                path = folder / f"{row['id']}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_audio(path, torch.from_numpy(wav)[None], RATE)
        return System(name, wavs, heard, counts, likeness, endings)


def _pairs(rows: list[dict[str, Any]], heard: Sequence[str]) -> list[Pair]:
    """Intervals go over speakers where there are enough, else over utterances; then they are of these speakers."""
    speakers = len(_speakers(rows)) >= LEAST_UNITS
    return [
        Pair(row["id"], row["text"], words, str(row["speaker"]) if speakers else "")
        for row, words in zip(rows, heard, strict=True)
    ]


def _speakers(rows: list[dict[str, Any]]) -> set[str]:
    return {str(row["speaker"]) for row in rows if row.get("speaker")}


def _prompt_voice(row: dict[str, Any], folder: Path) -> Voice:
    path = folder / str(row.get("prompt_audio") or row["audio"])
    seconds = None if row.get("prompt_audio") else row.get("prompt_s")
    wav = load_audio(path, RATE, duration_s=seconds).wav[0].numpy()
    name = str(row.get("prompt_id") or row["id"])
    return Voice(wav, str(row.get("speaker") or name), str(row.get("source") or ""), name)


def other_voices(manifest: Path, prompts: Sequence[Voice]) -> list[Voice]:
    """Recordings of speakers that no prompt has, of the prompts' sources, at most `VOICES_EACH` of each.

    Raises:
        UsageError: there are none.
    """
    sources, known = {voice.source for voice in prompts}, {voice.speaker for voice in prompts}
    by_speaker: dict[str, list[Clip]] = defaultdict(list)
    for clip in read_manifest(manifest):
        speaker = str(clip.row.get("speaker") or "")
        if speaker and speaker not in known and str(clip.row.get("source") or "") in sources:
            by_speaker[speaker].append(clip)
    if not by_speaker:
        raise UsageError(
            f"{manifest} has no other speaker of {', '.join(sorted(sources))}", "give recordings of the same `source`"
        )
    return [
        Voice(load_audio(clip.path, RATE, duration_s=LONGEST_VOICE_S).wav[0].numpy(), speaker,
              str(clip.row.get("source") or ""), f"{manifest}:{clip.id}")
        for speaker, clips in by_speaker.items() for clip in thin(clips, VOICES_EACH)
    ]  # fmt: skip


def _resynthesis(codec: AudioTokenizer, wav: np.ndarray) -> np.ndarray:
    spec = codec.spec
    given = torch.from_numpy(resample(wav, RATE, spec.sample_rate))[None, None]
    with torch.inference_mode():
        tokens = codec.encode(given.to(getattr(codec, "device", "cpu")), sample_rate=spec.sample_rate)
        made, lengths = codec.decode(tokens)
    return resample(made[0, 0, : int(lengths[0])].float().cpu().numpy(), spec.output_sample_rate, RATE)


def _say(tts: TTS, lines: list[Line], speaking: Speaking) -> list[Spoken]:
    at_once = range(0, len(lines), speaking.lanes)
    return [spoken for start in at_once for spoken in tts.say_all(lines[start : start + speaking.lanes], speaking)]


def _hear(
    tts: TTS, lines: list[Line], said: list[Spoken], books: int | None = None
) -> tuple[list[np.ndarray], list[Ending]]:
    """Speech at 16 kHz, that of continual lines behind their prompt, and how each utterance ended.

    Args:
        tts: that said it.
        lines: what.
        said: of each line.
        books: decode the first so many codebooks alone.
    """
    wavs: list[np.ndarray] = []
    for line, spoken in zip(lines, said, strict=True):
        wav = spoken.wav
        if books is not None:
            wav = torch.cat([tts.render(one.codes[:books], line.prompt) for one in spoken.sentences], dim=1)
        heard = resample(wav[0].numpy(), spoken.sample_rate, RATE)
        if line.continual and line.prompt is not None:
            heard = np.concatenate([tts.heard(line.prompt, RATE), heard])
        wavs.append(heard)
    return wavs, [spoken.ended for spoken in said]


def _result(
    systems: list[System], rows: list[dict[str, Any]], judges: Judges, runs: list[str], seed: int
) -> dict[str, Any]:
    heard = judges.transcriber is not None
    by_name = {system.name: system for system in systems}
    table, references = [], _pairs(rows, systems[0].heard) if heard else []
    for system in systems:
        wer = rate_estimate(system.counts, references, seed).to_dict() if heard else {"value": None}
        ended = {kind: system.endings.count(kind) for kind in get_args(Ending)} if system.endings else {}
        line: dict[str, Any] = {"system": system.name, "wer": wer, "ended": ended}
        if system.likeness is not None:
            line["similarity"] = system.likeness.to_dict()
        table.append(line)
    spoken = systems[0].name == TRUTH
    truth = table[0]["wer"]["value"] if spoken else None
    trusted = truth is not None and truth <= MOST_WER
    if truth is not None and not trusted:
        say(f"the recogniser errs on {truth:.1%} of the words of real recordings: its figures give no verdict")
    differences = []
    for name in runs if heard else ():
        whole = f"{name}: AR+NAR" if f"{name}: AR+NAR" in by_name else f"{name}: AR"
        pairs = [(whole, f"{name}: resynthesis"), (whole, f"{name}: shuffled text")]
        if name != runs[0]:
            pairs += [(f"{runs[0]}: {what}", f"{name}: {what}") for what in ("AR", "AR+NAR")]
        for one, other in pairs:
            if one in by_name and other in by_name:
                found = difference_estimate(by_name[one].counts, by_name[other].counts, references, seed)
                verdict = found.verdict(lower_is_better=True) if trusted else "not decidable"
                differences.append({"a": one, "b": other, "wer": found.to_dict(), "verdict": verdict})
    items = [
        {
            "id": row["id"], "text": row["text"], "speaker": row.get("speaker"),
            "prompt": row.get("prompt_audio") or row.get("audio"), "prompt_s": row.get("prompt_s"),
            "prompt_text": row.get("prompt_text"),
            "systems": {system.name: _utterance(system, index) for system in systems},
        }
        for index, row in enumerate(rows)
    ]  # fmt: skip
    listeners: dict[str, Any] = {"recogniser": None}
    if judges.transcriber is not None:
        listeners = {"recogniser": judges.transcriber.name, "ancestry": judges.transcriber.ancestry}
    if judges.embedder is not None:
        listeners |= {"voices": judges.embedder.name, "voices_ancestry": judges.embedder.ancestry}
    return {
        "rows": len(rows), "speakers": len(_speakers(rows)), "spoken": spoken, "trusted": trusted, "systems": table,
        "differences": differences,
        "judges": listeners, "items": items,
    }  # fmt: skip


def _utterance(system: System, index: int) -> dict[str, Any]:
    """What is known of one utterance: `ended` where a model spoke, the rest where somebody listened."""
    facts: dict[str, Any] = {"ended": system.endings[index]} if system.endings else {}
    if system.counts:
        counts = system.counts[index]
        facts |= {"heard": system.heard[index], "marked": Marked(counts.marks).text,
                  "marks": [list(mark) for mark in counts.marks],
                  "errors": counts.errors, "words": counts.length}  # fmt: skip
    if system.likeness is not None:
        facts["similarity"] = system.likeness.items[index]["own"]
    return facts


def format_tts(data: dict[str, Any]) -> str:
    """The result of `evaluate_tts` as a table."""
    judges = data["judges"]
    few = data["speakers"] < LEAST_UNITS
    lines = [
        f"{data['rows']} utterances of {data['speakers']} speaker(s), intervals over "
        + ("utterances: they are of these speakers alone" if few else "speakers"),
        f"WER[{judges['recogniser'] or 'nobody listened'}] in %, lower is better; likeness to the own prompt and "
        "to other speakers of the source",
        "",
        f"{'system':<34}{'WER':>8}  {'95 %':<14}{'own':>7}{'others':>8}  {'own - others':<23}  ended by itself",
    ]
    for row in data["systems"]:
        wer, like = row["wer"], row.get("similarity")
        text = f"{row['system']:<34}{_percent(wer['value']):>8}  {_interval(wer):<14}"
        text += f"{_number(like['own']['value']):>7}{_number(like['others']['value']):>8}" if like else " " * 15
        text += f"  {_difference(like['difference']) if like else '':<23}"
        total = sum(row["ended"].values())
        lines.append((text + (f"  {row['ended']['eos']} of {total}" if total else "")).rstrip())
    lines += ["", "differences in WER, paired (percentage points):"]
    for row in data["differences"]:
        lines.append(
            f"  {row['a']} - {row['b']}: {_percent(row['wer']['value'])} {_interval(row['wer'])}: {row['verdict']}"
        )
    return "\n".join(lines)


def write_items(data: dict[str, Any], path: Path) -> None:
    """Writes what was heard of every row, one JSON line each."""
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in data["items"])
    path.write_text(text, encoding="utf-8")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _difference(estimate: dict[str, Any]) -> str:
    ends = [_number(estimate.get(end)) for end in ("low", "high")]
    return f"{_number(estimate['value'])} [{', '.join(ends)}]"


def _interval(estimate: dict[str, Any]) -> str:
    if estimate.get("low") is None:
        return "[-]"
    return f"[{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
