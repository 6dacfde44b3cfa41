"""From manifests and a codec to a token store, by one process or by many."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch

from xcodec_lm.codec.audio import Audio, load_audio, resample
from xcodec_lm.codec.clips import Clip, read_manifests, relative_audio
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens
from xcodec_lm.configs.errors import AudioError, TokenError, UsageError, XcodecLMError
from xcodec_lm.lm.shard_files import failed_path, write_atomic
from xcodec_lm.lm.shards import StoreWriter, TokenStore

Batch = list[tuple[int, Clip]]
"""Recordings, each with its place in the manifests."""


@dataclass(frozen=True)
class TokenizeResult:
    """What a call of `tokenize` did.

    Attributes:
        store: the token store.
        done: recordings encoded by this call.
        skipped: recordings of this process's share that were in the store already.
        failed: recordings that cannot be encoded; `failed.jsonl` of the store lists them with the reasons.
        conversions: what was done to recordings to fit the codec -> how many of them.
        audio_s: seconds of audio encoded by this call.
        wall_s: seconds that took.
    """

    store: Path
    done: int
    skipped: int
    failed: int
    conversions: dict[str, int] = field(default_factory=dict)
    audio_s: float = 0.0
    wall_s: float = 0.0

    @property
    def speed(self) -> float:
        """Seconds of audio per second."""
        return self.audio_s / self.wall_s if self.wall_s else 0.0


def tokenize(
    manifests: Sequence[str | Path],
    codec: AudioTokenizer,
    out: str | Path,
    n_q: int | None = None,
    batch_s: float = 60.0,
    max_seconds: float | None = None,
    codec_path: str | Path | None = None,
    workers: int = 2,
    rank: int = 0,
    world: int = 1,
    speeds: Sequence[float] = (),
) -> TokenizeResult:
    """Encodes every recording of the manifests into a token store; called again, it does what is missing.

    Rows keep the keys of the manifest, with `audio` relative to the store, `duration` as encoded, and `split`.

    Args:
        manifests: JSON-lines manifests; ids are unique over all of them.
        codec: anything with the tokenizer protocol; its `device`, where it has one, gets the audio.
        out: folder of the store.
        n_q: quantizers to store, 1..Q; None stores all.
        batch_s: seconds of audio encoded at once; a longer recording is encoded alone, and whole.
        max_seconds: take at most this much of each recording, from its start; None takes all.
        codec_path: folder or name of the codec, kept in the store so that a language model can find it.
        workers: threads that read and resample the next recordings while the codec encodes; 0 reads in between.
        rank: which of the processes that share the work this is, 0..world - 1; each needs the same manifests.
        world: how many they are. Every one takes each world-th batch. The codes do not depend on it, nor does the
            order in which the store is read; a store begun by so many may be finished by fewer or more.
        speeds: training recordings are stored once more at each of these, tempo and pitch together, as `ID@SPEED`:
            2 ** (1 / 12) is a semitone up. A small corpus then teaches much more.

    Raises:
        UsageError: a speed is outside 0.5..2, `batch_s` or `max_seconds` is not positive, `workers` is negative, or
            `rank` is not in the world.
        XcodecLMError: a manifest is at fault, or `out` holds something else or cannot be written.
        TokenError: `out` is a store of another codec, or `n_q` is out of range.
    """
    if batch_s <= 0 or (max_seconds is not None and max_seconds <= 0):
        raise UsageError(f"batch_s {batch_s} and max_seconds {max_seconds} must be positive")
    if workers < 0:
        raise UsageError(f"workers must be 0 or more, got {workers}")
    if any(not 0.5 <= speed <= 2 or speed == 1 for speed in speeds) or len(set(speeds)) < len(speeds):
        raise UsageError(
            f"speeds {tuple(speeds)} must be different numbers from 0.5 to 2, without 1", "1 is always there"
        )
    out = Path(out)
    clips = read_manifests(manifests)
    clips += [_at_speed(clip, speed) for speed in speeds for clip in clips if (clip.split or "train") == "train"]
    spec = codec.spec if n_q is None else codec.spec.take(n_q)
    done = failed = 0
    audio_s, start = 0.0, time.monotonic()
    conversions = Counter[str]()
    with StoreWriter(out, spec, codec=codec_path, rank=rank, world=world) as writer:
        _note_settings(out, manifests, max_seconds)
        mine = list(_batches(clips, batch_s, max_seconds))[rank::world]
        share = sum(map(len, mine))
        skipped = sum(clip.id in writer.done for batch in mine for _, clip in batch)
        missing = [batch for batch in mine if any(clip.id not in writer.done for _, clip in batch)]
        label = "tokenize" if world == 1 else f"tokenize, process {rank} of {world}"
        with Progress(label, share, skipped) as progress:
            for batch, audios in _load_ahead(missing, spec.sample_rate, max_seconds, workers):
                readable = []
                for (place, clip), audio in zip(batch, audios, strict=True):
                    if isinstance(audio, AudioError):
                        if clip.id in writer.done:  # its file went away after it was encoded
                            continue
                        writer.fail(clip.row, audio.message)
                        failed += 1
                        continue
                    readable.append((place, clip, audio.wav))
                    if clip.id not in writer.done:
                        conversions.update(audio.conversions)
                for place, clip, wav, codes in _encode(codec, readable, n_q):
                    if isinstance(codes, str):
                        writer.fail(clip.row, codes)
                        failed += 1
                    elif clip.id not in writer.done:
                        duration_s = wav.shape[1] / spec.sample_rate
                        writer.add(_store_row(clip, duration_s, out), codes.numpy(), place)
                        audio_s += duration_s
                        done += 1
                speed = audio_s / (time.monotonic() - start)
                progress.update(skipped + done + failed, f"{speed:.3g} x real time, {batch[-1][1].id}")
    for what, count in conversions.most_common():
        say(f"tokenize: {count} recordings {what}")
    if failed:
        say(f"tokenize: {failed} recordings cannot be encoded; {failed_path(out, rank)} lists them")
    result = TokenizeResult(out, done, skipped, failed, dict(conversions), audio_s, time.monotonic() - start)
    if world == 1:
        TokenStore.open(out)  # makes the index of a large store now, not when training waits for it
    return result


def processes(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """Rank and world as given, else as torchrun says in the environment, else 0 of 1.

    Raises:
        UsageError: only one of the two is given, or the environment's are no numbers.
    """
    if (rank is None) != (world is None):
        raise UsageError("--rank and --world go together", "give both, as --rank 0 --world 4, or start with torchrun")
    if rank is not None and world is not None:
        return rank, world
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise UsageError("RANK and WORLD_SIZE in the environment are not numbers", "unset them") from None


def sum_over_processes(result: TokenizeResult) -> TokenizeResult:
    """The results of all processes of a torchrun as one, once every process has finished.

    torchrun ends the others as soon as one of them fails, so a process that could not encode some recordings has to
    wait before it says so.
    """
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        parts: list[TokenizeResult] = [result] * dist.get_world_size()
        dist.all_gather_object(parts, result)
    finally:
        dist.destroy_process_group()
    return TokenizeResult(
        result.store,
        sum(part.done for part in parts),
        sum(part.skipped for part in parts),
        sum(part.failed for part in parts),
        dict(sum((Counter(part.conversions) for part in parts), Counter())),
        sum(part.audio_s for part in parts),
        max(part.wall_s for part in parts),
    )


def _batches(clips: list[Clip], batch_s: float, max_seconds: float | None) -> Iterator[Batch]:
    """Neighbours of equal stated length, together at most `batch_s` long.

    Depends on the manifest alone, not on what is stored already nor on the number of processes: a restart then encodes
    the batches of the uninterrupted run, whose sums could differ in the last bit from those of other batches.
    """
    for duration, equal in groupby(
        enumerate(clips), lambda item: min(item[1].duration_s, max_seconds or item[1].duration_s)
    ):
        group = list(equal)
        size = max(1, int(batch_s / duration))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _at_speed(clip: Clip, speed: float) -> Clip:
    name = f"{clip.id}@{speed:g}"
    return replace(clip, id=name, duration_s=clip.duration_s / speed, row=clip.row | {"id": name, "speed": speed})


def _load(clip: Clip, sample_rate: int, max_seconds: float | None) -> Audio:
    """A recording at a rate, or a training recording played faster or slower."""
    speed = clip.row.get("speed", 1) if "@" in clip.id else 1
    if speed == 1:
        return load_audio(clip.path, sample_rate, duration_s=max_seconds)
    audio = load_audio(clip.path, sample_rate, duration_s=None if max_seconds is None else max_seconds * speed)
    faster = resample(audio.wav[0].numpy(), round(sample_rate * speed), sample_rate)
    return replace(audio, wav=torch.from_numpy(faster)[None])


def _load_ahead(
    batches: list[Batch], sample_rate: int, max_seconds: float | None, workers: int
) -> Iterator[tuple[Batch, list[Audio | AudioError]]]:
    """The batches in order, each with its recordings or why they cannot be read; `workers` threads read ahead."""

    def load(item: tuple[int, Clip]) -> Audio | AudioError:
        try:
            return _load(item[1], sample_rate, max_seconds)
        except AudioError as error:
            return error

    if workers == 0:
        yield from ((batch, list(map(load, batch))) for batch in batches)
        return
    pool = ThreadPoolExecutor(workers)
    ahead = deque[tuple[Batch, list[Future]]]()
    try:
        for batch in batches:
            ahead.append((batch, [pool.submit(load, item) for item in batch]))
            if len(ahead) > max(2, workers):  # keeps codec and threads busy, and memory bounded
                first, futures = ahead.popleft()
                yield first, [future.result() for future in futures]
        while ahead:
            first, futures = ahead.popleft()
            yield first, [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(
    codec: AudioTokenizer, batch: list[tuple[int, Clip, torch.Tensor]], n_q: int | None
) -> Iterator[tuple[int, Clip, torch.Tensor, torch.Tensor | str]]:
    """Codes (T, M*Q) of each recording, or why the codec refused it. Rows of a batch need no padding."""
    for _, equal in groupby(batch, lambda item: item[2].shape[1]):
        group = list(equal)
        samples = group[0][2].shape[1]
        if codec.frames(samples) < 1:
            yield from ((*item, f"{samples} samples are too few for one frame of this codec") for item in group)
            continue
        try:
            tokens = _encode_equal(codec, torch.stack([wav for *_, wav in group]), n_q)
        except (AudioError, TokenError, torch.OutOfMemoryError) as error:
            if len(group) > 1:  # one of them is at fault, or all together are too many
                yield from (result for item in group for result in _encode(codec, [item], n_q))
            elif isinstance(error, torch.OutOfMemoryError):
                yield *group[0], "the device has too little memory for a recording of this length; cut it into parts"
            else:
                yield *group[0], error.message
            continue
        for row, item in enumerate(group):
            yield *item, tokens.row(row).codes[0].T.cpu()  # (T, M*Q)


@torch.inference_mode()
def _encode_equal(codec: AudioTokenizer, wav: torch.Tensor, n_q: int | None) -> AudioTokens:
    device = getattr(codec, "device", None)
    wav = wav if device is None else wav.to(device)
    return codec.encode(wav, n_q=n_q, sample_rate=codec.spec.sample_rate)


def _store_row(clip: Clip, duration_s: float, out: Path) -> dict:
    audio = relative_audio(clip.path, out / "store.json")
    return clip.row | {"audio": audio, "duration": duration_s, "split": clip.split or "train"}


def _note_settings(out: Path, manifests: Sequence[str | Path], max_seconds: float | None) -> None:
    """Keeps what the store cannot know, and refuses to go on with another `max_seconds`."""
    path = out / "tokenize.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["max_seconds"]
        except (OSError, ValueError, KeyError, TypeError):
            before = max_seconds  # cut off by a kill: the call that is being continued wrote it
        if before != max_seconds:
            raise XcodecLMError(
                f"{out} was begun with max_seconds {before}, not {max_seconds}",
                "choose another --out, or give the same settings to go on with it",
            )
    hashes = {str(manifest): hashlib.sha256(Path(manifest).read_bytes()).hexdigest() for manifest in manifests}
    text = json.dumps({"max_seconds": max_seconds, "manifests_sha256": hashes}, indent=1)
    try:
        write_atomic(path, text + "\n")
    except OSError as error:
        raise XcodecLMError(f"cannot write {path}: {error.strerror}", "choose another --out") from None
