"""The last part of an overview: what would be trained, from how many rows, and what would be evaluated then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlm_rlaif.datagen.estimate import pace_s
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.overview import Form, Line, Overview
from vlm_rlaif.eval.overview_comparing import answer_and_judge
from vlm_rlaif.eval.truth import METRICS
from vlm_rlaif.eval.win import win_stage
from vlm_rlaif.train.jobs import Job, Trained, find
from vlm_rlaif.train.run import MERGED, after_sft, ppo_job, reward_job, sft_job, taught_by, text_only
from vlm_rlaif.warehouse.config import Evaluation, Recipe
from vlm_rlaif.warehouse.store import Warehouse


def overview(warehouse: Warehouse, recipe: Recipe, engine: str = "auto") -> list[Line]:
    """A line for every stage of a recipe. Jobs may go on writing while rows are counted."""
    made = Overview(warehouse, recipe, engine)
    made.generate()
    if recipe.sft is not None:
        _fine_tune(made)
    answer_and_judge(made)
    policy = _learn(made) if recipe.reward is not None else None
    if recipe.evaluate is not None and recipe.respond is not None:
        _evaluate(made, recipe.evaluate, policy)
    return made.lines


def _fine_tune(made: Overview) -> None:
    """Supervised fine-tuning; what follows it asks the model that it makes."""
    if made.work("questions"):
        _waiting(made, "sft", "from references that are to come")
        tuned = None
    else:
        job, rows = sft_job(made.warehouse, made.recipe)
        tuned = _trainer(made, job, f"from {len(rows):,} references")
    if tuned is None:
        made.waits_for = "sft"
    else:
        made.recipe = after_sft(made.recipe, tuned)


def _trainer(made: Overview, job: Job, note: str, form: str = "") -> Trained | None:
    """The line of a trainer whose rows all stand, and its checkpoint if that stands."""
    stands, pace = find(made.warehouse, job), pace_s(made.warehouse, job.kind, "torch")
    line = Line(stage=job.kind, form=form, stands=1) if stands else Line(
        stage=job.kind, form=form, pending=1, seconds=pace, first=(job.checkpoint_id,)
    )  # fmt: skip
    made.lines.append(replace(line, note=note))
    return stands


def _waiting(made: Overview, kind: str, note: str, form: str = "") -> None:
    """The line of a trainer that waits for rows."""
    made.lines.append(Line(stage=kind, form=form, later=1, note=note, seconds=pace_s(made.warehouse, kind, "torch")))


def _learn(made: Overview) -> Path | None:
    """The reward model, its control, and the policy; the folder of the policy where it stands."""
    recipe, reward = made.recipe, None
    ready = bool(recipe.reward and recipe.reward.dataset) or not made.work("label", taught_by(recipe))
    forms = {"": recipe} | ({"text only": text_only(recipe)} if recipe.evaluate is not None else {})
    for form, version in forms.items():
        if not ready:
            _waiting(made, "reward", f"from at most {made.expected('pair'):,} pairs", form)
            continue
        job, rows = reward_job(made.warehouse, version)
        stands = _trainer(made, job, f"from {len(rows):,} preferences", form)
        reward = stands if not form else reward
    if recipe.ppo is None:
        return None
    if reward is None or made.work("questions") or made.work("ask"):
        _waiting(made, "ppo", "waits for reward" if reward is None else "waits for questions")
        return None
    job, rows = ppo_job(made.warehouse, recipe, reward)
    policy = _trainer(made, job, f"from {len(rows):,} questions")
    return policy.path if policy else None


def _evaluate(made: Overview, settings: Evaluation, policy: Path | None) -> None:
    """Answers of the start and of the policy, their truth, and who wins."""
    recipe, asked = made.recipe, sum(made.questions(settings.split))
    asked = min(asked, settings.max_questions or asked)
    sizes = [samples for samples in (1, settings.best_of) if samples]

    def forms(name: str, model: str | None) -> list[Form]:
        return [
            Form(answer_stage(recipe, model, samples=n), f"{name}, {'greedy' if n == 1 else f'{n} samples'}",
                 total=asked * n, bound="about")
            for n in sizes
        ]  # fmt: skip

    start = forms("start", None)
    if recipe.ppo is None:
        made.asked(start)
        return _score(made)
    if policy is not None:
        made.asked([*start, *forms("policy", str(policy / MERGED))])
    else:
        made.asked(start)
        made.asked(forms("policy", None), waits_for="ppo")  # the start stands in: what it costs is the same
    _score(made)
    if recipe.label is not None and settings.win_rate:
        old = start[0].stage.spec.spec_id
        new = answer_stage(recipe, str(policy / MERGED)).spec.spec_id if policy else "to come"
        ready = policy is not None and not made.work("answer")
        made.asked([Form(win_stage(recipe, new, old), total=2 * asked, bound="at most")],
                   waits_for="" if ready else "answer")  # fmt: skip


def _score(made: Overview) -> None:
    """Exact truth, for answers to questions of the shapes world."""
    shapes = made.count("count(*) FROM questions WHERE source = 'shapes'")
    if made.recipe.world is None and not shapes:
        return
    answered = "count(*) FROM answers a JOIN questions q USING (question_id) WHERE q.source = 'shapes' AND"
    scored = "EXISTS (SELECT 1 FROM scores s WHERE s.answer_id = a.answer_id AND s.judge = 'truth')"
    made.derived(
        "score", stands=made.count("count(*) FROM scores WHERE judge = 'truth'"),
        pending=len(METRICS) * made.count(f"{answered} NOT {scored}"),
        later=len(METRICS) * made.work("answer"), bound="about",
    )  # fmt: skip
