"""The judges of a recipe, resolved: the arms of `label:`, the further `judges:`, then the `panels:`.

No model is loaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.job import Stage
from vlm_rlaif.datagen.plan import questions_of
from vlm_rlaif.datagen.policies import pairs_of
from vlm_rlaif.feedback.judges.claims import split_stage, verify_stage
from vlm_rlaif.feedback.judges.derived import PanelLabels, RatedLabels
from vlm_rlaif.feedback.judges.model import JudgeModel
from vlm_rlaif.feedback.judges.pairwise import compare, label_stage
from vlm_rlaif.feedback.judges.rank import RankStage, rank_stage
from vlm_rlaif.feedback.judges.rate import RateStage, checklist, score
from vlm_rlaif.warehouse.config import ARMS, Recipe
from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.judge_settings import Judge, Panel
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

FIELDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pairwise": ("response_a", ("question", "response_b")),
    "score": ("response", ("question",)),
    "checklist": ("response", ("question", "item")),
    "claims": ("claim", ("question", "response")),
    "rank": ("responses", ("question",)),
}
"""Method -> the field that its prompt must have, and those that it may have."""


@dataclass(frozen=True, slots=True)
class Judging:
    """One judge of a recipe, and how its labels come about."""

    name: str
    spec: Spec
    """Whose labels are this judge's."""
    stages: tuple[Stage, ...] = ()
    """What models are asked, one after the other: each reads the rows of the one before."""
    derive: Callable[[Warehouse], Outcome] | None = None
    """Makes the labels from ratings, or from those of the members; None where the last stage writes them itself."""


def judges_of(recipe: Recipe) -> dict[str, Judging]:
    """Name -> judge, in the order in which they can be made. Empty where the recipe has none."""
    found: dict[str, Judging] = {}
    for arm in recipe.label.arms if recipe.label is not None else ():
        stage = label_stage(recipe, arm)
        found[arm] = Judging(arm, stage.spec, (stage,))
    for judge in recipe.judges:
        found[judge.name] = _judge(recipe, judge)
    for panel in recipe.panels:
        found[panel.name] = _panel(recipe, panel, found)
    return found


def judge_named(recipe: Recipe, name: str) -> Judging:
    """One judge of a recipe; raises `UserError` with all of them for an unknown name."""
    found = judges_of(recipe)
    if name not in found:
        if recipe.label is None and not found:
            raise UserError(f"The recipe {recipe.name} has no `label:` part.")
        arm = f" Its `label:` part does not make the arm {name!r}." if name in ARMS else nearest(name, found)
        raise UserError(f"The recipe {recipe.name} has no judge {name!r}.{arm}", f"Judges: {', '.join(found)}.")
    return found[name]


def judge_spec(recipe: Recipe, name: str) -> Spec:
    """The spec whose labels are those of a judge."""
    return judge_named(recipe, name).spec


def turns(judges: Sequence[Judging]) -> list[list[Stage]]:
    """What models are asked by several judges: first all that can be asked at once, then what needs these rows."""
    return [[stage for stage in turn if stage is not None] for turn in zip_longest(*(each.stages for each in judges))]


def _judge(recipe: Recipe, judge: Judge) -> Judging:
    _check_prompt(judge)
    model = JudgeModel(model=judge.model, adapter=judge.adapter, prompt=judge.prompt, frames=judge.frames)
    writing = replace(model, sampling=judge.sampling)
    match judge.method:
        case "pairwise":
            stage = compare(recipe, writing if judge.verdict == "words" else model, judge.arm, judge.votes)
            return Judging(judge.name, stage.spec, (stage,))
        case "score":
            return _from_ratings(recipe, judge, score(recipe, model, judge.arm))
        case "checklist":
            return _from_ratings(recipe, judge, checklist(recipe, model, judge.arm, judge.items), items=judge.items)
        case "rank":
            return _from_ratings(recipe, judge, rank_stage(recipe, writing, judge.arm))
    if judge.split_prompt is None:
        return _from_ratings(recipe, judge, verify_stage(recipe, model, judge.arm, None))
    split = split_stage(recipe, replace(writing, prompt=judge.split_prompt, frames=None))
    return _from_ratings(recipe, judge, verify_stage(recipe, model, judge.arm, split.spec), split)


def _from_ratings(
    recipe: Recipe, judge: Judge, rating: RateStage | RankStage, *before: Stage, items: Sequence[str] = ()
) -> Judging:  # fmt: skip
    """A judge whose labels are made of the ratings of its last stage."""
    sampling = {"scale": judge.scale, "tie_margin": judge.tie_margin} | ({"items": list(items)} if items else {})
    spec = Spec.make(
        stage="rated", model="none", revision="none", prompt=judge.name, prompt_hash="", frames={}, sampling=sampling,
        upstream={"rating": rating.spec.spec_id},
    )  # fmt: skip
    derive = RatedLabels(
        spec=spec, rating=rating, pairs=pairs_of(recipe), questions=questions_of(recipe),
        context_spec=rating.context_spec, scale=judge.scale, tie_margin=judge.tie_margin,
    )  # fmt: skip
    return Judging(judge.name, spec, (*before, rating), derive)


def _panel(recipe: Recipe, panel: Panel, made: Mapping[str, Judging]) -> Judging:
    if unknown := [name for name in panel.of if name not in made]:
        raise UserError(
            f"{recipe.name}: the panel {panel.name} has no member {unknown[0]!r} before it."
            f"{nearest(unknown[0], made)}",
            f"Known there: {', '.join(made) or 'nobody'}.",
        )
    members = {name: made[name].spec.spec_id for name in panel.of}
    # weights are measured once: a panel of another name measures them anew
    further = {"name": panel.name} if panel.combine == "weighted" else {}
    spec = Spec.make(
        stage="panel", model="none", revision="none", prompt=panel.name, prompt_hash="", frames={},
        sampling={"combine": panel.combine, **further}, upstream=members,
    )  # fmt: skip
    derive = PanelLabels(
        spec=spec, members=members, combination=panel.combine, pairs=pairs_of(recipe), questions=questions_of(recipe)
    )
    return Judging(panel.name, spec, (), derive)


def _check_prompt(judge: Judge) -> None:
    """A prompt that leaves out what it is about would be asked thousands of times before anybody saw it."""
    must, may = FIELDS[judge.method]
    wanted = {must, *(["context"] if judge.arm == "context" else []), *(["item"] if len(judge.items) > 1 else [])}
    _check_fields(judge.name, judge.prompt, wanted, wanted | set(may))
    if judge.split_prompt is not None:
        _check_fields(judge.name, judge.split_prompt, {"response"}, {"response", "question"})


def _check_fields(name: str, wording: str, must: set[str], may: set[str]) -> None:
    has = prompt.load(wording).fields
    if missing := sorted(must - has):
        raise UserError(f"The judge {name} needs {{{missing[0]}}} in its prompt, and {wording} has none.")
    if unknown := sorted(has - may):
        given = ", ".join(f"{{{field}}}" for field in sorted(may))
        raise UserError(
            f"The prompt {wording} asks for {{{unknown[0]}}}, which the judge {name} is not given."
            f"{nearest(unknown[0], may)}",
            f"It is given {given}." + (" {context} goes with `arm: context`." if unknown[0] == "context" else ""),
        )
