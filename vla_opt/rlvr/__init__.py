"""Reinforcement learning of language models with rewards that a program verifies.

Rewards, answers and objectives are pure functions and need neither TRL nor transformers; the loop
(`rlvr`) runs TRL's GRPO trainer, the extra `rlvr`.
"""

from typing import TYPE_CHECKING, Any

from vla_opt.rl.diagnostics import head_norms
from vla_opt.rlvr.answers import boxed, hashed, last_number
from vla_opt.rlvr.collapse import CollapseConfig, CollapseWatch
from vla_opt.rlvr.config import (
    ObjectiveConfig,
    RLVRConfig,
    SamplingConfig,
    WarmStartConfig,
)
from vla_opt.rlvr.equivalence import equivalent, same_number
from vla_opt.rlvr.gradient_noise import GradientNoise
from vla_opt.rlvr.heads import HeadMeter, HeadReading
from vla_opt.rlvr.rewards import REWARDS, for_trl, reward
from vla_opt.rlvr.tasks import TaskConfig, examples
from vla_opt.rlvr.text_models import ModelConfig, SmallModelConfig

if TYPE_CHECKING:
    from vla_opt.rlvr.run import RLVRSummary, rlvr

__all__ = [
    "REWARDS",
    "CollapseConfig",
    "CollapseWatch",
    "GradientNoise",
    "HeadMeter",
    "HeadReading",
    "ModelConfig",
    "ObjectiveConfig",
    "RLVRConfig",
    "RLVRSummary",
    "SamplingConfig",
    "SmallModelConfig",
    "TaskConfig",
    "WarmStartConfig",
    "boxed",
    "equivalent",
    "examples",
    "for_trl",
    "hashed",
    "head_norms",
    "last_number",
    "reward",
    "rlvr",
    "same_number",
]


def __getattr__(name: str) -> Any:
    """Import what runs the loop when it is first asked for: rewards need none of it."""
    if name in ("RLVRSummary", "rlvr"):
        from vla_opt.rlvr import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
