"""Three table-top tasks, where their objects may stand, and when they are solved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from deploy.limits import Array
from deploy.sim.link import Placement, SceneState
from deploy.sim.scene import (
    BOWL_HEIGHT,
    BOWL_RADIUS,
    CUBE_HALF,
    CUCUMBER_RADIUS,
    FREE_OBJECTS,
    PLATE_RADIUS,
    TARGETS,
)

_ARM_AND_FINGERS = 9  # numbers before the objects' seven each
_OBJECT_AREA = (np.array([0.42, -0.12]), np.array([0.58, 0.12]))
_TARGET_AREAS = {  # the two stand on either side of the objects
    "bowl": (np.array([0.45, 0.22]), np.array([0.60, 0.30])),
    "plate": (np.array([0.45, -0.32]), np.array([0.60, -0.25])),
}
_RESTS = {"cube": CUBE_HALF, "cucumber": CUCUMBER_RADIUS}  # height of the middle on the table
_APART = 0.12  # m between the objects' middles
_OPEN_WIDTH = 0.06  # m between the fingers that counts as let go
_SETTLED_S = 0.4  # robot time that an object has to lie there: longer than it falls or rolls by


@dataclass(frozen=True, kw_only=True)
class Task:
    """Bring an object to a target.

    Attributes:
        name: For records.
        instruction: For the policy.
        thing: What to bring.
        target: Where to.
        radius: Greatest horizontal distance of the two middles that counts; m.
        height: Greatest height of the object's middle that counts; m.
    """

    name: str
    instruction: str
    thing: str
    target: str
    radius: float
    height: float

    def solved(self, state: SceneState) -> bool:
        """Whether the object lies at its target and the fingers have let go."""
        return self.lies_there(state) and float(state.qpos[7:9].sum()) > _OPEN_WIDTH

    def lies_there(self, state: SceneState) -> bool:
        """Whether the object is where it shall be, held or not."""
        thing, target = position_of(self.thing, state), position_of(self.target, state)
        near = float(np.linalg.norm(thing[:2] - target[:2])) < self.radius
        return near and float(thing[2]) < self.height


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="cube_to_bowl",
                instruction="put the cube in the bowl",
                thing="cube",
                target="bowl",
                radius=BOWL_RADIUS - CUBE_HALF,
                height=BOWL_HEIGHT,
            ),
            Task(
                name="cube_to_plate",
                instruction="put the cube on the plate",
                thing="cube",
                target="plate",
                radius=PLATE_RADIUS,
                height=0.05,
            ),
            Task(
                name="cucumber_to_plate",
                instruction="put the cucumber on the plate",
                thing="cucumber",
                target="plate",
                radius=PLATE_RADIUS,
                height=0.05,
            ),
        )
    }
)


def settled(
    task: Task, look: Callable[[], SceneState], seconds: float = _SETTLED_S
) -> Callable[[Mapping[str, Any]], bool]:
    """Return what tells an executor, step by step, that a task is solved and stays so.

    An object that falls past its target, or is let go of on a rim, solves the task for a moment.

    Args:
        task: To solve.
        look: At the scene of the moment.
        seconds: Of robot time that it has to be solved on end.
    """
    since: float | None = None

    def done(info: Mapping[str, Any]) -> bool:
        nonlocal since
        state = look()
        if not task.solved(state):
            since = None
        elif since is None:
            since = state.time
        return since is not None and state.time - since >= seconds

    return done


def position_of(name: str, state: SceneState) -> Array:
    """(3,) where an object's middle, or the foot of a target, is; m."""
    if name in TARGETS:
        return np.asarray(state.mocap_pos[TARGETS.index(name)])
    start = _ARM_AND_FINGERS + 7 * FREE_OBJECTS.index(name)
    return state.qpos[start : start + 3]


def rotation_of(name: str, state: SceneState) -> Array:
    """(3, 3) rotation of a movable object."""
    start = _ARM_AND_FINGERS + 7 * FREE_OBJECTS.index(name) + 3
    w, x, y, z = state.qpos[start : start + 4]
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def random_placements(seed: int) -> dict[str, Placement]:
    """Where everything stands in an episode: a function of the seed alone."""
    random = np.random.default_rng(seed)
    first = random.uniform(*_OBJECT_AREA)
    second = first
    while np.linalg.norm(second - first) < _APART:
        second = random.uniform(*_OBJECT_AREA)
    placements: dict[str, Placement] = {}
    for name, (x, y) in zip(FREE_OBJECTS, (first, second), strict=True):
        placements[name] = (float(x), float(y), _RESTS[name], float(random.uniform(-0.7, 0.7)))
    for name in TARGETS:
        x, y = random.uniform(*_TARGET_AREAS[name])
        placements[name] = (float(x), float(y), 0.0, 0.0)
    return placements
