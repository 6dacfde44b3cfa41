"""Blocks that commands share: verdicts, the paper's tables, items with transcripts, runs, pages of many results."""

import csv
import hashlib
import io
import json
import re

import numpy as np
import pytest
import yaml

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.report import (
    Column,
    Download,
    Empty,
    Marked,
    Measure,
    Note,
    Player,
    PlayerRow,
    Players,
    ReportError,
    Table,
    codebook_use,
    config_difference,
    items_table,
    last_values,
    measure_of,
    paper_table,
    provenance,
    reconstruction_grid,
    results_table,
    run_curves,
    run_provenance,
    verdict_table,
)
from xcodec_lm.tasks.report.collect import collect
from xcodec_lm.tasks.report.tables import common_format, table_csv, worst_first

DIGEST = hashlib.sha256(b"weights").hexdigest()[:16]
BAD = "<script>alert(1)</script>"
MARKS = [["equal", "one", "one"], ["substitute", "two", "too"], ["delete", "three", ""], ["insert", "", "oh"]]


def row(system, metric, value=None, **more):
    return {"system": system, "metric": metric, "value": value, **more}


def cells(table, line):
    return dict(zip([column.head for column in table.heads], table.rows[line], strict=True))


# ------------------------------------------------------------------ verdicts


def pair(n, low, high, direction="lower", **more):
    return [
        row("ours", "WER", 10.0, low=8, high=12, n=n, unit="speakers", direction=direction, **more),
        row("twin", "WER", 15.0, low=13, high=17, n=n, unit="speakers", direction=direction, paper=7.7),
        row("difference", "WER", (low + high) / 2, low=low, high=high, n=n, unit="speakers", direction=direction),
    ]


@pytest.mark.parametrize(
    "n, low, high, direction, verdict",
    [
        (12, -7, -3, "lower", "better"),
        (12, -7, -3, "higher", "worse"),
        (12, -7, 3, "lower", "no difference shown"),
        (9, -7, -3, "lower", "not decidable"),
    ],
)
def test_a_verdict_is_what_the_interval_says_and_takes_ten_units(n, low, high, direction, verdict):
    line = cells(verdict_table(pair(n, low, high, direction)), 0)
    assert line["ours is"] == verdict
    assert line["ours − twin"] == Measure((low + high) / 2, low, high, format=line["ours"].format)
    assert line["n"] == f"{n} speakers"


def test_a_given_verdict_goes_before_that_of_the_interval():
    rows = pair(12, -7, -3)
    rows[2]["verdict"] = "not decidable"
    assert cells(verdict_table(rows), 0)["ours is"] == "not decidable"


def test_the_papers_figures_stand_beside_with_the_reason_why_they_do_not_compare():
    line = cells(verdict_table(pair(12, -7, -3, paper=3.26, note="the data differ")), 0)
    assert (line["paper: ours"].value, line["paper: twin"].value) == (3.26, 7.7)
    assert line["beside the paper"] == "not comparable because the data differ"
    assert cells(verdict_table(pair(12, -7, -3, paper=3.26)), 0)["beside the paper"] == "comparable"
    missing = [row("ours", "UTMOS", note="no weights", paper=4.2), row("twin", "UTMOS", 3.0)]
    line = cells(verdict_table(missing), 0)
    assert line["ours"] == Empty("no weights")
    assert line["beside the paper"] is None
    assert all(line[head].reason for head in ("ours − twin", "ours is", "n", "paper: twin"))


