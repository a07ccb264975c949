"""Push and pull against a server in memory: nothing twice, nothing lost, nothing believed."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from vlm_rlaif.feedback.audit import push as pushing
from vlm_rlaif.feedback.audit.pull import close, lacking, pull, read_export
from vlm_rlaif.feedback.audit.push import Pushed, push
from vlm_rlaif.feedback.audit.status import status_of
from vlm_rlaif.feedback.audit.tasks import AuditPair, find_plan, pairs_of, title_of
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.store import Warehouse

Server = Any


def bring(warehouse: Warehouse, server: Server, bad: str = "", at: str = "http://videos", **how: Any) -> Pushed:
    """Push the plan; the video `bad` cannot be played."""

    def place(pair: AuditPair) -> str:
        if pair.video_id == bad:
            raise VideoError(f"{bad}: its bytes have changed.")
        return f"{at}/video/{pair.video_id}"

    return push(warehouse, find_plan(warehouse, "spring"), server, lambda *_: place, **how)


def tasks(server: Server) -> list[dict[str, Any]]:
    return [task for stored in server.stored.values() for task in stored]


def verdicts(warehouse: Warehouse) -> list[dict[str, Any]]:
    return warehouse.rows("FROM audits ORDER BY pair_id, updated_at")


def test_a_push_makes_one_task_of_every_pair(planned: Warehouse, server: Server) -> None:
    done = bring(planned, server)
    pairs = {pair.pair_id: pair for pair in pairs_of(planned, find_plan(planned, "spring").plan_id)}
    assert (done.created, done.stood, done.mended) == (30, 0, 0)
    assert {task["data"]["pair_id"] for task in tasks(server)} == set(pairs)
    for task in tasks(server):
        assert task["overlap"] == pairs[task["data"]["pair_id"]].annotators
    assert [project.title for project in server.made.values()] == [title_of(find_plan(planned, "spring"))]


def test_the_second_push_creates_nothing(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    before = planned.rows("FROM runs")
    again = bring(planned, server)
    assert (again.created, again.stood) == (0, 30)
    assert len(tasks(server)) == 30 and len(server.made) == 1 and planned.rows("FROM runs") == before


def test_a_push_that_dies_anywhere_is_completed(
    planned: Warehouse, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes away after 1, 2, 3, ... requests, until a push gets through."""
    monkeypatch.setattr(pushing, "CHUNK", 4)
    done = None
    for requests in range(1, 60):
        server.dies_after = requests
        try:
            done = bring(planned, server)
            break
        except UserError as error:
            assert "does not answer" in str(error)
    assert done is not None
    server.dies_after = 10**9
    bring(planned, server)
    assert len(server.made) == 1 and max(Counter(task["data"]["pair_id"] for task in tasks(server)).values()) == 1
    assert Counter(task["overlap"] for task in tasks(server)) == {1: 24, 2: 6}


def test_a_project_of_a_push_that_died_is_found_again(planned: Warehouse, server: Server) -> None:
    server.dies_after = 2
    with pytest.raises(UserError):
        bring(planned, server)
    planned.execute("DELETE FROM audit_projects")
    server.dies_after = 10**9
    bring(planned, server)
    assert len(server.made) == 1


