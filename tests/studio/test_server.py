"""Push and pull against the real server: what it really stores, and what happens when it dies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlm_rlaif.feedback.audit.tasks import find_plan
from vlm_rlaif.warehouse.store import Warehouse

pytestmark = pytest.mark.studio
Studio = Any
MakePlan = Any
Command = Any
TALKING = """
import sys
from vlm_rlaif.feedback.audit import push
from vlm_rlaif.feedback.audit.label_studio import Server
from vlm_rlaif.warehouse.cli import main

push.CHUNK = 20
export = Server.export

def told(server, project):
    print("the export begins", file=sys.stderr, flush=True)
    return export(server, project)

Server.export = told
sys.argv = ["vlm-rlaif", *sys.argv[1:]]
main()
"""
"""The command in small chunks, and it says when it asks for all verdicts."""


def audit(command: Command, what: str, warehouse: Warehouse, name: str, *more: str) -> Any:
    return command("feedback", "audit", what, warehouse.path, name, *more)


def project_of(warehouse: Warehouse, name: str) -> int:
    number = find_plan(warehouse, name).project
    assert number is not None
    return number


def test_a_plan_goes_there_and_verdicts_come_back(
    make_plan: MakePlan, studio: Studio, name: str, command: Command
) -> None:
    warehouse = make_plan(overlap=0.34)
    pushed = audit(command, "push", warehouse, name)
    assert (pushed.code, "18 tasks created" in pushed.out) == (0, True), pushed.err
    again = audit(command, "push", warehouse, name)
    assert "0 tasks created, 18 were there." in again.out
    tasks = studio.tasks(project_of(warehouse, name))
    assert len({task["data"]["pair_id"] for task in tasks}) == len(tasks) == 18
    assert Counter(task["overlap"] for task in tasks) == {1: 12, 2: 6}
    assert all(task["predictions"][0]["model_version"].startswith("judge_v1@") for task in tasks)
    shown = studio.ask("GET", f"/api/projects/{project_of(warehouse, name)}/next")
    assert shown["predictions"] == [], "the page of a person is not sent the verdict"
    assert shown["overlap"] == 2, "pairs for several people come first"

    shared = next(task for task in tasks if task["overlap"] == 2)
    edited = studio.submit(shared["id"], "A")
    studio.submit(shared["id"], "B", "bob@example.com")
    assert audit(command, "pull", warehouse, name).code == 0
    order = warehouse.value("SELECT shown_order FROM audit_tasks WHERE pair_id = ?", [shared["data"]["pair_id"]])
    said = {row["annotator"]: row for row in warehouse.rows("FROM human_verdicts")}
    assert {person: row["choice"] for person, row in said.items()} == {
        "lead@example.com": order[0], "bob@example.com": order[1],
    }  # fmt: skip
    assert said["bob@example.com"]["seconds"] == 8.5
    runs = warehouse.rows("FROM runs")
    assert audit(command, "pull", warehouse, name).code == 0 and warehouse.rows("FROM runs") == runs

    result = [{"from_name": "preference", "to_name": "video", "type": "choices", "value": {"choices": ["tie"]}}]
    studio.ask("PATCH", f"/api/annotations/{edited}/", json={"result": result})
    assert "1 rows written" in audit(command, "pull", warehouse, name).out
    assert warehouse.value("SELECT count(*) FROM audits") == 3
    assert Counter(row["choice"] for row in warehouse.rows("FROM human_verdicts")) == {"tie": 1, order[1]: 1}

    open_ones = audit(command, "close", warehouse, name)
    assert open_ones.code == 0, open_ones.err
    assert "17 pairs that nobody has judged" in open_ones.out
    assert audit(command, "pull", warehouse, name).code == 2


def test_results_that_the_server_believes_are_refused(
    make_plan: MakePlan, studio: Studio, name: str, command: Command
) -> None:
    warehouse = make_plan(overlap=0)
    audit(command, "push", warehouse, name)
    tasks = studio.tasks(project_of(warehouse, name))
    studio.submit(tasks[0]["id"], "A")
    studio.submit(tasks[1]["id"], "C")
    studio.submit(tasks[2]["id"], "A", result=[])
    wrong = [{"from_name": "verdict", "to_name": "video", "type": "choices", "value": {"choices": ["A"]}}]
    studio.submit(tasks[3]["id"], "A", result=wrong)
    studio.ask("PATCH", f"/api/tasks/{tasks[4]['id']}/", json={"data": tasks[4]["data"] | {"response_a": "other"}})
    studio.submit(tasks[4]["id"], "A")
    done = audit(command, "pull", warehouse, name, "--json")
    assert done.code == 3
    said = json.loads(done.out)
    assert said["verdicts"] == said["written"] - 4 == 1
    whys = [refusal["why"] for refusal in said["refused"]]
    for why in ("not one of", "no verdict", "nothing on the page is called 'verdict'", "words of its pair"):
        assert sum(why in one for one in whys) == 1, whys
    assert warehouse.value("SELECT count(*) FROM open_failures WHERE stage = 'audit'") == 4
    state = audit(command, "status", warehouse, name)
    assert "1 verdicts, 0 of them not pulled yet; 0 skipped, 4 that are no verdicts" in state.out
    assert audit(command, "close", warehouse, name).code == 2


def test_verdicts_that_were_taken_back_and_tasks_that_were_made_twice(
    make_plan: MakePlan, studio: Studio, name: str, command: Command
) -> None:
    warehouse = make_plan(overlap=0)
    audit(command, "push", warehouse, name)
    number = project_of(warehouse, name)
    tasks = studio.tasks(number)
    gone, left_out = (studio.submit(task["id"], "A") for task in tasks[:2])
    assert audit(command, "pull", warehouse, name).code == 0
    studio.ask("DELETE", f"/api/annotations/{gone}/")
    studio.ask("PATCH", f"/api/annotations/{left_out}/", json={"was_cancelled": True})
    back = audit(command, "pull", warehouse, name)
    assert back.code == 0 and "2 rows written" in back.out and "2 withdrawn" in back.out
    assert warehouse.value("SELECT count(*) FROM human_verdicts") == 0
    assert "0 rows written" in audit(command, "pull", warehouse, name).out

    studio.ask("POST", f"/api/projects/{number}/import", json=[{"data": task["data"]} for task in tasks[:3]])
    (copy,) = [task["id"] for task in studio.tasks(number)[18:] if task["data"] == tasks[0]["data"]]
    studio.submit(copy, "B")
    assert "3 tasks were there twice" in audit(command, "push", warehouse, name).out
    standing = {task["id"] for task in studio.tasks(number)}
    assert len(standing) == 18 and standing == {task["id"] for task in tasks[1:]} | {copy}


def test_tasks_project_and_config_that_were_changed_on_the_server(
    make_plan: MakePlan, studio: Studio, name: str, command: Command
) -> None:
    warehouse = make_plan(overlap=0)
    audit(command, "push", warehouse, name)
    number = project_of(warehouse, name)
    for task in studio.tasks(number)[:2]:
        studio.ask("DELETE", f"/api/tasks/{task['id']}/")
    gone = audit(command, "pull", warehouse, name)
    assert gone.code == 3 and "2 pairs have no task on the server" in gone.err
    assert "2 tasks created, 16 were there" in audit(command, "push", warehouse, name).out

    config = studio.ask("GET", f"/api/projects/{number}/")["label_config"]
    studio.ask("PATCH", f"/api/projects/{number}/", json={"label_config": config.replace("Both are bad", "Neither")})
    for what in ("pull", "push"):
        changed = audit(command, what, warehouse, name)
        assert changed.code == 2 and "--restore-config" in changed.err
    assert "config was changed" in audit(command, "status", warehouse, name).out
    assert audit(command, "push", warehouse, name, "--restore-config").code == 0
    assert audit(command, "pull", warehouse, name).code == 0

    studio.ask("DELETE", f"/api/projects/{number}/")
    lost = audit(command, "pull", warehouse, name)
    assert lost.code == 2 and f"The project {number} is not on {studio.url}" in lost.err
    anew = audit(command, "push", warehouse, name, "--new-project")
    assert anew.code == 0 and "18 tasks created" in anew.out and project_of(warehouse, name) != number


def test_tokens(
    make_plan: MakePlan, studio: Studio, name: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = make_plan(overlap=0)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "f" * 40)
    wrong = audit(command, "push", warehouse, name)
    assert wrong.code == 2 and "does not accept the token in LABEL_STUDIO_API_KEY" in wrong.err
    assert "ffff" not in wrong.err + wrong.out
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    assert "LABEL_STUDIO_API_KEY is not set" in audit(command, "push", warehouse, name).err

    personal = studio.ask("POST", "/api/token/")["token"]
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", personal)
    assert audit(command, "push", warehouse, name).code == 0
    both = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": True}
    studio.ask("POST", "/api/jwt/settings", json=both | {"legacy_api_tokens_enabled": False})
    try:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", studio.token)
        switched_off = audit(command, "pull", warehouse, name)
        assert switched_off.code == 2 and "legacy tokens are switched off" in switched_off.err
        assert "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true" in switched_off.err
        assert studio.token not in switched_off.err
    finally:
        access = httpx.post(f"{studio.url}/api/token/refresh/", json={"refresh": personal}).json()["access"]
        headers = {"Authorization": f"Bearer {access}"}
        httpx.post(f"{studio.url}/api/jwt/settings", json=both, headers=headers).raise_for_status()
    with warehouse.visit(read_only=True) as connection:
        tables = [table for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        text = "".join(str(connection.execute(f"FROM {table}").fetchall()) for table in tables)
    assert studio.token not in text and personal not in text


def test_videos_below_the_servers_own_root(make_plan: MakePlan, studio: Studio, name: str, command: Command) -> None:
    warehouse = make_plan(overlap=0)
    pushed = audit(command, "push", warehouse, name, "--local-files", str(studio.root))
    assert pushed.code == 0, pushed.err
    address = studio.tasks(project_of(warehouse, name))[0]["data"]["video"]
    plan_id = find_plan(warehouse, name).plan_id
    assert address.startswith(f"/data/local-files/?d=vlm-rlaif-{plan_id}/")
    headers = {"Authorization": f"Token {studio.token}", "Range": "bytes=0-99"}
    part = httpx.get(studio.url + address, headers=headers)
    assert part.status_code == 206 and len(part.content) == 100
    assert "0 tasks created" in audit(command, "push", warehouse, name, "--local-files", str(studio.root)).out
    moved = audit(command, "push", warehouse, name, "--videos", "http://127.0.0.1:9")
    assert "18 were there, 18 play their videos from another address now" in moved.out
    assert studio.tasks(project_of(warehouse, name))[0]["data"]["video"].startswith("http://127.0.0.1:9/video/")
    elsewhere = audit(command, "push", warehouse, name, "--local-files", str(studio.root.parent), "--new-project")
    assert elsewhere.code == 2 and "DOCUMENT_ROOT" in elsewhere.err


def test_a_folder_that_leads_outside_is_refused(
    make_plan: MakePlan, studio: Studio, name: str, command: Command, tmp_path: Path
) -> None:
    warehouse = make_plan(overlap=0)
    (studio.root / f"vlm-rlaif-{find_plan(warehouse, name).plan_id}").symlink_to(tmp_path)
    refused = audit(command, "push", warehouse, name, "--local-files", str(studio.root))
    assert refused.code == 2 and "outside of the document root" in refused.err


def begin(warehouse: Warehouse, name: str, what: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    arguments = [sys.executable, "-c", TALKING, "feedback", "audit", what, str(warehouse.path), name]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"ended with {process.wait()} before it said {words!r}")


def test_a_killed_push_or_pull_loses_and_doubles_nothing(
    make_plan: MakePlan, studio: Studio, name: str, command: Command
) -> None:
    warehouse = make_plan(pairs=50, overlap=0.2)
    with begin(warehouse, name, "push") as client:  # the client dies
        wait_for(client, "20 of 150 tasks")
        client.kill()
    with begin(warehouse, name, "push") as client:  # the server dies
        wait_for(client, "80 of 150 tasks")
        studio.kill()
        _, said = client.communicate()
        assert client.returncode == 2 and "does not answer" in said and "Traceback" not in said
    assert audit(command, "push", warehouse, name).code == 2
    studio.start()
    assert audit(command, "push", warehouse, name).code == 0
    tasks = studio.tasks(project_of(warehouse, name))
    assert len(tasks) == len({task["data"]["pair_id"] for task in tasks}) == 150
    assert Counter(task["overlap"] for task in tasks) == {1: 120, 2: 30}
    plan_id = find_plan(warehouse, name).plan_id
    titles = [project["title"] for project in studio.ask("GET", "/api/projects/")["results"]]
    assert sum(plan_id in title for title in titles) == 1

    for task, choice in zip(tasks[:30], ["A", "B", "tie"] * 10, strict=True):
        studio.submit(task["id"], choice)
    with begin(warehouse, name, "pull") as client:  # the server dies
        wait_for(client, "the export begins")
        time.sleep(0.03)
        studio.kill()
        _, said = client.communicate()
        assert client.returncode == 2 and "does not answer" in said and "Traceback" not in said, said
    studio.start()
    with begin(warehouse, name, "pull") as client:  # the client dies
        wait_for(client, "the export begins")
        client.kill()
    assert audit(command, "pull", warehouse, name).code == 0
    rows = warehouse.rows("FROM audits")
    assert len(rows) == len({row["annotation"] for row in rows}) == 30
    assert Counter(row["choice"] == "tie" for row in rows) == {False: 20, True: 10}
