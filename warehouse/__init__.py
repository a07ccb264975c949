"""What we know: videos, captions, responses, labels and runs in one DuckDB file. Never torch, never vllm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.store import Warehouse

__all__ = ["Warehouse"]


def __getattr__(name: str) -> Any:
    """Public names load when they are first used, so that the command line starts at once."""
    if name == "Warehouse":
        from vlm_rlaif.warehouse.store import Warehouse

        return Warehouse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
