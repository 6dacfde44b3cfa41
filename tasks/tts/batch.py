"""Speech as files: one by one, while it is made, and many from a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import soundfile as sf
import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.common import Result
from xcodec_lm.tasks.tts.speech import ENDINGS, Line, Prompt, Speaking, Spoken
from xcodec_lm.tasks.tts.voice import TTS


def describe_speech(spoken: Spoken) -> str:
    """How an utterance ended and how fast it was made, in one line."""
    facts = spoken.report()
    text = (
        f"{spoken.seconds:.2f} s, {ENDINGS[spoken.ended]}, {facts['frames_per_unit']} frames a symbol, "
        f"{facts['real_time_factor']} of real time"
    )
    unknown = sorted({unit for sentence in spoken.sentences for unit in sentence.unknown})
    return f"{text}; not known to the model: {' '.join(unknown)}" if unknown else text


def write_speech(spoken: Spoken, out: Path) -> None:
    """Writes an utterance, and says where it was cut or clipped."""
    clipped = save_audio(out, spoken.wav, spoken.sample_rate)
    if clipped:
        say(f"{out}: {clipped} samples beyond full scale were clipped")
    for sentence in spoken.sentences:
        if sentence.ended != "eos":
            say(f"{sentence.text!r} was {ENDINGS[sentence.ended]}: try another --seed, or --best-of 4")


def say_stream(
    tts: TTS, text: str, voice: Prompt | None, seed: int, speaking: Speaking, out: Path | BinaryIO
) -> Result:
    """Speaks piece by piece, into a file or as 16-bit PCM into a stream; see `TTS.stream`."""
    rate = tts.codec.spec.output_sample_rate
    if isinstance(out, Path):
        with sf.SoundFile(out, "w", rate, 1) as file:
            pieces = list(_by_sentence(tts.stream(text, voice, seed, speaking), file, lambda wav: wav.numpy()))
    else:
        pieces = list(_by_sentence(tts.stream(text, voice, seed, speaking), out, _pcm))
    seconds = sum(piece.seconds for piece in pieces)
    data = {"audio": str(out) if isinstance(out, Path) else "-", "pieces": [piece.report() for piece in pieces]}
    return Result(f"{data['audio']}: {seconds:.2f} s in {len(pieces)} sentence(s) at {rate} Hz", data)


def _by_sentence(pieces: Iterable[Spoken], out: Any, shape: Callable[[Tensor], Any]) -> Iterator[Spoken]:
    """Writes pieces of speech at once; gives and describes the sentences that they make up."""
    parts: list[Spoken] = []
    for spoken in pieces:
        out.write(shape(spoken.wav[0].clamp(-1, 1)))
        out.flush()
        parts.append(spoken)
        if spoken.sentences:
            wav, wall_s = torch.cat([part.wav for part in parts], dim=1), sum(part.wall_s for part in parts)
            whole = Spoken(wav, spoken.sample_rate, spoken.sentences, wall_s)
            say(f"{whole.sentences[0].text!r}: {describe_speech(whole)}")
            parts = []
            yield whole


def say_manifest(
    tts: TTS, manifest: Path, out: Path, speaking: Speaking, seed: int, recogniser: str | None = None, at_once: int = 16
) -> Result:
    """Speaks the rows of a manifest into a folder; `out/spoken.jsonl` says what became of each.

    Args:
        tts: the models.
        manifest: JSON lines as `data continual` writes them, see `make_line`.
        out: the folder.
        speaking: how.
        seed: of rows without one.
        recogniser: transcribes prompts without text.
        at_once: rows spoken together.

    Raises:
        UsageError: the manifest cannot be read, or two rows have one id.
    """
    rows = read_lines(manifest)
    out.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    heard: dict[Path, str | None] = {}
    with Progress("tts say", len(rows)) as shown:
        for start in range(0, len(rows), at_once):
            group, lines = [], []
            for row in rows[start : start + at_once]:
                try:
                    line = make_line(tts, row, manifest.parent, seed, recogniser, heard)
                    tts.encoder.encode(line.text)
                except XcodecLMError as error:
                    failed.append({"id": row["id"], "error": error.message})
                    continue
                group.append(row)
                lines.append(line)
            for row, spoken in zip(group, tts.say_all(lines, speaking) if lines else [], strict=True):
                path = out / f"{row['id']}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_speech(spoken, path)
                done.append({**row, "audio": f"{row['id']}.flac", "duration": spoken.seconds, **spoken.report()})
            shown.update(min(len(rows), start + at_once))
    for name, found in (("spoken.jsonl", done), ("failed.jsonl", failed)):
        if found or name == "spoken.jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
            (out / name).write_text(text, encoding="utf-8")
    ended = {kind: sum(row["ended"] == kind for row in done) for kind in ENDINGS}
    text = f"{out}: {len(done)} of {len(rows)} spoken ({', '.join(f'{n} {kind}' for kind, n in ended.items())})"
    if failed:
        text += f"; {len(failed)} failed, see {out / 'failed.jsonl'}: {failed[0]['id']}: {failed[0]['error']}"
    return Result(text, {"folder": str(out), "spoken": len(done), "failed": failed, "ended": ended})


def read_lines(manifest: Path) -> list[dict[str, Any]]:
    """The rows of a list of texts.

    Raises:
        UsageError: it is no such list.
    """
    try:
        content = manifest.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {manifest}: {error}") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{manifest}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row["id"]:
            raise UsageError(f"{manifest}, line {number} has no id", 'write {"id": "...", "text": "..."} in every line')
        rows.append(row)
    if not rows:
        raise UsageError(f"{manifest} is empty", 'write {"id": "...", "text": "..."} in every line')
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise UsageError(f"{manifest} has the id {row['id']} twice", "give every row an id of its own")
        if Path(row["id"]).is_absolute() or ".." in Path(row["id"]).parts:
            raise UsageError(f"{manifest}: the id {row['id']} leads out of the folder", "ids name files")
        seen.add(row["id"])
    return rows


def transcribe(prompt: Path, recogniser: str) -> str:
    """What a recogniser hears in a prompt."""
    from xcodec_lm.tasks.eval.transcribers import load_transcriber

    transcriber = load_transcriber(recogniser)
    audio = load_audio(prompt, 16_000)
    return transcriber.transcribe([audio.wav[0].numpy()])[0]


def make_line(
    tts: TTS, row: dict[str, Any], folder: Path, seed: int, recogniser: str | None, heard: dict[Path, str | None]
) -> Line:
    """A row as something to say, with its prompt encoded.

    Args:
        tts: the models.
        row: with `text`, and `prompt_audio` (and `prompt_text`), or, where an utterance is to be continued, `audio` and
            `prompt_s`.
        folder: that paths are relative to.
        seed: of rows without one.
        recogniser: transcribes prompts without text.
        heard: what it heard before.

    Raises:
        XcodecLMError: there is no text, or the prompt cannot be used.
    """
    if not isinstance(row.get("text"), str):
        raise UsageError(f"row {row['id']} has no text", "give every row a text")
    own_seed = int(row.get("seed", seed))
    if row.get("prompt_s") and not row.get("prompt_audio"):  # continual: the prompt is the utterance's own beginning
        prompt = tts.prompt(folder / str(row["audio"]), seconds=float(row["prompt_s"]))
        return Line(row["text"], prompt, own_seed, continual=True)
    if not row.get("prompt_audio"):
        return Line(row["text"], None, own_seed)
    path, text = folder / str(row["prompt_audio"]), row.get("prompt_text")
    if text is None and recogniser is not None:
        if path not in heard:
            heard[path] = transcribe(path, recogniser)
        text = heard[path]
    return Line(row["text"], tts.prompt(path, text), own_seed)


def _pcm(wav: Tensor) -> bytes:
    samples = (wav.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    return samples.astype("<i2").tobytes()
