"""Stages that are made once: each in a folder of its own, found again when all that decides it is equal.

    ROOT/NAME-KEY/stage.json    inputs, whether it is complete, facts, seconds that it took

The key is a hash of the inputs, which hold whatever decides the result: fingerprints, hashes of manifests,
configurations, seeds, the keys of stages before. A stage that was stopped is gone on with by whatever makes it; one
that is complete is not made again, which is said.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.lm.shard_files import write_atomic

STAGES_VERSION = 1
"""Raised whenever the same inputs begin to give other results."""
KEY_DIGITS = 10


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        folder: what it made lies here.
        key: of its inputs.
        facts: what its maker returned, as plain values.
        wall_s: seconds that the call took which finished it.
        cpu_s: seconds of processor time of that call.
        reused: whether it was there already.
    """

    folder: Path
    key: str
    facts: dict[str, Any]
    wall_s: float
    cpu_s: float
    reused: bool


class Stages:
    """The stages under one folder.

    Args:
        root: their folder; several commands may share it.
    """

    def __init__(self, root: Path):
        self.root = root

    def run(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any] | None]) -> Stage:
        """Makes a stage, goes on with it, or finds it.

        Args:
            name: for people: `tokens/xcodec-tiny`; the folder is called so, with the key behind it.
            inputs: plain values that decide the result.
            make: makes it in a folder that exists and may hold what an interrupted call left; returns facts.

        Raises:
            XcodecLMError: the folder cannot be written, or `make` raises it.
        """
        key = key_of(inputs)
        folder = self.root / f"{name}-{key}"
        path = folder / "stage.json"
        found = _read(path)
        if found.get("complete"):
            say(f"{name}: already there, made with the same settings ({folder})")
            return Stage(folder, key, found["facts"], found["wall_s"], found["cpu_s"], True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, {"inputs": dict(inputs), "complete": False})
        except OSError as error:
            raise XcodecLMError(f"cannot write {folder}: {error.strerror}", "choose another folder with -o") from None
        if found:
            say(f"{name}: going on with what an earlier call left ({folder})")
        wall, cpu = time.monotonic(), time.process_time()
        facts = dict(make(folder) or {})
        taken = {"wall_s": round(time.monotonic() - wall, 2), "cpu_s": round(time.process_time() - cpu, 2)}
        _write(path, {"inputs": dict(inputs), "complete": True, "facts": facts, **taken})
        return Stage(folder, key, facts, taken["wall_s"], taken["cpu_s"], False)


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of inputs: equal for equal plain values, whatever the order of their names."""
    text = json.dumps({"version": STAGES_VERSION, **inputs}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def corpus_key(manifests: Sequence[Path]) -> dict[str, Any]:
    """What identifies a corpus: the rows of its manifests, and the sizes of the audio files; not where it lies.

    Raises:
        XcodecLMError: a manifest cannot be read.
    """
    digest = hashlib.sha256()
    clips: list[Clip] = read_manifests(list(manifests))
    for clip in clips:
        row = {name: value for name, value in clip.row.items() if name != "audio"}
        size = clip.path.stat().st_size if clip.path.is_file() else -1
        digest.update(json.dumps([row, clip.path.name, size], sort_keys=True, ensure_ascii=False).encode())
    return {"rows": len(clips), "sha256": digest.hexdigest()}


def _read(path: Path) -> dict[str, Any]:
    """What a stage says of itself; nothing where there is none, or a kill cut it off."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, data: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=False, default=str) + "\n")
