"""A report in a real browser: no errors, no connections, players that play, tables that sort, every width and theme.

Needs Chromium (Debian: `apt-get install chromium`) and `pip install playwright`; without them it is skipped. With
XCODEC_LM_SHOTS=FOLDER it leaves pictures of the page there.
"""
# pyright: reportMissingImports=false

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from xcodec_lm.tasks.report import (
    Bars,
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
    items_table,
    paper_table,
    reconstruction_grid,
    render,
    verdict_table,
)

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
RATE = 16_000
PATIENCE_MS = 300_000
"""A machine that is busy takes its time."""
BAD = '</script><script>document.title = "taken over"</script>'
WORDS = ["one", "two", "three", "four"]


def sound(hz):
    time = np.arange(RATE) / RATE
    return (0.3 * np.sin(2 * np.pi * hz * time) * np.exp(-2 * time)).astype(np.float32)


def transcript(errors):
    return [["substitute", word, "too"] if i < errors else ["equal", word, word] for i, word in enumerate(WORDS)]


def whole_report():
    wav = sound(440)
    made = {"twin": dict.fromkeys((1, 2, 4, 8), sound(330)), "X-Codec": dict.fromkeys((1, 2, 4, 8), sound(550))}
    rows = [
        {"system": s, "metric": "WER in %", "value": v, "low": v - 2, "high": v + 2, "n": 12, "unit": "speakers",
         "direction": "lower", "paper": paper, "note": "the data differ" if paper else ""}
        for s, v, paper in (("ours", 12.0, 3.26), ("twin", 18.0, 7.70), ("difference", -6.0, None))
    ]  # fmt: skip
    items = [
        {"id": f"utterance-{i:02d}-with-a-long-name", "errors": (7 * i) % 5, "SIM-O": (11 * i) % 17 / 17,
         "heard": transcript((7 * i) % 5)}
        for i in range(25)
    ] + [{"id": BAD, "errors": None, "SIM-O": None, "heard": [["substitute", BAD, BAD]]}]  # fmt: skip
    best = {"errors": "lower", "SIM-O": "higher"}
    printed = {"baseline": {"FD": 16.17, "FAD": 1.43}, "X-Codec": {"FD": 12.66, "FAD": 1.37}}
    wide = [Column(f"measure {i}", ".2f", "min") for i in range(12)]
    figures = [["a system", *[Measure(float(i), i - 0.5, i + 0.5) for i in range(12)]], ["another", *[Empty("x")] * 12]]
    return Report(
        "A report for the browser",
        [
            Section("Verdict", [Note("Take care.", "warning"), verdict_table(rows)]),
            Section("Tables", [paper_table(3, [], printed, "music"), Table(["system", *wide], figures, "Wide")]),
            Section("Listening", [reconstruction_grid("piece", wav, RATE, made, {"twin": RATE, "X-Codec": RATE})]),
            Section("Items", [items_table(items, "Every item", best, None, "errors")]),
            Section(
                "Training",
                [Curves({"loss": [(1, 2.0), (9, 1.0)]}, "step", "loss", "Loss"),
                 Bars(["1", "2"], {"X-Codec": [5, 6]}, "codebook", "codes", "Use", 8.0)],
            ),
        ],
        provenance=[
            Commands([f"xcodec-lm report {'a-very-long-word/' * 20}"], "Commands"),
            KeyValues({"fingerprint": "0123456789abcdef" * 8}, "Conditions"),
            Download("results.json", {"text": BAD}),
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return render(whole_report(), tmp_path_factory.mktemp("browser") / "report.html")


@pytest.fixture
def visit(browser, file):
    """Opens the page: `page = visit(width=1280, scheme="light")`; what it must not do is checked at the end."""
    contexts, wrong = [], []

    def open_page(width=1280, height=900, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("data:", file.as_uri())) else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_every_width_and_theme(visit, width, scheme):
    page = visit(width, scheme=scheme)
    assert page.title() == "A report for the browser"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    bright = [sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) for colour in (paper, ink)]
    assert (bright[0] > bright[1]) == (scheme == "light") and abs(bright[0] - bright[1]) > 450
    if folder := os.environ.get("XCODEC_LM_SHOTS"):
        page.screenshot(path=Path(folder) / f"report-{width}-{scheme}.png", full_page=True)


def test_players_load_play_and_stop_each_other(visit):
    page = visit()
    assert page.evaluate("[...document.querySelectorAll('audio')].every(a => a.preload === 'none')")
    for place in (0, 5):
        page.evaluate("n => document.querySelectorAll('audio')[n].play()", place)  # rejects where it cannot play
        page.wait_for_function("n => document.querySelectorAll('audio')[n].currentTime > 0.05", arg=place)
        playing = page.evaluate("[...document.querySelectorAll('audio')].map(a => !a.paused)")
        assert [index for index, plays in enumerate(playing) if plays] == [place]
    durations = page.evaluate("[0, 5].map(n => document.querySelectorAll('audio')[n].duration)")
    assert durations == pytest.approx([1.0, 1.0], abs=0.05)
    button = page.locator(".player").nth(5).locator("button")
    assert button.get_attribute("aria-label").startswith("Pause")
    button.focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.querySelectorAll('audio')[5].paused")
    assert button.get_attribute("aria-label").startswith("Play")


def test_loudness_is_matched_until_it_is_switched_off(visit):
    page = visit()
    volumes = "[...document.querySelectorAll('audio')].slice(0, 3).map(a => a.volume)"
    assert page.evaluate("document.getElementById('match-loudness').checked")
    page.get_by_label("Match loudness").uncheck()
    assert page.evaluate(volumes) == [1, 1, 1]


def visible(page, place):
    return page.evaluate(
        "n => [...document.querySelectorAll('figure.sortable tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[n].textContent.trim())",
        place,
    )


def test_tables_start_with_the_worst_ten_and_sort_by_click_and_key(visit):
    page = visit()
    table = page.locator("figure.sortable")
    chosen = table.locator("select")
    assert chosen.evaluate("s => s.selectedOptions[0].textContent") == "the 10 worst by errors"
    assert visible(page, 1) == ["4"] * 5 + ["3"] * 5
    chosen.select_option(label="the 10 worst by SIM-O")
    worst = [float(text) for text in visible(page, 2)]
    assert worst == sorted(worst) and len(worst) == 10
    chosen.select_option("")
    assert len(visible(page, 0)) == 26
    assert table.locator("[role=status]").inner_text() == "all 26 rows, in their own order"
    head = table.locator("th[scope=col]").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert visible(page, 1)[:6] == ["0"] * 5 + ["1"] and visible(page, 1)[-1].startswith("–")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert visible(page, 1)[0] == "4" and visible(page, 1)[-1].startswith("–")  # gaps stay last
    assert "by errors, descending" in table.locator("[role=status]").inner_text()
    heard = table.locator("th[scope=col]").nth(3)
    heard.locator("button").click()
    assert heard.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") is None
    assert "too" not in visible(page, 3)[0]  # sorted by errors, not by letter


def test_files_can_be_taken_out_of_the_page_and_hold_what_was_given(visit):
    page = visit()
    with page.expect_download() as waiting:
        page.locator("a[download='results.json']").click()
    text = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert "</script><script>document.title" in text
    assert page.title() == "A report for the browser"


def test_everything_that_can_be_used_has_a_name_and_shows_its_focus(visit):
    page = visit()
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, a[href], audio, [role=region], table')].filter(e =>"
        " !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim()"
        " || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_it_reads_and_plays_without_its_script_and_prints(browser, file, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("figure.sortable tbody tr").count() == 26
    assert page.locator("audio[controls]").first.is_visible()
    assert not page.locator(".choice").first.is_visible()
    assert page.pdf(path=str(tmp_path / "report.pdf"), format="A4")[:4] == b"%PDF"
    context.close()
