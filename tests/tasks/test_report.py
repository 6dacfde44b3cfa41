"""Reports as pages: whole, self-contained and safe; players of recordings; files."""

import base64
import hashlib
import io
import re
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.report import (
    Bars,
    Column,
    Commands,
    Curves,
    Download,
    Empty,
    KeyValues,
    Measure,
    NoPlayer,
    Note,
    Player,
    PlayerRow,
    Players,
    Report,
    ReportError,
    Section,
    Table,
    Text,
    render,
    render_html,
)
from xcodec_lm.tasks.report.audio_embed import encode_audio, matched_gains

NAN = float("nan")


def tone(seconds, rate=16000, level=0.3, hz=440):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def one_row(*items, head="piece"):
    return Players([PlayerRow(head, items)], "Pieces")


EVERYTHING = Report(
    "Title",
    [
        Section(
            "First",
            [
                Text("One.\n\nTwo."),
                Note("Careful.", "warning"),
                Table(
                    ["Model", Column("CE", ".2f", "min")], [["a", Measure(1.0, 0.5, 1.5)], ["b", Empty("not run")]], "T"
                ),
                one_row(Player("original", tone(0.5), 16000), NoPlayer("continuation", "none was made")),
            ],
            intro="An introduction.",
        ),
        Section(
            "Second",
            [
                Curves({"train": [(0, 1.0), (1, 0.5)]}, "step", "loss", "Loss"),
                Bars(["1", "2"], {"codes": [3, 4]}, "layer", "codes", "Use"),
                Download("results.json", {"a": [1, NAN]}),
            ],
        ),
    ],
    "Subtitle",
    [KeyValues({"git": "abc", "gpu": None}, "Environment"), Commands(["xcodec-lm demo"])],
)


def test_the_page_is_well_formed_and_every_section_is_linked(read_page):
    page = read_page(render_html(EVERYTHING))
    links = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#section")]
    assert links == [h["id"] for h in page.all("h2")]
    assert len(links) == 3
    for word in ("An introduction.", "Two.", "Careful.", "not run", "none was made", "not recorded", "Provenance"):
        assert word in page.text
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    named = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert named and set(named) <= set(ids)


@pytest.mark.parametrize(
    "report",
    [
        Report("Empty", []),
        Report("Empty", [Section("s", [])]),
        Report(
            "Empty",
            [
                Section(
                    "s",
                    [
                        Text(""),
                        Table(["a"], [], "no rows"),
                        Players([], "no rows"),
                        Players([PlayerRow("head", [])], "no items"),
                        Curves({}, "x", "y", "no series"),
                        Curves({"a": [(0, NAN)]}, "x", "y", "no points"),
                        Bars([], {}, "x", "y", "no groups"),
                        Bars(["1"], {"a": [None]}, "x", "y", "no values"),
                        KeyValues({}),
                        Commands([]),
                    ],
                )
            ],
        ),
    ],
)
def test_reports_with_nothing_in_them_are_pages(read_page, report):
    page = read_page(render_html(report))
    assert "Empty" in page.text
    assert not page.all("svg") and not page.all("audio")


def test_nothing_is_loaded_from_anywhere(read_page):
    text = render_html(EVERYTHING)
    page = read_page(text)
    sources = [a[k] for _, a in page.elements for k in ("src", "href", "srcset", "poster", "action", "data") if k in a]
    assert len(sources) > 5
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "http://" not in text and "https://" not in text
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", text)
    assert not page.all("iframe") and not page.all("object")


def test_addresses_stay_plain_text(page_of):
    page = page_of(KeyValues({"source": "https://example.org/paper"}))
    assert "https://example.org/paper" in page.text
    assert not [a for _, a in page.elements for value in a.values() if value and "example.org" in value]


