"""An arm under openpi's own runtime (`openpi_client.runtime`), for programs built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deploy.droid import DroidRobot


class OpenpiEnvironment:
    """What `openpi_client.runtime.runtime.Runtime` asks of an environment.

    That runtime asks the policy and waits, so the arm rests at each chunk's end; the safety filter
    is as always on. `deploy.executor.Executor` fetches chunks ahead.

    Args:
        robot: What observes and acts.
        prompt: The instruction.
        done: Asked with the info of each action whether the episode is over; None: never.
    """

    def __init__(
        self,
        robot: DroidRobot,
        prompt: str,
        *,
        done: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self._robot, self._prompt, self._done = robot, prompt, done
        self._info: Mapping[str, Any] = {}

    def reset(self) -> None:
        """Move to the start.

        Raises:
            RobotError: The robot did not get there.
        """
        self._robot.reset()
        self._info = {}

    def get_observation(self) -> dict[str, Any]:
        """The request of a policy for DROID.

        Raises:
            RobotError: The robot cannot go on.
            CameraError: A camera has no picture.
        """
        frame = self._robot.observe()
        views = self._robot.pictures().views
        return {**frame.observation, **views, "prompt": self._prompt}

    def apply_action(self, action: Mapping[str, Any]) -> None:
        """Execute "actions" (dim,), one row of a chunk.

        Raises:
            RobotError: The robot cannot go on.
        """
        self._info = self._robot.act(np.asarray(action["actions"], dtype=np.float64))

    def is_episode_complete(self) -> bool:
        """Whether `done` says so."""
        return self._done is not None and bool(self._info) and self._done(self._info)
