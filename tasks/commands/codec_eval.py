"""The command `codec eval`: how well a codec reconstructs, alone or beside another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.commands.common import Device, OutOption, Result, load_codec_for, write_result


def codec_eval(
    codec: Positional[str], manifests: Positional[tuple[Path, ...]], /,
    split: Literal["train", "dev", "test", "all"] = "test", against: str | None = None, probes: bool = True,
    items: Path | None = None, clip_s: float | None = None, out: OutOption = None,
    device: Device = "auto", seed: int = 0,
) -> Result:  # fmt: skip
    """Measures reconstructions by domain, beside silence, white noise and shaped noise, or beside another codec.

    Mel and STFT distance, SI-SDR, and for speech STOI and PESQ (extra `eval`), at 1, 2, 4 and 8 layers, with 95 %
    intervals over speakers, pieces or recordings. With --against also the differences, linear probes of the codecs'
    vectors, ABX errors and the cost of encoding.

    Args:
        codec: run folder, model folder, shipped name or hub id.
        manifests: JSON lines, one file a domain; its name is the domain's.
        split: which rows are reconstructed; probes train on train, ABX takes words of dev too with test.
        against: the codec to compare with, such as the twin without semantics.
        probes: with --against: probes, ABX and the cost of encoding.
        items: of ABX, a Libri-light .item file, JSON lines or a folder of TextGrids; else recordings of single words.
        clip_s: take at most this much of each recording.
        out: folder for result.json and report.html, with recordings to hear at 1, 2, 4 and 8 layers.
        device: where to compute.
        seed: of the intervals, samples and probes.
    """
    from xcodec_lm.tasks.eval.abx_items import read_items
    from xcodec_lm.tasks.eval.codec_compare import compare
    from xcodec_lm.tasks.eval.codec_text import format_comparison

    if not manifests:
        raise UsageError("codec eval needs at least one manifest")
    if items is not None and (against is None or not probes):
        raise UsageError(
            "--items are for ABX, which is part of a comparison", "add --against CODEC, without --no-probes"
        )
    stretches = None if items is None else read_items(items)
    models = {"codec": load_codec_for(codec, device)}
    if against is not None:
        models["against"] = load_codec_for(against, device)
    data = compare(
        models, list(manifests), None if split == "all" else split, clip_s,
        looks_inside=against is not None and probes, items=stretches, seed=seed,
    )  # fmt: skip
    if out is not None:
        from xcodec_lm.codec.runtime.progress import say
        from xcodec_lm.tasks.eval.codec_page import role_names, write_page
        from xcodec_lm.tasks.eval.reconstruction import read_domains
        from xcodec_lm.tasks.report import reconstruct_clips
        from xcodec_lm.tasks.report.collect import how_made

        made = write_result(out, "codec eval", data, list(manifests), seed=seed)
        heard = {name: models[role] for role, name in reversed(role_names(data).items())}
        clips = [domain.clips[0] for domain in read_domains(list(manifests), None if split == "all" else split)]
        grids = reconstruct_clips(heard, clips, data["n_q"])
        say(f"report: {write_page(data, out, grids, how_made(made, out.name))}")
    return Result(format_comparison(data), data)