def test_the_page_forbids_connections_and_scripts_that_are_not_its_own(read_page):
    text = render_html(EVERYTHING)
    (policy,) = [m["content"] for m in read_page(text).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["media-src"] == rules["img-src"] == "data:"


def test_markup_in_any_text_is_text(read_page):
    bad = "\"><script>alert(1)</script>'&amp;"
    report = Report(
        bad,
        [
            Section(
                bad,
                [
                    Text(bad),
                    Note(bad),
                    Table([bad, Column(bad)], [[bad, Empty(bad)]], bad, bad),
                    Players(
                        [PlayerRow(bad, [Player(bad, tone(0.1), 16000, note=bad), NoPlayer(bad + "2", bad)], bad)], bad
                    ),
                    Curves({bad: [(0, 1.0), (1, 2.0)]}, bad, bad, bad),
                    Bars([bad], {bad: [1.0], bad + "2": [2.0]}, bad, bad, bad),
                    KeyValues({bad: bad}, bad),
                    Commands([bad], bad),
                    Download("x.txt", bad, bad),
                ],
                bad,
            )
        ],
        bad,
        [Text(bad)],
    )
    text = render_html(report)
    page = read_page(text)
    assert len(page.all("script")) == 1
    assert "<script>alert" not in text
    assert page.text.count(bad) > 20
    assert page.all("audio")[0]["aria-label"] == f"{bad}, {bad}"


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 32000, 44100, 48000])
def test_players_hold_audio_of_the_right_length_and_rate(page_of, payload, rate):
    wav = tone(1.3, rate)
    page = page_of(one_row(Player("original", wav, rate, spectrogram=False)))
    (audio,) = page.all("audio")
    assert audio["preload"] == "none" and "controls" in audio
    decoded, got_rate = sf.read(io.BytesIO(payload(audio["src"])))
    assert got_rate == rate
    assert abs(len(decoded) - len(wav)) <= 0.01 * rate
    size = min(len(decoded), len(wav))
    error = np.square(decoded[:size] - wav[:size]).mean() / np.square(wav).mean()
    assert error < 0.02


def test_audio_is_wav_where_no_compressed_format_can_be_written():
    wav = tone(0.1, 16000)
    data, mime = encode_audio(wav, 16000, subtypes=("NO_SUCH_FORMAT",))
    decoded, _ = sf.read(io.BytesIO(data))
    assert mime == "audio/wav"
    assert np.abs(decoded - wav).max() < 1e-4


def test_ten_minutes_are_embedded_whole():
    rate = 11025  # a rate of Vorbis, whose writer cannot take minutes in one call
    data, mime = encode_audio(np.zeros(600 * rate, np.float32), rate)
    assert "vorbis" in mime
    assert sf.info(io.BytesIO(data)).frames == 600 * rate


def test_one_sample_can_be_played(page_of, payload):
    page = page_of(one_row(Player("x", [0.5], 16000)))
    assert len(sf.read(io.BytesIO(payload(page.all("audio")[0]["src"])))[0]) == 1


def test_tensors_with_axes_of_size_one_are_taken_and_several_channels_refused(page_of):
    page = page_of(one_row(Player("x", torch.from_numpy(tone(0.5))[None, None], 16000)))
    assert len(page.all("audio")) == 1
    with pytest.raises(ReportError, match=r"'x' of 'piece'.*\(2, 8000\)"):
        page_of(one_row(Player("x", np.zeros((2, 8000)), 16000)))


@pytest.mark.parametrize(
    "wav, reason",
    [(np.zeros(0), "no samples"), (np.array([0.0, NAN, np.inf]), "2 of 3 samples are not finite numbers")],
)
def test_what_cannot_be_played_is_said_in_its_place(page_of, wav, reason):
    page = page_of(one_row(Player("broken", wav, 16000), Player("whole", tone(0.2), 16000)))
    assert reason in page.text
    assert [audio["aria-label"] for audio in page.all("audio")] == ["whole, piece"]


def test_a_player_needs_a_sample_rate():
    with pytest.raises(ReportError, match="'x' has a sample rate of 0 Hz"):
        Player("x", [0.5], 0)


def test_clipping_is_told(page_of):
    assert "3 samples clipped" in page_of(one_row(Player("x", [0.1, 1.2, -1.3, 2.0], 16000))).text


