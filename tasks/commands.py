"""The functions behind the commands: their arguments, defaults and help, and what they print.

Arguments are parsed from the signatures and docstrings. What a command does is elsewhere, imported inside it, so that
`--help` loads no model. `tasks/cli.py` lists and runs them.
"""

from __future__ import annotations

import importlib
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from xcodec_lm import configs
from xcodec_lm.configs.errors import ConfigError, PartialError, UsageError, XcodecLMError

Device = Literal["auto", "cpu", "cuda"]
OutFile = Annotated[Path, arg(aliases=("-o",))]

common_flags: list[str] = []
"""Those of `-v -q --json` that this call was given, for the processes that it starts."""


@dataclass(frozen=True)
class Result:
    """What a command found: lines for people, values for programs."""

    text: str = ""
    data: Any = None


# ---------------------------------------------------------------------- training commands


@dataclass(frozen=True)
class TrainFlags:
    """Options that every training command spells the same."""

    out: Annotated[Path | None, arg(help="run folder; default runs/FAMILY-SIZE")] = None
    resume: Annotated[Literal["auto", "never"], arg(help="continue a run found in --out, or refuse it")] = "auto"
    seed: Annotated[int | None, arg(help="run.seed")] = None
    device: Annotated[Device, arg(help="auto takes a GPU if there is one")] = "auto"
    precision: Annotated[Literal["fp32", "bf16"] | None, arg(help="run.precision")] = None
    gpus: Annotated[int, arg(help="processes, one a GPU (or CPU processes without one)")] = 1
    max_steps: Annotated[int | None, arg(help="stop after this step; the same command without it continues")] = None
    dry_run: Annotated[bool, arg(help="print parameters, memory and batch, then stop")] = False


def _train(noun: str, family: str, argv: list[str]) -> Result | int:
    cls = configs.FAMILIES[family]
    source = argv[0] if argv and not argv[0].startswith("-") else None
    if source is None and not {"-h", "--help"} & set(argv):
        names = [name for name in configs.presets() if configs.FAMILIES[name.split("/")[0]] is cls]
        raise UsageError(f"{noun} train needs a preset or a YAML file first", f"presets: {', '.join(names)}")
    default = configs.load(source or f"{family}/tiny", cls)
    flags, config = _parse_training(
        cls, default, argv[1:] if source else argv, f"xcodec-lm {noun} train PRESET_OR_YAML"
    )
    overrides = {
        name: value for name, value in (("seed", flags.seed), ("precision", flags.precision)) if value is not None
    }
    config = replace(config, run=replace(config.run, **overrides))
    module = importlib.import_module(f"xcodec_lm.{'codec' if noun == 'codec' else 'lm'}.train")
    if flags.dry_run:
        text = module.dry_run(config)
        return Result(text, {"description": text})
    from xcodec_lm.codec.runtime.launch import relaunch
    from xcodec_lm.codec.runtime.run import RunOptions

    code = relaunch([noun, "train", *_without_gpus(argv), *common_flags], flags.gpus)
    if code is not None:
        return code
    stem = Path(source or family).with_suffix("").name if source and Path(source).suffix else (source or family)
    out = flags.out or Path("runs") / stem.replace("/", "-")
    command = f"xcodec-lm {noun} train {shlex.join(argv)}"
    options = RunOptions(out=out, command=command, resume=flags.resume, device=flags.device, max_steps=flags.max_steps)
    folder = module.train(config, options)
    return Result(f"run: {folder}", {"run": str(folder)})


def _parse_training(cls: type, default: Any, argv: list[str], prog: str) -> tuple[TrainFlags, Any]:
    def both(flags: OmitArgPrefixes[TrainFlags], config: Annotated[Any, arg(name="")]) -> tuple[TrainFlags, Any]:
        """Trains, or continues to. Every setting of the preset is a flag; the groups are those of its YAML file."""
        return flags, config

    both.__annotations__["flags"] = OmitArgPrefixes[TrainFlags]
    both.__annotations__["config"] = Annotated[cls, arg(name="")]
    both.__defaults__ = (TrainFlags(), default)
    try:
        return tyro.cli(both, args=argv, prog=prog)
    except ConfigError as error:
        raise UsageError(error.message, error.hint) from None


