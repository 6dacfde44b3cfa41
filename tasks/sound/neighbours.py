"""The training clips of a text-to-sound model as vectors of its CLAP, so that a page can say which one comes nearest.

FOLDER/training_clips.safetensors    vectors (N, dim) int8; ids, captions and sources in its header
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.lm.shards import JoinedStore, TokenStore
from xcodec_lm.tasks.sound.captions import audio_of, captions_of

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.clap import TextAudioEmbedder

FILE = "training_clips.safetensors"
KEPT = ("id", "source", "licence", "author")
"""What is kept of a manifest row, beside its caption."""


@dataclass(frozen=True)
class Neighbours:
    """Training clips.

    Attributes:
        rows: of each: `id`, `caption`, and `source` and `licence` where they are known.
        vectors: (N, dim) float32 of unit length.
        fingerprint: of the CLAP.
    """

    rows: list[dict[str, Any]]
    vectors: Tensor
    fingerprint: str

    def nearest(self, vector: Tensor) -> tuple[dict[str, Any], float]:
        """The clip whose vector has the highest cosine with (dim,), and that cosine."""
        cosines = self.vectors @ vector
        best = int(cosines.argmax())
        return self.rows[best], float(cosines[best])


def embed_training_clips(store: TokenStore | JoinedStore, clap: TextAudioEmbedder, cache: Path) -> Neighbours:
    """The clips of split train whose audio is still there; what training has embedded is not embedded again.

    Args:
        store: tokens of the training.
        clap: of the model.
        cache: folder of its embeddings.

    Raises:
        XcodecLMError: a file cannot be read.
    """
    from xcodec_lm.tasks.sound.clap_cache import embed_cached

    found: dict[Path, dict[str, Any]] = {}
    for index in store.split("train"):
        row = store.rows[index]
        path = audio_of(store, index, row)
        if path is not None and path.is_file():  # a store may hold a recording at several speeds
            found.setdefault(path, _kept(row))
    vectors = embed_cached(clap, list(found), cache) if found else torch.zeros(0, clap.dim)
    return Neighbours(list(found.values()), vectors, clap.fingerprint)


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in KEPT if row.get(key)}
    return kept | {"caption": next(iter(captions_of(dict(row))), "")}


def save_neighbours(found: Neighbours, folder: Path) -> None:
    """Writes them beside a model.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    header = {"rows": json.dumps(found.rows, ensure_ascii=False, separators=(",", ":")), "clap": found.fingerprint}
    # A byte each, on a scale of its own for every clip: cosines keep three digits, and a shipped model stays small.
    scaled = found.vectors / found.vectors.abs().amax(dim=1, keepdim=True).clamp_min(1e-9)
    vectors = {"vectors": (127 * scaled).round().to(torch.int8).contiguous()}
    write_files(folder, {FILE: lambda path: save_file(vectors, path, metadata=header)})


def load_neighbours(folder: Path) -> Neighbours | None:
    """Those of a model folder; None where it has none.

    Raises:
        XcodecLMError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header, vectors = file.metadata() or {}, file.get_tensor("vectors").float()
        rows: Sequence[dict[str, Any]] = json.loads(header["rows"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}") from None
    return Neighbours(list(rows), torch.nn.functional.normalize(vectors, dim=1), header.get("clap", ""))
