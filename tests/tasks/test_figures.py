import math
import re
import struct
import zlib
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm.tasks.report.figures import bars_svg, curves_svg, format_tick, log_ticks, nice_ticks, undrawable
from xcodec_lm.tasks.report.spectrogram import indexed_png, mel_decibels, mel_filters, palette, spectrogram_png

NAN, INF = float("nan"), float("inf")
ATTRIBUTES_WITH_TEXT = {"aria-label", "class", "role", "fill", "stroke", "text-anchor"}


def parse(svg):
    return ElementTree.fromstring(svg)


def assert_finite_inside(svg):
    """Every coordinate is a finite number, and lies within the picture."""
    root = parse(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ATTRIBUTES_WITH_TEXT:
                continue
            assert not re.search("nan|inf", value, re.I), (element.tag, name, value)
            for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", value):
                assert -90 <= float(number) <= max(width, height) + 1, (element.tag, name, value)


def paths(svg, index):
    return [
        e.attrib["d"]
        for e in parse(svg).iter("path")
        if e.get("class") == f"series-{index}" and "h26" not in e.attrib["d"]
    ]


ordinary = st.floats(-1e12, 1e12)


@given(ordinary, st.floats(1e-6, 1e12), st.integers(2, 12))
def test_nice_ticks_are_round_even_and_inside(low, width, count):
    high = low + max(width, 1e-6 * abs(low))
    ticks = nice_ticks(low, high, count)
    steps = [b - a for a, b in pairwise(ticks)]
    slack = 1e-6 * (high - low)
    assert 2 <= len(ticks) <= 2.5 * count + 1
    assert low - slack <= ticks[0] and ticks[-1] <= high + slack
    assert min(steps) > 0 and max(steps) - min(steps) <= 1e-3 * max(steps)
    leading = max(steps) / 10 ** math.floor(math.log10(max(steps)) + 1e-6)
    assert min(abs(leading - round_step) for round_step in (1, 2, 5)) < 1e-2


def test_nice_ticks_of_a_familiar_range():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(-3, 1497, 7) == [0, 200, 400, 600, 800, 1000, 1200, 1400]


@given(st.floats(1e-8, 1e8), st.floats(1.01, 1e9))
def test_log_ticks_are_increasing_and_inside(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert len(ticks) >= 2
    assert all(a < b for a, b in pairwise(ticks))
    assert low * (1 - 1e-6) <= ticks[0] and ticks[-1] <= low * ratio * (1 + 1e-6)


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (1500, "1,500"),
        (0.30000000000000004, "0.3"),
        (-2.5, "−2.5"),
        (2e-5, "2e-5"),
        (-1e9, "−1e9"),
        (1024, "1,024"),
    ],
)
def test_numbers_on_axes_are_short(value, text):
    assert format_tick(value) == text


def test_close_marks_keep_the_digits_that_tell_them_apart():
    svg = curves_svg({"a": [(0, 1000.0001), (1, 1000.0005)]}, "x", "y")
    texts = [e.text for e in parse(svg).iter("text") if e.get("text-anchor") == "end"]
    assert len(texts) >= 3
    assert len(set(texts)) == len(texts)


any_number = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 5).map(float)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.tuples(any_number, any_number), max_size=6), max_size=3), st.booleans())
def test_curves_hold_finite_numbers_whatever_comes(lists, log_y):
    series = {f"series {index}": points for index, points in enumerate(lists)}
    svg = curves_svg(series, "step", "loss", log_y, "t")
    drawable = sum(len(points) - undrawable(points, log_y) for points in lists)
    assert bool(svg) == (drawable > 0)
    if svg:
        assert_finite_inside(svg)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.none() | any_number, min_size=3, max_size=3), min_size=1, max_size=3), st.none() | any_number
)
def test_bars_hold_finite_numbers_whatever_comes(lists, ceiling):
    svg = bars_svg(["1", "2", "3"], {str(i): values for i, values in enumerate(lists)}, "layer", "codes", ceiling, "t")
    if svg:
        assert_finite_inside(svg)


def test_points_that_are_not_finite_break_the_line_and_are_counted():
    points = [(0, 1.0), (1, 2.0), (2, NAN), (3, 3.0), (4, 4.0)]
    assert len(paths(curves_svg({"a": points}, "x", "y"), 0)) == 2
    assert undrawable(points) == 1
    assert undrawable([(0, 0.0), (1, -1.0), (2, INF), (3, 1.0)], log_y=True) == 3


def test_a_single_point_is_a_circle():
    svg = curves_svg({"a": [(3, 5.0)]}, "x", "y")
    assert [e.get("class") for e in parse(svg).iter("circle")] == ["series-0"]


def test_larger_values_stand_higher_and_later_ones_further_right():
    (path,) = paths(curves_svg({"a": [(0, 1.0), (10, 100.0)]}, "x", "y", log_y=True), 0)
    (x0, y0), (x1, y1) = [map(float, point.split()) for point in path[1:].split("L")]
    assert x1 > x0 and y1 < y0


def test_series_differ_in_colour_and_dash_and_are_named():
    svg = curves_svg({name: [(0, 1.0), (1, 2.0)] for name in ("train", "validation <1>")}, "x", "y")
    lines = [e for e in parse(svg).iter("path") if (e.get("class") or "").startswith("series")]
    assert len({(e.get("stroke"), e.get("stroke-dasharray")) for e in lines}) == 2
    assert len({e.get("stroke") for e in lines}) == len({e.get("stroke-dasharray") for e in lines}) == 2
    assert "validation <1>" in [e.text for e in parse(svg).iter("text")]


