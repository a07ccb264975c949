"""LoRA adapters before they are loaded: what they are, what they fit, and that they make rows of their own."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen import adapters, models
from vlm_rlaif.datagen.plan import ask_stage, caption_stage, respond_stage
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import row_id
from vlm_rlaif.warehouse.settings import FurtherPolicy
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
A, B = (f"base_model.model.layers.0.q_proj.lora_{side}.weight" for side in "AB")
SHAPES = {"layers.0.q_proj.weight": (6, 8), "layers.0.q_proj.bias": (6,)}


def write(folder: Path, tensors: dict[str, tuple[int, ...]], content: bytes = b"\1", **settings: Any) -> Path:
    """An adapter written by hand: four bytes a number, all bytes alike."""
    folder.mkdir(exist_ok=True)
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    told = json.dumps(header).encode()
    (folder / adapters.WEIGHTS).write_bytes(struct.pack("<Q", len(told)) + told + content * end)
    (folder / adapters.CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings}))
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write(tmp_path / "adapter", {A: (4, 8), B: (6, 4)})


def test_an_adapter_is_read_without_loading_it(adapter: Path) -> None:
    found = adapters.read(str(adapter))
    assert (found.rank, found.shapes) == (4, {A: (4, 8), B: (6, 4)})


def test_the_rank_is_the_largest_of_all_layers(tmp_path: Path) -> None:
    assert adapters.read(str(write(tmp_path / "a", {A: (4, 8)}, rank_pattern={"q_proj": 32}))).rank == 32


def test_an_adapter_is_the_same_wherever_it_lies_and_another_one_when_anything_changes(
    adapter: Path, tmp_path: Path
) -> None:
    name = adapters.revision(str(adapter))
    moved = write(tmp_path / "moved", {A: (4, 8), B: (6, 4)}, base_model_name_or_path="somewhere/else")
    others = [
        write(tmp_path / "scaled", {A: (4, 8), B: (6, 4)}, lora_alpha=9),
        write(tmp_path / "trained on", {A: (4, 8), B: (6, 4)}, b"\2"),
    ]
    assert adapters.revision(str(moved)) == name
    assert len({name, *(adapters.revision(str(other)) for other in others)}) == 3
    assert adapters.revision("") == ""


def test_an_adapter_whose_b_matrices_are_zero_was_never_trained(adapter: Path, tmp_path: Path) -> None:
    assert adapters.is_trained(adapters.read(str(adapter)))
    assert not adapters.is_trained(adapters.read(str(write(tmp_path / "new", {A: (4, 8), B: (6, 4)}, b"\0"))))


def test_a_pickle_is_never_loaded(adapter: Path) -> None:
    (adapter / adapters.WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="pickle"):
        adapters.resolve(str(adapter))


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, struct.pack("<Q", 4) + b"nope"])
def test_a_file_that_is_no_adapter_is_an_error_in_words(adapter: Path, content: bytes) -> None:
    (adapter / adapters.WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="that can be read"):
        adapters.read(str(adapter))


@pytest.mark.parametrize(
    ("said", "words"), [("{", "is not JSON"), ("[]", "not a JSON object"), ('{"peft_type": "IA3"}', "IA3")]
)
def test_a_configuration_of_something_else_is_refused(adapter: Path, said: str, words: str) -> None:
    (adapter / adapters.CONFIG).write_text(said)
    with pytest.raises(UserError, match=words):
        adapters.read(str(adapter))


def test_an_adapter_fits_the_model_that_it_was_made_for(adapter: Path) -> None:
    adapters.fit(adapters.read(str(adapter)), "embedded:judge", SHAPES)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (
            {A: (4, 9), B: (6, 4)},
            r"lora_A.weight \[4, 9\] belongs to a layer of another size than .*'s \[6, 8\]",
        ),
        ({A: (4, 8), B: (7, 4)}, r"lora_B.weight \[7, 4\] belongs to a layer of another size"),
        ({A.replace("q_proj", "k_proj"): (4, 8)}, "k_proj.lora_A.weight .* has no layer of its name"),
        ({"base_model.model.lm_head.weight": (4, 8)}, "neither a lora_A nor a lora_B"),
    ],
)
def test_an_adapter_of_another_architecture_names_the_first_tensor_that_differs(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], named: str
) -> None:
    other = write(tmp_path / "other", tensors, base_model_name_or_path="lab/other")
    with pytest.raises(UserError, match=named) as error:
        adapters.fit(adapters.read(str(other)), "embedded:judge", SHAPES)
    assert "trained on lab/other" in str(error.value)


def test_an_adapter_that_was_trained_on_other_weights_of_the_same_shape_is_refused(adapter: Path) -> None:
    (adapter / adapters.CARD).write_text(json.dumps({"base_revision": models.revision("embedded:judge")}))
    adapters.fit(adapters.read(str(adapter)), "embedded:judge", SHAPES)
    with pytest.raises(UserError, match="trained on other weights"):
        adapters.fit(adapters.read(str(adapter)), "embedded:policy-start", SHAPES)


def specs(recipe: Recipe) -> list[str]:
    return [
        caption_stage(recipe).spec.spec_id, ask_stage(recipe).spec.spec_id, respond_stage(recipe).spec.spec_id,
        label_stage(recipe, "none").spec.spec_id,
    ]  # fmt: skip


def test_an_adapter_makes_other_rows_and_its_name_does_not(recipe: Recipe, adapter: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(adapter, tmp_path / "copied")
    with_one, with_the_same = (config.replace_adapters(recipe, str(folder)) for folder in (adapter, copied))
    assert not {*specs(recipe)} & {*specs(with_one)}
    assert specs(with_one) == specs(with_the_same)
    assert respond_stage(with_one).spec.adapter == adapters.revision(str(adapter))


def test_without_an_adapter_a_key_is_what_it_was_before_there_were_any() -> None:
    spec = respond_stage(config.load("shapes")).spec
    frames = json.dumps({"count": 3, "size": 32, "repeat": 2}, sort_keys=True)
    sampling = json.dumps({"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64}, sort_keys=True)
    assert spec.spec_id == row_id("respond", "", spec.revision, "", spec.prompt_hash, frames, sampling, "{}")


def test_every_request_of_a_stage_carries_its_adapter(asked: Warehouse, recipe: Recipe, adapter: Path) -> None:
    stage = respond_stage(config.replace_adapters(recipe, str(adapter)))
    assert {stage.request(asked, row).adapter for row in stage.pending(asked)} == {str(adapter)}


def test_a_recipe_names_an_adapter_beside_itself(recipe_file: Path, tmp_path: Path) -> None:
    text = recipe_file.read_text().replace("respond: {", "respond: {adapter: policy, ")
    (tmp_path / "r.yaml").write_text(text)
    found = config.load(str(tmp_path / "r.yaml")).respond
    assert found is not None and found.adapter == str(tmp_path / "policy")


def test_further_policies_keep_their_own_adapters(recipe: Recipe, adapter: Path) -> None:
    assert recipe.respond is not None
    further = replace(recipe, respond=replace(recipe.respond, also=[FurtherPolicy()]))
    changed = config.replace_adapters(further, str(adapter)).respond
    assert changed is not None and [one.adapter for one in changed.policies()] == [str(adapter), ""]


def test_the_command_says_what_is_wrong_with_a_folder(asked: Warehouse, recipe_file: Path, command: Command) -> None:
    done = command("datagen", "respond", asked.path, "--recipe", recipe_file, "--adapter", asked.path.parent)
    assert done.code == 2 and "is not a LoRA adapter: it has no adapter_config.json" in done.err


def test_the_command_plans_the_rows_of_an_adapter(
    asked: Warehouse, recipe_file: Path, adapter: Path, command: Command
) -> None:
    done = command("datagen", "respond", asked.path, "--recipe", recipe_file, "--adapter", adapter, "--dry-run")
    assert done.code == 0 and "12 rows would be computed" in done.out
