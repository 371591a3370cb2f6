"""The simulated arm's body: one millisecond of physics for each state sent out.

Implements what franka-sim's protocol server asks of a physics engine. Threads of the server write
commands by rebinding whole attributes; whoever advances the physics holds the lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import mujoco
import numpy as np

from deploy.limits import MAX_TORQUE, RESET_POSE, Array
from deploy.sim._beside import franka_sim
from deploy.sim.link import SceneState
from deploy.sim.scene import ARM_JOINTS, FINGER_JOINTS, FLANGE, scene_xml

logger = logging.getLogger(__name__)

PERIOD = 0.001  # s; the protocol's cycle
FINGER_TRAVEL = 0.04
# The robot's own joint position and velocity controllers; stiff, so that generators are tracked.
_STIFFNESS = np.array([4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0])
_DAMPING = _STIFFNESS / 10
_FINGER_STIFFNESS, _FINGER_DAMPING = 4000.0, 60.0  # N/m, Ns/m
_SELF_COLLISION_MARGIN = 0.05  # m; the real volumes are inflated, too, and not published
_GEOMETRY_EVERY = 10  # cycles
_SILENT_CYCLES = 25  # without an answer; the server has aborted the motion by then
_UNATTENDED_AFTER = 0.5  # s of wall time without a state sent, in which nobody can be connected


class ArmPhysics:
    """MuJoCo behind the interface of franka-sim's physics engines.

    Args:
        start: (7,) joints to begin with; rad.
        patience_s: Wall time that a streaming client gets to answer each state before the cycle
            counts as lost. The real robot has none: 0 is as strict. With some, a machine with other
            work stretches robot time instead of losing cycles.
    """

    enable_vis = False  # the server's word for a window

    def __init__(self, start: Array = RESET_POSE, *, patience_s: float = 0.0) -> None:
        self._modes = franka_sim("franka_sim.control_modes").ControlMode
        common = franka_sim("franka_sim.sim_common")
        self._contact = common.SelfCollisionContact
        self._feedforward = common.PositionFeedforward(start)
        self._start = np.array(start)
        self._mode = self._modes.POSITION
        self._torque: Array = np.zeros(7)
        self._speed: Array = np.zeros(7)
        self._position = self._start.copy()
        self._tool, self._pose = np.eye(4), np.eye(4)
        self._cycles = 0
        self._collision: Any = None
        self._lock = threading.Lock()
        self._attended = -1.0
        self._patience, self._answered = patience_s, threading.Event()
        self._streaming, self._silent = False, 0
        self.running = False
        self.finger_goal, self.finger_speed, self.finger_force = FINGER_TRAVEL, 0.1, 30.0
        self._finger_target = FINGER_TRAVEL

    # -- what the server calls ------------------------------------------------

    def initialize_simulation(self) -> None:
        """Compile the scene and let it come to rest."""
        self.model = mujoco.MjModel.from_xml_string(scene_xml())
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
        self.data = mujoco.MjData(self.model)
        self._arm = _addresses(self.model, ARM_JOINTS)
        self._fingers = _addresses(self.model, FINGER_JOINTS)
        self._flange = self.model.body(FLANGE).id
        self._jacobian = np.zeros((6, self.model.nv))
        self._halves = self._jacobian[:3], self._jacobian[3:]
        links = [self.model.geom(f"fr3_link{i}_collision").id for i in range(8)]
        self._pairs = [(a, b, links[a], links[b]) for a in range(8) for b in range(a + 3, 8)]
        self.data.qpos[self._arm[0]] = self._start
        self.data.qpos[self._fingers[0]] = FINGER_TRAVEL
        mujoco.mj_forward(self.model, self.data)
        for _ in range(100):
            self.step()
        self._cycles = 0
        self._publish()

    def set_control_mode(self, mode: Any) -> None:
        """Follow positions, velocities or torques from now on."""
        if mode == self._modes.POSITION:
            self._feedforward.reset(self._position)
        self._mode = mode
        self._streaming, self._silent = False, 0

    def update_joint_positions(self, positions: Any) -> None:
        """Take a new position command; rad."""
        self._position = np.array(positions, dtype=np.float64)
        self._note_command()

    def update_joint_velocities(self, velocities: Any) -> None:
        """Take a new velocity command; rad/s."""
        self._speed = np.array(velocities, dtype=np.float64)
        self._note_command()

    def update_torques(self, torques: Any) -> None:
        """Take a new torque command; Nm, without gravity."""
        self._torque = np.array(torques, dtype=np.float64)
        self._note_command()

    def update_ee_transform(self, flange_to_tool: Any) -> None:
        """Measure the pose at a tool: 16 numbers, column by column."""
        self._tool = np.array(flange_to_tool, dtype=np.float64).reshape(4, 4).T

    def get_robot_state(self) -> Mapping[str, Any]:
        """Advance by one cycle and return its snapshot.

        One cycle of physics for each state sent out, however late it is: on a busy machine robot
        time stretches as a whole, and no controller finds its arm somewhere else than it was told.
        """
        self._attended = time.perf_counter()
        self._await_command()
        with self._lock:
            self._cycle()
            self._attended = time.perf_counter()
            return self._snapshot

    def _await_command(self) -> None:
        """Give a client that streams commands `patience` to answer the last state."""
        if not self._streaming or not self._patience:
            return
        self._silent = 0 if self._answered.wait(self._patience) else self._silent + 1
        self._answered.clear()
        self._streaming = self._silent < _SILENT_CYCLES

    def _note_command(self) -> None:
        self._streaming = True
        self._answered.set()

    def start(self) -> None:
        """Run until `stop`.

        While states are sent out, whoever fetches one advances the physics (`get_robot_state`);
        this thread does so, in wall time, when nobody is connected.
        """
        self.running = True
        due = time.perf_counter()
        while self.running:
            if self._is_attended():
                time.sleep(_UNATTENDED_AFTER / 4)
                continue
            with self._lock:
                self._cycle()
            due = max(due + PERIOD, time.perf_counter() + PERIOD / 2)
            time.sleep(max(0.0, due - time.perf_counter()))  # others may have run in between

    def _is_attended(self) -> bool:
        """Whether a client is connected, or was until just now."""
        commanded = self._streaming or self._mode != self._modes.POSITION
        return commanded or time.perf_counter() - self._attended < _UNATTENDED_AFTER

    def _cycle(self) -> None:
        self.step()
        self._publish()

    def stop(self) -> None:
        """End `start`."""
        self.running = False

    # -- what the hand and the scene's link call ------------------------------

    def run(self, request: Callable[[], None]) -> None:
        """Run a function between two cycles; its errors are raised here."""
        with self._lock:
            request()

    def scene_state(self) -> SceneState:
        """The scene of this moment."""
        with self._lock:
            return SceneState(
                time=self.time,
                qpos=self.data.qpos.copy(),
                mocap_pos=self.data.mocap_pos.copy(),
                speed=self.data.qvel[self._arm[1]],
            )

    def finger_width(self) -> float:
        """Distance between the finger pads; m."""
        first, second = self._fingers[0]
        return float(self.data.qpos[first] + self.data.qpos[second])

    @property
    def time(self) -> float:
        """Robot time; s."""
        return self._cycles * PERIOD

    # -- one cycle ------------------------------------------------------------

    def step(self) -> None:
        """Apply the commands and advance by one cycle."""
        force = self.data.qfrc_applied
        torque = np.minimum(np.maximum(self._arm_torque(), -MAX_TORQUE), MAX_TORQUE)
        force[self._arm[1]] = torque
        force[self._fingers[1]] = self._finger_force()
        mujoco.mj_step(self.model, self.data)
        self._cycles += 1

    def _arm_torque(self) -> Array:
        if self._mode == self._modes.TORQUE:
            return self._torque
        speed = self.data.qvel[self._arm[1]]
        if self._mode == self._modes.VELOCITY:
            return np.asarray(_DAMPING * (self._speed - speed))
        target = self._position
        wanted = self._feedforward.step(target, PERIOD)
        error = target - self.data.qpos[self._arm[0]]
        return np.asarray(_STIFFNESS * error + _DAMPING * (wanted - speed))

    def _finger_force(self) -> tuple[float, float]:
        """Both fingers' force; plain numbers, because numpy is slow on two of them."""
        first, second = self._fingers[0]
        middle = (self.data.qpos[first] + self.data.qpos[second]) / 2
        reach = self.finger_speed / 2 * PERIOD
        target = self._finger_target
        target += min(max(self.finger_goal - target, -reach), reach)
        # A stalled finger does not wind its target up beyond what the wanted force needs.
        slack = self.finger_force / _FINGER_STIFFNESS
        self._finger_target = target = min(max(target, middle - slack), middle + slack)
        return self._servo(target, first), self._servo(target, second)

    def _servo(self, target: float, joint: int) -> float:
        offset = self._fingers[1][0] - self._fingers[0][0]
        speed = self.data.qvel[joint + offset]
        force = _FINGER_STIFFNESS * (target - self.data.qpos[joint]) - _FINGER_DAMPING * speed
        return float(min(max(force, -self.finger_force), self.finger_force))

    def _publish(self) -> None:
        data, pose = self.data, self._pose
        pose[:3, :3] = data.xmat[self._flange].reshape(3, 3)
        pose[:3, 3] = data.xpos[self._flange]
        if self._cycles % _GEOMETRY_EVERY == 0:
            self._publish_geometry(pose)
        speed = data.qvel[self._arm[1]]
        self._snapshot: dict[str, Any] = {
            "q": data.qpos[self._arm[0]],
            "dq": speed,
            "q_d": self._position,
            "tau_J": self._torque,
            "O_T_EE": (pose @ self._tool).T.ravel(),
            "O_dP_EE": self._arm_jacobian[:3] @ speed,
            "O_J_EE": self._arm_jacobian,
            "self_collision": self._collision,
        }

    def _publish_geometry(self, pose: Array) -> None:
        """What changes slowly and costs time: the tool's Jacobian, and links near each other."""
        point = pose[:3, 3] + pose[:3, :3] @ self._tool[:3, 3]
        mujoco.mj_jac(self.model, self.data, *self._halves, point, self._flange)
        self._arm_jacobian = self._jacobian[:, self._arm[1]]
        self._collision = self._self_collision()

    def _self_collision(self) -> Any:
        """The two links nearest to each other, if they are too near."""
        nearest, margin = None, _SELF_COLLISION_MARGIN
        for first, second, geom_a, geom_b in self._pairs:
            distance = mujoco.mj_geomDistance(self.model, self.data, geom_a, geom_b, margin, None)
            if distance < margin and (nearest is None or distance < nearest.distance):
                nearest = self._contact(f"link{first}", f"link{second}", distance, margin)
        return nearest


def _addresses(model: Any, names: tuple[str, ...]) -> tuple[Any, Any]:
    """Where joints of these names stand in positions and in velocities."""
    joints = [model.joint(name) for name in names]
    return (
        np.array([j.qposadr[0] for j in joints]),
        np.array([j.dofadr[0] for j in joints]),
    )
