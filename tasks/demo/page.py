"""The demo's report: what was measured and made, as one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcodec_lm.codec.runtime.run import read_metrics
from xcodec_lm.codec.semantic import UNTRAINED_NOTICE, is_untrained
from xcodec_lm.tasks.demo.scores import PIECES_FOR_A_VERDICT, SHOWN, Excerpt, Scores
from xcodec_lm.tasks.report import (
    Bars,
    Column,
    Commands,
    Curves,
    Empty,
    KeyValues,
    Note,
    Player,
    PlayerRow,
    Players,
    Report,
    Section,
    Table,
    Text,
    render,
)  # fmt: skip


def write_page(
    out: Path, scores: Scores, origin: str, commands: list[str], trained: bool, pages: Mapping[str, str]
) -> Path:
    """Writes `out/report.html` and `out/scores.json`.

    Args:
        out: the demo's folder.
        scores: from `score`.
        origin: what the corpus is, for the reader.
        commands: that make the same runs.
        trained: whether the demo trained its codec.
        pages: name -> file of the demo's other pages.
    """
    values = {
        "reconstruction": {f"n_q {n}": row for n, row in scores.reconstruction.codec.items()},
        "anchors": scores.reconstruction.anchors,
        "codes_used": scores.reconstruction.codes_used,
        "bits_per_token": scores.bits,
        "texture": scores.texture,
        "pieces": scores.pieces,
        "excerpts": len(scores.excerpts),
        "tokens": scores.tokens,
    }
    (out / "scores.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    made = "A codec and a language model" if trained else "A language model"
    report = Report(
        "From recordings to a continuation",
        [verdict(scores), listening(scores), codec_section(out, scores, trained), language_model_section(out, scores)],
        subtitle=f"{made}, trained in minutes on {origin}.",
        provenance=provenance(out, scores, commands),
        pages=pages,
    )
    return render(report, out / "report.html")


def verdict(scores: Scores) -> Section:
    """What was reached, in three tables, and what cannot be said."""
    blocks: list[Any] = []
    if is_untrained(scores.teacher):
        blocks.append(Note(f"Codec with {UNTRAINED_NOTICE} (semantic.teacher: {scores.teacher}).", "warning"))
    if scores.pieces < PIECES_FOR_A_VERDICT:
        blocks.append(
            Note(f"{scores.pieces} held-out pieces: differences between systems are shown, not decided "
                 f"(that takes {PIECES_FOR_A_VERDICT}).", "info")
        )  # fmt: skip
    reached = scores.reconstruction
    rows = [[f"codec, n_q {n}", v["mel"], v["stft"]] for n, v in reached.codec.items()]
    rows += [[name, v["mel"], v["stft"]] for name, v in reached.anchors.items()]
    blocks.append(
        Table(
            ["signal", Column("mel distance", ".3f", "min"), Column("STFT distance", ".3f", "min")], rows,
            f"Reconstruction of {reached.clips} held-out excerpts ({reached.seconds:.0f} s) and what it must beat",
            footnote="Mean absolute difference of natural-log magnitudes. Shaped noise has the excerpt's own loudness "
            "in eight bands at every moment.",
        )
    )  # fmt: skip
    notes = {
        "codec, real tokens": "the real tokens: the best that any language model could do",
        "training recordings": "other real music",
    }
    systems = dict.fromkeys([*scores.bits, *scores.texture])
    rows = []
    for name in systems:
        bits = scores.bits.get(name, Empty("no probabilities"))
        distance = scores.texture.get(name, Empty("not continued"))
        rows.append([name, bits, distance, notes.get(name, "")])
    blocks.append(
        Table(
            ["system", Column("bits per token", ".3f", "min"), Column("texture distance", ".2f", "min"), "note"], rows,
            f"Language model and anchors: {scores.tokens} held-out tokens, {len(scores.excerpts)} continuations",
            footnote="Bits per token: lower is better predicted; comparable between systems on the same tokens only, "
            "and no measure of a codec. Texture distance: Fréchet distance of half-second log mel statistics to what "
            "really follows, in at most 16 principal dimensions of the training recordings.",
            references=tuple(i for i, name in enumerate(systems) if name in notes),
        )
    )  # fmt: skip
    return Section("Figures", blocks)


def listening(scores: Scores) -> Section:
    """Players for the first excerpts of different pieces."""
    seen: dict[str, Excerpt] = {}
    for excerpt in scores.excerpts:
        seen.setdefault(excerpt.piece, excerpt)
    rate = scores.sample_rate
    cut = round(scores.prompt_s * rate)
    rows, extra = [], []
    for excerpt in list(seen.values())[:SHOWN]:
        made = excerpt.continuations
        items = [Player("prompt", excerpt.original[:cut], rate), Player("original", excerpt.original, rate)]
        items += [Player(f"n_q {n}", wav, rate) for n, wav in excerpt.reconstructions.items()]
        items.append(Player("continuation", made["language model"], rate, shade_until_s=scores.prompt_s))
        rows.append(PlayerRow(excerpt.name, items))
        others = [name for name in made if name not in ("language model", "silence", "codec, real tokens")]
        extra.append(PlayerRow(excerpt.name, [Player(n, made[n], rate, shade_until_s=scores.prompt_s) for n in others]))
    return Section(
        "Listening",
        [
            Players(rows, "Held-out excerpts: prompt, original, reconstructions, and the model's continuation"),
            Players(extra, "The same prompts continued by the anchors"),
        ],
        intro=f"Shaded: the prompt as the codec reconstructs it with the {scores.n_q} codebooks that the model speaks.",
    )


def codec_section(out: Path, scores: Scores, trained: bool) -> Section:
    """The codec: its training where the demo trained it, and its use of codes."""
    rows = read_metrics(out / "codec") if trained else []
    names = ("mel", "stft", "commitment", "semantic", "adversarial", "feature")
    curves = {name: points for name in names if (points := _points(rows, name))}
    distances = {f"n_q {name.rsplit('nq', 1)[1]}": _points(rows, name) for name in _names(rows, "eval/mel_nq")}
    layers = [str(layer + 1) for layer in range(len(scores.reconstruction.codes_used))]
    training = [
        Curves(curves, "step", "loss before its weight", "Training losses", log_y=True),
        Curves(distances, "step", "mel distance", "Mel distance of the validation clips"),
    ]
    return Section(
        "Codec",
        [
            *(training if trained else [Text(f"{scores.codec} ships with the toolkit; this demo did not train it.")]),
            Bars(
                layers,
                {"codes in use": [float(n) for n in scores.reconstruction.codes_used],
                 "perplexity": list(scores.reconstruction.perplexity)},
                "quantizer", "codes", f"Codebook use on {scores.reconstruction.seconds:.0f} s of held-out audio",
                ceiling=float(scores.codebook_size),
            ),
        ],
    )  # fmt: skip


def language_model_section(out: Path, scores: Scores) -> Section:
    """Training of the language model."""
    rows = read_metrics(out / "music")
    curves = {"train": _points(rows, "bits"), "validation": _points(rows, "eval/bits")}
    last = max((x for points in curves.values() for x, _ in points), default=1.0)
    curves["unigram, held out"] = [(0.0, scores.bits["unigram"]), (last, scores.bits["unigram"])]
    return Section("Language model", [Curves(curves, "step", "bits per token", "Bits per token")])


def provenance(out: Path, scores: Scores, commands: list[str]) -> list[Any]:
    """Commands and environment of every run."""
    environment = json.loads((out / "music" / "env.json").read_text(encoding="utf-8"))
    return [
        Text("Every run is made by the command that stands here; each run folder holds its configuration."),
        Commands(commands, "Commands"),
        KeyValues(
            {
                **{f"{name}": version for name, version in environment["versions"].items()},
                "python": environment["python"],
                "platform": environment["platform"],
                "device": environment["device"],
                "threads": str(environment["threads"]),
                "source revision": environment["git"] or "not a git checkout",
                "codec fingerprint": scores.fingerprint,
            },
            "Environment",
        ),
    ]


def _points(rows: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def _names(rows: list[dict[str, float]], prefix: str) -> list[str]:
    return sorted({name for row in rows for name in row if name.startswith(prefix)})
