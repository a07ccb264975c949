"""What `vlm-rlaif feedback report` prints: a table of all judges, then one after the other."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

from vlm_rlaif.feedback.report.assess import GLANCE, JudgeReport, Report
from vlm_rlaif.feedback.report.sections import Section
from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.warehouse.inspection.card import MARGIN, aligned
from vlm_rlaif.warehouse.inspection.printing import printable

NAME = 40
"""Columns that the name of a figure takes, so that the numbers of all sections stand below each other."""


def lines(report: Report, width: int) -> Iterator[str]:
    """Everything, for a page of `width` columns."""
    about = f"{report.known:,} pairs are known, by {report.against}" if report.known else printable(report.note)
    yield f"{about}. Intervals: 95 %, clustered by video."
    if len(report.judges) > 1:
        yield ""
        head = ["judge", *GLANCE]
        rows = [[judge.name, *(_value(judge.row(*GLANCE[column])) for column in GLANCE)] for judge in report.judges]
        yield from (line[MARGIN:] for line in aligned("", head, rows, sys.maxsize))
    if report.people is not None and report.people.overlap:
        yield f"two people agree on {report.people.agreement}, alpha {report.people.alpha}"
    for judge in report.judges:
        yield from _judge(judge, width)


def _judge(judge: JudgeReport, width: int) -> Iterator[str]:
    yield ""
    yield printable(f"judge {judge.name} ({judge.judge})")
    yield from (_figure("", row.name, row.value) for row in judge.facts)
    for section in judge.sections:
        yield from _section(section, width)


def _section(section: Section, width: int) -> Iterator[str]:
    yield ""
    for number, row in enumerate(section.rows):
        yield _figure("" if number else section.title, row.name, row.value)
    if section.rows:
        yield from _said(f"Good: {section.good}", width)
        title = ""
    else:
        title = section.title
    if section.note:
        first, *rest = _wrapped(section.note, width)
        yield f"{title:<{MARGIN}}{first}"
        yield from (f"{'':{MARGIN}}{line}" for line in rest)


def _figure(title: str, name: str, value: Estimate | str) -> str:
    return f"{title:<{MARGIN}}{printable(name):<{NAME}}  {printable(str(value))}".rstrip()


def _said(text: str, width: int) -> Iterator[str]:
    yield from (f"{'':{MARGIN}}{line}" for line in _wrapped(text, width))


def _wrapped(text: str, width: int) -> list[str]:
    """A command is copied whole: a line with one is not cut."""
    if "vlm-rlaif " in text:
        return [printable(text)]
    return textwrap.wrap(printable(text), max(40, width - MARGIN)) or [""]


def _value(value: Estimate | str | None) -> str:
    return value.headline() if isinstance(value, Estimate) else value or ""


def short(value: Estimate | str | None) -> str:
    """A number and its interval, without how many items it is of."""
    return "" if value is None else str(value).partition(" (n=")[0]
