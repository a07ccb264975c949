"""A warehouse with a plan, and a Label Studio that lives in memory: what it stores, and when it fails."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.feedback.audit.label_studio import Project, Task
from vlm_rlaif.feedback.audit.planning import Asked, plan_audit
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Record, Video
from vlm_rlaif.warehouse.store import Warehouse


@dataclass
class MemoryServer:
    """What `Server` does, without a server. `dies_after` counts the requests that still arrive."""

    url: str = "http://memory"
    user: str = "lead@x"
    made: dict[int, Project] = field(default_factory=dict)
    stored: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    default_overlap: dict[int, int] = field(default_factory=dict)
    people: dict[int, str] = field(default_factory=lambda: {1: "ann@x", 2: "bob@x"})
    dies_after: int = 10**9
    requests: int = 0
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def _arrives(self) -> None:
        self.requests += 1
        self.dies_after -= 1
        if self.dies_after < 0:
            raise UserError(f"Label Studio does not answer at {self.url}.")

    def projects(self, words: str) -> list[Project]:
        self._arrives()
        return [project for project in self.made.values() if words in project.title]

    def project(self, number: int) -> Project:
        self._arrives()
        if number not in self.made:
            raise UserError(f"The project {number} is not on {self.url}.")
        return self.made[number]

    def create_project(self, title: str, config: str, instructions: str) -> Project:
        self._arrives()
        number = next(self._numbers)
        self.made[number], self.stored[number], self.default_overlap[number] = Project(number, title, config), [], 1
        return self.made[number]

    def put_config(self, project: int, config: str) -> None:
        self._arrives()
        self.made[project] = Project(project, self.made[project].title, config)

    def tasks(self, project: int) -> list[Task]:
        self._arrives()
        return [
            Task(task["id"], task["data"]["pair_id"], task["overlap"], task["data"]["video"])
            for task in self.stored[project]
        ]

    def add_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
        self._arrives()
        fresh = [
            {"id": next(self._numbers), "annotations": [], "overlap": self.default_overlap[project], **task}
            for task in tasks
        ]
        self.stored[project] += fresh
        return [task["id"] for task in fresh]

    def untouched(self, task: int) -> bool:
        self._arrives()
        (stored,) = [one for one in itertools.chain(*self.stored.values()) if one["id"] == task]
        return not stored["annotations"]

    def delete_task(self, task: int) -> None:
        self._arrives()
        for stored in self.stored.values():
            stored[:] = [one for one in stored if one["id"] != task]

    def set_data(self, task: int, data: Mapping[str, Any]) -> None:
        self._arrives()
        for stored in itertools.chain(*self.stored.values()):
            if stored["id"] == task:
                stored["data"] = dict(data)

    def set_overlap(self, task: int, people: int) -> None:
        self._arrives()
        for stored in itertools.chain(*self.stored.values()):
            if stored["id"] == task:
                stored["overlap"] = people

    def set_default_overlap(self, project: int, people: int) -> None:
        """As the server does it: all tasks follow, unless some are for several people already."""
        self._arrives()
        self.default_overlap[project] = people
        shared = [task for task in self.stored[project] if task["overlap"] > 1]
        for task in shared or self.stored[project]:
            task["overlap"] = people

    def export(self, project: int) -> list[dict[str, Any]]:
        self._arrives()
        return self.stored[project]

    def users(self) -> dict[int, str]:
        self._arrives()
        return self.people

    def submit(self, pair: str, choice: str, user: int = 1, at: str = "2026-11-25T08:00:00Z", **more: Any) -> None:
        """A person answers."""
        (task,) = [task for task in itertools.chain(*self.stored.values()) if task["data"]["pair_id"] == pair]
        result = [{"from_name": "preference", "to_name": "video", "type": "choices", "value": {"choices": [choice]}}]
        task["annotations"].append(
            {"id": next(self._numbers), "completed_by": user, "updated_at": at, "lead_time": 9.0, "result": result}
            | more
        )


@pytest.fixture
def server() -> Any:
    return MemoryServer()


JudgedRows = Callable[..., list[Record]]


def film(empty: Path, folder: Path, letter: str, judged_rows: JudgedRows) -> Warehouse:
    """40 videos of 5 pairs each, judged in both orders. The videos have no files."""
    names = [f"{letter}{number:02}" for number in range(40)]
    videos = [
        Video(video_id=name, uri=f"{name}.mp4", source="t", video_group=name, status="ok", fps=12.0,
              split="train" if name[1:] < "30" else "test", run_id="test")
        for name in names
    ]  # fmt: skip
    warehouse = Warehouse(Path(shutil.copy(empty, folder / f"{letter}.duckdb")))
    warehouse.append([*videos, *judged_rows(names)])
    return warehouse


@pytest.fixture(scope="session")
def judged_file(empty: Path, judged_rows: JudgedRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(empty, tmp_path_factory.mktemp("judged"), "v", judged_rows).path


@pytest.fixture
def judged(judged_file: Path, tmp_path: Path) -> Warehouse:
    """40 videos of 5 pairs each, judged in both orders. The videos have no files."""
    return Warehouse(Path(shutil.copy(judged_file, tmp_path / "w.duckdb")))


@pytest.fixture(scope="session")
def planned_file(judged_file: Path) -> Path:
    warehouse = Warehouse(Path(shutil.copy(judged_file, judged_file.with_name("planned.duckdb"))))
    judge = warehouse.value("SELECT any_value(spec_id) FROM labels")
    plan_audit(warehouse, "spring", Asked(judge=judge, size=30))
    return warehouse.path


@pytest.fixture
def planned(planned_file: Path, tmp_path: Path) -> Warehouse:
    """The same with the plan `spring`: 30 pairs, 6 of them for two people."""
    return Warehouse(Path(shutil.copy(planned_file, tmp_path / "w.duckdb")))


@pytest.fixture
def neighbour(empty: Path, tmp_path: Path, judged_rows: JudgedRows) -> Warehouse:
    """Another warehouse with as many videos, the same judge, and a plan of the same name and settings."""
    warehouse = film(empty, tmp_path, "n", judged_rows)
    judge = warehouse.value("SELECT any_value(spec_id) FROM labels")
    plan_audit(warehouse, "spring", Asked(judge=judge, size=30))
    return warehouse
