"""How honest is a calibrated p? Judges of the shapes world, calibrated against its exact truth, on held-out videos.

    python benchmarks/judging/calibrated.py [--warehouse W.duckdb] [--small]

Without a warehouse the videos of the recipe `shapes` are made, three times as many, and judged: with few pairs the
error of any judge, a perfect one too, is mostly chance (`ece_by_chance`). Every pair is calibrated by a fit that has
seen no pair of its video. `ece_calibrated` is the worst judge's, by the method that the command takes by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from vlm_rlaif.eval.conductor import travel
from vlm_rlaif.feedback.calibrate import FEWEST, PAYS, Calibrated, fit_judge
from vlm_rlaif.feedback.stats.calibration import METHODS
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.store import Warehouse

VIDEOS = {False: 600, True: 120}


def judged_world(folder: Path, videos: int) -> Warehouse:
    """The first half of the demo's journey: videos, responses, pairs and their labels."""
    recipe = config.load("shapes")
    assert recipe.world is not None
    world = replace(recipe.world, videos=videos)
    warehouse = Warehouse.create(folder / "w.duckdb")
    travel(warehouse, replace(recipe, world=world, reward=None, ppo=None, evaluate=None))
    return warehouse


def calibrated(warehouse: Warehouse) -> list[Calibrated]:
    """Every judge with every method that it has pairs enough for."""
    found = []
    judges = "SELECT judge_prompt, judge, count(*) AS pairs FROM preferences WHERE complete GROUP BY ALL ORDER BY ALL"
    for row in warehouse.rows(judges):
        for method in METHODS:
            if row["pairs"] >= FEWEST[method]:
                found.append(fit_judge(warehouse, judge=row["judge"], method=method, against="truth"))
                print(row["judge"], found[-1], sep="\n", file=sys.stderr, flush=True)
    return found


def figures(found: list[Calibrated]) -> dict[str, dict[str, object]]:
    def figure(about: str, values: list[float]) -> dict[str, object]:
        return {
            "value": max(values), "low": min(values), "high": max(values), "n": found[0].pairs, "unit": "",
            "about": f"{about}; the worst judge, range over the judges",
        }  # fmt: skip

    usual = "isotonic" if found[0].pairs >= PAYS else "temperature"
    by = {method: [one for one in found if one.method == method] for method in METHODS}
    made = {"ece_calibrated": figure("held out", [one.after.ece for one in by[usual]])}
    for method, fits in by.items():
        if fits:
            made[f"ece_{method}"] = figure(
                f"calibration error by {method}, held out", [one.after.ece for one in fits]
            )
    first = by["temperature"]
    made["ece_before"] = figure("calibration error of the judges as they are", [one.before.ece for one in first])
    made["ece_by_chance"] = figure("that of a perfect judge, by chance", [one.after.by_chance for one in by[usual]])
    made["brier_before"] = figure("squared error of p as it is", [one.before.brier.value or 0.0 for one in first])
    made["brier_calibrated"] = figure(
        "squared error of p, held out", [one.after.brier.value or 0.0 for one in by[usual]]
    )
    return made


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--warehouse", type=Path)
    arguments.add_argument("--small", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = calibrated(
            Warehouse.open(given.warehouse) if given.warehouse else judged_world(Path(folder), VIDEOS[given.small])
        )
    print(json.dumps(figures(found)))


if __name__ == "__main__":
    main()
