"""All that a run of reinforcement learning is made of: frozen dataclasses for YAML and words."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_opt._checks import require_at_least
from vla_opt.evaluation.config import EvalConfig
from vla_opt.optim.config import OptimizerConfig
from vla_opt.rl.actors import ExplorationConfig
from vla_opt.rl.no_signal import NoSignalConfig
from vla_opt.rl.objective import ObjectiveConfig
from vla_opt.rl.watch import WatchConfig

__all__ = [
    "ExplorationConfig",
    "NoSignalConfig",
    "ObjectiveConfig",
    "RLConfig",
    "RolloutsConfig",
    "WatchConfig",
]


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig:
    """The episodes that are learned from.

    Attributes:
        suite: Task suite.
        task_ids: Tasks that take turns, group by group.
        groups: Groups per update that show a difference to learn from.
        group_size: Episodes from one random scene that are compared with each other.
        max_rounds: Rounds of `groups` new groups per update until so many show a difference;
            groups that all succeed or all fail are dropped. What is there by then is used.
        execute_steps: Actions of a predicted chunk that are executed before the policy looks again.
        max_steps: Control steps until an episode has failed; the benchmark's limit if not given. A
            shorter one saves most of the time of failures, and rewards haste.
        render_profile: What the checkpoint was trained with if not given, else "exact".
        backend: "ray" (processes, survives crashes) or "serial" (this process). Same episodes.
        num_workers: Simulator processes, one CPU each.
        timeout_s: Wall seconds for one attempt at an episode.
        max_retries: Attempts after the first; then its group goes on without the episode.
        on_stale: What becomes of good groups beyond `groups`, which the next update would see with
            older weights: "refuse" drops them, "correct" uses them with importance weights.
        max_staleness: Updates after which they are dropped all the same.

    Raises:
        ValueError: A number is out of range.
    """

    suite: str = "libero_object"
    task_ids: tuple[int, ...] = (0,)
    groups: int = 4
    group_size: int = 8
    max_rounds: int = 2
    execute_steps: int = 4
    max_steps: int | None = None
    render_profile: str | None = None
    backend: Literal["serial", "ray"] = "ray"
    num_workers: int = 2
    timeout_s: float = 600.0
    max_retries: int = 2
    on_stale: Literal["refuse", "correct"] = "refuse"
    max_staleness: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        least = {"group_size": 2, "max_retries": 0, "max_staleness": 0}
        for name in (
            *("groups", "group_size", "max_rounds", "execute_steps", "num_workers"),
            *("max_retries", "max_staleness"),
        ):
            require_at_least(name, getattr(self, name), least.get(name, 1))
        if self.max_steps is not None:
            require_at_least("max_steps", self.max_steps, 1)
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s}: expected a positive number of seconds.")
        if not self.task_ids:
            raise ValueError("task_ids is empty: name at least one task.")


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """Improve a checkpoint by the success of its own episodes.

    Attributes:
        checkpoint: Where to start: a run, one of its checkpoints, or a folder written by lerobot.
        rollouts: The episodes.
        exploration: How the policy deviates in them.
        objective: What is learned from them.
        optimizer: Which parameter is updated how.
        no_signal: When to stop for want of a difference between episodes of a group.
        watch: When to warn that the policy collapses.
        eval: Periodic evaluation without exploration; checkpoint and output folder are filled in.
        eval_every: Updates between evaluations, the first before any update; 0 = none.
        output_dir: Folder of this run alone.
        updates: Times that episodes are gathered and learned from.
        trainable: Regular expressions; only parameters whose names one of them finds are trained,
            of those that `optimizer.frozen_roles` leaves.
        grad_clip: Largest norm of the whole gradient; 0 = no clipping.
        seed: Of scenes, exploration and order.
        num_threads: Threads of torch; part of the result's last bits.
        device: Of the policy.
        save_every: Updates between checkpoints; 0 = only the last. The last is always saved.
        keep_last: Checkpoints kept; 0 = all.
        tensorboard: Mirror the log to TensorBoard.

    Raises:
        ValueError: A number is out of range.
    """

    checkpoint: Path
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4))
    no_signal: NoSignalConfig = field(default_factory=NoSignalConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    eval_every: int = 0
    output_dir: Path = Path("runs/rl")
    updates: int = 20
    trainable: tuple[str, ...] = ("",)
    grad_clip: float = 1.0
    seed: int = 0
    num_threads: int = 1
    device: str = "cpu"
    save_every: int = 1
    keep_last: int = 2
    tensorboard: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        least = {"updates": 1, "num_threads": 1}
        for name in (
            *("updates", "num_threads", "grad_clip", "seed", "save_every", "keep_last"),
            "eval_every",
        ):
            require_at_least(name, getattr(self, name), least.get(name, 0))
        if self.objective.entropy_weight and not self.exploration.learn_std:
            raise ValueError(
                "objective.entropy_weight has no effect while the standard deviation is fixed: "
                "give --exploration.learn_std=true with it, or leave it out."
            )
