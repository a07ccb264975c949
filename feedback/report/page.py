"""`feedback report --html`: one self-contained page. No script, nothing loaded, words from data escaped."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from vlm_rlaif.feedback.report.assess import GLANCE, JudgeReport, Report
from vlm_rlaif.feedback.report.diagrams import coverage_curve, reliability_diagram
from vlm_rlaif.feedback.report.lines import short
from vlm_rlaif.feedback.report.plots import bar_plot
from vlm_rlaif.feedback.report.sections import Section
from vlm_rlaif.feedback.stats.estimates import Estimate

STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em} h2{margin-top:2.2em;border-bottom:2px solid #ddd;overflow-wrap:anywhere}
h2 code{font-size:.6em;font-weight:normal;color:#666} h3{margin:0 0 .3em;font-size:1em}
table{border-collapse:collapse;width:100%} td,th{padding:.2em .7em .2em 0;text-align:left;vertical-align:top}
td{border-top:1px solid #eee} td+td{font-variant-numeric:tabular-nums} small{color:#666;white-space:nowrap}
.wide{overflow-x:auto} .wide td,.wide th{white-space:nowrap;padding-right:1.4em} .wide small{display:block}
.cards{columns:2 430px;column-gap:1em} p{margin:.4em 0}
section{border:1px solid #ddd;border-radius:6px;padding:.8em 1em;break-inside:avoid;margin-bottom:1em}
.good{color:#2b5d34;font-size:.9em} .note{color:#666;font-size:.9em;overflow-wrap:anywhere}
.plots{display:flex;flex-wrap:wrap;gap:1em;margin:1em 0}
"""


def write_page(report: Report, title: str, path: Path) -> None:
    """Write the page, then give it its name."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page(report, title), encoding="utf-8")
    partial.rename(path)


def page(report: Report, title: str) -> str:
    """The whole page as a string."""
    known = f"{report.known:,} pairs are known, by {report.against}." if report.known else report.note
    people = ""
    if report.people is not None and report.people.overlap:
        people = f"<p>Two people agree on {_text(report.people.agreement)}; alpha {_text(report.people.alpha)}.</p>"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1><p>{_text(known)} Intervals are 95 %, clustered by video.</p>{people}",
        _glance(report), *(_judge(judge) for judge in report.judges), "</body></html>",
    ]  # fmt: skip
    return "\n".join(parts)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _glance(report: Report) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in ("judge", *GLANCE))
    rows = "".join(
        f"<tr><td><a href='#{_text(judge.judge)}'>{_text(judge.name)}</a></td>"
        + "".join(f"<td>{_interval(judge.row(*place))}</td>" for place in GLANCE.values())
        + "</tr>"
        for judge in report.judges
    )
    return f"<div class='wide'><table><tr>{head}</tr>{rows}</table></div>"


def _judge(judge: JudgeReport) -> str:
    facts = "".join(f"<tr><td>{_text(row.name)}</td><td>{_value(row.value)}</td></tr>" for row in judge.facts)
    plots = []
    bars = [(name, value) for name, place in GLANCE.items() if isinstance(value := judge.row(*place), Estimate)]
    if bars:
        plots.append(bar_plot("At a glance", bars, y_label="share", width=440, height=290))
    if judge.agreement is not None and judge.agreement.curve:
        plots.append(coverage_curve("Accuracy of what is kept", judge.agreement.curve))
    if judge.calibration is not None:
        plots.append(reliability_diagram("Is p honest?", judge.calibration.bins))
    cards = "".join(map(_section, judge.sections))
    return (
        f"<h2 id='{_text(judge.judge)}'>{_text(judge.name)} <code>{_text(judge.judge)}</code></h2>"
        f"<div class='plots'>{''.join(plots)}</div><div class='cards'><section><h3>labels</h3><table>{facts}</table>"
        f"</section>{cards}</div>"
    )


def _section(section: Section) -> str:
    rows = "".join(f"<tr><td>{_text(row.name)}</td><td>{_value(row.value)}</td></tr>" for row in section.rows)
    good = f"<p class='good'>Good: {_text(section.good)}</p>" if section.rows else ""
    note = f"<p class='note'>{_text(section.note)}</p>" if section.note else ""
    return f"<section><h3>{_text(section.title)}</h3><table>{rows}</table>{good}{note}</section>"


def _value(value: Estimate | str) -> str:
    number, found, counts = str(value).partition(" (n=")
    return f"{_interval(number)} <small>n={_text(counts.removesuffix(')'))}</small>" if found else _text(value)


def _interval(value: Estimate | str | None) -> str:
    """A number, and its interval smaller beside it."""
    number, found, interval = short(value).partition(" [")
    return f"{_text(number)} <small>[{_text(interval)}</small>" if found else _text(number)
