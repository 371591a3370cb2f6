"""What a scripted demonstrator knows about a LIBERO scene: goals, poses and geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs._articulation import Joint
from envs._fit import Opening
from envs._geometry import Points, body_points, subtree
from envs._goals import Goal, parse_goals

Vector = NDArray[np.float64]

_FALLEN = 0.1  # m; origins may lie below the surface on which their objects stand
_WALL = 0.01  # m by which the walls of a drawer may be higher than its region
_CELL = 0.012  # m; column width when two surfaces are brought together


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """A drawer as it stands, seen from above.

    Attributes:
        outward: horizontal unit vector in which it opens, (2,).
        edge: inner side of its front, metres along `outward`.
        rim: height that its walls do not exceed, metres.
    """

    outward: Vector
    edge: float
    rim: float


class Scene:
    """Poses and geometry of a LIBERO environment, in metres and the world frame.

    Args:
        inner: the robosuite environment (`LiberoEnv.inner`).
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._robot = inner.robots[0]
        self._fingers = list(self._robot._ref_gripper_joint_pos_indexes)
        names = (self.model.body(body).name for body in range(self.model.nbody))
        prefixes = (self._robot.robot_model.naming_prefix, self._robot.gripper.naming_prefix)
        self._robot_bodies = {k for k, name in enumerate(names) if name.startswith(prefixes)}

    @property
    def model(self) -> Any:
        """`mujoco.MjModel`."""
        return self._inner.sim.model._model

    @property
    def data(self) -> Any:
        """`mujoco.MjData`."""
        return self._inner.sim.data._data

    def goals(self) -> tuple[Goal, ...]:
        """The task's steps; raises `UnsupportedTaskError`."""
        return parse_goals(self._inner.parsed_problem)

    def satisfied(self, goal: Goal) -> bool:
        """Whether the simulator's own predicate holds."""
        return bool(self._inner._eval_predicate(goal.state))

    def eef_position(self) -> Vector:
        """Grip site, (3,)."""
        position: Vector = self.data.site_xpos[self._robot.eef_site_id].copy()
        return position

    def eef_rotation(self) -> Vector:
        """Grip site frame, (3, 3): x is the closing axis, z points out of the hand."""
        rotation: Vector = self.data.site_xmat[self._robot.eef_site_id].reshape(3, 3).copy()
        return rotation

    def base_position(self) -> Vector:
        """Foot of the arm, (3,)."""
        name = self._robot.robot_model.root_body
        return np.array(self.data.body(name).xpos)

    def opening(self) -> float:
        """Distance between the finger pads."""
        left, right = self.data.qpos[self._fingers]
        return float(left - right)

    def grip_force(self) -> float:
        """Force in newton of the weaker finger's actuator in the closing direction."""
        forces = self.data.actuator_force[self._inner.robots[0]._ref_joint_gripper_actuator_indexes]
        return float(min(-forces[0], forces[1]))

    def joint(self, name: str) -> Joint:
        """The joint of a drawer's region or of an object with a knob or a door."""
        source = self._inner.object_sites_dict if self.is_region(name) else None
        owner = self._inner.get_object(name) if source is None else source[name]
        return Joint(self.model, self.data, owner.joints[0])

    def is_region(self, name: str) -> bool:
        """Whether a name is a region (a site) and not a body."""
        return name in self._inner.object_sites_dict

    def drawer(self, name: str) -> Drawer | None:
        """What a region is the inside of, if it moves with a slide."""
        if not self.is_region(name) or not self._inner.object_sites_dict[name].joints:
            return None
        joint, site = self.joint(name), self.data.site(name)
        if not joint.slides:
            return None
        low, high = joint.limits
        outward = joint.axis if abs(high) > abs(low) else -joint.axis
        half = np.abs(site.xmat.reshape(3, 3)) @ self.model.site(name).size
        return Drawer(
            outward=outward[:2],
            edge=float(site.xpos @ outward + half @ np.abs(outward)),
            rim=float(site.xpos[2] + half[2]) + _WALL,
        )

    def opening_of(self, name: str) -> Opening:
        """The outline of a region, seen from above."""
        site = self.data.site(name)
        axes, half = site.xmat.reshape(3, 3).T, self.model.site(name).size
        flat = sorted(np.argsort(np.abs(axes[:, 2]))[:2])  # the two that are nearly horizontal
        return Opening(axes=axes[flat, :2].copy(), half=half[flat].copy())

    def region_parent(self, name: str) -> str | None:
        """The object that a region belongs to; None for regions of the table or floor."""
        parent = self._inner.object_sites_dict[name].parent_name
        return parent if parent in self._inner.obj_body_id else None

    def position(self, name: str) -> Vector:
        """Origin of an object or of a region, (3,)."""
        source = (
            self.data.site(name).xpos
            if self.is_region(name)
            else self.data.xpos[self._inner.obj_body_id[name]]
        )
        return np.array(source)

    def rotation(self, name: str) -> Vector:
        """Rotation matrix of an object, (3, 3)."""
        return np.array(self.data.xmat[self._inner.obj_body_id[name]]).reshape(3, 3)

    def has_fallen(self, name: str) -> bool:
        """Whether an object or a region is far below the surface that the task is set on."""
        return bool(self.position(name)[2] < self._inner.workspace_offset[2] - _FALLEN)

    def is_moving(self) -> bool:
        """Whether some object falls, rocks or rolls faster than 1 cm/s or 0.1 rad/s."""
        bodies = [self._inner.obj_body_id[name] for name in self._inner.objects_dict]
        speed = np.abs(self.data.cvel[bodies])  # rotation, then translation
        return bool(speed[:, :3].max() > 0.1 or speed[:, 3:].max() > 0.01)

    def touches_something(self, name: str) -> bool:
        """Whether an object is in contact with anything but the robot."""
        own = set(subtree(self.model, self._inner.obj_body_id[name]))
        for contact in self.data.contact[: self.data.ncon]:
            bodies = {int(self.model.geom_bodyid[g]) for g in (contact.geom1, contact.geom2)}
            others = bodies - own
            if others != bodies and not others & self._robot_bodies:
                return True
        return False

    def points(self, name: str) -> Points:
        """Surface of an object, (N, 3)."""
        return body_points(self.model, self.data, self._inner.obj_body_id[name])

    def points_without(self, name: str) -> Points:
        """Surface of all objects and fixtures but one, (N, 3)."""
        clouds = [self.points(other) for other in self._inner.obj_body_id if other != name]
        return np.concatenate(clouds) if clouds else np.zeros((0, 3))


