"""The report on judges: planted bias comes out of the rows, and words from data stay words."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.feedback.report.assess import JudgeReport, Report, assess
from vlm_rlaif.feedback.report.diagrams import coverage_curve, reliability_diagram
from vlm_rlaif.feedback.report.lines import lines
from vlm_rlaif.feedback.report.page import page
from vlm_rlaif.feedback.stats.calibration import Bin, Kept
from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.store import Warehouse

PLAIN, READING = "script>_v1", "judge_context_v1"


@pytest.fixture(scope="module")
def report(known_file: Path) -> Report:
    """Of the warehouse as it is."""
    return assess(Warehouse(known_file))


def judge(found: Report, prompt: str) -> JudgeReport:
    (one,) = [each for each in found.judges if each.prompt.endswith(prompt)]
    return one


def value(found: JudgeReport, section: str, name: str) -> Estimate:
    estimate = found.row(section, name)
    assert isinstance(estimate, Estimate), (section, name, [each.title for each in found.sections])
    return estimate


def test_accuracy_and_position_are_what_was_planted(report: Report) -> None:
    plain, reading = judge(report, PLAIN), judge(report, READING)
    assert value(plain, "accuracy", "names the better response").value == pytest.approx(0.7, abs=0.1)
    assert value(reading, "accuracy", "names the better response").value == pytest.approx(0.95, abs=0.06)
    first = value(plain, "position", "names the first response")
    assert first.value == pytest.approx(0.5) and first.clusters == 30
    assert value(plain, "position", "conflict of the two orders").value == 0.0


def test_the_longer_response_is_the_false_one(report: Report) -> None:
    found = judge(report, READING)
    assert value(found, "length", "... is better, says the exact truth").value == 0.0
    assert value(found, "length", "the longer response wins").value == pytest.approx(0.05, abs=0.06)
    assert (value(found, "length", "a doubling of length adds").value or 0) < -0.5
    plain = judge(report, PLAIN)
    (section,) = [each for each in plain.sections if each.title == "length"]
    assert re.search(r"Length-balanced: \d+ of 120 pairs", section.note)
    after = value(plain, "length", "... in the length-balanced pairs")
    assert abs(after.value or 0) < abs(value(plain, "length", "a doubling of length adds").value or 0)


def test_own_answers_and_context_are_compared_with_the_truth(report: Report) -> None:
    reading = judge(report, READING)
    own = value(reading, "own answers", "wins beyond what the exact truth says")
    assert own.n == 30 and own.low is not None and own.low < 0.0 < (own.high or 0)
    gain = value(reading, "context", "gain of accuracy, says the exact truth")
    assert gain.value == pytest.approx(25, abs=10) and gain.n == 120
    assert not [each for each in judge(report, PLAIN).sections if each.title == "context"]


def test_probes_repeats_and_drift(report: Report) -> None:
    plain, reading = judge(report, PLAIN), judge(report, READING)
    assert value(plain, "probes", "one answer twice: a tie").value == 0.5
    assert value(plain, "probes", "... else it names the first").n == 15
    assert value(plain, "probes", "another video's answer loses").value == 0.5
    assert value(plain, "repeated", "one 1: p moves by").value == 0.0
    assert plain.row("drift", "first, one 1") == "the first to judge it (30 pairs)"
    shift = value(plain, "drift", "... p of the response shown first")
    assert shift.value == pytest.approx(10, abs=1.5) and (shift.low or 0) > 0
    note = next(each.note for each in reading.sections if each.title == "drift")
    assert note.startswith("Held against the first to judge them: first: <script>")
    probes = next(each for each in reading.sections if each.title == "probes")
    assert probes.note.startswith("No probes yet: vlm-rlaif feedback probe") and not probes.rows


def test_without_people_and_truth_another_judge_is_asked(known_judges: Warehouse) -> None:
    known_judges.execute("UPDATE questions SET source = 'imported'")
    found = assess(known_judges)
    assert found.known == 0 and "No person has judged a pair yet" in found.note
    plain = judge(found, PLAIN)
    assert plain.agreement is None and plain.calibration is None
    assert value(plain, "length", "... is better, says the judge judge_context_v1").n > 0
    assert "vlm-rlaif feedback audit plan" in "\n".join(lines(found, 100))


def test_labels_of_no_order_have_no_position(known_judges: Warehouse) -> None:
    derived = Spec.make(stage="panel", model="none", revision="none", prompt="panel", prompt_hash="", frames={},
                        sampling={}, upstream={}, run_id="run")  # fmt: skip
    known_judges.append([derived])
    known_judges.execute(
        "INSERT INTO labels SELECT DISTINCT pair_id, pair_id, ?, NULL, 'both', 0, 'a', 0.8, 0.0, '', 0, 'run'"
        " FROM pairs",
        [derived.spec_id],
    )
    titles = [each.title for each in judge(assess(known_judges), "panel").sections]
    assert {"accuracy", "length", "calibration"} <= set(titles)
    assert not {"position", "probes", "drift", "repeated"} & set(titles)


def test_one_judge_of_an_audit_that_is_not_there(known_judges: Warehouse, command: Any) -> None:
    assert len(assess(known_judges, ["judge_context_v1"]).judges) == 1
    with pytest.raises(UserError, match="audit plan"):
        assess(known_judges, against="humans")
    wrong = command("feedback", "report", known_judges.path, "--judge", "judge_contxt_v1")
    assert wrong.code == 2 and "Did you mean 'judge_context_v1'" in wrong.err


def test_nothing_to_report_is_said(warehouse: Warehouse, command: Any) -> None:
    said = command("feedback", "report", warehouse.path)
    assert said.code == 2 and "vlm-rlaif feedback label" in said.err


def test_lines_fit_a_terminal_and_say_what_is_good(known_judges: Warehouse, command: Any) -> None:
    said = command("feedback", "report", known_judges.path)
    assert said.code == 0
    assert "120 pairs are known, by the exact truth" in said.out
    assert all(len(line) <= 105 or "vlm-rlaif " in line for line in said.out.splitlines())
    sections = {line.split()[0] for line in said.out.splitlines() if line and not line.startswith(" ")}
    assert {"accuracy", "position", "length", "own", "context", "probes", "repeated", "drift"} <= sections
    assert said.out.count("Good: ") >= 12


def test_the_report_as_json(known_judges: Warehouse, command: Any) -> None:
    found = json.loads(command("feedback", "report", known_judges.path, "--json").out)
    assert found["against"] == "the exact truth" and len(found["judges"]) == 2
    section = found["judges"][0]["sections"][1]
    assert section["title"] == "position" and set(section["rows"][0]["value"]) >= {"value", "low", "high", "n"}


class Tags(HTMLParser):
    """Which tags a page has, and whether it loads or runs anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [f"{name}={found}" for name, found in attrs if name in ("src", "srcset", "data", "action")]
        self.loads += [str(found) for name, found in attrs if name == "href" and not str(found).startswith("#")]
        self.loads += [name for name, _ in attrs if name.startswith("on")]


