"""What a recipe would do, stage by stage, before any model is loaded: what stands, what is stale, what is left.

Rows are counted, not read. Those whose inputs do not stand yet are computed from how many inputs will come. Nothing
here imports torch. `Overview` covers the stages up to the labels; `overview_learning.py` goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb
from typing import Any

from vlm_rlaif.datagen.estimate import estimate, pace_s
from vlm_rlaif.datagen.job import Stage
from vlm_rlaif.datagen.plan import ask_stage, asked_by, caption_stage, clip_method, context_spec, respond_stage
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.datagen.shapes.add import video_file, world_folder
from vlm_rlaif.datagen.stages.clip import cut, method_name
from vlm_rlaif.feedback.label import label_stage
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.inspection.specs import nearest
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.store import Warehouse

MADE = {
    "caption": "captions", "context": "contexts", "ask": "questions", "respond": "responses", "label": "labels",
    "answer": "answers", "win": "scores",
}  # fmt: skip
"""Where the rows of a stage stand."""

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
"""How new videos are split."""


def spec_column(stage: str) -> str:
    """The column of a stage's table that holds the spec."""
    return "judge" if MADE[stage] == "scores" else "spec_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One stage of a recipe, in one of its forms."""

    stage: str
    form: str = ""
    """An arm of the labels, greedy or sampled answers, and whose."""
    spec_id: str | None = None
    """None where the stage has none, or where its model is not trained yet."""
    stands: int = 0
    stale: int = 0
    """Rows of this stage that the recipe does not read, because another spec (or another cut) made them."""
    failed: int = 0
    """Rows that failed, and are left alone without `--retry-failed`."""
    pending: int = 0
    """Rows that would be computed now."""
    later: int = 0
    """Rows that would be computed once their inputs stand."""
    bound: str = ""
    """`at most` or `about`, where `later` cannot be counted exactly."""
    frames: int = 0
    prompt_tokens: int = 0
    seconds: float | None = None
    """None: no earlier run tells how long a row takes."""
    note: str = ""
    first: tuple[str, ...] = ()
    """Ids of the first pending rows."""

    @property
    def work(self) -> int:
        return self.pending + self.later


@dataclass(frozen=True, slots=True)
class Form:
    """A stage as the recipe runs it, and the rows that will be asked for once more of its inputs stand."""

    stage: Stage
    name: str = ""
    total: int | None = None
    """Rows that there will be when all inputs stand; None: they all stand now."""
    later: int = 0
    """Rows that will be asked for, where there is no such total."""
    bound: str = ""


