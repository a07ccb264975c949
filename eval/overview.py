"""What a recipe would do, stage by stage, before any model is loaded: what stands, what is stale, what is left.

Rows are counted, not read. Those whose inputs do not stand yet are computed from how many inputs will come. Nothing
here imports torch. `Overview` covers the stages up to the questions; `overview_comparing.py` goes on to the labels,
`overview_learning.py` to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlm_rlaif.datagen.estimate import estimate, pace_s
from vlm_rlaif.datagen.job import Stage
from vlm_rlaif.datagen.plan import (
    answerable_stage,
    ask_stage,
    asked_by,
    caption_stage,
    clip_method,
    narrative_spec,
    part,
    questions_of,
    refine_stages,
    summarise_stage,
    template_spec,
)
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.datagen.shapes.add import video_file, world_folder
from vlm_rlaif.datagen.stages.clip import cut, method_name
from vlm_rlaif.datagen.stages.templates import unasked
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.inspection.specs import nearest
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.store import Warehouse

MADE = {
    "caption": "captions", "context": "contexts", "refine": "contexts", "summarise": "contexts", "ask": "questions",
    "templates": "questions", "answerable": "ratings", "respond": "responses", "rate": "ratings",
    "check": "ratings", "split": "ratings", "verify": "ratings", "rank": "ratings", "label": "labels",
    "rated": "labels", "panel": "labels", "answer": "answers", "win": "scores",
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
    """A judge of the labels, greedy or sampled answers, and whose."""
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
    gpu_hours: float = 0.0
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
            found, spec = estimate(self.warehouse, form.stage, Portion(), self.engine), form.stage.spec
            counts = made[spec.spec_id] | {"pending": found.rows, "failed": found.failed}
            if form.stage.name in ("probe", "anchor"):  # verdicts of a judge that are no labels
                counts |= {"stands": found.stands, "stale": 0}
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
                    gpu_hours=found.gpu_pace_s * rows / 3600,
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

    # The stages up to the questions

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
            self._rewrites()
        if self.recipe.ask is not None:
            if self.recipe.ask.templates:
                self._templates(len(unrendered))
            else:
                self._ask()
            if self.recipe.ask.answerable is not None:
                self._answerable()

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
        there = {
            "stands": self.count("count(*) FROM clips WHERE method = $m", m=method),
            "stale": self.count("count(*) FROM clips WHERE method <> $m", m=method),
        }
        if recipe.scenes is not None:
            videos = len(uncut) + len(unrendered)
            note = "one clip per video, or more" if videos else ""
            return self.derived("clip", **there, later=videos, bound="about", note=note)
        self.derived(
            "clip", **there, pending=sum(len(cut(row["duration_s"], recipe)) for row in uncut),
            later=sum(len(cut(video.duration_s, recipe)) for video in unrendered),
        )  # fmt: skip

    def _context(self, unrendered: int) -> None:
        spec, captions, method = (
            narrative_spec(self.recipe),
            caption_stage(self.recipe).spec,
            clip_method(self.recipe),
        )
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

    def _rewrites(self) -> None:
        """Every context of the line before is written anew, or passed on as it is."""
        settings = part(self.recipe, "context")
        forms = [(stage, f"round {number}") for number, stage in enumerate(refine_stages(self.recipe), 1)]
        if settings.summarise is not None:
            forms.append((summarise_stage(self.recipe), f"above {settings.summarise.above_words} words"))
        for stage, form in forms:
            before, rounds = self.lines[-1], [each.spec for each, _ in forms if each.name == stage.name]
            self.asked([Form(stage, form, total=before.stands + before.work, bound="at most")])
            stale = self.made(rounds)[stage.spec.spec_id]["stale"]  # another round of this recipe is not stale
            self.lines[-1] = replace(self.lines[-1], stale=stale)

    def _templates(self, unrendered: int) -> None:
        spec, templates = template_spec(self.recipe), part(self.recipe, "ask").templates
        ready = [len(written) for _, written in unasked(self.warehouse, spec, templates)]
        videos = unrendered + self.count(
            "count(*) FROM videos v WHERE status = 'ok' AND duration_s > 0 AND NOT EXISTS (SELECT 1 FROM questions q"
            " WHERE q.video_id = v.video_id AND (q.spec_id IS NULL OR q.spec_id = $spec))",
            spec=spec.spec_id,
        )
        made = self.made([spec])[spec.spec_id]
        later = (videos - len(ready)) * len(templates)
        self.derived("templates", spec_id=spec.spec_id, pending=sum(ready), later=later, bound="about", **made)

    def _answerable(self) -> None:
        stage = answerable_stage(self.recipe)
        written = self.count("count(*) FROM questions WHERE spec_id = $ask", ask=stage.ask_spec)
        coming = round(self.work("ask") * self._questions_per_request()) + self.work("templates")
        self.asked([Form(stage, total=written + coming, bound="about")])

    def _ask(self) -> None:
        stage = ask_stage(self.recipe)
        unasked = self.count(
            "count(*) FROM videos v WHERE status = 'ok' AND NOT EXISTS (SELECT 1 FROM questions q"
            " WHERE q.video_id = v.video_id AND (q.spec_id IS NULL OR q.spec_id = $spec))",
            spec=stage.spec.spec_id,
        )
        coming = any(self.work(made) for made in ("context", "refine", "summarise"))
        later = max(0, unasked - len(stage.pending(self.warehouse))) if coming else 0
        self.asked([Form(stage, "one request per video", later=later, bound="at most")])

    def questions(self, split: str | None = None) -> tuple[int, int]:
        """Questions that the recipe reads: those that stand, and about how many will come."""
        read = questions_of(self.recipe)
        there = self.count(
            "count(*) FROM questions q JOIN videos v USING (video_id) WHERE v.status = 'ok'"
            f" AND {read.where} AND ($split IS NULL OR v.split = $split)",
            split=split, **read.parameters,
        )  # fmt: skip
        if split is None:
            written = round(self.work("ask") * self._questions_per_request()) + self.work("templates")
            return there, self.work("questions") + (self.work("answerable") if read.answerable_spec else written)
        return there, round(self.questions()[1] * SHARES[split])

    def _questions_per_request(self) -> float:
        """As many as the model has written per video so far."""
        spec = asked_by(self.recipe)
        found: float | None = self.warehouse.value(
            "SELECT count(*) / nullif(count(DISTINCT video_id), 0) FROM questions WHERE spec_id = ?", [spec]
        )
        return found or 1.0
