"""Several judges as one: by majority, by the mean, and by their accuracy where people have judged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_models
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.eval.conductor import Journey, compare
from vlm_rlaif.eval.overview_learning import overview
from vlm_rlaif.feedback.judges.plan import judge_spec, judges_of
from vlm_rlaif.feedback.verdict import Preference, majority, mean
from vlm_rlaif.warehouse.care.row_checks import check_ids
from vlm_rlaif.warehouse.config import Recipe, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports.facts import look
from vlm_rlaif.warehouse.exports.versions import find
from vlm_rlaif.warehouse.inspection.show import card
from vlm_rlaif.warehouse.judge_settings import Panel
from vlm_rlaif.warehouse.records import Audit, AuditPlan, AuditTask, Record, row_id
from vlm_rlaif.warehouse.store import Warehouse

WithJudges = Callable[..., Recipe]
Labeled = Callable[..., Any]
TWO = ("context", "none")


def words(request: Request) -> dict[str, float]:
    """With context it likes what comes first in the alphabet; without, it is less sure, and now and then wrong."""
    first, second = request.user.partition(" A : ")[2].removesuffix(" verdict").split(" B : ")
    told = request.user.startswith("context")
    right = told or (int(first.split()[-1]) + int(second.split()[-1])) % 3 > 0
    better = (first < second) == right
    p = 0.9 if told else 0.7
    return {"A": p if better else 0.05, "B": 0.05 if better else p, "C": 0.95 - p}


def said(warehouse: Warehouse, recipe: Recipe, name: str) -> dict[str, Preference]:
    rows = warehouse.rows(
        "SELECT pair_id, choice, p_a FROM preferences WHERE judge = ?", [judge_spec(recipe, name).spec_id]
    )
    return {row["pair_id"]: Preference(row["choice"], row["p_a"]) for row in rows}


@pytest.mark.parametrize(("combine", "slow"), [("majority", majority), ("mean", mean)])
def test_a_panel_is_its_members_pair_by_pair(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled, combine: str, slow: Any
) -> None:
    blind = {"name": "blind", "prompt": "judge_context_compact_v1", "arm": "context"}
    panel = with_judges(recipe, blind, panels=[Panel(name="three", of=[*TWO, "blind"], combine=combine)])
    (outcome,) = label_all(paired, panel, words)["three"]
    assert (outcome.stage, outcome.written, outcome.note) == ("panel", 6, "judge three")
    members = {name: said(paired, panel, name) for name in (*TWO, "blind")}
    for pair_id, found in said(paired, panel, "three").items():
        expected = slow([members[name][pair_id] for name in members])
        assert found.choice == expected.choice and found.p_a == pytest.approx(expected.p_a, abs=1e-9)
    row = paired.rows("SELECT * FROM labels JOIN specs USING (spec_id) WHERE stage = 'panel' LIMIT 1")[0]
    assert (row["shown_order"], row["vote"], row["context_id"] is None) == ("both", 0, False)
    assert json.loads(row["reply"]).keys() == {*TWO, "blind"}
    assert label_all(paired, panel, words)["three"][0].run_id is None, "nothing is made twice"
    assert list(check_ids(paired, everything=True)) == []
    page = card(paired, row["pair_id"])
    assert [label["shown_order"] for label in page["labels"] if label["prompt"] == "three"] == ["both"]
    assert {each["prompt"]: each["complete"] for each in page["preferences"]}["three"] is True


def test_a_pair_that_a_member_has_not_judged_waits(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    panel = with_judges(recipe, panels=[Panel(name="both", of=list(TWO))])
    label_all(paired, panel, words, "context")
    label_all(paired, panel, words, "none", limit=5)
    (outcome,) = label_all(paired, panel, words, "both")["both"]
    assert (outcome.written, outcome.dropped) == (2, {"without a verdict of every member": 4}), (
        "one order is not enough"
    )
    label_all(paired, panel, words, "none")
    assert label_all(paired, panel, words, "both")["both"][0].written == 4


def audited(warehouse: Warehouse, recipe: Recipe, right: str, pairs: int) -> None:
    """People agree with one judge, on so many pairs."""
    judge = said(warehouse, recipe, right)
    rows: list[Record] = [AuditPlan(plan_id="p", name="p", judge="j", config="{}", run_id="r")]
    for pair_id in sorted(judge)[:pairs]:
        rows.append(AuditTask(audit_task_id=row_id(pair_id), plan_id="p", pair_id=pair_id, stratum="all", weight=1.0,
                              shown_order="ab", annotators=1, run_id="r"))  # fmt: skip
        rows.append(Audit(audit_id=row_id(pair_id), plan_id="p", pair_id=pair_id, annotator="ann", annotation=pair_id,
                          choice=judge[pair_id].choice, shown_order="ab", updated_at=datetime(2026, 1, 1), reply="{}",
                          run_id="r"))  # fmt: skip
    warehouse.append(rows)


@pytest.fixture
def weighted(recipe: Recipe, with_judges: WithJudges) -> Recipe:
    return with_judges(recipe, panels=[Panel(name="fair", of=list(TWO), combine="weighted")])


def test_weights_are_the_log_odds_of_being_right_where_people_have_judged(
    paired: Warehouse, weighted: Recipe, label_all: Labeled
) -> None:
    label_all(paired, weighted, words, *TWO)
    audited(paired, weighted, "context", 5)
    (outcome,) = label_all(paired, weighted, words, "fair")["fair"]
    assert outcome.written == 6
    reply = json.loads(paired.value("SELECT any_value(reply) FROM labels WHERE shown_order = 'both'"))
    weights = reply["weights"]
    assert weights["context"] == pytest.approx(1.7918) and 0 <= weights["none"] < weights["context"]
    members = {name: said(paired, weighted, name) for name in TWO}
    for pair_id, found in said(paired, weighted, "fair").items():
        expected = mean([members[name][pair_id] for name in TWO], [weights[name] for name in TWO])
        assert found.p_a == pytest.approx(expected.p_a, abs=1e-9)


def test_weights_stay_when_people_judge_more(paired: Warehouse, weighted: Recipe, label_all: Labeled) -> None:
    label_all(paired, weighted, words, *TWO)
    audited(paired, weighted, "context", 2)
    label_all(paired, weighted, words, "fair")
    paired.execute("DELETE FROM labels WHERE shown_order = 'both' AND pair_id = (SELECT min(pair_id) FROM pairs)")
    audited(paired, weighted, "context", 6)
    assert label_all(paired, weighted, words, "fair")["fair"][0].written == 1
    replies = paired.rows("SELECT reply FROM labels WHERE shown_order = 'both'")
    assert len({json.dumps(json.loads(row["reply"])["weights"]) for row in replies}) == 1
    assert judge_spec(weighted, "fair") != judge_spec(
        dataclasses.replace(weighted, panels=[dataclasses.replace(weighted.panels[0], name="fair-2")]), "fair-2"
    ), "another name measures anew"


def test_a_weighted_panel_without_people_is_refused_with_the_next_command(
    paired: Warehouse, weighted: Recipe, label_all: Labeled
) -> None:
    label_all(paired, weighted, words, *TWO)
    with pytest.raises(UserError, match="vlm-rlaif feedback audit plan"):
        label_all(paired, weighted, words, "fair")
    assert paired.value("SELECT count(*) FROM labels WHERE shown_order = 'both'") == 0


def test_a_panel_whose_members_are_no_better_than_coins_is_refused(
    paired: Warehouse, weighted: Recipe, label_all: Labeled
) -> None:
    label_all(paired, weighted, lambda request: {"C": 1.0}, *TWO)
    audited(paired, weighted, "context", 6)
    paired.execute("UPDATE audits SET choice = 'a'")
    with pytest.raises(UserError, match="No member of the panel fair is better than a coin"):
        label_all(paired, weighted, words, "fair")


# Commands


@pytest.fixture
def recipe_with_all(recipe_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "all.yaml"
    path.write_text(
        recipe_file.read_text()
        + f"""
