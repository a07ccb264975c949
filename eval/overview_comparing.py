"""The middle of an overview: what policies would say, how it would be rated, paired and judged."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from vlm_rlaif.datagen.engines.make import EngineSettings
from vlm_rlaif.datagen.job import Stage
from vlm_rlaif.datagen.policies import negative_stages, pairs_of, policy_stages
from vlm_rlaif.datagen.stages.pair import Pairs
from vlm_rlaif.eval.overview import Form, Overview
from vlm_rlaif.feedback.judges.pairwise import LabelStage
from vlm_rlaif.feedback.judges.plan import Judging, judges_of
from vlm_rlaif.feedback.judges.probe import anchor_stages, probe_stages
from vlm_rlaif.feedback.judges.rate import RateStage, rate_stages
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.settings import Pairing


def answer_and_judge(made: Overview) -> None:
    """Responses, ratings, pairs and labels."""
    recipe = made.recipe
    if recipe.respond is None:
        return
    pairs = pairs_of(recipe)
    _respond(made)
    if pairs.ratings:
        _rate(made)
    _pair(made, pairs)
    if recipe.rate is not None and not pairs.ratings:
        _rate(made)
    judges = list(judges_of(recipe).values())
    _judge(made, judges)
    _derive(made, [judge for judge in judges if judge.derive is not None])
    _probe(made, judges)


def _respond(made: Overview) -> None:
    named = list(zip(names(made.recipe), policy_stages(made.recipe), strict=True))
    named += [(f"perturb: {kind}", stage) for kind, stage in negative_stages(made.recipe).items()]
    bound = "about" if made.work("ask") else "at most"
    there, coming = made.questions()
    forms = []
    for name, stage in named:
        total: int | None = stage.recipe.samples * (there + coming)
        if stage.other_video and not coming:  # where a split has a single source, no other video can be shown
            total = None
        forms.append(Form(stage, name, total=total, bound=bound))
    made.asked(forms)


def names(recipe: Recipe) -> list[str]:
    """What the policies are called: the recipe's own has no name."""
    return ["", *(f"policy {number}" for number in range(2, 1 + len(policy_stages(recipe))))]


def _rate(made: Overview) -> None:
    """Of every policy's responses, not of those to spoilt videos."""
    forms, unfinished = [], made.work("respond")
    stages = zip(names(made.recipe), policy_stages(made.recipe), rate_stages(made.recipe), strict=True)
    for name, policy, stage in stages:
        total = policy.recipe.samples * sum(made.questions()) if unfinished else None
        forms.append(Form(stage, name, total=total, bound="at most"))
    made.asked(forms)


def _pair(made: Overview, pairs: Pairs) -> None:
    if pairs.chosen:
        return _choose(made, pairs)
    own = pairs.policies[0]
    ready = made.count(
        "count(*) FROM responses a JOIN responses b ON b.question_id = a.question_id AND b.spec_id = a.spec_id"
        " AND b.response_id > a.response_id AND b.text <> a.text WHERE a.spec_id = $spec AND NOT EXISTS"
        " (SELECT 1 FROM pairs p WHERE p.response_a = a.response_id AND p.response_b = b.response_id)",
        spec=own,
    )  # fmt: skip
    looked_at = made.count(
        "sum(n * (n - 1) // 2) FROM (SELECT count(*) AS n FROM responses WHERE spec_id = $spec GROUP BY question_id)",
        spec=own,
    )
    (there,) = made.warehouse.rows(
        "SELECT count(*) FILTER (a.spec_id = $spec AND b.spec_id = $spec) AS stands,"
        " count(*) FILTER (a.spec_id <> $spec OR b.spec_id <> $spec) AS stale"
        " FROM pairs p JOIN responses a ON a.response_id = p.response_a"
        " JOIN responses b ON b.response_id = p.response_b"
        " JOIN specs s ON s.spec_id = a.spec_id WHERE s.stage = 'respond'",
        {"spec": own},
    )
    _line(made, there["stands"], there["stale"], ready, looked_at, most_pairs(made))


