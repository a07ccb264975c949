"""The pages in a real browser: the video plays and seeks, keys work, and words of data never run.

With `VLM_RLAIF_SCREENSHOTS` set to a folder, what the pages look like is saved there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vlm_rlaif.warehouse.media.video import content_id
from vlm_rlaif.warehouse.records import row_id
from vlm_rlaif.warehouse.store import Warehouse

pytestmark = pytest.mark.browser
PATIENCE_MS = 20_000
CAT = f"/pair/{row_id('pair', 'cat', 0)}"
OWL = f"/pair/{row_id('pair', 'owl', 0)}"
LOADED = "() => document.querySelector('video').readyState >= 1"


WIDER = """width => [...document.querySelectorAll("body *")]
  .filter(part => !part.closest(".table") && part.getBoundingClientRect().right > width)
  .map(part => `${part.tagName}.${part.className}`)"""
"""What sticks out of the window; a table scrolls by itself."""


class Seen:
    """A page, and what it complained about or asked others for."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.url, self.complaints, self.elsewhere = url, [], []
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: request.url.startswith(url) or self.elsewhere.append(request.url))

    def open(self, address: str) -> Any:
        self.page.goto(self.url + address)
        return self.page

    def key(self, *keys: str) -> Any:
        for key in keys:
            self.page.keyboard.press(key)
        return self.page

    def picture(self, name: str) -> None:
        if folder := os.environ.get("VLM_RLAIF_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"view-{name}.png"))


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Seen]]:
    """`look(site)`: a page in the browser. It must not have complained or asked others in the end."""
    opened: list[Seen] = []

    def open_page(site: Any, **settings: Any) -> Seen:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **settings})
        opened.append(Seen(context, site.server.url))
        return opened[-1]

    yield open_page
    for seen in opened:
        assert seen.elsewhere == []
        assert seen.complaints == []
        seen.page.context.close()


def now_s(page: Any) -> float:
    return float(page.evaluate("document.querySelector('video').currentTime"))


def test_the_video_plays_and_a_click_on_a_caption_seeks(site: Any, look: Callable[..., Seen]) -> None:
    seen = look(site)
    page = seen.open(CAT)
    page.wait_for_function(LOADED)
    page.get_by_text("caption 2").click()
    page.wait_for_function("() => document.querySelector('video').currentTime > 4.2")
    assert now_s(page) < 6
    assert page.locator(".clip.now").count() == 1
    assert "caption 2" in page.locator(".clip.now").inner_text()
    page.wait_for_function("() => document.querySelector('video').ended")
    assert page.evaluate("document.querySelector('video').videoWidth") == 32


def test_keys_play_and_jump_and_walk_through_the_list(site: Any, look: Callable[..., Seen]) -> None:
    seen = look(site)
    page = seen.open("/?show=audited")
    first, second = (link.get_attribute("href") for link in page.locator(".pairs a").all()[:2])
    seen.key("j", "j", "k", "Enter")
    page.wait_for_url("**/pair/**")
    assert page.url.endswith(first)
    seen.key("j")
    page.wait_for_url(f"**{second}")
    seen.key("ArrowLeft")
    page.wait_for_url(f"**{first}")
    seen.key("u")
    page.wait_for_url("**/?judge=*")
    seen.key("2")
    page.wait_for_url("**show=conflicts*")
    assert "4 pairs" in page.locator(".total").inner_text()
    seen.key("?")
    assert page.locator("dialog").is_visible()
    seen.key("?")
    assert not page.locator("dialog").is_visible()


def test_space_plays_and_numbers_jump(site: Any, look: Callable[..., Seen]) -> None:
    seen = look(site)
    page = seen.open(CAT)
    page.wait_for_function(LOADED)
    seen.key(" ")
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.3")
    seen.key(" ")
    assert page.evaluate("document.querySelector('video').paused")
    seen.key("2")
    page.wait_for_function("() => document.querySelector('video').currentTime > 2.1")


def test_search_is_typed_after_a_slash_and_keys_are_letters_there(site: Any, look: Callable[..., Seen]) -> None:
    seen = look(site)
    page = seen.open("/")
    seen.key("/")
    page.keyboard.type("at 3 ?")
    seen.key("Enter")
    page.wait_for_url("**text=at+3**")
    assert page.locator(".pairs > li").count() == 2


def test_words_of_data_never_run(site: Any, look: Callable[..., Seen]) -> None:
    seen = look(site)
    for address in (OWL, f"{OWL}?text=<script>", "/?text=<script>document.title='run'</script>", "/"):
        page = seen.open(address)
        page.wait_for_timeout(200)
        assert "run" not in page.title()
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.images.length") == 0
    page = seen.open(OWL)
    assert page.locator("h1").inner_text().count("<script>document.title=") == 1
    assert page.get_by_text("This video cannot be read").is_visible()
    page.locator(".lineage summary").click()
    assert page.locator(".lineage td").count() > 40


def test_what_a_browser_cannot_play_is_played_as_a_copy(
    seen_file: Path, tmp_path: Path, show: Callable[[Warehouse], Any], look: Callable[..., Seen]
) -> None:
    warehouse = Warehouse(tmp_path / "w.duckdb")
    warehouse.path.write_bytes(seen_file.read_bytes())
    with av.open(str(tmp_path / "cat.avi"), "w") as box:
        stream = box.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(150):
            picture = np.full((48, 64, 3), n, np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode())
    avi = content_id(tmp_path / "cat.avi")
    warehouse.execute("UPDATE questions SET video_id = ? WHERE text LIKE '%the cat%'", [avi])
    warehouse.execute("UPDATE videos SET uri = 'cat.avi', video_id = ? WHERE uri = 'cat.mp4'", [avi])
    with show(warehouse) as site:
        page = look(site).open(CAT)
        page.wait_for_function(LOADED)
        page.evaluate("document.querySelector('video').currentTime = 4")
        page.wait_for_function("() => !document.querySelector('video').seeking")
        assert now_s(page) == pytest.approx(4.0)
        assert page.evaluate("document.querySelector('video').duration") == pytest.approx(6.0, abs=0.05)
    assert (tmp_path / "w.duckdb.proxies" / f"{avi}.mp4").is_file()


def test_a_video_that_is_gone_is_said_on_its_page(
    seen_file: Path, tmp_path: Path, show: Callable[[Warehouse], Any], look: Callable[..., Seen]
) -> None:
    warehouse = Warehouse(tmp_path / "w.duckdb")
    warehouse.path.write_bytes(seen_file.read_bytes())
    with show(warehouse) as site:
        seen = look(site)
        page = seen.open(CAT)
        page.wait_for_function("() => document.getElementById('video-says').textContent.includes('No such file')")
        assert {"404" in complaint for complaint in seen.complaints} == {True}  # the browser's own words
        seen.complaints.clear()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 900), ("light", 420)])
def test_nothing_sticks_out_at_any_width(site: Any, look: Callable[..., Seen], scheme: str, width: int) -> None:
    seen = look(site, viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name, address in (("list", "/"), ("pair", CAT), ("hostile", OWL)):
        page = seen.open(address)
        assert page.evaluate(WIDER, width) == []
        seen.picture(f"{name}-{scheme}-{width}")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(22, 24, 27)") == (scheme == "dark")


def test_pages_work_without_scripts(site: Any, look: Callable[..., Seen]) -> None:
    seen = look(site, java_script_enabled=False)
    page = seen.open("/?show=conflicts")
    page.locator(".pairs a").first.click()
    page.locator("a[rel=next]").click()
    page.locator("a[rel=up]").click()
    assert "4 pairs" in page.locator(".total").inner_text()
