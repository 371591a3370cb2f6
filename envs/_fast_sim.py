"""One control step of robosuite without its redundant work; states stay bitwise those of stock.

Stock robosuite runs, for each of the 25 substeps, `mj_forward` for the step, `mj_forward` again in
the controller's update, and `mj_step` (which is a third forward pass plus integration). The state
does not change between them, so one pass serves all three: `mj_step1` (position and velocity
stage), the controller, `mj_step2` (actuation, acceleration, integration). It also refreshes about
sixty observables of which a policy reads three; only those are sampled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs._fast_control import ArmControl

STATE_OBSERVABLES = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


class FastStepper:
    """Steps a robosuite environment at control rate.

    Args:
        inner: a robosuite environment (`ControlEnv.env`).
        camera_observables: names of its image observables.
    """

    def __init__(self, inner: Any, camera_observables: Sequence[str] = ()) -> None:
        self._inner = inner
        self._substeps = int(inner.control_timestep / inner.model_timestep)
        self._arm = ArmControl(inner)
        observables = inner._observables
        self._states = [observables[name] for name in STATE_OBSERVABLES]
        self._cameras = [observables[name] for name in camera_observables]
        for observable in self._cameras:
            observable._enabled = False

    def step(self, action: NDArray[np.float64], *, render: bool) -> None:
        """Executes one action (7,) for one control period (25 substeps of 2 ms).

        Args:
            action: what stock `env.step` takes.
            render: whether the cameras are sampled, at the same substep where stock samples them.
        """
        inner = self._inner
        model, data = inner.sim.model._model, inner.sim.data._data
        inner.timestep += 1
        sampled = self._sampled(render)
        for substep in range(self._substeps):
            mujoco.mj_step1(model, data)
            if substep == 0:
                self._arm.begin(action)
            else:
                self._arm.hold()
            mujoco.mj_step2(model, data)
            for observable in sampled:
                observable.update(inner.model_timestep, inner._obs_cache)
        self._disable_cameras()
        inner.cur_time += inner.control_timestep
        inner._post_process()

    def refresh(self, *, render: bool) -> None:
        """Samples the observables of the present state, as stock does after `set_init_state`."""
        for observable in self._sampled(render):
            observable.update(self._inner.model_timestep, self._inner._obs_cache, force=True)
        self._disable_cameras()

    def _sampled(self, render: bool) -> list[Any]:
        if not render:
            return self._states
        for camera in self._cameras:
            camera._enabled = True
            # A camera that slept wakes at the phase of the others, else it samples elsewhere.
            camera._time_since_last_sample = self._states[0]._time_since_last_sample
            camera._sampled = self._states[0]._sampled
        return self._states + self._cameras

    def _disable_cameras(self) -> None:
        for camera in self._cameras:
            camera._enabled = False