def test_the_page_is_one_file_in_which_nothing_runs(known_judges: Warehouse, tmp_path: Path, command: Any) -> None:
    path = tmp_path / "judges.html"
    said = command("feedback", "report", known_judges.path, "--html", path)
    assert said.out.rstrip().endswith(f"Page: {path}")
    text = path.read_text(encoding="utf-8")
    found = Tags(text)
    assert not found.loads and not found.tags & {"script", "iframe", "link", "object", "form", "img"}
    assert "url(" not in text and "@import" not in text
    assert "&lt;script&gt;alert" in text and text.count("<svg") == 6
    assert [each.name for each in tmp_path.iterdir() if "partial" in each.name] == []


def test_a_page_that_cannot_be_written_is_said(known_judges: Warehouse, tmp_path: Path, command: Any) -> None:
    said = command("feedback", "report", known_judges.path, "--html", tmp_path / "none" / "judges.html")
    assert said.code == 2 and "Traceback" not in said.err


def test_every_row_of_the_glance_is_on_the_page(report: Report) -> None:
    text = page(report, "w")
    for name in ("accuracy", "conflicts", "first wins", "longer wins", "same ties", "other loses"):
        assert f"<th>{name}</th>" in text


# Diagrams


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high, n=9, clusters=3)


def test_an_honest_judge_lies_on_the_diagonal() -> None:
    bins = [Bin(confidence=x, right=estimate(x, x - 0.05, x + 0.05), share=0.5) for x in (0.6, 0.9)]
    text = reliability_diagram("Is p honest?", bins)
    (x1, y1, x2, y2) = map(float, re.findall(r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"'
                                             r' stroke="#777"', text)[0])  # fmt: skip
    for cx, cy in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text):
        assert float(cy) == pytest.approx(y1 + (float(cx) - x1) * (y2 - y1) / (x2 - x1), abs=0.2)


def test_a_curve_of_accuracy_has_a_band_and_says_the_thresholds() -> None:
    curve = [
        Kept(min_strength=0.0, coverage=0.9, accuracy=estimate(0.7, 0.6, 0.8)),
        Kept(min_strength=0.6, coverage=0.3, accuracy=estimate(0.9, 0.8, 1.0)),
    ]
    text = coverage_curve("Kept", curve)
    assert "--min-strength 0.6 keeps 30 %" in text and text.count("<circle") == 2 and "<polygon" in text


def test_what_is_unknown_is_no_data() -> None:
    assert "no data" in reliability_diagram("x", [])
    assert "no data" in coverage_curve("x", [Kept(min_strength=0, coverage=0, accuracy=estimate(None))])
    assert "<circle" in reliability_diagram("x", [Bin(confidence=0.5, right=estimate(0.2), share=1.0)])
