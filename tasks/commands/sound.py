"""Commands of the noun `sound`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from xcodec_lm.tasks.commands.common import Device, OutFile, Result, device_of, train_command

SHORT = {"--data": "--data.manifests", "--codec": "--data.codec", "--clap": "--data.clap"}
"""Flags of `sound train` that are short for those of its configuration."""


def sound_train(argv: list[str]) -> Result | int:
    """The command `sound train`."""
    return train_command("sound", "sound", [_spelled_out(word) for word in argv])


def _spelled_out(word: str) -> str:
    name, equals, value = word.partition("=")
    return SHORT.get(name, name) + equals + value


def sound_make(
    caption: Positional[str | None] = None, /, *, run: str, out: OutFile, audio: Path | None = None,
    seconds: float = 10.0, samples: Annotated[int, arg(aliases=("-n",))] = 1, seed: int = 0, cfg: float | None = None,
    codec: str | None = None, clap: str | None = None, may_end: bool = False, temperature: float = 1.0,
    top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, precision: Literal["fp32", "bf16", "int8"] = "fp32",
    device: Device = "auto",
) -> Result:  # fmt: skip
    """Makes sounds from a caption, or sounds like a recording, and writes them as WAV files.

    Args:
        caption: what is to be heard, such as "dog barking in the rain"; in place of it --audio.
        run: run folder of the model, or the name of a shipped one.
        out: folder to write to; a file is named after the caption.
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
