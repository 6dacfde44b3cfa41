"""What `eval run` computes: which plug-ins are used, which metrics they and the rows allow, and what is to be heard."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.eval.hearing import Heard, Job, Source, Values, key_of
from xcodec_lm.tasks.eval.metric_table import Metric, Wanted
from xcodec_lm.tasks.eval.pairs import TRUTH, Pairs, Row
from xcodec_lm.tasks.eval.registry import find

JUDGES = {"recogniser": "tinyctc", "speaker": "tinyspeaker", "sound_class": "tinycnn", "clap": "tinyclap"}
"""Folder in a folder of judges -> the plug-in that it holds."""


@dataclass(frozen=True)
class Part:
    """A metric with what computes it.

    Attributes:
        metric: which.
        inside: name of the plug-in, or preset; "" where there is neither.
    """

    metric: Metric
    inside: str = ""

    @property
    def label(self) -> str:
        """The figure's name."""
        return f"{self.metric.name}[{self.inside}]" if self.inside else self.metric.name


def find_sources(weights: Sequence[str], judges: Path | None = None, device: str = "cpu") -> dict[str, Source]:
    """The plug-ins that the user gave weights for.

    Args:
        weights: `NAME=PATH` each.
        judges: folder with some of `JUDGES`, as `eval train-evaluators` writes.
        device: where they compute.

    Raises:
        UsageError: a name is unknown or comes twice, a path is not there, or the folder holds no judge.
    """
    found: dict[str, Source] = {}
    if judges is not None:
        for folder, name in JUDGES.items():
            if any((judges / folder / part / "config.json").is_file() for part in ("", "model")):
                found[name] = Source(name, str(judges / folder), device)
        if not found:
            raise UsageError(f"{judges} holds no judge: none of {', '.join(JUDGES)}",
                             "make some: xcodec-lm eval train-evaluators --data MANIFEST --out FOLDER")  # fmt: skip
    given: set[str] = set()
    for text in weights:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UsageError(f"--weights {text!r} is not NAME=PATH", "such as cnn14-16k=Cnn14_16k_mAP=0.438.pth")
        if find(name).name in given:
            raise UsageError(f"--weights names {name} twice")
        if not Path(path).exists():
            raise UsageError(f"--weights {name}: {path} does not exist", find(name).origin)
        given.add(name)
        found[name] = Source(name, path, device)
    return found


def choose(
    wanted: Sequence[Wanted], sources: dict[str, Source], pairs: Pairs, unpaired: bool = False, device: str = "cpu"
) -> tuple[list[Part], dict[str, str]]:
    """The parts that can be computed, and why others cannot.

    A metric uses every plug-in that weights were given for; without any, the first that needs none. Plug-ins that are
    used without having been given are added to `sources`.

    Args:
        wanted: metrics.
        sources: of `find_sources`.
        pairs: the rows.
        unpaired: a set of references was given, so sets need no `ref_audio`.
        device: of plug-ins that need no weights.

    Raises:
        UsageError: a metric that was asked for by name cannot be computed.
    """
    parts: list[Part] = []
    missing: dict[str, str] = {}
    for want in wanted:
        names, why = _usable(want, sources)
        lacking = [] if want.metric.scope == "set" and unpaired else _lacking(want.metric, pairs)
        if lacking:
            why = f"no row has {' and '.join(lacking)}"
        if why:
            if want.explicit:
                raise UsageError(f"{want.metric.name} cannot be measured: {why}", "see xcodec-lm eval list")
            missing[want.metric.name] = why
            continue
        for name in names:
            if want.metric.kind is not None and name not in sources:
                sources[name] = Source(name, "", device)
            parts.append(Part(want.metric, name))
    if not parts:
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise UsageError(f"nothing can be measured: {reasons}", "see xcodec-lm eval list")
    return list(dict.fromkeys(parts)), missing


def _usable(want: Wanted, sources: Mapping[str, Source]) -> tuple[list[str], str]:
    """Names for the brackets, or why there are none."""
    metric = want.metric
    if metric.package and importlib.util.find_spec(metric.package) is None:
        return [], f"{metric.package} is not installed: {metric.install}"
    if metric.kind is None:
        return [want.inside or (metric.presets[0] if metric.presets else "")], ""
    allowed = [want.inside] if want.inside else list(metric.plugins)
    given = [name for name in allowed if name in sources]
    if given:
        return given, ""
    free = [name for name in allowed if not find(name).weights and not find(name).missing()]
    if free:
        return free[:1], ""
    reasons = []
    for name in allowed:
        entry = find(name)
        if packages := entry.missing():
            reasons.append(f"{name} ({entry.install or 'missing ' + packages[0]})")
        else:
            reasons.append(f"{name} (--weights {name}=PATH)")
    return [], "it needs " + " or ".join(reasons)


