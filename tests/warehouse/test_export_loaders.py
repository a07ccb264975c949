"""Other people's loaders open what was exported: `datasets`, TRL's own checks, the documented schemas of others."""

from __future__ import annotations

import importlib
import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from vlm_rlaif.datagen.engines.torchvision_repair import declare_missing_operators
from vlm_rlaif.warehouse.exports.export import Asked, Exported, export
from vlm_rlaif.warehouse.exports.formats import FORMATS
from vlm_rlaif.warehouse.exports.versions import find
from vlm_rlaif.warehouse.store import Warehouse

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="session")
def warehouse_file(full_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real small warehouse: 100 pairs, two judges; `all` is a version with every preference."""
    from vlm_rlaif.warehouse.exports.versions import Selection, create

    path = tmp_path_factory.mktemp("loaders") / "w.duckdb"
    path.write_bytes(full_file.read_bytes())
    create(Warehouse(path), "all", Selection())
    return path


@pytest.fixture(scope="session")
def written(warehouse_file: Path) -> dict[str, tuple[Path, Exported]]:
    """Every format, once."""
    warehouse, made = Warehouse(warehouse_file), {}
    for name, kind in FORMATS.items():
        out = warehouse_file.parent / name
        made[name] = (out, export(warehouse, Asked(version=find(warehouse, "all"), kind=kind, out=out)))
    return made


def preferences(warehouse_file: Path, split: str, *, ties: bool) -> list[dict[str, Any]]:
    rows = Warehouse(warehouse_file).preferences(split=split).to_dicts()
    return [row for row in rows if ties or row["choice"] != "tie"]


def test_load_from_disk_opens_the_hf_folder_at_once(
    written: dict[str, tuple[Path, Exported]], warehouse_file: Path
) -> None:
    out, made = written["hf"]
    loaded = datasets.load_from_disk(str(out))
    assert {split: len(rows) for split, rows in loaded.items()} == made.rows
    assert list(loaded) == ["train", "val", "test"]
    for split, rows in loaded.items():
        wanted = preferences(warehouse_file, split, ties=True)
        for name in (
            "pair_id",
            "judge",
            "question",
            "text_a",
            "text_b",
            "choice",
            "p_a",
            "context",
            "tokens_a",
            "kind",
        ):
            assert rows[name][:] == [row[name] for row in wanted], name
    assert loaded["train"].cache_files[0]["filename"].startswith(str(out))  # memory-mapped, and not copied
    assert loaded["train"].split == "train"
    kept = loaded["train"].filter(lambda row: row["choice"] != "tie", keep_in_memory=True)
    assert 0 < len(kept) < made.rows["train"]


def test_datasets_saves_again_what_it_loaded(written: dict[str, tuple[Path, Exported]], tmp_path: Path) -> None:
    """The files that describe our folder are the ones that `datasets` writes itself."""
    out, _ = written["hf"]
    datasets.load_from_disk(str(out)).save_to_disk(str(tmp_path / "again"))
    for name in ("dataset_dict.json", "train/dataset_info.json", "train/state.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (out, tmp_path / "again"))
        if "_fingerprint" in theirs:
            ours["_fingerprint"] = theirs["_fingerprint"]
        assert ours == theirs


@pytest.mark.parametrize("form", ["trl", "llama-factory", "ms-swift", "llava", "vlm-rlaif", "parquet"])
def test_load_dataset_reads_the_folder_by_its_card(
    written: dict[str, tuple[Path, Exported]], tmp_path: Path, form: str
) -> None:
    """The header of README.md names the file of each split; nothing else in the folder is taken for data."""
    out, made = written[form]
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == made.rows


def test_the_files_are_read_by_the_json_and_parquet_builders(
    written: dict[str, tuple[Path, Exported]], warehouse_file: Path, tmp_path: Path
) -> None:
    out, _ = written["trl"]
    by_split = {"train": str(out / "train.jsonl"), "test": str(out / "test.jsonl")}
    rows = datasets.load_dataset("json", data_files=by_split, cache_dir=str(tmp_path))["train"]
    wanted = preferences(warehouse_file, "train", ties=False)
    assert rows["pair_id"][:] == [row["pair_id"] for row in wanted]
    out, _ = written["parquet"]
    rows = datasets.load_dataset("parquet", data_files=str(out / "val.parquet"), cache_dir=str(tmp_path))["train"]
    assert rows["text_b"][:] == [row["text_b"] for row in preferences(warehouse_file, "val", ties=True)]


def records(out: Path, name: str) -> list[dict[str, Any]]:
    text = (out / name).read_text(encoding="utf-8")
    found: list[dict[str, Any]] = (
        json.loads(text) if name.endswith(".json") else list(map(json.loads, text.splitlines()))
    )
    assert found
    return found


def test_the_schema_of_llama_factory_holds(written: dict[str, tuple[Path, Exported]]) -> None:
    """data/README.md of LLaMA-Factory: sharegpt, ranking, videos; the last turn is the human's."""
    out, _ = written["llama-factory"]
    entries = json.loads((out / "dataset_info.json").read_text())
    known = {"messages", "system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag"}
    for name, entry in entries.items():
        assert re.fullmatch(r"[\w.-]+", name)
        assert entry["formatting"] == "sharegpt" and entry["ranking"] is True and set(entry["columns"]) <= known
        for row in records(out, entry["file_name"]):
            column = {role: row[key] for role, key in entry["columns"].items()}
            assert len(column["messages"]) % 2 == 1
            assert all(turn["from"] == ("human", "gpt")[i % 2] for i, turn in enumerate(column["messages"]))
            assert column["chosen"]["from"] == column["rejected"]["from"] == "gpt"
            assert column["chosen"]["value"] and column["chosen"]["value"] != column["rejected"]["value"]
            spoken = [turn["value"] for turn in (*column["messages"], column["chosen"], column["rejected"])]
            assert sum(text.count("<video>") for text in spoken) == len(column["videos"]) == 1
            assert all(isinstance(path, str) and os.path.isabs(path) for path in column["videos"])


def test_the_schema_of_ms_swift_holds(written: dict[str, tuple[Path, Exported]]) -> None:
    """Custom-dataset.md of ms-swift: messages that end with the better answer, `rejected_response`, `videos`."""
    out, _ = written["ms-swift"]
    for row in records(out, "train.jsonl"):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert all(set(turn) == {"role", "content"} for turn in row["messages"])
        assert (
            isinstance(row["rejected_response"], str) and row["rejected_response"] != row["messages"][-1]["content"]
        )
        assert sum(turn["content"].count("<video>") for turn in row["messages"]) == len(row["videos"]) == 1
        assert not {"label", "images", "audios", "tools", "objects"} & set(row)


def test_the_record_of_llava_next_holds(written: dict[str, tuple[Path, Exported]]) -> None:
    """llava/train/train_dpo.py of LLaVA-NeXT reads these keys, and writes the image token itself."""
    out, _ = written["llava"]
    for row in records(out, "train.json"):
        assert all(isinstance(row[key], str) for key in ("id", "video", "prompt", "answer", "chosen", "rejected"))
        assert "<image>" not in row["prompt"] and "image" not in row


def test_the_record_of_vlm_rlaif_holds(written: dict[str, tuple[Path, Exported]]) -> None:
    out, _ = written["vlm-rlaif"]
    rows = records(out, "train.json")
    assert {row["preference"] for row in rows} == {1, 2}
    for row in rows:
        assert row["conversations"][-1] == {"from": "gpt", "value": ""}
        assert row["output_1"]["value"] != row["output_2"]["value"]
        assert (row["p_output_1"] > 0.5) == (row["preference"] == 1)


@pytest.mark.slow
def test_trl_takes_the_records_for_conversational_preferences(
    written: dict[str, tuple[Path, Exported]], tmp_path: Path
) -> None:
    """Conversational, a chat template applies, the video is asked for once, pairs can be unpaired."""
    pytest.importorskip("trl")
    declare_missing_operators()
    data_utils = importlib.import_module("trl.data_utils")
    out, made = written["trl"]
    rows = datasets.load_dataset("json", data_files=str(out / "train.jsonl"), cache_dir=str(tmp_path))["train"]
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(files("vlm_rlaif.datagen") / "embedded" / "policy-start")
    )
    for row in rows:
        assert data_utils.is_conversational(row)
        said = data_utils.maybe_apply_chat_template(row, tokenizer)
        assert set(said) == {"prompt", "chosen", "rejected"}
        assert said["prompt"].count("<|video_pad|>") == 1 and said["prompt"].endswith("<|assistant|>")
        assert said["chosen"] == row["chosen"][0]["content"][0]["text"] + "<|end|>"
    unpaired = data_utils.unpair_preference_dataset(rows)
    assert len(unpaired) == 2 * made.rows["train"] and {"prompt", "completion", "label", "videos"} <= set(
        unpaired.column_names
    )
    assert data_utils.is_conversational(unpaired[0])