def resting_height(item: Points, support: Points, shift: Vector) -> float | None:
    """How far an item must be raised (m, negative: lowered) to stand on a support.

    Both surfaces are cut into columns; the column where the item's underside first meets the
    support's upper side decides.

    Args:
        item: surface points, (N, 3).
        support: surface points of everything below, (M, 3).
        shift: horizontal move of the item before it is lowered, (2,).

    Returns:
        None where nothing lies below the item.
    """
    underside = _columns(item[:, :2] + shift, -item[:, 2])
    upper = _columns(support[:, :2], support[:, 2])
    common = underside.keys() & upper.keys()
    return max(upper[cell] + underside[cell] for cell in common) if common else None


def highest_between(points: Points, start: Vector, end: Vector, half_width: float) -> float:
    """Height (m) of the highest point within `half_width` of a horizontal segment, -inf for none.

    Args:
        points: (N, 3).
        start: (2,) or longer; x and y are used.
        end: as `start`.
        half_width: metres to either side and beyond both ends.
    """
    near = _from_segment(points, start, end) < half_width
    return float(points[near, 2].max(initial=-np.inf))


def nearest_between(points: Points, start: Vector, end: Vector) -> float:
    """Horizontal distance (m) of the nearest point from a segment, inf for none.

    Args:
        points: (N, 3).
        start: (2,) or longer; x and y are used.
        end: as `start`.
    """
    return float(_from_segment(points, start, end).min(initial=np.inf))


def _from_segment(points: Points, start: Vector, end: Vector) -> Vector:
    """Horizontal distances of points from a segment, (N,) metres."""
    segment = end[:2] - start[:2]
    length = float(segment @ segment)
    offset = points[:, :2] - start[:2]
    t = np.clip(offset @ segment / length, 0, 1) if length > 0 else np.zeros(len(points))
    distances: Vector = np.linalg.norm(offset - t[:, None] * segment, axis=1)
    return distances


def _columns(xy: NDArray[np.float64], height: NDArray[np.float64]) -> dict[tuple[int, int], float]:
    """Largest height in each column."""
    cells = np.floor(xy / _CELL).astype(np.int64)
    order = np.argsort(height, kind="stable")  # later (higher) entries overwrite earlier ones
    keys = map(tuple, cells[order].tolist())
    return dict(zip(keys, height[order].tolist(), strict=True))
