"""Items of ABX tests: which stretch of which recording is which phone or word, said by whom.

Four sources: Libri-light's `.item` files, JSON lines, TextGrids (`textgrid`), and recordings that hold one word each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Literal

from torch import Tensor

from xcodec_lm.codec.clips import Clip
from xcodec_lm.configs.errors import XcodecLMError

COLUMNS = ("file", "onset", "offset", "phone", "prev", "next", "speaker")
FORMAT_HINT = "columns of an .item file: #file onset offset #phone prev-phone next-phone speaker; times in seconds"
JSON_HINT = "keys of a row: file (id of a recording), phone or word, speaker, and optionally onset, offset, prev, next"


SliceRule = Literal["inclusive", "libri-light"]
"""Which frames an item has: all whose moments lie in it, or all of these but the last, as in Libri-light's code."""


class ItemError(XcodecLMError):
    """A list of ABX items that cannot be read."""


@dataclass(frozen=True)
class Item:
    """One stretch of a recording.

    Attributes:
        clip: id of the recording, or its file's name without ending.
        label: the phone or word.
        speaker: who says it.
        before: the phone before, "" when context does not matter.
        after: the phone after.
        onset_s: where it begins, in seconds, exactly as written; None with `offset_s` means the whole recording.
        offset_s: where it ends.
    """

    clip: str
    label: str
    speaker: str
    before: str = ""
    after: str = ""
    onset_s: Decimal | None = None
    offset_s: Decimal | None = None

    def frames(self, frame_rate: Fraction, total: int, slice_rule: SliceRule = "inclusive") -> tuple[int, int]:
        """First frame and the one after the last, of a recording of `total` frames.

        Frame i stands for the moment (i + 0.5) / frame_rate; an item has the frames whose moments lie in it, both ends
        included. Frames that the recording does not have are cut off, so the range may be empty.

        Args:
            frame_rate: per second.
            total: frames of the recording.
            slice_rule: `libri-light` leaves out the last of these frames, as published figures made with its code do.

        Source: facebookresearch/libri-light `eval/ABX_src`; the defect is described in fastabx's documentation,
            https://docs.cognitive-ml.fr/fastabx/advanced/slicing.html.
        """
        if self.onset_s is None or self.offset_s is None:
            return 0, total
        half = Fraction(1, 2)
        first = math.ceil(Fraction(self.onset_s) * frame_rate - half)
        stop = math.floor(Fraction(self.offset_s) * frame_rate - half) + (slice_rule == "inclusive")
        return max(0, first), min(total, stop)


@dataclass(frozen=True)
class Cut:
    """Features of items.

    Attributes:
        vectors: one (T, D) an item; None where it has no frame.
        clipped: items that reach beyond their recording's features.
        empty: items without a frame.
    """

    vectors: list[Tensor | None]
    clipped: int
    empty: int


def cut(
    items: Sequence[Item], features: Mapping[str, Tensor], frame_rate: Fraction, slice_rule: SliceRule = "inclusive"
) -> Cut:
    """The frames of every item.

    Args:
        items: each of a recording in `features`.
        features: (T, D) of each recording.
        frame_rate: of the features, per second.
        slice_rule: see `Item.frames`.

    Raises:
        ItemError: an item's recording has no features.
    """
    vectors: list[Tensor | None] = []
    clipped = empty = 0
    for item in items:
        whole = features.get(item.clip)
        if whole is None:
            raise ItemError(f"ABX item {item.label!r}: there is no recording called {item.clip!r}", JSON_HINT)
        start, stop = item.frames(frame_rate, len(whole), slice_rule)
        if item.offset_s is not None:
            clipped += item.frames(frame_rate, len(whole) + 1, slice_rule)[1] > len(whole)
        vectors.append(whole[start:stop] if stop > start else None)
        empty += stop <= start
    return Cut(vectors, clipped, empty)


def items_of_words(clips: Iterable[Clip]) -> list[Item]:
    """Recordings of a single word, such as spoken digits, as items without context."""
    return [
        Item(clip.id, clip.row["text"], str(clip.row["speaker"]))
        for clip in clips
        if clip.row.get("speaker") and isinstance(clip.row.get("text"), str) and len(clip.row["text"].split()) == 1
    ]


def read_items(path: str | Path) -> list[Item]:
    """Items of a Libri-light `.item` file, of JSON lines when the file ends in .jsonl, or of a folder of TextGrids.

    Raises:
        ItemError: the file cannot be read or has no items, or a line is none; names the first such line.
    """
    path = Path(path)
    if path.is_dir():
        from xcodec_lm.tasks.eval.textgrid import items_of_textgrids

        return items_of_textgrids(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ItemError(f"{path}: file not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ItemError(f"cannot read {path}: {error}", FORMAT_HINT) from None
    parse, hint = (_from_json, JSON_HINT) if path.suffix == ".jsonl" else (_from_columns, FORMAT_HINT)
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and path.suffix != ".jsonl" and line.startswith("#")):
            continue
        try:
            items.append(parse(line))
        except ValueError as error:
            raise ItemError(f"{path} line {number}: {error}", hint) from None
    if not items:
        raise ItemError(f"{path} has no items", hint)
    return items


def _from_columns(line: str) -> Item:
    words = line.split()
    if len(words) != len(COLUMNS):
        raise ValueError(f"{len(words)} columns instead of {len(COLUMNS)}")
    file, onset, offset, phone, before, after, speaker = words
    return Item(file, phone, speaker, before, after, *_times(onset, offset))


def _from_json(line: str) -> Item:
    try:
        row = json.loads(line, parse_float=str, parse_int=str)  # times stay as they are written
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    label = row.get("phone", row.get("word"))
    for key, value in (("file", row.get("file")), ("phone or word", label), ("speaker", row.get("speaker"))):
        if not isinstance(value, str) or not value:
            raise ValueError(f"no `{key}`")
    onset, offset = row.get("onset"), row.get("offset")
    if (onset is None) != (offset is None):
        raise ValueError("an `onset` without an `offset`, or the reverse")
    times = (None, None) if onset is None or offset is None else _times(onset, offset)
    return Item(row["file"], str(label), row["speaker"], str(row.get("prev", "")), str(row.get("next", "")), *times)


def _times(onset: str, offset: str) -> tuple[Decimal, Decimal]:
    try:
        start, stop = Decimal(str(onset)), Decimal(str(offset))
    except InvalidOperation:
        raise ValueError(f"onset {onset!r} or offset {offset!r} is not a number of seconds") from None
    if not (start.is_finite() and stop.is_finite() and 0 <= start < stop):
        raise ValueError(f"onset {onset} and offset {offset} do not lie in the order 0 <= onset < offset")
    return start, stop
