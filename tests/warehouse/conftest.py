"""A warehouse with rows in every table, made by the real stages."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from vlm_rlaif.warehouse.records import Checkpoint, Dataset, DatasetRow, Export, Failure, Record, Run
from vlm_rlaif.warehouse.store import Warehouse

FIXTURE = Path(__file__).parents[1] / "fixtures" / "m001_initial.duckdb.gz"


@pytest.fixture(scope="session")
def full_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a warehouse with rows in every table but `removals`, to be copied. Its videos have no files."""
    path = tmp_path_factory.mktemp("full") / "w.duckdb"
    path.write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    warehouse = Warehouse.create(path)
    chosen = warehouse.rows("SELECT pair_id, judge, choice, p_a FROM preferences ORDER BY pair_id, judge LIMIT 30")
    responses = warehouse.rows("SELECT response_id FROM responses ORDER BY response_id LIMIT 3")
    ties = sum(row["choice"] == "tie" for row in chosen)
    config = {"checkpoint_id": "policy", "inputs": {"reward": "reward model"}}
    rows: list[Record] = [
        Run(
            run_id="late", stage="dataset", config="{}", code_version="0", engine="none", host="here",
            started_at=datetime(2027, 1, 1), ended_at=datetime(2027, 1, 1), status="done",
        ),
        Dataset(name="good", rows_hash="v1", query="", preferences=30, ties=ties, videos=9, run_id="late"),
        *(DatasetRow(rows_hash="v1", run_id="late", **row) for row in chosen),
        Export(export_id="e1", rows_hash="v1", format="trl", path="out/good.jsonl", rows=30, run_id="late"),
        Checkpoint(
            checkpoint_id="reward model", kind="reward", path="models/reward-1", step=1, parent="p", data_hash="v1",
            config='{"inputs": {}}', run_id="late",
        ),
        Checkpoint(
            checkpoint_id="policy", kind="ppo", path="models/ppo-1", step=1, parent="p", data_hash="unknown",
            config=json.dumps(config), run_id="late",
        ),
        *(
            Failure(
                row_id=row["response_id"], stage="respond", attempt=1, kind="engine", message="out of memory",
                reply=None, run_id="late",
            )
            for row in responses
        ),
    ]  # fmt: skip
    warehouse.append(rows)
    return path


@pytest.fixture
def full(full_file: Path, tmp_path: Path) -> Warehouse:
    """A warehouse with rows in every table but `removals`. Its videos have no files."""
    return Warehouse(Path(shutil.copy(full_file, tmp_path / "w.duckdb")))
