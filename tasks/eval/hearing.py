"""What plug-ins hear of recordings: computed once a recording and plug-in, kept in files, shared by processes.

A value is stored under the sha256 of the recording's bytes and the plug-in's name and fingerprint, so neither a changed
recording nor a changed model meets an old value. Values are numpy files, written whole or not at all. Processes share
the folder and nothing else, and whoever needs a value reads it from there; each computes with one thread. So one
process and many give the same result, and memory does not grow with the number of recordings.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xcodec_lm.codec.runtime.progress import track
from xcodec_lm.configs.errors import AudioError, XcodecLMError
from xcodec_lm.tasks.eval.registry import find

Heard = Literal["transcript", "voice", "mos", "clip", "frames", "logits", "caption", "level"]
"""What is heard of one recording; `caption` is a vector in the space of captions, `level` its RMS."""
PAIR_RATE = 16_000
"""Rate at which a recording and its reference are compared, in Hz."""
LAG_CLIPS, LAG_S = 8, 0.025
VERSION = 1
"""Of the values that are computed here; a change makes old ones unreadable."""
JOBS_AT_ONCE = 16


@dataclass(frozen=True)
class Source:
    """Which plug-in, and where its weights are.

    Attributes:
        name: in the registry.
        path: of its weights; "" for none.
        device: where it computes.
    """

    name: str
    path: str = ""
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """What is to be heard of one recording, or of a recording and its reference.

    Attributes:
        audio: the recording.
        heard: what, by which plug-in; `level` needs none.
        reference: to compare it with.
        measures: of the pair.
        lag: samples at `PAIR_RATE` by which the recording is late.
        seconds: only so much of the beginning is heard; None hears all.
    """

    audio: Path
    heard: tuple[tuple[Heard, Source | None], ...] = ()
    reference: Path | None = None
    measures: tuple[str, ...] = ()
    lag: int = 0
    seconds: float | None = None


@dataclass
class Values:
    """What was heard of a job.

    Attributes:
        files: key -> numpy file; keys are those of `key_of`, or names of measures.
        error: why the recording could not be read; "" if it could.
        errors: key -> why a value could not be had.
    """

    files: dict[str, Path] = field(default_factory=dict)
    error: str = ""
    errors: dict[str, str] = field(default_factory=dict)

    def get(self, key: str) -> np.ndarray | None:
        """A value, read from its file; None where there is none."""
        return None if key not in self.files else np.load(self.files[key], allow_pickle=False)


def key_of(heard: Heard, source: Source | None = None) -> str:
    """The key of a value."""
    return heard if source is None else f"{heard}[{source.name}]"


def hear(jobs: Sequence[Job], cache: Path, workers: int = 1) -> list[Values]:
    """Computes what is not in the cache yet.

    Args:
        jobs: in any order; the same recording may come several times.
        cache: folder of values; made if needed.
        workers: processes; one computes in this process.

    Returns:
        What each job gave, in the order of the jobs. A recording that cannot be read has an error instead.

    Raises:
        XcodecLMError: a plug-in cannot be loaded, or the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XcodecLMError(f"cannot write {cache}: {error.strerror}", "choose another folder: --cache") from None
    if workers <= 1 or len(jobs) < 2:
        with _threads(1):
            return [_do(job, cache) for job in track(jobs, "hearing", len(jobs))]
    blocks = [jobs[start : start + JOBS_AT_ONCE] for start in range(0, len(jobs), JOBS_AT_ONCE)]
    # Not forked: torch's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(blocks)), context, _one_thread) as pool:
        done = pool.map(_do_block, blocks, [cache] * len(blocks))
        return [values for block in track(done, "hearing", len(blocks)) for values in block]


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _do_block(jobs: Sequence[Job], cache: Path) -> list[Values]:
    return [_do(job, cache) for job in jobs]


def _do(job: Job, cache: Path) -> Values:
    found = Values()
    try:
        digest = hash_file(job.audio)
        if job.reference is not None:
            digest = hashlib.sha256((digest + hash_file(job.reference)).encode()).hexdigest()
        sounds = _Sounds(job)
        for heard, source in job.heard:
            _keep(found, key_of(heard, source), cache / _folder(heard, source, job) / digest[:2] / f"{digest}.npy",
                  lambda heard=heard, source=source: _hear_one(sounds, heard, source))  # fmt: skip
        for measure in job.measures:
            place = f"{_plain(measure)}-lag{job.lag}-v{VERSION}"
            _keep(found, measure, cache / place / digest[:2] / f"{digest}.npy",
                  lambda measure=measure: np.float64(_measure(sounds, measure)))  # fmt: skip
    except AudioError as error:
        found.error = error.message
    except OSError as error:
        found.error = f"{job.audio} cannot be read: {error.strerror or error}"
    return found


