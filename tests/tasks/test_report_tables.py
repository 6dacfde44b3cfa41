"""Tables, figures and downloads of reports: numbers, intervals, gaps, best cells, what a file holds."""

import csv
import io
import json

import pytest

from xcodec_lm.tasks.report import (
    Bars,
    Column,
    Curves,
    Download,
    Empty,
    Measure,
    ReportError,
    Table,
)
from xcodec_lm.tasks.report.tables import best_rows, format_interval, format_number, table_csv, table_json

NAN = float("nan")


def test_best_cells_are_marked_by_their_columns_rule(page_of):
    rows = [["a", 0.50, 1.0], ["b", 0.30, 3.0], ["c", Measure(0.301), NAN], ["original", 0.0, 9.0]]
    table = Table(["m", Column("low", ".2f", "min"), Column("high", ".1f", "max")], rows, "T", references=[3])
    assert best_rows(table) == {1: {1, 2}, 2: {1}}
    page = page_of(table)
    marked = [a for tag, a in page.elements if tag == "td" and "best" in a.get("class", "").split()]
    assert [a["data-value"] for a in marked] == ["0.3", "3.0", "0.301"]
    assert "Bold: best of the column." in page.text
    assert "lower is better" in page.text and "higher is better" in page.text


def test_no_cell_is_best_without_a_contest():
    column = Column("x", ".1f", "min")
    assert best_rows(Table(["m", column], [["a", 1.0]], "one")) == {}
    assert best_rows(Table(["m", column], [["a", 1.0], ["b", None]], "one number")) == {}
    assert best_rows(Table(["m", column], [["a", 1.01], ["b", 1.02]], "alike in their format")) == {}
    assert best_rows(Table(["m", Column("x")], [["a", 1.0], ["b", 2.0]], "no rule")) == {}


@pytest.mark.parametrize(
    "value, spec, text",
    [(0.12345, ".3f", "0.123"), (-0.5, ".1f", "−0.5"), (7, "", "7"), (0.123456, "", "0.1235"), (12, ".1f", "12.0")],
)
def test_numbers_keep_their_format(value, spec, text):
    assert format_number(value, spec) == text


def test_intervals_are_shown_in_the_format_of_the_column(page_of):
    assert format_interval(Measure(0.5, -0.25, 0.75), ".2f") == "[−0.25, 0.75]"
    assert format_interval(Measure(0.5), ".2f") == format_interval(0.5) == format_interval(Measure(1.0, NAN, 2.0)) == ""
    assert (
        "0.50 [−0.25, 0.75]" in page_of(Table(["m", Column("x", ".2f")], [["a", Measure(0.5, -0.25, 0.75)]], "T")).text
    )
    with pytest.raises(ReportError, match="one end only"):
        Measure(0.5, low=0.1)


def test_gaps_are_explained_once_each(page_of):
    rows = [["a", Empty("not run"), 1.0], ["b", Empty("not run"), Empty("other data")], ["c", None, NAN]]
    page = page_of(Table(["m", "x", "y"], rows, "T"))
    below = [data for tag, data in page.texts if tag == "p"]
    assert sum("not run" in data for data in below) == sum("other data" in data for data in below) == 1
    assert "the result is not a finite number" in page.text
    assert [data for tag, data in page.texts if tag == "sup"] == ["a", "a", "b", "c", "a", "b", "c"]
    assert "nan" not in page.text.lower().split()


def test_tables_have_scoped_heads_and_numbers_flush_right(page_of):
    page = page_of(Table(["model", "n"], [["a", 1], ["b", 2]], "T", sortable=True))
    assert [a["scope"] for a in page.all("th")] == ["col", "col", "row", "row"]
    assert [a["class"] for a in page.all("td")] == ["number", "number"]
    assert page.all("table")[0]["class"] == "data sortable"


def test_rows_must_fit_the_columns():
    with pytest.raises(ReportError, match="row 1 has 1 cells, there are 2 columns"):
        Table(["a", "b"], [[1, 2], [1]], "T")
    with pytest.raises(ReportError, match="'s' has 1 values, there are 2 groups"):
        Bars(["1", "2"], {"s": [1]}, "x", "y", "B")


def test_tables_can_be_downloaded_with_all_their_digits(page_of, payload):
    table = Table(
        ["m", Column("x", ".1f"), "y"], [["a, b", Measure(1 / 3, 0.1, 0.5), 2], ["c", Empty("why"), NAN]], "My table"
    )
    assert list(csv.reader(io.StringIO(table_csv(table)))) == [
        ["m", "x", "x low", "x high", "y"],
        ["a, b", str(1 / 3), "0.1", "0.5", "2"],
        ["c", "", "", "", ""],
    ]
    data = json.loads(table_json(table))
    assert data["rows"][0] == ["a, b", {"value": 1 / 3, "low": 0.1, "high": 0.5}, 2]
    assert data["rows"][1][1] == {"value": None, "reason": "why"}
    links = {a["download"]: payload(a["href"]).decode() for a in page_of(table).all("a") if "download" in a}
    assert links == {"my-table.csv": table_csv(table), "my-table.json": table_json(table)}


def test_downloads_hold_what_was_given(page_of, payload):
    page = page_of(
        Download("a.json", {"x": [1, NAN], "y": "é"}),
        Download("b.csv", [("x", "y"), (1, NAN)]),
        Download("c.yaml", "k: 1\n"),
    )
    files = {a["download"]: payload(a["href"]).decode() for a in page.all("a") if "download" in a}
    assert json.loads(files["a.json"]) == {"x": [1, None], "y": "é"}
    assert files["b.csv"] == "x,y\n1,\n"
    assert files["c.yaml"] == "k: 1\n"


def test_points_left_out_of_a_figure_are_counted_below_it(page_of):
    page = page_of(Curves({"loss": [(0, 1.0), (1, NAN), (2, 0.0)]}, "step", "loss", "L", log_y=True))
    assert "loss: 2 of 3 values not drawn (not finite or not positive)." in page.text
