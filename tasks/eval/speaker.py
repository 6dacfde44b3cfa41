"""Speaker similarity: does generated speech have its prompt's voice, more than other voices of the same source?

Both sides are brought to one level and low-passed at 3.8 kHz first: loudness and bandwidth belong to the recording,
and would win otherwise. A figure alone says little; the same figure against other speakers of the source stands
beside it, and the equal-error rate says how well the judge tells speakers apart at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.intervals import Estimate, difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.judge_audio import check_clips, is_silent, match_channel
from xcodec_lm.tasks.eval.plugins import SpeakerEmbedder


def load_speaker_embedder(source: str | Path, device: str = "cpu") -> SpeakerEmbedder:
    """An embedder from a folder of `eval train-evaluators`; nothing is downloaded.

    Raises:
        XcodecLMError: no embedder is there, or it is damaged.
    """
    from xcodec_lm.tasks.eval.tiny_speaker import load_tiny_speaker

    return load_tiny_speaker(source, device)


@dataclass(frozen=True)
class Voice:
    """A recording of a speaker to compare with.

    Attributes:
        wav: (N,) float32 at 16 kHz.
        speaker: who speaks.
        source: corpus or kind of voice; only voices of one source are compared.
        id: of the recording; the same prompt of several utterances has one id.
    """

    wav: np.ndarray
    speaker: str
    source: str = ""
    id: str = ""


def voice_vectors(embedder: SpeakerEmbedder, wavs: Sequence[np.ndarray]) -> np.ndarray:
    """Embeddings (n, D) of clips at one level and bandwidth; zeros for a silent clip, whose similarity to all is 0."""
    clips = check_clips(wavs)
    matched = [match_channel(clip).clamp(-1.5, 1.5).numpy() for clip in clips]
    vectors = np.asarray(embedder.embed(matched), dtype=np.float64)
    return vectors * np.array([not is_silent(clip) for clip in clips], dtype=np.float64)[:, None]


def similarity(embedder: SpeakerEmbedder, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Cosine similarity of pairs of clips, at one level and bandwidth.

    Args:
        embedder: the judge.
        a: n clips, (N,) float32 at 16 kHz.
        b: n clips.

    Returns:
        (n,) in [-1, 1]; 0 where either clip is silent: speech that was not produced is not like its prompt.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} clips are no pairs")
    if not len(a):
        return np.zeros(0)
    return np.sum(voice_vectors(embedder, a) * voice_vectors(embedder, b), axis=1)


@dataclass(frozen=True)
class SimilarityReport:
    """Similarity of generated speech to its prompts.

    Attributes:
        own: to the own prompt.
        others: mean over prompts of other speakers of the same source; over the clips that have such.
        difference: own - others, paired over clips; the unit of the interval is the prompt.
        items: of each clip: own, others (NaN without another speaker), prompt id, speaker, source.
    """

    own: Estimate
    others: Estimate
    difference: Estimate
    items: tuple[dict[str, Any], ...]

    def by_source(self, seed: int = 0) -> dict[str, SimilarityReport]:
        """The same for each source alone."""
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for item in self.items:
            groups[item["source"]].append(item)
        return {source: _report(items, seed) for source, items in sorted(groups.items())}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the items."""
        names = ("own", "others", "difference")
        return {name: getattr(self, name).to_dict() for name in names} | {"verdict": self.difference.verdict(False)}