def test_figures_of_one_metric_share_a_format_and_keep_all_digits_in_files(page_of):
    table = verdict_table([row("ours", "SIM", 0.12345, low=0.1, high=0.2), row("twin", "SIM", 0.5)])
    assert "0.123 [0.100, 0.200]" in page_of(table).text
    assert "0.12345" in table_csv(table)
    assert [common_format([v]) for v in (0.0123, 0.5, 3.2, 32.1, 321.0, None)] == [
        ".4f", ".3f", ".2f", ".1f", ".1f", ".3f",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"metric": "WER"}, "has no system"),
        (row("a", ""), "has no metric"),
        (row("a", "WER", "12"), "value is '12'"),
        (row("a", "WER", 1.0, direction="down"), "direction is 'down'"),
        (row("a", "WER", True), "value is True"),
    ],
)
def test_rows_that_are_none_are_named(bad, message):
    with pytest.raises(ReportError, match=re.escape(message)):
        results_table([bad], "T")


def test_a_verdict_table_needs_its_systems():
    with pytest.raises(ReportError, match=r"no row of 'X' or 'Y'.*\n?.*the systems of the rows are: ours"):
        verdict_table([row("ours", "WER", 1.0)], ours="X", twin="Y")


def test_values_that_are_not_finite_count_as_missing():
    table = results_table([row("a", "m", float("nan"), note="it diverged"), row("b", "m", 1.0)], "T")
    assert table.rows[0][1] == Empty("it diverged")


def test_measures_come_from_estimates_with_a_scale():
    assert measure_of({"value": 0.1, "low": 0.05, "high": 0.2}, 100) == Measure(10.0, 5.0, 20.0)
    assert measure_of({"value": 0.5, "low": None, "high": None}) == Measure(0.5)
    assert measure_of({"value": None}, reason="nobody listened") == measure_of(None, reason="nobody listened")


# ------------------------------------------------------------------ the paper's tables

PAPER = {"baseline": {"FD": 16.17, "FAD": 1.43}, "X-Codec": {"FD": 12.66, "FAD": 1.37}}


def test_a_replica_has_every_cell_of_the_paper_and_says_why_ours_are_empty(page_of):
    rows = [
        row("xcodec-tiny", "FD", 20.5, low=18, high=23, n=30, unit="tracks", note="another split"),
        row("xcodec-tiny", "FAD", note="no VGGish weights"),
        row("xcodec-tiny", "FAD[tiny]", 3.0),
    ]
    best = {"FD": "lower", "FAD": "lower"}
    table = paper_table(3, rows, PAPER, "music", {"xcodec-tiny": "X-Codec"}, best)
    assert [line[0] for line in table.rows] == [
        "baseline", "baseline, in the paper", "X-Codec", "X-Codec, in the paper",
    ]  # fmt: skip
    assert [column.head for column in table.heads] == ["system", "FD", "FAD", "FAD[tiny]"]
    assert [column.best for column in table.heads] == [None, "min", "min", None]
    assert table.rows[1][1:] == [16.17, 1.43, Empty("the paper has no such figure")]
    assert table.rows[2][1] == Measure(20.5, 18, 23, "another split")
    assert table.references == [1, 3]
    page = page_of(table)
    for reason in ("this system was not run", "no VGGish weights", "another split", "n: 30 tracks."):
        assert page.text.count(reason) == 1
    assert "16.17" in page.text and "1.43" in page.text
    assert not [cell for line in table.rows for cell in line if cell is None]


# ------------------------------------------------------------------ items


def items(count=12):
    return [
        {"id": f"u{i}", "errors": i, "SIM-O": i / 100, "marks": MARKS[: 1 + i % 4], "said": {"value": i, "low": None}}
        for i in range(count)
    ]


def test_items_are_sortable_and_start_with_the_ten_worst(page_of):
    table = items_table(
        items(), "Items", {"errors": "lower", "SIM-O": "higher", "marks": "lower"}, worst_first="errors"
    )
    assert worst_first(table) == [(1, "descending"), (2, "ascending"), (3, "descending")]
    assert isinstance(table.rows[0][3], Marked) and table.rows[5][4] == Measure(5)
    page = page_of(table)
    assert [a["data-way"] for a in page.all("option") if "data-way" in a] == ["descending", "ascending", "descending"]
    assert [a["value"] for a in page.all("option") if "data-first" in a] == ["1"]
    assert [a.get("data-sort") for a in page.all("th", scope="col")] == [None, "number", "number", "number", "number"]
    assert not [a for _, a in page.elements if "best" in a.get("class", "").split()]
    assert not page_of(items_table(items(9), "Few", {"errors": "lower"})).all("select")
    with pytest.raises(ReportError, match="no column 'speed'"):
        Table(["id", Column("errors", best="min")], [], "T", worst_first="speed")
    with pytest.raises(ReportError, match="cannot be shown"):
        items_table([{"id": "a", "x": object()}], "T")


