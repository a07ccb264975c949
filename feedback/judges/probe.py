"""Probes: questions to a pairwise judge whose answers are known without people, or that it has answered before.

`same` shows one response twice (a tie is right), `other_answer` the answer to another video beside one to this video
(which should win), `repeat` a pair that the judge has labelled. `anchor` is the stage of its own that judges pinned
pairs again (`anchors.py` pins them). Verdicts go to the table `probes` and are no preferences. How a judge is asked,
and how its reply is read, is the label stage's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.feedback.judges.pairwise import LabelStage
from vlm_rlaif.feedback.judges.plan import judge_named, judges_of
from vlm_rlaif.warehouse.care.keys import probe_id
from vlm_rlaif.warehouse.config import Probing, Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Label, Probe, Record, Spec
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

AGAIN = ("repeat", "anchor")
"""Kinds that another engine, or another version of it, is asked anew."""
_DRAWN = """
    WITH judged AS (
        SELECT p.pair_id, p.question_id, p.response_a, p.response_b, q.video_id, q.text AS question, v.video_group
        FROM labels l JOIN pairs p USING (pair_id) JOIN questions q ON q.question_id = p.question_id
        JOIN videos v ON v.video_id = q.video_id
        WHERE l.spec_id = $spec AND p.strategy NOT LIKE 'perturb%' GROUP BY ALL
        HAVING count(DISTINCT l.shown_order) = 2
    ), drawn AS (
        SELECT j.*, k.kind, md5($seed || k.kind || j.pair_id) AS lot, s.response_a IS NOT NULL AS stands, s.other
        FROM judged j CROSS JOIN (SELECT unnest($kinds) AS kind) k
        LEFT JOIN (
            SELECT kind, question_id, response_a, CASE WHEN kind = 'repeat' THEN response_b END AS second,
                   min(response_b) AS other
            FROM probes WHERE spec_id = $spec AND (kind <> 'repeat' OR engine = $engine) GROUP BY ALL
        ) s ON s.kind = k.kind AND s.question_id = j.question_id AND s.response_a = j.response_a
           AND (k.kind <> 'repeat' OR s.second = j.response_b)
    ), placed AS (
        SELECT *, row_number() OVER (PARTITION BY kind, video_id ORDER BY stands DESC, lot) AS place FROM drawn
        QUALIFY kind = 'repeat' OR row_number() OVER (PARTITION BY kind, response_a ORDER BY stands DESC, lot) = 1
    ), few AS (
        SELECT * FROM placed
        QUALIFY row_number() OVER (PARTITION BY kind ORDER BY stands DESC, place, lot) <= $pairs
    ), own AS (
        SELECT f.response_a, f.question_id, f.video_group, f.other, lower(trim(f.question)) AS question,
               lower(trim(a.text)) AS said, a.spec_id
        FROM few f JOIN responses a ON a.response_id = f.response_a WHERE f.kind = 'other_answer'
    ), asked_alike AS (
        SELECT o.response_a, arg_min(r.response_id, md5($seed || o.response_a || r.response_id)) AS other
        FROM own o JOIN questions q ON lower(trim(q.text)) = o.question
        JOIN videos v ON v.video_id = q.video_id AND v.video_group <> o.video_group
        JOIN responses r ON r.question_id = q.question_id AND r.spec_id = o.spec_id AND lower(trim(r.text)) <> o.said
        GROUP BY o.response_a
    ), any_other AS (
        SELECT o.response_a, arg_min(n.response_a, md5($seed || o.response_a || n.response_a)) AS other
        FROM own o JOIN own n ON n.video_group <> o.video_group AND n.said <> o.said GROUP BY o.response_a
    )
    SELECT kind, NULL::VARCHAR AS anchor, question_id, response_a,
           CASE kind WHEN 'same' THEN response_a ELSE response_b END AS response_b
    FROM few WHERE kind <> 'other_answer'
    UNION ALL
    SELECT 'other_answer', NULL, question_id, response_a, coalesce(o.other, s.other, n.other)
    FROM own o LEFT JOIN asked_alike s USING (response_a) LEFT JOIN any_other n USING (response_a)
    WHERE coalesce(o.other, s.other, n.other) IS NOT NULL
"""
_PINNED = """
    SELECT 'anchor' AS kind, n.name AS anchor, p.question_id, p.response_a, p.response_b
    FROM anchors n JOIN pairs p USING (pair_id) WHERE $names IS NULL OR list_contains($names, n.name)
