"""What a token store's recordings are conditioned on: embeddings of their captions and sounds, or their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xcodec_lm.configs.errors import AudioError, XcodecLMError
from xcodec_lm.configs.sound import SoundTrainConfig
from xcodec_lm.lm.conditioning import Conditions, Pool
from xcodec_lm.lm.shards import JoinedStore, TokenStore

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.clap import TextAudioEmbedder


@dataclass
class Found:
    """What the rows of a store give to condition on.

    Attributes:
        conditions: of every recording.
        captions: different captions.
        without_caption: ids of recordings that have none.
        without_audio: ids of recordings whose file is gone or cannot be read -> why.
        labels: of classes, in the order of their numbers.
    """

    conditions: Conditions
    captions: int = 0
    without_caption: list[str] = field(default_factory=list)
    without_audio: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """What was found and what was not, in one line."""
        text = f"{len(self.labels)} labels" if self.labels else f"{self.captions} different captions"
        for what, ids in (("caption", self.without_caption), ("audio to embed", list(self.without_audio))):
            if ids:
                text += f"; {len(ids)} recordings without {what}: {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}"
        return text


def captions_of(row: dict[str, Any]) -> list[str]:
    """The captions of a manifest row, `captions` and `caption`, without those that are empty or said twice."""
    listed = row.get("captions")
    found = [*(listed if isinstance(listed, list) else [listed]), row.get("caption")]
    return list(dict.fromkeys(text.strip() for text in found if isinstance(text, str) and text.strip()))


def label_conditions(config: SoundTrainConfig, store: TokenStore | JoinedStore) -> Found:
    """Conditions from the field `label`: the classes are those of split train, in alphabetical order.

    Raises:
        XcodecLMError: no recording of split train has a label.
    """
    rows = [row.get("label") for row in store.rows]
    labels = sorted({name for i in store.split("train") if isinstance(name := rows[i], str) and name})
    if not labels:
        raise XcodecLMError(
            f"{store.folder} has no recording of split train with a label", "tokenize a manifest with the field label"
        )
    number = {name: place for place, name in enumerate(labels)}
    pool = Pool.of(torch.arange(len(labels)), [[number[name]] if name in number else [] for name in rows])
    conditions = Conditions({"label": pool}, {"label": 1.0}, config.condition.drop, config.run.seed)
    missing = [str(store.rows[i].get("id", i)) for i, name in enumerate(rows) if name not in number]
    return Found(conditions, without_caption=missing, labels=labels)


def clap_conditions(
    config: SoundTrainConfig, store: TokenStore | JoinedStore, clap: TextAudioEmbedder, cache: Path
) -> Found:
    """Conditions from a CLAP: the vectors of a recording's captions, and that of its sound.

    A recording stored at several speeds has the vector of its file for all of them.

    Args:
        config: of the run: shares, drop, seed.
        store: the tokens; its rows have `caption` or `captions`, and `audio`.
        clap: what embeds.
        cache: folder in which the embeddings are kept.

    Raises:
        XcodecLMError: no recording has a caption, where captions are asked for.
    """
    share = config.data.text_share
    shares = {"text": share, "audio": 1 - share}
    found_texts: dict[str, int] = {}
    found_files: dict[Path, int] = {}
    texts, files, names = [], [], []
    for index, row in enumerate(store.rows):
        names.append(str(row.get("id", index)))
        texts.append([found_texts.setdefault(text, len(found_texts)) for text in captions_of(row)])
        path = audio_of(store, index, row)
        files.append([found_files.setdefault(path, len(found_files))] if share < 1 and path is not None else [])
    if share and not found_texts:
        raise XcodecLMError(
            f"{store.folder} has no captions", "tokenize a manifest whose rows have the field caption or captions"
        )
    without_audio: dict[str, str] = {}
    pools: dict[str, Pool] = {}
    if share:
        pools["text"] = Pool.of(_embed(clap, list(found_texts), cache), texts)
    if share < 1:
        values, kept, problems = _embed_files(clap, list(found_files), cache)
        pools["audio"] = Pool.of(values, [[kept[place] for place in own if place in kept] for own in files])
        for name, own in zip(names, files, strict=True):
            if not own or own[0] in problems:
                without_audio[name] = problems[own[0]] if own else "the row names no audio"
    conditions = Conditions(pools, shares, config.condition.drop, config.run.seed)
    without = [name for name, own in zip(names, texts, strict=True) if not own]
    return Found(conditions, len(found_texts), without, without_audio)


def audio_of(store: TokenStore | JoinedStore, index: int, row: dict[str, Any]) -> Path | None:
    """The file of a recording: `audio` is relative to its store."""
    audio = row.get("audio")
    if not isinstance(audio, str) or not audio:
        return None
    owner = store.locate(index)[0] if isinstance(store, JoinedStore) else store
    return owner.folder / audio


def _embed(clap: TextAudioEmbedder, items: Sequence[str] | Sequence[Path], cache: Path) -> Tensor:
    from xcodec_lm.tasks.sound.clap_cache import embed_cached

    return embed_cached(clap, items, cache).float().cpu()


def _embed_files(
    clap: TextAudioEmbedder, files: list[Path], cache: Path
) -> tuple[Tensor, dict[int, int], dict[int, str]]:
    """Vectors of the files that can be read; place of a file -> its row; place of a file -> why it has none."""
    problems = {place: "file not found" for place, path in enumerate(files) if not path.is_file()}

    def embed(places: list[int]) -> list[Tensor]:
        try:
            return [_embed(clap, [files[place] for place in places], cache)] if places else []
        except AudioError as error:  # one of them is at fault: halves find it in few calls, what is done is cached
            if len(places) == 1:
                problems[places[0]] = error.message
                return []
            half = len(places) // 2
            return embed(places[:half]) + embed(places[half:])

    rows = embed([place for place in range(len(files)) if place not in problems])
    good = [place for place in range(len(files)) if place not in problems]
    return torch.cat([torch.zeros(0, clap.dim), *rows]), {place: row for row, place in enumerate(good)}, problems
