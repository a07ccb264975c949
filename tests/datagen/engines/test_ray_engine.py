"""`--engine ray`: the same rows as in this process; whoever is killed, nothing is lost or doubled.

Starts Ray on this machine: `pip install 'vlm-rlaif[ray]'`, then `pytest -m ray tests/datagen/engines`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Engine, Request, ScriptedEngine, VideoPart
from vlm_rlaif.datagen.engines.make import Engines, EngineSettings
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import caption_stage, part, respond_stage
from vlm_rlaif.datagen.shapes.add import add_world
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.warehouse.config import Frames, World, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)
pytestmark = pytest.mark.ray

TWO = EngineSettings("ray", workers=2)

# The console command with scripted workers, which write down each request that they answer: what was paid for.
COMMAND = """
import os, sys, time
from vlm_rlaif.datagen.engine import ScriptedEngine
from vlm_rlaif.datagen.engines import make as engines
from vlm_rlaif.datagen.engines.ray_engine import RayEngine
from vlm_rlaif.warehouse.cli import main

paid = os.environ["PAID"]

def scripted():
    def answer(request):
        time.sleep(0.4)
        with open(paid, "a") as log:
            log.write(request.request_id + "\\n")
        return f"{request.user} {request.seed}"
    return ScriptedEngine(answer)

engines.make = lambda settings, model: RayEngine(model, settings, factory=scripted)
main()
"""


@pytest.fixture(scope="module")
def local() -> Iterator[None]:
    """Ray for all tests of this file: engines join it, and leave it running."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = "local"
    from vlm_rlaif.datagen.engines.ray_engine import connect, ray

    by_value()
    assert connect(4)
    yield
    ray.shutdown()
    os.environ["RAY_ADDRESS"] = before or "local"


def by_value() -> None:
    """Workers cannot import this file: what it defines is sent to them whole."""
    from vlm_rlaif.datagen.engines.ray_engine import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def engine(make: Callable[[], Engine], settings: EngineSettings = TWO) -> Any:
    from vlm_rlaif.datagen.engines.ray_engine import RayEngine

    return closing(RayEngine("scripted", settings, factory=make))


def scripted(script: Callable[[Request], str]) -> Callable[[], Engine]:
    return lambda: ScriptedEngine(script)


def slowly(request: Request) -> str:
    """Says which process answers."""
    time.sleep(0.05)
    return str(os.getpid())


def requests(count: int, videos: int = 10**6) -> list[Request]:
    """Questions, in the order of their videos."""
    parts = [VideoPart(Path(f"{v}.mp4"), Frames(count=1)) for v in range(min(count, videos))]
    ordered = sorted(range(count), key=lambda i: i % len(parts))
    return [Request(f"r{i}", f"question {i}", video=parts[i % len(parts)]) for i in ordered]


# The same rows


def rows(warehouse: Warehouse, table: str) -> list[dict[str, Any]]:
    return warehouse.rows(f"SELECT * EXCLUDE (run_id) FROM {table} ORDER BY 1")


def test_workers_write_the_same_rows_as_this_process(local: None, tmp_path: Path) -> None:
    here = Warehouse.create(tmp_path / "here.duckdb")
    recipe = load("shapes-mini", "embedded:judge")
    add_world(here, World(videos=5, seed=3, questions=2))
    clip(here, part(recipe, "clip"))
    there = Warehouse(Path(shutil.copy(here.path, tmp_path / "there.duckdb")))
    for warehouse, settings in ((here, EngineSettings("transformers")), (there, TWO)):
        with closing(Engines(settings)) as engines:
            for stage in (caption_stage(recipe), respond_stage(recipe)):  # greedy, and sampled with seeds
                run_stage(warehouse, stage, engines.of("embedded:judge"))
    assert len(rows(here, "captions")) == 9 and rows(there, "captions") == rows(here, "captions")
    one, other = rows(here, "responses"), rows(there, "responses")
    logprobs = [[row.pop("logprob") for row in found] for found in (one, other)]
    assert len(one) == 20 and other == one
    assert logprobs[1] == pytest.approx(logprobs[0], abs=1e-3)  # other rows shared their batches
    assert there.rows("SELECT DISTINCT engine, status FROM runs WHERE stage = 'respond'") == [
        {"engine": "ray", "status": "done"}
    ]


