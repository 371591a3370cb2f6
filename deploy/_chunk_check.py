"""Whether what a policy server answered may be given to a robot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ChunkError

Array = NDArray[np.float64]

_LARGEST = {
    # Units of full speed; quantile-normalised policies overshoot 1 a little.
    "joint_velocity": 5.0,
    "cartesian_velocity": 5.0,
    "libero": 5.0,
    "joint_position": 2 * np.pi,  # rad
    "cartesian_position": 2 * np.pi,  # m and rad
}


@dataclass(frozen=True, kw_only=True)
class ChunkRules:
    """What a chunk must be.

    Attributes:
        action_dim: Numbers per action.
        least_steps: Fewer actions than this cannot bridge the time to the next chunk.
        largest: Largest magnitude of a number.
        horizon: Exact length, where the server stated one.
        longest: More actions than this no policy means.
    """

    action_dim: int
    least_steps: int
    largest: float
    horizon: int | None = None
    longest: int = 1000

    @classmethod
    def for_space(
        cls,
        space: str,
        *,
        action_dim: int,
        least_steps: int,
        horizon: int | None,
        longest: int = 1000,
    ) -> ChunkRules:
        """Rules of an action space, see `deploy.metadata.ActionSpace`."""
        return cls(
            action_dim=action_dim,
            least_steps=least_steps,
            largest=_LARGEST[space],
            horizon=horizon,
            longest=longest,
        )


def check_chunk(answer: Mapping[str, Any], rules: ChunkRules) -> Array:
    """Return the actions of an answer, (horizon, dim), as a copy.

    Raises:
        ChunkError: They are missing, of a wrong shape, too few, not finite, or too large. Nothing
            of such a chunk is used.
    """
    if "actions" not in answer:
        raise ChunkError(f"The answer has no `actions`, only {sorted(map(str, answer))}.")
    given = answer["actions"]
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
        kind = given.dtype if isinstance(given, np.ndarray) else type(given).__name__
        raise ChunkError(f"`actions` must be an array of numbers, got {kind}.")
    _check_shape(given.shape, rules)
    actions = given.astype(np.float64)
    if not np.isfinite(actions).all():
        row, column = np.argwhere(~np.isfinite(actions))[0]
        raise ChunkError(
            f"`actions` holds {actions[row, column]} at step {row}, number {column}: the policy "
            "or its normalisation statistics are broken."
        )
    if (worst := float(np.abs(actions).max())) > rules.largest:
        raise ChunkError(
            f"`actions` holds {worst:.3g}, more than {rules.largest:.3g}: another action space, or "
            "other normalisation statistics, than stated."
        )
    return actions


def _check_shape(shape: tuple[int, ...], rules: ChunkRules) -> None:
    if len(shape) != 2 or shape[1] != rules.action_dim:
        raise ChunkError(f"`actions` has shape {shape}, expected (steps, {rules.action_dim}).")
    if rules.horizon is not None and shape[0] != rules.horizon:
        raise ChunkError(f"`actions` has {shape[0]} steps, the server stated {rules.horizon}.")
    if not rules.least_steps <= shape[0] <= rules.longest:
        raise ChunkError(
            f"`actions` has {shape[0]} steps, expected {rules.least_steps} to {rules.longest}: "
            "--executor.execute_steps must not exceed the policy's chunk."
        )