def _lacking(metric: Metric, pairs: Pairs) -> list[str]:
    rows = [row for system in pairs.systems for row in pairs.of(system)]
    return [name for name in metric.needs if not any(row.fields.get(name) for row in rows)]


# ------------------------------------------------------------------ what is to be heard


class Material:
    """Collects what parts need of every recording, and answers with what was heard.

    Args:
        pairs: the rows.
        parts: what is computed.
        sources: plug-ins by name.
        unpaired: references that belong to no row.
        lags: system -> samples that it is late by.
    """

    def __init__(
        self, pairs: Pairs, parts: Sequence[Part], sources: Mapping[str, Source], unpaired: Sequence[Path] = (),
        lags: Mapping[str, int] | None = None,
    ):  # fmt: skip
        self.pairs, self.parts, self.sources, self.unpaired = pairs, parts, sources, list(unpaired)
        self.lags = dict(lags or {})
        self._wanted: dict[tuple[Path, float | None], dict[tuple[Heard, Source | None], None]] = {}
        self._measures: dict[tuple[Path, Path, int], dict[str, None]] = {}
        for system in pairs.systems:
            for row in pairs.of(system):
                self._collect(row)
        for path in self.unpaired:
            for part in parts:
                if part.metric.scope == "set" and "ref_audio" in part.metric.needs:
                    self._want(path, part.metric.pool, part)
        self.jobs = [Job(path, tuple(heard), seconds=seconds) for (path, seconds), heard in self._wanted.items()]
        self.jobs += [
            Job(path, reference=reference, measures=tuple(names), lag=lag)
            for (path, reference, lag), names in self._measures.items()
        ]
        self._values: dict[tuple[Path, float | None] | tuple[Path, Path, int], Values] = {}

    def fill(self, values: Sequence[Values]) -> None:
        """Takes what `hear` gave for `jobs`."""
        for job, found in zip(self.jobs, values, strict=True):
            key = (job.audio, job.seconds) if job.reference is None else (job.audio, job.reference, job.lag)
            self._values[key] = found

    def heard(self, row: Row, name: str = "audio") -> Values:
        """What was heard of a recording of a row; an error where there is none."""
        path = row.path(name)
        if path is None:
            return Values(error=row.why or f"no {name}")
        seconds = row.fields.get("prompt_s") if name == "prompt_audio" else None
        return self._values.get((path, seconds), Values(error=f"{path} was not heard"))

    def reference(self, path: Path) -> Values:
        """What was heard of a reference that belongs to no row."""
        return self._values[path, None]

    def measured(self, row: Row) -> Values:
        """What was measured between a recording and its reference."""
        reference = row.fields.get("ref_audio")
        if row.audio is None or reference is None:
            return Values(error=row.why or "no ref_audio")
        return self._values.get((row.audio, reference, self.lags.get(row.system, 0)), Values(error="not measured"))

    def key(self, part: Part, heard: Heard) -> str:
        """The key of what a part's plug-in heard."""
        return key_of(heard, self.sources[part.inside])

    def _collect(self, row: Row) -> None:
        if row.audio is not None:
            self._wanted.setdefault((row.audio, None), {})["level", None] = None
        for part in self.parts:
            for name, heard in needs_of(part):
                if (path := row.path(name)) is not None:
                    self._want(path, heard, part, row.fields.get("prompt_s") if name == "prompt_audio" else None)
            pairwise = part.metric.kind is None and row.system != TRUTH
            reference = row.fields.get("ref_audio")
            if pairwise and row.audio is not None and reference is not None:
                key = (row.audio, reference, self.lags.get(row.system, 0))
                self._measures.setdefault(key, {})[part.label] = None

    def _want(self, path: Path, heard: Heard, part: Part, seconds: float | None = None) -> None:
        self._wanted.setdefault((path, seconds), {})[heard, self.sources[part.inside]] = None


def needs_of(part: Part) -> list[tuple[str, Heard]]:
    """The recordings of a row that a part hears, and what it hears of them."""
    metric = part.metric
    if metric.kind == "transcriber":
        return [("audio", "transcript")]
    if metric.kind == "speaker":
        return [("audio", "voice"), (metric.needs[0], "voice")]
    if metric.kind == "mos":
        return [("audio", "mos")]
    if metric.kind == "clap":
        return [("audio", "caption")]
    if metric.kind == "embedder":
        heard: Heard = metric.pool if metric.scope == "set" and metric.name != "is" else "logits"
        return [("audio", heard), *((name, heard) for name in metric.needs if name == "ref_audio")]
    return []
