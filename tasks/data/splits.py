"""Which split a recording goes to where its corpus does not say: by speaker, so that no voice is in two splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from xcodec_lm.configs.errors import UsageError


def check_shares(dev: float, test: float) -> None:
    """Refuses shares of dev and test that leave nothing for train.

    Raises:
        UsageError: they are no shares.
    """
    if min(dev, test) < 0 or not dev + test < 1:
        raise UsageError(f"dev {dev} and test {test} must be shares of 0 or more that leave something for train")


def split_of(key: str, dev: float, test: float) -> str:
    """The split of a recording, or of all that share a key; it depends on nothing but the key."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "dev" if place < test + dev else "train"


def assign_splits(
    recordings: Sequence[tuple[str, str | None, str | None]], dev: float, test: float
) -> tuple[list[str | None], list[str]]:
    """Splits of recordings, by speaker where there are several.

    A split that the corpus states is kept, and a recording without one follows others of its speaker. The rest go by a
    hash of the speaker, or of the id where the speaker is not known or all are of one: a later recording or speaker
    moves no other.

    Args:
        recordings: id, speaker or None, and the corpus's own split or None.
        dev: share for the dev split, 0..1.
        test: share for the test split. With both 0, what has no split stays without.

    Returns:
        A split for each recording, and what the user should know of them.
    """
    stated: dict[str, list[str]] = {}
    for _, speaker, split in recordings:
        if speaker is not None and split is not None and split not in stated.setdefault(speaker, []):
            stated[speaker].append(split)
    speakers = {speaker for _, speaker, _ in recordings if speaker is not None}
    several = len(speakers) > 1
    wanted = bool(dev or test)
    splits: list[str | None] = []
    shared_out = False
    for name, speaker, split in recordings:
        if split is None and wanted:
            key = speaker if several and speaker is not None else name
            if key == speaker and stated.get(key):
                split = stated[key][0]
            else:
                split = split_of(key, dev, test)
                shared_out = True
        splits.append(split)
    notes = _notes(recordings, speakers, splits, stated, dev, test) if shared_out or stated else []
    return splits, notes


def _notes(
    recordings: Sequence[tuple[str, str | None, str | None]],
    speakers: set[str],
    splits: list[str | None],
    stated: dict[str, list[str]],
    dev: float,
    test: float,
) -> list[str]:
    notes = []
    torn = {speaker: names for speaker, names in stated.items() if len(names) > 1}
    if torn:
        speaker, names = next(iter(torn.items()))
        notes.append(f"the corpus has {len(torn)} speakers in two splits, such as {speaker} ({', '.join(names)})")
    if stated:
        return notes
    if len(speakers) == 1:
        return [
            f"all is of one speaker, {next(iter(speakers))}: splits go by recording, so dev and test have his voice"
        ]
    unknown = sum(speaker is None for _, speaker, _ in recordings)
    if speakers and unknown:
        notes.append(f"{unknown} recordings have no speaker; their splits go by their ids")
    for split, share in (("dev", dev), ("test", test)):
        if speakers and share and split not in splits:
            notes.append(
                f"{split} is empty: no speaker of {len(speakers)} fell into a share of {share:g}; --{split} raises it"
            )
    return notes
