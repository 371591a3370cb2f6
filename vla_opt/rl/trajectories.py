"""What a rollout leaves behind, without torch: simulation workers hold these."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.rollout import EpisodeKey

Array = NDArray[Any]

_ARRAYS, _FACTS = "trajectories.npz", "trajectories.json"


@dataclass(frozen=True, kw_only=True)
class Act:
    """One decision of a policy that explores.

    Attributes:
        chunk: (K, A) float64, in the action's units; what the environment gets.
        latents: what was drawn: executed actions (E, A) of a Gaussian policy, the path
            (n + 1, K, A) of a flow-matching one. With the inputs it gives the log-probability.
        log_prob: (U,) of what was drawn, per executed action or denoising step.
        inputs: what the policy saw, pre-processed, one observation, no batch dimension.
        version: of the weights.
    """

    chunk: NDArray[np.float64]
    latents: Array
    log_prob: Array
    inputs: Mapping[str, Array]
    version: int


@dataclass(frozen=True, kw_only=True)
class RolloutItem:
    """An episode to run.

    Attributes:
        key: its `init_state` is the number of the group, its `trial` the member of the group.
        version: weights to act with.
    """

    key: EpisodeKey
    version: int


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """An episode of D decisions.

    Attributes:
        key: see `RolloutItem`.
        success: whether the goal was reached.
        steps: control steps executed.
        wall_s: seconds of the episode.
        version: of the weights that acted.
        task: the instruction.
        inputs: name -> (D, ...), what the policy saw.
        latents: (D, ...), see `Act`.
        log_prob: (D, U), see `Act`.
        executed: (D, E) bool, False where the episode ended before that action of the chunk.
    """

    key: EpisodeKey
    success: bool
    steps: int
    wall_s: float
    version: int
    task: str
    inputs: Mapping[str, Array]
    latents: Array
    log_prob: Array
    executed: NDArray[np.bool_]

    @property
    def decisions(self) -> int:
        """How often the policy looked."""
        return len(self.latents)

    @property
    def group(self) -> int:
        """Number of the group; unique in a run."""
        return self.key.init_state

    @property
    def reward(self) -> float:
        """1 for success, 0 otherwise."""
        return float(self.success)


def executed_actions(steps: int, decisions: int, execute_steps: int) -> NDArray[np.bool_]:
    """Return (decisions, execute_steps): which actions of the chunks were carried out.

    >>> executed_actions(5, 2, 4).astype(int).tolist()
    [[1, 1, 1, 1], [1, 0, 0, 0]]
    """
    order = np.arange(decisions * execute_steps).reshape(decisions, execute_steps)
    mask: NDArray[np.bool_] = order < steps
    return mask


def save_trajectories(folder: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write trajectories into a folder, exactly."""
    arrays: dict[str, Array] = {}
    facts = []
    for i, t in enumerate(trajectories):
        arrays |= {f"{i}/inputs/{name}": value for name, value in t.inputs.items()}
        arrays |= {f"{i}/{name}": getattr(t, name) for name in _STORED}
        facts.append(
            {
                "key": [t.key.suite, t.key.task_id, t.key.init_state, t.key.trial],
                **{name: getattr(t, name) for name in _FACT_NAMES},
                "inputs": sorted(t.inputs),
            }
        )
    np.savez(folder / _ARRAYS, **arrays)  # type: ignore[arg-type]  # names are not options
    (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def load_trajectories(folder: Path) -> list[Trajectory]:
    """Read what `save_trajectories` wrote."""
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
        return [
            Trajectory(
                key=EpisodeKey(
                    **dict(
                        zip(("suite", "task_id", "init_state", "trial"), fact["key"], strict=True)
                    )
                ),
                **{name: fact[name] for name in _FACT_NAMES},
                **{name: arrays[f"{i}/{name}"] for name in _STORED},
                inputs={name: arrays[f"{i}/inputs/{name}"] for name in fact["inputs"]},
            )
            for i, fact in enumerate(facts)
        ]


_STORED = ("latents", "log_prob", "executed")
_FACT_NAMES = ("success", "steps", "wall_s", "version", "task")