def compare_with_prompts(
    embedder: SpeakerEmbedder, generated: Sequence[np.ndarray], prompts: Sequence[Voice],
    others: Sequence[Voice] = (), seed: int = 0,
) -> SimilarityReport:  # fmt: skip
    """Generated speech against its own prompts and against other speakers' of the same source.

    Args:
        embedder: the judge.
        generated: n clips, (N,) float32 at 16 kHz; what was prompted with is cut off.
        prompts: n, one of each clip.
        others: more voices to compare with, where the prompts have few speakers of a source.
        seed: of the intervals.

    Raises:
        XcodecLMError: as many prompts as clips are needed, and at least one.
    """
    if len(generated) != len(prompts) or not len(prompts):
        raise XcodecLMError(f"{len(generated)} generated clips for {len(prompts)} prompts", "give one prompt a clip")
    distinct = {(voice.id or f"#{index}"): voice for index, voice in enumerate((*prompts, *others))}
    voices = list(distinct.values())
    vectors = voice_vectors(embedder, [voice.wav for voice in voices])
    place = {name: index for index, name in enumerate(distinct)}
    made = voice_vectors(embedder, generated)
    items = []
    for index, prompt in enumerate(prompts):
        name = prompt.id or f"#{index}"
        by_speaker: dict[str, list[float]] = defaultdict(list)
        for voice, vector in zip(voices, vectors, strict=True):
            if voice.source == prompt.source and voice.speaker != prompt.speaker:
                by_speaker[voice.speaker].append(float(vector @ made[index]))
        # A speaker with many recordings counts once.
        means = [sum(values) / len(values) for values in by_speaker.values()]
        items.append({
            "own": float(vectors[place[name]] @ made[index]),
            "others": sum(means) / len(means) if means else math.nan,
            "prompt": name, "speaker": prompt.speaker, "source": prompt.source,
        })  # fmt: skip
    return _report(items, seed)


def _report(items: Sequence[dict[str, Any]], seed: int) -> SimilarityReport:
    own, others = ([item[name] for item in items] for name in ("own", "others"))
    units = [item["prompt"] for item in items]
    return SimilarityReport(
        mean_estimate(own, units, seed), mean_estimate(others, units, seed),
        difference_estimate(own, others, units, seed), tuple(items),
    )  # fmt: skip


def equal_error_rate(same: Sequence[float] | np.ndarray, different: Sequence[float] | np.ndarray) -> float:
    """The rate at which as many pairs of one speaker are refused as pairs of two are accepted.

    Args:
        same: similarities of pairs of one speaker.
        different: of pairs of two speakers.

    Returns:
        In [0, 1]; 0.5 is chance. NaN where either is empty.
    """
    same, different = np.sort(np.asarray(same, np.float64)), np.sort(np.asarray(different, np.float64))
    if not len(same) or not len(different):
        return math.nan
    thresholds = np.concatenate([[-np.inf], np.unique(np.concatenate([same, different])), [np.inf]])
    refused = np.searchsorted(same, thresholds, side="left") / len(same)  # below the threshold
    accepted = 1 - np.searchsorted(different, thresholds, side="left") / len(different)
    # refused rises and accepted falls; the crossing lies between two thresholds
    after = int(np.argmax(refused >= accepted))
    before = max(0, after - 1)
    gap = (refused[after] - accepted[after]) - (refused[before] - accepted[before])
    share = 0.0 if gap <= 0 else (accepted[before] - refused[before]) / gap
    return float(refused[before] + share * (refused[after] - refused[before]))


def verification(vectors: np.ndarray, speakers: Sequence[str], sources: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How well speakers are told apart within each source, over all pairs of recordings.

    Args:
        vectors: (n, D) of unit norm.
        speakers: n.
        sources: n.

    Returns:
        source -> `eer`, `same` and `different` (mean similarities), `speakers`, `recordings`; `eer` is None where there
        is one speaker, or none with two recordings.
    """
    found: dict[str, dict[str, Any]] = {}
    names, groups = np.asarray(speakers, dtype=str), np.asarray(sources, dtype=str)
    for source in sorted(set(groups.tolist())):
        rows = np.flatnonzero(groups == source)
        first, second = np.triu_indices(len(rows), k=1)
        scores = (vectors[rows] @ vectors[rows].T)[first, second]
        equal = names[rows][first] == names[rows][second]
        rate = equal_error_rate(scores[equal], scores[~equal])
        found[source] = {
            "eer": None if math.isnan(rate) else rate,
            "same": float(scores[equal].mean()) if equal.any() else None,
            "different": float(scores[~equal].mean()) if (~equal).any() else None,
            "speakers": len(set(names[rows].tolist())),
            "recordings": len(rows),
        }
    return found
