"""Plots and frames as strings for an HTML page: SVG and PNG without a plotting library.

Two kinds of plot only, line and bar, drawn on white, with no script and nothing to load. What is
missing is written as "no data" and never drawn as zero. For anything richer, export the numbers and
use a real plotting library.

>>> line_plot("Reward", {"seed 0": [(0, 0.1), (10, 0.4)]}, x_label="step", y_label="reward")[:4]
'<svg'
"""

from __future__ import annotations

import base64
import html
import math
import re
import struct
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.feedback.stats.estimates import Estimate

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
"""Okabe & Ito's colours, which colour-blind readers can tell apart, without their pale yellow."""
DASHES = ("", "6 3", "2 2")
"""Line styles: the palette starts again with the next one."""

_CHAR_PX = 6.3
"""Mean width of a character at 11 px, a little generous: a string has no font to measure."""
_SLOT_PX = (58.0, 90.0)
"""Least and most width of a bar with its label, by the longest word; many bars widen the plot."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Axis:
    """Numbers on one axis: `low` and `high` lie at the pixels `start_px` and `end_px`."""

    low: float
    high: float
    start_px: float
    end_px: float
    ticks: tuple[float, ...]
    suffix: str = ""
    """Written behind every tick, such as ` %`."""

    def px(self, number: float) -> float:
        share = (number - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)

    def labels(self) -> list[str]:
        return [text + self.suffix for text in tick_labels(self.ticks)]


def line_plot(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    width: int = 560,
    height: int = 260,
) -> str:
    """Learning curves: one line per series of (x, y), with a legend. Labels carry the units.

    Points are joined in the order given. A point that is NaN or infinite is a gap in its line. A
    legend of more than one row makes the plot higher.
    """
    legend, rows = _legend(series, width)
    top, height = 40 + 16 * rows, height + 16 * max(0, rows - 1)
    points = [point for line in series.values() for point in line if _finite(point)]
    if not points:
        return svg(title, width, height, [*legend, *no_data(width, top, height)])
    xs, ys = [x for x, _ in points], [y for _, y in points]
    whole = all(float(x).is_integer() for x in xs)
    y_ticks = nice_ticks(min(ys), max(ys))
    left, right, bottom = left_px(y_ticks, ""), width - 18.0, height - 44.0
    x_ticks = nice_ticks(min(xs), max(xs), count=max(2, width // 90), whole=whole)
    inside = tuple(tick for tick in x_ticks if min(xs) <= tick <= max(xs))
    if len(inside) > 1:
        x_axis = Axis(min(xs), max(xs), left, right, inside)
    else:
        x_axis = Axis(x_ticks[0], x_ticks[-1], left, right, x_ticks)
    y_axis = Axis(y_ticks[0], y_ticks[-1], bottom, top, y_ticks)
    parts = legend + y_grid(y_axis, left, right) + x_scale(x_axis, bottom)
    parts += axis_titles(x_label, y_label, (left + right) / 2, (top + bottom) / 2, height)
    for number, line in enumerate(series.values()):
        parts += _line(line, x_axis, y_axis, *_style(number))
    return svg(title, width, height, parts)


def bar_plot(
    title: str,
    bars: Sequence[tuple[str, Estimate]],
    *,
    y_label: str,
    width: int = 560,
    height: int = 260,
) -> str:
    """One bar per (label, estimate) with its confidence interval as a whisker and n below.

    Bars start at zero. Fractions are drawn in %. An estimate without a value is written as "no
    data"; one without an interval has no whisker and says so. All estimates share one unit.
    """
    units = sorted({estimate.unit for _, estimate in bars})
    if len(units) > 1:
        raise ValueError(f"the bars of one plot share one unit, not {', '.join(units)}")
    words = [word for label, _ in bars for word in label.split()]
    slot = min(max(_SLOT_PX[0], _CHAR_PX * max(map(len, words), default=0) + 8), _SLOT_PX[1])
    width = max(width, int(90 + slot * len(bars)))
    scale, suffix = (100.0, " %") if units == ["fraction"] else (1.0, "")
    numbers = [n * scale for _, bar in bars for n in (bar.value, bar.low, bar.high) if n is not None]
    if not numbers:
        names = [label for label, _ in bars]
        return svg(title, width, height, no_data(width, 34, height, names))
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    ticks = nice_ticks(low, high if high > low else scale)
    left, right, top = left_px(ticks, suffix), width - 18.0, 50.0
    slot = (right - left) / len(bars)
    labels = [_wrapped(label, slot) for label, _ in bars]
    bottom = height - 30.0 - 13 * max(len(lines) for lines in labels)
    y_axis = Axis(ticks[0], ticks[-1], bottom, top, ticks, suffix)
    parts = y_grid(y_axis, left, right)
    for number, ((label, estimate), lines) in enumerate(zip(bars, labels, strict=True)):
        x = left + slot * (number + 0.5)
        about = f"<title>{_text(f'{label}: {estimate}')}</title>"
        drawn = _bar(estimate, scale, x, min(46.0, slot * 0.6), y_axis)
        drawn += _under_bar(lines, estimate, x, bottom)
        parts.append(f'<g class="bar">{about}{"".join(drawn)}</g>')
    zero = y_axis.px(0.0)
    parts.append(segment(left, zero, right, zero, "#333"))
    parts += axis_titles("", y_label, 0, (top + bottom) / 2, height)
    return svg(title, width, height, parts)


def png_data_uri(frame: NDArray[np.uint8]) -> str:
    """A frame (H, W, 3) uint8 as the `src` of an HTML image: a PNG without row filters.

    >>> png_data_uri(np.zeros((1, 1, 3), np.uint8))[:30]
    'data:image/png;base64,iVBORw0K'
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(f"a frame is (H, W, 3) uint8, not {frame.shape} {frame.dtype}")
    height, width, _ = frame.shape
    no_filter = np.zeros((height, 1), np.uint8)
    rows = np.concatenate([no_filter, frame.reshape(height, width * 3)], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()


def nice_ticks(low: float, high: float, *, count: int = 5, whole: bool = False) -> tuple[float, ...]:
    """About `count` steps of 1, 2, 2.5 or 5 times a power of ten, from below `low` to above `high`.

    `whole`: no step below 1, for steps and epochs.

    >>> nice_ticks(0.13, 0.71)
    (0.0, 0.2, 0.4, 0.6, 0.8)
    >>> nice_ticks(3, 3, whole=True)
    (2.0, 3.0, 4.0)
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one number: some room around it
        room = abs(low) / 4 or 1.0
        low, high = low - room, high + room
    least = max((high - low) / count, 1.0 if whole else 0.0) * (1 - 1e-9)
    power = math.floor(math.log10(least))
    steps = [(m * 10.0**p, max(0, -p) + (m == 2.5)) for p in (power, power + 1) for m in (1, 2, 2.5, 5)]
    step, decimals = next(
        (step, decimals) for step, decimals in steps if step >= least and (not whole or step.is_integer())
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(k * step, decimals) + 0.0 for k in range(first, last + 1))


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The fewest decimals that say the ticks exactly; powers of ten where that would be long.

    >>> tick_labels([0.0, 0.25, 0.5]), tick_labels([0.0, 5000.0]), tick_labels([0.0, 2e-06])
    (['0.00', '0.25', '0.50'], ['0', '5,000'], ['0', '2e-06'])
    """
    for decimals in range(5):
        texts = [f"{tick:,.{decimals}f}" for tick in ticks]
        if max(map(len, texts)) > 10:
            break
        if all(math.isclose(float(f"{t:.{decimals}f}"), t, rel_tol=1e-9) for t in ticks):
            return texts
    return [f"{tick:.12g}" for tick in ticks]


def svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{_text(title)}" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'style="max-width:100%;height:auto" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#333">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        '<text x="12" y="20" font-size="13" font-weight="600">'
        f"{_text(_cut(title, 0.8 * width))}</text>"
        f"{''.join(parts)}</svg>"
    )


