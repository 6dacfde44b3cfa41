"""Codecs side by side: reconstructions, codebook use, probes, ABX and the cost of encoding, with intervals.

Everything returned is plain data, ready for JSON; `codec_text` makes tables of it. With two codecs, every figure of
both comes with the paired difference (first minus second) and a verdict from the first one's side.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, Split, read_manifests
from xcodec_lm.codec.evaluate import CodebookUse
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.tasks.eval import reconstruction, signal
from xcodec_lm.tasks.eval.abx import Mode, abx
from xcodec_lm.tasks.eval.abx_items import JSON_HINT, Item, ItemError, SliceRule, cut, items_of_words
from xcodec_lm.tasks.eval.codec_features import CODES, FeatureKey, code_keys, collect, feature_keys, has
from xcodec_lm.tasks.eval.codec_probes import probes
from xcodec_lm.tasks.eval.intervals import Estimate, difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.reconstruction import LOWER_IS_BETTER, N_QS, Domain, Values

MODES: tuple[Mode, Mode] = ("within", "across")
HELD_OUT = ("dev", "test")
"""Splits whose words make ABX items with `test`: a test split of few speakers has no other speaker to compare with."""
TIMED_CLIPS, TIMED_S, REPEATS = 8, 5.0, 5
Codecs = Mapping[str, AudioTokenizer]
"""By role: `codec`, and `against` where there is a second."""


def compare(
    codecs: Codecs, manifests: Sequence[Path], split: Split | None, clip_s: float | None = None, *,
    looks_inside: bool = True, items: Sequence[Item] | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Every measurement of one codec, or of two side by side.

    Args:
        codecs: `codec`, and `against` for the one that it is compared with; in eval mode.
        manifests: one a domain.
        split: whose recordings are reconstructed; None for all.
        clip_s: take at most this much of each recording.
        looks_inside: measure probes, ABX and the cost of encoding too.
        items: of ABX; None takes the recordings of single words.
        seed: of bootstraps, samples and probes.

    Returns:
        `codecs`, `split`, `n_q`, `domains`, `missing` (libraries without which speech lacks measures), the means over
        all domains (see `overall`) and, where asked for, `probes`, `abx` and `encoding`.
    """
    n_qs = [n_q for n_q in N_QS if n_q <= min(codec.spec.n_q for codec in codecs.values())]
    domains = reconstruction.read_domains(manifests, split)
    totals = {role: CodebookUse(codec) for role, codec in codecs.items()}
    measured = {domain.name: quality(codecs, domain, n_qs, clip_s, seed, totals) for domain in domains}
    data: dict[str, Any] = {
        "codecs": {role: describe(codec) for role, codec in codecs.items()},
        "split": split or "all",
        "n_q": n_qs,
        "missing": list(signal.missing_libraries()) if any(domain.speech for domain in domains) else [],
        "domains": measured,
        **overall(measured, list(codecs)),
        "codes_used": totals["codec"].used,
        "perplexity": totals["codec"].perplexity,
    }
    if looks_inside:
        keys = feature_keys(list(codecs.values()), n_qs)
        every = read_manifests(manifests)
        data["probes"] = probes(codecs, every, keys, clip_s, seed)
        splits = HELD_OUT if split == "test" else (split,)
        held_out = [clip for clip in every if split is None or (clip.split or "train") in splits]
        data["abx"] = discriminability(codecs, every if items else held_out, [*keys, *code_keys(n_qs)], items, seed)
        data["abx_items"] = "of the given file" if items else f"words of {' and '.join(map(str, splits))}"
        if split is None and not items:
            data["abx_items"] = "words of all splits"
        data["encoding"] = encoding(codecs, [clip for domain in domains for clip in domain.clips])
    return data


def describe(codec: AudioTokenizer) -> dict[str, Any]:
    """What a codec is, for the head of a table."""
    spec = codec.spec
    return {
        "name": spec.name, "sample_rate": spec.sample_rate, "output_sample_rate": spec.output_sample_rate,
        "frame_rate": float(spec.frame_rate), "n_q": spec.n_q, "bitrate_kbps": spec.bitrate_kbps,
        "fingerprint": spec.fingerprint,
    }  # fmt: skip


# ---------------------------------------------------------------------- reconstructions


