"""From sounds that were judged to figures with intervals: classes, captions, distances of sets, copies.

A figure is of a row; several sounds of a row are averaged first, and intervals go over recordings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.tokens import AudioTokenizer
from xcodec_lm.tasks.eval.frechet import Projection
from xcodec_lm.tasks.eval.intervals import UNDECIDABLE, Estimate, difference_estimate, mean_estimate
from xcodec_lm.tasks.eval.set_distances import Drawn, dims_for, frechet_drawn, kid_drawn
from xcodec_lm.tasks.sound.copies import find_copies
from xcodec_lm.tasks.sound.judging import Heard, Judges, hear

REAL = "real recordings"
LEAST_ACCURACY = 0.5
"""A judge of classes that is right less often on real recordings gives no verdict."""
LOWER_IS_BETTER = {"class": False, "clap": False, "frechet": True, "kid": True}
"""Measures that are compared, and which way is better."""


@dataclass
class System:
    """What stands for all rows.

    Attributes:
        name: shown in tables.
        sets: sounds (N,) of each row, as many such lists as there are samples.
        run: the run that it belongs to.
        heard: what the judges heard of each list.
    """

    name: str
    sets: list[list[np.ndarray]]
    run: str = ""
    heard: list[Heard] = field(default_factory=list)


@dataclass(frozen=True)
class Scores:
    """What sounds are measured against.

    Attributes:
        clips: the rows.
        units: the recording of each.
        classes: the class of each; "" where it is not known.
        captions: that each was made from.
        training: clips of split train.
        known: (N,) sound of each of them.
        rate: of all sounds, in Hz.
        seconds: of made sounds.
        runs: their names.
        judges: who judged.
        seed: of intervals.
        codecs: of the runs, by name.
    """

    clips: list[Clip]
    units: list[str]
    classes: list[str]
    captions: list[str]
    training: list[Clip]
    known: list[np.ndarray]
    rate: int
    seconds: float
    runs: list[str]
    judges: Judges
    seed: int
    codecs: Mapping[str, AudioTokenizer]


@dataclass
class Measured:
    """The figures of one system.

    Attributes:
        rows: measure -> (R,) one value a row, NaN where it cannot be judged.
        sets: measure -> distance of its sounds to the real ones.
        chance: (R,) how often a sound of another row would pass for this row's class.
        named: class that was heard -> sounds.
        silent: sounds with nothing to hear.
    """

    rows: dict[str, np.ndarray]
    sets: dict[str, Drawn]
    chance: np.ndarray | None
    named: dict[str, int]
    silent: int


def score(material: Scores, systems: Sequence[System]) -> dict[str, Any]:
    """All figures as plain values: `systems`, `differences`, `trusted`, `nearest`, `items` and what they rest on."""
    real = next(system for system in systems if system.name == REAL)
    vectors = hear(material.judges, material.known, material.rate).vectors
    dims = dims_for(len(material.clips))
    projection = Projection.fit(vectors.astype(np.float64), dims)
    texts = None
    if material.judges.clap is not None:
        texts = material.judges.clap.embed_texts(material.captions).numpy()
    found = {system.name: _measure(material, system, real, projection, texts) for system in systems}
    trusted = _trust(material, found[REAL])
    nearest, likeness = find_copies(
        [(system.name, system.run, system.sets, [heard.vectors for heard in system.heard]) for system in systems
         if system.name == REAL or system.name.endswith(": made")],
        material.training, material.known, vectors, material.rate, material.codecs,
    )  # fmt: skip
    return {
        "recordings": len(set(material.units)),
        "unit_rows": len(material.units),
        "classes": list(material.judges.classes.classes) if material.judges.classes else [],
        "dims": projection.axes.shape[1],
        "trusted": trusted,
        "systems": [_row(material, name, one, name != REAL) for name, one in found.items()],
        "differences": _differences(material, found, trusted),
        "nearest": nearest,
        "items": _items(material, systems, found, likeness),
    }


# ------------------------------------------------------------------ figures of a system


def _measure(
    material: Scores, system: System, real: System, projection: Projection, texts: np.ndarray | None
) -> Measured:
    rows: dict[str, np.ndarray] = {}
    named: Counter[str] = Counter()
    chance = None
    if material.judges.classes is not None:
        answers = [class_agreement(heard, material.classes, material.judges.classes.classes) for heard in system.heard]
        rows["class"] = np.mean([right for right, _ in answers], axis=0)
        for _, names in answers:
            named.update(names)
        total = sum(named.values())
        chance = np.array([named[name] / total for name in material.classes])
        chance[np.isnan(rows["class"])] = np.nan
    if texts is not None:
        scores = [clap_scores(heard, texts, material.classes, material.captions) for heard in system.heard]
        rows["clap"], rows["clap_others"] = (np.mean([one[part] for one in scores], axis=0) for part in (0, 1))
    reference = projection(real.heard[0].vectors.astype(np.float64))
    sets = [projection(heard.vectors.astype(np.float64)) for heard in system.heard]
    distances = {
        "frechet": frechet_drawn(sets, reference, material.units, material.seed),
        "kid": kid_drawn(sets, reference, material.units, material.seed),
    }
    silent = int(sum(heard.silent.sum() for heard in system.heard))
    return Measured(rows, distances, chance, dict(named.most_common()), silent)


def class_agreement(heard: Heard, classes: Sequence[str], known: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(R,) 1 where the likeliest class is the row's, NaN where the judge does not know that class; and the classes
    that were heard. Silence is of no class."""
    assert heard.shares is not None
    names = ["silence" if quiet else known[int(best)]
             for quiet, best in zip(heard.silent, heard.shares.argmax(axis=1), strict=True)]  # fmt: skip
    right = [float(name == wanted) if wanted in known else np.nan for name, wanted in zip(names, classes, strict=True)]
    return np.array(right), [name for name, wanted in zip(names, classes, strict=True) if wanted in known]