def test_long_lines_are_thinned_but_keep_their_spikes():
    points = [(i, 0.0) for i in range(20_000)]
    points[12_345] = (12_345, 7.0)
    (path,) = paths(curves_svg({"a": points}, "x", "y"), 0)
    heights = [float(point.split()[1]) for point in path[1:].split("L")]
    assert len(heights) < 700
    assert heights.count(min(heights)) == 1 and min(heights) < max(heights) - 200


def test_screen_readers_are_told_the_course_of_a_line():
    label = parse(curves_svg({"loss": [(0, 5.0), (5, 0.5), (9, 1.0)]}, "x", "y", title="Training")).attrib["aria-label"]
    assert "Training" in label
    assert "loss from 5 at 0 to 1 at 9, least 0.5" in label


def test_bars_stand_in_proportion():
    svg = bars_svg(["1", "2"], {"a": [100, 50]}, "layer", "codes", ceiling=128)
    tall, short = [float(e.attrib["height"]) for e in parse(svg).iter("rect")]
    assert tall == pytest.approx(2 * short, abs=0.2)
    assert len([e for e in parse(svg).iter("path") if e.get("class") == "ceiling"]) == 1


def chunks(png):
    assert png[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    place, found = 8, {}
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        name, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size : place + 12 + size])[0] == zlib.crc32(name + data)
        found[name] = data
        place += 12 + size
    return found


def decode(png):
    """(H, W) palette indices, and the (P, 3) palette."""
    found = chunks(png)
    width, height, depth, kind, *_ = struct.unpack(">IIBBBBB", found[b"IHDR"])
    assert (depth, kind) == (8, 3)
    assert list(found)[-1] == b"IEND"
    raw = zlib.decompress(found[b"IDAT"])
    assert len(raw) == height * (width + 1)
    rows = np.frombuffer(raw, np.uint8).reshape(height, width + 1)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:], np.frombuffer(found[b"PLTE"], np.uint8).reshape(-1, 3)


def test_png_holds_the_indices_and_the_palette():
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colours = np.arange(36, dtype=np.uint8).reshape(12, 3)
    got_indices, got_colours = decode(indexed_png(indices, colours))
    assert (got_indices == indices).all()
    assert (got_colours == colours).all()


def test_spectrogram_has_low_bands_at_the_bottom_and_loud_ones_light():
    decibels = np.full((10, 6), -100.0)
    decibels[0, :] = 0.0
    indices, colours = decode(spectrogram_png(decibels, top_db=0))
    assert (indices[-1] == 63).all() and (indices[:-1] == 0).all()
    assert colours[63].sum() > colours[0].sum()


def test_spectrogram_veils_the_prompt_only():
    decibels = np.random.default_rng(0).uniform(-80, 0, (5, 20))
    plain, _ = decode(spectrogram_png(decibels, 0))
    veiled, _ = decode(spectrogram_png(decibels, 0, shaded=0.25))
    assert (veiled[:, :5] == plain[:, :5] + 64).all()
    assert (veiled[:, 5] == 128).all()
    assert (veiled[:, 6:] == plain[:, 6:]).all()


def test_spectrogram_that_is_all_prompt_is_veiled_throughout():
    veiled, _ = decode(spectrogram_png(np.zeros((3, 4)), 0, shaded=1.0))
    assert (veiled == 127).all()


def test_lightness_of_the_palette_only_rises():
    light = palette()[:64] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()
    steps = np.diff(light)
    assert steps.max() < 4 * steps.mean()


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_sine_shows_in_its_band_at_its_level(rate):
    hz = 1000.0
    wav = 0.5 * np.sin(2 * np.pi * hz * np.arange(rate) / rate)
    decibels = mel_decibels(wav, rate, max_hz=4000)
    middle = decibels[:, decibels.shape[1] // 2]
    centres = np.linspace(0, 2595 * math.log10(1 + 4000 / 700), 82)[1:-1]
    expected = int(np.abs(centres - 2595 * math.log10(1 + hz / 700)).argmin())
    assert abs(int(middle.argmax()) - expected) <= 1
    assert middle.max() == pytest.approx(20 * math.log10(0.5), abs=3)


def test_bands_above_half_the_rate_are_empty():
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
    decibels = mel_decibels(wav, 8000, max_hz=8000)
    assert decibels[-10:].max() < -100
    assert decibels[:40].max() > -60


@pytest.mark.parametrize("samples", [1, 2, 100, 16000, 160_000])
def test_spectrogram_of_any_length_is_finite_and_no_wider_than_asked(samples):
    decibels = mel_decibels(np.zeros(samples, np.float32), 16000, columns=50)
    assert decibels.shape[0] == 80
    assert 1 <= decibels.shape[1] <= 50
    assert np.isfinite(decibels).all()


def test_mel_filters_cover_every_band():
    filters = mel_filters(1024, 16000, 80, 8000)
    assert filters.shape == (80, 513)
    assert (filters.sum(axis=1) > 0).all()
    assert filters.min() >= 0 and filters.max() <= 1
