"""A warehouse with everything that the page shows, hostile words in all places, and a server of its pages."""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from vlm_rlaif.feedback.page.listing import Listing
from vlm_rlaif.feedback.page.server import Pages, PageServer
from vlm_rlaif.feedback.page.shell import About
from vlm_rlaif.feedback.page.snapshot import frozen
from vlm_rlaif.warehouse.media.video import content_id
from vlm_rlaif.warehouse.records import (
    Audit,
    AuditPlan,
    AuditTask,
    Caption,
    Clip,
    Context,
    Label,
    Pair,
    Probe,
    Question,
    Rating,
    Record,
    Response,
    Run,
    Spec,
    Transcript,
    Video,
    row_id,
)
from vlm_rlaif.warehouse.store import Warehouse

HOSTILE = '<script>document.title="run"</script><img src=x onerror="document.title=\'run\'">&amp; "quoted" \'too\''
RUN = "20260101-000000-000000"
PAIRS = 12
"""Of each video; of every twelve the answers and verdicts differ in their own way."""
VERDICTS = (  # choice and p_a, shown as ab, then as ba
    ("a", 0.9, "a", 0.8),
    ("b", 0.1, "b", 0.2),
    ("a", 0.9, "b", 0.2),
    ("b", 0.3, "a", 0.8),
    ("tie", 0.5, "tie", 0.5),
    ("a", 0.55, "a", 0.6),
    ("b", 0.45, "b", 0.45),
    ("a", 0.7, None, None),
    ("a", 0.99, "tie", 0.5),
    ("b", 0.05, "b", 0.0),
    ("tie", 0.4, "tie", 0.6),
    (None, None, None, None),
)
HUMANS = {0: ("a", "a"), 1: ("a", "a"), 2: ("b", "both_bad"), 4: ("tie",), 9: ("b", "a")}


def spec(stage: str, prompt: str, model: str = "tiny", revision: str = "1a") -> Spec:
    return Spec.make(
        stage=stage,
        model=model,
        revision=revision,
        prompt=prompt,
        prompt_hash=prompt,
        frames={},
        sampling={},
        upstream={},
        run_id=RUN,
    )


CAPTIONER, NARRATOR, POLICY = (
    spec("caption", "caption_v1"),
    spec("context", "context_v1", "none", "none"),
    spec("respond", "respond_v1"),
)
JUDGE, OTHER, PANEL, RATER = (
    spec("label", "judge_v1"),
    spec("label", "judges/other_v2.md", "big", "2b"),
    spec("panel", "panel_v1", "none", "none"),
    spec("rate", "rate_v1"),
)


def _verdict(
    pair: str, judge: Spec, order: str, choice: str, p_a: float, reply: str, context: str | None = None
) -> Label:
    return Label(
        label_id=row_id(judge.spec_id, pair, order),
        pair_id=pair,
        spec_id=judge.spec_id,
        context_id=context,
        shown_order=order,
        vote=0,
        choice=choice,
        p_a=p_a,
        p_tie=0.0,
        reply=reply,
        cached_tokens=0,
        run_id=RUN,
    )


def _video_rows(name: str, video_id: str, uri: str, status: str, words: str) -> Iterator[Record]:
    """A video with captions, questions, answers and all that was said of them."""
    yield Video(
        video_id=video_id,
        uri=uri,
        source="test",
        video_group=video_id,
        split="train" if name == "cat" else "test",
        status=status,
        duration_s=6.0,
        fps=12.0,
        width=32,
        height=32,
        codec="h264",
        run_id=RUN,
    )
    captions = []
    for part in range(3):
        clip, caption = row_id("clip", name, part), row_id("caption", name, part)
        yield Clip(
            clip_id=clip, video_id=video_id, start_s=2.0 * part, end_s=2.0 * part + 2, method="parts:3", run_id=RUN
        )
        yield Caption(
            caption_id=caption, clip_id=clip, spec_id=CAPTIONER.spec_id, text=f"caption {part} {words}", run_id=RUN
        )
        captions.append(caption)
    context = row_id("context", name)
    yield Context(
        context_id=context,
        video_id=video_id,
        spec_id=NARRATOR.spec_id,
        caption_ids=captions,
        text=f"the story of the {name} {words}",
        run_id=RUN,
    )
    yield Transcript(
        transcript_id=row_id("said", name),
        video_id=video_id,
        start_s=1.0,
        end_s=2.0,
        text=f"miaow {words}",
        source="cat.srt",
        run_id=RUN,
    )
    for number in range(PAIRS):
        question = row_id("question", name, number)
        yield Question(
            question_id=question,
            video_id=video_id,
            text=f"what does the {name} do at {number} ? {words}",
            reference=f"it sits {words}",
            kind=("action", None, "colour")[number % 3],
            source="imported",
            run_id=RUN,
        )
        answers = sorted(row_id("response", name, number, side) for side in "ab")
        for place, response in enumerate(answers):
            text = f"the {name} {'sits' if place else 'runs'} " + "very " * (number * place) + f"fast {words}"
            yield Response(
                response_id=response,
                question_id=question,
                spec_id=POLICY.spec_id,
                sample_index=place,
                seed=place,
                text=text,
                tokens=len(text.split()),
                finish="stop",
                logprob=None,
                run_id=RUN,
            )
            yield Rating(
                rating_id=row_id("rating", response),
                question_id=question,
                response_id=response,
                spec_id=RATER.spec_id,
                item="quality",
                value=2.0 + place,
                reply="3",
                cached_tokens=0,
                run_id=RUN,
            )
        pair = row_id("pair", name, number)
        yield Pair(
            pair_id=pair,
            question_id=question,
            response_a=answers[0],
            response_b=answers[1],
            strategy="all",
            run_id=RUN,
        )
        yield from _labels(pair, number, context, words)
        yield from _people(pair, name, number, words)
    yield Probe(
        probe_id=row_id("probe", name),
        spec_id=JUDGE.spec_id,
        kind="same",
        anchor=None,
        engine="e",
        question_id=row_id("question", name, 0),
        response_a=min(row_id("response", name, 0, s) for s in "ab"),
        response_b=min(row_id("response", name, 0, s) for s in "ab"),
        context_id=None,
        shown_order="ab",
        choice="tie",
        p_a=0.3,
        p_tie=0.4,
        reply=words,
        cached_tokens=0,
        run_id=RUN,
    )


