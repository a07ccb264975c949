"""A warehouse of judges whose bias is known, with exact truth, probes, anchors and an answer of a judge's own."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from vlm_rlaif.warehouse.records import (
    Anchor,
    Context,
    Label,
    Pair,
    Probe,
    Question,
    Record,
    Response,
    Run,
    Spec,
    Video,
    row_id,
)
from vlm_rlaif.warehouse.store import Warehouse

VIDEOS, PAIRS = 30, 4
TRUE, FALSE = "there are 3 shapes .", "many shapes of several kinds move about in this video ."
NASTY = "<script>alert('judge')</script>_v1"


def spec(stage: str, prompt: str, revision: str, **upstream: str) -> Spec:
    return Spec.make(stage=stage, model=f"model {revision}", revision=revision, prompt=prompt, prompt_hash=prompt,
                     frames={}, sampling={}, upstream=upstream, run_id="run")  # fmt: skip


POLICY, OWN = spec("respond", "respond_v1", "policy"), spec("respond", "respond_v1", "judge")
NARRATIVE = spec("context", "context_v1", "none")
PLAIN = spec("label", NASTY, "judge", respond=POLICY.spec_id)
READING = spec("label", "judge_context_v1", "judge", respond=POLICY.spec_id, context=NARRATIVE.spec_id)


def verdict(order: str, p_first: float) -> dict[str, object]:
    p_a = p_first if order == "ab" else 1 - p_first
    return {"choice": "a" if p_a > 0.5 else "b", "p_a": p_a, "p_tie": 0.0, "shown_order": order, "reply": "A",
            "cached_tokens": 0, "run_id": "run"}  # fmt: skip


def rows() -> Iterator[Record]:
    chance = random.Random(5)
    yield Run(run_id="run", stage="label", config="{}", code_version="0", engine="scripted", host="h",
              started_at=datetime(2026, 1, 1))  # fmt: skip
    yield from (POLICY, OWN, NARRATIVE, PLAIN, READING)
    for number in range(VIDEOS):
        video = row_id("video", number)
        yield Video(video_id=video, uri=f"{number}.mp4", source="shapes", video_group=video, split="train",
                    status="ok", duration_s=4.0, run_id="run")  # fmt: skip
        context = row_id("context", number)
        yield Context(context_id=context, video_id=video, spec_id=NARRATIVE.spec_id, text="words", caption_ids=[],
                      run_id="run")  # fmt: skip
        for item in range(PAIRS):
            yield from pair_rows(number, item, video, context, chance)


def pair_rows(number: int, item: int, video: str, context: str, chance: random.Random) -> Iterator[Record]:
    """The true answer is a in half of the pairs; the one that has a place of its own is by the judge itself."""
    question = row_id("question", number, item)
    yield Question(question_id=question, video_id=video, text=f"how many ? {item}", reference=TRUE, kind="count",
                   source="shapes", run_id="run")  # fmt: skip
    true_is_a = chance.random() < 0.5
    a, b = sorted(row_id("response", question, side) for side in "xy")
    for response, is_true in ((a, true_is_a), (b, not true_is_a)):
        text = TRUE if is_true else FALSE
        policy = OWN if item == 0 and response == a else POLICY
        yield Response(response_id=response, question_id=question, spec_id=policy.spec_id, sample_index=0, seed=0,
                       text=text, tokens=len(text.split()), finish="stop", logprob=None, run_id="run")  # fmt: skip
    pair = row_id("pair", a, b)
    yield Pair(pair_id=pair, question_id=question, response_a=a, response_b=b, strategy="all", run_id="run")
    sees = {judge: chance.random() < right for judge, right in ((PLAIN, 0.7), (READING, 0.95))}
    for order in ("ab", "ba"):
        for judge, right in sees.items():
            read = context if judge is READING else None
            true_first = true_is_a == (order == "ab")
            p_first = (0.9 if true_first else 0.3) if right else (0.4 if true_first else 0.8)
            said = verdict(order, min(0.99, p_first))
            yield Label(label_id=row_id("label", judge.spec_id, pair, read, order, 0), pair_id=pair, vote=0,
                        spec_id=judge.spec_id, context_id=read, **said)  # type: ignore[arg-type]  # fmt: skip
            if item == 1:
                for kind, engine in (("repeat", "one 1"), ("anchor", "one 1"), ("anchor", "one 2")):
                    moved = 0.1 if engine == "one 2" else 0.0
                    again = verdict(order, min(0.99, p_first + moved))
                    yield probe(judge, kind, engine, question, a, b, read, again)
    if item == 1:
        yield Anchor(anchor_id=row_id("anchor", "first", pair), name="first", pair_id=pair, run_id="run")
        same = verdict("ab", 0.6 if number % 3 else 0.4) | ({"choice": "tie"} if number % 2 else {})
        yield probe(PLAIN, "same", "one 1", question, a, a, None, same)
        yield probe(PLAIN, "other_answer", "one 1", question, a, b, None, verdict("ab", 0.8))
        yield probe(PLAIN, "other_answer", "one 1", question, a, b, None, verdict("ba", 0.6))


def probe(
    judge: Spec, kind: str, engine: str, question: str, a: str, b: str, context: str | None, said: dict[str, object]
) -> Probe:  # fmt: skip
    name = "first" if kind == "anchor" else None
    parts = (judge.spec_id, kind, name, engine if name or kind == "repeat" else None, question, a, b, context)
    said = said | {"run_id": "run" if judge is PLAIN else "run later"}
    return Probe(probe_id=row_id("probe", *parts, said["shown_order"]), spec_id=judge.spec_id, kind=kind, anchor=name,
                 engine=engine, question_id=question, response_a=a, response_b=b, context_id=context,
                 **said)  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="session")
def known_file(empty: Path) -> Path:
    warehouse = Warehouse(Path(shutil.copy(empty, empty.with_name("known.duckdb"))))
    warehouse.append(list(rows()))
    return warehouse.path


@pytest.fixture
def known_judges(known_file: Path, tmp_path: Path) -> Warehouse:
    return Warehouse(Path(shutil.copy(known_file, tmp_path / "w.duckdb")))