def test_errors_of_a_transcript_are_marked_for_eye_and_ear(page_of):
    heard = Marked(MARKS, "ended by itself")
    assert heard.errors == 3
    assert str(heard) == "one [two > too] [-three] [+oh]; ended by itself"
    player = Players([PlayerRow("u", [Player("AR", np.zeros(160), 16000, note=heard)])], "P")
    page = page_of(Table(["id", "heard"], [["a", heard], ["b", Marked([])]], "T"), player)
    assert [data for tag, data in page.texts if tag == "del" and data.strip()] == ["two", "three"] * 2
    assert [data for tag, data in page.texts if tag == "ins" and data.strip()] == ["too", "oh"] * 2
    for told in ("said: two", "heard: too", "missing: three", "too many: oh"):
        assert page.text.count(told) == 2
    assert "(nothing)" in page.text and page.text.count("ended by itself") == 2
    table = Table(["id", "heard"], [["a", heard]], "T")
    assert list(csv.reader(io.StringIO(table_csv(table))))[1][1] == str(heard)
    with pytest.raises(ReportError, match="no mark"):
        Marked([["wrong", "a", "b"]])


def test_texts_of_manifests_are_never_markup(page_of, payload):
    listed = [{"id": BAD, "text": f"</td>{BAD}", "marks": [["substitute", BAD, BAD], ["insert", "", BAD]]}]
    data = {"text": f"</script>{BAD}"}
    rows = [row(BAD, BAD, note=BAD), row("b", BAD, 1.0, n=3, unit=BAD, note=BAD)]
    page = page_of(items_table(listed, BAD), results_table(rows, BAD), Download("x.json", data, BAD), Note(BAD))
    assert len(page.all("script")) == 1
    assert page.text.count(BAD) > 8
    (link,) = [a["href"] for a in page.all("a", download="x.json")]
    assert json.loads(payload(link)) == data


# ------------------------------------------------------------------ reconstructions


def test_the_grid_has_original_twin_and_codec_at_every_number_of_codebooks(page_of):
    wav = np.sin(np.arange(1600) / 5).astype(np.float32)
    made = {"twin": {1: wav, 2: wav}, "X-Codec": dict.fromkeys((1, 2, 4, 8), wav)}
    grid = reconstruction_grid("piece", wav, 16000, made, {"twin": 16000, "X-Codec": 16000})
    page = page_of(grid)
    heads = [data for tag, data in page.texts if tag == "th" and data.strip()]
    assert heads == ["original", "twin", "X-Codec", *(f"piece, n_q {n}" for n in (1, 2, 4, 8))]
    assert len(page.all("audio")) == 4 + 2 + 4
    assert len({a["aria-label"] for a in page.all("audio")}) == 10
    assert "has fewer than 4 codebooks" in page.text


# ------------------------------------------------------------------ runs


@pytest.fixture
def write_run(tmp_path):
    """A run folder: `write_run(name, settings, rows)`."""

    def write(name, settings, rows=()):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        (folder / "command.txt").write_text(f"xcodec-lm codec train {name}\n", encoding="utf-8")
        (folder / "env.json").write_text(json.dumps({"python": "3.11", "git": "abc", "versions": {"torch": "2.13"}}))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 9', "utf-8")
        return folder

    return write


def settings(teacher, steps=100):
    return {"semantic": {"teacher": teacher}, "optim": {"steps": steps, "betas": [0.8, 0.99]}, "run": {"seed": 7}}


