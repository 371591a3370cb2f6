"""Scripted demonstrators that read simulator state.

A demonstrator exists to be imitated by a policy that sees images, language and proprioception, so
its action is, as far as possible, a smooth function of what such a policy can see: proportional
control towards a target that itself depends on the present position (a funnel), gripper switches at
places and openings that are visible, and no waiting without visible progress.

A task's goals become steps (`envs._goals`); each step is taken by a skill: picking and placing,
sliding, pulling a drawer open, pushing a drawer or a door shut, turning a knob. Every skill works
from the geometry of the scene; none knows a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs._goals import CLOSED, OPENED, PLACED, Goal, UnsupportedTaskError, parse_goals
from envs._knob import TurnKnob
from envs._motion import TRANSLATION_GAIN, Motion
from envs._pick_place import PickPlace
from envs._pull import PullOpen
from envs._push import PushShut
from envs._scene import Scene
from envs._skill import Phase, Skill
from envs._slide import SlideOnto
from envs._taste import NO_TASTE, Taste

__all__ = ["Expert", "Goal", "Phase", "UnsupportedTaskError", "parse_goals"]

_DELICATE = (Phase.GRASP, Phase.RELEASE)
_FAR = 0.06  # m from where the gripper acts, beyond which any disturbance is tolerated


class Expert:
    """Takes a task's steps one by one.

    Call `act` once per control step and execute its result (or a disturbed version of it: every
    action depends on the state alone, so that the demonstrator recovers).

    Args:
        env: a `envs.libero.LiberoEnv` after `reset`.
        gain: proportional gain of translation, action units per metre of error.
        speed: factor on gain and largest translation.
        taste: which of several good grasps it prefers.

    Raises:
        UnsupportedTaskError: no skill for one of the task's goals.
        envs._grasp.GraspError: raised by `act` too, when an object cannot be grasped from above.
    """

    def __init__(
        self,
        env: Any,
        *,
        gain: float = TRANSLATION_GAIN,
        speed: float = 1.0,
        taste: Taste = NO_TASTE,
    ) -> None:
        self._scene = Scene(env.inner)
        self._motion = Motion(self._scene, gain, speed=speed)
        self._taste = taste
        self._goals = self._scene.goals()
        self._skill = self._next_skill()

    @property
    def phase(self) -> Phase:
        """Phase of the last action."""
        return self._skill.phase

    @property
    def noise_scale(self) -> float:
        """How much disturbance the last action's situation tolerates, 0 to 1.

        0 while the gripper closes or opens, rising with the distance from where that happens.
        """
        if self.phase in _DELICATE:
            return 0.0
        return float(np.clip(self._skill.precision / _FAR, 0.0, 1.0))

    def act(self) -> NDArray[np.float64]:
        """The action for the present state: (7,), each in [-1, 1], gripper -1 open, +1 closed."""
        if self._skill.done:
            self._skill = self._next_skill()
        return self._skill.act()

    def _next_skill(self) -> Skill:
        """For the first goal that does not hold yet, else for the last one."""
        goals = self._goals
        goal = next((g for g in goals if not self._scene.satisfied(g)), goals[-1])
        if goal.slide:
            return SlideOnto(self._scene, self._motion, goal)
        if goal.predicate in PLACED:
            return PickPlace(self._scene, self._motion, goal, self._taste)
        moved: dict[str, Callable[[Scene, Motion, Goal], Skill]]
        moved = {OPENED: PullOpen, CLOSED: PushShut}
        return moved.get(goal.predicate, TurnKnob)(self._scene, self._motion, goal)