def clap_scores(
    heard: Heard, texts: np.ndarray, classes: Sequence[str], captions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(R,) cosine of each sound with its own caption, and its mean over the captions of rows of other classes.

    That mean is what shuffling captions gives on average. Rows without a class differ by their captions. Silence has no
    score.
    """
    assert heard.matches is not None
    cosines = heard.matches.astype(np.float64) @ texts.T.astype(np.float64)  # (R, R): sound, caption
    said = [name or caption for name, caption in zip(classes, captions, strict=True)]
    differs = np.array([[one != other for other in said] for one in said], dtype=np.float64)
    counts = differs.sum(axis=1)
    others = np.where(counts > 0, (cosines * differs).sum(axis=1) / np.maximum(counts, 1), np.nan)
    own = np.where(heard.silent, np.nan, np.diag(cosines))
    return own, np.where(heard.silent, np.nan, others)


def _row(material: Scores, name: str, found: Measured, distances: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"system": name, "silent": found.silent, "heard_as": found.named}
    for measure, values in found.rows.items():
        row[measure] = mean_estimate(values, material.units, material.seed).to_dict()
    if "clap" in found.rows:
        margin = found.rows["clap"] - found.rows["clap_others"]
        row["clap_margin"] = mean_estimate(margin, material.units, material.seed).to_dict()
    if found.chance is not None:
        row["class_chance"] = mean_estimate(found.chance, material.units, material.seed).to_dict()
    for measure, drawn in found.sets.items():
        row[measure] = (
            drawn.estimate().to_dict() if distances else None
        )  # real recordings are what others are compared to
    return row


def _trust(material: Scores, real: Measured) -> dict[str, str]:
    """Measure -> why its differences give no verdict; "" where they do."""
    doubts = material.judges.doubts
    trusted = {}
    if "class" in real.rows:
        accuracy = mean_estimate(real.rows["class"], material.units, material.seed)
        shares = Counter(name for name, value in zip(material.classes, real.rows["class"], strict=True)
                         if not np.isnan(value))  # fmt: skip
        most = max(shares.values(), default=0) / max(1, sum(shares.values()))
        trusted["class"] = doubts.get("class", "")
        if not accuracy.value >= LEAST_ACCURACY or not accuracy.low > most:
            trusted["class"] = f"the judge of classes is right on {accuracy.value:.0%} of the real recordings only"
    if "clap" in real.rows:
        margin = mean_estimate(real.rows["clap"] - real.rows["clap_others"], material.units, material.seed)
        trusted["clap"] = doubts.get("clap", "")
        if not margin.low > 0:
            trusted["clap"] = "the judging CLAP does not tell captions of real recordings apart"
    features = material.judges.features
    trusted["frechet"] = trusted["kid"] = doubts.get(features, "")
    return trusted


# ------------------------------------------------------------------ differences


def _differences(material: Scores, found: Mapping[str, Measured], trusted: Mapping[str, str]) -> list[dict[str, Any]]:
    """What is compared: every run's sounds with its controls, the resynthesis, noise, and those of the first run."""
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(material.runs):
        made = f"{run}: made"
        whole = found[made]
        if whole.chance is not None:
            difference = difference_estimate(whole.rows["class"], whole.chance, material.units, material.seed)
            rows.append(_difference("class", made, "its sounds dealt out anew", difference, trusted))
        if "clap" in whole.rows:
            margin = difference_estimate(whole.rows["clap"], whole.rows["clap_others"], material.units, material.seed)
            rows.append(_difference("clap", made, "captions of other classes", margin, trusted))
        others = [f"{run}: {what}" for what in ("other caption", "untrained", "shuffled codes", "resynthesis")]
        others += ["white noise", "training recordings"]
        pairs = [(made, other) for other in others if other in found]
        if number:
            pairs.insert(0, (f"{material.runs[0]}: made", made))
            pairs.append((f"{material.runs[0]}: resynthesis", f"{run}: resynthesis"))
        for one, other in pairs:
            for measure in LOWER_IS_BETTER:
                if measure in found[one].rows:
                    a, b = found[one].rows[measure], found[other].rows[measure]
                    estimate = difference_estimate(a, b, material.units, material.seed)
                elif measure in found[one].sets:
                    estimate = found[one].sets[measure].minus(found[other].sets[measure])
                else:
                    continue
                rows.append(_difference(measure, one, other, estimate, trusted))
    return rows


def _difference(measure: str, one: str, other: str, found: Estimate, trusted: Mapping[str, str]) -> dict[str, Any]:
    verdict = UNDECIDABLE if trusted[measure] else found.verdict(LOWER_IS_BETTER[measure])
    return {"measure": measure, "a": one, "b": other, "difference": found.to_dict(), "verdict": verdict}


# ------------------------------------------------------------------ rows


def _items(
    material: Scores, systems: Sequence[System], found: Mapping[str, Measured],
    likeness: Mapping[str, list[list[dict[str, Any]]]],
) -> list[dict[str, Any]]:  # fmt: skip
    """What was heard of every row, by system and sample."""
    texts = None if material.judges.clap is None else material.judges.clap.embed_texts(material.captions).numpy()
    items = []
    for row, clip in enumerate(material.clips):
        by_system: dict[str, list[dict[str, Any]]] = {}
        for system in systems:
            entries = []
            for number, heard in enumerate(system.heard):
                entry: dict[str, Any] = {"silent": bool(heard.silent[row])}
                if heard.shares is not None and material.judges.classes is not None:
                    best = int(heard.shares[row].argmax())
                    entry |= {"heard": material.judges.classes.classes[best], "share": float(heard.shares[row, best])}
                if heard.matches is not None and texts is not None:
                    entry["clap"] = float(heard.matches[row] @ texts[row])
                if system.name in likeness:
                    entry["nearest"] = likeness[system.name][number][row]
                entries.append(entry)
            by_system[system.name] = entries
        items.append({
            "id": clip.id, "audio": str(clip.row["audio"]), "caption": material.captions[row],
            "class": material.classes[row], "recording": material.units[row], "systems": by_system,
        })  # fmt: skip
    return items


# ------------------------------------------------------------------ as text


def format_sound(data: dict[str, Any]) -> str:
    """The result of `evaluate_sound` as a table."""
    judges, features = data["judges"], data["judges"]["features"]
    told = f"{judges['clap']}'s audio side" if features == "clap" else "the judge of classes"
    lines = [
        f"{data['rows']} captions of split {data['split']} of {data['recordings']} recordings, {data['samples']} "
        f"sound(s) of {data['seconds']:g} s each; intervals over recordings",
        f"classes: {len(data['classes'])} known to the judge; CLAP: {judges.get('clap', 'none')}; "
        f"distances in {data['dims']} dimensions of {told}, fitted on training clips",
        "",
        f"{'system':<34}{'class %':>8}  {'95 %':<14}{'CLAP':>7}{'own-other':>11}  {'95 %':<18}{'Frechet':>8}{'KID':>8}",
    ]
    for row in data["systems"]:
        agreement, clap, margin = (row.get(name) for name in ("class", "clap", "clap_margin"))
        lines.append(
            f"{row['system']:<34}{_number(agreement, 1, 100):>8}  {_interval(agreement, 1, 100):<14}"
            f"{_number(clap, 3):>7}{_number(margin, 3):>11}  {_interval(margin, 3):<18}"
            f"{_number(row['frechet'], 2):>8}{_number(row['kid'], 3):>8}"
        )
    lines += [f"no verdict by {name}: {why}" for name, why in data["trusted"].items() if why]
    lines += ["", "differences, paired:"]
    for row in data["differences"]:
        scale, digits = (100, 1) if row["measure"] == "class" else (1, 3)
        difference = row["difference"]
        lines.append(
            f"  {row['measure']}: {row['a']} - {row['b']}: {_number(difference, digits, scale)} "
            f"{_interval(difference, digits, scale)}: {row['verdict']}"
        )
    lines += ["", "nearest training clip, correlation of mel spectrograms (median, highest):"]
    for name, row in data["nearest"].items():
        flagged = f", {row['copies']} of {row['sounds']} as near as a copy" if "copies" in row else ""
        lines.append(f"  {name}: {row['median']:.2f}, {row['highest']:.2f}{flagged}")
    return "\n".join(lines)


def _number(estimate: dict[str, Any] | None, digits: int, scale: float = 1.0) -> str:
    return "-" if estimate is None or estimate["value"] is None else f"{scale * estimate['value']:.{digits}f}"


def _interval(estimate: dict[str, Any] | None, digits: int, scale: float = 1.0) -> str:
    if estimate is None or estimate.get("low") is None:
        return "[-]"
    return f"[{scale * estimate['low']:.{digits}f}, {scale * estimate['high']:.{digits}f}]"
