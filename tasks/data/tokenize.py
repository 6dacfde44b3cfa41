"""From manifests and a codec to a token store."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, read_manifests, relative_audio
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens
from xcodec_lm.configs.errors import AudioError, TokenError, UsageError, XcodecLMError
from xcodec_lm.lm.shards import StoreWriter


@dataclass(frozen=True)
class TokenizeResult:
    """What a call of `tokenize` did.

    Attributes:
        store: the token store.
        done: recordings encoded by this call.
        skipped: recordings that were in the store already.
        failed: recordings that cannot be encoded; `failed.jsonl` of the store lists them with the reasons.
        conversions: what was done to recordings to fit the codec -> how many of them.
    """

    store: Path
    done: int
    skipped: int
    failed: int
    conversions: dict[str, int] = field(default_factory=dict)


def tokenize(
    manifests: Sequence[str | Path],
    codec: AudioTokenizer,
    out: str | Path,
    n_q: int | None = None,
    batch_s: float = 60.0,
    max_seconds: float | None = None,
    codec_path: str | Path | None = None,
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

    Raises:
        UsageError: `batch_s` or `max_seconds` is not positive.
        XcodecLMError: a manifest is at fault, or `out` holds something else or cannot be written.
        TokenError: `out` is a store of another codec, or `n_q` is out of range.
    """
    if batch_s <= 0 or (max_seconds is not None and max_seconds <= 0):
        raise UsageError(f"batch_s {batch_s} and max_seconds {max_seconds} must be positive")
    out = Path(out)
    clips = read_manifests(manifests)
    spec = codec.spec if n_q is None else codec.spec.take(n_q)
    done = failed = 0
    conversions = Counter[str]()
    with StoreWriter(out, spec, codec=codec_path) as writer:
        _note_settings(out, manifests, max_seconds)
        skipped = sum(clip.id in writer.done for clip in clips)
        with Progress("tokenize", len(clips), skipped) as progress:
            for batch in _batches(clips, batch_s, max_seconds):
                if all(clip.id in writer.done for clip in batch):
                    continue
                readable = []
                for clip in batch:
                    try:
                        audio = load_audio(clip.path, spec.sample_rate, duration_s=max_seconds)
                    except AudioError as error:
                        writer.fail(clip.row, error.message)
                        failed += 1
                        continue
                    readable.append((clip, audio.wav))
                    if clip.id not in writer.done:
                        conversions.update(audio.conversions)
                for clip, wav, codes in _encode(codec, readable, n_q):
                    if isinstance(codes, str):
                        writer.fail(clip.row, codes)
                        failed += 1
                    elif clip.id not in writer.done:
                        writer.add(_store_row(clip, wav.shape[1] / spec.sample_rate, out), codes.numpy())
                        done += 1
                progress.update(skipped + done + failed, batch[-1].id)
    for what, count in conversions.most_common():
        say(f"tokenize: {count} recordings {what}")
    if failed:
        say(f"tokenize: {failed} recordings cannot be encoded; {out / 'failed.jsonl'} lists them")
    return TokenizeResult(out, done, skipped, failed, dict(conversions))


def _batches(clips: list[Clip], batch_s: float, max_seconds: float | None) -> Iterator[list[Clip]]:
    """Neighbours of equal stated length, together at most `batch_s` long.

    Depends on the manifest alone and not on what is stored already: a restart then encodes the batches of the
    uninterrupted run, whose sums could differ in the last bit from those of other batches.
    """
    for duration, equal in groupby(clips, lambda clip: min(clip.duration_s, max_seconds or clip.duration_s)):
        group = list(equal)
        size = max(1, int(batch_s / duration))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _encode(
    codec: AudioTokenizer, batch: list[tuple[Clip, torch.Tensor]], n_q: int | None
) -> Iterator[tuple[Clip, torch.Tensor, torch.Tensor | str]]:
    """Codes (T, M*Q) of each recording, or why the codec refused it. Rows of a batch need no padding."""
    for _, equal in groupby(batch, lambda item: item[1].shape[1]):
        group = list(equal)
        try:
            tokens = _encode_equal(codec, torch.stack([wav for _, wav in group]), n_q)
        except (AudioError, TokenError) as error:
            if len(group) > 1:  # one of them is at fault
                yield from (result for item in group for result in _encode(codec, [item], n_q))
            else:
                yield *group[0], error.message
            continue
        for index, (clip, wav) in enumerate(group):
            yield clip, wav, tokens.row(index).codes[0].T.cpu()  # (T, M*Q)


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
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise XcodecLMError(f"cannot write {path}: {error.strerror}", "choose another --out") from None
