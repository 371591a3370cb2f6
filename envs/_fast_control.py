"""The arm's controller at simulation rate, without robosuite's repeated look-ups.

In each 2 ms substep stock robosuite looks names up, asks for the same Jacobian four times, rebuilds
the action limits three times and indexes with lists. Here the same numbers are computed once, by
the same expressions on arrays of the same memory layout (it decides the last bit), into buffers
that are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

ARM_DIM = 6


class ArmControl:
    """Runs the controller and the gripper of a one-armed robosuite environment.

    Args:
        inner: the robosuite environment, after a reset.
    """

    def __init__(self, inner: Any) -> None:
        from envs._osc import operational_space

        self._operational_space = operational_space
        self._robot = robot = inner.robots[0]
        self._controller = robot.controller
        self._model, self._data = inner.sim.model._model, inner.sim.data._data
        self._site = inner.sim.model.site_name2id(self._controller.eef_name)
        self._low, self._high = robot.torque_limits
        self._gripper = robot.gripper
        self._finger_step = np.zeros(2)
        fingers = [inner.sim.model.actuator_name2id(name) for name in robot.gripper.actuators]
        span = self._model.actuator_ctrlrange[fingers]
        self._finger_bias = 0.5 * (span[:, 1] + span[:, 0])
        self._finger_weight = 0.5 * (span[:, 1] - span[:, 0])
        self._view_state(fingers)
        self._make_buffers()

    def begin(self, action: Vector) -> None:
        """First substep of a control period: the action becomes the goal.

        Stock does not read the state in the first substep after a reset, where the goal and the
        torques stem from the pose before `set_init_state`: that is why the arm moves while the
        scene settles.

        Args:
            action: (7,).
        """
        controller = self._controller
        is_fresh = controller.new_update
        if is_fresh:
            controller.ee_pos, controller.ee_ori_mat = (part.copy() for part in self._pose)
            controller.new_update = False  # so that stock does not run a forward pass of its own
        controller.set_goal(action[:ARM_DIM])
        torques = self._torques() if is_fresh else controller.run_controller()
        controller.new_update = True
        self._finger_step = np.array([-1.0, 1.0]) * self._gripper.speed * np.sign(action[ARM_DIM:])
        self._actuate(torques)

    def hold(self) -> None:
        """Every further substep: the same goal, fresh torques."""
        self._actuate(self._torques())

    def _view_state(self, fingers: Sequence[int]) -> None:
        """Views of the simulator's arrays; they stay valid for as long as the simulation."""
        data, controller = self._data, self._controller
        joints, speeds = _span(controller.qpos_index), _span(controller.qvel_index)
        self._first = speeds.start
        self._qvel, self._bias = data.qvel, data.qfrc_bias[speeds]
        self._joints = controller.initial_joint, data.qpos[joints], data.qvel[speeds]
        self._pose = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        self._gains = controller.kp, controller.kd
        self._arm_ctrl = data.ctrl[_span(self._robot._ref_joint_actuator_indexes)]
        self._finger_ctrl = data.ctrl[_span(fingers)]

    def _make_buffers(self) -> None:
        """Those of the arm are made as stock makes its arrays, for their memory layout."""
        nv, columns = self._model.nv, self._controller.qvel_index
        self._whole = np.zeros((nv, nv)), np.zeros((3, nv)), np.zeros((3, nv))
        mass, *jacobians = self._whole
        position, rotation = (np.array(jacobian[:, columns]) for jacobian in jacobians)
        both = np.array(np.vstack([position, rotation]))
        self._arm = mass[columns, :][:, columns], position, rotation, both
        self._velocity, self._wanted, self._wrench = np.zeros(6), np.zeros(6), np.zeros(6)

    def _torques(self) -> Vector:
        """Torques for the state that `mj_step1` has just evaluated, (7,) N m."""
        mass, position, rotation = self._whole
        mujoco.mj_jacSite(self._model, self._data, position, rotation, self._site)
        mujoco.mj_fullM(self._model, mass, self._data.qM)
        velocity, wanted, wrench = self._velocity, self._wanted, self._wrench
        np.dot(position, self._qvel, out=velocity[:3])
        np.dot(rotation, self._qvel, out=velocity[3:])
        goal = self._controller.goal_pos, self._controller.goal_ori
        of_forces, of_torques, posture = self._operational_space(
            *(self._whole, self._first, self._pose, goal, velocity, self._gains, self._joints),
            *(self._arm, wanted),
        )
        np.dot(of_forces, wanted[:3], out=wrench[:3])
        np.dot(of_torques, wanted[3:], out=wrench[3:])
        torques: Vector = np.dot(self._arm[3].T, wrench)
        torques += self._bias
        torques += posture
        return torques

    def _actuate(self, torques: Vector) -> None:
        self._arm_ctrl[:] = np.minimum(np.maximum(torques, self._low), self._high)
        fingers = self._gripper.current_action + self._finger_step
        fingers = self._gripper.current_action = np.minimum(np.maximum(fingers, -1.0), 1.0)
        self._finger_ctrl[:] = self._finger_bias + self._finger_weight * fingers


def _span(indexes: Sequence[int]) -> slice:
    """The slice that selects indexes which follow each other."""
    first, count = int(indexes[0]), len(indexes)
    if [int(index) for index in indexes] != list(range(first, first + count)):
        raise ValueError(f"expected indexes in a row, got {list(indexes)}.")
    return slice(first, first + count)
