"""How long does an audit take on the way to a real Label Studio and back? 5,000 tasks there, 1,000 verdicts home.

    .venv-audit/bin/python benchmarks/judging/audit.py [--small]

Needs the environment that `tests/studio/install.sh` makes. The server is started for it on this machine, with an
empty data folder; its start, and the time in which 1,000 verdicts are put there, are not counted. Beside the
time: what a second push creates, and a second pull writes, both of which should be nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vlm_rlaif.feedback.audit.label_studio import Server
from vlm_rlaif.feedback.audit.planning import Asked, plan_audit
from vlm_rlaif.feedback.audit.pull import pull
from vlm_rlaif.feedback.audit.push import push
from vlm_rlaif.feedback.audit.tasks import find_plan
from vlm_rlaif.warehouse.records import Context, Label, Pair, Question, Record, Response, Spec, Video, row_id
from vlm_rlaif.warehouse.store import Warehouse

PAIRS = {False: 20_000, True: 400}
"""Of the judge."""
TASKS = {False: 5_000, True: 100}
VERDICTS = {False: 1_000, True: 20}
OVERLAP = 0.2
PAIRS_PER_VIDEO = 4
TOKEN = "0123456789abcdef0123456789abcdef01234567"
START_S = 240.0
WORDS = "The person takes the red cup from the table, looks into it and puts it back beside the plate. "


def judged(folder: Path, pairs: int) -> Warehouse:
    """Pairs with words as long as real ones, judged in both orders with a context."""
    judge, policy, writer = (
        Spec.make(stage=stage, model="m", revision=stage, prompt=f"{stage}_v1", prompt_hash=stage, frames={},
                  sampling={}, upstream={})
        for stage in ("label", "respond", "context")
    )  # fmt: skip
    rows: list[Record] = [judge, policy, writer]
    for number in range(pairs):
        video, question = row_id("v", number // PAIRS_PER_VIDEO), row_id("q", number)
        context = row_id("c", video)
        if number % PAIRS_PER_VIDEO == 0:
            rows += [
                Video(video_id=video, uri=f"{video}.mp4", source="made", video_group=video, split="train",
                      status="ok", fps=25.0, run_id="made"),
                Context(context_id=context, video_id=video, spec_id=writer.spec_id, caption_ids=[], text=WORDS * 8,
                        run_id="made"),
            ]  # fmt: skip
        a, b = sorted(row_id("r", question, side) for side in "ab")
        pair = row_id("pair", a, b)
        rows.append(Question(question_id=question, video_id=video, text="What does the person do with the cup?",
                             source="imported", run_id="made"))  # fmt: skip
        rows += [
            Response(response_id=response, question_id=question, spec_id=policy.spec_id, sample_index=place,
                     seed=place, text=WORDS * (2 + (number + place) % 3), tokens=40, finish="stop", logprob=None,
                     run_id="made")
            for place, response in enumerate((a, b))
        ]  # fmt: skip
        rows.append(
            Pair(pair_id=pair, question_id=question, response_a=a, response_b=b, strategy="two", run_id="made")
        )
        p_a = int(pair[:4], 16) / 0xFFFF
        rows += [
            Label(label_id=row_id("l", pair, order), pair_id=pair, spec_id=judge.spec_id, context_id=context,
                  shown_order=order, vote=0, choice="a" if p_a > 0.5 else "b", p_a=p_a, p_tie=0.0, reply="",
                  cached_tokens=0, run_id="made")
            for order in ("ab", "ba")
        ]  # fmt: skip
    warehouse = Warehouse.create(folder / "w.duckdb")
    warehouse.append(rows)
    return warehouse


@contextmanager
def label_studio(folder: Path) -> Iterator[str]:
    """A new server on this machine; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "HOME": str(folder), "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"),
        "LABEL_STUDIO_USERNAME": "lead@example.com", "LABEL_STUDIO_PASSWORD": "a-password-of-the-benchmark",
        "LABEL_STUDIO_USER_TOKEN": TOKEN, "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
        "FEATURE_FLAGS_OFFLINE": "true",
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("label-studio")), "start", "--no-browser", "--internal-host",
               "127.0.0.1", "--port", str(port), "--log-level", "WARNING"]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while time.monotonic() < end:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def submit(server: Server, project: int, count: int) -> None:
    """Give `count` of the tasks a verdict. The server takes one in a request, so several are sent at a time."""
    result = [{"from_name": "preference", "to_name": "video", "type": "choices", "value": {"choices": ["A"]}}]
    headers = {"Authorization": f"Token {TOKEN}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=300) as client:

        def send(task: int) -> None:
            body: dict[str, Any] = {"result": result, "lead_time": 9.5}
            client.post(f"/api/tasks/{task}/annotations/", json=body).raise_for_status()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, [task.number for task in server.tasks(project)[:count]]))


def measure(small: bool) -> dict[str, dict[str, object]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warehouse = judged(folder, PAIRS[small])
        judge = warehouse.value("SELECT any_value(spec_id) FROM labels")
        plan_audit(warehouse, "round-trip", Asked(judge=judge, size=TASKS[small], overlap=OVERLAP))
        with label_studio(folder) as url:
            server = Server(url, TOKEN)

            def send() -> tuple[int, float]:
                begun = time.monotonic()
                plan = find_plan(warehouse, "round-trip")
                done = push(warehouse, plan, server, lambda *_: lambda pair: f"{url}/video/{pair.video_id}")
                return done.created, time.monotonic() - begun

            def bring() -> tuple[int, float]:
                begun = time.monotonic()
                done = pull(warehouse, find_plan(warehouse, "round-trip"), server)
                assert not done.refused and not done.gone
                return done.written, time.monotonic() - begun

            created, push_s = send()
            again, again_s = send()
            plan = find_plan(warehouse, "round-trip")
            assert plan.project is not None
            submit(server, plan.project, VERDICTS[small])
            written, pull_s = bring()
            rewritten, _ = bring()
    assert (created, written) == (TASKS[small], VERDICTS[small])

    def figure(value: float, count: int, unit: str, about: str) -> dict[str, object]:
        return {"value": value, "low": None, "high": None, "n": count, "unit": unit, "about": about}

    return {
        "audit_roundtrip_s": figure(push_s + pull_s, created, "s", ""),
        "audit_push_s": figure(push_s, created, "s", "tasks with predictions pushed to an empty server"),
        "audit_pull_s": figure(pull_s, written, "s", "verdicts pulled, all tasks read"),
        "audit_push_again_s": figure(again_s, created, "s", "the same push once more: everything is there"),
        "audit_push_again_tasks": figure(again, created, "tasks", "created by the second push"),
        "audit_pull_again_rows": figure(rewritten, written, "rows", "written by the second pull"),
    }


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true", help="quick, to try it")
    print(json.dumps(measure(arguments.parse_args().small)))
