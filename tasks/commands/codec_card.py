"""The command `codec card`: what a codec is as a language model's tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.commands.common import Device, OutFile, Result, load_codec_for


def codec_card(
    codec: Positional[str], /, manifests: tuple[Path, ...], out: OutFile, against: str | None = None,
    judges: Path | None = None, items: Path | None = None, split: Literal["train", "dev", "test", "all"] = "test",
    clips: int = 40, clip_s: float = 5.0, quick: bool = False, device: Device = "auto", seed: int = 0,
) -> Result:  # fmt: skip
    """Measures what can be known about a codec's tokens in minutes, without training a language model on them.

    What resynthesis keeps at 1, 2, 4 and 8 layers (distances; words and voice with --judges), ABX errors, linear
    probes, entropy and counting models' bits, codebook use, how many codes survive a shift of less than a frame or soft
    noise, rates and speed. Writes OUT/index.html, one page that loads nothing, and OUT/card.json.

    Args:
        codec: run folder, model folder, shipped name or hub id.
        manifests: JSON lines, one file a domain.
        out: folder to write.
        against: another codec, measured on the same recordings; its figures stand beside with paired differences.
        judges: what `eval train-evaluators` wrote: word errors and likeness of the resynthesis.
        items: of ABX, a Libri-light .item file, JSON lines or a folder of TextGrids; else recordings of single words.
        split: whose recordings are measured; counting models learn from train.
        clips: recordings of each manifest that are measured.
        clip_s: what is taken of each recording.
        quick: a third of everything, for a first look.
        device: where judges compute; codecs of this command compute there too.
        seed: of draws, noise and intervals.
    """
    import json
    import shlex

    from xcodec_lm.codec.runtime.files import write_files
    from xcodec_lm.tasks.commands.common import device_of
    from xcodec_lm.tasks.eval.abx_items import read_items
    from xcodec_lm.tasks.eval.codec_card import CardSettings, measure_card
    from xcodec_lm.tasks.eval.codec_card_page import card_report, format_card
    from xcodec_lm.tasks.report import render
    from xcodec_lm.tasks.tts.evaluate import load_judges

    if not manifests:
        raise UsageError("codec card needs at least one manifest", "add --manifests FILE")
    if clips < 1 or not clip_s > 0:
        raise UsageError("--clips and --clip-s must be positive")
    stretches = None if items is None else read_items(items)
    listeners = load_judges(judges, device_of(device))
    models = {"codec": load_codec_for(codec, device)}
    if against is not None:
        models["against"] = load_codec_for(against, device)
    settings = CardSettings(split=None if split == "all" else split, clips=clips, clip_s=clip_s, seed=seed)
    if quick:
        few = {name: max(1, getattr(settings, name) // 3) for name in ("clips", "fit_clips", "word_clips", "per_class")}
        settings = replace(settings, shaken_clips=3, **few)
    data = measure_card(
        models, list(manifests), settings, transcriber=listeners.transcriber, embedder=listeners.embedder,
        items=stretches,
    )  # fmt: skip
    words = ["xcodec-lm codec card", codec, "--manifests", *(path.name for path in manifests)]
    words += [] if against is None else ["--against", against]
    command = " ".join([words[0], shlex.join(words[1:])])
    text = json.dumps(data | {"command": command}, indent=1) + "\n"
    write_files(out, {"card.json": lambda path: path.write_text(text, encoding="utf-8")})
    page = render(card_report(data, command), out / "index.html")
    return Result(f"{format_card(data)}\n\n{page} and {out / 'card.json'}", data)