ROWS = [
    {"step": 1, "mel": 2.0, "bits_q1": 9.0, "bits_q2": 8.0, "lr": 0.1, "n_q": 3},
    {"step": 2, "mel": 1.0, "bits_q1": 7.0, "bits_q2": 6.0, "lr": 0.2, "n_q": 1},
    {"step": 2, "eval/mel": 1.5, "eval/codes_used_1": 20.0, "eval/codes_used_2": 88.0},
]


def test_curves_put_validation_beside_training_and_codebooks_together(write_run):
    charts = {chart.y_label: chart for chart in run_curves({"a": write_run("a", settings("none"), ROWS)})}
    assert list(charts) == ["mel", "bits, training", "lr"]  # what was logged once is no curve, and lr comes last
    assert charts["mel"].series == {"training": [(1, 2.0), (2, 1.0)], "validation": [(2, 1.5)]}
    assert charts["bits, training"].series["codebook 2"] == [(1, 8.0), (2, 6.0)]
    both = run_curves({"X-Codec": ROWS, "twin": ROWS[:2]}, of=["mel"])
    assert list(both[0].series) == ["X-Codec, training", "twin, training", "X-Codec, validation"]
    (bars,) = codebook_use({"a": ROWS})
    assert (bars.groups, bars.series) == (["1", "2"], {"a": [20.0, 88.0]})
    assert dict(last_values({"a": ROWS}).rows)["eval/mel"] == 1.5


def test_the_difference_of_twins_is_the_semantic_path_alone(write_run):
    one, other = write_run("x", settings("hubert")), write_run("t", settings("none"))
    (table,) = config_difference({"X-Codec": one, "twin": other}, twins=True)
    assert table.rows == [["semantic.teacher", "hubert", "none"]]
    assert table.footnote == "The other 3 settings are equal."
    (note,) = config_difference({"a": one, "b": one})
    assert note.text == "a and b have equal configurations (4 settings)."


def test_runs_that_are_no_twins_are_told(write_run):
    one, other = write_run("x", settings("hubert")), write_run("t", settings("none", 200))
    note, table = config_difference({"X-Codec": one, "twin": other}, twins=True)
    assert note.kind == "warning"
    assert "they differ in optim.steps, so" in note.text
    assert {line[0] for line in table.rows} == {"semantic.teacher", "optim.steps"}


def test_presets_are_compared_with_what_their_base_says():
    (table,) = config_difference({name: _preset(name) for name in ("xcodec", "baseline")})
    assert {line[0].split(".")[0] for line in table.rows} == {"semantic"}


def _preset(name):
    from pathlib import Path

    import xcodec_lm.configs

    return Path(xcodec_lm.configs.__file__).parent / "presets" / name / "tiny.yaml"


def test_provenance_names_command_seed_versions_and_hashes(write_run, page_of, tmp_path):
    run = write_run("a", settings("none"), ROWS)
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").write_bytes(b"weights")
    page = page_of(*run_provenance(run))
    for told in ("xcodec-lm codec train a", "7", "2 of 100", "abc", "2.13", DIGEST):
        assert told in page.text
    listed = tmp_path / "list.jsonl"
    listed.write_bytes(b"weights")
    page = page_of(*provenance(["xcodec-lm eval run"], {"list": listed, "gone": tmp_path / "no"}, {"draws": 3}, 75.2))
    for told in ("1 min 15 s", "seed of draws", DIGEST, "cannot be read", "numpy"):
        assert told in page.text


# ------------------------------------------------------------------ pages of many


