"""Plots of a judge beside `plots.py`: how honest its probabilities are, and what is kept above a strength. SVG."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_rlaif.feedback.report.plots import PALETTE, Axis, axis_titles, no_data, segment, svg, x_scale, y_grid
from vlm_rlaif.feedback.stats.calibration import Bin, Kept

_THIN = ' stroke-dasharray="4 4"'
_WHISKER = ' stroke-width="1.5"'


def reliability_diagram(title: str, bins: Sequence[Bin], *, width: int = 300, height: int = 290) -> str:
    """How often the favoured response is better, against how sure the judge is of it, both in %.

    A point on the dashed line is honest; below it the judge is too sure of itself. Whiskers are 95 % intervals.
    """
    known = [one for one in bins if one.right.value is not None]
    if not known:
        return svg(title, width, height, no_data(width, 34, height))
    lowest = min(0.5, *(one.right.value or 0.0 for one in known), *(one.right.low or 0.0 for one in known))
    low = 10.0 * int(10 * lowest)
    x_axis = Axis(50, 100, 58, width - 18.0, tuple(range(50, 101, 10)))
    y_axis = Axis(low, 100, height - 44.0, 36, tuple(range(int(low), 101, 10)))
    parts = y_grid(y_axis, x_axis.start_px, x_axis.end_px) + x_scale(x_axis, y_axis.start_px)
    parts.append(segment(x_axis.px(50), y_axis.px(50), x_axis.px(100), y_axis.px(100), "#777", _THIN))
    for one in known:
        x, value = x_axis.px(100 * one.confidence), y_axis.px(100 * (one.right.value or 0.0))
        if one.right.low is not None and one.right.high is not None:
            ends = [y_axis.px(100 * end) for end in (one.right.low, one.right.high)]
            parts.append(segment(x, ends[0], x, ends[1], "#1F3F5B", _WHISKER))
        about = f"<title>sure of {100 * one.confidence:.0f} %: {one.right}</title>"
        parts.append(f'<g>{about}<circle cx="{x:.1f}" cy="{value:.1f}" r="4" fill="{PALETTE[0]}"/></g>')
    parts += axis_titles("the judge is sure of, %", "is right, %", width / 2 + 20, height / 2, height)
    return svg(title, width, height, parts)


def coverage_curve(title: str, curve: Sequence[Kept], *, width: int = 300, height: int = 290) -> str:
    """How often labels are right, against the share that is kept above a strength, both in %, with its interval."""
    known = sorted((one for one in curve if one.accuracy.value is not None), key=lambda one: one.coverage)
    if not known:
        return svg(title, width, height, no_data(width, 34, height))
    numbers = [n for one in known for n in (one.accuracy.value, one.accuracy.low) if n is not None]
    low = 10.0 * int(10 * min(0.5, *numbers))
    x_axis = Axis(0, 100, 58, width - 18.0, (0, 20, 40, 60, 80, 100))
    y_axis = Axis(low, 100, height - 44.0, 36, tuple(range(int(low), 101, 10)))
    parts = y_grid(y_axis, x_axis.start_px, x_axis.end_px) + x_scale(x_axis, y_axis.start_px)
    sure = [one for one in known if one.accuracy.low is not None and one.accuracy.high is not None]
    ends = [(one, one.accuracy.high) for one in sure] + [(one, one.accuracy.low) for one in reversed(sure)]
    band = " ".join(f"{x_axis.px(100 * one.coverage):.1f},{y_axis.px(100 * (end or 0)):.1f}" for one, end in ends)
    parts.append(f'<polygon points="{band}" fill="{PALETTE[0]}" fill-opacity="0.15"/>')
    points = [(x_axis.px(100 * o.coverage), y_axis.px(100 * (o.accuracy.value or 0.0)), o) for o in known]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{PALETTE[0]}" stroke-width="1.8"/>')
    for x, y, one in points:
        about = f"<title>--min-strength {one.min_strength:g} keeps {100 * one.coverage:.0f} %: {one.accuracy}</title>"
        parts.append(f'<g>{about}<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{PALETTE[0]}"/></g>')
    parts += axis_titles("labels kept, %", "of these right, %", width / 2 + 20, height / 2, height)
    return svg(title, width, height, parts)
