"""The page of `feedback report` in a real browser: it loads nothing, runs nothing, and fits the window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.feedback.report.assess import assess
from vlm_rlaif.feedback.report.page import write_page
from vlm_rlaif.warehouse.store import Warehouse

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(known_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "judges.html"
    write_page(assess(Warehouse(known_file)), "Judges of <i>w.duckdb</i>", path)
    return path.as_uri()


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_the_window_and_loads_nothing(browser: Any, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: said.append(message.text))
    page.goto(address)
    assert asked == [address] and said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.locator("svg")
    assert plots.count() == 6
    for number in range(plots.count()):
        box = plots.nth(number).bounding_box()
        assert box["width"] > 250 and box["x"] + box["width"] <= width and box["height"] > 150
    assert page.locator("h1").inner_text() == "Judges of <i>w.duckdb</i>"
    page.close()


def test_words_in_plots_lie_inside_of_them(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter(text => {
            const svg = text.ownerSVGElement.getBoundingClientRect(), box = text.getBoundingClientRect();
            return box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1;
        }).map(text => text.textContent)"""
    )
    assert outside == []
    page.close()


def test_the_first_table_leads_to_every_judge(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 600})
    page.goto(address)
    page.get_by_role("link", name="judge_context_v1").click()
    heading = page.locator("h2", has_text="judge_context_v1")
    assert 0 <= heading.bounding_box()["y"] < 600
    page.close()
