"""Commands of the noun `data`."""

from __future__ import annotations

import math
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
    format: Literal[
        "auto",
        "folder",
        "librispeech",
        "libritts",
        "ljspeech",
        "vctk",
        "commonvoice",
        "musdb18",
        "audiocaps",
        "wavcaps",
        "captions",
        "kaldi",
        "jsonl",
        "datasets",
    ] = "auto",
    dev: float = 0.05,
    test: float = 0.05,
    split_by: Literal["file", "folder", "speaker"] = "file",
    keys: tuple[str, ...] = (),
    min_s: float = 0.0,
    max_s: float = math.inf,
    need_text: bool = False,
    mic: Literal["mic1", "mic2"] = "mic1",
) -> tuple[Result, PartialError | None]:
    """Lists a folder's or a corpus's recordings in a manifest.

    Args:
        source: a folder, searched with its subfolders; a JSON-lines file; or a Hugging Face dataset, NAME[:CONFIG].
        out: the manifest to write; default SOURCE/manifest.jsonl.
        format: layout of the source; auto finds out and says which. captions is a folder of sounds with captions in
            NAME.txt beside NAME.wav, which folder takes for texts that are spoken.
        dev: fraction for validation, where the source has no splits of its own: of speakers where several are known,
            so that none is in two splits, else of recordings.
        test: fraction for testing, likewise.
        split_by: of plain folders: keep files, or whole folders (one speaker or piece each), in one split; speaker
            also makes the folders' names the speakers.
        keys: for jsonl and datasets, where the usual names do not fit: OURS=THEIRS, such as audio=my_path text=words.
        min_s: leave out shorter recordings, in seconds; what is left out is listed beside the manifest.
        max_s: leave out longer ones.
        need_text: leave out those without text.
        mic: of vctk: the microphone.
    """
    from xcodec_lm.tasks.data.scan_result import Wanted
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
    wanted = Wanted(min_s, max_s, need_text)
    taken, found = scan_source(source, out, format, dev, test, split_by, renamed, wanted, mic)
    if format == "auto":
        note(f"{source} was read as {taken}; --format takes it as another")
    for path, why in found.unreadable.items():
        note(f"{path}: {why}")
    for text in found.notes:
        note(text)
    if found.left_out:
        note(f"what is left out is listed in {found.left_out_list}")
    result = Result(
        f"{out}: {len(found.rows)} recordings, {found.duration_s / 60:.1f} min",
        {
            "manifest": str(out),
            "format": taken,
            "recordings": len(found.rows),
            "seconds": found.duration_s,
            "splits": found.splits,
            "unreadable": found.unreadable,
            "left_out": found.left_out,
            "missing": found.missing,
            "without_text": found.without_text,
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
    texts: Literal["sentences", "digits", "mixed"] = "sentences",
    level_dbfs: float | None = None,
    workers: int = 2,
) -> Result:
    """Makes a small corpus of music, captioned sounds and speech; the same seed gives the same corpus.

    Args:
        out: folder to make.
        seed: of everything.
        music_clips: pieces of music.
        sound_clips: sounds.
        speech_clips: utterances in many voices, 2.6 seconds on average; needs the extra [tts], espeak-ng. Eight of
            ten are train; dev and test have voices of their own.
        clip_s: seconds of each piece.
        texts: of the speech: sentences in nine languages; 3 to 6 English digits in a row, in the voices that speak
            English; or half of either.
        level_dbfs: RMS of the speech, such as -25; without it each clip has a level of its own.
        workers: processes that speak side by side; the corpus does not depend on it.
    """
    from xcodec_lm.tasks.data.synth import synth

    made = synth(
        out,
        seed=seed,
        music_clips=music_clips,
        sound_clips=sound_clips,
        clip_s=clip_s,
        speech_clips=speech_clips,
        speech_texts=texts,
        speech_level_dbfs=level_dbfs,
        workers=workers,
    )
    data = {path.stem: str(path) for path in made.manifests}
    return Result("\n".join(data.values()), {**data, "made": made.made})


def data_join(
    manifest: Positional[Path],
    /,
    out: OutFile,
    count: int,
    min: int = 3,
    max: int = 6,
    split: str = "train",
    seed: int = 0,
    level_dbfs: float | None = None,
    id_pattern: str = "",
    takes: tuple[int, int] | None = None,
    exclude: tuple[Path, ...] = (),
) -> Result:
    """Joins short recordings of one speaker to longer utterances, such as digits to strings of digits.

    Between the recordings there are pauses of 40 to 150 ms. Speakers, words and recordings of a word come up equally
    often. The same inputs and seed give the same files: 16 kHz FLAC, and OUT/speech.jsonl.

    Args:
        manifest: JSON lines with text and speaker.
        out: folder to make; its name begins the ids.
        count: utterances to make.
        min: fewest recordings in one.
        max: most recordings in one.
        split: recordings of this split are taken, and the utterances have it.
        seed: of every choice.
        level_dbfs: RMS that every utterance is brought to, such as -25; without it levels stay as they are.
        id_pattern: take only recordings whose id holds this regular expression.
        takes: first and last take to use; the take is what the first group of --id-pattern matches, else the row's
            `take`, else the number at the end of the id.
        exclude: manifests whose texts must not occur, such as those that a model trains on.
    """
    from xcodec_lm.tasks.data.join import JoinSettings, join

    settings = JoinSettings(count, min, max, split, seed, level_dbfs=level_dbfs, id_pattern=id_pattern, takes=takes)
    made = join(manifest, out, settings, exclude)
    for name, why in made.unused.items():
        note(f"{name} is not used: {why}")
    if made.lowered:
        note(f"{made.lowered} utterances are below {level_dbfs:g} dBFS, or their peaks would be cut off")
    speakers = sorted({row["speaker"] for row in made.rows})
    data = {
        "manifest": str(made.manifest),
        "utterances": len(made.rows),
        "seconds": made.duration_s,
        "speakers": speakers,
        "texts": len({row["text"] for row in made.rows}),
        "unused": made.unused,
        "lowered": made.lowered,
    }
    text = f"{made.manifest}: {len(made.rows)} utterances of {len(speakers)} speakers, {made.duration_s / 60:.1f} min"
    return Result(text, data)


def data_continual(
    source: Positional[Path],
    /,
    out: OutFile,
    setting: Literal["continual", "cross"] = "continual",
    min_s: float = 4.0,
    max_s: float = 10.0,
    prompt_s: float = 3.0,
    subset: str = "",
) -> tuple[Result, PartialError | None]:
    """Lists the utterances on which zero-shot speech is tested, as the papers do; the same corpus, the same list.

    Args:
        source: a manifest, or the folder of a corpus that data scan knows, such as LibriSpeech.
        out: the list to write, a manifest.
        setting: continual: the utterance's own first seconds are the prompt; cross: another utterance of the list, of
            the same speaker, is (prompt_audio, prompt_text).
        min_s: shortest utterance in seconds.
        max_s: longest utterance in seconds.
        prompt_s: seconds of the prompt of continual.
        subset: subset or split to take; by default test-clean where there is one, else test, else everything.
    """
    from xcodec_lm.tasks.data.continual import make_test_list

    made = make_test_list(source, out, setting, min_s, max_s, prompt_s, subset)
    for name, why in made.unreadable.items():
        note(f"{name}: {why}")
    seconds = sum(row["duration"] for row in made.rows)
    speakers = len({row.get("speaker") for row in made.rows} - {None})
    text = (
        f"{out}: {len(made.rows)} utterances of {speakers} speakers, {seconds / 3600:.2f} h, from {made.chosen}; "
        f"{len(made.left_out)} left out"
    )
    data = {
        "list": str(out),
        "utterances": len(made.rows),
        "speakers": speakers,
        "seconds": seconds,
        "chosen": made.chosen,
        "left_out": made.left_out,
        "unreadable": made.unreadable,
    }
    count = len(made.unreadable)
    failed = PartialError(f"{count} files could not be read; they are listed above") if count else None
    return Result(text, data), failed


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
