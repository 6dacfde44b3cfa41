"""Commands without a noun: the demo, presets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from xcodec_lm import configs
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.commands.common import (
    Result,
)


def demo(
    out: Path = Path("runs/demo"), corpus: Path | None = None, quick: bool = False, from_scratch: bool = False,
    seed: int = 0, speak: tuple[str, ...] = (), judges: Path | None = None,
) -> Result:  # fmt: skip
    """Runs the whole path in under ten minutes: corpus, tokens, language model, continuations, report.

    Speech models say strings of digits on a second page, speak.html.

    Args:
        out: folder of the demo; a second call continues where the first stopped.
        corpus: a manifest of real recordings instead of the synthetic ones. For the second page it, or speech.jsonl
            beside it, may hold single spoken digits in its test split.
        quick: all stages at a size of a minute; what it makes is not worth hearing.
        from_scratch: train a codec too, instead of taking the shipped xcodec-tiny.
        seed: of everything.
        speak: speech models for the second page, folders of tts train or shipped names; default tts-tiny if it ships.
        judges: folder of eval train-evaluators, whose recogniser marks the errors; without it no words are marked.
    """
    from xcodec_lm.codec.runtime.progress import say
    from xcodec_lm.tasks.demo.pipeline import run_demo

    report, spoken = run_demo(out, corpus, quick, from_scratch, seed, speak, judges)
    if spoken is not None:
        say(f"speech: {spoken}")
    return Result(f"report: {report}", {"report": str(report), "speech": spoken and str(spoken)})


def presets(
    action: Positional[Literal["ls", "show", "cp"]] = "ls",
    name: Positional[str] = "",
    out: Annotated[Path | None, arg(aliases=("-o",))] = None,
) -> Result:
    """Lists presets, shows one, or copies one to a file to edit.

    Args:
        action: ls, show or cp.
        name: the preset, as family/size.
        out: where cp writes; default SIZE.yaml.
    """
    if action == "ls":
        return Result("\n".join(configs.presets()), configs.presets())
    text = configs.preset_text(name)
    if action == "show":
        return Result(text.rstrip(), configs.to_dict(configs.load(name, configs.FAMILIES[name.split("/")[0]])))
    target = out or Path(f"{name.split('/')[1]}.yaml")
    if target.exists():
        raise XcodecLMError(f"{target} exists already", "name another file with -o")
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise XcodecLMError(f"cannot write {target}: {error.strerror}", "choose another file with -o") from None
    return Result(f"{target}", {"file": str(target)})
