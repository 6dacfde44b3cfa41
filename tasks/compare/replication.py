"""What one replication gave: figures of every item by system, feature vectors of sets, and facts of the training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Task = Literal["tts", "music", "sound"]

MODEL, FIRST_BOOK, TRUTH, RESYNTHESIS = "model", "first codebook", "recordings", "resynthesis"
SHUFFLED, UNTRAINED, TRAINING, NOISE = "shuffled", "untrained", "training recordings", "white noise"
"""Systems. `model` is the language model on the codec's tokens; `first codebook` its AR alone (tts). The others are
anchors: the recordings; the codec's resynthesis of them; `shuffled`, the model given other texts (tts) or captions of
other classes (sound), or codes dealt out at random (music); the same model untrained; training recordings; noise."""

UNIT_KINDS: dict[Task, str] = {"tts": "speaker", "music": "piece", "sound": "recording"}


@dataclass(frozen=True)
class Replication:
    """One codec, one seed.

    Attributes:
        task: `tts`, `music` or `sound`.
        codec: its name in tables.
        source: what `load_codec` was given.
        seed: of the training, its data order and what is drawn in decoding.
        size: name of the `compare` preset, or path of the file.
        folder: of the score stage, with items.jsonl, result.json and the audio of all systems.
        run: run folder of the language model.
        items: rows with `system`, `id`, `unit` and figures. tts: `errors` and `words` of what a recogniser heard
            (their sums give the WER), `similarity` to the prompt's voice. music: `bits_per_s` (systems `model`,
            `untrained`, `unigram`, `bigram`). sound: `class` (0 or 1), `clap`.
        features: system -> (R, D) vectors of what it made, row for row of the same recordings; a judge's in sound,
            half seconds of texture in music, none in tts. `training recordings` have rows of their own.
        feature_units: unit of each row.
        doubts: metric -> why its differences give no verdict.
        facts: plain values: steps, rows_per_step, row_s, audio_s seen, parameters, codes_per_s, bits_per_s, code_rate,
            sample rates, seconds of each stage (`wall_s`, `cpu_s`) and what was reused.
        result: all that the task's evaluation returned.
    """

    task: Task
    codec: str
    source: str
    seed: int
    size: str
    folder: Path
    run: Path
    items: list[dict[str, Any]]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    feature_units: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def of(self, system: str) -> list[dict[str, Any]]:
        """The items of a system."""
        return [item for item in self.items if item["system"] == system]


@dataclass(frozen=True)
class Scored:
    """What a task's scoring gives: the part of a replication that is kept on disk.

    Attributes:
        items: see `Replication`, as what follows.
        result: plain values.
        doubts: metric -> why.
        features: system -> (R, D).
        feature_units: (R,).
    """

    items: list[dict[str, Any]]
    result: dict[str, Any]
    doubts: dict[str, str] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    feature_units: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Writes items.jsonl, result.json and features.npz."""
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in self.items)
        (folder / "items.jsonl").write_text(lines, encoding="utf-8")
        kept = {"result": self.result, "doubts": self.doubts, "feature_units": self.feature_units,
                "feature_systems": list(self.features)}  # fmt: skip
        (folder / "result.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        arrays = {f"set{number}": rows.astype(np.float32) for number, rows in enumerate(self.features.values())}
        np.savez_compressed(folder / "features.npz", **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(folder: Path) -> Scored:
        """Reads what `save` wrote."""
        items = [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]
        kept = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with np.load(folder / "features.npz") as arrays:  # pickles are refused by default
            features = {name: arrays[f"set{number}"] for number, name in enumerate(kept["feature_systems"])}
        return Scored(items, kept["result"], kept["doubts"], features, kept["feature_units"])
