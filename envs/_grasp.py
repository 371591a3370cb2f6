"""Where and how to grasp an object from above with a parallel gripper, from geometry alone.

Two kinds of grasp are tried: the whole body between the fingers, and, for what is too wide (bowls,
plates), its rim with one finger inside. Where neither is any good, a part that sticks out is: the
handle of a pot. Every candidate is a position of the grip site and a yaw of
the closing axis; the cheapest one wins. Costs prefer, in this order: nothing in the way of fingers
and palm, room between the fingers, a yaw near the present one (small motions, and the same choice
in similar scenes, which is what makes demonstrations unimodal), and the side of a rim that needs
the shorter reach, here and where the object goes: the stretched arm is slow and imprecise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs._geometry import Points
from envs._taste import NO_TASTE, Taste

Vector = NDArray[np.float64]

# Franka hand of robosuite 1.4 in the frame of its grip site, measured on the collision geoms (m).
MAX_OPENING = 0.078  # pad to pad, fully open
PAD_HALF_WIDTH = 0.010
PAD_ABOVE, PAD_BELOW = 0.012, 0.004  # what the pads cover
TIP_BELOW = 0.010
FINGER_OUTER = 0.062  # outside of an open finger, from the site along the closing axis
PALM_ABOVE = 0.031
PALM_HALF_LENGTH, PALM_HALF_WIDTH = 0.104, 0.032

_EASY_WIDTH = 0.074  # wider bodies do not leave room for an error of position
_ROOMY_WIDTH = 0.052  # up to here, 13 mm to either side
_CLEARANCE = 0.007  # distance from obstacles beyond which more room is worth nothing
_SUPPORT_CLEARANCE = 0.003  # finger tips above what the object stands on
_YAW_STEP = np.deg2rad(5.0)
_BODY_SLACK, _WALL_SLACK = 0.007, 0.013
_RIM_DEPTH = 0.013  # grip site below the rim: the pads just cover it
_BODY_DEPTH = 0.024  # deepest grip site below the top of a body, under the palm's 31 mm

# Cost weights; one unit is about one radian of unwanted rotation.
_COST_YAW = 0.8
_COST_WIDTH = 20.0  # per metre
_COST_TIGHT = 60.0  # per metre beyond _ROOMY_WIDTH
_COST_SHIFT = 20.0  # per metre along the body
_COST_CLASH = 4.0
_COST_REACH = 5.0  # per metre
_COST_SIDE = 0.03  # decides between equals, always in the same way
_COST_RIM = 3.0  # a whole body is held better than a rim
_COST_PART = 6.0  # and a rim better than a handle
_COST_THICK = 60.0  # per metre of what is no handle but a corner
_COST_LEVER = 10.0  # per metre from the middle of the object to the part that is held

_PART_WIDTH = 0.035  # m; what is wider is no handle
_FEW_POINTS = 4
_TAPER = 0.010  # m by which a handle's width may change within a finger's width
_PART_YAW_STEP = np.deg2rad(15.0)


class GraspError(RuntimeError):
    """No way to grasp the object was found."""


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """A grasp from above.

    Attributes:
        position: grip site at closing, world frame, (3,) metres.
        yaw: angle of the closing axis in the world's xy plane, radians; not wrapped, so that it is
            reached from the present yaw by the short way.
        kind: "body", "rim" or "part".
        width: what lies between the fingers, metres.
        cost: of the winning candidate; clashes cost more than about 1.
    """

    position: Vector
    yaw: float
    kind: str
    width: float
    cost: float

    @property
    def slack(self) -> float:
        """Horizontal error (m) at which the hand may already go down and close.

        A wall is thin and the fingers close on it wherever it stands between them; a body is
        pushed by whichever finger meets it first.
        """
        return _WALL_SLACK if self.kind == "rim" else _BODY_SLACK


def plan_grasp(
    points: Points,
    obstacles: Points,
    yaw: float,
    *,
    base: Vector | None = None,
    carry: Vector | None = None,
    taste: Taste = NO_TASTE,
) -> Grasp:
    """Chooses the cheapest grasp of an object.

    Args:
        points: surface of the object, (N, 3) metres, world frame.
        obstacles: surface of everything else that must not be touched, (M, 3); may be empty.
        yaw: present angle of the closing axis, radians.
        base: foot of the arm, (2,); None leaves its reach out of account.
        carry: horizontal way (2,) that the object will be carried; None for nowhere.
        taste: what else makes a grasp dearer.

    Raises:
        GraspError: no candidate at all (no points, or a body that is wide and has no rim).
    """
    if len(points) == 0:
        raise GraspError("the object has no geometry to grasp.")
    way = np.zeros(2) if carry is None else carry
    candidates = [
        *_body_grasps(points, obstacles, yaw, taste),
        *_rim_grasps(points, obstacles, yaw, base, way, taste),
    ]
    if not candidates or min(grasp.cost for grasp in candidates) > _COST_PART:
        candidates += _part_grasps(points, obstacles, yaw, taste)
    if not candidates:
        extent = np.ptp(points, axis=0).round(3).tolist()
        raise GraspError(f"no grasp for an object of size {extent} m: too wide, no rim, no handle.")
    return min(candidates, key=lambda grasp: grasp.cost)


def nearest_yaw(yaw: float, reference: float) -> float:
    """The yaw of the same closing axis (modulo half a turn) that is nearest to `reference`.

    >>> round(nearest_yaw(3.0, 0.0), 4)
    -0.1416
    """
    return float(reference + (yaw - reference + np.pi / 2) % np.pi - np.pi / 2)


def clearance(position: Vector, yaw: float, obstacles: Points) -> float:
    """Distance in metres (negative: depth of penetration) of open fingers and palm to obstacles.

    The volumes reach up without end, so that a vertical approach is covered as well.
    """
    if len(obstacles) == 0:
        return np.inf
    along, across = _axes(yaw)
    offset = obstacles - position
    a, b, z = np.abs(offset[:, :2] @ along), np.abs(offset[:, :2] @ across), offset[:, 2]
    inner, outer = MAX_OPENING / 2, FINGER_OUTER
    fingers = _box_distance(
        np.abs(a - (inner + outer) / 2) - (outer - inner) / 2, b - PAD_HALF_WIDTH, -TIP_BELOW - z
    )
    palm = _box_distance(a - PALM_HALF_LENGTH, b - PALM_HALF_WIDTH, PALM_ABOVE - z)
    return float(min(fingers.min(), palm.min()))


def _body_grasps(points: Points, obstacles: Points, yaw: float, taste: Taste) -> Iterator[Grasp]:
    height = _body_height(points)
    band = _band(points, height)
    for candidate in yaw + np.arange(-90.0, 90.0, 5.0) * np.pi / 180:
        along, across = _axes(candidate)
        span, depth = band[:, :2] @ along, band[:, :2] @ across
        width = float(np.ptp(span))
        if width > _EASY_WIDTH:
            continue
        for shift in _shifts(float(np.ptp(depth))):
            center = along * _middle(span) + across * (_middle(depth) + shift)
            position = np.array([*center, height])
            cost = (
                _COST_WIDTH * width
                + _COST_TIGHT * max(0.0, width - _ROOMY_WIDTH)
                + _COST_SHIFT * abs(shift)
                + taste.of_axis(candidate)
                + _cost(position, candidate, yaw, obstacles)
            )
            yield Grasp(position=position, yaw=candidate, kind="body", width=width, cost=cost)


def _shifts(length: float) -> tuple[float, ...]:
    """Grip points along a body beside its middle, in reach of its centre of mass."""
    steps = int(0.25 * length / 0.01)
    return tuple(0.01 * k for k in range(-steps, steps + 1))


def _rim_grasps(
    points: Points,
    obstacles: Points,
    yaw: float,
    base: Vector | None,
    carry: Vector,
    taste: Taste,
) -> Iterator[Grasp]:
    top = float(points[:, 2].max())
    height = max(top - _RIM_DEPTH, float(points[:, 2].min()) + TIP_BELOW + _SUPPORT_CLEARANCE)
    band = _band(points, height)
    center = np.array([_middle(band[:, 0]), _middle(band[:, 1])])
    for angle in yaw + np.arange(0.0, 2 * np.pi, _YAW_STEP):
        wall = _wall(band, center, angle)
        if wall is None:
            continue
        near, far = wall
        if far - near > _EASY_WIDTH / 2:  # solid at this height: nothing to put a finger in
            continue
        outward = np.array([np.cos(angle), np.sin(angle)])
        position = np.array([*(center + outward * (near + far) / 2), height])
        candidate = nearest_yaw(angle, yaw)
        cost = (
            _COST_RIM
            + _COST_SIDE * (1 - float(outward[1]))
            + _COST_REACH * _reach(position[:2], base, carry)
            + taste.of_side(angle)
            + _cost(position, candidate, yaw, obstacles)
            + _COST_CLASH * _clash(_opposite_clearance(position, candidate, points))
        )
        yield Grasp(position=position, yaw=candidate, kind="rim", width=far - near, cost=cost)


def _part_grasps(points: Points, obstacles: Points, yaw: float, taste: Taste) -> Iterator[Grasp]:
    """Narrow places anywhere along the object that fingers and palm can reach."""
    middle = np.array([_middle(points[:, 0]), _middle(points[:, 1])])
    lowest = float(points[:, 2].min()) + TIP_BELOW + _SUPPORT_CLEARANCE
    for candidate in yaw + np.arange(-np.pi / 2, np.pi / 2, _PART_YAW_STEP):
        along, across = _axes(candidate)
        span, depth = points[:, :2] @ along, points[:, :2] @ across
        for place in np.arange(depth.min() + 0.006, depth.max(), 0.01):
            part = np.abs(depth - place) < PAD_HALF_WIDTH
            height = float(points[part, 2].max()) - _BODY_DEPTH
            z = points[:, 2] - height
            part &= (z > -PAD_BELOW) & (z < PAD_ABOVE)
            if height < lowest or not _is_handle(span[part], depth[part] - place):
                continue
            width = float(np.ptp(span[part]))
            position = np.array([*(along * _middle(span[part]) + across * place), height])
            cost = (
                _COST_PART
                + _COST_THICK * width
                + _COST_LEVER * float(np.linalg.norm(position[:2] - middle))
                + taste.of_axis(candidate)
                + _cost(position, candidate, yaw, obstacles)
                + _COST_CLASH * _clash(_opposite_clearance(position, candidate, points))
            )
            yield Grasp(position=position, yaw=candidate, kind="part", width=width, cost=cost)


def _is_handle(span: Vector, depth: Vector) -> bool:
    """Whether what is between the fingers is narrow, and does not taper like a corner."""
    if len(span) < _FEW_POINTS or np.ptp(span) > _PART_WIDTH:
        return False
    halves = [span[depth < 0], span[depth > 0]]
    if min(len(half) for half in halves) == 0:
        return True
    return bool(abs(np.ptp(halves[0]) - np.ptp(halves[1])) < _TAPER)


def _reach(position: Vector, base: Vector | None, carry: Vector) -> float:
    """Horizontal distance in metres from the foot of the arm, here plus after the carry."""
    if base is None:
        return 0.0
    here = position - base
    return float(np.linalg.norm(here) + np.linalg.norm(here + carry))


def _wall(band: Points, center: Vector, angle: float) -> tuple[float, float] | None:
    """Inner and outer radius of what a finger pad's width cuts out of a rim in one direction."""
    along, across = _axes(angle)
    offset = band[:, :2] - center
    radius, lateral = offset @ along, offset @ across
    radii = radius[(np.abs(lateral) < PAD_HALF_WIDTH) & (radius > 0.005)]
    return None if len(radii) == 0 else (float(radii.min()), float(radii.max()))


