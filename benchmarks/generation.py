"""How fast generation is, as ratios against named rivals in one run.

    python benchmarks/generation.py [--only clients resume prefix pipeline ray memory] [--small]

Each part lives in `benchmarks/generating/NAME.py`, which says what it needs, and runs in a process of its own:
`clients` (C1) slot use and throughput on a mock endpoint; `resume` (C2) requests paid in every case of the resume
matrix; `prefix` (C3) grouped dispatch and prefix caching on vLLM; `pipeline` (C4) a stage against the bare engine;
`ray` (C5) two workers against one; `memory` a job of 1,000 against one of 100,000 rows. `prefix` and `pipeline` run
in the environment that `tests/vllm/install.sh` makes. Writes `benchmarks/results/generation.json`, its table in
`benchmarks/README.md`, and the figures with a target into the README. `--small` is quick, to try it, and writes
nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from suite import Suite

TARGETS = {
    "slot_use": ("C1: ours on 64 slots, over the best that any client could do in this order", ">= 0.90"),
    "vs_saturate": ("throughput over saturate's, as its docs advise", ">= 1.15"),
    "vs_naive": ("throughput over 64 requests at a time with asyncio and httpx", ">= 1.15"),
    "vs_distilabel": ("throughput over distilabel's default", ">= 3"),
    "resume_excess": ("C2: requests paid beyond the exact minimum, over all cases", "0"),
    "prefix_speedup": ("C3: grouped dispatch with caching over shuffled without", ">= 1.5"),
    "prefix_hit_rate": ("share of prompt tokens found in the cache, grouped with caching", ""),
    "pipeline_overhead": ("C4: wall time of a stage over bare `generate` on the same prompts", "<= 1.05"),
    "ray_scaling": ("C5: two workers over one, 0.2 s a row", ">= 1.7"),
    "memory_growth": ("peak memory of 100,000 rows over that of 1,000", "flat"),
}
"""What a figure is, and what it should be."""
PARTS = {
    "clients": ".venv", "resume": ".venv", "prefix": ".venv-vllm", "pipeline": ".venv-vllm", "ray": ".venv",
    "memory": ".venv",
}  # fmt: skip
"""Part -> the environment that it runs in."""
SUITE = Suite("generation", "generating", PARTS, TARGETS)

if __name__ == "__main__":
    SUITE.main(__doc__)
