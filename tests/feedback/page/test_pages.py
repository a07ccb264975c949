"""The pages over HTTP: what stands on them, what is refused, and that words of data stay words."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from vlm_rlaif.feedback.page.listing import SHOWS
from vlm_rlaif.feedback.page.pair_page import differing
from vlm_rlaif.feedback.page.shell import p_bar
from vlm_rlaif.feedback.page.snapshot import frozen
from vlm_rlaif.warehouse.records import row_id
from vlm_rlaif.warehouse.store import Warehouse

ALLOWED = """
html head meta title link script body header a span form input button main nav section aside h1 h2 h3 p b small ol ul
li div article footer table thead tbody tr th td code mark svg rect details summary video dialog dl dt dd kbd
"""


class Reader(HTMLParser):
    """Elements and addresses of a page; fails on what no page of ours has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[str | None] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        assert name in ALLOWED.split(), name
        assert not [key for key in given if key.startswith("on") or key in ("style", "srcdoc")]
        if name not in ("meta", "link", "input"):
            self.open.append(name)
        if name == "script":
            self.scripts.append(given.get("src"))
        self.links += [value or "" for key, value in given.items() if key in ("href", "src", "action")]

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name


def addresses(page: str) -> list[str]:
    return Reader(page).links


def pair_id(name: str, number: int) -> str:
    return row_id("pair", name, number)


def test_the_list_shows_questions_answers_and_verdicts(site: Any) -> None:
    page = site.get("/").text
    assert "what does the cat do at 0 ?" in page
    assert "the cat runs fast" in page
    assert page.count('<span class="badge conflict"') == 4
    assert "people: both bad" not in page  # of a pair, people together say a, b or tie
    assert 'href="/?judge=' in page


def test_every_address_on_the_pages_answers_and_none_leads_elsewhere(site: Any) -> None:
    todo, seen = ["/"], {"/"}
    while todo and len(seen) < 150:
        reply = site.get(todo.pop())
        assert reply.status == 200
        if reply.headers["Content-Type"].startswith("text/html"):
            found = set(addresses(reply.text)) - seen
            assert [link for link in found if not re.match(r"/(static/|pair/|video/|\?|$)", link)] == []
            fresh = [link for link in found if not link.startswith("/video/")]
            seen |= found
            todo += fresh
    assert len(seen) >= 150


def test_every_filter_is_a_link_with_its_count(site: Any, seen: Warehouse) -> None:
    page = site.get("/").text
    for words, _ in SHOWS.values():
        assert f"<span>{words}</span>" in page
    conflicts = next(link for link in addresses(page) if "show=conflicts" in link)
    assert "<b>4</b> pairs" in site.get(conflicts).text


def test_a_pair_shows_all_that_is_known(site: Any, seen: Warehouse) -> None:
    page = site.get(f"/pair/{pair_id('cat', 0)}").text
    for words in (
        "what does the cat do at 0 ?", "Reference: <b>it sits </b>", "caption 2", 'data-start="4.0"', "miaow",
        "the story of the cat", "A is better, because", "judge_v1", "other_v2.md", "panel_v1", "reads the context",
        "judges its own answers", "not known", "both", "hallucination", "4 of 5 sure", "saw B first", "12 s",
        "I think", "people prefer it", "rate_v1", "same", "passed", "label · scripted · 2026-01-01 00:00", " of 22",
    ):  # fmt: skip
        assert words in page, words
    assert page.count("judges its own answers") == 1
    label = seen.value("SELECT label_id FROM labels WHERE pair_id = ? LIMIT 1", [pair_id("cat", 0)])
    assert f"vlm-rlaif why {seen.path} {label}" in page


def test_a_pair_that_nobody_judged_is_shown_too(site: Any) -> None:
    page = site.get(f"/pair/{pair_id('cat', 11)}?judge=nobody").text
    assert "No judge has compared these answers yet." in page
    assert "1 of 2<" in page or "2 of 2<" in page
    assert "not in this list" in site.get(f"/pair/{pair_id('cat', 11)}").text


