"""Table 2: ABX errors of codecs' vectors, within and across speakers.

Real: triphones of LibriSpeech test-clean, as Libri-light lists them. Demo: recordings of single words. Every codec is
measured with the fewest and the most layers, by its own vectors (`post_vq`) and, where it has one, by its semantic
decoder's output; its teacher stands beside as a ceiling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.codec.tokens import AudioTokenizer, FrameFeatures
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.eval.abx import AbxResult, Mode, abx
from xcodec_lm.tasks.eval.abx_items import Item, cut, items_of_words, read_items
from xcodec_lm.tasks.eval.codec_features import FeatureKey
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce.codecs import BASELINE, XCODEC
from xcodec_lm.tasks.reproduce.demo import find_corpus
from xcodec_lm.tasks.reproduce.lists import read_lines, write_lines
from xcodec_lm.tasks.reproduce.scores import Metric, difference, empty, figure, row, scores
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Facts, Place, Stage, hash_file, hash_names
from xcodec_lm.tasks.reproduce.tables import Reproduction

MODES: tuple[Mode, Mode] = ("within", "across")
SUBSET = "test-clean"
HELD_OUT = ("dev", "test")
"""Splits whose words are taken: a test split of few speakers has no other speaker to compare with."""
MOST_LAYERS = {"DAC": 12}
"""Layers at which the paper measures a codec, where they are not 8."""
ITEMS = "items.txt"


def stages(place: Place, settings: Settings) -> list[Stage]:
    """prepare, score."""
    fingerprints = named_codecs.fingerprints(settings)
    prepare = _demo_items if settings.demo else _real_items
    inputs: Facts = {"seed": settings.seed, "corpus": _corpus_key(settings)}
    return [
        Stage("prepare", inputs, lambda folder, _: prepare(place, settings, folder), files=(ITEMS,)),
        Stage("score", {"codecs": fingerprints, "seed": settings.seed},
              lambda folder, before: _score(place, settings, folder.parent / "prepare", before["prepare"])),
    ]  # fmt: skip


def _corpus_key(settings: Settings) -> Any:
    if not settings.demo:
        assert settings.librispeech is not None and settings.items is not None
        return [hash_names(_subset(settings.librispeech)), hash_file(settings.items)]
    if settings.corpus is None:
        return None
    manifest = settings.corpus / "speech.jsonl"
    return hash_file(manifest) if manifest.is_file() else "missing"


def _subset(root: Path) -> Path:
    return root / SUBSET if (root / SUBSET).is_dir() else root


# ---------------------------------------------------------------------- what is compared


def _real_items(place: Place, settings: Settings, folder: Path) -> Facts:
    """The items of the file, and where the recordings that they lie in are."""
    assert settings.librispeech is not None and settings.items is not None
    items = read_items(settings.items)
    root = _subset(settings.librispeech)
    files = {path.stem: path for path in sorted(root.rglob("*")) if path.suffix in (".flac", ".wav")}
    if not files:
        raise XcodecLMError(
            f"--librispeech {settings.librispeech} holds no .flac or .wav file", "give the unpacked LibriSpeech"
        )
    missing = sorted({item.clip for item in items} - set(files))
    if missing:
        raise XcodecLMError(
            f"{len(missing)} recordings of {settings.items.name} are not in {root}, such as {missing[0]}",
            "items and recordings must be of one subset: test-clean.item belongs to test-clean/",
        )
    _write_items(folder / ITEMS, items)
    used = sorted({item.clip for item in items})
    return {"items": len(items), "recordings": {name: place.name(files[name]) for name in used},
            "origin": f"LibriSpeech {root.name}, {settings.items.name}", "units": "triphones"}  # fmt: skip


def _demo_items(place: Place, settings: Settings, folder: Path) -> Facts:
    corpus = find_corpus(place, settings, ["words"])
    clips = [clip for clip in read_manifests(corpus.of("words")) if clip.split in HELD_OUT]
    items = items_of_words(clips)
    if len({item.speaker for item in items}) < 2 or len({item.label for item in items}) < 2:
        raise XcodecLMError(
            f"{corpus.origin}: splits dev and test hold no single words of several speakers",
            "ABX of a demo needs rows of speech.jsonl whose text is one word, such as spoken digits",
        )
    _write_items(folder / ITEMS, items)
    paths = {clip.id: place.name(clip.path) for clip in clips}
    return {"items": len(items), "recordings": {item.clip: paths[item.clip] for item in items},
            "origin": f"single words of {corpus.origin}", "units": "words"}  # fmt: skip


def _write_items(path: Path, items: Sequence[Item]) -> None:
    rows = [
        (item.clip, item.onset_s, item.offset_s, item.label, item.before, item.after, item.speaker) for item in items
    ]
    write_lines(path, "recording\tonset\toffset\tlabel\tbefore\tafter\tspeaker", rows)


def _read_items(path: Path) -> list[Item]:
    from decimal import Decimal

    found = []
    for clip, onset, offset, label, before, after, speaker in read_lines(path):
        times = (None, None) if onset == "None" else (Decimal(onset), Decimal(offset))
        found.append(Item(clip, label, speaker, before, after, *times))
    return found


# ---------------------------------------------------------------------- figures


def _score(place: Place, settings: Settings, lists: Path, prepared: Facts) -> Facts:
    items = _read_items(lists / ITEMS)
    clips = {name: Clip(name, place.path(path), 0.0, None, {}) for name, path in prepared["recordings"].items()}
    codecs = named_codecs.load_codecs(settings)
    metrics = [
        Metric(mode, f"{mode}, %", ".1f", "min", stands_for_paper=prepared["units"] == "triphones") for mode in MODES
    ]
    rows, results = [], {}
    ssl_shown: set[str] = set()
    for name, codec in codecs.items():
        kind = named_codecs.paper_name(codec)
        keys = keys_of(codec, kind)
        vectors = item_vectors(codec, items, clips, keys)
        for key in keys:
            found = {mode: abx(items, vectors[key], mode) for mode in MODES}
            results[name, key] = found
            cells = {mode: _cell(result, settings.seed, mode) for mode, result in found.items()}
            if key.feature == "ssl":
                if (kind_of := str(getattr(codec, "semantic_config", ""))) not in ssl_shown:
                    ssl_shown.add(kind_of)
                    rows.insert(0, row(f"teacher of {name}", cells, "a ceiling", "hubert-ls-960", reference=True))
                continue
            rows.append(row(name, cells, f"nq {key.n_q}, {key.feature}", _paper_row(kind, key, codec)))
    names = list(codecs)
    differences = [
        _difference(metric, settings.seed, results, (names[0], key), (other, partner))
        for other in names[1:] for key in keys_of(codecs[names[0]], "") if key.feature != "ssl"
        if (partner := _partner(codecs, results, other, key)) is not None for metric in metrics
        if results[names[0], key][metric.key].errors and results[other, partner][metric.key].errors
    ]  # fmt: skip
    demo = settings.demo
    return scores(
        metrics, rows, differences,
        [*([("items", "phones in triphone context, LibriSpeech test-clean", prepared["origin"])] if demo else []),
         *named_codecs.codec_settings(codecs)],
        [f"the items are {prepared['origin']}: whole words are told apart, not phones"] if demo else [],
        {"ABX": {}},
        [f"{len(items)} items of {prepared['origin']}; errors in percent, chance 50. post_vq sums the codewords; "
         "sem_decoder is trained to copy the teacher."],
    )  # fmt: skip


def keys_of(codec: AudioTokenizer, kind: str) -> list[FeatureKey]:
    """What is measured of a codec: each feature of its tokens with one layer and with all; its teacher."""
    known = codec.features if isinstance(codec, FrameFeatures) else ()
    layers = named_codecs.layers_of(codec, (1, MOST_LAYERS.get(kind, 8)))
    keys = [FeatureKey(name, n_q) for name in ("sem_decoder", "post_vq") if name in known for n_q in layers]
    return keys + ([FeatureKey("ssl")] if "ssl" in known else [])


def _partner(codecs: Mapping[str, Any], results: Mapping[Any, Any], other: str, key: FeatureKey) -> FeatureKey | None:
    """What of another codec a feature of the first is compared with: the same, or the vectors of as many layers."""
    for feature in (key.feature, "post_vq"):
        wanted = FeatureKey(feature, key.n_q)
        if (other, wanted) in results:
            return wanted
    return None


def _difference(metric: Metric, seed: int, results: Mapping[Any, dict[Mode, AbxResult]], one: Any, other: Any) -> Facts:
    found = results[one][metric.key].minus(results[other][metric.key], seed)  # type: ignore[index]
    return difference(metric, f"{one[0]}, {one[1]}", f"{other[0]}, {other[1]}", found)


def _paper_row(kind: str, key: FeatureKey, codec: AudioTokenizer) -> str:
    if not kind:
        return ""
    n_q = key.n_q if key.n_q != codec.spec.n_q or key.n_q == 1 else MOST_LAYERS.get(kind, 8)
    if kind == XCODEC and key.feature != "sem_decoder":  # the author's own answer, see paper.TABLES
        return ""
    if kind == BASELINE and key.feature != "post_vq":
        return ""
    return f"{kind}, nq {n_q}"


def _cell(result: AbxResult, seed: int, mode: Mode) -> Facts:
    if not result.errors:
        return empty(f"no triplet can be made {mode} speakers of these items")
    return figure(result.estimate(seed))


@torch.inference_mode()
def item_vectors(
    codec: Any, items: Sequence[Item], clips: Mapping[str, Clip], keys: Sequence[FeatureKey]
) -> dict[FeatureKey, list[Tensor | None]]:
    """The frames of every item by feature; recordings are read once and only what items need of them is kept.

    Args:
        codec: with the features.
        items: in the order of the result.
        clips: recordings by name.
        keys: features.
    """
    by_clip: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_clip[item.clip].append(index)
    found: dict[FeatureKey, list[Tensor | None]] = {key: [None] * len(items) for key in keys}
    for name, places in track(by_clip.items(), f"features of {codec.spec.name}", len(by_clip)):
        wav = load_audio(clips[name].path, codec.spec.sample_rate).wav[None].to(getattr(codec, "device", "cpu"))
        tokens = codec.encode(wav)
        for key in keys:
            features = codec.extract(tokens if key.n_q else wav, key.feature, key.n_q)
            frames = features.values[0, :, : int(features.lengths[0])].float().cpu().T  # (T, D)
            parts = cut([items[place] for place in places], {name: frames}, Fraction(features.frame_rate)).vectors
            for place, part in zip(places, parts, strict=True):
                found[key][place] = None if part is None else part.clone()
    return found


TABLES = {2: Reproduction(2, ("librispeech", "items"), (), stages)}
