"""What an audit must not mix up: plans of one name, projects of one number, servers, versions, tasks made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.feedback.audit import label_studio, places
from vlm_rlaif.feedback.audit.planning import Asked, plan_audit
from vlm_rlaif.feedback.audit.pull import close, lacking, pull
from vlm_rlaif.feedback.audit.push import Pushed, push
from vlm_rlaif.feedback.audit.results import labeling_config
from vlm_rlaif.feedback.audit.status import status_of
from vlm_rlaif.feedback.audit.tasks import AuditPair, StandingPlan, find_plan, pairs_of, title_of
from vlm_rlaif.feedback.known import plan_named
from vlm_rlaif.warehouse.care.row_checks import check_ids
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
Server = Any


def place(pair: AuditPair) -> str:
    return f"http://videos/video/{pair.video_id}"


def bring(warehouse: Warehouse, server: Server, name: str = "spring", **how: Any) -> Pushed:
    return push(warehouse, find_plan(warehouse, name), server, lambda *_: place, **how)


def spring(warehouse: Warehouse) -> StandingPlan:
    return find_plan(warehouse, "spring")


def shown(warehouse: Warehouse) -> list[AuditPair]:
    return pairs_of(warehouse, spring(warehouse).plan_id)


def task_of(server: Server, pair: str) -> dict[str, Any]:
    (task,) = [task for stored in server.stored.values() for task in stored if task["data"]["pair_id"] == pair]
    return dict(task)


def test_two_warehouses_with_plans_of_one_name_have_two_projects(
    planned: Warehouse, neighbour: Warehouse, server: Server
) -> None:
    assert spring(planned).plan_id != spring(neighbour).plan_id
    assert bring(planned, server).created == bring(neighbour, server).created == 30
    assert spring(planned).project != spring(neighbour).project and len(server.made) == 2
    server.submit(shown(neighbour)[0].pair_id, "A")
    assert pull(planned, spring(planned), server).verdicts == 0
    assert pull(neighbour, spring(neighbour), server).verdicts == 1


def test_a_project_with_tasks_of_others_is_not_adopted(planned: Warehouse, server: Server) -> None:
    stray = server.create_project(title_of(spring(planned)), labeling_config(), "")
    server.add_tasks(stray.number, [{"data": {"pair_id": "somebody else's", "video": "x"}}])
    bring(planned, server)
    assert spring(planned).project != stray.number and len(server.stored[stray.number]) == 1


def test_two_plans_of_one_name_stay_after_a_merge_and_are_named_by_their_ids(
    planned: Warehouse, neighbour: Warehouse, command: Command
) -> None:
    mine, theirs = spring(planned).plan_id, spring(neighbour).plan_id
    assert command("merge", planned.path, neighbour.path).code == 0
    assert planned.value("SELECT count(*) FROM audit_tasks") == 60
    assert not [found for found in check_ids(planned, everything=True) if "audit" in found.what]
    for ask in (lambda: spring(planned), lambda: plan_named(planned, "spring")):
        with pytest.raises(UserError, match="2 audit plans") as refused:
            ask()
        assert mine in str(refused.value) and theirs in str(refused.value)
    for said in (mine, mine[:8]):
        assert find_plan(planned, said).plan_id == plan_named(planned, said) == mine
    assert find_plan(planned, mine).called == mine
    judge = planned.value("SELECT any_value(spec_id) FROM labels")
    with pytest.raises(UserError, match="2 audit plans"):
        plan_audit(planned, "spring", Asked(judge=judge, size=30))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://localhost:8080", "http://[::1]:80"])
def test_a_server_on_this_machine_is_taken_as_the_warehouse_has_it(url: str) -> None:
    assert label_studio.address(None, url) == url


def test_a_row_of_a_warehouse_does_not_decide_who_gets_the_token(
    planned: Warehouse, server: Server, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(label_studio.TOKEN, "f" * 40)
    monkeypatch.delenv(label_studio.URL, raising=False)
    server.url = "http://studio.example"
    bring(planned, server)
    asked: list[str] = []
    monkeypatch.setattr(label_studio, "Server", lambda url, token: asked.append(url) or server)
    for what in ("push", "pull", "status", "close", "serve"):
        done = command("feedback", "audit", what, planned.path, "spring")
        assert done.code == 2 and "The audit is on http://studio.example." in done.err
        assert "--url http://studio.example" in done.err
    assert asked == []
    assert command("feedback", "audit", "pull", planned.path, "spring", "--url", server.url).code == 0
    monkeypatch.setenv(label_studio.URL, f"{server.url}/")
    assert command("feedback", "audit", "pull", planned.path, "spring").code == 0
    assert asked == [server.url] * 2


@pytest.mark.parametrize("url", ["http://me:secret@host:1", "me:secret@host", "https://secret@host/x"])
def test_an_address_with_a_password_is_refused_and_not_repeated(url: str, planned: Warehouse) -> None:
    for ask in (lambda: label_studio.address(url), lambda: places.served(planned, url)):
        with pytest.raises(UserError, match="may hold a password") as refused:
            ask()
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://[", "http://host:port", "http://", "ftp://host"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(UserError, match="is no address of a server"):
        label_studio.address(url)


def test_pull_status_and_close_refuse_another_server_as_push_does(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = spring(planned)
    server.url = "http://elsewhere"
    for act in (pull, status_of, close, lambda *of: bring(planned, server)):
        with pytest.raises(UserError, match="is on http://memory, project 1, not on http://elsewhere"):
            act(planned, plan, server)


def test_annotations_of_two_projects_may_have_one_number(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    first, second = (pair.pair_id for pair in shown(planned)[:2])
    server.submit(first, "C")
    pull(planned, spring(planned), server)
    (number,) = [one["id"] for one in task_of(server, first)["annotations"]]
    fresh = replace(server, url="http://fresh", made={}, stored={}, default_overlap={})
    bring(planned, fresh, new_project=True)
    fresh.submit(second, "A", at="2026-11-25T09:00:00Z", id=number)
    assert pull(planned, spring(planned), fresh).written == 1
    assert planned.value("SELECT count(*) FROM open_failures WHERE kind = 'unparsable'") == 1
    named = planned.value("SELECT annotation FROM audits")
    assert named == f"{str(spring(planned).audit_project_id)[:8]}/{number}"


def test_an_edit_under_a_changed_address_counts_once(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    pair = shown(planned)[0].pair_id
    server.submit(pair, "A")
    pull(planned, spring(planned), server)
    server.people[1] = "ann@married"
    task_of(server, pair)["annotations"][0]["updated_at"] = "2026-11-25T09:00:00Z"
    assert pull(planned, spring(planned), server).written == 1
    assert planned.rows("SELECT annotator FROM human_verdicts") == [{"annotator": "ann@married"}]


def delete(annotations: list[dict[str, Any]]) -> None:
    annotations.clear()


def cancel(annotations: list[dict[str, Any]]) -> None:
    annotations[0] |= {"was_cancelled": True, "updated_at": "2026-11-25T09:00:00Z"}


@pytest.mark.parametrize("take_back", [delete, cancel])
def test_a_verdict_that_was_taken_back_counts_no_more(planned: Warehouse, server: Server, take_back: Any) -> None:
    bring(planned, server)
    pair = shown(planned)[0].pair_id
    server.submit(pair, "A")
    assert pull(planned, spring(planned), server).withdrawn == 0
    annotations = task_of(server, pair)["annotations"]
    kept = [dict(one) for one in annotations]
    take_back(annotations)
    done = pull(planned, spring(planned), server)
    assert (done.written, done.withdrawn, done.refused) == (1, 1, [])
    assert planned.rows("FROM human_verdicts") == [] and pair in lacking(planned, spring(planned)).unseen
    assert planned.value("SELECT count(*) FROM audits") == 2, "the verdict is kept beside it"
    assert pull(planned, spring(planned), server).written == 0
    assert not [found for found in check_ids(planned, everything=True) if "audit" in found.what]
    annotations[:] = [kept[0] | {"updated_at": "2026-11-25T10:00:00Z"}]
    assert pull(planned, spring(planned), server).withdrawn == 0
    assert planned.value("SELECT count(*) FROM human_verdicts") == 1, "and given again"


def test_an_edit_that_is_no_verdict_withdraws_nothing(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    pair = shown(planned)[0].pair_id
    server.submit(pair, "A")
    pull(planned, spring(planned), server)
    task_of(server, pair)["annotations"][0] |= {"updated_at": "2026-11-25T09:00:00Z", "result": []}
    done = pull(planned, spring(planned), server)
    assert (done.withdrawn, len(done.refused)) == (0, 1) and planned.value("SELECT count(*) FROM human_verdicts") == 1


def test_verdicts_of_an_older_project_stay(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    server.submit(shown(planned)[0].pair_id, "A")
    pull(planned, spring(planned), server)
    bring(planned, server, new_project=True)
    assert pull(planned, spring(planned), server).withdrawn == 0
    assert planned.value("SELECT count(*) FROM human_verdicts") == 1


@pytest.mark.parametrize("change", [{"video": "http://videos/video/another"}, {"context": "the judge knew it all"}])
def test_a_task_that_shows_another_video_or_context_is_refused(
    planned: Warehouse, server: Server, change: dict[str, str]
) -> None:
    bring(planned, server)
    pair = shown(planned)[0].pair_id
    server.submit(pair, "A")
    task_of(server, pair)["data"] |= change
    (refused,) = pull(planned, spring(planned), server).refused
    assert "does not show the video and the words of its pair" in refused.why


def test_a_further_push_takes_the_videos_from_where_they_are() -> None:
    def task(video: str) -> label_studio.Task:
        return label_studio.Task(1, "p", 1, video)

    assert places.address_of([]) == places.DEFAULT_VIDEOS
    assert (
        places.address_of([task("https://tunnel/a/video/1"), task("https://tunnel/a/video/2")]) == "https://tunnel/a"
    )
    assert places.address_of([task("/data/local-files/?d=vlm-rlaif-abc/1.mp4")]) is None


def test_a_push_that_adds_tasks_asks_for_the_folder_again(planned: Warehouse, server: Server) -> None:
    plan = spring(planned)

    def no_flags(project: int, there: Any) -> places.Place:
        return place if places.address_of(there) else places.forgotten

    push(planned, plan, server, lambda *_: lambda pair: f"/data/local-files/?d=x/{pair.video_id}.mp4")
    assert push(planned, spring(planned), server, no_flags).created == 0, "nothing is missing"
    next(iter(server.stored.values())).pop()
    with pytest.raises(UserError, match="--local-files ROOT"):
        push(planned, spring(planned), server, no_flags)


def test_a_task_that_a_dying_push_made_late_is_deleted_again(planned: Warehouse, server: Server) -> None:
    """The server ends the request of a killed push after the next one has listed what is there."""
    plain = server.add_tasks

    def late(project: int, chunk: Any) -> list[int]:
        if not server.stored[project]:
            plain(project, chunk)
        return list(plain(project, chunk))

    server.add_tasks = late
    done = bring(planned, server)
    (stored,) = server.stored.values()
    assert len(stored) == len({task["data"]["pair_id"] for task in stored}) == 30 and done.doubled == []
    assert done.surplus == 24


def test_a_doubled_task_that_somebody_judged_is_kept(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    (stored,) = server.stored.values()
    number = spring(planned).project
    server.add_tasks(number, [{"data": dict(stored[place]["data"])} for place in (0, 1)])
    copies = stored[-2:]
    server.add_tasks(number, [{"data": {"pair_id": "", "video": "of somebody else"}}] * 2)
    for task in (copies[0], copies[1], stored[1]):
        task["annotations"].append({"id": task["id"] + 1000, "was_cancelled": True})
    done = bring(planned, server)
    assert (done.surplus, done.doubled) == (1, [stored[0]["data"]["pair_id"]]) and copies[0] in stored
    assert len(stored) == 33, "tasks of no pair of the plan are left alone"


def test_a_new_project_that_was_not_recorded_is_found_again(
    planned: Warehouse, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(planned, server)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vlm_rlaif.feedback.audit.push._record", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(planned, server, new_project=True)
    assert len(server.made) == 2
    server.made[max(server.made)] = replace(server.made[max(server.made)], config="<View/>")
    assert bring(planned, server, new_project=True).created == 30 and len(server.made) == 2
    assert pull(planned, spring(planned), server).tasks == 30, "its config is put right before it is recorded"
    bring(planned, server, new_project=True)
    assert len(server.made) == 3, "those that are recorded are old ones"


def test_a_newer_labeling_config_can_be_put_in_place(
    planned: Warehouse, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(planned, server)
    newer = labeling_config() + "<!-- newer -->"
    monkeypatch.setattr("vlm_rlaif.feedback.audit.push.labeling_config", lambda: newer)
    assert bring(planned, server).created == 0, "a project keeps the config that it was made with"
    server.put_config(spring(planned).project, "<View/>")
    assert bring(planned, server, restore_config=True).created == 0
    assert server.made[spring(planned).project].config == newer
    assert pull(planned, spring(planned), server).tasks == 30


def test_commands_to_copy_are_quoted(judged: Warehouse, server: Server, command: Command, tmp_path: Path) -> None:
    (folder := tmp_path / "my data").mkdir()
    path = judged.path.rename(folder / "w.duckdb")
    planned = command("feedback", "audit", "plan", path, "spring", "--size", 30)
    assert f"Next: vlm-rlaif feedback audit push '{path}' spring" in planned.out
    assert (
        f"(vlm-rlaif feedback audit push '{path}' spring)"
        in command("feedback", "audit", "status", path, "spring").out
    )
    with pytest.raises(UserError, match=f"push '{path}' spring"):
        pull(Warehouse(path), find_plan(Warehouse(path), "spring"), server)


def test_a_dry_run_of_a_plan_that_stands_says_so(planned: Warehouse, command: Command) -> None:
    done = command("feedback", "audit", "plan", planned.path, "spring", "--size", 30, "--dry-run")
    assert "spring stands already." in done.out and "not written" not in done.out