def comparison():
    figure = {"value": 0.1, "low": 0.05, "high": 0.2}
    difference = {"value": -0.1, "low": -0.2, "high": -0.05, "units": 12, "verdict": "better", "why": "", "needed": ""}
    metric = {
        "name": "wer",
        "label": "WER in %",
        "lower_is_better": True,
        "scale": 100,
        "format": ".1f",
        "primary": True,
    }
    return {
        "task": "tts", "codecs": ["x", "t"], "unit": "speaker", "units": 12, "metrics": [metric],
        "warnings": ["one seed"],
        "rows": [{"codec": c, "system": "model", "figures": {"wer": figure}} for c in ("x", "t")],
        "pairs": [{"a": "x", "b": "t", "metrics": {"wer": difference}, "sentence": "x is better", "needed": ""}],
    }  # fmt: skip


def reproduction():
    metric = {"key": "fd", "head": "FD", "format": ".2f", "best": "min", "stands_for_paper": True}
    return {
        "table": 3, "title": "music", "metrics": [metric, {**metric, "key": "own", "head": "texture"}],
        "rows": [{"system": "x", "part": "", "paper": "X-Codec", "reference": False,
                  "cells": {"fd": {"value": 20.0, "low": 18.0, "high": 22.0, "units": 12}, "own": {"value": None}}}],
        "paper": {"columns": {"fd": "FD"}, "rows": {"X-Codec": {"fd": 12.66}, "baseline": {"fd": 16.17}}},
        "differences": [], "not_comparable": ["the data are synthetic"], "notes": [], "command": "xcodec-lm reproduce",
    }  # fmt: skip


def test_runs_and_results_become_one_page(write_run, tmp_path, read_page, cli):
    run = write_run("a", settings("hubert"), ROWS)
    twin = write_run("b", settings("none"), ROWS)
    sources = [run]
    for name, data in (
        ("compare", comparison()),
        ("table3", reproduction()),
        ("rows", {"title": "Mine", "rows": pair(12, -7, -3), "items": items(), "best": {"errors": "lower"}}),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        sources.append(path)
    out = tmp_path / "all.html"
    code, told, err = cli("report", *sources, "-o", out, "--twins", run, twin)
    assert (code, err) == (0, "") and str(out) in told
    page = read_page(out.read_text(encoding="utf-8"))
    titles = [data for tag, data in page.texts if tag == "h2"]
    assert titles == [
        "X-Codec and its twin", "compare: Verdict", "compare: Figures", "table3: Table 3", "rows: Figures",
        "rows: Every item", "Training: a", "Provenance",
    ]  # fmt: skip
    for word in ("X is better.", "10.0 [5.0, 20.0]", "semantic.teacher", "12.66", "16.17", "this system was not run",
                 "Not comparable with the paper because the data are synthetic.", "xcodec-lm reproduce"):  # fmt: skip
        assert word in page.text
    assert {a["download"] for a in page.all("a") if "download" in a} >= {"compare.json", "table3.json", "rows.json"}


@pytest.mark.parametrize(
    "write, message",
    [
        (None, "does not exist"),
        ("{", "cannot read"),
        ("[1]", "no result that report knows"),
        ('{"a": 1}', "it holds: a"),
        ('{"rows": [{"metric": "WER"}]}', "has no system"),
        ('{"pairs": [], "metrics": [], "rows": [{}], "codecs": []}', "without what belongs to it"),
    ],
)
def test_what_is_no_result_is_refused_by_name(cli, tmp_path, write, message):
    path = tmp_path / "x.json"
    if write is not None:
        path.write_text(write, encoding="utf-8")
    code, _, err = cli("report", path, "-o", tmp_path / "r.html")
    assert code == 1 and message in err and "hint:" in err
    assert not (tmp_path / "r.html").exists()


def test_the_command_needs_something_to_report(cli, tmp_path):
    code, _, err = cli("report", "-o", tmp_path / "r.html")
    assert code == 2 and "report needs" in err
    (tmp_path / "empty").mkdir()
    code, _, err = cli("report", tmp_path / "empty", "-o", tmp_path / "r.html")
    assert code == 1 and "holds neither a run nor a result" in err
    with pytest.raises(XcodecLMError, match="cannot read"):
        collect([], twins=(tmp_path / "empty", tmp_path / "empty"))