def _labels(pair: str, number: int, context: str, words: str) -> Iterator[Record]:
    first, p_first, second, p_second = VERDICTS[number]
    if first and p_first is not None:
        yield _verdict(pair, JUDGE, "ab", first, p_first, f"A is better, because {words}", context)
    if second and p_second is not None:
        yield _verdict(pair, JUDGE, "ba", second, p_second, "B", context)
    if number < 4:
        yield _verdict(pair, OTHER, "unknown", "a", 1.0, "")
        yield _verdict(pair, PANEL, "both", "b", 0.25, "")


def _people(pair: str, name: str, number: int, words: str) -> Iterator[Record]:
    plan = row_id("plan")
    if number in HUMANS:
        yield AuditTask(
            audit_task_id=row_id("task", pair),
            plan_id=plan,
            pair_id=pair,
            stratum="all",
            weight=1.0,
            shown_order="ba",
            annotators=2,
            run_id=RUN,
        )
    for who, choice in zip(("ada", "ben"), HUMANS.get(number, ()), strict=False):
        yield Audit(
            audit_id=row_id("audit", pair, who),
            plan_id=plan,
            pair_id=pair,
            annotator=f"{who} {words}",
            annotation=f"{name}{number}{who}",
            choice=choice,
            reasons=["hallucination", words],
            confidence=4,
            comment=f"I think {words}",
            seconds=12.5,
            shown_order="ba",
            updated_at=datetime(2026, 1, 2, 3, 4),
            reply="{}",
            run_id=RUN,
        )


@pytest.fixture(scope="session")
def seen_file(empty: Path, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seen")
    warehouse = Warehouse(Path(shutil.copy(empty, folder / "w.duckdb")))
    shutil.copy(shapes_folder / "0.mp4", folder / "cat.mp4")
    began = datetime(2026, 1, 1)
    rows: list[Record] = [
        Run(
            run_id=RUN,
            stage="label",
            config="{}",
            code_version="0",
            engine="scripted",
            host="h",
            status="done",
            started_at=began,
        ),
        CAPTIONER,
        NARRATOR,
        POLICY,
        JUDGE,
        OTHER,
        PANEL,
        RATER,
        AuditPlan(plan_id=row_id("plan"), name="first", judge=JUDGE.spec_id, config="{}", run_id=RUN),
    ]
    rows += _video_rows("cat", content_id(folder / "cat.mp4"), "cat.mp4", "ok", "")
    rows += _video_rows("owl", row_id("video", "owl"), f"{HOSTILE}.mp4", f"no frames {HOSTILE}", HOSTILE)
    warehouse.append(rows)
    return warehouse.path


@pytest.fixture
def seen(seen_file: Path) -> Warehouse:
    """Two videos, 24 pairs and four judges. One video plays; all words about the other one are hostile."""
    return Warehouse(seen_file)


@dataclass(frozen=True)
class Reply:
    status: int
    text: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Site:
    """The pages of a warehouse."""

    server: PageServer
    listing: Listing

    def get(self, address: str, method: str = "GET", **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        connection.request(method, address, headers=headers)
        reply = connection.getresponse()
        text = reply.read().decode(errors="replace")
        connection.close()
        return Reply(reply.status, text, dict(reply.getheaders()))


@contextmanager
def site_of(warehouse: Warehouse, judge: str | None = None) -> Iterator[Site]:
    with PageServer() as server, frozen(warehouse) as copy:
        listing = Listing(copy.connection)
        about = About(warehouse.path, datetime(2026, 1, 1, 12, 30))
        server.show(Pages(warehouse, about, copy.connection, listing, judge))
        yield Site(server, listing)


@pytest.fixture
def show() -> Callable[[Warehouse], object]:
    """`with show(warehouse) as site`: its pages."""
    return site_of


@pytest.fixture(scope="module")
def site(seen_file: Path) -> Iterator[Site]:
    with site_of(Warehouse(seen_file)) as site:
        yield site
