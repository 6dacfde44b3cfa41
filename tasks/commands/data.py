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
    source: Positional[Path],
    /,
    out: Annotated[Path | None, arg(aliases=("-o",))] = None,
    format: Literal["auto", "folder", "librispeech", "libritts", "musdb18", "kaldi", "jsonl", "datasets"] = "auto",
    dev: float = 0.05,
    test: float = 0.05,
    split_by: Literal["file", "folder"] = "file",
    keys: tuple[str, ...] = (),
) -> tuple[Result, PartialError | None]:
    """Lists a folder's or a corpus's recordings in a manifest.

    Args:
        source: a folder, searched with its subfolders; a JSON-lines file; or a Hugging Face dataset, NAME[:CONFIG].
        out: the manifest to write; default SOURCE/manifest.jsonl.
        format: layout of the source; auto finds out and says which.
        dev: fraction of recordings for validation, where the source has no splits of its own.
        test: fraction for testing, likewise.
        split_by: of plain folders: keep files, or whole folders (one speaker or piece each), in one split.
        keys: for jsonl and datasets, where the usual names do not fit: OURS=THEIRS, such as audio=my_path text=words.
    """
    from xcodec_lm.tasks.data.sources import scan_source

    wrong = [pair for pair in keys if not all(pair.partition("="))]
    if wrong:
        raise UsageError(f"--keys {wrong[0]} is no OURS=THEIRS", "such as --keys audio=my_path text=words")
    if out is None and not source.is_dir():
        out = source.with_suffix(".manifest.jsonl") if source.is_file() else None
        if out is None and format == "datasets":
            raise UsageError("a dataset by name needs a place for its manifest", "give it: --out FILE.jsonl")
    out = out or source / "manifest.jsonl"
    renamed = dict(pair.split("=", 1) for pair in keys)
    taken, found = scan_source(source, out, format, dev=dev, test=test, split_by=split_by, keys=renamed)
    if format == "auto":
        note(f"{source} was read as {taken}; --format takes it as another")
    for path, why in found.unreadable.items():
        note(f"{path}: {why}")
    result = Result(
        f"{out}: {len(found.rows)} recordings, {found.duration_s / 60:.1f} min",
        {
            "manifest": str(out),
            "format": taken,
            "recordings": len(found.rows),
            "seconds": found.duration_s,
            "splits": found.splits,
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
    workers: int = 2,
    rank: int | None = None,
    world: int | None = None,
    speeds: tuple[float, ...] = (),
) -> tuple[Result, PartialError | None]:
    """Encodes manifests into a token store; a restart skips what is done.

    Several processes, also on machines that share a folder, fill one store: give each its --rank and the same --world,
    or start them with torchrun.

    Args:
        manifests: JSON lines.
        codec: run folder, model folder, shipped name or hub id.
        out: the store, a folder.
        n_q: layers to keep; all by default.
        device: where to compute.
        workers: threads that read and resample recordings while others are being encoded.
        rank: which of several processes this is, from 0; default: torchrun's RANK, else 0.
        world: how many they are; default: torchrun's WORLD_SIZE, else 1.
        speeds: store training recordings once more at each of these speeds, tempo and pitch together; for small
            corpora, such as 0.89 0.944 1.0595 1.1225, one and two semitones down and up.
    """
    import os

    from xcodec_lm.tasks.data.tokenize import processes, sum_over_processes, tokenize

    if not manifests:
        raise UsageError("data tokenize needs at least one manifest")
    launched = rank is None and "MASTER_ADDR" in os.environ
    rank, world = processes(rank, world)
    if launched and device != "cpu":
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    done = tokenize(
        list(manifests),
        load_codec_for(codec, device),
        out,
        n_q=n_q,
        codec_path=Path(codec),
        workers=workers,
        rank=rank,
        world=world,
        speeds=speeds,
    )
    if launched and world > 1:
        done = sum_over_processes(done)
    result = Result(
        f"{out}: {done.done} recordings encoded, {done.skipped} already there, {done.failed} failed; "
        f"{done.audio_s / 3600:.3g} h of audio at {done.speed:.3g} x real time",
        {
            "store": str(out),
            "done": done.done,
            "skipped": done.skipped,
            "failed": done.failed,
            "audio_s": done.audio_s,
            "x_real_time": done.speed,
            "rank": rank,
            "world": world,
        },
    )
    if not done.failed:
        return result, None
    listed = out / ("failed.jsonl" if world == 1 else "failed*.jsonl")
    return result, PartialError(f"{done.failed} recordings failed; see {listed}")


def data_stats(stores: Positional[tuple[Path, ...]], /) -> Result:
    """Hours, recordings and tokens of token stores, entropy of their codebooks, and recordings that repeat others.

    Args:
        stores: folders that data tokenize made.
    """
    from xcodec_lm.tasks.data.stats import as_dict, as_text, stats

    if not stores:
        raise UsageError("data stats needs at least one token store")
    found = [stats(store) for store in stores]
    return Result("\n\n".join(map(as_text, found)), [as_dict(one) for one in found])


def data_spm(
    manifests: Positional[tuple[Path, ...]],
    /,
    out: OutFile,
    vocab_size: int = 512,
    split: Literal["train", "dev", "test", "all"] = "train",
    language: str = "en-us",
) -> Result:
    """Trains a sentencepiece model on the texts of manifests, for text.front_end: sentencepiece.

    Texts are normalised as training and speaking do it; the same texts give the same model.

    Args:
        manifests: JSON lines with `text`.
        out: the model to write, such as text.model.
        vocab_size: pieces, among them 256 bytes, which spell what was never seen.
        split: recordings whose texts are used; those without a split count as train.
        language: espeak-ng's name of it; numbers and abbreviations are spelled out in English.
    """
    from xcodec_lm.tasks.data.spm import train_spm

    if not manifests:
        raise UsageError("data spm needs at least one manifest")
    made = train_spm(
        list(manifests), out, vocab_size=vocab_size, split=None if split == "all" else split, language=language
    )
    if made.without_text:
        note(f"{made.without_text} recordings have no text")
    return Result(
        f"{out}: {made.pieces} pieces from {made.texts} texts, {made.characters_per_piece:.3g} characters a piece",
        {
            "model": str(out),
            "pieces": made.pieces,
            "texts": made.texts,
            "without_text": made.without_text,
            "characters_per_piece": made.characters_per_piece,
        },
    )
