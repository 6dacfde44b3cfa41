"""The page and the terminal summary of what `codec_card` measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xcodec_lm.tasks.eval.codec_text import DECIMALS, TITLES
from xcodec_lm.tasks.eval.intervals import LEAST_UNITS, UNDECIDABLE
from xcodec_lm.tasks.eval.reconstruction import LOWER_IS_BETTER
from xcodec_lm.tasks.report import (
    Bars,
    Block,
    Cell,
    Column,
    Commands,
    Curves,
    Download,
    Empty,
    KeyValues,
    Measure,
    Note,
    Report,
    Section,
    Table,
    Text,
)

Figure = dict[str, Any]
BITS = {
    "capacity": "log2 of the size", "entropy": "entropy", "unigram": "unigram",
    "bigram_before": "bigram, same codebook a frame before", "bigram_above": "bigram, code before in the frame",
}  # fmt: skip
NOT_A_VERDICT = (
    "Fewer bits are not better: a codec that has collapsed needs the fewest. Read them beside what resynthesis keeps."
)


def card_report(data: dict[str, Any], command: str) -> Report:
    """The page of a card.

    Args:
        data: of `measure_card`.
        command: that made it, without the user's folders.
    """
    names = role_names(data)
    sections = [
        Section("At a glance", _glance(data, names), "Everything here was measured without training a language model."),
        Section("What resynthesis keeps", _resynthesis(data, names)),
        Section("What vectors and codes know", _knowledge(data, names)),
        Section("How predictable the codes are", _codes(data, names), NOT_A_VERDICT),
        Section("How stable the codes are", _stability(data, names)),
        Section("Cost", _cost(data, names)),
    ]
    title = " and ".join(names.values())
    return Report(
        f"{title}: a tokenizer for language models",
        sections,
        subtitle="What can be known of a codec in minutes.",
        provenance=[
            Commands([command], "The command"),
            KeyValues(
                {f"{names[role]}: fingerprint": info["fingerprint"] for role, info in data["codecs"].items()}
                | {key: "all" if value is None else value for key, value in data["settings"].items()},
                "Settings; two cards compare where these are equal",
            ),
            *_judges(data),
            Download("card.json", data, "All figures as JSON"),
        ],
    )


def role_names(data: dict[str, Any]) -> dict[str, str]:
    """role -> what the codec is called on the page; two codecs of one name are told apart."""
    names = {role: str(info["name"]) for role, info in data["codecs"].items()}
    return names if len(set(names.values())) == len(names) else {r: f"{name} ({r})" for r, name in names.items()}


def glance(data: dict[str, Any]) -> list[tuple[str, str, bool | None, dict[str, Figure | None], Figure | None]]:
    """The main figures: name, format, whether lower is better (None: neither), role -> figure, the difference."""
    roles = list(data["codecs"])
    most = f"n_q {max(data['n_q'])}"
    rows: list[tuple[str, str, bool | None, dict[str, Figure | None], Figure | None]] = []
    for name, domain in data["domains"].items():
        for measure in ("mel", "stoi"):
            if measure in domain["measures"]:
                figures: dict[str, Figure | None] = {role: domain[role][most][measure] for role in roles}
                difference = domain["difference"][most][measure] if "difference" in domain else None
                title = f"{TITLES[measure]}, {name}, {most}"
                rows.append((title, f".{DECIMALS[measure]}f", LOWER_IS_BETTER[measure], figures, difference))
    if heard := data["judged"]:
        for label in dict.fromkeys((f"n_q {min(data['n_q'])}", most)):
            for measure, title, form, low in (("wer", "word errors of resynthesis [%]", ".1f", True),
                                              ("sim", "likeness of resynthesis", ".3f", False)):  # fmt: skip
                if measure in heard["codec"][label]:
                    figures = {role: heard[role][label][measure] for role in roles}
                    difference = heard["difference"][label][measure] if "difference" in heard else None
                    rows.append((f"{title}, {label}", form, low, figures, difference))
    for row in data["abx"]:
        if row["feature"] in ("post_vq", "codes") and f"n_q {row['n_q']}" == most:
            figures = {role: row.get(role) for role in roles}
            title = f"ABX error {row['mode']} speakers [%], {row['feature']} {most}"
            rows.append((title, ".1f", True, figures, row.get("difference")))
    for row in data["probes"]:
        if row["feature"] == "post_vq" and f"n_q {row['n_q']}" == most:
            figures = {role: row.get(role) for role in roles}
            rows.append((f"{row['task']} read off post_vq {most} [%]", ".1f", False, figures, row.get("difference")))
    for name in ("entropy", "bigram_before"):
        figures = {role: _plain(data["codes"][role]["totals"][name]) for role in roles}
        rows.append((f"{BITS[name]} [bits/s]", ".0f", None, figures, None))
    figures = {role: _plain(data["codes"][role]["books"][0]["bigram_before"]) for role in roles}
    rows.append(("the same, first codebook alone [bits/s]", ".0f", None, figures, None))
    for title, wanted in (("a shift of half a frame", "shift"), ("noise at -40 dB", "noise")):
        figures = {role: _stable(data["robustness"][role], wanted) for role in roles}
        rows.append((f"first codes that survive {title} [%]", ".1f", False, figures, None))
    return rows


def _stable(found: dict[str, Any], kind: str) -> Figure | None:
    """The first codebook's figure of the middle shift, or of the softest noise."""
    rows = [row for row in found["rows"] if row["kind"] == kind]
    if not rows:
        return None
    if kind == "noise":
        return max(rows, key=lambda row: row["snr_db"])["books"][0]
    whole = max(row["samples"] for row in rows)
    return min(rows, key=lambda row: abs(row["samples"] - whole / 2))["books"][0]


