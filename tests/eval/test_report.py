"""The page: self-contained, nothing executes, text from models is text."""

from __future__ import annotations

from pathlib import Path

from vlm_rlaif.datagen.shapes import render as shapes_video
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.eval.report import some_pairs, write_html
from vlm_rlaif.feedback.stats.estimates import clustered_mean
from vlm_rlaif.warehouse.records import Context, Label, Pair, Question, Response, Spec, Video
from vlm_rlaif.warehouse.store import Warehouse

EVIL = "<script>alert('x')</script> a red circle"


def filled(folder: Path) -> Warehouse:
    warehouse = Warehouse.create(folder / "w.duckdb")
    shapes_video.write_mp4(shapes.World(0).video(0), folder / "v.mp4")
    spec = Spec.make(
        stage="label", model="judge", revision="r", prompt="p", prompt_hash="h", frames={}, sampling={},
        upstream={}, run_id="run",
    )  # fmt: skip
    responses = [
        Response(
            response_id=name, question_id="q", spec_id="s", sample_index=i, seed=0, text=EVIL, tokens=3,
            finish="stop", logprob=-1.0, run_id="run",
        )
        for i, name in enumerate(("a", "b"))
    ]  # fmt: skip
    labels = [
        Label(
            label_id=order, pair_id="p", spec_id=spec.spec_id, context_id="c", shown_order=order, vote=0,
            choice="a", p_a=0.9, p_tie=0.0, reply="A", cached_tokens=0, run_id="run",
        )
        for order in ("ab", "ba")
    ]  # fmt: skip
    warehouse.append(
        [
            spec, *responses, *labels,
            Video(video_id="v", uri="v.mp4", source="x", video_group="v", split="train", status="ok", run_id="run"),
            Question(question_id="q", video_id="v", text=EVIL, source="imported", run_id="run"),
            Pair(pair_id="p", question_id="q", response_a="a", response_b="b", strategy="all", run_id="run"),
            Context(context_id="c", video_id="v", spec_id="s", caption_ids=["x"], text=EVIL, run_id="run"),
        ]
    )  # fmt: skip
    return warehouse


def test_words_of_models_are_shown_as_text(tmp_path: Path) -> None:
    warehouse = filled(tmp_path)
    figures = {EVIL: clustered_mean([1.0, 0.0], ["u", "v"])}
    write_html(warehouse, figures, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert "data:image/png;base64," in page


def test_a_few_pairs_are_chosen_with_their_words(tmp_path: Path) -> None:
    (pair,) = some_pairs(filled(tmp_path))
    assert pair["choice"] == "a" and not pair["conflict"] and pair["question"] == EVIL
