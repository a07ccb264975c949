"""What `--engine ray` is made of, without Ray: a stream of a worker, the work that is shared out, the cluster."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.engine import Completion, EngineDied, Request, ScriptedEngine, VideoPart
from vlm_rlaif.datagen.engines import ray_cluster
from vlm_rlaif.datagen.engines.make import EngineSettings
from vlm_rlaif.datagen.engines.ray_seat import RESERVE_MOST, Seat
from vlm_rlaif.datagen.engines.ray_work import BUNDLE, CHANCES, Work
from vlm_rlaif.datagen.engines.ray_worker import Report, Worker
from vlm_rlaif.warehouse.config import Frames
from vlm_rlaif.warehouse.errors import MissingExtra, UserError


def ask(*names: str) -> list[Request]:
    return [Request(name, f"say {name}") for name in names]


def about(video: str, number: int) -> Request:
    return Request(f"{video}{number}", "what ?", video=VideoPart(Path(video), Frames(count=1), video_id=video))


def loaded(engine: ScriptedEngine) -> Worker:
    worker = Worker(lambda: engine)
    assert worker.load().problem == ""
    return worker


def run(worker: Worker, requests: list[Request], number: int = 1) -> tuple[list[Completion], Report]:
    """One stream from its first to its last report."""
    done: list[Completion] = []
    report = worker.exchange(number, requests, last=True, reserve=1)
    while not report.ended:
        done += report.completions
        report = worker.exchange(number, [], last=True, reserve=1)
    assert report.completions == ()
    return done, report


class Held(ScriptedEngine):
    """Answers one request each time that it is let go."""

    def __init__(self) -> None:
        super().__init__(lambda request: request.user)
        self.go = threading.Semaphore(0)
        self.left = threading.Event()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        try:
            for done in super().generate(requests):
                assert self.go.acquire(timeout=10)
                yield done
        finally:
            self.left.set()


# A worker's stream


def test_a_worker_answers_what_it_is_given_and_says_when_its_stream_is_over() -> None:
    worker = loaded(ScriptedEngine(lambda request: request.user.upper()))
    for number in (1, 2):
        done, report = run(worker, ask("a", "b"), number)
        assert [each.text for each in done] == ["SAY A", "SAY B"]
        assert (report.waiting, report.problem, report.broken) == (0, "", "")


def test_a_completion_leaves_while_others_are_under_way() -> None:
    engine = Held()
    worker = loaded(engine)
    engine.go.release()
    report = worker.exchange(1, ask("a", "b"), last=True, reserve=1)
    assert [done.request_id for done in report.completions] == ["a"] and not report.ended
    engine.go.release()
    assert [done.request_id for done in worker.exchange(1, [], last=True, reserve=1).completions] == ["b"]


def test_a_worker_asks_for_more_before_its_engine_has_nothing_left() -> None:
    engine = Held()
    worker = loaded(engine)
    report = worker.exchange(1, ask("a", "b", "c"), last=False, reserve=3)
    assert report.completions == () and report.waiting < 3 and not report.ended
    begun = time.monotonic()
    worker.exchange(1, [], last=True, reserve=3)  # nothing more will come, so it waits for a completion
    assert time.monotonic() - begun > 0.5
    engine.go.release(3)


def test_a_new_stream_leaves_the_old_one_and_hears_nothing_of_it() -> None:
    engine = Held()
    worker = loaded(engine)
    worker.exchange(1, ask("old 1", "old 2"), last=False, reserve=2)
    engine.go.release(9)
    done, _ = run(worker, ask("new"), number=2)
    assert [each.request_id for each in done] == ["new"]


def test_the_mistake_of_a_user_and_an_error_of_the_engine_arrive_in_words() -> None:
    def mistaken(request: Request) -> str:
        if request.user == "say b":
            raise UserError("The label 'xyz' is 3 tokens.", "Choose another.")
        return "fine"

    done, report = run(loaded(ScriptedEngine(mistaken)), ask("a", "b", "c"))
    assert [each.request_id for each in done] == ["a"]
    assert report.problem == "The label 'xyz' is 3 tokens.\nChoose another." and report.broken == ""

    for error, words in ((RuntimeError("CUDA"), "RuntimeError: CUDA"), (EngineDied("vLLM died."), "vLLM died.")):

        def broken(request: Request, error: Exception = error) -> str:
            raise error

        done, report = run(loaded(ScriptedEngine(broken)), ask("a"))
        assert (done, report.problem, report.broken) == ([], "", words)


def test_a_model_that_does_not_load_is_a_problem_in_words() -> None:
    def missing() -> ScriptedEngine:
        raise MissingExtra("The vLLM engine", "vllm")

    assert "pip install 'vlm-rlaif[vllm]'" in Worker(missing).load().problem


def test_a_video_that_cannot_be_read_is_told_with_the_machine() -> None:
    class Blind(ScriptedEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            for request in requests:
                yield Completion(request.request_id, error="there is no file a.mp4", error_kind="video")

    worker = loaded(Blind(lambda request: ""))
    (done,), _ = run(worker, ask("a"))
    assert done.error == f"there is no file a.mp4 (on {worker.where()})"


# Work for several workers


@given(st.lists(st.integers(1, 2 * BUNDLE + 5), max_size=6))
def test_requests_of_a_video_leave_together_in_their_order(sizes: list[int]) -> None:
    requests = [about(f"v{video}-", number) for video, size in enumerate(sizes) for number in range(size)]
    work = Work(requests)
    taken: list[list[Request]] = []
    while bundle := work.take():
        taken.append(bundle)
    assert work.ended and [request for bundle in taken for request in bundle] == requests
    assert all(len({request.video for request in bundle}) == 1 and len(bundle) <= BUNDLE for bundle in taken)
    assert len(taken) == sum(-(-size // BUNDLE) for size in sizes)


def test_requests_without_a_video_leave_one_by_one() -> None:
    work = Work(ask("a", "b"))
    assert [len(work.take()), len(work.take()), len(work.take())] == [1, 1, 0]


def test_work_is_pulled_one_video_ahead_and_no_further() -> None:
    pulled: list[str] = []

    def source() -> Iterator[Request]:
        for video in "abcdef":
            pulled.append(video)
            yield about(video, 0)

    work = Work(source())
    work.take()
    assert pulled == ["a", "b", "c"]  # the first of the next video ends the one before


def test_what_lost_workers_had_goes_to_others_then_out_alone_and_then_fails() -> None:
    work = Work(ask("a", "b"))
    first, second = work.take(), work.take()
    assert work.ended
    work.give_back([*first, *second], "killed")
    assert not work.dry and work.take() == [*first, *second]
    work.give_back([*first, *second], "killed")
    assert work.dry and not work.ended and work.take() == []
    assert work.take(alone=True) == first and work.take(alone=True) == second
    assert work.convict() == []
    work.give_back(first, "killed by signal 11")
    (failed,) = work.convict()
    assert failed.request_id == "a" and failed.error.startswith(f"{CHANCES} workers were lost")
    assert "signal 11" in failed.error and work.convict() == [] and work.ended


# One worker, as the driver sees it


def test_a_reserve_grows_while_it_is_emptied_and_then_keeps_to_the_pace() -> None:
    seat = Seat(None, None, since=time.monotonic() - 10.0)
    depths = []
    for waiting in (0, 0, 0, 0, 5, 5, 5, 5):
        seat.note(waiting, {"engine": 0.0})
        depths.append(seat.reserve)
    assert depths == [2, 4, 8, 16, 8, 4, 2, 1]
    seat.done = 200  # in ten seconds
    assert 19 <= seat.reserve <= 21
    seat.done = 10**6
    assert seat.reserve == RESERVE_MOST


def test_a_worker_is_as_busy_as_its_meter_says_it_was_lately() -> None:
    seat = Seat(None, None)
    seat.note(0, {"engine": 3.0, "decode": 1.0, "prompt": 0.0, "warehouse": 0.0})
    assert (seat.busy, seat.cause) == (0.75, "decode")
    seat.note(0, {"engine": 3.001, "decode": 1.0, "prompt": 0.0, "warehouse": 0.0})  # too short to say anything
    assert seat.busy == 0.75
    seat.note(0, {"engine": 3.5, "decode": 1.0, "prompt": 0.5, "warehouse": 0.0})
    assert (seat.busy, seat.cause) == (0.5, "prompt")


# Clusters


def test_a_cluster_is_the_one_that_ray_address_names_or_that_was_started_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_cluster.address() == ""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert ray_cluster.address() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert ray_cluster.address() == "10.0.0.2:6379"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_cluster.address() == ""


def test_a_cluster_that_is_gone_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        gone = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"Ray cannot be used at {gone}: .*refused[\s\S]*ray status"):
            ray_cluster.knock(gone)
    ray_cluster.knock("ray://somewhere:10001")


def test_workers_share_the_gpus_or_else_the_nodes() -> None:
    cpu, small, big = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 8.0}
    two = EngineSettings("ray", options={"tensor_parallel_size": 2})
    assert ray_cluster.shares([cpu, cpu, {}], EngineSettings("ray")) == (0, 2)
    assert ray_cluster.shares([cpu], EngineSettings("ray", workers=5)) == (0, 5)
    assert ray_cluster.shares([cpu, small, big], EngineSettings("ray")) == (1, 9)
    assert ray_cluster.shares([cpu, small, big], two) == (2, 4)
    with pytest.raises(UserError, match="needs 2 GPUs of one node, and no node of the cluster has more than 1"):
        ray_cluster.shares([cpu, small], two)
    with pytest.raises(UserError, match="tensor_parallel_size=all: how many GPUs is that"):
        ray_cluster.shares([small], EngineSettings("ray", options={"tensor_parallel_size": "all"}))


def test_a_worker_hosts_the_engine_that_is_named_and_gets_the_other_options(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = EngineSettings("ray", workers=2, options={"inner": "vllm", "max_num_seqs": 8})
    made = ray_cluster.worker_engine(str(tmp_path), settings)
    assert made.args == (EngineSettings("vllm", options={"max_num_seqs": 8}), str(tmp_path))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="Did you mean 'vllm'"):
        ray_cluster.worker_engine(str(tmp_path), EngineSettings("ray", options={"inner": "vlm"}))
    with pytest.raises(UserError, match="no model folder"):
        ray_cluster.worker_engine("./nowhere", EngineSettings("ray"))
