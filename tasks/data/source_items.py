"""What every adapter of a corpus gives: recordings as the corpus lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xcodec_lm.configs.errors import XcodecLMError

SPLIT_NAMES = {
    "train": "train", "training": "train", "tr": "train",
    "dev": "dev", "devel": "dev", "valid": "dev", "validation": "dev", "val": "dev", "cv": "dev", "dt": "dev",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test", "et": "test", "tt": "test",
}  # fmt: skip
"""What corpora call their splits, and what they are here."""


@dataclass(frozen=True)
class Item:
    """A recording as a corpus lists it.

    Attributes:
        id: unique name.
        audio: its file.
        split: train, dev or test where the corpus says; None leaves it to the shares.
        keys: more keys of the manifest row: `text`, `speaker`, `caption`, `label` and what the corpus adds.
        part: start and end in seconds where it is a part of the file (the end None: to the file's end).
        problem: why it cannot be used, if the list alone tells.
    """

    id: str
    audio: Path
    split: str | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    part: tuple[float, float | None] | None = None
    problem: str = ""


def read_lines(path: Path) -> list[str]:
    """Lines of a corpus's list.

    Raises:
        XcodecLMError: it cannot be read, or is not UTF-8.
    """
    try:
        # not splitlines(): it also breaks at characters that may stand inside a text
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise XcodecLMError(f"{path} cannot be read: {error}", "lists are UTF-8; unpack the corpus again") from None
