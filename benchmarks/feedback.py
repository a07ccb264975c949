"""How far feedback can be trusted, and what trusting it costs.

    python benchmarks/feedback.py [--only judges planted corrected calibrated audit page] [--small]

Each part lives in `benchmarks/judging/NAME.py`, which says what it needs, and runs in a process of its own: `judges`
every judge recipe against the exact truth of the shapes world; `planted` estimators of bias on scripted judges whose
bias is known; `corrected` rates that an audit corrects; `calibrated` probabilities on held-out videos; `audit` the
round trip through a real Label Studio; `page` the page of a pair in a real browser. `audit` and `page` run in the
environment that `tests/studio/install.sh` makes. Writes `benchmarks/results/feedback.json`, its table in
`benchmarks/README.md`, and the figures with a target into the README. `--small` is quick, to try it, and writes
nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from suite import Suite

TARGETS = {
    "together_points": (
        "the panel, or the votes, that lose most against their best single member",
        "interval reaches 0",
    ),
    "bias_coverage": (
        "planted biases that their estimator's interval holds, of 100; the worst estimator",
        ">= 93",
    ),
    "corrected_coverage": ("true rates that the interval of the corrected rate holds, of 100", ">= 93"),
    "ece_calibrated": ("calibration error of the calibrated judge on held-out videos; the worst judge", "< 0.05"),
    "audit_roundtrip_s": ("5,000 tasks pushed to Label Studio and 1,000 verdicts pulled", "< 180 s"),
    "view_first_paint_s": ("first paint of a pair in a browser, at 1 M labels", "< 1 s"),
}
"""What a figure is, and what it should be."""
PARTS = {
    "judges": ".venv", "planted": ".venv", "corrected": ".venv", "calibrated": ".venv", "audit": ".venv-audit",
    "page": ".venv-audit",
}  # fmt: skip
"""Part -> the environment that it runs in."""
SUITE = Suite("feedback", "judging", PARTS, TARGETS)

if __name__ == "__main__":
    SUITE.main(__doc__)
