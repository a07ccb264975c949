"""The report on judges: planted bias comes out of the rows, and words from data stay words."""

from __future__ import annotations

import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vlm_rlaif.feedback.calibrate import fit_judge, write
from vlm_rlaif.feedback.report import gather
from vlm_rlaif.feedback.report.assess import JudgeReport, Report, assess
from vlm_rlaif.feedback.report.diagrams import coverage_curve, reliability_diagram
from vlm_rlaif.feedback.report.lines import lines
from vlm_rlaif.feedback.report.page import page
from vlm_rlaif.feedback.stats.calibration import Bin, Kept
from vlm_rlaif.feedback.stats.estimates import Estimate
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Audit, AuditPlan, AuditTask, Run, Spec
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
    assert note.startswith("Held against those who judged before. first, one 1: <script>")
    assert note.endswith("first, one 2: judge_context_v1, one 1.")
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


def test_a_shift_of_the_engine_is_seen_in_every_arm(known_judges: Warehouse) -> None:
    """Whoever was first of all: each arm is held against itself on the engine that it was asked on before."""
    known_judges.append([Run(run_id="run later", stage="anchor", config="{}", code_version="0", engine="scripted",
                             host="h", started_at=datetime(2026, 2, 1))])  # fmt: skip
    found = assess(known_judges)
    shifts = [value(judge(found, prompt), "drift", "... p of the response shown first") for prompt in (PLAIN,)]
    rows = gather.anchored(known_judges, judge(found, READING).judge).filter(pl.col("engine") == "one 2")
    assert rows["base_judge"].unique().to_list() == [judge(found, READING).judge]
    assert rows["towards_first"].mean() == pytest.approx(0.1, abs=0.015) == shifts[0].value / 100  # type: ignore[operator]


def test_a_changed_judge_is_held_against_the_one_of_its_arm(known_judges: Warehouse) -> None:
    """The other arm was first; the judge whose prompt was edited reads the narrative, as the one before it did."""
    old = known_judges.rows("SELECT * FROM specs WHERE prompt = 'judge_context_v1'")[0]
    known_judges.append([Spec(**{**old, "spec_id": "edited", "prompt": "judge_context_v2"})])
    known_judges.execute(
        "INSERT INTO probes SELECT * REPLACE ('edited' || probe_id AS probe_id, 'edited' AS spec_id, 'x' AS run_id)"
        " FROM probes WHERE spec_id = ? AND kind = 'anchor' AND engine = 'one 1'",
        [old["spec_id"]],
    )
    rows = gather.anchored(known_judges, "edited")
    assert rows["base_prompt"].unique().to_list() == ["judge_context_v1"]


def people_say(warehouse: Warehouse, choices: dict[str, tuple[str, float]]) -> None:
    """One person's audit: pair -> verdict and the pairs that it stands for."""
    warehouse.append([AuditPlan(plan_id="p", name="p", judge="j", config="{}", run_id="r")])
    for number, (pair, (choice, weight)) in enumerate(choices.items()):
        warehouse.append(
            [
                AuditTask(audit_task_id=pair, plan_id="p", pair_id=pair, stratum=str(number), weight=weight,
                          shown_order="ab", annotators=1, run_id="r"),
                Audit(audit_id=pair, plan_id="p", pair_id=pair, annotator="ann", annotation=pair, choice=choice,
                      shown_order="ab", updated_at=datetime(2026, 1, 1), reply="{}", run_id="r"),
            ]
        )  # fmt: skip


def test_lines_about_people_weigh_each_pair_with_those_it_stands_for(known_judges: Warehouse) -> None:
    sql = (
        "SELECT p.pair_id, a.tokens > b.tokens AS a_longer, p.choice AS after, o.choice AS before FROM preferences p"
        " JOIN preferences o ON o.pair_id = p.pair_id AND o.judge <> p.judge"
        " JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b"
        " WHERE p.judge_prompt = ? ORDER BY p.pair_id"
    )
    rows = known_judges.rows(sql, [READING])[:40]
    said = {row["pair_id"]: ("a", 1.0 + 8.0 * (number % 3 == 0)) for number, row in enumerate(rows)}
    people_say(known_judges, said)
    found = judge(assess(known_judges, against="humans"), READING)
    total = sum(weight for _, weight in said.values())
    longer = sum(said[row["pair_id"]][1] for row in rows if row["a_longer"]) / total
    assert value(found, "length", "... is better, says people").value == pytest.approx(longer)
    gain = sum(said[row["pair_id"]][1] * ((row["after"] == "a") - (row["before"] == "a")) for row in rows) / total
    assert value(found, "context", "gain of accuracy, says people").value == pytest.approx(100 * gain)
    equally = value(found, "length", "... to responses equally good")
    known_judges.execute("UPDATE audit_tasks SET weight = 1")
    unweighted = judge(assess(known_judges, against="humans"), READING)
    assert value(unweighted, "length", "... to responses equally good").value != pytest.approx(equally.value)


