"""Let transformers' video processors work where torchvision was built for another torch.

transformers' video processors need torchvision, of which they use only the parts written in plain torch. Beside
a CPU build of torch the published torchvision cannot load its compiled operators, never declares `nms`, and its
import stops. Importing this module first declares the two missing operators, by signature only. It does nothing
where torchvision loads, or is absent.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: Any = None
"""A torch.library.Library: torch forgets the operators when it dies."""


def declare_missing_operators() -> bool:
    """Declare torchvision's operators unless its own library loads; says whether it had to."""
    global _declared
    spec = PathFinder.find_spec("torchvision")
    if _declared is not None or spec is None or spec.origin is None or "torchvision" in sys.modules:
        return _declared is not None
    import torch

    for library in sorted(Path(spec.origin).parent.glob("_C*.so"))[:1]:
        try:
            torch.ops.load_library(str(library))
        except OSError:  # built against another torch
            continue
        return False
    _declared = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        _declared.define(operator)
    return True


declare_missing_operators()