def _glance(data: dict[str, Any], names: dict[str, str]) -> list[Block]:
    two = len(names) == 2
    cells = []
    for title, form, lower, figures, difference in glance(data):
        better = "" if lower is None else "lower" if lower else "higher"
        row: list[Cell] = [title, better, *(_text(figures.get(role), form) for role in names)]
        if two:
            row += [_text(difference, form), str(difference["verdict"]) if difference else None]
        cells.append(row)
    columns = ["", "better", *names.values(), *(["difference", "verdict"] if two else [])]
    blocks: list[Block] = [
        Table(columns, cells, "Main figures, with 95 % intervals over speakers, pieces or recordings")
    ]
    facts = []
    for key, title in (("sample_rate", "sample rate [Hz]"), ("frame_rate", "frames per second"), ("n_q", "codebooks"),
                       ("tokens_per_s", "codes per second"), ("bitrate_kbps", "kbit/s"), ("causal", "causal"),
                       ("lookahead_frames", "look-ahead [frames]"), ("parameters", "parameters")):  # fmt: skip
        facts.append([title, *(_fact(info.get(key)) for info in data["codecs"].values())])
    facts.insert(3, ["codes in each", *(_sizes(info["codebook_sizes"]) for info in data["codecs"].values())])
    blocks.append(Table(["", *names.values()], facts, "Rates"))
    units = {name: domain["units"] for name, domain in data["domains"].items()}
    if few := [f"{count} in {name}" for name, count in units.items() if count < LEAST_UNITS]:
        blocks.append(Note(f"A verdict takes {LEAST_UNITS} speakers, pieces or recordings; there are {', '.join(few)}: "
                           f"{UNDECIDABLE}."))  # fmt: skip
    return blocks


