"""The scripted demonstrator behind the policy server's interface.

It looks at the simulation instead of the pictures it is sent, so it proves the way from server to
arm and nothing about vision. A trained policy takes its place unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.errors import ContractMismatchError
from deploy.limits import RESET_POSE
from deploy.metadata import GRIPPER_POLARITY, ServerMetadata
from deploy.sim.expert import PickPlaceExpert
from deploy.sim.link import SceneLink, SceneState
from deploy.sim.tasks import TASKS, Task

HORIZON = 15
_AT_START = 0.05  # rad from the start posture: a new episode


class ExpertPolicy:
    """Answers requests as a policy for DROID does: (15, 8) joint velocities and gripper.

    Args:
        link: To the simulation. Used by the thread that calls `infer` alone.
    """

    def __init__(self, link: SceneLink) -> None:
        self._link = link
        self._task: Task | None = None
        self._expert: PickPlaceExpert | None = None

    def metadata(self, controller_profile: str | None = None) -> ServerMetadata:
        """What the server is to say."""
        return ServerMetadata(
            policy="scripted demonstrator (sees the simulation, not the pictures)",
            action_space="joint_velocity",
            action_dim=8,
            action_horizon=HORIZON,
            control_hz=15.0,
            gripper=GRIPPER_POLARITY,
            controller_profile=controller_profile,
        )

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """Plan from what the simulation shows.

        Raises:
            ContractMismatchError: The prompt is none of the tasks' instructions.
        """
        task, scene = _task_of(obs.get("prompt")), self._link.state()
        expert = self._expert
        if expert is None or task is not self._task or (expert.under_way and _at_start(scene)):
            self._task, expert = task, PickPlaceExpert(task)
            self._expert = expert
        return {"actions": expert.plan(scene, HORIZON)}


def _task_of(prompt: Any) -> Task:
    text = prompt.decode() if isinstance(prompt, bytes) else str(prompt)
    for task in TASKS.values():
        if task.instruction == text.strip():
            return task
    known = [task.instruction for task in TASKS.values()]
    raise ContractMismatchError(f"the demonstrator knows {known}, not {text!r}")


def _at_start(scene: SceneState) -> bool:
    return float(np.abs(scene.qpos[:7] - RESET_POSE).max()) < _AT_START