def _without_gpus(argv: list[str]) -> list[str]:
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word == "--gpus":
            skip = True
        elif not word.startswith("--gpus="):
            kept.append(word)
    return kept


def codec_train(argv: list[str]) -> Result | int:
    """The command `codec train`."""
    return _train("codec", "xcodec", argv)


def music_train(argv: list[str]) -> Result | int:
    """The command `music train`."""
    return _train("music", "music", argv)


# ---------------------------------------------------------------------- codec


def codec_encode(
    audio: Positional[Path], /, codec: str, out: OutFile, n_q: int | None = None, device: Device = "auto"
) -> Result:
    """Encodes an audio file of any rate, channel count and format into a .tokens file.

    Args:
        audio: the recording.
        codec: run folder, model folder or hub id.
        out: the .tokens file to write.
        n_q: layers to keep; all by default.
        device: where to compute.
    """
    from xcodec_lm.codec.audio import load_audio

    model = _load_codec(codec, device)
    recording = load_audio(audio, model.spec.sample_rate)
    _say_conversions(audio, recording.conversions)
    tokens = model.encode(recording.wav[None].to(model.device), n_q=n_q)
    tokens.save(out)
    seconds = recording.wav.shape[1] / recording.sample_rate
    spec = tokens.spec
    return Result(
        f"{out}: {int(tokens.lengths[0])} frames x {spec.n_q} codes for {seconds:.2f} s, {spec.bitrate_kbps:.2f} kbps",
        {"tokens": str(out), "frames": int(tokens.lengths[0]), "n_q": spec.n_q, "seconds": seconds,
         "conversions": list(recording.conversions), "fingerprint": spec.fingerprint},
    )  # fmt: skip


def codec_decode(
    tokens: Positional[Path], /, codec: str, out: OutFile, n_q: int | None = None, device: Device = "auto"
) -> Result:
    """Decodes a .tokens file into audio.

    Args:
        tokens: the .tokens file.
        codec: the codec that made it; another one is refused.
        out: the audio file to write; its ending names the format.
        n_q: layers to use; all that the file has by default.
        device: where to compute.
    """
    from xcodec_lm.codec.audio import save_audio
    from xcodec_lm.codec.tokens import AudioTokens

    stored = AudioTokens.load(tokens)
    model = _load_codec(codec, device, decode_only=True)
    wav, lengths = model.decode(stored if n_q is None else stored.take(n_q))
    clipped = save_audio(out, wav[0, :, : int(lengths[0])], model.spec.output_sample_rate)
    if clipped:
        _note(f"{out}: {clipped} samples beyond full scale were clipped")
    seconds = int(lengths[0]) / model.spec.output_sample_rate
    return Result(f"{out}: {seconds:.2f} s", {"audio": str(out), "seconds": seconds, "clipped": clipped})


