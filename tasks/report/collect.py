"""Run folders and results of evaluations, whatever they are of, as the sections of one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcodec_lm.codec.clips import SPLITS, read_manifests
from xcodec_lm.codec.runtime.run import read_metrics
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.report.document import Block, Commands, Download, KeyValues, Note, Report, Section
from xcodec_lm.tasks.report.exchange import of_comparison, of_reproduction, of_rows
from xcodec_lm.tasks.report.reconstructions import reconstruct_clips
from xcodec_lm.tasks.report.runs import (
    codebook_use,
    config_difference,
    last_values,
    read_config,
    run_curves,
    run_provenance,
)

TAKES = "run folders of train commands, and folders or JSON files of evaluations"
RESULT = "result.json"


@dataclass(frozen=True)
class Listening:
    """Recordings through both twins.

    Attributes:
        manifest: of the recordings.
        split: of those that are heard; `all` takes every one.
        clips: how many, spread over the manifest.
    """

    manifest: Path
    split: str = "test"
    clips: int = 2


def collect(
    sources: Sequence[Path], title: str = "", twins: tuple[Path, Path] | None = None, listen: Listening | None = None
) -> Report:
    """One report of runs and results.

    Args:
        sources: run folders, folders of evaluations, JSON files.
        title: of the page.
        twins: runs of X-Codec and its twin.
        listen: recordings to hear through them.

    Raises:
        XcodecLMError: a source is not there, or is none of these; a result that cannot be read.
    """
    sections: list[Section] = []
    provenance: list[Block] = []
    if twins is not None:
        sections.append(_twins(twins, listen))
    runs = [run for source in sources for run in run_folders(source)]
    named = dict(zip(_names(runs), runs, strict=True))
    for source in sources:
        for path in [] if run_folders(source) else result_files(source):
            found, made = read_result(path)
            sections += found
            provenance += made
    for name, run in named.items():
        sections.append(Section(f"Training: {name}", _run(name, run)))
        provenance += run_provenance(run, name)
    for name, run in zip(("X-Codec", "twin"), twins or (), strict=False):
        if run not in runs:
            provenance += run_provenance(run, name)
    if not title:
        title = "Runs and results" if len(sections) != 1 else sections[0].title
    listed = [*sources, *(twin for twin in twins or () if twin not in sources)]
    subtitle = f"From {', '.join(source.resolve().name for source in listed)}."
    return Report(title, sections, subtitle, provenance)


# ---------------------------------------------------------------------- runs


def run_folders(source: Path) -> list[Path]:
    """The run folders that a path is or holds: itself, or the stages of a speech model; empty for what is no run."""
    found = [source, *(source / stage for stage in ("ar", "nar"))]
    return [folder for folder in found if (folder / "config.yaml").is_file()]


def _names(runs: Sequence[Path]) -> list[str]:
    """Short names that tell the runs apart."""
    for depth in range(1, 8):
        names = ["/".join(run.resolve().parts[-depth:]) for run in runs]
        stages = depth == 1 and any(name in ("ar", "nar") for name in names)
        if len(set(names)) == len(names) and not stages:
            return names
    return [str(run) for run in runs]


def _run(name: str, run: Path) -> list[Block]:
    rows = {name: read_metrics(run)}
    if not rows[name]:
        return [Note(f"{name} has no metrics.jsonl: nothing was logged yet.")]
    return [
        *run_curves(rows),
        *codebook_use(rows, f"Codebook use of {name}"),
        last_values(rows, f"{name}: last values"),
    ]


def _twins(twins: tuple[Path, Path], listen: Listening | None) -> Section:
    runs: dict[str, Path] = dict(zip(("X-Codec", "twin"), twins, strict=True))
    for run in twins:
        read_config(run)
    blocks: list[Block] = [*config_difference(runs, twins=True)]
    blocks += [*run_curves(runs), *codebook_use(runs, "Codebook use at the last validation")]
    if listen is not None:
        from xcodec_lm.codec.load import load_codec

        if listen.split not in (*SPLITS, "all"):
            raise XcodecLMError(f"--split is {listen.split!r}", f"give one of {', '.join((*SPLITS, 'all'))}")
        clips = [clip for clip in read_manifests([listen.manifest]) if listen.split in ("all", clip.split)]
        if not clips:
            raise XcodecLMError(f"{listen.manifest} has no row of split {listen.split}", "choose another --split")
        chosen = clips[:: max(1, len(clips) // listen.clips)][: listen.clips] if listen.clips > 0 else []
        codecs = {name: load_codec(run) for name, run in reversed(runs.items())}
        blocks += reconstruct_clips(codecs, chosen)
    return Section("X-Codec and its twin", blocks)


# ---------------------------------------------------------------------- results


def result_files(source: Path) -> list[Path]:
    """The JSON files with results that a path is or holds.

    Raises:
        XcodecLMError: the path is not there, or holds none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise XcodecLMError(f"{source} does not exist", f"report takes {TAKES}")
    if (source / RESULT).is_file():
        return [source / RESULT]
    found = [path for path in sorted(source.glob("*.json")) if _kind(_read_json(path, strict=False))]
    found += sorted(source.glob(f"*/{RESULT}"))
    if not found:
        raise XcodecLMError(f"{source} holds neither a run nor a result", f"report takes {TAKES}")
    return found