def overall(domains: Mapping[str, dict[str, Any]], roles: Sequence[str]) -> dict[str, Any]:
    """Means over the clips of all domains, without intervals: `clips`, `seconds`, `anchors` and each role's distances.

    Only mel and STFT distance, which every domain has and which judge every clip.
    """
    clips = sum(domain["clips"] for domain in domains.values())
    data: dict[str, Any] = {"clips": clips, "seconds": sum(domain["seconds"] for domain in domains.values())}
    for role in (*roles, "anchors"):
        rows = next(iter(domains.values()))[role]
        data[role] = {
            row: {
                name: sum(domain[role][row][name]["value"] * domain["clips"] for domain in domains.values()) / clips
                for name in ("mel", "stft")
            }
            for row in rows
        }
    return data


def quality(
    codecs: Codecs, domain: Domain, n_qs: Sequence[int], clip_s: float | None = None, seed: int = 0,
    totals: Mapping[str, CodebookUse] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Reconstructions of a domain's clips by every codec, and the anchors.

    Args:
        codecs: by role.
        domain: whose clips.
        n_qs: numbers of layers.
        clip_s: take at most this much of each clip.
        seed: of the bootstrap.
        totals: by role; the use of codebooks is added here too.

    Returns:
        `codec` (and `against`, `difference`): "n_q 1" -> measure -> figure; `anchors`: name -> measure -> figure;
        `codes`: role -> `used`, `perplexity` of each layer and `frames`; `clips`, `seconds`, `unit`, `units`,
        `delay_samples`.
    """
    results, anchors, seconds = reconstruction.measure(list(codecs.values()), domain, n_qs, clip_s)
    by_role = dict(zip(codecs, results, strict=True))
    for role, total in (totals or {}).items():
        total.merge(by_role[role].use)
    units = domain.units
    data: dict[str, Any] = {
        "clips": len(domain.clips), "seconds": seconds, "unit": domain.unit, "units": len(set(units)),
        "measures": list(reconstruction.measures(domain)),
        "anchors": {name: _figures(values, units, seed) for name, values in anchors.items()},
        "codes": {
            role: {"used": result.use.used, "perplexity": result.use.perplexity, "frames": result.use.frames}
            for role, result in by_role.items()
        },
        "delay_samples": {role: result.delay_samples for role, result in by_role.items()},
    }  # fmt: skip
    for role, result in by_role.items():
        data[role] = {f"n_q {n_q}": _figures(values, units, seed) for n_q, values in result.values.items()}
    if "against" in by_role:
        ours, theirs = by_role["codec"].values, by_role["against"].values
        data["difference"] = {
            f"n_q {n_q}": {
                name: _with_verdict(difference_estimate(values, theirs[n_q][name], units, seed), LOWER_IS_BETTER[name])
                for name, values in ours[n_q].items()
            }
            for n_q in n_qs
        }
    return data


def _figures(values: Values, units: Sequence[str], seed: int) -> dict[str, Any]:
    return {name: mean_estimate(column, units, seed).to_dict() for name, column in values.items()}


def _with_verdict(difference: Estimate, lower_is_better: bool) -> dict[str, Any]:
    return difference.to_dict() | {"verdict": difference.verdict(lower_is_better)}


# ---------------------------------------------------------------------- what tokens know


def discriminability(
    codecs: Codecs, clips: Sequence[Clip], keys: Sequence[FeatureKey], items: Sequence[Item] | None, seed: int = 0,
    slice_rule: SliceRule = "inclusive",
) -> list[dict[str, Any]]:  # fmt: skip
    """ABX errors within and across speakers of every feature.

    Args:
        codecs: by role.
        clips: recordings that items may lie in.
        keys: features.
        items: None takes the recordings of single words.
        seed: of the bootstrap.
        slice_rule: which frames an item has.

    Returns:
        A row for each mode and feature: `mode`, `feature`, `n_q`, `items`, `empty`, `clipped`, `cells`, `by_seed` and
        a figure in percent for each role and the `difference`. Empty where no triplet can be made.

    Raises:
        ItemError: an item lies in a recording that is not there.
    """
    chosen = items_of_words(clips) if items is None else list(items)
    names = {item.clip for item in chosen}
    by_name = {name: clip for clip in clips for name in (clip.path.stem, clip.id) if name in names}
    recordings = list({clip.id: clip for clip in by_name.values()}.values())
    if unknown := sorted(names - set(by_name)):
        raise ItemError(f"no row of the manifests is the recording {unknown[0]!r} of an ABX item", JSON_HINT)
    if not chosen:
        return []
    collected = collect(codecs, recordings, keys, "features for ABX")
    rows = []
    for key in keys:
        cuts = {}
        for role, codec in codecs.items():
            if has(codec, key) and (role, key) in collected:
                found = collected[role, key]
                vectors = {name: found.vectors[clip.id] for name, clip in by_name.items()}
                cuts[role] = cut(chosen, vectors, found.frame_rate, slice_rule)
        # an item that one of the codecs has no frame of is left out for both
        kept = [i for i in range(len(chosen)) if all(made.vectors[i] is not None for made in cuts.values())]
        for mode in MODES:
            results = {
                role: abx(
                    [chosen[i] for i in kept], [made.vectors[i] for i in kept], mode,
                    distance="identical" if key.feature == CODES else "angular",
                )
                for role, made in cuts.items()
            }  # fmt: skip
            first = next(iter(results.values()), None)
            if first is None or not first.errors:
                continue
            row: dict[str, Any] = {
                "mode": mode, "feature": key.feature, "n_q": key.n_q, "items": len(kept), "cells": first.cells,
                "empty": {role: made.empty for role, made in cuts.items()},
                "clipped": {role: made.clipped for role, made in cuts.items()},
                "by_seed": {role: result.by_seed for role, result in results.items()},
            }  # fmt: skip
            row |= {role: result.estimate(seed).to_dict() for role, result in results.items()}
            if len(results) == 2:
                row["difference"] = _with_verdict(results["codec"].minus(results["against"], seed), True)
            rows.append(row)
    return rows


# ---------------------------------------------------------------------- the cost of encoding


@torch.inference_mode()
def encoding(
    codecs: Codecs, clips: Sequence[Clip], repeats: int = REPEATS, job: Literal["encode", "decode"] = "encode"
) -> dict[str, Any]:
    """Seconds that encoding (or decoding) a second of audio takes, one recording at a time.

    The codecs take turns on every recording, in an order that turns round each time, so that whatever else the machine
    does falls on both alike.

    Returns:
        role -> `seconds_per_second` (median over repeats) and `repeats` (all of them); for two codecs `ratio`, the
        median of the first over the second, with its `low` and `high` among the repeats; `audio_s`, `threads`,
        `device`.
    """
    chosen = list(clips[:: max(1, len(clips) // TIMED_CLIPS)][:TIMED_CLIPS])
    wavs = {
        role: [load_audio(clip.path, codec.spec.sample_rate, duration_s=TIMED_S).wav[None] for clip in chosen]
        for role, codec in codecs.items()
    }
    audio_s = sum(wav.shape[2] for wav in wavs["codec"]) / codecs["codec"].spec.sample_rate
    jobs: dict[str, list[Callable[[], torch.Tensor]]] = {}
    for role, codec in codecs.items():
        if job == "encode":
            jobs[role] = [lambda codec=codec, wav=wav: codec.encode(wav).codes for wav in wavs[role]]
        else:
            tokens = [codec.encode(wav) for wav in wavs[role]]
            jobs[role] = [lambda codec=codec, given=given: codec.decode(given)[0] for given in tokens]
    taken: dict[str, list[float]] = {role: [] for role in codecs}
    for repeat in track(range(-1, repeats), "timing", repeats + 1):  # the first one warms up
        spent = dict.fromkeys(codecs, 0.0)
        roles = list(codecs)[:: 1 if repeat % 2 else -1]
        for index in range(len(chosen)):
            for role in roles:
                start = time.perf_counter()
                jobs[role][index]().cpu()  # waits for a GPU too
                spent[role] += time.perf_counter() - start
        if repeat >= 0:
            for role, seconds in spent.items():
                taken[role].append(seconds / audio_s)
    data: dict[str, Any] = {
        role: {"seconds_per_second": statistics.median(values), "repeats": values} for role, values in taken.items()
    }
    if "against" in taken:
        ratios = [ours / theirs for ours, theirs in zip(taken["codec"], taken["against"], strict=True)]
        data["ratio"] = {"value": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    device = str(getattr(codecs["codec"], "device", "cpu"))
    return data | {"audio_s": audio_s, "threads": torch.get_num_threads(), "device": device}