def _resynthesis(data: dict[str, Any], names: dict[str, str]) -> list[Block]:
    blocks: list[Block] = []
    for name, domain in data["domains"].items():
        for measure in ("mel", "stft", "stoi"):
            if measure in domain["measures"]:
                series = {
                    shown: [(n_q, _value(domain[role][f"n_q {n_q}"][measure])) for n_q in data["n_q"]]
                    for role, shown in names.items()
                }
                blocks.append(Curves(series, "layers (n_q)", TITLES[measure], f"{TITLES[measure]}, {name}"))
    for name, domain in data["domains"].items():
        measures = domain["measures"]
        rows = []
        for role, shown in names.items():
            rows += [
                [f"{shown}, {label}", *(_measure(values[m]) for m in measures)]
                for label, values in domain[role].items()
            ]
        anchors = [[label, *(_measure(values[m]) for m in measures)] for label, values in domain["anchors"].items()]
        columns = [Column(TITLES[m], f".{DECIMALS[m]}f", "min" if LOWER_IS_BETTER[m] else "max") for m in measures]
        blocks.append(
            Table(
                ["", *columns], [*rows, *anchors],
                f"{name}: {domain['clips']} recordings, {domain['seconds']:.0f} s, {domain['units']} {domain['unit']}s",
                references=range(len(rows), len(rows) + len(anchors)),
            )
        )  # fmt: skip
    if data["missing"]:
        blocks.append(Note(f"STOI and PESQ need {' and '.join(data['missing'])}: pip install 'xcodec-lm[eval]'"))
    heard = data["judged"]
    if not heard:
        return [*blocks, Note("Words and voices were not judged: that takes speech with texts, and --judges.")]
    measures = [key for key in ("wer", "cer", "sim") if key in heard["codec"][f"n_q {max(data['n_q'])}"]]
    real = heard["recordings"]
    head: list[Cell] = ["recordings"]
    for key in measures:
        head.append(_measure(real[key]) if key in real else Measure(1.0) if key == "sim" else None)
    rows = [head]
    if "others" in real:
        floor: list[Cell] = ["recordings of other speakers"]
        rows.append(floor + [_measure(real["others"]) if key == "sim" else None for key in measures])
    for role, shown in names.items():
        rows += [
            [f"{shown}, {label}", *(_measure(values[k]) for k in measures)] for label, values in heard[role].items()
        ]
    shown_columns = {"wer": Column("words [%]", ".1f", "min"), "cer": Column("characters [%]", ".1f", "min"),
                     "sim": Column("likeness", ".3f", "max")}  # fmt: skip
    blocks.append(Table(
        ["", *(shown_columns[key] for key in measures)], rows,
        f"What judges hear: errors and likeness to the recording; {heard['clips']} utterances of {heard['speakers']} "
        "speakers", references=range(2 if "others" in real else 1),
    ))  # fmt: skip
    return blocks


def _knowledge(data: dict[str, Any], names: dict[str, str]) -> list[Block]:
    two = len(names) == 2
    blocks: list[Block] = []
    heads = [*(Column(shown, ".1f") for shown in names.values())]
    more = [Column("difference", ".1f"), "verdict"] if two else []

    def cells(row: dict[str, Any]) -> list[Cell]:
        found: list[Cell] = [_measure(row[role]) if row.get(role) else None for role in names]
        if two:
            difference = row.get("difference")
            found += [_measure(difference), str(difference["verdict"])] if difference else [None, None]
        return found

    if data["abx"]:
        rows = [[f"{row['mode']} speakers", _feature(row), *cells(row)] for row in data["abx"]]
        first = data["abx"][0]
        blocks.append(Table(
            ["", "feature", *heads, *more], rows,
            f"ABX errors in percent, lower is better, chance 50; items: {data['abx_items']} ({first['items']})",
            footnote="Vectors by their angle, codes by the share that differs.",
        ))  # fmt: skip
    else:
        blocks.append(Note("No ABX: the recordings hold no words or phones said several times (--items)."))
    if data["probes"]:
        rows = [[row["task"], _feature(row), *cells(row), row["chance"]] for row in data["probes"]]
        blocks.append(Table(
            ["task", "feature", *heads, *more, Column("most frequent", ".1f")], rows,
            "Linear probes: accuracy in percent on unseen speakers or recordings",
            footnote="sem_decoder is trained to copy the teacher, and stands beside post_vq, not before it.",
        ))  # fmt: skip
    else:
        blocks.append(Note("No probes: the manifests' rows have no labels, speakers or single words."))
    return blocks


def _codes(data: dict[str, Any], names: dict[str, str]) -> list[Block]:
    blocks: list[Block] = []
    most = max(len(found["books"]) for found in data["codes"].values())
    groups = [str(number) for number in range(1, most + 1)]

    def bars(key: str) -> dict[str, list[float | None]]:
        return {
            shown: [book[key] for book in data["codes"][role]["books"]]
            + [None] * (most - len(data["codes"][role]["books"]))
            for role, shown in names.items()
        }  # fmt: skip

    blocks.append(Bars(groups, bars("entropy"), "codebook", "bits per second", "Entropy of the codes"))
    caption = "Bits given the code a frame before (bigram)"
    blocks.append(Bars(groups, bars("bigram_before"), "codebook", "bits per second", caption))
    for role, shown in names.items():
        found = data["codes"][role]
        rows: list[list[Cell]] = [
            [str(number), book["used"], book["size"], 100 * book["used"] / book["size"], 100 * book["top"],
             book["perplexity"], *(book[key] for key in BITS)]
            for number, book in enumerate(found["books"], start=1)
        ]  # fmt: skip
        rows.append(["all", None, None, None, None, None, *(found["totals"][key] for key in BITS)])
        # fmt: off
        columns = ["codebook", "used", "of", Column("used [%]", ".1f"), Column("most frequent [%]", ".1f"),
                   Column("perplexity", ".0f"), *(Column(f"{title} [bits/s]", ".1f") for title in BITS.values())]
        # fmt: on
        blocks.append(
            Table(
                columns,
                rows,
                f"Codes of {shown}",
                footnote=f"Counts over {found['fitted_frames']} frames, bits of {found['frames']} others. "
                "Codebooks larger than the number of frames cannot look fully used.",
            )
        )  # fmt: skip
    return blocks


