"""ABX items from forced alignments: Praat TextGrids, as the Montreal Forced Aligner and others write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Literal

from xcodec_lm.tasks.eval.abx_items import Item, ItemError

Span = Literal["triphone", "phone"]
TOKENS = re.compile(r'"((?:[^"]|"")*)"|([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)|<(exists|absent)>')
SILENCES = {"", "sil", "sp", "spn", "pau", "<eps>", "<sil>", "<p:>"}
STRESS = re.compile(r"(?<=[A-Z])[012]$")
HINT = "a TextGrid in text form with an interval tier called phones, one file a recording, in folders named by speaker"
Interval = tuple[Decimal, Decimal, str]


def items_of_textgrids(folder: str | Path, span: Span = "triphone") -> list[Item]:
    """One item for each phone between two phones, of all TextGrids below a folder.

    The recording is the file's name without ending, the speaker the name of the folder that it lies in. Stress is taken
    off ARPAbet vowels. Phones next to silence or to speech that the aligner did not know make no items.

    Args:
        folder: where the files are.
        span: `triphone` takes the phone with both neighbours, as Libri-light's lists do; `phone` the phone alone.

    Raises:
        ItemError: there is no TextGrid, one cannot be read, or none has a phone between two others.
    """
    paths = sorted(Path(folder).rglob("*.TextGrid"))
    if not paths:
        raise ItemError(f"{folder}: there is no .TextGrid below this folder", HINT)
    items = []
    for path in paths:
        phones = phones_of_textgrid(path)
        for (start, end, before), (onset, offset, label), (begin, stop, after) in zip(
            phones, phones[1:], phones[2:], strict=False
        ):
            if {before.lower(), label.lower(), after.lower()} & SILENCES or end != onset or offset != begin:
                continue
            ends = (start, stop) if span == "triphone" else (onset, offset)
            items.append(Item(path.stem, label, path.parent.name, before, after, *ends))
    if not items:
        raise ItemError(f"{folder}: no TextGrid has a phone between two others", HINT)
    return items


def phones_of_textgrid(path: Path) -> list[Interval]:
    """Begin and end in seconds, exactly as written, and label of each interval of the tier `phones`.

    Raises:
        ItemError: the file is no TextGrid in text form, or has no such tier.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ItemError(f"cannot read {path}: {error}", HINT) from None
    # Without names and indices, the long form is the short one.
    tokens = (match.groups() for match in TOKENS.finditer(re.sub(r"\[\s*\d*\s*\]", "", text)))
    try:
        tiers = _tiers(tokens)
    except (StopIteration, ValueError, RuntimeError) as error:
        raise ItemError(f"{path} is no TextGrid in text form: {str(error) or 'it ends early'}", HINT) from None
    for name, intervals in tiers.items():
        if name.lower() in ("phones", "phone", "phonemes") or name.lower().endswith("- phones"):
            return intervals
    raise ItemError(f"{path} has the tiers {', '.join(tiers) or 'none'}, and none called phones", HINT)


def _tiers(tokens: Iterator[tuple[str | None, ...]]) -> dict[str, list[Interval]]:
    def string() -> str:
        value = next(tokens)[0]
        if value is None:
            raise ValueError("a number where a text was expected")
        return value.replace('""', '"').strip()

    def number() -> Decimal:
        value = next(tokens)[1]
        if value is None:
            raise ValueError("a text where a number was expected")
        return Decimal(value)

    if string() != "ooTextFile" or string() != "TextGrid":
        raise ValueError("it does not begin as one")
    number(), number(), next(tokens)
    tiers: dict[str, list[Interval]] = {}
    for _ in range(int(number())):
        kind, name = string(), string()
        number(), number()
        count = int(number())
        if kind == "IntervalTier":
            tiers[name] = [(number(), number(), STRESS.sub("", string())) for _ in range(count)]
        else:
            for _ in range(count):
                number(), string()
    return tiers