@dataclass(slots=True)
class Overview:
    """The lines of a recipe, in the order in which it runs."""

    warehouse: Warehouse
    recipe: Recipe
    engine: str
    lines: list[Line] = field(default_factory=list)
    waits_for: str = ""
    """A trainer whose model the following stages ask, and which does not stand: their specs are not known yet."""

    def work(self, stage: str, form: str | None = None) -> int:
        """Rows of a stage that are still to come."""
        return sum(line.work for line in self.lines if line.stage == stage and form in (None, line.form))

    def expected(self, stage: str) -> int:
        """Rows of a stage that stand or are still to come."""
        return sum(line.stands + line.work for line in self.lines if line.stage == stage)

    def count(self, sql: str, **parameters: Any) -> int:
        return int(self.warehouse.value(f"SELECT {sql}", parameters) or 0)

    def derived(self, stage: str, **line: Any) -> None:
        """A line of a stage that asks no model."""
        made, pace = Line(stage=stage, **line), pace_s(self.warehouse, stage, "none")
        self.lines.append(replace(made, seconds=pace * made.work if pace is not None else None))

    def asked(self, forms: Sequence[Form], waits_for: str = "") -> None:
        """The lines of a stage that asks a model, in all forms that the recipe runs it in.

        A stage that waits for a trainer has no spec yet. Another model stands in for its own, to say what it costs.
        """
        waits_for = waits_for or self.waits_for
        made = self.made([form.stage.spec for form in forms])
        for form in forms:
            found, spec = estimate(self.warehouse, form.stage, engine=self.engine), form.stage.spec
            counts = made[spec.spec_id] | {"pending": found.rows, "failed": found.failed}
            if waits_for:
                stale = counts["stands"] + counts["stale"] if self.waits_for else 0
                counts = {"stands": 0, "stale": stale, "pending": 0, "failed": 0}
            known = counts["stands"] + counts["pending"] + counts["failed"]
            later = form.later if form.total is None else max(0, form.total - known)
            rows = counts["pending"] + later
            self.lines.append(
                Line(
                    stage=form.stage.name, form=form.name, **counts, later=later, bound=form.bound if later else "",
                    spec_id=None if waits_for else spec.spec_id, note=f"waits for {waits_for}" if waits_for else "",
                    frames=found.frames * rows, prompt_tokens=round(found.tokens * rows),
                    seconds=found.pace_s * rows if found.pace_s is not None else None,
                    first=() if waits_for else found.first,
                )
            )  # fmt: skip

    def made(self, specs: Sequence[Spec]) -> dict[str, dict[str, int]]:
        """Spec id -> rows of it (`stands`), and rows of other specs of its stage that are most like it (`stale`)."""
        stage, own = specs[0].stage, {spec.spec_id: asdict(spec) for spec in specs}
        counted = {
            row["spec_id"]: row["n"]
            for row in self.warehouse.rows(
                f"SELECT {spec_column(stage)} AS spec_id, count(*) AS n FROM {MADE[stage]} GROUP BY ALL"
            )
        }
        found = {spec_id: {"stands": counted.get(spec_id, 0), "stale": 0} for spec_id in own}
        for other in self.warehouse.rows("SELECT * FROM specs WHERE stage = ?", [stage]):
            if other["spec_id"] not in own and (like := nearest(other, own.values())):
                found[like["spec_id"]]["stale"] += counted.get(other["spec_id"], 0)
        return found

    # The stages up to the labels

    def generate(self) -> None:
        """Videos, clips, captions, contexts and questions."""
        unrendered = self._unrendered()
        world_questions = self.recipe.world.questions if self.recipe.world else 0
        self.derived(
            "add", stands=self.count("count(*) FROM videos WHERE status = 'ok'"), pending=len(unrendered),
            failed=self.count("count(*) FROM videos WHERE status <> 'ok'"),
        )  # fmt: skip
        self.derived(
            "questions", stands=self.count("count(*) FROM questions WHERE spec_id IS NULL"),
            later=len(unrendered) * world_questions, bound="at most" if unrendered else "",
        )  # fmt: skip
        if self.recipe.clip is not None:
            self._clip(unrendered)
        if self.recipe.caption is not None:
            self.asked([Form(caption_stage(self.recipe), total=self.expected("clip"))])
        if self.recipe.context is not None:
            self._context(len(unrendered))
        if self.recipe.ask is not None:
            self._ask()

    def _unrendered(self) -> list[shapes.ShapesVideo]:
        """Videos of the recipe's shapes world that are not in the warehouse."""
        if (world := self.recipe.world) is None:
            return []
        folder = world_folder(self.warehouse, world)
        there = {row["uri"] for row in self.warehouse.rows("SELECT uri FROM video_files")}
        wanted = shapes.World(world.seed).videos(world.videos)
        root = self.warehouse.folder
        return [v for v in wanted if str(video_file(folder, v.index).relative_to(root)) not in there]

    def _clip(self, unrendered: Sequence[shapes.ShapesVideo]) -> None:
        assert self.recipe.clip is not None
        recipe, method = self.recipe.clip, method_name(self.recipe.clip)
        uncut = self.warehouse.stream(
            "SELECT duration_s FROM videos v WHERE status = 'ok' AND duration_s > 0"
            " AND NOT EXISTS (SELECT 1 FROM clips c WHERE c.video_id = v.video_id AND c.method = ?)",
            [method],
        )
        self.derived(
            "clip", stands=self.count("count(*) FROM clips WHERE method = $m", m=method),
            stale=self.count("count(*) FROM clips WHERE method <> $m", m=method),
            pending=sum(len(cut(row["duration_s"], recipe)) for row in uncut),
            later=sum(len(cut(video.duration_s, recipe)) for video in unrendered),
        )  # fmt: skip

    def _context(self, unrendered: int) -> None:
        spec, captions, method = context_spec(self.recipe), caption_stage(self.recipe).spec, clip_method(self.recipe)
        ready = self.count(
            "count(*) FROM (SELECT c.video_id FROM clips c LEFT JOIN captions x ON x.clip_id = c.clip_id"
            " AND x.spec_id = $captions WHERE c.method = $method AND NOT EXISTS (SELECT 1 FROM contexts t"
            " WHERE t.video_id = c.video_id AND t.spec_id = $spec) GROUP BY c.video_id"
            " HAVING count(*) = count(x.caption_id))",
            captions=captions.spec_id, method=method, spec=spec.spec_id,
        )  # fmt: skip
        made = self.made([spec])[spec.spec_id]
        videos = self.count("count(*) FROM videos WHERE status = 'ok' AND duration_s > 0") + unrendered
        later = max(0, videos - made["stands"] - ready) if self.work("caption") else 0
        self.derived("context", spec_id=spec.spec_id, pending=ready, later=later, bound="at most", **made)

    def _ask(self) -> None:
        stage = ask_stage(self.recipe)
        unasked = self.count(
            "count(*) FROM videos v WHERE status = 'ok' AND NOT EXISTS (SELECT 1 FROM questions q"
            " WHERE q.video_id = v.video_id AND (q.spec_id IS NULL OR q.spec_id = $spec))",
            spec=stage.spec.spec_id,
        )
        later = max(0, unasked - len(stage.pending(self.warehouse))) if self.work("context") else 0
        self.asked([Form(stage, "one request per video", later=later, bound="at most")])

    def questions(self, split: str | None = None) -> tuple[int, int]:
        """Questions that the recipe reads: those that stand, and about how many will come."""
        there = self.count(
            "count(*) FROM questions q JOIN videos v USING (video_id) WHERE v.status = 'ok'"
            " AND (q.spec_id IS NULL OR q.spec_id = $ask) AND ($split IS NULL OR v.split = $split)",
            ask=asked_by(self.recipe), split=split,
        )  # fmt: skip
        if split is None:
            return there, self.work("questions") + round(self.work("ask") * self._questions_per_request())
        return there, round(self.questions()[1] * SHARES[split])

    def _questions_per_request(self) -> float:
        """As many as the model has written per video so far."""
        spec = asked_by(self.recipe)
        found: float | None = self.warehouse.value(
            "SELECT count(*) / nullif(count(DISTINCT video_id), 0) FROM questions WHERE spec_id = ?", [spec]
        )
        return found or 1.0

    def answer_and_judge(self) -> None:
        """Responses, pairs and labels."""
        if self.recipe.respond is None:
            return
        stage = respond_stage(self.recipe)
        bound = "about" if self.work("ask") else "at most"
        self.asked([Form(stage, total=stage.recipe.samples * sum(self.questions()), bound=bound)])
        self._pair(stage.spec, stage.recipe.samples)
        if self.recipe.label is not None:
            self._label(self.recipe.label.arms)

    def _pair(self, respond: Spec, samples: int) -> None:
        ready = self.count(
            "count(*) FROM responses a JOIN responses b ON b.question_id = a.question_id AND b.spec_id = a.spec_id"
            " AND b.response_id > a.response_id AND b.text <> a.text WHERE a.spec_id = $spec AND NOT EXISTS"
            " (SELECT 1 FROM pairs p WHERE p.response_a = a.response_id AND p.response_b = b.response_id)",
            spec=respond.spec_id,
        )  # fmt: skip
        looked_at = self.count(
            "sum(n * (n - 1) // 2) FROM (SELECT count(*) AS n FROM responses WHERE spec_id = $spec"
            " GROUP BY question_id)",
            spec=respond.spec_id,
        )
        (made,) = self.warehouse.rows(
            "SELECT count(*) FILTER (s.spec_id = $spec) AS stands, count(*) FILTER (s.spec_id <> $spec) AS stale"
            " FROM pairs p JOIN responses r ON r.response_id = p.response_a JOIN specs s USING (spec_id)"
            " WHERE s.stage = 'respond'",
            {"spec": respond.spec_id},
        )
        most = sum(self.questions()) * comb(samples, 2)
        if self.waits_for:
            return self.derived(
                "pair", stale=sum(made.values()), later=most, bound="at most", note=f"waits for {self.waits_for}"
            )
        later = most - looked_at if self.work("respond") else 0
        self.derived("pair", **made, pending=ready, later=later, bound="at most")

    def _label(self, arms: Sequence[str]) -> None:
        forms = []
        for arm in arms:
            unfinished = self.work("pair") or (arm == "context" and self.work("context"))
            total = 2 * self.expected("pair") if unfinished else None
            forms.append(Form(label_stage(self.recipe, arm), arm, total=total, bound="at most"))
        self.asked(forms)