def _text(words: str) -> str:
    """Escaped, with the characters that XML forbids replaced by the mark for that."""
    return html.escape(_NOT_XML.sub("\ufffd", words))


def words_at(x: float, y: float, words: str, *, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{_text(words)}</text>'


def segment(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    at = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {at} stroke="{colour}"{more}/>'


def no_data(width: float, top: float, height: float, names: Sequence[str] = ()) -> list[str]:
    box = f'x="12" y="{top + 4:.1f}" width="{width - 24}" height="{max(1.0, height - top - 16):.1f}"'
    note = _cut("no data" + (f" ({', '.join(names)})" if names else ""), width - 40)
    return [
        f'<rect {box} fill="none" stroke="#ccc" stroke-dasharray="4 4"/>',
        words_at(width / 2, (top + height) / 2, note, more=' fill="#777"'),
    ]


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _style(number: int) -> tuple[str, str]:
    """Colour and dash attribute of the line with this number."""
    dash = DASHES[number // len(PALETTE) % len(DASHES)]
    return PALETTE[number % len(PALETTE)], f' stroke-dasharray="{dash}"' if dash else ""


def _legend(series: Mapping[str, Sequence[tuple[float, float]]], width: int) -> tuple[list[str], int]:
    """Line samples and names under the title, and how many rows of 16 px they take."""
    parts, x, row = [], 12.0, 1
    for number, (name, line) in enumerate(series.items()):
        words = name if any(_finite(point) for point in line) else f"{name} (no data)"
        words = _cut(words, width - 60)
        entry_px = 22 + _CHAR_PX * len(words) + 16
        if x > 12 and x + entry_px > width:
            x, row = 12.0, row + 1
        y = 24.0 + 16 * row
        colour, dash = _style(number)
        parts.append(segment(x, y - 4, x + 18, y - 4, colour, f' stroke-width="2"{dash}'))
        parts.append(words_at(x + 23, y, words, anchor="start"))
        x += entry_px
    return parts, row if series else 0


def _line(line: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis, colour: str, dash: str) -> list[str]:
    """One path, lifted at the gaps; dots where the points are few or stand alone."""
    parts: list[str] = []
    strokes: list[list[tuple[float, float]]] = [[]]
    for point in line:
        if _finite(point):
            strokes[-1].append((x_axis.px(point[0]), y_axis.px(point[1])))
        else:
            strokes.append([])
    for stroke in strokes:
        if len(stroke) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in stroke)
            look = f'fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"{dash}'
            parts.append(f'<path d="{path}" {look}/>')
        if len(line) <= 30 or len(stroke) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in stroke]
    return parts


def _bar(estimate: Estimate, scale: float, x: float, bar_px: float, y_axis: Axis) -> list[str]:
    """The bar, its whisker and its value above the higher end of both."""
    if estimate.value is None:
        return [words_at(x, y_axis.px(0.0) - 8, "no data", more=' fill="#777" font-style="italic"')]
    zero, end = y_axis.px(0.0), y_axis.px(estimate.value * scale)
    at = f'x="{x - bar_px / 2:.1f}" y="{min(zero, end):.1f}"'
    size = f'width="{bar_px:.1f}" height="{abs(zero - end):.1f}"'
    parts, highest = [f'<rect {at} {size} fill="#9CC3E0"/>'], min(zero, end)
    if estimate.low is not None and estimate.high is not None:
        low, high = y_axis.px(estimate.low * scale), y_axis.px(estimate.high * scale)
        highest = min(highest, high)
        thick = ' stroke-width="1.5"'
        parts += [segment(x, low, x, high, "#1F3F5B", thick)]
        parts += [segment(x - 5, y, x + 5, y, "#1F3F5B", thick) for y in (low, high)]
    number = estimate.headline().removesuffix(f" {estimate.unit}")  # the axis names the unit
    return [*parts, words_at(x, highest - 5, number, more=' font-weight="600"')]


def _under_bar(lines: Sequence[str], estimate: Estimate, x: float, bottom: float) -> list[str]:
    """The label, and n in grey below it."""
    parts = [words_at(x, bottom + 15 + 13 * row, words) for row, words in enumerate(lines)]
    count = f"n={estimate.n:,}"
    if estimate.value is not None and estimate.low is None:
        count += ", no CI"
    small = ' font-size="10" fill="#777"'
    return [*parts, words_at(x, bottom + 15 + 13 * len(lines), count, more=small)]


def y_grid(axis: Axis, left: float, right: float) -> list[str]:
    parts = []
    for tick, words in zip(axis.ticks, axis.labels(), strict=True):
        y = axis.px(tick)
        parts.append(segment(left, y, right, y, "#e4e4e4"))
        parts.append(words_at(left - 6, y + 4, words, anchor="end"))
    return parts


def x_scale(axis: Axis, bottom: float) -> list[str]:
    parts = [segment(axis.start_px, bottom, axis.end_px, bottom, "#333")]
    for tick, words in zip(axis.ticks, axis.labels(), strict=True):
        x = axis.px(tick)
        parts.append(segment(x, bottom, x, bottom + 4, "#333"))
        parts.append(words_at(x, bottom + 16, words))
    return parts


def axis_titles(x_label: str, y_label: str, x: float, y: float, height: float) -> list[str]:
    turned = f' transform="rotate(-90 14 {y:.1f})"'
    parts = [words_at(14, y, _cut(y_label, height - 50), more=turned)]
    return [*parts, words_at(x, height - 10, x_label)] if x_label else parts


def left_px(ticks: Sequence[float], suffix: str) -> float:
    return 30 + _CHAR_PX * max(len(words + suffix) for words in tick_labels(ticks))


def _cut(words: str, room_px: float) -> str:
    most = max(4, int(room_px / _CHAR_PX))
    return words if len(words) <= most else words[: most - 1] + "…"


def _wrapped(label: str, room_px: float) -> list[str]:
    """At most three lines that fit; the rest is in the bar's tooltip."""
    most = max(4, int(room_px / _CHAR_PX))
    return textwrap.wrap(label, most, max_lines=3, placeholder="…") or [""]