def _keep(found: Values, key: str, path: Path, compute: Any) -> None:
    """A value from its file, computed before if there is none that can be read."""
    if not _is_whole(path):
        try:
            value = np.asarray(compute())
        except AudioError:
            raise
        except (XcodecLMError, RuntimeError, ValueError) as error:
            found.errors[key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                np.save(file, value, allow_pickle=False)
            temporary.replace(path)
        except OSError as error:  # no fault of the recording
            raise XcodecLMError(
                f"cannot write {path}: {error.strerror}", "make room, or give another --cache"
            ) from None
    found.files[key] = path


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        np.load(path, mmap_mode=None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return True


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes.

    Raises:
        AudioError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise AudioError(f"{path}: file not found") from None


def _folder(heard: Heard, source: Source | None, job: Job) -> str:
    part = "" if job.seconds is None else f"-first{job.seconds:g}s"
    if source is None:
        return f"{heard}{part}-v{VERSION}"
    plugin = plugin_of(source)
    return f"{heard}-{_plain(source.name)}-{plugin.fingerprint[:16] or 'none'}{part}-v{VERSION}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")


# ------------------------------------------------------------------ plug-ins and sounds


@lru_cache(maxsize=32)
def plugin_of(source: Source) -> Any:
    """The plug-in, loaded once a process.

    Raises:
        XcodecLMError: it cannot be loaded.
    """
    return find(source.name).load(source.path or None, source.device)


class _Sounds:
    """The recordings of a job at the rates that are asked for; read when they are needed."""

    def __init__(self, job: Job):
        self.job, self.known = job, dict[tuple[Path, int], np.ndarray]()

    def at(self, rate: int, path: Path | None = None) -> np.ndarray:
        """(N,) float32 within [-1, 1], as a file would hold it."""
        from xcodec_lm.codec.audio import load_audio

        path = self.job.audio if path is None else path
        if (path, rate) not in self.known:
            wav = load_audio(path, rate, duration_s=self.job.seconds).wav[0].numpy()
            self.known[path, rate] = np.clip(wav, -1, 1)
        return self.known[path, rate]

    def pair(self) -> tuple[Any, Any, int]:
        """The recording without its lag and as long as its reference, the reference, and their rate."""
        import torch

        from xcodec_lm.tasks.eval.signal import fit_length, shift

        assert self.job.reference is not None
        wav, target = (torch.from_numpy(self.at(PAIR_RATE, path)) for path in (self.job.audio, self.job.reference))
        return shift(fit_length(wav, len(target)), self.job.lag), target, PAIR_RATE


def _hear_one(sounds: _Sounds, heard: Heard, source: Source | None) -> np.ndarray:
    if source is None:
        wav = sounds.at(PAIR_RATE)
        return np.float64(np.sqrt(np.square(wav, dtype=np.float64).mean()))
    plugin = plugin_of(source)
    wav = sounds.at(plugin.sample_rate)
    if heard == "transcript":
        return np.array(plugin.transcribe([wav])[0])
    if heard == "voice":
        return _voice(plugin, source, wav)
    if heard == "mos":
        scores = plugin.predict([wav])[0]
        return np.array([scores[name] for name in plugin.scores], dtype=np.float64)
    if heard == "clip":
        return plugin.clip(wav)
    if heard == "frames":
        return plugin.frames(wav)
    if heard == "logits":
        return plugin.class_logits(wav)
    return plugin.embed_audio([wav])[0].numpy()


def _voice(plugin: Any, source: Source, wav: np.ndarray) -> np.ndarray:
    """A vector of unit length, of zeros for silence; judges that are trained here hear one level and bandwidth."""
    import torch

    from xcodec_lm.tasks.eval.judge_audio import is_silent
    from xcodec_lm.tasks.eval.speaker import voice_vectors

    if find(source.name).tier == "trained":
        return voice_vectors(plugin, [wav])[0]
    vector = np.asarray(plugin.embed([wav])[0], dtype=np.float64)
    return vector * (not is_silent(torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32))))


def _measure(sounds: _Sounds, name: str) -> float:
    from xcodec_lm.tasks.eval import signal
    from xcodec_lm.tasks.eval.spectral import PRESETS

    estimate, target, rate = sounds.pair()
    if name in PRESETS:
        return PRESETS[name](estimate, target, rate)
    if name == "si_sdr":
        return signal.si_sdr(estimate, target)
    return {"stoi": signal.stoi, "pesq": signal.pesq}[name](estimate, target, rate)


def common_lag(pairs: Iterable[tuple[Path, Path]]) -> int:
    """Samples at `PAIR_RATE` by which a system is late, within 25 ms: that of most of a few recordings, else 0.

    A delay belongs to a system: one found for each recording would flatter a system that has lost the phase.
    """
    from collections import Counter

    import torch

    from xcodec_lm.codec.audio import load_audio
    from xcodec_lm.tasks.eval.signal import find_lag

    lags = []
    for audio, reference in pairs:
        if len(lags) == LAG_CLIPS:
            break
        try:
            wav, target = (load_audio(path, PAIR_RATE).wav[0] for path in (audio, reference))
        except AudioError:
            continue
        if bool(torch.any(wav)) and bool(torch.any(target)):
            lags.append(find_lag(wav, target, round(LAG_S * PAIR_RATE)))
    if not lags:
        return 0
    lag, votes = Counter(lags).most_common(1)[0]
    return lag if votes * 2 > len(lags) else 0


def describe(sources: Mapping[str, Source]) -> list[dict[str, Any]]:
    """What stands in a result about the plug-ins that were used."""
    rows = []
    for source in sources.values():
        plugin, entry = plugin_of(source), find(source.name)
        rows.append({
            "name": source.name, "is": plugin.name, "kind": entry.kind, "tier": entry.tier, "what": entry.what,
            "fingerprint": plugin.fingerprint, "sample_rate": plugin.sample_rate, "licence": entry.licence,
            "ancestry": plugin.ancestry,
        })  # fmt: skip
    return rows
