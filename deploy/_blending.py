"""Which action to execute where several chunks have one for the same step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Blend = Literal["none", "linear", "ensemble"]
BLENDS: tuple[str, ...] = get_args(Blend)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Actions for consecutive steps.

    Attributes:
        start: Step at which its observation was made; row 0 is the action of that step.
        actions: (horizon, dim).
        arrived: Step before which it could be used first.
        latent: (horizon, ...) what the server wants back for real-time chunking; None without.
    """

    start: int
    actions: Array
    arrived: int
    latent: NDArray[Any] | None = None

    @property
    def end(self) -> int:
        """The first step it has no action for."""
        return self.start + len(self.actions)

    def covers(self, step: int) -> bool:
        """Whether it has an action for the step."""
        return self.start <= step < self.end


def linear_weight(step: int, *, switch: int, blend_steps: int) -> float:
    """Return the newer chunk's weight: rises in equal parts over the steps after the switch.

    >>> [linear_weight(s, switch=10, blend_steps=3) for s in (10, 11, 12, 13)]
    [0.25, 0.5, 0.75, 1.0]
    """
    return min(1.0, (step - switch + 1) / (blend_steps + 1))


def ensemble_weights(count: int, decay: float) -> Array:
    """Return the weights of `count` predictions of one step, oldest first.

    w_i = exp(-decay * i), i = 0 for the oldest, normalised (Zhao et al. 2023, ACT, section III-B):
    a new prediction changes the motion gently.
    """
    weights = np.exp(-decay * np.arange(count))
    return np.asarray(weights / weights.sum())


class ActionPlan:
    """The chunks at hand, and the action they amount to for each step.

    Steps are counted in *executed* actions: what a policy foresaw for a step presupposes the steps
    before it. While the arm holds, nothing elapses.

    The last number of an action, the gripper, is never blended: halfway between open and closed
    is neither. It comes from the newest chunk.

    Velocity actions are displacements: a chunk says how far to go from where it was asked for.
    While it was fetched the former chunk's actions were executed instead of its first ones. To drop
    those, as one drops positions that have passed, would throw away what the policy had to correct.
    So displacements are summed up, sums are blended, and what is handed out is the way from what
    has been executed to where the chunks want to be; never faster than full speed.

    Args:
        blend: "none": the newest chunk alone. "linear": from the former to the newest over
            `blend_steps`. "ensemble": all of them, see `ensemble_weights`.
        blend_steps: For "linear".
        decay: For "ensemble".
        displacements: Whether the arm's numbers are shares of full speed, whose first ones are made
            up for where they were not executed. Needs a call of `executed` for each step.
    """

    def __init__(
        self, *, blend: Blend, blend_steps: int, decay: float, displacements: bool = False
    ) -> None:
        self._blend = blend
        self._blend_steps = blend_steps
        self._decay = decay
        self._displacements = displacements
        self._chunks: list[Chunk] = []
        self._travelled: list[Array | float] = [0.0]  # sum of the actions before each step

    @property
    def newest(self) -> Chunk | None:
        """The chunk that arrived last."""
        return self._chunks[-1] if self._chunks else None

    def add(self, chunk: Chunk) -> bool:
        """Take a chunk; False if all of it has elapsed already."""
        if chunk.arrived >= chunk.end:
            return False
        self._chunks.append(chunk)
        return True

    def remaining(self, step: int) -> int:
        """Steps from `step` on that the newest chunk still has an action for."""
        return max(0, self.newest.end - step) if self.newest is not None else 0

    def executed(self, action: Array) -> None:
        """Take note of what was handed to the robot for the present step, (dim,)."""
        self._travelled.append(self._travelled[-1] + action[:-1])

    def action_at(self, step: int) -> Array | None:
        """Return the action of a step, (dim,), or None if no chunk has one."""
        self._chunks = [c for c in self._chunks if step < c.end]
        usable = [c for c in self._chunks if c.covers(step)]
        if not usable:
            return None
        newest = usable[-1].actions[step - usable[-1].start]
        if not self._displacements:
            return np.append(self._mixed([_row(c, step) for c in usable], usable, step), newest[-1])
        goals = [self._travelled[c.start] + _way(c, step) for c in usable]
        left = self._mixed(goals, usable, step) - self._travelled[step]
        return np.append(left / max(1.0, float(np.abs(left).max())), newest[-1])

    def _mixed(self, values: Sequence[Array], chunks: Sequence[Chunk], step: int) -> Array:
        """One value per chunk, oldest first, put together as `blend` says."""
        if self._blend == "none" or len(values) == 1:
            return values[-1]
        if self._blend == "ensemble":
            return np.asarray(ensemble_weights(len(values), self._decay) @ np.stack(values))
        weight = linear_weight(step, switch=chunks[-1].arrived, blend_steps=self._blend_steps)
        return np.asarray(weight * values[-1] + (1.0 - weight) * values[-2])


def _row(chunk: Chunk, step: int) -> Array:
    """The arm's part of an action."""
    return chunk.actions[step - chunk.start, :-1]


def _way(chunk: Chunk, step: int) -> Array:
    """How far a chunk of displacements goes from its start until after a step."""
    rows = chunk.actions[: step - chunk.start + 1, :-1]
    return np.asarray(np.clip(rows, -1.0, 1.0).sum(axis=0))


def delay_fits(delay_steps: int, horizon: int) -> bool:
    """Whether chunks can be fetched while others are played, without a gap.

    A chunk that is asked for before step s is used from step s + d on; the next one is asked for
    before that step and used from step s + 2 d on. Until then the first one must reach, which ends
    before step s + H: so 2 d <= H.

    Args:
        delay_steps: d, steps that are executed between asking and using.
        horizon: H, actions in a chunk.
    """
    return 2 * delay_steps <= horizon
