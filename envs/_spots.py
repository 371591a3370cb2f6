"""Where in a region an object goes that has to share it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._goals import Goal
from envs._scene import Scene

Vector = NDArray[np.float64]

_EDGE = 0.02  # m from the edge of the region to where the origin of an object belongs


def shared_spot(scene: Scene, goal: Goal) -> Vector:
    """The place of an object from the middle of its region, (2,) metres; zero if it is alone.

    Two objects go to opposite sides, in the direction in which they are narrower: opposite to the
    one that is there already, else each to the side on which it stands now.
    """
    if not goal.beside:
        return np.zeros(2)
    other = Goal(predicate=goal.predicate, item=goal.beside, target=goal.target)
    names = (goal.item, goal.beside)
    here, there = (scene.position(name)[:2] for name in names)
    middle = scene.position(goal.target)[:2]
    outline = scene.opening_of(goal.target)
    if scene.satisfied(other):
        along = outline.axes @ (middle - there)
        side = int(np.abs(along).argmax())
    else:
        along = outline.axes @ (here - there)
        sizes = [np.ptp(scene.points(name)[:, :2] @ outline.axes.T, axis=0) for name in names]
        side = int(np.sum(sizes, axis=0).argmin())
    room = max(float(outline.half[side]) - _EDGE, 0.0)
    return np.array(outline.axes[side] * np.sign(along[side]) * room)