def test_a_pair_judged_in_one_order_says_nothing_about_position(known_judges: Warehouse) -> None:
    known_judges.execute(
        "DELETE FROM labels WHERE shown_order = 'ba' AND pair_id IN (SELECT pair_id FROM pairs LIMIT 9)"
    )
    first = value(judge(assess(known_judges), PLAIN), "position", "names the first response")
    assert (first.value, first.n) == (0.5, 2 * (120 - 9))


def derived(stage: str, prompt: str, sampling: dict[str, object], **upstream: str) -> Spec:
    return Spec.make(stage=stage, model="none", revision="none", prompt=prompt, prompt_hash="", frames={},
                     sampling=sampling, upstream=upstream, run_id="run")  # fmt: skip


def labels_of(warehouse: Warehouse, made: Spec, like: str) -> None:
    """Labels of no order, one per pair, as another judge says."""
    warehouse.append([made])
    warehouse.execute(
        "INSERT INTO labels SELECT pair_id || $spec, pair_id, $spec, context_id, 'both', 0, choice, p_a, 0.0, '', 0,"
        " 'run' FROM preferences WHERE judge_prompt = $like",
        {"spec": made.spec_id, "like": like},
    )


def test_a_checklist_with_the_narrative_is_compared_with_the_same_without(known_judges: Warehouse) -> None:
    asked = {
        arm: Spec.make(stage="check", model="m", revision="1", prompt=f"check_{arm}", prompt_hash=arm, frames={},
                       sampling={}, upstream={"respond": "x"} | ({"context": "c"} if arm == "told" else {}),
                       run_id="run")
        for arm in ("told", "plain")
    }  # fmt: skip
    known_judges.append([*asked.values()])
    for name, arm, scale in (
        ("told", "told", 1),
        ("plain", "plain", 1),
        ("plain too", "plain", 1),
        ("bold", "plain", 5),
    ):
        further = {"name": name} if name == "plain too" else {}
        made = derived("rated", name, {"scale": scale}, rating=asked[arm].spec_id, **further)
        labels_of(known_judges, made, READING if arm == "told" else "judge_context_v1")
    (section,) = [each for each in judge(assess(known_judges), "told").sections if each.title == "context"]
    assert section.note.startswith("Against plain (") and "the first of 2 that differ" in section.note
    assert not [each for each in judge(assess(known_judges), "bold").sections if each.title == "context"]


def test_a_judge_that_rates_has_the_engine_and_the_tokens_of_its_ratings(known_judges: Warehouse) -> None:
    rating = Spec.make(stage="check", model="m", revision="1", prompt="check", prompt_hash="", frames={}, sampling={},
                       upstream={}, run_id="run")  # fmt: skip
    known_judges.append([rating])
    labels_of(known_judges, derived("rated", "steps", {}, rating=rating.spec_id), READING)
    for run, stage in (("asked", "check"), ("probed", "probe")):
        known_judges.append([Run(run_id=run, stage=stage, config=json.dumps({"spec_id": rating.spec_id}), host="h",
                                 code_version="0", engine=f"engine {run}", started_at=datetime(2026, 1, 1),
                                 tokens_in=900, tokens_out=100, rows_written=8, rows_failed=2)])  # fmt: skip
    facts = {row.name: row.value for row in judge(assess(known_judges), "steps").facts}
    assert (facts["engine"], facts["tokens"]) == ("engine asked", "100 a row")


def test_nobody_is_held_against_what_it_is_made_of(known_judges: Warehouse) -> None:
    known_judges.execute("UPDATE questions SET source = 'imported'")
    ids = {row["prompt"]: row["spec_id"] for row in known_judges.rows("FROM specs WHERE stage = 'label'")}
    labels_of(known_judges, derived("panel", "panel", {}, one=ids[READING], other=next(iter(ids.values()))), READING)
    known_judges.execute("DELETE FROM labels WHERE spec_id = ?", [next(i for p, i in ids.items() if p != READING)])
    assert gather.other_judge(known_judges, ids[READING]) is None
    panel = known_judges.value("SELECT spec_id FROM specs WHERE stage = 'panel'")
    assert gather.other_judge(known_judges, panel) is None


def test_a_calibrated_judge_is_not_measured_on_the_pairs_it_was_fitted_on(known_judges: Warehouse) -> None:
    write(known_judges, fit_judge(known_judges, judge=READING))
    found = judge(assess(known_judges), next(
        row["prompt"] for row in known_judges.rows("SELECT prompt FROM specs WHERE stage = 'calibrate'")
    ))  # fmt: skip
    (section,) = [each for each in found.sections if each.title == "calibration"]
    assert found.calibration is None and not section.rows
    base = known_judges.value("SELECT spec_id FROM specs WHERE prompt = ?", [READING])
    assert section.note.startswith("Fitted on these pairs.") and section.note.endswith(f"--judge {base} --dry-run")


def test_cuts_of_one_source_are_one_cluster(known_judges: Warehouse) -> None:
    known_judges.execute("UPDATE videos SET video_group = 'film' || (video_group < '8')")
    plain = judge(assess(known_judges), PLAIN)
    for section, name in (("position", "names the first response"), ("length", "a doubling of length adds"),
                          ("accuracy", "kappa"), ("probes", "one answer twice: a tie")):  # fmt: skip
        assert value(plain, section, name).clusters == 2


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
