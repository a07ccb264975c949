"""Models that learned from the warehouse: fine-tuning, reward model, PPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_rlaif.train.ppo import PPOTrainer
    from vlm_rlaif.train.reward import RewardModel, RewardTrainer

__all__ = ["PPOTrainer", "RewardModel", "RewardTrainer"]


def __getattr__(name: str) -> Any:
    """Public names load when they are first used: `--help` never waits for torch."""
    if name == "PPOTrainer":
        from vlm_rlaif.train.ppo import PPOTrainer

        return PPOTrainer
    if name in ("RewardModel", "RewardTrainer"):
        from vlm_rlaif.train import reward

        return getattr(reward, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
