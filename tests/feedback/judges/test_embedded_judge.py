"""Every method by a real model: the embedded judge, on videos of the shapes world."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_rlaif.datagen.engines.make import Engines
from vlm_rlaif.datagen.job import run_models
from vlm_rlaif.datagen.policies import pairs_of, respond_stages
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.datagen.shapes.add import add_world
from vlm_rlaif.feedback.judges.plan import judges_of, turns
from vlm_rlaif.warehouse.config import World, load
from vlm_rlaif.warehouse.store import Warehouse

JUDGES = """
respond:
  model: embedded:policy-start
  prompt: respond_compact_v1
  frames: &seen {count: 3, size: 32, repeat: 2}
  sampling: {temperature: 1.0, max_new_tokens: 32}
label:
  model: embedded:judge
  prompt: judge_compact_v1
  context_prompt: judge_context_compact_v1
  frames: *seen
  arms: [none]
judges:
  - name: votes
    model: embedded:judge
    prompt: judge_compact_v1
    frames: *seen
    verdict: words
    votes: 2
    sampling: {temperature: 1.0, max_new_tokens: 4}
  - {name: check, method: checklist, items: [right], model: "embedded:judge", prompt: check_compact_v1, frames: *seen}
  - {name: claims, method: claims, model: "embedded:judge", prompt: claim_compact_v1, frames: *seen}
panels:
  - {name: panel, of: [none, votes, check, claims], combine: mean}
"""


@pytest.fixture
def rendered(warehouse: Warehouse) -> Warehouse:
    add_world(warehouse, World(videos=2, seed=7, size=32))
    return warehouse


def test_the_embedded_judge_judges_in_every_way(rendered: Warehouse, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "all.yaml").write_text(JUDGES)
    recipe, engines = load(str(tmp_path / "all.yaml")), Engines(None)
    run_models(rendered, respond_stages(recipe), engines.of, Portion())
    pairs = pairs_of(recipe).make(rendered).written
    judges = list(judges_of(recipe).values())
    for stages in turns(judges):
        assert not any(outcome.failed for outcome in run_models(rendered, stages, engines.of, Portion()))
    for judge in judges:
        assert judge.derive is None or judge.derive(rendered).written == pairs
    found = {
        row["judge"]: row["n"] for row in rendered.rows("SELECT judge, count(*) AS n FROM preferences GROUP BY 1")
    }
    assert pairs > 3 and found == {judge.spec.spec_id: pairs for judge in judges}
    ratings = rendered.rows(
        "SELECT count(DISTINCT value) AS values, min(value) AS low, max(value) AS high FROM ratings"
    )
    assert ratings[0]["values"] > 4 and 0 <= ratings[0]["low"] < ratings[0]["high"] <= 1
    engines.close()
