"""The command `compare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from xcodec_lm.tasks.commands.common import Device, OutFile, Result


def compare(
    codecs: tuple[str, ...], task: Literal["tts", "music", "sound"], out: OutFile, data: tuple[Path, ...] = (),
    size: str = "tiny", seeds: tuple[int, ...] = (0,), judges: Path | None = None, clap: str | None = None,
    device: Device = "auto",
) -> Result:  # fmt: skip
    """Does this codec make my audio language model better? Trains the same model on each codec's tokens, and judges.

    Same seeds, steps and seconds of audio for every codec; figures are paired over speakers, pieces or recordings. The
    same command again goes on where it was stopped; more --seeds use what is there.

    Args:
        codecs: two or more: run folders, model folders, shipped names, hub ids. The first is compared with the others.
        task: `tts`: zero-shot speech; `music`: continuation; `sound`: from captions.
        out: folder of the comparison.
        data: manifests with splits; tts needs `text` and `speaker`, sound `caption` and (without --clap) `label`.
            Without it the synthetic corpus of `data synth` is made, for which tts needs espeak-ng.
        size: `quick`, `tiny`, `small` or `paper` (presets show compare/SIZE), or a YAML file.
        seeds: of the trainings; several tell how much of a difference is chance of training.
        judges: tts: folder of `eval train-evaluators`, or of a CTC or Whisper model; sound: folder with clap/ and
            perhaps sound_class/. Without it small judges are trained on the corpus.
        clap: sound: the CLAP that conditions the models; without it clap-tiny if it is installed, else labels.
        device: where models train and speak.
    """
    from xcodec_lm.codec.runtime.progress import say
    from xcodec_lm.tasks.compare.page import write_page
    from xcodec_lm.tasks.compare.pipeline import compare as run
    from xcodec_lm.tasks.compare.pipeline import write_result
    from xcodec_lm.tasks.compare.table import format_result

    result, found = run(codecs, task, out, data, size, seeds, judges, clap, device)
    write_result(result, found, out)
    words: list[object] = ["xcodec-lm", "compare", "--codecs", *codecs, "--task", task]
    words += ["--data", *data] if data else []
    words += ["--size", size, "--seeds", *seeds]
    words += [word for flag, value in (("--judges", judges), ("--clap", clap)) if value for word in (flag, value)]
    command = shlex.join(map(str, [*words, "-o", out]))
    say(f"report: {write_page(result, found, out, command)}")
    return Result(format_result(result), result)