def _stability(data: dict[str, Any], names: dict[str, str]) -> list[Block]:
    blocks: list[Block] = []
    intro = (
        "Shares of codes that stay equal when the recording begins a few samples later, or when white noise is added. "
        "In the last column all codes of a frame are equal."
    )
    blocks.append(Text(intro))
    for role, shown in names.items():
        found = data["robustness"][role]
        rows: list[list[Cell]] = [
            [row["change"], *(_measure(figure) for figure in row["books"]), _measure(row["all"])]
            for row in found["rows"]
        ]
        chance = data["codes"][role]["chance"]
        rows.append(["two frames at random", *(100 * share for share in chance), None])
        books = len(found["rows"][0]["books"]) if found["rows"] else 0
        columns = ["", *(Column(str(number), ".1f") for number in range(1, books + 1)), Column("all", ".1f")]
        if found["rows"]:
            blocks.append(
                Table(columns, rows, f"Equal codes of {shown} in percent, by codebook; {found['clips']} recordings")
            )
        else:
            blocks.append(Note(f"{shown}: the recordings are too short to be shifted."))
    return blocks


def _cost(data: dict[str, Any], names: dict[str, str]) -> list[Block]:
    encoding, decoding = data["encoding"], data["decoding"]
    rows = [
        [shown, encoding[role]["seconds_per_second"], decoding[role]["seconds_per_second"]]
        for role, shown in names.items()
    ]
    return [Table(
        ["", Column("encoding", ".4f", "min"), Column("decoding", ".4f", "min")], rows,
        f"Seconds for a second of audio, one recording at a time ({encoding['device']}, {encoding['threads']} threads)",
        footnote="The median of three runs in turn; a busy machine makes both slower.",
    )]  # fmt: skip


def _judges(data: dict[str, Any]) -> list[Block]:
    if not data["judged"]:
        return []
    judges = data["judged"]["judges"]
    items: dict[str, Any] = {}
    for name, ancestry in (("recogniser", "ancestry"), ("voices", "voices_ancestry")):
        if name not in judges:
            continue
        items[name] = judges[name]
        for key, value in judges[ancestry].items():
            if key == "trained_on":  # the lists of speakers and recordings are in card.json
                value = [f"{entry['manifest']} ({entry['rows']} rows)" for entry in value]
            items[f"{name}: {key.replace('_', ' ')}"] = value
    return [KeyValues(items, "Judges, and what they descend from")]


def format_card(data: dict[str, Any]) -> str:
    """The main figures for a terminal."""
    names = role_names(data)
    table = [["", *names.values(), *(["difference", "verdict"] if len(names) == 2 else [])]]
    for title, form, lower, figures, difference in glance(data):
        arrow = "" if lower is None else " (lower is better)" if lower else " (higher is better)"
        row = [title + arrow, *(_text(figures.get(role), form) or "" for role in names)]
        if len(names) == 2:
            row += [_text(difference, form) or "", difference["verdict"] if difference else ""]
        table.append(row)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)


def _plain(value: float) -> Figure:
    return {"value": value, "low": None, "high": None}


def _text(figure: Figure | None, form: str) -> str | None:
    if figure is None or figure["value"] is None:
        return None
    text = f"{figure['value']:{form}}"
    return text if figure["low"] is None else f"{text} [{figure['low']:{form}}, {figure['high']:{form}}]"


def _measure(figure: Figure) -> Cell:
    if figure["value"] is None:
        return Empty("the measure could not judge any recording")
    return Measure(figure["value"], figure["low"], figure["high"])


def _value(figure: Figure) -> float:
    return float("nan") if figure["value"] is None else figure["value"]


def _feature(row: dict[str, Any]) -> str:
    return row["feature"] if row["n_q"] is None else f"{row['feature']} n_q {row['n_q']}"


def _fact(value: Any) -> Cell:
    return "yes" if value is True else "no" if value is False else value


def _sizes(sizes: Sequence[int]) -> str:
    return "/".join(str(size) for size in sorted(set(sizes)))