# Sharing out


def test_workers_share_the_work_by_video(local: None) -> None:
    with engine(scripted(slowly)) as ray_engine:
        ray_engine.meter.reset()
        done = {c.request_id: c.text for c in ray_engine.generate(requests(60, videos=12))}
        assert ray_engine.meter.bound_by() == "engine" and ray_engine.gpus == 0
    assert len(done) == 60
    of_video = [{done[f"r{i}"] for i in range(60) if i % 12 == v} for v in range(12)]
    assert all(len(workers) == 1 for workers in of_video)
    assert len(set(done.values())) == 2 and min(Counter(done.values()).values()) >= 15


def test_a_stream_that_is_left_early_does_not_reach_into_the_next(local: None) -> None:
    with engine(scripted(slowly)) as ray_engine:
        stream = ray_engine.generate(requests(40))
        next(stream)
        stream.close()
        assert sorted(c.request_id for c in ray_engine.generate(requests(8))) == sorted(f"r{i}" for i in range(8))


def test_requests_are_pulled_only_as_workers_have_room(local: None) -> None:
    pulled: list[str] = []

    def source() -> Iterator[Request]:
        for request in requests(1000):
            pulled.append(request.request_id)
            yield request

    with engine(scripted(slowly)) as ray_engine:
        stream = ray_engine.generate(source())
        for _ in range(20):
            next(stream)
        time.sleep(1.5)
        assert len(pulled) < 150  # two seconds of work for two workers
        stream.close()


# Failures


def test_a_row_that_fails_costs_nobody_else(local: None) -> None:
    def script(request: Request) -> str:
        if request.request_id == "r3":
            raise ValueError("I do not know.")
        return slowly(request)

    with engine(scripted(script)) as ray_engine:
        done = {c.request_id: c for c in ray_engine.generate(requests(12))}
    assert len(done) == 12 and {i: c.error for i, c in done.items() if c.error} == {"r3": "I do not know."}


def test_a_request_that_kills_its_worker_fails_alone(local: None, capsys: pytest.CaptureFixture[str]) -> None:
    def script(request: Request) -> str:
        if request.request_id == "r3":
            os._exit(1)
        return slowly(request)

    with engine(scripted(script)) as ray_engine:
        done = [*ray_engine.generate(requests(12))]
    assert sorted(c.request_id for c in done) == sorted(f"r{i}" for i in range(12))
    (failed,) = [c for c in done if c.error]
    assert failed.request_id == "r3" and failed.error.startswith("3 workers were lost while they had this request.")
    assert "is lost, another takes its place" in capsys.readouterr().err


def test_a_killed_worker_costs_what_was_in_flight_and_nothing_is_lost_or_doubled(local: None, tmp_path: Path) -> None:
    paid = tmp_path / "paid"

    def script(request: Request) -> str:
        with paid.open("a") as log:
            log.write(f"{request.request_id}\n")
        return slowly(request)

    with engine(scripted(script)) as ray_engine:
        done = []
        for each in ray_engine.generate(requests(60)):
            done.append(each.request_id)
            if len(done) == 20:
                os.kill(int(each.text), signal.SIGKILL)
    assert sorted(done) == sorted(f"r{i}" for i in range(60))
    assert len(paid.read_text().split()) <= 60 + 3  # the one that it worked on, and what it had just finished


