import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.feedback.report.plots import bar_plot, line_plot, nice_ticks, png_data_uri, tick_labels
from vlm_rlaif.feedback.stats.estimates import Estimate, clustered_mean

SVG = "{http://www.w3.org/2000/svg}"
EMPTY = Estimate(value=None, low=None, high=None, n=0, clusters=0, missing=7)


def lines(series, **sizes) -> ET.Element:
    return ET.fromstring(line_plot("t", series, x_label="step", y_label="reward", **sizes))


def bars(*shown: tuple[str, Estimate], **sizes) -> ET.Element:
    return ET.fromstring(bar_plot("t", shown, y_label="accuracy (%)", **sizes))


def words(svg: ET.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def numbers(element: ET.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


def estimate(value: float, low: float, high: float, unit: str = "fraction") -> Estimate:
    return Estimate(value=value, low=low, high=high, n=40, clusters=10, unit=unit)


def test_a_line_plot_names_its_axes_and_series():
    svg = lines({"seed 0": [(0, 0.1), (10, 0.7)], "seed 1": [(0, 0.2), (10, 0.6)]})
    assert {"t", "step", "reward", "seed 0", "seed 1", "0.0", "0.8", "10"} <= set(words(svg))
    assert len(list(svg.iter(f"{SVG}path"))) == 2


def test_higher_is_drawn_higher_and_later_further_right():
    svg = lines({"a": [(0, 1.0), (5, 3.0), (10, 2.0)]})
    (x0, y0), (x1, y1), (x2, y2) = [numbers(dot, "cx", "cy") for dot in svg.iter(f"{SVG}circle")]
    assert x0 < x1 < x2
    assert y1 < y2 < y0


def test_a_missing_point_is_a_gap():
    svg = lines({"a": [(0, 1), (1, 1), (2, math.nan), (3, 1), (4, 1)]})
    assert len(list(svg.iter(f"{SVG}path"))) == 2
    assert len(list(svg.iter(f"{SVG}circle"))) == 4


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)], "b": []}])
def test_a_plot_of_nothing_says_so(series):
    svg = lines(series)
    assert any("no data" in text for text in words(svg))
    assert not list(svg.iter(f"{SVG}path"))


def test_an_empty_series_beside_a_full_one_is_named_as_empty():
    assert "b (no data)" in words(lines({"a": [(0, 1), (1, 2)], "b": []}))


def test_one_point_is_a_dot():
    svg = lines({"a": [(5, 0.73)]})
    assert len(list(svg.iter(f"{SVG}circle"))) == 1


def test_a_long_legend_makes_the_plot_higher_instead_of_the_lines_flat():
    svg = lines({f"a rather long series name {i}": [(0, i), (1, i)] for i in range(12)})
    assert float(svg.attrib["height"]) > 260 + 16


@pytest.mark.parametrize("nasty", ["<script>alert(1)</script>", "\"&'", "]]>", "\x00\x1b\ud800"])
def test_words_of_the_user_cannot_leave_the_text(nasty):
    line = line_plot(nasty, {nasty: [(0, 1), (1, 2)]}, x_label=nasty, y_label=nasty)
    bar = bar_plot(nasty, [(nasty, estimate(0.5, 0.4, 0.6)), (nasty, EMPTY)], y_label=nasty)
    for svg in (line, bar):
        root = ET.fromstring(svg)
        assert "<script" not in svg
        assert {element.tag for element in root.iter()} <= {
            SVG + tag for tag in ("svg", "g", "rect", "text", "title", "line", "path", "circle")
        }


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=60),
    st.dictionaries(
        st.text(max_size=60),
        st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9) | st.just(math.nan)), max_size=6),
        max_size=5,
    ),
)
def test_every_line_plot_is_xml_inside_its_frame(title, series):
    svg = ET.fromstring(line_plot(title, series, x_label=title, y_label=title))
    width, height = numbers(svg, "width", "height")
    for dot in svg.iter(f"{SVG}circle"):
        x, y = numbers(dot, "cx", "cy")
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_a_bar_reaches_its_value_and_its_whisker_the_interval():
    svg = bars(("with context", estimate(0.7, 0.6, 0.75)))
    group = svg.find(f"{SVG}g")
    bar, (stem, *_) = group.find(f"{SVG}rect"), group.findall(f"{SVG}line")
    top, size = numbers(bar, "y", "height")
    zero_px = top + size
    low_px, high_px = numbers(stem, "y1", "y2")
    assert high_px < top < low_px < zero_px
    assert (zero_px - high_px) / size == pytest.approx(75 / 70, abs=0.01)
    assert (zero_px - low_px) / size == pytest.approx(60 / 70, abs=0.01)
    assert {"70.0 %", "n=40", "80 %", "with context"} <= set(words(svg))
    assert group.find(f"{SVG}title").text == "with context: 70.0 % [60.0, 75.0] (n=40)"


