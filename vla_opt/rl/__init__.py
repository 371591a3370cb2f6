"""Reinforcement learning: GRPO and GMPO on the success of simulated episodes.

The mathematics (`losses`, `advantages`, `likelihood`) are pure functions of tensors, of use without
robots. Names are imported when they are first asked for: a simulation worker that unpickles an
episode must not load torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_opt.rl.actors import ExplorationConfig, FlowActor, GaussianActor, build_actor
    from vla_opt.rl.advantages import group_advantages, has_signal
    from vla_opt.rl.config import RLConfig, RolloutsConfig
    from vla_opt.rl.gmpo import GeometricMean, geometric_mean_objective
    from vla_opt.rl.losses import gmpo_loss, grpo_loss, kl_k3, ratio_reading, stale_weights
    from vla_opt.rl.objective import ObjectiveConfig
    from vla_opt.rl.run import RLSummary, rl_train
    from vla_opt.rl.watch import CollapseWatch, WatchConfig

__all__ = [
    "CollapseWatch",
    "ExplorationConfig",
    "FlowActor",
    "GaussianActor",
    "GeometricMean",
    "ObjectiveConfig",
    "RLConfig",
    "RLSummary",
    "RolloutsConfig",
    "WatchConfig",
    "build_actor",
    "geometric_mean_objective",
    "gmpo_loss",
    "group_advantages",
    "grpo_loss",
    "has_signal",
    "kl_k3",
    "ratio_reading",
    "rl_train",
    "stale_weights",
]

_HOMES = {
    "actors": ("ExplorationConfig", "FlowActor", "GaussianActor", "build_actor"),
    "advantages": ("group_advantages", "has_signal"),
    "config": ("RLConfig", "RolloutsConfig"),
    "gmpo": ("GeometricMean", "geometric_mean_objective"),
    "losses": ("gmpo_loss", "grpo_loss", "kl_k3", "ratio_reading", "stale_weights"),
    "objective": ("ObjectiveConfig",),
    "run": ("RLSummary", "rl_train"),
    "watch": ("CollapseWatch", "WatchConfig"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