def test_neighbours_are_those_of_the_filtered_list(site: Any) -> None:
    def rel(page: str, name: str) -> str | None:
        found = re.search(rf'<a href="([^"]+)" rel="{name}">', page)
        return found[1].replace("&amp;", "&") if found else None

    first = next(
        link for link in addresses(site.get("/?show=conflicts&sort=unsure").text) if link.startswith("/pair/")
    )
    page, walked = site.get(first).text, [first]
    assert rel(page, "prev") is None
    while following := rel(page, "next"):
        page = site.get(following).text
        walked.append(following)
    assert len(set(walked)) == 4
    assert all("show=conflicts&sort=unsure" in link for link in walked)
    assert rel(page, "prev") == walked[-2]
    assert "4 of 4" in page


def test_words_of_data_are_shown_and_never_run(site: Any, seen: Warehouse) -> None:
    for address in ("/", "/?text=%3Cscript%3E", f"/pair/{pair_id('owl', 0)}", f"/pair/{pair_id('owl', 2)}"):
        page = site.get(address).text
        assert Reader(page).scripts == ["/static/page.js"]
        assert "&lt;script&gt;" in page
    assert "This video cannot be read: no frames &lt;script&gt;" in page
    assert "<video" not in page


@pytest.mark.parametrize("address", ["/", "/static/page.js", "/nothing", "/?show=x", f"/pair/{pair_id('cat', 0)}"])
def test_the_browser_is_told_to_run_nothing_else(site: Any, address: str) -> None:
    headers = site.get(address).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "address",
    ["/pair/0123456789abcdef0123", "/pair/", "/pair/%27%20OR%201=1", "/static/../server.py", "/static/%2e%2e/cli.py",
     "/static/", "/etc/passwd", "/%00", "/pair/<script>x</script>", "//[", "//[::1"],
)  # fmt: skip
def test_what_is_not_there_is_a_404_in_words(site: Any, address: str) -> None:
    reply = site.get(address.replace("<", "%3C"))
    assert reply.status == 404
    assert "There is nothing at" in reply.text or "is no address" in reply.text
    Reader(reply.text)


@pytest.mark.parametrize("address", ["/?judge=unknown", "/?show=everything", "/?sort=%3Cscript%3E"])
def test_an_address_that_means_nothing_is_a_400_in_words(site: Any, address: str) -> None:
    reply = site.get(address)
    assert reply.status == 400
    assert "There is no judge unknown" in reply.text or "The list knows no" in reply.text


@pytest.mark.parametrize("end", ["after=99999999", "before=0", "after=x", "after=-1", "before=" + "9" * 40])
def test_a_place_that_is_not_there_begins_at_the_front(site: Any, end: str) -> None:
    front = site.get("/?sort=gap")
    assert site.get(f"/?sort=gap&{end}").text == front.text


def test_nothing_is_changed_by_a_request(site: Any) -> None:
    assert site.get("/", "POST").status == 501
    assert site.get("/", Host="evil.example").status == 403


def test_videos_come_in_parts_and_unreadable_ones_say_why(site: Any, seen: Warehouse) -> None:
    cat, owl = (seen.value("SELECT video_id FROM videos WHERE split = ?", [split]) for split in ("train", "test"))
    assert site.get(f"/video/{cat}", Range="bytes=0-9").status == 206
    missing = site.get(f"/video/{owl}")
    assert missing.status == 404 and "No such file" in missing.text
    assert missing.headers["Content-Type"].startswith("text/plain")


def test_an_empty_warehouse_says_what_to_do(
    warehouse: Warehouse, asked: Warehouse, show: Callable[[Warehouse], Any]
) -> None:
    with show(Warehouse.create(warehouse.folder / "new.duckdb")) as site:
        assert "vlm-rlaif add" in site.get("/").text
    with show(asked) as site:
        assert "vlm-rlaif datagen respond" in site.get("/").text


def test_rows_that_are_missing_are_said(seen_file: Path, tmp_path: Path, show: Callable[[Warehouse], Any]) -> None:
    torn = Warehouse(tmp_path / "w.duckdb")
    torn.path.write_bytes(seen_file.read_bytes())
    for table in ("questions", "responses", "videos", "specs", "runs"):
        torn.execute(f"DELETE FROM {table}")
    with show(torn) as site:
        page = site.get(f"/pair/{pair_id('cat', 0)}")
        assert page.status == 200
        assert "the question is not in this warehouse" in page.text
        assert "(missing)" in site.get("/?judge=nobody").text


