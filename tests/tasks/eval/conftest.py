"""What tests of the evaluation share: the data of their oracle, small plug-ins, recordings that say words in tones."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

sys.path.insert(0, str(Path(__file__).parent))
import eval_stubs as stubs

from xcodec_lm.tasks.eval import hearing, metric_table, plugin_table, registry, run_eval, run_text

TEXTS = ("one two three", "two one", "four four one", "three", "one four two", "two two three one")


@pytest.fixture
def stub_plugins(monkeypatch):
    """Metrics take the small plug-ins in place of all others."""
    by_kind = {}
    for entry in stubs.ENTRIES:
        by_kind.setdefault(entry.kind, []).append(entry.name)
    metrics = tuple(
        dataclasses.replace(metric, plugins=tuple(by_kind[metric.kind])) if metric.kind else metric
        for metric in metric_table.METRICS
    )
    monkeypatch.setattr(plugin_table, "ENTRIES", stubs.ENTRIES)
    monkeypatch.setattr(metric_table, "METRICS", metrics)
    monkeypatch.setattr(metric_table, "BY_NAME", {metric.name: metric for metric in metrics})
    hearing.plugin_of.cache_clear()
    yield registry
    hearing.plugin_of.cache_clear()


@pytest.fixture
def corpus(tmp_path):
    """Writes a pairs file: `corpus({"good": 0.0, "bad": 0.8}, speakers=12)`, system -> level of noise."""

    def write(systems, speakers=12, name="pairs.jsonl", each=2, anchors=()):
        folder = tmp_path / name.removesuffix(".jsonl")
        folder.mkdir()
        rows = []
        for number in range(speakers * each):
            text = TEXTS[number % len(TEXTS)]
            wav = stubs.say(text, 0.1 + 0.01 * (number % speakers))
            sf.write(folder / f"r{number}.wav", wav, stubs.RATE)
            about = {"id": f"r{number}", "ref_audio": f"r{number}.wav", "prompt_audio": f"r{number}.wav", "text": text,
                     "caption": f"it says {text.split()[0]}", "label": text.split()[0],
                     "speaker": f"s{number % speakers}"}  # fmt: skip
            for place, (system, noise) in enumerate(systems.items()):
                made = wav + noise * np.random.default_rng(100 * number + place).standard_normal(len(wav))
                file = f"{system}-r{number}.wav"
                sf.write(folder / file, np.clip(made, -1, 1).astype(np.float32), stubs.RATE)
                rows.append({**about, "system": system, "audio": file})
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def edit_rows():
    """Rewrites a pairs file: `edit_rows(path, lambda row: ...)`; rows for which the function gives None go."""

    def edit(path, change):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [row for row in (change(row) for row in rows) if row is not None]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    return edit


assert run_eval and run_text  # imported before the tables are replaced, so that they keep the real ones
