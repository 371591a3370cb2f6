"""The arm's controller at simulation rate, without robosuite's repeated look-ups.

In each 2 ms substep stock robosuite looks names up, asks for the same Jacobian four times and
rebuilds the action limits three times. Here the same numbers are computed once, by the same
expressions (memory layouts included: they decide the last bit), and handed to the stock
operational-space controller.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray


class ArmControl:
    """Runs the controller and the gripper of a one-armed robosuite environment.

    Args:
        inner: the robosuite environment, after a reset.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._robot = robot = inner.robots[0]
        self._controller = controller = robot.controller
        self._model, self._data = inner.sim.model._model, inner.sim.data._data
        self._site = inner.sim.model.site_name2id(controller.eef_name)
        self._joints, self._velocities = controller.qpos_index, controller.qvel_index
        nv = self._model.nv
        self._jacobian = (np.zeros((3, nv)), np.zeros((3, nv)))
        self._mass = np.zeros((nv, nv))
        self._torque_limits = robot.torque_limits
        self._arm_actuators = robot._ref_joint_actuator_indexes
        names = robot.gripper.actuators
        self._fingers = [inner.sim.model.actuator_name2id(name) for name in names]
        span = self._model.actuator_ctrlrange[self._fingers]
        self._finger_bias = 0.5 * (span[:, 1] + span[:, 0])
        self._finger_weight = 0.5 * (span[:, 1] - span[:, 0])

    def begin(self, action: NDArray[np.float64]) -> None:
        """First substep of a control period: stock robosuite takes the action as its new goal."""
        self._read_state()
        self._inner._pre_action(action, True)

    def hold(self, gripper: NDArray[np.float64]) -> None:
        """Every further substep: the same goal, fresh torques.

        Args:
            gripper: the gripper command, (1,).
        """
        self._read_state()
        torques = self._controller.run_controller()
        low, high = self._torque_limits
        self._robot.torques = np.clip(torques, low, high)
        fingers = self._robot.gripper.format_action(gripper)
        ctrl = self._data.ctrl
        ctrl[self._fingers] = self._finger_bias + self._finger_weight * fingers
        ctrl[self._arm_actuators] = self._robot.torques

    def _read_state(self) -> None:
        """What `Controller.update` reads, for the state that `mj_step1` has just evaluated.

        Stock skips it in the first substep after a reset, where the goal and the torques stem from
        the pose before `set_init_state`: that is why the arm moves while the scene settles.
        """
        controller, model, data = self._controller, self._model, self._data
        if not controller.new_update:
            return
        position, rotation = self._jacobian
        mujoco.mj_jacSite(model, data, position, rotation, self._site)
        controller.ee_pos = np.array(data.site_xpos[self._site])
        controller.ee_ori_mat = np.array(data.site_xmat[self._site].reshape([3, 3]))
        controller.ee_pos_vel = np.dot(position, data.qvel)
        controller.ee_ori_vel = np.dot(rotation, data.qvel)
        controller.joint_pos = data.qpos[self._joints]
        controller.joint_vel = data.qvel[self._velocities]
        controller.J_pos = np.array(position[:, self._velocities])
        controller.J_ori = np.array(rotation[:, self._velocities])
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        mujoco.mj_fullM(model, self._mass, data.qM)
        controller.mass_matrix = self._mass[self._velocities, :][:, self._velocities]
        controller.new_update = False  # so that the stock update, with its forward pass, is skipped
