"""Table 5 on the data sets of ARCH: what `eval arch` measures, as the paper's table."""

from __future__ import annotations

from pathlib import Path

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.eval.arch import codec_source, run_arch
from xcodec_lm.tasks.eval.arch_sets import SETS, find_root, lock, read_set
from xcodec_lm.tasks.reproduce import codecs as named_codecs
from xcodec_lm.tasks.reproduce import paper
from xcodec_lm.tasks.reproduce.abx import keys_of
from xcodec_lm.tasks.reproduce.codecs import XCODEC
from xcodec_lm.tasks.reproduce.scores import Metric, empty, row, scores
from xcodec_lm.tasks.reproduce.settings import Settings
from xcodec_lm.tasks.reproduce.stages import Facts, Place, Stage, hash_names

SPLITS = "splits.json"
SPLIT_SEED = 42
"""Of the splits that the data sets do not state, as in the reference."""


def stages(place: Place, settings: Settings) -> list[Stage]:
    """prepare, score."""
    assert settings.arch_root is not None
    roots = find_roots(settings)
    inputs = {name: [str(root.absolute()), hash_names(root)] for name, root in roots.items()}
    return [
        Stage("prepare", {"data": inputs, "datasets": list(settings.datasets)},
              lambda folder, _: _prepare(place, settings, folder), files=(SPLITS,)),
        Stage("score", {"codecs": named_codecs.fingerprints(settings), "seed": settings.seed},
              lambda folder, before: _score(place, settings, before["prepare"])),
    ]  # fmt: skip


def find_roots(settings: Settings) -> dict[str, Path]:
    """The data sets that are below --arch-root, of those that are asked for.

    Raises:
        UsageError: no data set has such a name.
        XcodecLMError: none, or one that is asked for, is not there.
    """
    root = settings.arch_root
    assert root is not None
    asked = [name for name in settings.datasets if name != "all"] or list(SETS)
    if unknown := sorted(set(asked) - set(SETS)):
        raise UsageError(f"--datasets: {unknown[0]!r} is none of ARCH's", f"there are {', '.join(SETS)}")
    found = {name: place for name in asked if (place := find_root(root, name)) is not None}
    missing = [name for name in asked if name not in found]
    if not found or (missing and "all" not in settings.datasets and settings.datasets):
        where = ", ".join(f"{name} ({' or '.join(SETS[name].folders[:1])})" for name in missing)
        raise XcodecLMError(
            f"--arch-root {root} lacks {where}",
            "put each data set into a folder of that name there; any of the 12 works alone",
        )
    return found


def _prepare(place: Place, settings: Settings, folder: Path) -> Facts:
    roots = find_roots(settings)
    data = [read_set(name, root, SPLIT_SEED) for name, root in roots.items()]
    (folder / SPLITS).unlink(missing_ok=True)  # of other data, which the key told apart
    lock(data, folder / SPLITS)
    absent = [name for name in SETS if name not in roots]
    if absent:
        say(f"table 5: {len(absent)} of 12 data sets are not there: {', '.join(absent)}")
    return {"roots": {name: place.name(root) for name, root in roots.items()}, "absent": absent,
            "recordings": {one.name: len(one.rows) for one in data},
            "missing": {one.name: len(one.missing) for one in data}}  # fmt: skip


def _score(place: Place, settings: Settings, prepared: Facts) -> Facts:
    codecs = named_codecs.load_codecs(settings)
    data = [read_set(name, place.path(root), SPLIT_SEED) for name, root in prepared["roots"].items()]
    sources, kinds = [], {}
    for name, codec in codecs.items():
        keys = [key for key in keys_of(codec, "") if key.n_q in (None, codec.spec.n_q)]
        sources.append(codec_source(name, codec, keys))
        kinds |= {(name, str(key)): key.feature for key in keys}
    seeds = tuple(settings.seed + turn for turn in range(3))
    found = run_arch(sources, data, "masked", seeds, place.out / "shared" / "arch-vectors")
    columns = paper.TABLES[5].columns
    metrics = [Metric(key, f"{column.head}, {_measure(key)}", ".2f", "max") for key, column in columns.items()]
    cells: dict[tuple[str, str], Facts] = {}
    for item in found:
        figures = {name: item[name] for name in ("value", "low", "high", "units")}
        cells.setdefault((item["source"], item["feature"]), {})[item["dataset"]] = figures
    gap = {key: empty("the data set is not below --arch-root") for key in columns if key in prepared["absent"]}
    rows = []
    for (name, feature), own in cells.items():
        kind, what = named_codecs.paper_name(codecs[name]), kinds[name, feature]
        if what == "ssl":
            rows.append(row(f"teacher of {name}", own | gap, "", "Hubert-general-audio", reference=True))
        else:
            of_paper = kind if what == ("sem_decoder" if kind == XCODEC else "post_vq") else ""
            rows.append(row(name, own | gap, feature, of_paper))
    differences = [
        {"metric": item["dataset"], "a": f"{sources[0].name}, {item['feature']}",
         "b": f"{item['source']}, {item['feature']}", "doubt": "", **item["difference"]}
        for item in found if "difference" in item
    ]  # fmt: skip
    lost = [f"{name}: {count} recordings are missing" for name, count in prepared["missing"].items() if count]
    notes = [f"{item['dataset']}: {item['note']}." for item in found if item["note"]]
    return scores(
        metrics, rows, differences,
        [("mean over time", "zero padding averaged in (ARCH's code)", "frames of the recording alone"),
         ("epoch", "the last (ARCH's code)", "the one that validates best"), *named_codecs.codec_settings(codecs)],
        lost, {"linear probe": {}}, list(dict.fromkeys(notes)),
    )  # fmt: skip


def _measure(name: str) -> str:
    return "mAP" if SETS[name].multi else "%"
