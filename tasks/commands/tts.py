"""Commands of the noun `tts`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.common import (
    Device,
    OutFile,
    OutOption,
    Result,
    device_of,
    read_text,
    train_command,
    write_result,
)

DEFAULT_RUN = "tts-tiny"
"""The shipped speech model that commands take unless they are told another."""


def tts_train(argv: list[str]) -> Result | int:
    """The command `tts train`."""
    return train_command("tts", "tts", argv)


def tts_say(
    out: OutFile, run: str = DEFAULT_RUN, text: str | None = None, prompt: Path | None = None,
    prompt_text: str | None = None, manifest: Path | None = None,
    best_of: Annotated[int | None, arg(aliases=("-n",))] = None, stream: bool = False, seed: int = 0,
    codec: str | None = None,
    codec_stage: Literal["nar", "ar"] = "nar", temperature: float | None = None, top_k: int | None = None,
    top_p: float | None = None, ras_window: int | None = None, cfg: float | None = None,
    nar_temperature: float | None = None, retries: int | None = None,
    rank: Literal["likelihood", "text"] | None = None, recogniser: str | None = None, device: Device = "auto",
) -> Result | int:  # fmt: skip
    """Speaks a text in the voice of a recording.

    With `--stream` every sentence is written as soon as it is spoken; `-o -` then writes 16-bit mono PCM without a
    header to the standard output. With `--manifest` many texts are spoken together, into the folder `-o`. How to draw
    and choose is the model's own (RUN/speaking.json), or in general a temperature of 1, a top p of 0.95, a window of 10
    and one draft with 2 retries; options change it.

    Args:
        out: the audio file to write, `-` for the standard output, or with --manifest a folder.
        run: folder of `tts train`, or the name of a shipped model.
        text: what to say.
        prompt: a recording of the voice; without it the model chooses one.
        prompt_text: what is said in it. Without it the prompt is transcribed by --recogniser, else used without text.
        manifest: JSON lines with `id`, `text` and, optionally, `prompt_audio` (relative to the file), `prompt_text`
            and `seed`.
        best_of: drafts of each sentence, of which one is kept.
        stream: write sentence by sentence.
        seed: of the draws.
        codec: the codec, if it is no longer where the run says.
        codec_stage: `ar` speaks the first codebook alone.
        temperature: of the first codebook; 0 takes the likeliest code.
        top_k: draw from this many likeliest codes; 0 from all.
        top_p: draw from the likeliest codes that hold this much probability.
        ras_window: repetition-aware sampling looks at so many codes before; 0 is off.
        cfg: guidance away from speech without a text; above 1 the text counts more, and decoding takes twice as long.
        nar_temperature: of the other codebooks; 0 takes the likeliest codes. By default none are drawn: those nearest
            to the mean of what the NAR expects are taken.
        retries: further drafts where speech did not end by itself.
        rank: which draft is kept: the likeliest for its length, or the one to which the `text` adds most likelihood.
        recogniser: transcribes prompts: a folder of `eval train-evaluators`, or a CTC or Whisper model's.
        device: where to compute.
    """
    from xcodec_lm.lm.sampling import Sampling
    from xcodec_lm.tasks.tts.speech import adjusted
    from xcodec_lm.tasks.tts.voice import load_tts

    if (text is None) == (manifest is None):
        raise UsageError("tts say needs --text or --manifest, one of them")
    tts = load_tts(run, codec, device_of(device))
    changed = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "ras_window": ras_window, "cfg": cfg,
        "best_of": best_of, "rank": rank, "retries": retries,
    }  # fmt: skip
    others = None if nar_temperature is None else Sampling(nar_temperature)
    speaking = replace(adjusted(tts.speaking, changed), codec_stage=codec_stage, nar_sampling=others)
    if manifest is not None:
        from xcodec_lm.tasks.tts.batch import say_manifest

        return say_manifest(tts, manifest, out, speaking, seed, recogniser)
    if prompt is not None and prompt_text is None and recogniser is not None:
        from xcodec_lm.tasks.tts.batch import transcribe

        prompt_text = transcribe(prompt, recogniser)
        say(f"{prompt}: heard as {prompt_text!r}")
    voice = None if prompt is None else tts.prompt(prompt, prompt_text)
    if voice is not None and voice.text is None:
        say("the prompt is used without text: give --prompt-text, or --recogniser, for a better likeness")
    assert text is not None
    if str(out) == "-" and not stream:
        raise UsageError("-o - writes audio while it is made", "add --stream")
    if stream:
        from xcodec_lm.tasks.tts.batch import say_stream

        result = say_stream(tts, text, voice, seed, speaking, sys.stdout.buffer if str(out) == "-" else out)
        return 0 if str(out) == "-" else result
    if not out.parent.is_dir():
        raise XcodecLMError(f"cannot write {out}: {out.parent} is no folder", "make the folder first")
    from xcodec_lm.tasks.tts.batch import describe_speech, write_speech

    with Progress("tts say", 1) as shown:
        spoken = tts.say(text, voice, seed=seed, speaking=speaking)
        shown.update(1)
    write_speech(spoken, out)
    return Result(f"{out}: {describe_speech(spoken)}", {"audio": str(out), "seed": seed, **spoken.report()})


def tts_eval(
    manifest: Positional[Path], /, runs: tuple[str, ...], judges: Path, out: OutOption = None,
    codecs: tuple[str, ...] = (), best_of: int | None = None, temperature: float | None = None,
    top_p: float | None = None, ras_window: int | None = None, cfg: float | None = None,
    rank: Literal["likelihood", "text"] | None = None, voices: Path | None = None,
    most: int | None = None, controls: bool = True, seed: int = 0, device: Device = "auto",
) -> Result:  # fmt: skip
    """Measures zero-shot speech: word errors and likeness of the voice, beside real recordings, the codec and chance.

    All runs speak as the first one does best, see `tts say`; options change it.

    Args:
        manifest: list of `data continual`: utterances with text, each with a prompt.
        runs: folders of `tts train`; the first is compared with each of the others.
        judges: folder of `eval train-evaluators`, or of a CTC or Whisper model's.
        out: folder for the audio of every system, items.jsonl, result.json and report.html to listen to it.
        codecs: of each run, if they are no longer where the runs say.
        best_of: drafts of each utterance, of which one is kept.
        temperature: of the first codebook.
        top_p: of the first codebook.
        ras_window: of repetition-aware sampling; 0 is off.
        cfg: guidance away from speech without a text; 1 is off.
        rank: which draft is kept: the likeliest for its length, or the one to which the `text` adds most likelihood.
        voices: manifest of recordings with `speaker` and `source`: other speakers that likeness is compared with, where
            the list itself has few of a source.
        most: take the first so many rows alone.
        controls: also shuffled texts and untrained models.
        seed: of draws and intervals.
        device: where to compute.
    """
    from xcodec_lm.tasks.tts.evaluate import evaluate_tts, format_tts, load_judges, write_items
    from xcodec_lm.tasks.tts.page import write_page
    from xcodec_lm.tasks.tts.speech import adjusted
    from xcodec_lm.tasks.tts.voice import load_tts

    if not runs or (codecs and len(codecs) != len(runs)):
        raise UsageError(f"{len(codecs)} codecs for {len(runs)} runs", "give --runs, and one codec for each or none")
    where = device_of(device)
    listeners = load_judges(judges, where)
    loaded = [
        (Path(run).name, load_tts(run, codecs[index] if codecs else None, where)) for index, run in enumerate(runs)
    ]
    changed = {
        "temperature": temperature, "top_p": top_p, "ras_window": ras_window, "cfg": cfg, "best_of": best_of,
        "rank": rank,
    }  # fmt: skip
    speaking = adjusted(loaded[0][1].speaking, changed)
    data = evaluate_tts(loaded, manifest, listeners, out, speaking, seed, most, controls, voices)
    if out is not None:
        write_items(data, out / "items.jsonl")
        write_result(out, "tts eval", data, [manifest])
        say(f"report: {write_page(data, manifest, out)}")
    return Result(format_tts(data), {key: value for key, value in data.items() if key != "items"})


def tts_card(
    run: Positional[Path], /, out: OutFile, evaluation: Path | None = None, notes: Path | None = None,
    speaking: Path | None = None,
) -> Result:  # fmt: skip
    """Writes speech models as a folder for others: half precision, a card, and what they were trained on.

    Args:
        run: finished run of tts train, on tokens of a codec that others have: a shipped name or a hub id.
        out: folder to write; its name becomes the model's.
        evaluation: what `tts eval` printed, to go into the card.
        notes: Markdown about limits, to go into the card.
        speaking: JSON of the settings that the model speaks best with, such as {"temperature": 0.7, "cfg": 2}; they
            become its `speaking.json`. Without it that of the run, if it has one.
    """
    from xcodec_lm.lm.load import find_model, model_facts
    from xcodec_lm.lm.valle_ar import ValleAR
    from xcodec_lm.lm.valle_nar import ValleNAR
    from xcodec_lm.tasks.report.card import tts_card as make_card
    from xcodec_lm.tasks.report.card import write_card
    from xcodec_lm.tasks.tts.speech import FILE, read_speaking
    from xcodec_lm.tasks.tts.symbols import TextEncoder

    text, data = make_card(run, *(read_text(path) for path in (evaluation, notes)))
    for stage, kind in (("ar", ValleAR), ("nar", ValleNAR)):
        if not (run / stage).is_dir():
            continue
        folder = find_model(run / stage)
        facts = model_facts(folder, kind.kind)
        named = facts["codec"].get("path")
        if named is None or (folder.resolve().parent / named).resolve().exists():
            raise XcodecLMError(
                f"{run} speaks the tokens of {named}, a folder that others do not have",
                "tokenize with a shipped codec",
            )
        kept = {name: value for name, value in facts.items() if name in ("codec", "steps", "pace", "guidable")}
        kind.from_pretrained(folder).save_pretrained(out / stage, kept, half=True)
    TextEncoder.load(run / "text").save(out / "text")
    settings = speaking or run / FILE
    if speaking is not None or settings.is_file():
        read_speaking(settings)  # refuses what cannot be
        (out / FILE).write_text(settings.read_text(encoding="utf-8"), encoding="utf-8")
    write_card((text.replace(f"# {run.resolve().name}\n", f"# {out.resolve().name}\n", 1), data), out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Result(f"{out}: {size / 1e6:.2f} MB", {"folder": str(out), "bytes": size})