def test_when_every_worker_dies_again_and_again_the_job_ends_with_the_reason(local: None) -> None:
    def broken(request: Request) -> str:
        raise RuntimeError("CUDA error: out of order")

    with (
        engine(scripted(broken)) as ray_engine,
        pytest.raises(UserError, match=r"No worker of Ray is left.*CUDA err"),
    ):
        list(ray_engine.generate(requests(40)))


def test_a_model_that_a_worker_cannot_load_is_told_in_words(local: None) -> None:
    def missing() -> Engine:
        raise UserError("There is no model folder /models/m.")

    with pytest.raises(
        UserError, match=r"The worker on .* cannot load its model: There is no model folder /models/m"
    ):
        engine(missing)
    engines = Engines(EngineSettings("ray", workers=1, options={"batch_sice": 3}))
    with pytest.raises(UserError, match=r"no option .batch_sice.\. Did you mean .batch_size"):
        engines.of("embedded:judge")()


def test_workers_with_other_weights_are_refused(local: None, tmp_path: Path) -> None:
    count = tmp_path / "count"

    def make() -> Engine:
        with count.open("a") as file:
            file.write(".")
        return ScriptedEngine(slowly, revision=f"v{count.stat().st_size}")

    with pytest.raises(UserError, match=r"scripted has other weights there than here \(revision v\d, not v\d\)"):
        engine(make)


# The driver


def marked() -> list[int]:
    """Living processes of this test's subprocess, its Ray and its workers."""
    mark = os.environ["MARK"].encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes() and b"State:\tZ" not in (process / "status").read_bytes():
                found.append(int(process.name))
        except (OSError, ValueError):
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_for(what: Callable[[], Any], most_s: float) -> bool:
    until = time.monotonic() + most_s
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_driver_keeps_its_rows_and_leaves_no_process_behind(
    how: signal.Signals, asked: Warehouse, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid = tmp_path / "paid"
    paid.touch()
    monkeypatch.setenv("PAID", str(paid))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("MARK", uuid.uuid4().hex)
    words = ["datagen", "respond", asked.path, "--recipe", recipe_file, "--engine", "ray", "--workers", "2"]
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as job:
        assert wait_for(lambda: len(paid.read_text().split()) >= 4, most_s=60), job.communicate()
        os.killpg(job.pid, how)  # as Ctrl-C does
        _, err = job.communicate(timeout=20)
    assert job.returncode == (-9 if how == signal.SIGKILL else 130), err.decode()
    assert wait_for(lambda: not marked(), most_s=15), marked()
    first = len(paid.read_text().split())

    def answer(request: Request) -> str:
        with paid.open("a") as log:
            log.write(f"{request.request_id}\n")
        return f"{request.user} {request.seed}"

    again = run_stage(asked, respond_stage(load(str(recipe_file))), lambda: ScriptedEngine(answer))
    assert asked.value("SELECT count(*) FROM responses") == 12
    assert again.written <= 12 - 2  # of the four answers that were seen, two workers may each still have held one
    if how == signal.SIGINT:  # nothing is paid twice
        assert again.written == 12 - first and len(paid.read_text().split()) == 12


def test_two_nodes_share_the_work_and_one_of_them_may_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two logical nodes with a CPU each on this machine."""
    from vlm_rlaif.datagen.engines.ray_engine import ray

    def placed(request: Request) -> str:
        import ray

        time.sleep(0.05)
        return str(ray.get_runtime_context().get_node_id())

    ray.shutdown()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        by_value()
        with engine(scripted(placed), EngineSettings("ray")) as ray_engine:
            assert ray_engine.workers == 2
            done = []
            for each in ray_engine.generate(requests(120)):
                done.append(each)
                if len(done) == 30:
                    cluster.remove_node(other, allow_graceful=False)
        assert sorted(c.request_id for c in done) == sorted(f"r{i}" for i in range(120))
        assert len({c.text for c in done[:30]}) == 2
        assert "is lost, another takes its place" in capsys.readouterr().err
    finally:
        ray.shutdown()
        cluster.shutdown()
