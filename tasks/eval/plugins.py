"""Plug-ins of the evaluation: what an embedder, recogniser, judge of voices, predictor of opinions or CLAP must offer.

A metric is a pure function over arrays (`wer`, `set_distances`, ...); what hears audio for it is a plug-in. All of them

- carry `name` (shown in square brackets behind the metric: `wer[tinyctc]`), `ancestry`, `fingerprint`, `sample_rate`;
- take clips as a sequence of (N,) float32 arrays in [-1, 1] at `sample_rate`, each of its own length;
- hear each clip alone, so that a result never depends on the other clips of a call;
- accept silence and any length from 0.1 s to 60 s and more, and give finite values for them;
- raise `AudioError` for a clip that is empty, not one-dimensional, not float, not finite or beyond full scale
  (`judge_audio.check_clips` does it);
- return values on the CPU and keep no state between calls.

How plug-ins are found by name stands in `registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class PlugIn(Protocol):
    """What all plug-ins carry.

    Attributes:
        name: short, of small letters, digits and hyphens: `tinyctc`, `cnn14-16k`, `mert-v1-95m-layer9`. It tells what
            was used, so settings that change values (rate, layer, pooling) are part of it.
        ancestry: what it was made from, as plain values. Keys with a meaning: `trained_on` (list of
            `provenance.describe_rows`), `weights_from` (text, "none: ..." for random initial values), `seed`; and
            `fingerprints`, the fingerprints of other models whose weights or outputs went into it.
        sample_rate: of the audio that it takes, in Hz.
        fingerprint: sha256 hex digest over its weights and the settings that change its values; "" for one without
            weights. Cached values are stored under name and fingerprint.
    """

    name: str
    ancestry: dict[str, Any]
    sample_rate: int

    @property
    def fingerprint(self) -> str:
        """See above; a plain attribute or a (cached) property."""
        ...


@runtime_checkable
class Transcriber(PlugIn, Protocol):
    """A recogniser of speech."""

    def transcribe(self, wavs: Sequence[np.ndarray]) -> list[str]:
        """The words of clips; "" where there are none, and for a clip below -60 dBFS, whatever a model would invent.

        Raises:
            AudioError: see the module.
        """
        ...


@runtime_checkable
class SpeakerEmbedder(PlugIn, Protocol):
    """An embedder of speakers, whose vectors are compared by their cosine."""

    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """(n, D) float32 of unit norm. Silence has a vector, too; `speaker.similarity` counts it as 0.

        Raises:
            AudioError: see the module.
        """
        ...


@runtime_checkable
class Embedder(PlugIn, Protocol):
    """Features of audio for distances between sets (Fréchet, KID). `EmbedderBase` fills in what follows from `frames`.

    One with classes also has `class_logits(wav) -> (K,)`, see `Classifier`.

    Attributes:
        dim: D, the size of a vector.
    """

    dim: int

    def frames(self, wav: np.ndarray) -> np.ndarray:
        """(T, D) float32 of one clip (N,), T at least 1: a vector a frame or patch, in order.

        A model that has one vector a clip only (Cnn14) gives it as the only frame.

        Raises:
            AudioError: see the module.
        """
        ...

    def clip(self, wav: np.ndarray) -> np.ndarray:
        """(D,) float32 of one clip (N,): the mean of `frames`, or the model's own pooling.

        Raises:
            AudioError: see the module.
        """
        ...

    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """(n, D) float32: `clip` of each.

        Raises:
            AudioError: see the module.
        """
        ...


@runtime_checkable
class Classifier(Embedder, Protocol):
    """An embedder that also says what is heard: for the inception score and KL.

    Attributes:
        classes: K names, in the order of the outputs; empty where they are not known.
    """

    classes: tuple[str, ...]

    def class_logits(self, wav: np.ndarray) -> np.ndarray:
        """(K,) float32 outputs before softmax or sigmoid of one clip (N,); both conventions of KL start from these.

        Raises:
            AudioError: see the module.
        """
        ...


@runtime_checkable
class MosPredictor(PlugIn, Protocol):
    """A predictor of mean opinion scores.

    Attributes:
        scores: names of what it predicts, the leading one first: `("utmos",)`, `("ovrl", "sig", "bak", "p808")`.
    """

    scores: tuple[str, ...]

    def predict(self, wavs: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """For each clip: score name -> value, all of `scores`; higher is better. Silence is scored like anything else.

        Raises:
            AudioError: see the module.
        """
        ...


class TextAudioEmbedder(PlugIn, Protocol):
    """Embeds captions and sounds in one space, where a dot product says how well they match.

    Attributes:
        dim: size of an embedding.
    """

    dim: int

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, dim) float32 of unit length, on the CPU."""
        ...

    def embed_audio(self, wavs: Sequence[np.ndarray]) -> Tensor:
        """(n, dim) float32 of unit length, on the CPU.

        Raises:
            AudioError: see the module.
        """
        ...


class EmbedderBase(ABC):
    """An `Embedder` for which `frames` is written; a clip's vector is the mean of its frames.

    Args:
        name: see `PlugIn`.
        dim: see `Embedder`.
        sample_rate: in Hz.
        fingerprint: see `PlugIn`.
        ancestry: see `PlugIn`.
    """

    def __init__(
        self, name: str, dim: int, sample_rate: int, fingerprint: str = "", ancestry: dict[str, Any] | None = None
    ):
        self.name, self.dim, self.sample_rate = name, dim, sample_rate
        self.fingerprint, self.ancestry = fingerprint, ancestry or {}

    @abstractmethod
    def frames(self, wav: np.ndarray) -> np.ndarray:
        """See `Embedder`."""

    def clip(self, wav: np.ndarray) -> np.ndarray:
        """See `Embedder`."""
        return self.frames(wav).mean(axis=0, dtype=np.float64).astype(np.float32)

    def embed(self, wavs: Sequence[np.ndarray]) -> np.ndarray:
        """See `Embedder`."""
        return np.stack([self.clip(wav) for wav in wavs]) if len(wavs) else np.zeros((0, self.dim), np.float32)
