"""A Label Studio server, as far as an audit needs one: a project, its tasks, what people submitted.

The only file that imports the SDK. Whatever goes wrong on the way is a `UserError` with the next step; the token is
in none of them. Nothing here knows of pairs or of the warehouse.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

from vlm_rlaif.warehouse.errors import MissingExtra, UserError
from vlm_rlaif.warehouse.inspection.printing import printable

TOKEN = "LABEL_STUDIO_API_KEY"
URL = "LABEL_STUDIO_URL"
DEFAULT_URL = "http://127.0.0.1:8080"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT_S = 300
"""For one answer: a large project is exported in one piece."""
PAGE = 1000
ONCE = {"max_retries": 0}
"""A request that creates something is not repeated blindly: the first one may have arrived."""
LABEL_STUDIO, FOLDER = "Label Studio", "The folder"
"""What can be missing."""
LEGACY_OFF = "legacy token authentication has been disabled"


@dataclass(frozen=True, slots=True)
class Project:
    number: int
    title: str
    config: str
    """The labeling config, as the server keeps it."""


@dataclass(frozen=True, slots=True)
class Task:
    number: int
    pair_id: str
    overlap: int
    """How many people are to see it."""
    video: str
    """The address that its page plays."""


class Server:
    """A connection to one server. Raises `UserError` where it cannot do what it is asked to."""

    def __init__(self, url: str, token: str) -> None:
        try:
            import httpx
            from label_studio_sdk import LabelStudio
            from label_studio_sdk.core.api_error import ApiError
        except ImportError:
            raise MissingExtra("An audit in Label Studio", "audit") from None
        self.url = url.rstrip("/")
        self._failed: tuple[type[Exception], ...] = (ApiError, httpx.HTTPError, httpx.InvalidURL)
        self.user = ""
        with self._asking(LABEL_STUDIO):
            self._sdk = LabelStudio(base_url=self.url, api_key=token, timeout=TIMEOUT_S)
            self.user = str(self._sdk.users.whoami().email)

    def projects(self, words: str) -> list[Project]:
        """The projects whose title holds these words."""
        with self._asking():
            found = [project.id for project in self._sdk.projects.list(title=words, page_size=100)]
        return [project for number in found if words in (project := self.project(number)).title]

    def project(self, number: int) -> Project:
        with self._asking(f"The project {number}"):
            found = self._sdk.projects.get(number)
            return Project(number, found.title or "", found.label_config or "")

    def create_project(self, title: str, config: str, instructions: str) -> Project:
        """A project in which people do not see what the judge says, and begin with what several people are to see."""
        with self._asking():
            made = self._sdk.projects.create(
                title=title, label_config=config, expert_instruction=instructions, show_instruction=True,
                show_collab_predictions=False, maximum_annotations=1, sampling="Uniform sampling",
                show_overlap_first=True, request_options=ONCE,
            )  # fmt: skip
            return self.project(made.id)

    def put_config(self, project: int, config: str) -> None:
        with self._asking(f"The project {project}"):
            self._sdk.projects.update(id=project, label_config=config)

    def tasks(self, project: int) -> list[Task]:
        with self._asking(f"The project {project}"):
            listed = self._sdk.tasks.list(
                project=project, fields="task_only", include="id,data,overlap", page_size=PAGE
            )
            found = [(one.id, one.data or {}, one.overlap or 1) for one in listed]
        return [
            Task(task, str(data.get("pair_id", "")), people, str(data.get("video", "")))
            for task, data, people in found
        ]

    def add_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
        """Import tasks: all of them or none. Their numbers."""
        with self._asking(f"The project {project}"):
            done = self._sdk.projects.import_tasks(
                id=project, request=tasks, return_task_ids=True, request_options=ONCE
            )
            return list(done.task_ids or [])

    def untouched(self, task: int) -> bool:
        """Whether nobody has said anything about a task, or begun to."""
        with self._asking(f"The task {task}"):
            found = self._sdk.tasks.get(str(task))
            return not (found.annotations or found.drafts or found.total_annotations or found.cancelled_annotations)

    def delete_task(self, task: int) -> None:
        with self._asking(f"The task {task}"):
            self._sdk.tasks.delete(str(task))

    def set_overlap(self, task: int, people: int) -> None:
        with self._asking(f"The task {task}"):
            self._sdk.tasks.update(id=str(task), overlap=people)

    def set_data(self, task: int, data: Mapping[str, Any]) -> None:
        with self._asking(f"The task {task}"):
            self._sdk.tasks.update(id=str(task), data=dict(data))

    def set_default_overlap(self, project: int, people: int) -> None:
        """Of tasks to come, and of those that more than one person is to see."""
        with self._asking(f"The project {project}"):
            self._sdk.projects.update(id=project, maximum_annotations=people)

    def share_folder(self, project: int, path: str) -> None:
        """Let the server's browsers read the files of a folder below its document root."""
        with self._asking(f"{FOLDER} {path}"):
            if any(storage.path == path for storage in self._sdk.import_storage.local.list(project=project)):
                return
            self._sdk.import_storage.local.create(project=project, path=path, use_blob_urls=True, title="videos")

    def export(self, project: int) -> list[dict[str, Any]]:
        """All tasks with their annotations, exactly as the server has them."""
        with self._asking(f"The project {project}"):
            found: list[dict[str, Any]] = self._sdk.projects.exports.as_json(project, timeout=TIMEOUT_S)
            return found

    def users(self) -> dict[int, str]:
        """Number -> e-mail address or name."""
        with self._asking():
            return {user.id: user.email or user.username or f"user {user.id}" for user in self._sdk.users.list()}

    @contextmanager
    def _asking(self, what: str = LABEL_STUDIO) -> Iterator[None]:
        try:
            yield
        except self._failed as error:
            status = getattr(error, "status_code", None)
            raise self._refused(what, status, _detail(error)) if status else self._unreachable(error) from None
        except (ValueError, AttributeError, TypeError):  # a page of HTML, say, where JSON was expected
            raise self._stranger() from None

    def _stranger(self) -> UserError:
        return UserError(f"What answers at {self.url} is no Label Studio.", f"--url http://HOST:PORT   (or {URL})")

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(
            f"Label Studio does not answer at {self.url} ({type(error).__name__}). Nothing is lost:"
            " the same command goes on when it is there again.",
            f"label-studio start --internal-host 127.0.0.1   (another address: --url, or {URL})",
        )

    def _refused(self, what: str, status: int, detail: str) -> UserError:
        if LEGACY_OFF in detail:
            return UserError(
                f"{self.url} knows the token in {TOKEN}, but legacy tokens are switched off there.",
                "Switch them on (Organization > API Tokens Settings > Legacy Tokens; on a server's very first start"
                " LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true),",
                f"or take a personal access token: Account & Settings > Personal Access Token, export {TOKEN}=...",
            )
        if status == 401:
            return UserError(
                f"{self.url} does not accept the token in {TOKEN}.",
                f"Account & Settings > Personal Access Token (or Legacy Token) shows yours: export {TOKEN}=...",
            )
        if status == 403:
            return UserError(f"{self.user or 'This user'} may not do that on {self.url}: {detail}",
                             f"Take the token of a user who may: export {TOKEN}=...")  # fmt: skip
        if status == 404 and what == LABEL_STUDIO:
            return self._stranger()
        if status == 404:
            return UserError(
                f"{what} is not on {self.url}: deleted there, or another server.",
                "vlm-rlaif feedback audit push WAREHOUSE NAME --new-project   (makes another one)",
            )
        if status == 400 and what.startswith(FOLDER):
            return UserError(
                f"{what} cannot be given out by {self.url}: {detail}",
                "Start the server with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and, as"
                " LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, the folder of --local-files.",
            )
        return UserError(f"{self.url} refused: {detail} (HTTP {status}).", "The server's own log says more.")


