"""A person at work: logs in, watches the video play, says which answer is better and why; the warehouse has it.

With `VLM_RLAIF_SCREENSHOTS` set to a folder, the pages that `docs/audit.md` shows are saved there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import World
from vlm_rlaif.feedback.audit import places
from vlm_rlaif.feedback.audit.tasks import find_plan, pairs_of
from vlm_rlaif.warehouse.store import Warehouse

pytestmark = [pytest.mark.studio, pytest.mark.browser]
Page = Any
Studio = Any
Command = Any
MakePlan = Any
WIDE = {"width": 1600, "height": 1000}
PATIENCE_MS = 60_000


@pytest.fixture
def page(browser: Any, studio: Studio) -> Iterator[Page]:
    """A page of somebody who has logged in."""
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{studio.url}/user/login/")
    page.fill("input[name=email]", "lead@example.com")
    page.fill("input[name=password]", "a-password-of-the-test")
    page.click("button[type=submit]")
    page.wait_for_url("**/")
    yield page
    context.close()


def picture(page: Page, name: str) -> None:
    """Save what the page shows, if somebody wants it."""
    if folder := os.environ.get("VLM_RLAIF_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"audit-{name}.jpg"), type="jpeg", quality=55)


def begin(page: Page, studio: Studio, project: int) -> None:
    """Open the first task as it is opened for people who label, with its video loaded."""
    page.goto(f"{studio.url}/projects/{project}/data?labeling=1")
    page.get_by_text("Labeling Instructions").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("video", state="attached")
    page.wait_for_function("document.querySelector('video').readyState >= 3")


def watch(page: Page) -> float:
    """Play the video for a while; how far it came, in seconds."""
    page.evaluate("document.querySelector('video').play()")
    page.wait_for_timeout(1500)
    return float(page.evaluate("document.querySelector('video').currentTime"))


def shown_pair(page: Page, warehouse: Warehouse, name: str) -> Any:
    """The pair whose words are on the page."""
    text = page.inner_text("body")
    pairs = pairs_of(warehouse, find_plan(warehouse, name).plan_id)
    (pair,) = [one for one in pairs if one.words["response_a"] in text and one.words["response_b"] in text
               and one.words["question"] in text]  # fmt: skip
    return pair


@pytest.mark.parametrize("how", ["our server", "local files"])
def test_a_person_says_which_answer_is_better(
    how: str, page: Page, make_plan: MakePlan, studio: Studio, name: str, command: Command, tmp_path: Path
) -> None:
    (world := tmp_path / "world").mkdir()
    write_mp4(next(iter(World(seed=7).videos(1))), world / "0.mp4", size=256)
    warehouse = make_plan(videos=world, plain=True, pairs=6, size=6, overlap=0)
    plan = find_plan(warehouse, name)
    with places.serving(warehouse, pairs_of(warehouse, plan.plan_id), studio.url, 0) as address:
        where = ["--videos", address] if how == "our server" else ["--local-files", studio.root]
        assert command("feedback", "audit", "push", warehouse.path, name, *where).code == 0
        project = find_plan(warehouse, name).project
        begin(page, studio, project)
        assert watch(page) > 0.5
        assert page.evaluate("document.querySelector('video').videoWidth") == 256
        pair = shown_pair(page, warehouse, name)
        assert not page.get_by_role("radio", checked=True).count(), "nobody has decided in advance"
        page.get_by_text("B is better").click()
        page.get_by_text("Misses something").click()
        page.get_by_text("Too long or vague").click()
        page.locator(".ant-rate-star, [class*=rate] li, [class*=rating] [role=radio]").nth(3).click()
        comment = page.locator("textarea[name=comment], textarea").first
        comment.fill("A leaves out <b>the turn</b>.")
        comment.press("Shift+Enter")
        if how == "our server":
            picture(page, "pair")
        with page.expect_response(lambda answer: "/annotations" in answer.url and answer.request.method == "POST"):
            page.get_by_role("button", name="Submit").first.click()
        page.goto(f"{studio.url}/projects/{project}/data")
        page.get_by_text(pair.words["question"]).first.wait_for()
        if how == "our server":
            picture(page, "tasks")
    assert command("feedback", "audit", "pull", warehouse.path, name).code == 0
    (row,) = warehouse.rows("FROM human_verdicts")
    assert row["pair_id"] == pair.pair_id and row["choice"] == pair.shown_order[1], "B is the response shown second"
    assert row["reasons"] == ["missed_detail", "style"] and row["confidence"] == 4
    assert row["comment"] == "A leaves out <b>the turn</b>." and row["annotator"] == "lead@example.com"
    assert row["seconds"] > 1


def test_words_that_are_html_are_shown_as_words(
    page: Page, make_plan: MakePlan, studio: Studio, name: str, command: Command
) -> None:
    warehouse = make_plan(pairs=2, overlap=0, strata=[])
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    plan = find_plan(warehouse, name)
    with places.serving(warehouse, pairs_of(warehouse, plan.plan_id), studio.url, 0) as address:
        command("feedback", "audit", "push", warehouse.path, name, "--videos", address)
        begin(page, studio, find_plan(warehouse, name).project)
        page.wait_for_timeout(1000)
        text = page.inner_text("body")
    assert "<script>document.title = 'run'</script><img src=x onerror=alert(" in text and "<b>what</b>" in text
    assert alerts == [] and page.title() != "run" and not page.locator("img[src=x]").count()
