"""Commands of the noun `music`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from xcodec_lm.tasks.commands.common import (
    Device,
    OutFile,
    Result,
    device_of,
    train_command,
)


def music_train(argv: list[str]) -> Result | int:
    """The command `music train`."""
    return train_command("music", "music", argv)


def music_continue(
    prompt: Positional[Path], /, run: str, out: OutFile, seconds: float = 30.0, seed: int = 0, codec: str | None = None,
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, device: Device = "auto",
) -> Result:  # fmt: skip
    """Continues a recording: writes the prompt's reconstruction and what the model adds.

    Args:
        prompt: the beginning, an audio file.
        run: run folder of the language model.
        out: the audio file to write.
        seconds: how much to add.
        seed: of the draws.
        codec: the codec, if it is no longer where the run says.
        temperature: 0 takes the likeliest code.
        top_k: draw from this many likeliest codes; 0 from all.
        top_p: draw from the likeliest codes that hold this much probability.
        device: where to compute.
    """
    from xcodec_lm.tasks.music.continuation import continue_file

    made = continue_file(
        prompt, run, seconds, out, seed, codec=codec, device=device_of(device),
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    prompt_s = made.prompt_samples / made.sample_rate
    total_s = made.wav.shape[2] / made.sample_rate
    return Result(
        f"{out}: {prompt_s:.2f} s of prompt, {total_s - prompt_s:.2f} s of continuation",
        {"audio": str(out), "prompt_s": prompt_s, "continuation_s": total_s - prompt_s, "seed": seed},
    )
