"""What can be known about a codec as a language model's tokenizer, in minutes, without training a model.

One codec alone or two side by side: what its resynthesis keeps, what its vectors and codes know, how predictable and
how stable its codes are, and what it costs. Plain data, ready for JSON; `codec_card_page` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, Split, read_manifests
from xcodec_lm.codec.load import count_parameters
from xcodec_lm.codec.runtime.progress import say, track
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.tasks.eval import reconstruction, signal
from xcodec_lm.tasks.eval.abx_items import Item, items_of_words
from xcodec_lm.tasks.eval.code_robustness import code_robustness
from xcodec_lm.tasks.eval.code_statistics import code_statistics
from xcodec_lm.tasks.eval.codec_compare import HELD_OUT, Codecs, describe, discriminability, encoding, quality
from xcodec_lm.tasks.eval.codec_features import FeatureKey, code_keys, feature_keys, has
from xcodec_lm.tasks.eval.codec_probes import probes
from xcodec_lm.tasks.eval.reconstruction import N_QS, Domain
from xcodec_lm.tasks.eval.resynthesis import judged
from xcodec_lm.tasks.eval.speaker import SpeakerEmbedder
from xcodec_lm.tasks.eval.train_evaluators import thin
from xcodec_lm.tasks.eval.transcribers import Transcriber

VERSION = 1


@dataclass(frozen=True)
class CardSettings:
    """How much is measured; two cards compare when these are equal.

    Attributes:
        split: whose recordings are measured; None for all.
        clips: of each manifest that are reconstructed, heard by judges and whose codes are predicted.
        fit_clips: train recordings of each manifest that the counting models are fitted on.
        word_clips: recordings of single words for ABX.
        per_class: recordings of each class for probes.
        shaken_clips: recordings of each manifest for robustness.
        clip_s: what is taken of each recording, in seconds.
        seed: of every draw.
    """

    split: Split | None = "test"
    clips: int = 40
    fit_clips: int = 120
    word_clips: int = 240
    per_class: int = 40
    shaken_clips: int = 8
    clip_s: float = 5.0
    seed: int = 0


def measure_card(
    codecs: Codecs, manifests: Sequence[Path], settings: CardSettings = CardSettings(), *,
    transcriber: Transcriber | None = None, embedder: SpeakerEmbedder | None = None,
    items: Sequence[Item] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All figures of a card.

    Args:
        codecs: `codec`, and `against` for the one that it stands beside; in eval mode.
        manifests: one a domain.
        settings: how much.
        transcriber: for word errors of the resynthesis; None leaves that out.
        embedder: for likeness of the resynthesis; likewise.
        items: of ABX; None takes recordings of single words.

    Returns:
        `version`, `settings`, `n_q`, `codecs`, `domains` (see `codec_compare.quality`), `judged` (see `resynthesis`),
        `abx` and `abx_items`, `probes`, and by role `codes` (see `code_statistics`) and `robustness`; `encoding` and
        `decoding`; `missing` libraries.
    """
    s = settings
    n_qs = [n_q for n_q in N_QS if n_q <= min(codec.spec.n_q for codec in codecs.values())]
    domains = [Domain(d.name, thin(d.clips, s.clips)) for d in reconstruction.read_domains(manifests, s.split)]
    every = read_manifests(manifests)
    measured = [clip for domain in domains for clip in domain.clips]
    data: dict[str, Any] = {
        "version": VERSION, "settings": asdict(s), "n_q": n_qs, "manifests": [Path(path).name for path in manifests],
        "codecs": {role: describe(codec) | _facts(codec) for role, codec in codecs.items()},
        "missing": list(signal.missing_libraries()) if any(domain.speech for domain in domains) else [],
        "domains": {domain.name: quality(codecs, domain, n_qs, s.clip_s, s.seed) for domain in domains},
        "judged": judged(codecs, measured, n_qs, transcriber, embedder, seed=s.seed),
    }  # fmt: skip
    keys = feature_keys(list(codecs.values()), n_qs)
    splits = HELD_OUT if s.split == "test" else (s.split,)
    held_out = [clip for clip in every if s.split is None or (clip.split or "train") in splits]
    words = _words(held_out, s.word_clips)
    data["abx"] = discriminability(codecs, every if items else words, [*keys, *code_keys(n_qs)], items, s.seed)
    data["abx_items"] = "of the given file" if items else f"words of {' and '.join(map(str, splits))}"
    data["probes"] = probes(codecs, every, _layers(codecs, n_qs, keys), s.clip_s, s.seed, s.per_class)
    fitted = _fitted(manifests, {clip.id for clip in measured}, s.fit_clips)
    data["codes"], data["robustness"] = {}, {}
    for role, codec in codecs.items():
        codes = [_codes(codec, clips, s.clip_s) for clips in (fitted, measured)]
        data["codes"][role] = code_statistics(codec.spec, *codes)
        shaken = [clip for domain in domains for clip in thin(domain.clips, s.shaken_clips)]
        data["robustness"][role] = code_robustness(codec, shaken, s.clip_s, s.seed)
    data["encoding"] = encoding(codecs, measured, repeats=3)
    data["decoding"] = encoding(codecs, measured, repeats=3, job="decode")
    return data


