"""Commands of the noun `data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from xcodec_lm.configs.errors import PartialError, UsageError, XcodecLMError
from xcodec_lm.tasks.commands.common import (
    DEFAULT_CODEC,
    Device,
    OutFile,
    Result,
    load_codec_for,
    note,
)


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
        note(f"{path}: {why}")
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
    out: OutFile,
    seed: int = 0,
    music_clips: int = 60,
    sound_clips: int = 40,
    speech_clips: int = 0,
    clip_s: float = 12.0,
) -> Result:
    """Makes a small corpus of music, captioned sounds and speech; the same seed gives the same corpus.

    Args:
        out: folder to make.
        seed: of everything.
        music_clips: pieces of music.
        sound_clips: sounds.
        speech_clips: sentences in many voices, 2.6 seconds on average; needs the extra [tts], espeak-ng.
        clip_s: seconds of each piece.
    """
    from xcodec_lm.tasks.data.synth import synth

    made = synth(
        out,
        seed=seed,
        music_clips=music_clips,
        sound_clips=sound_clips,
        clip_s=clip_s,
        speech_clips=speech_clips,
    )
    data = {path.stem: str(path) for path in made.manifests}
    return Result("\n".join(data.values()), {**data, "made": made.made})


def data_tokenize(
    manifests: Positional[tuple[Path, ...]],
    /,
    out: OutFile,
    codec: str = DEFAULT_CODEC,
    n_q: int | None = None,
    device: Device = "auto",
) -> tuple[Result, PartialError | None]:
    """Encodes manifests into a token store; a restart skips what is done.

    Args:
        manifests: JSON lines.
        codec: run folder, model folder, shipped name or hub id.
        out: the store, a folder.
        n_q: layers to keep; all by default.
        device: where to compute.
    """
    from xcodec_lm.tasks.data.tokenize import tokenize

    if not manifests:
        raise UsageError("data tokenize needs at least one manifest")
    done = tokenize(list(manifests), load_codec_for(codec, device), out, n_q=n_q, codec_path=Path(codec))
    result = Result(
        f"{out}: {done.done} recordings encoded, {done.skipped} already there, {done.failed} failed",
        {"store": str(out), "done": done.done, "skipped": done.skipped, "failed": done.failed},
    )
    return result, PartialError(f"{done.failed} recordings failed; see {out / 'failed.jsonl'}") if done.failed else None
