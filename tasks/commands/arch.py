"""The command `eval arch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands.common import DEFAULT_CODEC, Device, OutFile, Result, load_codec_for, note


def eval_arch(
    root: Path, out: OutFile, datasets: tuple[str, ...] = ("all",), codecs: tuple[str, ...] = (DEFAULT_CODEC,),
    teachers: tuple[str, ...] = (), features: tuple[str, ...] = ("post_vq", "sem_decoder"), n_q: tuple[int, ...] = (),
    preset: Literal["masked", "arch"] = "masked", seeds: int = 3, split_seed: int = 42, device: Device = "auto",
) -> Result:  # fmt: skip
    """Linear probes of codecs' vectors on the data sets of ARCH, from local folders; the paper's table 5.

    Splits that a data set does not state are drawn from sorted ids and kept in OUT/splits.json; vectors are kept in
    OUT/vectors, so that the same command again computes what is missing. Audio that is missing is counted and listed.

    Args:
        root: folder that holds the data sets, each in a folder of its name (docs/probing.md).
        out: folder to write: results.json, splits.json, vectors.
        datasets: which of them; all takes those that are there.
        codecs: run folders, model folders, shipped names or hub ids; the first is compared with the others.
        teachers: HuBERT folders or names, for their hidden states.
        features: of codecs: pre_vq, post_vq, fc_post1, sem_decoder, ssl.
        n_q: layers that features of tokens come from; without it, all of a codec.
        preset: masked averages the frames of the recording; arch pads with zeros and averages those too, and trains
            heads as the published benchmark does.
        seeds: heads trained with different starts; their mean is given.
        split_seed: of the splits that are drawn.
        device: where codecs compute.
    """
    import json

    from xcodec_lm.codec.runtime.files import write_files
    from xcodec_lm.codec.semantic import TeacherFeatures
    from xcodec_lm.tasks.commands.common import device_of
    from xcodec_lm.tasks.eval.arch import codec_source, run_arch, teacher_source
    from xcodec_lm.tasks.eval.arch_sets import SETS, find_root, lock, read_set
    from xcodec_lm.tasks.eval.codec_features import FeatureKey, needs_tokens

    if unknown := [name for name in datasets if name != "all" and name not in SETS]:
        raise UsageError(f"no data set is called {unknown[0]!r}", f"there are all, {', '.join(SETS)}")
    if seeds < 1 or not (codecs or teachers):
        raise UsageError("eval arch needs at least one seed, and a codec or teacher")
    names = list(SETS) if "all" in datasets else list(dict.fromkeys(datasets))
    places = {name: find_root(root, name) for name in names}
    absent = {name: f"{root}/{SETS[name].folders[0]}" for name, place in places.items() if place is None}
    if absent and ("all" not in datasets or len(absent) == len(SETS)):
        name, place = next(iter(absent.items()))
        raise XcodecLMError(f"{name} is not in {root}", f"put it into {place}; docs/probing.md says in which layout")
    for name, place in absent.items():
        note(f"{name} is left out: it is not in {place}")
    data = [read_set(name, place, split_seed) for name, place in places.items() if place is not None]
    for found in data:
        if found.missing:
            some = ", ".join(found.missing[:3])
            note(f"{found.name}: {len(found.missing)} of {len(found.rows)} recordings are missing, such as {some}")
    lock(data, out / "splits.json")
    sources = []
    for name in codecs:
        codec = load_codec_for(name, device)
        layers = [count for count in n_q if count <= codec.spec.n_q] or [codec.spec.n_q]
        keys = [
            FeatureKey(feature, count)
            for feature in features
            for count in (layers if needs_tokens(feature) else [None])
        ]
        source = codec_source(name, codec, keys)
        if not source.features:
            raise UsageError(f"{name} has none of the features {', '.join(features)}", "choose others with --features")
        sources.append(source)
    sources += [teacher_source(name, TeacherFeatures(name, device=device_of(device))) for name in teachers]
    rows = run_arch(sources, data, preset, range(seeds), out / "vectors")
    result = {"preset": preset, "split_seed": split_seed, "left_out": absent, "rows": rows}
    text = json.dumps(result, indent=1) + "\n"
    write_files(out, {"results.json": lambda path: path.write_text(text, encoding="utf-8")})
    return Result(format_arch(rows), result)


def format_arch(rows: list[dict[str, Any]]) -> str:
    """A table for a terminal."""
    lines = [
        f"linear probes in percent, preset {rows[0]['preset']}; means over folds and {len(rows[0]['by_seed'])} seeds"
    ]
    lines[0] += ", 95 % intervals over units"
    width = max(len(f"{row['source']} {row['feature']}") for row in rows)
    dataset = None
    for row in rows:
        if row["dataset"] != dataset:
            dataset = row["dataset"]
            lines.append(
                f"{dataset}: {row['metric']}, {row['classes']} classes, {row['recordings']} recordings, chance "
                f"{row['chance']:.1f}" + (f"; {row['note']}" if row["note"] else "")
            )
            if row["missing"] or row["failed"]:
                lines.append(f"  left out: {row['missing']} missing, {row['failed']} not readable")
        interval = "" if row["low"] is None else f" [{row['low']:.1f}, {row['high']:.1f}]"
        text = f"  {row['source'] + ' ' + row['feature']:<{width}}  {row['value']:.1f}{interval}"
        if difference := row.get("difference"):
            text += f"; the first is {difference['value']:+.1f} against it: {difference['verdict']}"
        lines.append(text)
    return "\n".join(lines)
