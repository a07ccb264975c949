"""A real Label Studio on this machine, started once for all tests, and a warehouse whose videos really play."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlm_rlaif.feedback.audit import label_studio
from vlm_rlaif.feedback.audit.planning import Asked, plan_audit
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.records import Record
from vlm_rlaif.warehouse.store import Warehouse

USER, PASSWORD = "lead@example.com", "a-password-of-the-test"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
FIRST_START_S = 240.0
LOOPBACK = "127.0.0.1"


@dataclass
class Studio:
    """A server with its data folder. It can be killed, and started again where it was."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    token: str = TOKEN
    users: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def root(self) -> Path:
        """What it serves as local files."""
        return self.folder / "media"

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "HOME": str(self.folder), "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder / "data"),
            "LABEL_STUDIO_USERNAME": USER, "LABEL_STUDIO_PASSWORD": PASSWORD, "LABEL_STUDIO_USER_TOKEN": self.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true", "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.root), "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
            "FEATURE_FLAGS_OFFLINE": "true",
        }  # fmt: skip
        command = [str(Path(sys.executable).with_name("label-studio")), "start", "--no-browser", "--internal-host",
                   LOOPBACK, "--port", str(self.port), "--log-level", "WARNING"]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + FIRST_START_S
        while not self._healthy():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < end, "Label Studio does not start"
            time.sleep(0.5)

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """At once, as a power cut would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, method: str, path: str, **how: Any) -> Any:
        """The server's own answer, without our client."""
        headers = {"Authorization": f"Token {self.token}"}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=120, **how)
        assert answer.is_success, answer.text[:500]
        return answer.json() if answer.content else None

    def join(self, email: str) -> int:
        """A further person signs up by the link of an invitation; her number."""
        if email not in self.users:
            link = self.ask("GET", "/api/invite")["invite_url"]
            with httpx.Client(base_url=self.url, follow_redirects=True, timeout=60) as browser:
                browser.get(link)
                form = {"email": email, "password": PASSWORD, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
                browser.post(link, data=form, headers={"Referer": self.url + link})
            self.users = {user["email"]: user["id"] for user in self.ask("GET", "/api/users/")}
        return self.users[email]

    def tasks(self, project: int) -> list[dict[str, Any]]:
        listed = self.ask("GET", "/api/tasks", params={"project": project, "fields": "all", "page_size": 2000})
        return list(listed["tasks"])

    def submit(self, task: int, choice: str, email: str = USER, **more: Any) -> int:
        """Store a result without the page; the server checks nothing. The number of the annotation."""
        result = [{"from_name": "preference", "to_name": "video", "type": "choices", "value": {"choices": [choice]}}]
        body = {"result": result, "lead_time": 8.5, "completed_by": self.join(email)} | more
        return int(self.ask("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    studio = Studio(tmp_path_factory.mktemp("studio"), port)
    studio.start()
    try:
        studio.users = {user["email"]: user["id"] for user in studio.ask("GET", "/api/users/")}
        yield studio
    finally:
        studio.kill()


@pytest.fixture
def studio(running: Studio, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """The server, as the environment of our commands names it."""
    monkeypatch.setenv(label_studio.URL, running.url)
    monkeypatch.setenv(label_studio.TOKEN, running.token)
    return running


MakePlan = Callable[..., Warehouse]


@pytest.fixture
def make_plan(
    empty: Path, tmp_path: Path, shapes_folder: Path, judged_rows: Callable[..., list[Record]],
    request: pytest.FixtureRequest,
) -> MakePlan:  # fmt: skip
    """`make_plan(pairs=6, **settings)`: three videos of as many pairs each, and a plan of all of them.

    The plan has the test's name, and so a project of its own on the server.
    """

    def make(pairs: int = 6, *, videos: Path = shapes_folder, plain: bool = False, **settings: Any) -> Warehouse:
        warehouse = Warehouse(Path(shutil.copy(empty, tmp_path / "w.duckdb")))
        add_videos(warehouse, Path(shutil.copytree(videos, tmp_path / "videos")))
        ids = [row["video_id"] for row in warehouse.rows("SELECT video_id FROM videos ORDER BY video_id")]
        warehouse.append(judged_rows(ids, pairs=pairs, plain=plain))
        judge = warehouse.value("SELECT any_value(spec_id) FROM labels")
        asked = Asked(judge=judge, **({"size": 3 * pairs} | settings))
        plan_audit(warehouse, plan_name(request.node.name), asked)
        return warehouse

    return make


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The name of the test's plan."""
    return plan_name(request.node.name)


def plan_name(test: str) -> str:
    return re.sub(r"\W", "-", test.removeprefix("test_"))[:80]