def _facts(codec: AudioTokenizer) -> dict[str, Any]:
    spec = codec.spec
    facts: dict[str, Any] = {
        "codebook_sizes": list(spec.codebook_sizes), "tokens_per_s": float(spec.frame_rate) * spec.n_q,
        "causal": codec.causal, "lookahead_frames": codec.lookahead_frames,
    }  # fmt: skip
    if isinstance(codec, torch.nn.Module):
        facts["parameters"] = count_parameters(codec)
    return facts


def _layers(codecs: Mapping[str, AudioTokenizer], n_qs: Sequence[int], keys: Sequence[FeatureKey]) -> list[FeatureKey]:
    """Probed features: `post_vq` of every number of layers, and the others of most layers alone."""
    layers = [FeatureKey("post_vq", n_q) for n_q in n_qs]
    layers = [key for key in layers if any(has(codec, key) for codec in codecs.values())]
    return layers + [key for key in keys if key.feature != "post_vq" and key.n_q in (None, max(n_qs))]


def _words(clips: Sequence[Clip], most: int) -> list[Clip]:
    """Recordings of single words, evenly over words and speakers."""
    names = {item.clip for item in items_of_words(clips)}
    spoken = [clip for clip in clips if clip.id in names]
    taken: dict[tuple[str, str], int] = {}
    ranked = []
    for place, clip in enumerate(spoken):
        key = (str(clip.row["text"]), str(clip.row["speaker"]))
        taken[key] = taken.get(key, 0) + 1
        ranked.append((taken[key], place))
    return [spoken[place] for _, place in sorted(sorted(ranked)[:most], key=lambda pair: pair[1])]


def _fitted(manifests: Sequence[Path], measured: set[str], most: int) -> list[Clip]:
    """Recordings that counts come from: of train where there are any, else those that are not measured."""
    chosen: list[Clip] = []
    for manifest in manifests:
        clips = [clip for clip in read_manifests([manifest]) if clip.id not in measured]
        chosen += thin([clip for clip in clips if (clip.split or "train") == "train"] or clips, most)
    if not chosen:
        say("note: no recording is left to fit counting models on; they are fitted on those that they are measured on")
        return [clip for manifest in manifests for clip in thin(read_manifests([manifest]), most)]
    return chosen


@torch.inference_mode()
def _codes(codec: AudioTokenizer, clips: Sequence[Clip], clip_s: float) -> list[Tensor]:
    found = []
    for clip in track(clips, f"codes of {codec.spec.name}", len(clips)):
        tokens = codec.encode(load_audio(clip.path, codec.spec.sample_rate, duration_s=clip_s).wav[None])
        found.append(tokens.codes[0, :, : int(tokens.lengths[0])].cpu())
    return found