judges:
  - {{name: steps, method: checklist, items: [right], model: {recipe_file.parent}, prompt: check_compact_v1}}
  - name: claims
    method: claims
    model: {recipe_file.parent}
    prompt: claim_v1
    split_prompt: claims_v1
panels:
  - {{name: all, of: [context, steps], combine: mean}}
"""
    )
    return path


def test_a_dry_run_of_the_command_counts_every_judge(paired: Warehouse, command: Any, recipe_with_all: Path) -> None:
    result = command("feedback", "label", paired.path, "--recipe", recipe_with_all, "--dry-run")
    assert result.code == 0
    *asked, last = result.out.splitlines()
    assert [line.split(" would")[0] for line in asked] == [
        "label: 12 rows", "label: 12 rows", "check: 12 rows", "split: 12 rows", "verify: 0 rows",
    ]  # fmt: skip
    assert asked[-1].endswith("more when the stage that it reads is done")
    assert last == "Without a model, of the rows of others: the labels of steps, claims, all."
    one = command("feedback", "label", paired.path, "--recipe", recipe_with_all, "--dry-run", "--judge", "steps")
    assert one.out.count("\n") == 2 and one.out.startswith("check: 12 rows")


def test_the_prompts_of_a_judge_are_shown(paired: Warehouse, command: Any, recipe_with_all: Path) -> None:
    shown = command("show-prompt", paired.path, "check", "--recipe", recipe_with_all, "--judge", "steps")
    assert shown.code == 0 and "choices  yes no" in shown.out
    assert command("show-prompt", paired.path, "split", "--recipe", recipe_with_all).code == 0
    wrong = command("show-prompt", paired.path, "label", "--recipe", recipe_with_all, "--judge", "claims")
    assert wrong.code == 2 and "The judge claims has no stage label: it asks split and verify." in wrong.err
    wrong = command("show-prompt", paired.path, "rank", "--recipe", recipe_with_all)
    assert wrong.code == 2 and "No judge of the recipe" in wrong.err


def answer(request: Request) -> Any:
    if request.choices:
        return {"yes": 0.8, "no": 0.2} if len(request.choices) == 2 else {"A": 0.7, "B": 0.2, "C": 0.1}
    return "It is so."


def test_a_run_of_a_recipe_asks_all_its_judges_and_a_plan_tells_of_them_before(
    paired: Warehouse, command: Any, recipe_with_all: Path
) -> None:
    recipe, journey = load(str(recipe_with_all)), Journey()
    before = {f"{line.stage} {line.form}": line for line in overview(paired, recipe, "scripted")}
    assert (before["check steps"].pending, before["split claims"].pending, before["panel all"].later) == (12, 12, 6)

    def ask(stages: Any) -> None:
        journey.add(*run_models(paired, stages, lambda model: lambda: ScriptedEngine(answer), Portion()))

    compare(paired, recipe, journey, ask)
    assert [outcome.stage for outcome in journey.outcomes] == [
        "pair", "label", "label", "check", "split", "verify", "rated", "rated", "panel",
    ]  # fmt: skip
    after = overview(paired, recipe, "scripted")
    assert {(line.stage, line.form): line.stands for line in after if line.stage in ("rated", "panel")} == {
        ("rated", "steps"): 6, ("rated", "claims"): 6, ("panel", "all"): 6,
    }  # fmt: skip
    assert sum(line.work for line in after if line.stage != "ask") == 0
    compare(paired, recipe, journey, ask)
    assert not any(outcome.written for outcome in journey.outcomes[9:])


def test_why_explains_a_pending_item_by_its_nearest_relative(
    paired: Warehouse, command: Any, recipe_with_all: Path, label_all: Labeled
) -> None:
    recipe = load(str(recipe_with_all))
    label_all(paired, recipe, answer, "steps")
    changed = recipe_with_all.with_name("changed.yaml")
    changed.write_text(recipe_with_all.read_text().replace("items: [right]", "items: [right, short]").replace(
        "check_compact_v1", "checklist_v1"))  # fmt: skip
    (stage,) = judges_of(load(str(changed)))["steps"].stages
    row = next(row for row in stage.pending(paired) if row["item"] == "right")
    why = command("why", paired.path, row["row_id"], "--recipe", changed)
    assert why.code == 0 and "item         right" in why.out and "prompt" in why.out.partition("changed")[2]
    rating = paired.value("SELECT any_value(rating_id) FROM ratings")
    assert "item         right" in command("why", paired.path, rating).out


def test_who_judges_its_own_words_is_known_of_every_judge(
    paired: Warehouse, recipe: Recipe, with_judges: WithJudges, label_all: Labeled
) -> None:
    panel = with_judges(recipe, panels=[Panel(name="both", of=list(TWO))])
    label_all(paired, panel, words)
    judges = {row["judge_prompt"]: row["judge_is_policy"] for row in paired.rows("FROM judge_policies")}
    assert judges == {"judge_context_compact_v1": True, "judge_compact_v1": True, "both": True}
    other = judges_of(panel)["none"].spec.spec_id
    paired.execute("UPDATE specs SET revision = 'other' WHERE spec_id = ?", [other])
    judges = {row["judge_prompt"]: row["judge_is_policy"] for row in paired.rows("FROM judge_policies")}
    assert judges == {"judge_context_compact_v1": True, "judge_compact_v1": False, "both": True}


def test_a_card_names_everybody_behind_a_panel(
    paired: Warehouse, command: Any, recipe_with_all: Path, label_all: Labeled
) -> None:
    label_all(paired, load(str(recipe_with_all)), answer)
    assert command("dataset", "create", paired.path, "mine", "--judge", "all").code == 0
    facts = look(paired, find(paired, "mine"))
    named = [
        (model["stage"], model["prompt"]) for model in facts.models if model["stage"] not in ("caption", "context")
    ]
    assert named == [
        ("respond", "respond_compact_v1"), ("label", "judge_context_compact_v1"), ("check", "check_compact_v1"),
        ("rated", "steps"), ("panel", "all"),
    ]  # fmt: skip