def test_the_snapshot_leaves_nothing_behind_and_hinders_nobody(
    seen: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with frozen(seen) as copy:
        assert list(tmp_path.iterdir()) == []
        seen.execute("SELECT 1")  # a writer gets in
        assert copy.connection.execute("SELECT count(*) FROM page_rows").fetchall() == [(40,)]
        with pytest.raises(Exception, match="read-only"):
            copy.connection.execute("DELETE FROM labels")
        with pytest.raises(Exception, match=r"disabled|external"):
            copy.connection.execute("SELECT * FROM read_text('/etc/hostname')")


VIEW = """
import signal, sys
from vlm_rlaif.warehouse.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever a shell or a CI made of it
main()
"""


def test_what_a_killed_view_left_is_removed_and_that_of_a_living_one_stays(
    seen: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = f"vlm-rlaif-view-{ended.pid}-x", f"vlm-rlaif-view-{os.getpid()}-x", "vlm-rlaif-view-notes"
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.duckdb").write_text("half a copy")
    with frozen(seen):
        assert {folder.name for folder in tmp_path.iterdir()} == set(names[1:])


def test_many_may_look_at_once(site: Any) -> None:
    addresses = [f"/pair/{pair_id(name, number)}?text={name}" for name in ("cat", "owl") for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(site.get, [*addresses, "/?text=cat", "/?show=ties"] * 2))
    assert {reply.status for reply in replies} == {200}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_ended(seen: Warehouse, tmp_path: Path, signum: signal.Signals) -> None:
    arguments = ["view", str(seen.path), "--port", "0", "--judge", "judge_v1", "--no-browser"]
    with subprocess.Popen(
        [sys.executable, "-c", VIEW, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert "Snapshot of" in process.stdout.readline()
        url = process.stdout.readline().split()[0]
        assert b"what does the cat do" in urlopen(url, timeout=20).read()
        process.send_signal(signum)
        try:
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, "the snapshot is gone" in said) == (0, True)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_the_command_are_said(seen: Warehouse, command: Callable[..., Any], site: Any) -> None:
    assert "There is no judge 'nobody'" in command("view", seen.path, "--judge", "nobody").err
    taken = command("view", seen.path, "--port", site.server.server_port)
    assert (taken.code, "--port 0" in taken.err) == (2, True)
    assert command("view", "missing.duckdb").code == 2


def test_a_page_that_fails_says_so(
    site: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_rlaif.feedback.page.server.look_up", lambda *_: 1 / 0)
    reply = site.get(f"/pair/{pair_id('cat', 0)}")
    assert (reply.status, "The terminal says why" in reply.text) == (500, True)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_only_differences_are_marked() -> None:
    assert differing("the same", "the same") == (["the same"], ["the same"])
    assert differing("", "new <b>") == ([], ["<mark>new &lt;b&gt;</mark>"])
    long = "word " * 2000
    assert differing(long, "short") == (long, "short")


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_a_bar_stays_in_its_place(p: float) -> None:
    begin, width = (float(value) for value in re.findall(r'<rect x="([\d.]+)" y="3" width="([\d.]+)"', p_bar(p))[1])
    assert 0 <= begin <= begin + width <= 96
    assert (begin + width == 48) == (p > 0.5)


def test_pages_are_quick(site: Any) -> None:
    began = time.monotonic()
    for number in range(5):
        site.get(f"/pair/{pair_id('cat', number)}")
    assert time.monotonic() - began < 5


def test_commands_on_a_page_can_be_copied_whole(site: Any, seen: Warehouse) -> None:
    page = site.get(f"/pair/{pair_id('cat', 1)}").text
    copied = re.findall(r'data-copy="([^"]+)"', page)
    assert len(copied) > 10
    assert all(json.dumps(line) and line.startswith(f"vlm-rlaif why {seen.path} ") for line in copied)


def test_a_warehouse_with_a_space_in_its_name_is_quoted_in_commands(
    seen_file: Path, empty: Path, tmp_path: Path, show: Callable[[Warehouse], Any]
) -> None:
    (folder := tmp_path / "my data").mkdir()
    full, bare = (Warehouse(Path(shutil.copy(file, folder / name))) for file, name in
                  ((seen_file, "full.duckdb"), (empty, "bare.duckdb")))  # fmt: skip
    with show(full) as site:
        assert html.escape(f"why '{full.path}' ") in site.get(f"/pair/{pair_id('cat', 0)}").text
    with show(bare) as site:
        assert html.escape(f"vlm-rlaif add '{bare.path}' FOLDER_OF_VIDEOS") in site.get("/").text