def codec_info(codec: Positional[str], /, verify: bool = False) -> Result:
    """Shows what a codec is.

    Args:
        codec: run folder, model folder or hub id.
        verify: compute the fingerprint from the weights and compare it with the stated one.
    """
    from xcodec_lm.codec.load import count_parameters, find_codec, verify_fingerprint
    from xcodec_lm.codec.semantic import UNTRAINED_NOTICE, is_untrained

    model = _load_codec(codec, "cpu")
    spec, teacher = model.spec, model.semantic_config.teacher
    parts = {name: count_parameters(module) for name, module in model.named_children()}
    data = {
        "name": spec.name, "sample_rate": spec.sample_rate, "frame_rate": float(spec.frame_rate), "n_q": spec.n_q,
        "codebook_size": spec.codebook_sizes[0], "bitrate_kbps": spec.bitrate_kbps, "teacher": teacher,
        "lookahead_frames": model.lookahead_frames, "parameters": sum(parts.values()), "parts": parts,
        "fingerprint": spec.fingerprint, "folder": str(find_codec(codec)),
    }  # fmt: skip
    listing = ", ".join(f"{key} {value / 1e6:.2f}" for key, value in parts.items() if value)
    lines = [
        f"{spec.name}: {spec.sample_rate} Hz, {float(spec.frame_rate):g} frames/s, "
        f"{spec.n_q} x {spec.codebook_sizes[0]} codes, {spec.bitrate_kbps:g} kbps",
        f"teacher: {teacher}" + (f" ({UNTRAINED_NOTICE})" if is_untrained(teacher) else ""),
        f"parameters: {sum(parts.values()) / 1e6:.2f} M ({listing})",
        f"fingerprint: {spec.fingerprint}",
    ]
    if verify:
        stated, computed = verify_fingerprint(find_codec(codec))
        data["verified"] = stated == computed
        if stated != computed:
            raise XcodecLMError(f"{codec}: config.json states fingerprint {stated}, the weights have {computed}")
        lines.append("verified: the weights have this fingerprint")
    return Result("\n".join(lines), data)


def codec_eval(
    codec: Positional[str], manifest: Positional[Path], /, split: Literal["train", "dev", "test", "all"] = "test",
    clip_s: float | None = None, device: Device = "auto",
) -> Result:  # fmt: skip
    """Measures reconstructions of a manifest's recordings beside silence, white noise and shaped noise.

    Args:
        codec: run folder, model folder or hub id.
        manifest: JSON lines.
        split: which rows.
        clip_s: take at most this much of each recording.
        device: where to compute.
    """
    from xcodec_lm.codec.audio import load_audio
    from xcodec_lm.codec.clips import read_manifests
    from xcodec_lm.codec.evaluate import evaluate, format_evaluation, to_dict

    model = _load_codec(codec, device)
    clips = read_manifests([manifest], None if split == "all" else split)
    if not clips:
        raise XcodecLMError(f"{manifest}: no row has split: {split}", "choose another with --split")
    target = model.device
    wavs = [load_audio(clip.path, model.spec.sample_rate, duration_s=clip_s).wav.to(target) for clip in clips]
    n_qs = tuple(n for n in (1, 2, 4, 8) if n <= model.spec.n_q)
    result = evaluate(model, wavs, n_qs)
    return Result(format_evaluation(result), to_dict(result))


# ---------------------------------------------------------------------- data


def data_scan(
    folder: Positional[Path],
    /,
    out: Annotated[Path | None, arg(aliases=("-o",))] = None,
    dev: float = 0.05,
    test: float = 0.05,
    split_by: Literal["file", "folder"] = "file",
) -> tuple[Result, PartialError | None]:
    """Lists a folder's recordings in a manifest.

    Args:
        folder: searched with its subfolders.
        out: the manifest to write; default FOLDER/manifest.jsonl.
        dev: fraction of recordings for validation.
        test: fraction for testing.
        split_by: keep files, or whole folders (one speaker or piece each), in one split.
    """
    from xcodec_lm.tasks.data.scan import scan

    out = out or folder / "manifest.jsonl"
    found = scan(folder, out, dev=dev, test=test, split_by=split_by)
    for path, why in found.unreadable.items():
        _note(f"{path}: {why}")
    result = Result(
        f"{out}: {len(found.rows)} recordings, {found.duration_s / 60:.1f} min",
        {
            "manifest": str(out),
            "recordings": len(found.rows),
            "seconds": found.duration_s,
            "unreadable": found.unreadable,
        },
    )
    count = len(found.unreadable)
    return result, PartialError(f"{count} files could not be read; they are listed above") if count else None