def connect(url: str | None, stored: str | None = None) -> Server:
    """The server at `address(url, stored)`; the token is `LABEL_STUDIO_API_KEY`."""
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UserError(
            f"{TOKEN} is not set. Label Studio shows your token: Account & Settings > Personal Access Token.",
            f"export {TOKEN}=...",
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"What {TOKEN} holds is no token: it has spaces or odd characters.", f"export {TOKEN}=...")
    return Server(address(url, stored), token)


def address(url: str | None, stored: str | None = None) -> str:
    """The address at `url`, else the one that a warehouse has, else `LABEL_STUDIO_URL`, else on this machine.

    A warehouse may be somebody else's, and must not decide who gets the token: what it has is taken if it is of this
    machine, or the one that would be taken without it. Raises `UserError` otherwise.
    """
    here = plain_address(url or os.environ.get(URL) or DEFAULT_URL, f"--url {DEFAULT_URL}")
    if url or stored is None or stored == here:
        return here
    there = plain_address(stored, f"--url {DEFAULT_URL}")
    if urlsplit(there).hostname not in LOOPBACK:
        raise UserError(
            f"The audit is on {printable(there)}.", f"If you trust it with your token: --url {quote(there)}"
        )
    return there


def plain_address(url: str, example: str) -> str:
    """An address without the slash at its end. Raises `UserError` for what is none, and for one with a password."""
    if "@" in url:
        raise UserError("An address with an @ in it may hold a password, which would be kept with the audit."
                        f" The token comes from {TOKEN}.", example)  # fmt: skip
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UserError(f"{printable(url)} is no address of a server.", example)
    return url.rstrip("/")


def _detail(error: Exception) -> str:
    """The server's own words, cut short."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("validation_errors") or body.get("detail") or body
    if isinstance(body, dict):
        body = "; ".join(str(said[0]) if isinstance(said, list) and said else str(said) for said in body.values())
    return " ".join(str(body).split())[:300]
