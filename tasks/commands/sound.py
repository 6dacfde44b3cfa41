"""Commands of the noun `sound`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import UsageError
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

SHORT = {"--data": "--data.manifests", "--codec": "--data.codec", "--clap": "--data.clap"}
"""Flags of `sound train` that are short for those of its configuration."""


def sound_train(argv: list[str]) -> Result | int:
    """The command `sound train`."""
    return train_command("sound", "sound", [_spelled_out(word) for word in argv])


def _spelled_out(word: str) -> str:
    name, equals, value = word.partition("=")
    return SHORT.get(name, name) + equals + value


def sound_make(
    caption: Positional[str | None] = None, /, *, out: OutFile, run: str = "sound-tiny", audio: Path | None = None,
    seconds: float = 10.0, samples: Annotated[int, arg(aliases=("-n",))] = 1, seed: int = 0, cfg: float | None = None,
    codec: str | None = None, clap: str | None = None, may_end: bool = False, temperature: float = 1.0,
    top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, precision: Literal["fp32", "bf16", "int8"] = "fp32",
    device: Device = "auto",
) -> Result:  # fmt: skip
    """Makes sounds from a caption, or sounds like a recording, and writes them as WAV files.

    Args:
        caption: what is to be heard, such as "dog barking in the rain"; in place of it --audio.
        out: folder to write to; a file is named after the caption.
        run: run folder of the model, or the name of a shipped one.
        audio: a recording that the sounds are to be like.
        seconds: length of each; beyond the model's block its last half is kept and read again behind the condition.
        samples: sounds to make; several are numbered.
        seed: of the draws.
        cfg: classifier-free guidance: 1 is none, more follows the caption more closely and varies less; by default 3,
            or 1 for a model that was trained without dropping conditions.
        codec: the codec, if it is no longer where the run says.
        clap: the CLAP, likewise; it must be the one that the run was trained with.
        may_end: let a sound end earlier, where the model takes it to be over.
        temperature: 0 takes the likeliest code.
        top_k: draw from this many likeliest codes; 0 from all.
        top_p: draw from the likeliest codes that hold this much probability.
        min_p: leave out codes less than this many times as likely as the likeliest.
        precision: bf16 and int8 (CPU) decode faster and predict a little worse.
        device: where to compute.
    """
    from xcodec_lm.lm.sampling import Sampling
    from xcodec_lm.tasks.sound.make import load_sound, make_files

    sampling = Sampling(temperature, top_k, top_p, min_p)
    sound = load_sound(run, codec, clap, device_of(device), precision)
    guidance = sound.default_guidance if cfg is None else cfg
    written = make_files(sound, caption, audio, seconds, out, samples, seed, guidance, sampling, may_end)
    return Result(
        "\n".join(f"{path}: {length:.2f} s" for path, length in written),
        {"audio": [str(path) for path, _ in written], "seconds": [length for _, length in written],
         "caption": caption, "like": None if audio is None else str(audio), "seed": seed, "cfg": guidance},
    )  # fmt: skip


def sound_eval(
    manifests: Positional[tuple[Path, ...]], /, runs: tuple[str, ...], judges: Path | None = None,
    out: OutOption = None, codecs: tuple[str, ...] = (), claps: tuple[str, ...] = (),
    samples: Annotated[int, arg(aliases=("-n",))] = 1, seconds: float | None = None, cfg: float | None = None,
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
    split: Literal["train", "dev", "test"] = "test", most: int | None = None, controls: bool = True, seed: int = 0,
    precision: Literal["fp32", "bf16", "int8"] = "fp32", device: Device = "auto",
) -> Result:  # fmt: skip
    """Measures text to sound: classes, CLAP scores, distances to real sounds, copies; beside controls and the codec.

    Args:
        manifests: JSON lines of sounds with captions; where known with `label` and `recording`. Split train is what a
            judge of classes is trained on and copies are looked for in.
        runs: folders of `sound train`, or names of shipped models; the first is compared with each of the others.
        judges: folder with clap/, a run of `clap train` with another seed and split than the conditioner's, and perhaps
            sound_class/; or a CLAP alone. Without it there are no CLAP scores.
        out: folder for the sounds of every system, items.jsonl, result.json and report.html; sound_class/ in it is the
            judge of classes, if --judges has none.
        codecs: of each run, if they are no longer where the runs say.
        claps: the CLAP of each run, likewise.
        samples: sounds of each caption.
        seconds: of each; by default the median of the recordings, at most what every model sees at once.
        cfg: classifier-free guidance; by default each model's usual one.
        temperature: 0 takes the likeliest code.
        top_k: draw from this many likeliest codes; 0 from all.
        top_p: draw from the likeliest codes that hold this much probability.
        min_p: leave out codes less than this many times as likely as the likeliest.
        split: whose captions are taken.
        most: take the first so many rows alone.
        controls: also captions of other classes, untrained models and shuffled codes.
        seed: of draws, judges and intervals.
        precision: of the language models.
        device: where to compute.
    """
    import json

    from xcodec_lm.codec.clips import read_manifests
    from xcodec_lm.lm.sampling import Sampling
    from xcodec_lm.tasks.sound.evaluate import Making, evaluate_sound
    from xcodec_lm.tasks.sound.judging import load_judges
    from xcodec_lm.tasks.sound.make import load_sound
    from xcodec_lm.tasks.sound.page import write_page
    from xcodec_lm.tasks.sound.scoring import format_sound

    if not manifests or not runs:
        raise UsageError("sound eval needs a manifest and a run", "sound eval sounds.jsonl --runs RUN --judges FOLDER")
    for given, what in ((codecs, "codecs"), (claps, "CLAPs")):
        if given and len(given) != len(runs):
            raise UsageError(f"{len(given)} {what} for {len(runs)} runs", "give one for each run, or none")
    if samples < 1 or (most is not None and most < 2) or (seconds is not None and not seconds > 0):
        raise UsageError("--samples must be at least 1, --most 2, and --seconds above 0")
    where = device_of(device)
    loaded = [
        (Path(run).name, load_sound(run, codecs[index] if codecs else None, claps[index] if claps else None, where,
                                    precision))
        for index, run in enumerate(runs)
    ]  # fmt: skip
    listeners = load_judges(judges, read_manifests(list(manifests), "train"), out, seed, where)
    making = Making(seconds, samples, cfg, Sampling(temperature, top_k, top_p, min_p), seed)
    data = evaluate_sound(loaded, list(manifests), listeners, out, making, split, most, controls)
    if out is not None:
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in data["items"])
        (out / "items.jsonl").write_text(lines, encoding="utf-8")
        write_result(out, "sound eval", data, list(manifests))
        say(f"report: {write_page(data, list(manifests), out)}")
    return Result(format_sound(data), {key: value for key, value in data.items() if key != "items"})


def sound_card(
    run: Positional[Path], /, out: OutFile, evaluation: Path | None = None, notes: Path | None = None
) -> Result:
    """Writes a text-to-sound model as a folder for others: half precision, a card, what it was trained on.

    Args:
        run: finished run of sound train, on a codec and a CLAP that others have: shipped names or hub ids.
        out: folder to write; its name becomes the model's.
        evaluation: what `sound eval` printed, to go into the card.
        notes: Markdown about limits, to go into the card.
    """
    from xcodec_lm.tasks.report.card_sound import write_sound_model

    size = write_sound_model(run, out, *(read_text(path) for path in (evaluation, notes)))
    return Result(f"{out}: {size / 1e6:.2f} MB", {"folder": str(out), "bytes": size})