"""
_ASKED = """
    SELECT c.*, 'probe' AS pair_id, 0 AS vote, o.shown_order, q.text AS question, a.text AS text_a, b.text AS text_b,
           v.video_id, v.uri, x.context_id, x.text AS context
    FROM chosen c
    JOIN (VALUES ('ab'), ('ba')) o(shown_order) ON c.kind <> 'same' OR o.shown_order = 'ab'
    JOIN responses a ON a.response_id = c.response_a
    JOIN responses b ON b.response_id = c.response_b
    JOIN questions q ON q.question_id = c.question_id
    JOIN videos v ON v.video_id = q.video_id
    LEFT JOIN contexts x ON x.video_id = v.video_id AND x.spec_id = $context
    WHERE ($context IS NULL OR x.context_id IS NOT NULL) AND ($everything OR NOT EXISTS (
        SELECT 1 FROM probes p
        WHERE p.spec_id = $spec AND p.kind = c.kind AND p.anchor IS NOT DISTINCT FROM c.anchor
          AND p.question_id = c.question_id AND p.response_a = c.response_a AND p.response_b = c.response_b
          AND p.context_id IS NOT DISTINCT FROM x.context_id AND p.shown_order = o.shown_order
          AND (NOT list_contains($again, p.kind) OR p.engine = $engine)))
    ORDER BY v.video_id, c.kind, c.anchor, c.question_id, c.response_a, c.response_b, o.shown_order
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeStage:
    """Verdicts of one judge that are no preferences: probes, or with `name` = `anchor` the pinned pairs."""

    judge: LabelStage
    engine: str
    """What runs the judge, with its version."""
    kinds: tuple[str, ...] = ()
    pairs: int = 100
    """Probes of each kind. Those that stand count first, so that more labels do not mean more probes."""
    seed: int = 0
    anchors: tuple[str, ...] | None = None
    """Anchor sets of the stage `anchor`; None: all of them."""
    name: str = "probe"
    needs: str = "labels of this judge in both orders (vlm-rlaif feedback label), or anchors (feedback anchor pin)"

    @property
    def spec(self) -> Spec:
        return self.judge.spec

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        asked: dict[str, Any] = {"spec": self.spec.spec_id, "engine": self.engine}
        chosen, given = _DRAWN, {**asked, "seed": str(self.seed), "kinds": list(self.kinds), "pairs": self.pairs}
        if self.name == "anchor":
            chosen, given = _PINNED, {"names": None if self.anchors is None else list(self.anchors)}
        return warehouse.stream(
            _ASKED,
            {**asked, "context": self.judge.context_spec, "everything": everything, "again": list(AGAIN)},
            row_id=self._probe_id,
            first=(f"CREATE TEMP TABLE chosen AS {chosen}", given),
        )

    def _probe_id(self, row: Row) -> str:
        return probe_id(
            self.spec.spec_id, row["kind"], row["anchor"], self.engine if row["kind"] in AGAIN else None,
            row["question_id"], row["response_a"], row["response_b"], row["context_id"], row["shown_order"],
        )  # fmt: skip

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        return self.judge.request(warehouse, row)

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        (said,) = self.judge.parse(row, completion, run_id)
        assert isinstance(said, Label)
        return [
            Probe(
                probe_id=row["row_id"], spec_id=self.spec.spec_id, kind=row["kind"], anchor=row["anchor"],
                engine=self.engine, question_id=row["question_id"], response_a=row["response_a"],
                response_b=row["response_b"], context_id=row["context_id"], shown_order=row["shown_order"],
                choice=said.choice, p_a=said.p_a, p_tie=said.p_tie, reply=said.reply,
                cached_tokens=said.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


def pairwise_judges(recipe: Recipe, names: Sequence[str] = ()) -> list[LabelStage]:
    """The pairwise judges of a recipe that have these names; without any the arms of `label:`, or else all.

    Raises `UserError` for an unknown name, and for a judge that compares nothing.
    """
    if names:
        chosen = [judge_named(recipe, name) for name in names]
    else:
        arms = recipe.label.arms if recipe.label is not None else None
        chosen = [each for name, each in judges_of(recipe).items() if arms is None or name in arms]
    found = []
    for each in chosen:
        compares = [stage for stage in each.stages if isinstance(stage, LabelStage)]
        if names and not compares:
            raise UserError(
                f"The judge {each.name} compares no two responses: probes and anchors ask pairwise judges."
            )
        found += compares
    if not found:
        raise UserError(f"The recipe {recipe.name} has no pairwise judge to be asked.")
    return found


def probe_stages(recipe: Recipe, settings: Probing, engine: str) -> list[ProbeStage]:
    """The probes of a recipe's judges."""
    return [
        ProbeStage(judge=judge, engine=engine, kinds=tuple(settings.kinds), pairs=settings.pairs, seed=settings.seed)
        for judge in pairwise_judges(recipe, settings.judges)
    ]


def anchor_stages(
    warehouse: Warehouse, judges: Sequence[LabelStage], engine: str, names: tuple[str, ...] | None = None
) -> list[ProbeStage]:  # fmt: skip
    """Pinned pairs for each of these judges; nothing where none is pinned."""
    if not warehouse.value("SELECT count(*) FROM anchors"):
        return []
    return [ProbeStage(judge=judge, engine=engine, anchors=names, name="anchor") for judge in judges]