def test_grid_puts_items_of_one_label_into_one_column(page_of):
    rows = [
        PlayerRow("first", [Player("original", tone(0.2), 16000), Player("n_q 1", tone(0.2), 16000)]),
        PlayerRow("second", [Player("n_q 1", tone(0.2), 16000)]),
    ]
    page = page_of(Players(rows, "Grid"))
    assert [data for tag, data in page.texts if tag == "th" and data.strip()] == [
        "original",
        "n_q 1",
        "first",
        "second",
    ]
    assert [a["scope"] for a in page.all("th")] == ["col", "col", "row", "row"]
    assert [a["aria-label"] for a in page.all("audio")] == ["original, first", "n_q 1, first", "n_q 1, second"]
    assert page.text.count("not made") == 1
    with pytest.raises(ReportError, match="several items labelled 'a'"):
        PlayerRow("row", [NoPlayer("a", ""), NoPlayer("a", "")])


def test_spectrograms_of_a_row_share_the_time_axis_and_say_what_is_veiled(page_of, payload):
    page = page_of(one_row(Player("prompt", tone(1), 16000), Player("continuation", tone(4), 16000, shade_until_s=1.0)))
    widths = [a["style"] for a in page.all("div", **{"class": "spectrogram"})]
    assert widths == ["width:25.00%", "width:100.00%"]
    alts = [image["alt"] for image in page.all("img")]
    assert alts == [
        "Spectrogram of prompt, piece, 1.0 seconds",
        "Spectrogram of continuation, piece, 4.0 seconds, the first 1.0 of them veiled as the prompt",
    ]
    assert all(payload(image["src"])[:4] == b"\x89PNG" for image in page.all("img"))


def test_players_without_spectrogram_have_none(page_of):
    assert not page_of(one_row(Player("x", tone(0.2), 16000, spectrogram=False))).all("img")


def test_every_control_has_a_name(page_of):
    page = page_of(one_row(Player("original", tone(0.2), 16000)))
    assert page.all("button")[0]["aria-label"] == "Play original, piece"
    assert [i["aria-label"] for i in page.all("input", type="range")] == ["Position in original, piece"]
    assert all(image["alt"] for image in page.all("img"))


def test_twenty_players_of_six_seconds_fit_three_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    noisy = [(tone(6, hz=200 + 50 * i) + 0.05 * rng.standard_normal(96000)).astype(np.float32) for i in range(20)]
    rows = [PlayerRow(str(i), [Player(str(j), noisy[5 * i + j], 16000) for j in range(5)]) for i in range(4)]
    path = render(Report("Sizes", [Section("s", [Players(rows, "p")])]), tmp_path / "report.html")
    assert path.stat().st_size < 3_000_000


@given(st.lists(st.floats(0, 1), max_size=6))
def test_gains_only_lower_and_never_below_the_limit(levels):
    gains = matched_gains(levels)
    assert len(gains) == len(levels)
    assert all(0.25 <= gain <= 1 for gain in gains)


def test_gains_make_audible_recordings_equally_loud_and_leave_silence_out(page_of):
    assert matched_gains([0.2, 0.1, 0.0]) == pytest.approx([0.5, 1.0, 1.0])
    page = page_of(one_row(Player("loud", tone(0.2, level=0.4), 16000), Player("soft", tone(0.2, level=0.2), 16000)))
    gains = [float(a["data-gain"]) for a in page.all("div", **{"class": "player"})]
    assert gains == pytest.approx([0.5, 1.0], abs=2e-3)


def test_tables_and_figures_are_numbered_in_order(read_page):
    page = read_page(render_html(EVERYTHING))
    assert re.findall(r"(?:Table|Figure) \d+\.", page.text) == [
        "Table 1.",
        "Figure 1.",
        "Figure 2.",
        "Figure 3.",
    ]


def test_a_file_is_written_whole_or_left_as_it_was(read_page, tmp_path):
    path = tmp_path / "report.html"
    assert render(EVERYTHING, path) == path
    before = path.read_text(encoding="utf-8")
    assert before.endswith("</html>") and read_page(before).all("h1")
    not_a_block: Any = {}
    with pytest.raises(ReportError, match="dict is not a block"):
        render(Report("Bad", [Section("s", [not_a_block])]), path)
    assert path.read_text(encoding="utf-8") == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(XcodecLMError, match=r"cannot write .*none.report\.html.*\n.*hint: choose"):
        render(EVERYTHING, tmp_path / "none" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(XcodecLMError, match="cannot write"):
        render(EVERYTHING, tmp_path / "folder.html")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.html"]
