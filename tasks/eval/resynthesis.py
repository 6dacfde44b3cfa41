"""What judges hear of a codec's resynthesis: its words and its voice, at each number of layers, beside the recordings.

A language model's speech is decoded by the codec, so this is the most that it can reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from xcodec_lm.codec.audio import load_audio, resample
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.evaluate import reconstruct
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.tasks.eval import wer
from xcodec_lm.tasks.eval.intervals import difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE
from xcodec_lm.tasks.eval.speaker import SpeakerEmbedder, voice_vectors
from xcodec_lm.tasks.eval.transcribers import Transcriber

WORST_WER = 0.10
"""A recogniser with more errors on recordings gives figures, and no verdict."""


@torch.inference_mode()
def judged(
    codecs: Mapping[str, AudioTokenizer], clips: Sequence[Clip], n_qs: Sequence[int], transcriber: Transcriber | None,
    embedder: SpeakerEmbedder | None, clip_s: float | None = None, seed: int = 0,
) -> dict[str, Any] | None:  # fmt: skip
    """Word errors and likeness of resynthesised speech.

    Args:
        codecs: `codec` and perhaps `against`.
        clips: recordings; those whose rows have `text` are heard, whole, for a text is of the whole.
        n_qs: numbers of layers.
        transcriber: hears words; None leaves that out.
        embedder: compares voices, each resynthesis with its own recording; None leaves that out.
        clip_s: leave out longer recordings.
        seed: of intervals.

    Returns:
        None where there is nothing to hear, or nobody who hears. Else `clips`, `speakers`, `judges`; `recordings`:
        `wer`, `cer` and `others` (likeness of two speakers' recordings, the floor of `sim`); role -> n_q -> `wer`,
        `cer`, `sim`, in percent but `sim`; `difference` likewise, with verdicts.
    """
    spoken = [
        clip for clip in clips
        if isinstance(clip.row.get("text"), str) and wer.normalise(clip.row["text"])
        and (clip_s is None or clip.duration_s <= clip_s)
    ]  # fmt: skip
    if not spoken or (transcriber is None and embedder is None):
        return None
    speakers = [str(clip.row.get("speaker") or clip.id) for clip in spoken]
    real = [load_audio(clip.path, SAMPLE_RATE).wav[0].numpy() for clip in spoken]
    listen = _Listener(spoken, speakers, real, transcriber, embedder, seed)
    data: dict[str, Any] = {
        "clips": len(spoken), "speakers": len(set(speakers)), "judges": listen.judges,
        "recordings": listen.recordings(),
    }  # fmt: skip
    heard: dict[str, dict[str, _Heard]] = {}
    for role, codec in codecs.items():
        made: dict[int, list[np.ndarray]] = {n_q: [] for n_q in n_qs}
        for clip, wav in zip(track(spoken, f"resynthesis by {codec.spec.name}", len(spoken)), real, strict=True):
            own = codec.spec.output_sample_rate
            tokens = codec.encode(load_audio(clip.path, codec.spec.sample_rate).wav[None])
            for n_q in n_qs:
                decoded = reconstruct(codec, tokens, n_q, round(len(wav) * own / SAMPLE_RATE)).numpy()
                made[n_q].append(np.clip(resample(decoded, own, SAMPLE_RATE), -1, 1))
        heard[role] = {f"n_q {n_q}": listen(wavs) for n_q, wavs in made.items()}
        data[role] = {label: listen.figures(found) for label, found in heard[role].items()}
    if "against" in heard:
        data["difference"] = {
            label: listen.differences(found, heard["against"][label]) for label, found in heard["codec"].items()
        }
    return data


class _Heard:
    """What was heard of one set of clips."""

    def __init__(self, pairs: list[wer.Pair] | None, sims: np.ndarray | None):
        self.pairs, self.sims = pairs, sims


class _Listener:
    def __init__(
        self, clips: Sequence[Clip], speakers: list[str], real: list[np.ndarray], transcriber: Transcriber | None,
        embedder: SpeakerEmbedder | None, seed: int,
    ):  # fmt: skip
        self.clips, self.speakers, self.seed = clips, speakers, seed
        self.transcriber, self.embedder, self.real = transcriber, embedder, real
        self.vectors = None if embedder is None else voice_vectors(embedder, real)
        self.judges: dict[str, Any] = {}
        if transcriber is not None:
            self.judges |= {"recogniser": transcriber.name, "ancestry": transcriber.ancestry}
        if embedder is not None:
            self.judges |= {"voices": embedder.name, "voices_ancestry": embedder.ancestry}
        self.trusted = True

    def __call__(self, wavs: list[np.ndarray]) -> _Heard:
        pairs, sims = None, None
        if self.transcriber is not None:
            texts = self.transcriber.transcribe(wavs)
            pairs = [
                wer.Pair(clip.id, clip.row["text"], text, speaker)
                for clip, text, speaker in zip(self.clips, texts, self.speakers, strict=True)
            ]
        if self.embedder is not None and self.vectors is not None:
            sims = np.sum(voice_vectors(self.embedder, wavs) * self.vectors, axis=1)
        return _Heard(pairs, sims)

    def recordings(self) -> dict[str, Any]:
        """The recordings themselves: the ceiling of words, and the floor of likeness."""
        figures: dict[str, Any] = {}
        if self.transcriber is not None:
            found = self.figures(_Heard(self(self.real).pairs, None))
            figures |= found
            self.trusted = found["wer"]["value"] <= 100 * WORST_WER
        if self.vectors is not None:
            alike = self.vectors @ self.vectors.T
            other = np.array(self.speakers)[:, None] != np.array(self.speakers)
            means = [row[kept].mean() if kept.any() else np.nan for row, kept in zip(alike, other, strict=True)]
            figures["others"] = mean_estimate(means, self.speakers, self.seed).to_dict()
        return figures

    def figures(self, heard: _Heard) -> dict[str, Any]:
        """Figures of what was heard."""
        found: dict[str, Any] = {}
        if heard.pairs is not None:
            for name, counts in (("wer", wer.word_counts(heard.pairs)), ("cer", wer.character_counts(heard.pairs))):
                found[name] = _percent(wer.rate_estimate(counts, heard.pairs, self.seed).to_dict())
        if heard.sims is not None:
            found["sim"] = mean_estimate(heard.sims, self.speakers, self.seed).to_dict()
        return found

    def differences(self, first: _Heard, second: _Heard) -> dict[str, Any]:
        """Paired differences, first minus second."""
        found: dict[str, Any] = {}
        if first.pairs is not None and second.pairs is not None:
            counts = [wer.word_counts(pairs) for pairs in (first.pairs, second.pairs)]
            gain = wer.difference_estimate(counts[0], counts[1], first.pairs, self.seed)
            verdict = gain.verdict(lower_is_better=True) if self.trusted else "withheld: the recogniser errs too often"
            found["wer"] = _percent(gain.to_dict()) | {"verdict": verdict}
        if first.sims is not None and second.sims is not None:
            gain = difference_estimate(first.sims, second.sims, self.speakers, self.seed)
            found["sim"] = gain.to_dict() | {"verdict": gain.verdict(lower_is_better=False)}
        return found


def _percent(figure: dict[str, Any]) -> dict[str, Any]:
    return {
        key: 100 * value if key in ("value", "low", "high") and value is not None else value
        for key, value in figure.items()
    }
