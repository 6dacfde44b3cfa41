"""Published corpora in the folders that their archives unpack to: LibriSpeech, LibriTTS, MUSDB18-HQ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.data.source_items import SPLIT_NAMES, Item, read_lines

MUSDB18_VALIDATION = frozenset((
    "ANiMAL - Rockshow", "Actions - One Minute Smile", "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims", "Fergessen - Nos Palpitants", "James May - On The Line",
    "Johnny Lokke - Promises & Lies", "Leaf - Summerghost", "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave", "Skelpolu - Human Mistakes", "Traffic Experiment - Sirens",
    "Triviul - Angelsaint", "Young Griffo - Pennies",
))  # fmt: skip
"""Tracks of train that the field validates on. https://github.com/sigsep/sigsep-mus-db musdb/configs/mus.yaml"""


def librispeech_items(root: Path) -> Iterator[Item]:
    """SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac, with the texts of a chapter in SPEAKER-CHAPTER.trans.txt.

    Source: https://www.openslr.org/12, README.
    """
    for lines in sorted(root.rglob("*.trans.txt")):
        chapter = lines.absolute().parent
        for line in read_lines(lines):
            name, _, text = line.strip().partition(" ")
            if name:
                keys = {"text": text, "speaker": chapter.parent.name, "subset": chapter.parents[1].name}
                yield Item(name, chapter / f"{name}.flac", _subset_split(chapter), keys)


def libritts_items(root: Path) -> Iterator[Item]:
    """SUBSET/SPEAKER/CHAPTER/NAME.wav, with its text in NAME.normalized.txt and NAME.original.txt.

    `text` is the normalised one, which reads as it is spoken.

    Source: https://www.openslr.org/60.
    """
    for normal in sorted(root.rglob("*.normalized.txt")):
        chapter, name = normal.absolute().parent, normal.name.removesuffix(".normalized.txt")
        original = chapter / f"{name}.original.txt"
        keys = {
            "text": _words(normal),
            "original_text": _words(original) if original.is_file() else None,
            "speaker": chapter.parent.name,
            "subset": chapter.parents[1].name,
        }
        yield Item(name, chapter / f"{name}.wav", _subset_split(chapter), keys)


def musdb18_items(root: Path) -> Iterator[Item]:
    """train|test/TRACK/mixture.wav, the layout of MUSDB18-HQ; the mixtures are listed, one a track.

    Raises:
        XcodecLMError: the folder holds the compressed stems (.stem.mp4), which need ffmpeg to be read.

    Source: https://zenodo.org/records/3338373.
    """
    mixtures = sorted(path for split in ("train", "test") for path in root.glob(f"{split}/*/mixture.wav"))
    if not mixtures:
        stems = next((path for split in ("train", "test") for path in root.glob(f"{split}/*.mp4")), None)
        if stems is not None:
            raise XcodecLMError(
                f"{stems}: the compressed stems of MUSDB18 cannot be read without ffmpeg",
                "give MUSDB18-HQ, or convert with `musdbconvert` of the Python package musdb: "
                "train|test/TRACK/mixture.wav is read",
            )
        raise XcodecLMError(f"{root} has no train|test/TRACK/mixture.wav", "give the folder that holds train and test")
    for path in mixtures:
        track, split = path.parent.name, path.parent.parent.name
        stems = sorted(stem.stem for stem in path.parent.glob("*.wav") if stem != path)
        kept = "dev" if split == "train" and track in MUSDB18_VALIDATION else split
        yield Item(f"{split}/{track}", path, kept, {"piece": track, "stems": stems or None})


def _subset_split(chapter: Path) -> str | None:
    """`train-clean-100` is train, `dev-other` is dev."""
    return SPLIT_NAMES.get(chapter.parents[1].name.split("-")[0])


def _words(path: Path) -> str:
    return "\n".join(read_lines(path)).strip()