def test_people_do_not_see_the_verdict_and_predictions_are_turned(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    said = {row["pair_id"]: row for row in planned.rows("SELECT t.shown_order, p.* FROM audit_tasks t"
                                                        " JOIN preferences p USING (pair_id)")}  # fmt: skip
    words = {row["response_id"]: row["text"] for row in planned.rows("FROM responses")}
    for task in tasks(server):
        row = said[task["data"]["pair_id"]]
        first, second = ("a", "b") if row["shown_order"] == "ab" else ("b", "a")
        assert task["data"]["response_a"] == words[row[f"response_{first}"]]
        assert task["data"]["response_b"] == words[row[f"response_{second}"]]
        (choice,) = task["predictions"][0]["result"][0]["value"]["choices"]
        assert choice == {first: "A", second: "B", "tie": "tie"}[row["choice"]]
        assert task["predictions"][0]["model_version"].startswith("judge_v1@")
        assert not {"stratum", "choice", "strength", "confidence", "shown_order"} & set(task["data"])


def test_html_stays_what_it_was(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    assert all(task["data"]["question"].startswith("<b>what</b>") for task in tasks(server))
    assert any("<script>" in task["data"]["response_a"] for task in tasks(server))


def test_pairs_whose_video_nobody_can_play_are_left_out_and_counted(planned: Warehouse, server: Server) -> None:
    bad = pairs_of(planned, find_plan(planned, "spring").plan_id)[0].video_id
    done = bring(planned, server, bad=bad)
    assert done.left_out > 0 and done.created == 30 - done.left_out and "changed" in done.wrong_videos[bad]
    kept = planned.rows("FROM open_failures")
    assert len(kept) == done.left_out and {row["kind"] for row in kept} == {"video"}
    assert bring(planned, server).created == done.left_out, "the next push tries again"


def test_videos_that_are_served_elsewhere_now_are_played_from_there(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    server.submit(pairs_of(planned, plan.plan_id)[0].pair_id, "A")
    assert bring(planned, server, at="http://other").moved == 0, "nobody has asked for it"
    assert bring(planned, server, at="http://other", move=True).moved == 30
    assert {task["data"]["video"].split("/video/")[0] for task in tasks(server)} == {"http://other"}
    assert bring(planned, server, at="http://other", move=True).moved == 0
    assert pull(planned, plan, server).verdicts == 1


def test_what_people_say_comes_home_on_its_own_side(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    pairs = pairs_of(planned, plan.plan_id)
    for pair, shown in zip(pairs, ["A", "B", "tie", "both_bad"] * 8, strict=False):
        server.submit(pair.pair_id, shown)
    done = pull(planned, plan, server)
    assert (done.verdicts, done.written, done.refused, done.people) == (30, 30, [], {"ann@x": 30})
    for row, shown in zip(verdicts(planned), ["A", "B", "tie", "both_bad"] * 8, strict=False):
        turned = {"A": row["shown_order"][0], "B": row["shown_order"][1]}
        assert row["choice"] == turned.get(shown, shown) and row["annotator"] == "ann@x" and row["seconds"] == 9.0


def test_a_second_pull_writes_nothing_and_an_edit_is_a_row_of_its_own(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    pair = pairs_of(planned, plan.plan_id)[0]
    server.submit(pair.pair_id, "A")
    assert pull(planned, plan, server).written == 1
    before = planned.rows("FROM runs")
    assert pull(planned, plan, server).written == 0 and planned.rows("FROM runs") == before
    (task,) = [task for task in tasks(server) if task["annotations"]]
    task["annotations"][0] |= {"updated_at": "2026-11-25T09:00:00Z"}
    task["annotations"][0]["result"][0]["value"] = {"choices": ["tie"]}
    assert pull(planned, plan, server).written == 1
    assert [row["choice"] for row in verdicts(planned)][1] == "tie" and len(verdicts(planned)) == 2
    assert planned.rows("SELECT choice FROM human_verdicts") == [{"choice": "tie"}]


def test_several_people_are_several_verdicts(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    shared = next(pair for pair in pairs_of(planned, plan.plan_id) if pair.annotators == 2)
    server.submit(shared.pair_id, "A", user=1)
    pull(planned, plan, server)
    assert lacking(planned, plan).overlap == [shared.pair_id]
    server.submit(shared.pair_id, "B", user=2)
    pull(planned, plan, server)
    assert lacking(planned, plan).overlap == [] and len(lacking(planned, plan).unseen) == 29
    assert planned.rows("SELECT annotators, choice, p_a FROM human_preferences") == [
        {"annotators": 2, "choice": "tie", "p_a": 0.5}
    ]


def test_skipped_tasks_and_drafts_are_no_verdicts(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    server.submit(pairs_of(planned, plan.plan_id)[0].pair_id, "A", was_cancelled=True)
    tasks(server)[1]["drafts"] = [{"result": []}]
    done = pull(planned, plan, server)
    assert (done.written, done.skipped) == (0, 1) and verdicts(planned) == []


def exchange(task: dict[str, Any]) -> None:
    data = task["data"]
    data["response_a"], data["response_b"] = data["response_b"], data["response_a"]


SPOILT: dict[str, tuple[Any, str]] = {
    "another user": (lambda task: task["annotations"][0].update(completed_by=99), "no user 99"),
    "an unknown pair": (lambda task: task["data"].update(pair_id="0" * 20), "not in this audit"),
    "no pair": (lambda task: task["data"].pop("pair_id"), "not in this audit"),
    "a pair that is a list": (lambda task: task["data"].update(pair_id=[]), "not in this audit"),
    "data that is no object": (lambda task: task.update(data="x"), "not in this audit"),
    "other words": (lambda task: task["data"].update(response_a="something else"), "words of its pair"),
    "sides exchanged": (exchange, "words of its pair"),
    "an unknown choice": (
        lambda task: task["annotations"][0]["result"][0].update(value={"choices": ["C"]}),
        "not one of",
    ),
    "annotations that are no list": (lambda task: task.update(annotations=5), "no object"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_result_is_refused_and_kept(planned: Warehouse, server: Server, spoil: Any, said: str) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    first, second = pairs_of(planned, plan.plan_id)[:2]
    server.submit(first.pair_id, "A")
    server.submit(second.pair_id, "B")
    (task,) = [task for task in tasks(server) if task["data"]["pair_id"] == first.pair_id]
    spoil(task)
    done = pull(planned, plan, server)
    assert [said in refusal.why for refusal in done.refused] == [True] and done.verdicts == 1
    kept = [row for row in planned.rows("FROM open_failures WHERE kind = 'unparsable'")]
    assert [row["message"] for row in kept] == [done.refused[0].why] and "sent" in json.loads(kept[0]["reply"])
    assert pull(planned, plan, server).written == 0, "refused once, kept once"


def test_a_hundred_malformed_results_are_refused_with_a_list(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    pair = pairs_of(planned, plan.plan_id)[0].pair_id
    for number in range(100):
        value = [{"choices": [f"wrong {number}"]}, {"choices": "A"}, None, {"choices": ["A", "B"]}][number % 4]
        result = [{"from_name": "preference", "to_name": "video", "type": "choices", "value": value}]
        server.submit(pair, "A", result=result if number % 5 else [])
    server.submit(pair, "A")
    done = pull(planned, plan, server)
    assert len(done.refused) == 100 and done.verdicts == 1 and len({refusal.where for refusal in done.refused}) == 100
    assert planned.value("SELECT count(*) FROM open_failures WHERE stage = 'audit'") == 100


def test_a_mended_result_closes_its_failure(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    server.submit(pairs_of(planned, plan.plan_id)[0].pair_id, "C")
    pull(planned, plan, server)
    assert planned.value("SELECT count(*) FROM open_failures") == 1
    (task,) = [task for task in tasks(server) if task["annotations"]]
    task["annotations"][0] |= {"updated_at": "2026-11-25T09:00:00Z"}
    task["annotations"][0]["result"][0]["value"] = {"choices": ["A"]}
    assert pull(planned, plan, server).refused == []
    assert planned.value("SELECT count(*) FROM open_failures") == 0
    task["annotations"][0] |= {"updated_at": "2026-11-25T10:00:00Z", "result": []}
    pull(planned, plan, server)
    assert planned.value("SELECT count(*) FROM open_failures") == 1, "and spoilt once more"


def test_deleted_tasks_are_listed_and_can_be_put_back(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    (stored,) = server.stored.values()
    lost = [stored.pop()["data"]["pair_id"] for _ in range(3)]
    assert sorted(pull(planned, plan, server).gone) == sorted(lost)
    assert planned.value("SELECT count(*) FROM open_failures WHERE kind = 'gone'") == 3
    assert bring(planned, server).created == 3
    for pair in lost:
        server.submit(pair, "A")
    assert pull(planned, plan, server).gone == []
    assert planned.value("SELECT count(*) FROM open_failures") == 0


def test_a_changed_config_is_refused_until_it_is_put_back(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    server.put_config(plan.project, "<View/>")
    for act in (lambda: pull(planned, plan, server), lambda: bring(planned, server)):
        with pytest.raises(UserError, match="--restore-config"):
            act()
    assert bring(planned, server, restore_config=True).created == 0
    assert pull(planned, plan, server).tasks == 30


def test_a_deleted_project_is_made_anew_when_that_is_asked_for(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    server.made.clear()
    server.stored.clear()
    for act in (lambda: pull(planned, find_plan(planned, "spring"), server), lambda: bring(planned, server)):
        with pytest.raises(UserError, match="is not on http://memory"):
            act()
    assert bring(planned, server, new_project=True).created == 30
    assert find_plan(planned, "spring").project in server.made and bring(planned, server).created == 0


def test_another_project_of_the_same_number_is_not_touched(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    number = find_plan(planned, "spring").project
    server.made[number] = type(server.made[number])(number, "somebody else's", server.made[number].config)
    for act in (lambda: pull(planned, find_plan(planned, "spring"), server), lambda: bring(planned, server)):
        with pytest.raises(UserError, match="somebody else's"):
            act()


def test_another_server_is_not_taken_by_mistake(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    server.url = "http://elsewhere"
    with pytest.raises(UserError, match="is on http://memory"):
        bring(planned, server)


def test_an_audit_that_is_on_no_server_cannot_be_pulled(planned: Warehouse, server: Server) -> None:
    with pytest.raises(UserError, match="feedback audit push"):
        pull(planned, find_plan(planned, "spring"), server)


def test_closing_waits_for_the_overlap(planned: Warehouse, server: Server) -> None:
    bring(planned, server)
    plan = find_plan(planned, "spring")
    with pytest.raises(UserError, match="nobody has judged"):
        close(planned, plan, server)
    for pair in pairs_of(planned, plan.plan_id):
        server.submit(pair.pair_id, "A")
    with pytest.raises(UserError, match="6 pairs wait for another person"):
        close(planned, plan, server)
    assert len(verdicts(planned)) == 30, "what could be read is there all the same"
    pulled, lack = close(planned, plan, server, force=True)
    assert (pulled.written, len(lack.overlap), len(lack.unseen)) == (0, 6, 0)
    ended = find_plan(planned, "spring")
    assert ended.closed_at is not None
    for act in (lambda: pull(planned, ended, server), lambda: bring(planned, server)):
        with pytest.raises(UserError, match="was closed on"):
            act()


def test_the_status_knows_what_is_not_pulled_yet(planned: Warehouse, server: Server) -> None:
    assert status_of(planned, find_plan(planned, "spring"), None).server is None
    bring(planned, server)
    plan = find_plan(planned, "spring")
    for pair in pairs_of(planned, plan.plan_id)[:3]:
        server.submit(pair.pair_id, "A")
    pull(planned, plan, server)
    server.submit(pairs_of(planned, plan.plan_id)[3].pair_id, "A", user=2)
    state = status_of(planned, plan, server)
    assert state.server is not None
    assert (state.pairs, state.verdicts, state.people) == (30, 3, {"ann@x": 3})
    assert (state.server.verdicts, state.server.new, state.server.config_changed) == (4, 1, False)


def test_an_export_of_anything_is_read(planned: Warehouse) -> None:
    plan = find_plan(planned, "spring")
    pairs = pairs_of(planned, plan.plan_id)
    found = read_export(plan, [None, 5, {}, {"id": 1, "data": None, "annotations": None}], pairs, {})
    assert len(found.refused) == 2 and found.audits == []


def test_an_unknown_plan_names_its_neighbour(planned: Warehouse) -> None:
    with pytest.raises(UserError, match="Did you mean 'spring'"):
        find_plan(planned, "sprnig")