def read_result(path: Path) -> tuple[list[Section], list[Block]]:
    """The sections of a result, and how it was made.

    Raises:
        XcodecLMError: it cannot be read, or is of no kind that is known.
    """
    data = _read_json(path)
    kind = _kind(data)
    if not kind:
        keys = ", ".join(map(str, list(data)[:8])) if isinstance(data, dict) else type(data).__name__
        raise XcodecLMError(f"{path} is no result that report knows (it holds: {keys})", f"report takes {TAKES}")
    try:
        sections = KINDS[kind][1](data, path.parent)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise XcodecLMError(
            f"{path}: a result of {kind} without what belongs to it ({type(error).__name__}: {error})",
            "make it again with this version",
        ) from None
    name = path.parent.resolve().name if path.name == RESULT else path.stem
    sections = [Section(f"{name}: {one.title}", one.blocks, one.intro) for one in sections]
    download = Download(path.name, data, f"{name}: everything as JSON ({path.name})")
    return sections, [*how_made(data, name), download]


def how_made(data: Mapping[str, Any], name: str) -> list[Block]:
    """How a result was made, as far as `result.json` says so."""
    environment = data.get("environment") or {}
    facts: dict[str, Any] = {f"{one['path']} (sha256)": one["sha256"] for one in data.get("manifests") or []}
    facts |= {key: data[key] for key in ("seed", "seeds", "seconds_taken", "fingerprint") if key in data}
    facts |= {key: value for key, value in environment.items() if key != "versions"}
    facts |= environment.get("versions") or {}
    for group in ("judges", "evaluators", "settings"):
        if isinstance(data.get(group), dict):
            facts |= {f"{group}: {key}": _short(value) for key, value in data[group].items()}
    command = data.get("command")
    blocks: list[Block] = [Commands([command], f"{name}: command")] if command else []
    return [*blocks, KeyValues(facts, f"{name}: conditions")]


def _short(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _tts(data: dict[str, Any], folder: Path) -> list[Section]:
    from xcodec_lm.tasks.tts.page import tts_sections

    return tts_sections(data, next(iter(_manifests(data, folder)), None), folder)


def _sound(data: dict[str, Any], folder: Path) -> list[Section]:
    from xcodec_lm.tasks.sound.page import sound_sections

    return sound_sections(data, _manifests(data, folder), folder)


def _music(data: dict[str, Any], folder: Path) -> list[Section]:
    from xcodec_lm.tasks.music.page import music_sections

    return music_sections(data, folder)


def _codec(data: dict[str, Any], folder: Path) -> list[Section]:
    from xcodec_lm.tasks.eval.codec_page import codec_sections

    return codec_sections(data)


def _manifests(data: Mapping[str, Any], folder: Path) -> list[Path]:
    """The manifests of a result that are still where it says."""
    found = [folder / one["path"] for one in data.get("manifests") or []]
    return found if all(path.is_file() for path in found) else []


KINDS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any], Path], list[Section]]]] = {
    "tts eval": (("systems", "spoken", "trusted", "items"), _tts),
    "sound eval": (("systems", "nearest", "items", "runs"), _sound),
    "music eval": (("bits", "code_entropy", "layout"), _music),
    "codec eval": (("codecs", "domains", "codes_used"), _codec),
    "compare": (("pairs", "metrics", "rows", "codecs"), of_comparison),
    "reproduce": (("table", "metrics", "rows", "paper"), of_reproduction),
    "rows": (("rows",), of_rows),
}
"""Kind of result -> the keys by which it is known, and what makes sections of it and the folder that it lies in."""


def _kind(data: Any) -> str:
    if not isinstance(data, dict):
        return ""
    return next((kind for kind, (keys, _) in KINDS.items() if all(key in data for key in keys)), "")


def _read_json(path: Path, strict: bool = True) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if not strict:
            return None
        raise XcodecLMError(f"cannot read {path}: {error}", "give a JSON file that an evaluation wrote") from None