def _opposite_clearance(position: Vector, yaw: float, points: Points) -> float:
    """Clearance of fingers and palm to the object itself, its gripped wall left out."""
    along, _ = _axes(yaw)
    between = np.abs((points[:, :2] - position[:2]) @ along) < MAX_OPENING / 2 - 0.006
    own = points[~between | (points[:, 2] > position[2] + PALM_ABOVE)]
    return clearance(position, yaw, own)


def _body_height(points: Points) -> float:
    """Grip height: mid-height if the palm allows it, clear of the support for flat bodies."""
    top, bottom = float(points[:, 2].max()), float(points[:, 2].min())
    lowest = bottom + TIP_BELOW + _SUPPORT_CLEARANCE
    return max(lowest, top - _BODY_DEPTH, (top + bottom) / 2 - PAD_ABOVE / 2)


def _band(points: Points, height: float) -> Points:
    """The points that the pads can touch at a grip height, widened until there are some."""
    for margin in (0.004, 0.010, 0.020, np.inf):
        z = points[:, 2] - height
        band = points[(z > -PAD_BELOW - margin) & (z < PAD_ABOVE + margin)]
        if len(band) >= 12:
            return band
    return points


def _cost(position: Vector, yaw: float, present_yaw: float, obstacles: Points) -> float:
    clash = _clash(clearance(position, yaw, obstacles))
    return _COST_YAW * abs(yaw - present_yaw) + _COST_CLASH * clash


def _clash(distance: float) -> float:
    """0 with room to spare, 1 at contact, more inside."""
    return max(0.0, 1.0 - distance / _CLEARANCE)


def _axes(yaw: float) -> tuple[Vector, Vector]:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([cos, sin]), np.array([-sin, cos])


def _box_distance(*excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distance to a box from the excess of each coordinate over its half size."""
    distance: NDArray[np.float64] = np.max(np.stack(excess), axis=0)
    return distance


def _middle(values: NDArray[np.float64]) -> float:
    return float((values.max() + values.min()) / 2)
