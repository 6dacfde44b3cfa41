"""Commands of the noun `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from xcodec_lm.configs.errors import PartialError, UsageError
from xcodec_lm.tasks.commands.common import Device, OutFile, Result, device_of, load_codec_for

Kind = Literal["recogniser", "speaker"]
Suite = Literal["speech", "music", "sound", "reconstruction"]


def eval_list(licences: bool = False) -> Result:
    """Lists every metric: what it needs, who hears for it, what stands in offline, what is missing and how to get it.

    Args:
        licences: show licences of weights and libraries in place of what is missing.
    """
    from xcodec_lm.tasks.eval.run_text import format_list, list_metrics, list_plugins

    return Result(format_list(licences), {"metrics": list_metrics(), "plugins": list_plugins()})


def eval_run(
    suite: Positional[Suite], /, out: OutFile, manifest: Path | None = None, ref: Path | None = None,
    hyp: tuple[str, ...] = (), metrics: tuple[str, ...] = (), judges: Path | None = None, weights: tuple[str, ...] = (),
    references: Path | None = None, made_by: tuple[str, ...] = (), cache: Path | None = None, workers: int = 1,
    seed: int = 0, device: Device = "auto",
) -> Result | tuple[Result, PartialError]:  # fmt: skip
    """Measures made recordings against their references, paired by id, with intervals and verdicts.

    Writes results.json, items.jsonl (a line a recording), and failed.jsonl; exit code 3 if something failed.

    Args:
        suite: which metrics: speech, music, sound or reconstruction.
        out: folder for the results.
        manifest: pairs file, JSON lines: id, audio, and as needed system, ref_audio, prompt_audio, text, caption,
            label, unit (or speaker, piece, recording). Systems called "ground truth", "resynthesis", "noise" or
            "shuffled" are anchors.
        ref: in place of --manifest: folder or manifest of true recordings, paired with --hyp by id.
        hyp: SYSTEM=FOLDER_OR_MANIFEST of made recordings; several for several systems.
        metrics: in place of the suite's; `wer[tinyctc]` names the plug-in, `mel[dac_eval]` the preset.
        judges: folder of `eval train-evaluators`.
        weights: NAME=PATH of plug-ins, as `eval list` names them.
        references: folder or manifest that sets are compared with, in place of each row's ref_audio.
        made_by: SYSTEM=RUN, what made a system, so that a judge related to it gives no verdict; several for one system
            add up.
        cache: folder of what plug-ins heard; by default OUT/cache.
        workers: processes; the result is the same for any number.
        seed: of intervals and draws.
        device: where plug-ins compute.
    """
    from xcodec_lm.tasks.eval import run_eval as runner
    from xcodec_lm.tasks.eval.pairs import pair_sets, read_pairs, read_set
    from xcodec_lm.tasks.eval.plan import find_sources
    from xcodec_lm.tasks.eval.run_text import format_run

    if (manifest is None) == (ref is None) or bool(hyp) != (ref is not None):
        raise UsageError(
            "eval run needs --manifest, or --ref with --hyp", "eval run speech --manifest pairs.jsonl -o OUT"
        )
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    if manifest is not None:
        pairs = read_pairs(manifest)
    else:
        assert ref is not None
        pairs = pair_sets(ref, _named(hyp, "--hyp"))
    where = device_of(device)
    request = runner.Request(
        suite, cache or out / "cache", metrics, find_sources(weights, judges, where), _origins(made_by, pairs.systems),
        () if references is None else tuple(read_set(references)), workers, seed, where,
    )  # fmt: skip
    data = runner.run_eval(pairs, request)
    runner.write_results(data, out)
    result = Result(
        f"{format_run(data)}\n\nresults: {out / 'results.json'}",
        {key: value for key, value in data.items() if key != "items"},
    )
    if not data["failures"]:
        return result
    names = {(row["system"], row["id"]) for row in data["failures"]}
    return result, PartialError(f"{len(names)} recordings failed", f"{out / 'failed.jsonl'} lists them and why")


def _named(values: tuple[str, ...], flag: str) -> dict[str, str]:
    """NAME=PATH texts as a dictionary; a path alone is named after itself."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else (Path(text).stem, text)
        if not name or not path or name in found:
            raise UsageError(f"{flag} {text!r}: a name and a path are needed, each name once", f"{flag} NAME=PATH")
        found[name] = path
    return found


def _origins(values: tuple[str, ...], systems: list[str]) -> dict[str, Any]:
    from xcodec_lm.tasks.eval.ancestry import Origin, read_origin

    found: dict[str, Origin] = {}
    for text in values:
        system, _, path = text.partition("=")
        if system not in systems or not path:
            raise UsageError(f"--made-by {text!r} names no system", f"systems: {', '.join(systems)}")
        new, old = read_origin(path), found.get(system, Origin())
        found[system] = Origin(old.fingerprints | new.fingerprints, old.ancestry or new.ancestry)
    return found


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
