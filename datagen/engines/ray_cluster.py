"""Which Ray cluster a job joins, and how its workers share it. No Ray in here: some is needed before it loads."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Engine
from vlm_rlaif.datagen.engines.make import EngineSettings, make
from vlm_rlaif.warehouse.errors import UserError, nearest

INNER = ("auto", "transformers", "vllm")
KNOCK_S = 5.0


def address() -> str:
    """Of the cluster that RAY_ADDRESS names, or that `ray start` has started or joined here; empty: there is none."""
    named = os.environ.get("RAY_ADDRESS", "")
    noted = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    if not named and noted.is_file():
        named = noted.read_text(encoding="utf-8").strip()
    return "" if named == "local" else named


def stay_on_loopback() -> None:
    """Ray for one machine listens there alone. It reads this variable when it is imported, on any system."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def knock(where: str) -> None:
    """Raises `UserError` when nobody is there: Ray itself would try for minutes."""
    host, colon, port = where.rpartition(":")
    if "://" in where or not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except OSError as error:
        raise UserError(*unusable(where, str(error))) from None


def unusable(where: str, reason: str) -> tuple[str, str]:
    """What to tell when Ray does not start or answer."""
    return (
        f"Ray cannot be used at {where or 'this machine'}: {reason}",
        "ray status (RAY_ADDRESS=local starts one for this job alone; `ray stop` forgets a cluster that is gone)",
    )


def worker_engine(model: str, settings: EngineSettings) -> Callable[[], Engine]:
    """What makes the engine of a worker: the one that the option `inner` names, with all other options."""
    options = dict(settings.options)
    inner = str(options.pop("inner", "auto"))
    if inner not in INNER:
        known = f"One of {', '.join(INNER)}."
        raise UserError(f"inner={inner}: a worker cannot host that.{nearest(inner, INNER)}", known)
    if not model.startswith(models.EMBEDDED) and Path(models.resolve(model)).is_dir():
        model = models.resolve(model)  # a worker has another working directory
    return partial(make, EngineSettings(inner, options=options), model)


def shares(nodes: Sequence[Mapping[str, Any]], settings: EngineSettings) -> tuple[int, int]:
    """GPUs of a worker, and how many workers: by default all GPUs are used, or each node once where there are none.

    `nodes` are the resources of each. Raises `UserError` when no node is big enough.

    >>> shares([{"CPU": 8.0, "GPU": 4.0}] * 2, EngineSettings("ray", options={"tensor_parallel_size": 2}))
    (2, 4)
    """
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if not any(gpus):
        return 0, settings.workers or max(1, sum(node.get("CPU", 0) >= 1 for node in nodes))
    each = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        parts = settings.options.get(name, 1)
        if not isinstance(parts, int) or parts < 1:
            raise UserError(f"--engine-option {name}={parts}: how many GPUs is that?")
        each *= parts
    if each > max(gpus):
        raise UserError(
            f"A worker needs {each} GPUs of one node, and no node of the cluster has more than {max(gpus)}."
        )
    return each, settings.workers or sum(there // each for there in gpus)