def _choose(made: Overview, pairs: Pairs) -> None:
    """Pairs that are chosen now; more responses or ratings may choose others."""
    meant = pairs.ids(made.warehouse)
    stands = made.count("count(*) FROM pairs WHERE pair_id IN (SELECT unnest($ids))", ids=meant)
    everything = made.count(
        "count(*) FROM pairs p JOIN responses r ON r.response_id = p.response_a JOIN specs s USING (spec_id)"
        " WHERE s.stage = 'respond'"
    )
    _line(made, stands, everything - stands, len(meant) - stands, len(meant), most_pairs(made))


def _line(made: Overview, stands: int, stale: int, ready: int, looked_at: int, most: int) -> None:
    """`ready` pairs could be made of what stands; at most `most - looked_at` more of what is to come."""
    if made.waits_for:
        note = f"waits for {made.waits_for}"
        return made.derived("pair", stale=stands + stale, later=most, bound="at most", note=note)
    unfinished = made.work("respond") or made.work("rate")
    later = max(0, most - looked_at) if unfinished else 0
    made.derived("pair", stands=stands, stale=stale, pending=ready, later=later, bound="at most")


def most_pairs(made: Overview) -> int:
    """If nothing is dropped, of all questions that stand or are to come."""
    recipe = made.recipe
    settings = recipe.pair or Pairing()
    answers = sum(stage.recipe.samples for stage in policy_stages(recipe))
    found = {"all": comb(answers, 2), "best_worst": min(1, answers - 1), "best_rest": answers - 1}[settings.strategy]
    found = min(found, settings.most_per_question or found)
    negatives = sum(stage.recipe.samples for stage in negative_stages(recipe).values())
    return sum(made.questions()) * (found + negatives)


def _judge(made: Overview, judges: Sequence[Judging]) -> None:
    """What judges are asked, stage by stage; a form is a judge. Ratings that choose pairs are told before."""
    told = {line.spec_id for line in made.lines if line.stage == "rate"}
    by_stage: dict[str, list[Form]] = {}
    for judge in judges:
        for stage in judge.stages:
            if stage.spec.spec_id not in told:
                by_stage.setdefault(stage.name, []).append(_form(made, judge.name, stage))
    for forms in by_stage.values():
        made.asked(forms)


def _form(made: Overview, name: str, stage: Stage) -> Form:
    """As many rows as there will be where that can be told: what a ranking or a claim asks about cannot."""
    waits = made.work("pair") or (getattr(stage, "context_spec", None) is not None and made.work("context"))
    pairs = made.expected("pair")
    if not waits:
        return Form(stage, name)
    if isinstance(stage, LabelStage):
        return Form(stage, name, total=2 * stage.votes * pairs, bound="at most")
    items = len(stage.parameters.get("items", [1])) if isinstance(stage, RateStage) else 1
    return Form(stage, name, total=2 * items * pairs, bound="at most")


def _probe(made: Overview, judges: Sequence[Judging]) -> None:
    """What judges should know, and pinned pairs that they have not judged: both wait for nothing but labels."""
    recipe, engine = made.recipe, EngineSettings(made.engine).versioned
    names = {stage.spec.spec_id: judge.name for judge in judges for stage in judge.stages}
    if recipe.probe is not None:
        stages, asked = probe_stages(recipe, recipe.probe, engine), recipe.probe
        most = asked.pairs * sum(1 if kind == "same" else 2 for kind in asked.kinds) if made.work("label") else None
        made.asked([Form(stage, names[stage.spec.spec_id], total=most, bound="at most") for stage in stages])
    compares = [stage for judge in judges for stage in judge.stages if isinstance(stage, LabelStage)]
    if pinned := anchor_stages(made.warehouse, compares, engine):
        made.asked([Form(stage, names[stage.spec.spec_id]) for stage in pinned])


def _derive(made: Overview, judges: Sequence[Judging]) -> None:
    """Labels that nobody is asked for: one per pair."""
    for judge in judges:
        stage, spec_id = judge.spec.stage, judge.spec.spec_id
        there = made.made([each.spec for each in judges if each.spec.stage == stage])[spec_id]
        left = max(0, made.expected("pair") - there["stands"])
        bound = "at most" if left else ""
        made.derived(stage, form=judge.name, spec_id=spec_id, later=left, bound=bound, **there)