def test_a_missing_estimate_is_no_data_and_no_bar():
    svg = bars(("full", estimate(0.7, 0.6, 0.75)), ("empty", EMPTY))
    full, empty = svg.findall(f"{SVG}g")
    assert full.find(f"{SVG}rect") is not None
    assert empty.find(f"{SVG}rect") is None
    assert "no data" in words(empty)


def test_bars_without_any_number_are_no_data():
    assert words(bars(("u", EMPTY), ("v", EMPTY)))[-1] == "no data (u, v)"
    assert words(bars())[-1] == "no data"


def test_an_estimate_without_an_interval_has_no_whisker_and_says_so():
    svg = bars(("one video", clustered_mean([1, 0], "uu")))
    group = svg.find(f"{SVG}g")
    assert group.find(f"{SVG}line") is None
    assert "n=2, no CI" in words(svg)


def test_a_negative_bar_hangs_from_zero():
    shown = bars(("worse", estimate(-4, -6, -2, "points")), ("better", estimate(3, 1, 5, "points")))
    worse, better = [group.find(f"{SVG}rect") for group in shown.findall(f"{SVG}g")]
    zero_px = sum(numbers(better, "y", "height"))
    assert numbers(worse, "y") == [pytest.approx(zero_px, abs=0.2)]
    assert {"-4.0", "+3.0"} <= set(words(shown))


def test_a_bar_of_zero_still_has_an_axis():
    assert {"0 %", "100 %", "0.0 %"} <= set(words(bars(("never", estimate(0.0, 0.0, 0.0)))))


def test_bars_of_two_units_are_an_error():
    with pytest.raises(ValueError, match="share one unit, not fraction, tokens"):
        bars(("a", estimate(0.5, 0.4, 0.6)), ("b", estimate(40, 30, 50, "tokens")))


def test_labels_of_neighbours_do_not_overlap():
    names = [
        "with context",
        "a much longer name of a judge",
        "no-spaces-in-this-very-long-name",
    ] * 5
    svg = bars(*[(name, estimate(0.5, 0.4, 0.6)) for name in names])
    for y in {text.attrib["y"] for text in svg.iter(f"{SVG}text") if "transform" not in text.attrib}:
        row = sorted(
            (float(text.attrib["x"]), len(text.text or ""))
            for group in svg.findall(f"{SVG}g")
            for text in group.findall(f"{SVG}text")
            if text.attrib["y"] == y
        )
        for (x1, size1), (x2, size2) in pairwise(row):
            assert x1 + 3.1 * size1 <= x2 - 3.1 * size2


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (0.13, 0.71, (0.0, 0.2, 0.4, 0.6, 0.8)),
        (-3, 8, (-5.0, -2.5, 0.0, 2.5, 5.0, 7.5, 10.0)),
        (0, 12000, (0.0, 2500.0, 5000.0, 7500.0, 10000.0, 12500.0)),
        (0, 4e-6, (0.0, 1e-06, 2e-06, 3e-06, 4e-06)),
        (0, 0, (-1.0, -0.5, 0.0, 0.5, 1.0)),
    ],
)
def test_ticks_are_numbers_that_people_would_choose(low, high, ticks):
    assert nice_ticks(low, high) == ticks


def test_epochs_have_whole_ticks():
    assert nice_ticks(1, 3, whole=True) == (1.0, 2.0, 3.0)
    assert nice_ticks(0, 11, whole=True) == (0.0, 5.0, 10.0, 15.0)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_surround_the_data_in_equal_steps(low, span, count):
    ticks = nice_ticks(low, low + span, count=count)
    steps = np.diff(ticks)
    slack = 1e-6 * (ticks[-1] - ticks[0]) + 1e-6 * abs(low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= count + 2
    assert steps.min() == pytest.approx(steps.max(), rel=1e-3)
    assert len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (48, 64)])
def test_a_png_decodes_to_the_same_pixels(size):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    head, data = png_data_uri(frame).split(",")
    assert head == "data:image/png;base64"
    with av.open(io.BytesIO(base64.b64decode(data)), format="png_pipe") as png:
        decoded = next(png.decode(video=0)).to_ndarray(format="rgb24")
    np.testing.assert_array_equal(decoded, frame)


def test_a_frame_seen_through_a_window_is_written_as_seen():
    frame = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert png_data_uri(frame[::2, ::-1]) == png_data_uri(frame[::2, ::-1].copy())


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((2, 2, 3)),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_an_error_with_its_shape(frame):
    with pytest.raises(ValueError, match=re.escape(str(frame.shape))):
        png_data_uri(frame)
