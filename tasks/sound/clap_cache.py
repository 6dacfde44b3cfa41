"""Embeddings on disk, so that a caption or a recording is embedded once for each CLAP.

    FOLDER/FINGERPRINT/captions.safetensors    keys (N, 32) uint8, vectors (N, dim) float32
    FOLDER/FINGERPRINT/audio.safetensors

A caption's key is the sha256 of its text, a recording's that of its file's bytes: a recording that was edited is
embedded anew, one that was moved or renamed is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.runtime.progress import say, track
from xcodec_lm.configs.errors import AudioError, XcodecLMError
from xcodec_lm.tasks.sound.clap import TextAudioEmbedder, check_captions

SAVE_EVERY = 500
"""So many new vectors are written at once; what a kill can cost."""
Known = dict[bytes, Tensor]


def embed_cached(clap: TextAudioEmbedder, items: Sequence[str] | Sequence[Path], cache_folder: str | Path) -> Tensor:
    """Embeddings of captions or of recordings; those that were embedded before are read from disk.

    Args:
        clap: the model.
        items: captions (`str`), or audio files (`Path`) of any rate and channels.
        cache_folder: made if needed; one folder serves any number of models.

    Returns:
        (N, dim) float32 of unit length, in the order of the items.

    Raises:
        UsageError: an empty caption.
        AudioError: a recording that cannot be read; what was embedded before it is kept.
        XcodecLMError: captions and files in one call, or a cache that cannot be written.
    """
    captions = [item for item in items if isinstance(item, str)]
    if captions and len(captions) < len(items):
        raise XcodecLMError("captions and files are embedded in calls of their own", "call embed_cached twice")
    check_captions(captions)
    path = Path(cache_folder) / clap.fingerprint[:16] / ("captions.safetensors" if captions else "audio.safetensors")
    known = _read(path, clap)
    keys = [_key(item) for item in items]
    wanted = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    fresh = 0
    try:
        for key, item in track(wanted.items(), "embedding with " + clap.name, len(wanted)):
            known[key] = _embed(clap, item)
            fresh += 1
            if fresh % SAVE_EVERY == 0:
                _write(path, known, clap)
    finally:
        if fresh % SAVE_EVERY:
            _write(path, known, clap)
    return torch.stack([known[key] for key in keys]) if keys else torch.zeros(0, clap.dim)


def _embed(clap: TextAudioEmbedder, item: str | Path) -> Tensor:
    if isinstance(item, str):
        return clap.embed_texts([item])[0]
    return clap.embed_audio([load_audio(item, clap.sample_rate).wav[0].numpy()])[0]


def _key(item: str | Path) -> bytes:
    if isinstance(item, str):
        return hashlib.sha256(item.encode()).digest()
    try:
        with Path(item).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise AudioError(f"{item}: cannot be read: {error.strerror}") from None


def _read(path: Path, clap: TextAudioEmbedder) -> Known:
    """What is stored; nothing where there is no file, or one that is damaged or of another model."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            fingerprint = (file.metadata() or {}).get("fingerprint")
            keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
    except (SafetensorError, OSError) as error:
        say(f"note: {path} cannot be read ({error}); what it held is embedded anew")
        return {}
    if fingerprint != clap.fingerprint or vectors.shape != (len(keys), clap.dim):
        say(f"note: {path} is of another model; it is replaced")
        return {}
    return {bytes(key.tolist()): vector for key, vector in zip(keys, vectors, strict=True)}


def _write(path: Path, known: Known, clap: TextAudioEmbedder) -> None:
    tensors = {
        "keys": torch.tensor([list(key) for key in known], dtype=torch.uint8),
        "vectors": torch.stack(list(known.values())).contiguous(),
    }
    metadata = {"fingerprint": clap.fingerprint, "name": clap.name}
    write_files(path.parent, {path.name: lambda file: save_file(tensors, file, metadata=metadata)})