def data_check(manifests: Positional[tuple[Path, ...]], /) -> tuple[Result, XcodecLMError | None]:
    """Reads every recording of manifests and lists all that is wrong.

    Args:
        manifests: JSON lines.
    """
    from xcodec_lm.tasks.data.check import check

    if not manifests:
        raise UsageError("data check needs at least one manifest")
    problems = check(*manifests)
    errors = sum(problem.kind == "error" for problem in problems)
    text = "\n".join([*map(str, problems), f"{errors} errors, {len(problems) - errors} warnings"])
    data = [vars(problem) if hasattr(problem, "__dict__") else str(problem) for problem in problems]
    return Result(text, data), XcodecLMError(f"{errors} errors in {', '.join(map(str, manifests))}") if errors else None


def data_synth(
    out: OutFile, seed: int = 0, music_clips: int = 60, sound_clips: int = 40, clip_s: float = 12.0
) -> Result:
    """Makes a small corpus of music and captioned sounds procedurally; the same seed gives the same corpus.

    Args:
        out: folder to make.
        seed: of everything.
        music_clips: pieces of music.
        sound_clips: sounds.
        clip_s: seconds of each piece.
    """
    from xcodec_lm.tasks.data.synth import synth

    made = synth(out, seed=seed, music_clips=music_clips, sound_clips=sound_clips, clip_s=clip_s)
    return Result(
        f"{made.music}\n{made.sound}", {"music": str(made.music), "sound": str(made.sound), "made": made.made}
    )


def data_tokenize(
    manifests: Positional[tuple[Path, ...]],
    /,
    codec: str,
    out: OutFile,
    n_q: int | None = None,
    device: Device = "auto",
) -> tuple[Result, PartialError | None]:
    """Encodes manifests into a token store; a restart skips what is done.

    Args:
        manifests: JSON lines.
        codec: run folder, model folder or hub id.
        out: the store, a folder.
        n_q: layers to keep; all by default.
        device: where to compute.
    """
    from xcodec_lm.tasks.data.tokenize import tokenize

    if not manifests:
        raise UsageError("data tokenize needs at least one manifest")
    done = tokenize(list(manifests), _load_codec(codec, device), out, n_q=n_q, codec_path=Path(codec))
    result = Result(
        f"{out}: {done.done} recordings encoded, {done.skipped} already there, {done.failed} failed",
        {"store": str(out), "done": done.done, "skipped": done.skipped, "failed": done.failed},
    )
    return result, PartialError(f"{done.failed} recordings failed; see {out / 'failed.jsonl'}") if done.failed else None


# ---------------------------------------------------------------------- music, demo, presets


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
        prompt, run, seconds, out, seed, codec=codec, device=_device(device),
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    prompt_s = made.prompt_samples / made.sample_rate
    total_s = made.wav.shape[2] / made.sample_rate
    return Result(
        f"{out}: {prompt_s:.2f} s of prompt, {total_s - prompt_s:.2f} s of continuation",
        {"audio": str(out), "prompt_s": prompt_s, "continuation_s": total_s - prompt_s, "seed": seed},
    )


def demo(out: Path = Path("runs/demo"), corpus: Path | None = None, quick: bool = False, seed: int = 0) -> Result:
    """Runs the whole path in under ten minutes: corpus, codec, tokens, language model, continuations, report.

    Args:
        out: folder of the demo; a second call continues where the first stopped.
        corpus: a manifest of real recordings instead of the synthetic ones.
        quick: all stages at a size of a minute; what it makes is not worth hearing.
        seed: of everything.
    """
    from xcodec_lm.tasks.demo.pipeline import run_demo

    report = run_demo(out, corpus, quick, seed)
    return Result(f"report: {report}", {"report": str(report)})


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


# ---------------------------------------------------------------------- helpers


def _device(device: Device) -> str:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise XcodecLMError("--device cuda was asked for, but torch sees no CUDA device", "leave out --device")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _load_codec(source: str, device: Device, decode_only: bool = False) -> Any:
    from xcodec_lm.codec import load_codec

    return load_codec(source, decode_only=decode_only, device=_device(device))


def _note(text: str) -> None:
    from xcodec_lm.codec.runtime.progress import say

    say(f"note: {text}")


def _say_conversions(path: Path, conversions: tuple[str, ...]) -> None:
    if conversions:
        _note(f"{path}: {', '.join(conversions)}")
