"""Where an object that is picked up comes to rest, and what hangs over that place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._geometry import Points
from envs._goals import Goal
from envs._overhang import way_in
from envs._scene import Scene, resting_height

Vector = NDArray[np.float64]


def resting_place(
    scene: Scene, goal: Goal, points: Points, origin: Vector, obstacles: Points, shift: Vector
) -> Vector:
    """Where the origin of an object shall come to rest on or in a goal's target, (3,) metres.

    Args:
        scene: the scene.
        goal: `in` or `on`.
        points: surface of the object as it will be turned, (N, 3) metres.
        origin: its origin now, (3,).
        obstacles: surface of everything else, (M, 3).
        shift: from the middle of the target, (2,) metres.
    """
    target = scene.position(goal.target)
    place, support = target[:2] + shift, obstacles
    drawer = scene.drawer(goal.target)
    if drawer is not None:
        higher = obstacles[:, 2] > drawer.rim
        there = points + np.array([*(place - origin[:2]), 0.0])
        place = place + way_in(there, obstacles[higher], drawer.outward, drawer.edge)
        support = obstacles[~higher]
    rise = resting_height(points, support, place - origin[:2])
    return np.array([*place, target[2] if rise is None else origin[2] + rise])


def also_in_the_way(
    scene: Scene, goal: Goal, points: Points, origin: Vector, obstacles: Points
) -> Points:
    """Obstacles here and, as they stand around the object there, those over a drawer, (M, 3).

    The hand that lets something down into a drawer must not meet the handles above it. Arguments
    are those of `resting_place`.
    """
    drawer = scene.drawer(goal.target)
    if drawer is None:
        return obstacles
    there = resting_place(scene, goal, points, origin, obstacles, np.zeros(2))
    over = obstacles[obstacles[:, 2] > drawer.rim]
    return np.concatenate([obstacles, over - there + origin])
