"""Keeps wrist and fingertips inside a box and above the table, braking distance included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy._viability import braking_path
from deploy.kinematics import FRANKA_HAND, Tool, control_points
from deploy.limits import JOINTS, Array, JointLimits

_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
_SLIDES = 12  # projections at most; in a corner between two walls they take turns
_MARGIN = 1e-4  # m by which a slide stays off the wall: Newton ends near, not inside


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where the hand may be, in the base frame; m.

    Attributes:
        lower: Least x, y, z of the wrist, the flange and the fingertips.
        upper: Greatest x, y, z of the same.
        table_height: z of the table top; None if there is none.
        clearance: Least distance of the fingertips from the table.
        tool: What the arm carries.
    """

    lower: tuple[float, float, float] = (0.1, -0.6, -0.2)
    upper: tuple[float, float, float] = (0.85, 0.6, 1.0)
    table_height: float | None = 0.0
    clearance: float = 0.005
    tool: Tool = FRANKA_HAND

    def excess(self, q: Array) -> tuple[Array, Array]:
        """How far the worst point is outside the box, and below the clearance; m.

        Args:
            q: (..., 7) joint positions.

        Returns:
            Two arrays (...); negative means inside, and by how much.
        """
        points = control_points(q, self.tool)
        outside = np.maximum(np.array(self.lower) - points, points - np.array(self.upper))
        box = outside.max(axis=(-2, -1))
        if self.table_height is None:
            return box, np.full_like(box, -np.inf)
        return box, (self.table_height + self.clearance - points[..., 2]).max(axis=-1)

    def worst(self, q: Array) -> Array:
        """The larger of both excesses; (...)."""
        return np.maximum(*self.excess(q))


def confine(
    q: Array,
    speed: Array,
    bounds: tuple[Array, Array],
    *,
    brake: Array,
    limits: JointLimits,
    workspace: Workspace,
    period: float,
) -> tuple[Array, tuple[str, ...]]:
    """The speed nearest to `speed` after which the arm can still stop inside the workspace.

    An arm that is outside already may move as long as it does not get further out.

    Args:
        q: (7,) target before the move; rad.
        speed: (7,) wanted; rad/s.
        bounds: Least and greatest speed of each joint; `speed` lies between them.
        brake: (7,) the next speed of the braking that the state before was checked with. Any other,
            harder braking included, bends the path and may end behind the wall.
        limits: For the braking distance.
        workspace: Where to stay.
        period: s.

    Returns:
        The speed, and what was in the way: of "workspace" and "table".
    """
    allowed = max(0.0, float(workspace.worst(q))) + 1e-9

    def stays(candidate: Array) -> bool:
        path = braking_path(q + candidate * period, candidate, limits, period)
        return float(workspace.worst(path).max()) <= allowed

    if stays(speed):
        return speed, ()
    names = _obstacles(q, speed, limits, workspace, period, allowed)
    slide = _slide(q, speed, bounds, limits, workspace, period, allowed)
    brake = np.clip(brake, *bounds)
    for wanted in (slide, speed):
        for share in _SHARES[:-1]:
            if stays(candidate := brake + share * (wanted - brake)):
                return candidate, names
    return brake, names


def _obstacles(
    q: Array, speed: Array, limits: JointLimits, space: Workspace, period: float, allowed: float
) -> tuple[str, ...]:
    path = braking_path(q + speed * period, speed, limits, period)
    excesses = zip(("workspace", "table"), space.excess(path), strict=True)
    return tuple(name for name, excess in excesses if float(excess.max()) > allowed)


def _slide(
    q: Array,
    speed: Array,
    bounds: tuple[Array, Array],
    limits: JointLimits,
    space: Workspace,
    period: float,
    allowed: float,
) -> Array:
    """`speed` without its part into the wall: Newton on the excess where braking ends."""
    for _ in range(_SLIDES):
        path = braking_path(q + speed * period, speed, limits, period)
        excess = space.worst(path)
        worst = path[int(np.argmax(excess))]
        beyond = float(excess.max()) - allowed + _MARGIN
        if beyond <= _MARGIN / 2:
            break
        slope = (space.worst(worst + 1e-5 * np.eye(JOINTS)) - space.worst(worst)) / 1e-5
        correction = slope * beyond / max(float(slope @ slope), 1e-6)
        speed = np.clip(speed - correction / period, *bounds)
    return speed
