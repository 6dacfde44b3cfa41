"""The command `eval train-evaluators`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.commands.common import Device, OutFile, Result, load_codec_for

Kind = Literal["recogniser", "speaker"]


def train_evaluators(
    data: tuple[Path, ...], out: OutFile,
    kinds: tuple[Kind, ...] = ("recogniser", "speaker"), steps: int | None = None, seed: int = 0,
    codecs: tuple[str, ...] = (), copies: int = 100, longest_s: float = 12.0, threads: int | None = None,
    resume: Literal["auto", "never"] = "auto", device: Device = "auto",
) -> Result:  # fmt: skip
    """Trains small judges of generated speech on the data at hand: a recogniser, an embedder of speakers.

    Each trains on split train and is measured on dev and test: word error rate by manifest, equal-error rate of
    speakers by source. A recogniser whose texts have at most 100 different words names whole words, else it spells.
    Read its error rate on real recordings before anything that it says of generated ones.

    Args:
        data: manifests with `text` (recogniser) and `speaker` (embedder).
        out: folder; each judge is a run folder in it. The same command again continues.
        kinds: which judges.
        steps: training steps of each.
        seed: of every draw.
        codecs: codecs through which copies of training clips are made; all get the same clips, so none is favoured.
        copies: clips that are copied.
        longest_s: longer clips are left out of the recogniser's training.
        threads: of the CPU in training; small judges gain little from more than one.
        resume: continue what is in --out, or refuse it.
        device: where to compute.
    """
    from dataclasses import replace

    from xcodec_lm.codec.runtime.run import RunOptions
    from xcodec_lm.configs.evaluators import EvaluatorTrainConfig
    from xcodec_lm.tasks.eval.judge_copies import make_copies
    from xcodec_lm.tasks.eval.train_evaluators import train

    if not data or not kinds:
        raise UsageError("eval train-evaluators needs at least one manifest and one kind")
    if copies < 1 or (steps is not None and steps < 1):
        raise UsageError("--copies and --steps must be at least 1")
    manifests = tuple(str(path) for path in data)
    copied = ""
    if codecs:
        models = {name: load_codec_for(name, device) for name in codecs}
        copied = str(make_copies(manifests, models, copies, min(6.0, longest_s), out / "copies", seed))
        del models
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(kinds):
        base = EvaluatorTrainConfig.of(kind)
        config = replace(
            base, data=replace(base.data, manifests=manifests, copies=copied, longest_s=longest_s),
            run=replace(base.run, seed=seed, threads=threads),
            optim=base.optim if steps is None else replace(base.optim, steps=steps, warmup_steps=min(60, steps // 4)),
        )  # fmt: skip
        folder = train(config, RunOptions(out=out / kind, resume=resume, device=device))
        found[kind] = {"run": str(folder), **_measure(kind, folder, manifests)}
    return Result(_format(found), found)


def _measure(kind: Kind, folder: Path, manifests: tuple[str, ...]) -> dict[str, Any]:
    """A judge on dev and test: manifest or source -> figures."""
    from xcodec_lm.codec.clips import read_manifest, read_manifests
    from xcodec_lm.tasks.eval import train_evaluators as trainer
    from xcodec_lm.tasks.eval import wer
    from xcodec_lm.tasks.eval.speaker import load_speaker_embedder
    from xcodec_lm.tasks.eval.transcribers import load_transcriber

    found: dict[str, Any] = {}
    for split in ("dev", "test"):
        if kind == "recogniser":
            transcriber = load_transcriber(folder)
            for manifest in manifests:
                clips = [clip for clip in read_manifest(manifest) if clip.split == split]
                pairs = trainer.transcribe_clips(transcriber, trainer.thin(clips, 400))
                if pairs:
                    estimate = wer.rate_estimate(wer.word_counts(pairs), pairs)
                    found[f"{split}, {Path(manifest).parent.name}/{Path(manifest).name}"] = {"wer": estimate.to_dict()}
        else:
            clips = read_manifests(manifests, split)
            checked = trainer.verify_clips(load_speaker_embedder(folder), trainer.thin(clips, 600))
            found |= {f"{split}, {source}": entry for source, entry in checked.items()}
    return {"measured": found}


def _format(found: dict[str, Any]) -> str:
    lines = []
    for kind, entry in found.items():
        lines.append(f"{kind}: {entry['run']}")
        for name, row in entry["measured"].items():
            if "wer" in row:
                low, high = (row["wer"][key] for key in ("low", "high"))
                interval = "" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})"
                lines.append(f"  {name}: WER {100 * row['wer']['value']:.1f} %{interval}, {row['wer']['scored']} clips")
            else:
                rate = "not to be had" if row["eer"] is None else f"{100 * row['eer']:.1f} %"
                lines.append(
                    f"  {name}: equal-error rate {rate}; {row['speakers']} speakers, {row['recordings']} clips"
                )
    return "\n".join(lines)
