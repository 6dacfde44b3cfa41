"""Commands of the noun `music`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from xcodec_lm.codec.runtime.progress import say
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


def music_train(argv: list[str]) -> Result | int:
    """The command `music train`."""
    return train_command("music", "music", argv)


def music_continue(
    prompt: Positional[Path], /, run: str, out: OutFile, seconds: float = 30.0, samples: int = 1, seed: int = 0,
    codec: str | None = None, prompt_s: float | None = None, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0, min_p: float = 0.0, ras_window: int = 0, ras_threshold: float = 0.1,
    precision: Literal["fp32", "bf16", "int8"] = "fp32", device: Device = "auto",
) -> Result | int:  # fmt: skip
    """Continues a recording: writes the prompt's reconstruction and what the model adds.

    With `-o -` the audio goes to the standard output while it is made, as 16-bit mono PCM without a header.

    Args:
        prompt: the beginning, an audio file.
        run: run folder of the language model, or the name of a shipped one.
        out: the audio file to write; `-` for the standard output.
        seconds: how much to add; beyond the model's block its last half is kept and read again.
        samples: continuations to make; several are numbered.
        seed: of the draws.
        codec: the codec, if it is no longer where the run says.
        prompt_s: use the first so many seconds of the prompt alone.
        temperature: 0 takes the likeliest code.
        top_k: draw from this many likeliest codes; 0 from all.
        top_p: draw from the likeliest codes that hold this much probability.
        min_p: leave out codes less than this many times as likely as the likeliest.
        ras_window: repetition-aware sampling looks at so many codes before; 0 is off, VALL-E 2 takes 10.
        ras_threshold: draw again what is more than this share of them.
        precision: bf16 and int8 (CPU) decode faster and predict a little worse; `music eval` says how much.
        device: where to compute.
    """
    from xcodec_lm.lm.sampling import Sampling
    from xcodec_lm.tasks.music.continuation import continue_file, load_music, read_prompt, sample_paths, stream_pcm

    sampling = Sampling(temperature, top_k, top_p, min_p, ras_window=ras_window, ras_threshold=ras_threshold)
    if str(out) == "-" and samples != 1:
        raise UsageError(f"one continuation can be streamed, not {samples}", "give a file with -o")
    music = load_music(run, codec, device_of(device), precision)
    audio = read_prompt(music, prompt, prompt_s)
    if str(out) == "-":
        written, rate = stream_pcm(music, audio, seconds, sys.stdout.buffer.write, seed, sampling)
        sys.stdout.buffer.flush()
        say(f"{written / rate:.2f} s of 16-bit PCM at {rate} Hz, mono")
        return 0  # nothing else may stand on the standard output
    made = continue_file(music, audio, seconds, out, seed, sampling, samples)
    files = [str(path) for path in sample_paths(Path(out), samples)]
    prompt_length = made.prompt_samples / made.sample_rate
    total_s = made.wav.shape[2] / made.sample_rate
    return Result(
        f"{', '.join(files)}: {prompt_length:.2f} s of prompt, {total_s - prompt_length:.2f} s of continuation",
        {"audio": files[0] if samples == 1 else files, "prompt_s": prompt_length,
         "continuation_s": total_s - prompt_length, "seed": seed},
    )  # fmt: skip


def music_eval(
    run: Positional[str], manifests: Positional[tuple[Path, ...]], /, out: OutOption = None,
    tokens: Path | None = None, split: Literal["train", "dev", "test"] = "test", codec: str | None = None,
    prompt_s: float | None = None, seconds: float | None = None, prompts: int = 20, temperature: float = 1.0,
    top_k: int = 0, top_p: float = 1.0, precision: Literal["fp32", "bf16", "int8"] = "fp32", seed: int = 0,
    device: Device = "auto",
) -> Result:  # fmt: skip
    """Measures a music model on unseen recordings: bits per second of audio beside n-grams, and sets of continuations.

    Args:
        run: run folder of the language model, or the name of a shipped one.
        manifests: JSON lines of the recordings.
        out: folder for prompts, what really follows, its resynthesis and the model's continuations, result.json and
            report.html; without it none are made.
        tokens: token store that the n-grams are fitted on; without it, that of the run.
        split: which rows are measured.
        codec: the codec, if it is no longer where the run says.
        prompt_s: seconds of prompt; without it 10, or 5 where the model speaks several codebooks.
        seconds: seconds of continuation; without it 30, or 5.
        prompts: how many prompts are continued at most.
        temperature: of the continuations.
        top_k: of the continuations.
        top_p: of the continuations.
        precision: of the language model.
        seed: of draws and intervals.
        device: where to compute.
    """
    from xcodec_lm.lm.sampling import Sampling
    from xcodec_lm.lm.shards import open_stores
    from xcodec_lm.tasks.music.continuation import load_music, stores_of
    from xcodec_lm.tasks.music.evaluate import evaluate_music, format_music

    if not manifests:
        raise UsageError("music eval needs at least one manifest")
    music = load_music(run, codec, device_of(device), precision)
    data = evaluate_music(
        music, list(manifests), open_stores(tokens or stores_of(run)), out, split, prompt_s, seconds, prompts, seed,
        Sampling(temperature, top_k, top_p),
    )  # fmt: skip
    if out is not None:
        from xcodec_lm.tasks.music.page import write_page
        from xcodec_lm.tasks.report.collect import how_made

        made = write_result(out, "music eval", data, list(manifests), seed=seed)
        say(f"report: {write_page(data, out, how_made(made, out.name))}")
    return Result(format_music(data), {key: value for key, value in data.items() if key != "items"})


def music_card(
    run: Positional[Path], /, out: OutFile, evaluation: Path | None = None, notes: Path | None = None
) -> Result:
    """Writes a music model's folder for others: half precision, a card, and what it was trained on.

    Args:
        run: finished run of music train, on tokens of a codec that others have: a shipped name or a hub id.
        out: folder to write; its name becomes the model's.
        evaluation: what `music eval` printed, to go into the card.
        notes: Markdown about limits, to go into the card.
    """
    from xcodec_lm.lm.load import find_model, load_lm
    from xcodec_lm.lm.shards import open_stores
    from xcodec_lm.tasks.music.continuation import stores_of
    from xcodec_lm.tasks.report.card import music_card as make_card
    from xcodec_lm.tasks.report.card import write_card

    text, data = make_card(run, *(read_text(path) for path in (evaluation, notes)))
    loaded, codec = load_lm(find_model(run)), open_stores(stores_of(run)).codec
    if codec is None or Path(codec).exists():
        raise XcodecLMError(
            f"{run} speaks the tokens of {codec}, a folder that others do not have", "tokenize with a shipped codec"
        )
    loaded.model.save_pretrained(out, {"codec": {**loaded.facts, "path": codec}}, half=True)
    write_card((text.replace(f"# {run.resolve().name}\n", f"# {out.resolve().name}\n", 1), data), out)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    return Result(f"{out}: {size / 1e6:.2f} MB", {"folder": str(out), "bytes": size})
