"""Test lists of zero-shot speech: what is to be said, and in whose voice.

`continual`: the first seconds of an utterance are the prompt, and its whole text is known. `cross`: the prompt is
another utterance of the same speaker. No list depends on chance: the same corpus always gives the same.

Source: VALL-E section 5.1 (utterances of 4 to 10 s of LibriSpeech test-clean), https://arxiv.org/abs/2301.02111; the
X-Codec paper uses the first of the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from xcodec_lm.codec.clips import read_manifest, relative_audio, write_manifest
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.data.scan_result import Wanted
from xcodec_lm.tasks.data.sources import detect, read_items, reader

Setting = Literal["continual", "cross"]
TEST_SET = "test-clean"
"""The subset that the papers test on."""
PROMPT_S = 3.0


@dataclass(frozen=True)
class SpeechList:
    """A list of utterances to be said.

    Attributes:
        path: the manifest that was written.
        rows: its rows.
        chosen: which recordings of the source were looked at, in words.
        left_out: ids of those that are not in the list -> why.
        unreadable: recordings that cannot be read -> why.
    """

    path: Path
    rows: list[dict[str, Any]]
    chosen: str
    left_out: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def make_test_list(
    source: str | Path,
    out: str | Path,
    setting: Setting = "continual",
    min_s: float = 4.0,
    max_s: float = 10.0,
    prompt_s: float = PROMPT_S,
    subset: str = "",
) -> SpeechList:
    """Writes a test list, a manifest sorted by id.

    `continual` adds `prompt_s` to each row, the seconds of the utterance that are the prompt. `cross` adds `prompt_id`,
    `prompt_audio` (relative to the list), `prompt_text` and `prompt_duration` of another utterance in the list of
    the same speaker: that whose hash with the utterance's id is the smallest.

    Args:
        source: a manifest, or the folder of a corpus that `data scan` knows, such as LibriSpeech.
        out: the list to write.
        setting: see above.
        min_s: shortest utterance in seconds; included.
        max_s: longest utterance in seconds; included.
        prompt_s: seconds of the prompt of `continual`.
        subset: take rows of this `subset` or `split`. By default test-clean if there is such a subset, else the split
            test, else everything.

    Raises:
        UsageError: no such setting or subset, a prompt as long as the shortest utterance, no utterance that fits.
        XcodecLMError: the source cannot be read or the list cannot be written.
    """
    source, out = Path(source), Path(out)
    wanted = Wanted(min_s, max_s, text=True)
    if setting not in get_args(Setting):
        raise UsageError(f"no setting is called {setting!r}", f"there are {', '.join(get_args(Setting))}")
    if setting == "continual" and not 0 < prompt_s < min_s:
        raise UsageError(
            f"a prompt of {prompt_s:g} s leaves nothing of an utterance of {min_s:g} s", "raise --min-s, or shorten it"
        )
    if out.resolve() == source.resolve():
        raise UsageError(f"the list would overwrite {source}", "name another file with --out")
    rows, chosen, unreadable = _rows(source, out, subset)
    refused = {row["id"]: wanted.refusal(row) for row in rows}
    left_out = {name: why for name, why in refused.items() if why}
    rows = sorted((row for row in rows if not refused[row["id"]]), key=lambda row: row["id"])
    if setting == "continual":
        rows = [row | {"prompt_s": prompt_s} for row in rows]
    else:
        rows, alone = _with_prompts(rows)
        left_out |= alone
    if not rows:
        why = f": {next(iter(left_out.items()))}" if left_out else ""
        raise UsageError(f"{source} has no utterance for the list among {chosen}{why}", "look at --subset and --min-s")
    write_manifest(rows, out)
    return SpeechList(out, rows, chosen, left_out, unreadable)


def _rows(source: Path, out: Path, subset: str) -> tuple[list[dict[str, Any]], str, dict[str, str]]:
    """Rows of a manifest or corpus that `subset` chooses, `audio` relative to the list; the choice; the unreadable."""
    if source.is_file():
        clips = read_manifest(source)
        rows, chosen = _choose([clip.row | {"audio": relative_audio(clip.path, out)} for clip in clips], subset, source)
        return rows, chosen, {}
    format = detect(source)
    if format == "folder":
        raise XcodecLMError(
            f"{source} is no corpus of speech whose layout is known", "make a manifest first: xcodec-lm data scan"
        )
    # chosen before their headers are read: the rest of the corpus may be large
    listed = [item.keys | {"split": item.split, "item": item} for item in reader(format, out)(source)]
    picked, chosen = _choose(listed, subset, source)
    rows, unreadable = read_items([row["item"] for row in picked], source, out)
    return rows, chosen, unreadable


def _choose(rows: list[dict[str, Any]], subset: str, source: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of a subset or split, and what they are in words."""
    if subset:
        chosen = [row for row in rows if subset in (row.get("subset"), row.get("split"))]
        if not chosen:
            known = sorted({str(row[key]) for row in rows for key in ("subset", "split") if row.get(key)})
            raise UsageError(f"{source} has no subset {subset!r}", f"it has {', '.join(known) or 'none'}")
        return chosen, subset
    for key, value in (("subset", TEST_SET), ("split", "test")):
        chosen = [row for row in rows if row.get(key) == value]
        if chosen:
            return chosen, f"{key} {value}"
    return rows, "all recordings"


def _with_prompts(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows with another one of the same speaker as the prompt, and the ids of those that have none -> why."""
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_speaker.setdefault(str(row.get("speaker") or ""), []).append(row)
    prompted, alone = [], {}
    for row in rows:
        speaker = str(row.get("speaker") or "")
        others = [other for other in by_speaker[speaker] if other is not row]
        if not speaker or not others:
            alone[row["id"]] = f"no other utterance of speaker {speaker}" if speaker else "no speaker"
            continue
        prompt = min(others, key=lambda other: hashlib.sha256(f"{row['id']}\n{other['id']}".encode()).digest())
        named = {f"prompt_{key}": prompt[key] for key in ("id", "audio", "text", "duration")}
        prompted.append(row | named)
    return prompted, alone
