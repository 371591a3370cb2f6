"""DROID's `RobotEnv` without Polymetis: same methods, keys and units, on an FR3 of today.

Programs written for DROID, openpi's example among them, run after their import is changed to
``from deploy.robot_env import RobotEnv``. What differs is documented in docs/deploy_robot.md; above
all, every action passes the safety filter.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from deploy import _droid
from deploy.drivers import ArmState
from deploy.errors import CameraError, ContractMismatchError, ReflexError, UserStopError
from deploy.kinematics import flange_pose, joints_towards, matrix_from_euler
from deploy.limits import RESET_POSE, ActionSpace, Array, joints
from deploy.motions import check_path, follow, plan
from deploy.robot import Robot, RobotConfig, open_robot
from deploy.safety import Filtered, FilterState, JointSpace, filter_action

logger = logging.getLogger(__name__)

CONTROL_HZ = 15.0
_LATE = 1.5  # periods without an action after which the target counts as at rest
_GOOD_RATE = 0.9
# Offsets of a randomised reset: x, y, z in m and three angles in rad (DROID).
_RANDOM_REACH = np.array([0.1, 0.2, 0.1, 0.3, 0.3, 0.3])


class RobotEnv:
    """An arm, a gripper and cameras as DROID's programs know them.

    Args:
        action_space: "joint_velocity", "joint_position", "cartesian_velocity" or
            "cartesian_position".
        gripper_action_space: "position" or "velocity"; None is as the arm's.
        camera_kwargs: Accepted for DROID's sake and not used: cameras stand in `robot`.
        do_reset: Move to the start at once.
        robot: What to connect to: a configuration, an open `Robot` (which stays open), or a word
            as `RobotConfig.robot`.
        seed: Of randomised resets.

    Attributes:
        control_hz: Actions per second.
        DoF: Numbers of an action, by the action space.
        interventions: How often the safety filter did what, since the last reset.
        robot: The open parts.

    Raises:
        ContractMismatchError: There is no such action space.
        RobotError: The robot does not answer, or stands in a fault.
    """

    def __init__(
        self,
        action_space: ActionSpace = "cartesian_velocity",
        gripper_action_space: str | None = None,
        camera_kwargs: Mapping[str, Any] | None = None,
        do_reset: bool = True,
        *,
        robot: RobotConfig | Robot | str = "sim",
        seed: int | None = None,
    ) -> None:
        self.action_space = _known(action_space)
        self.gripper_action_space = _droid.gripper_space(action_space, gripper_action_space)
        self.control_hz = CONTROL_HZ
        self.reset_joints = RESET_POSE.copy()
        self.interventions: Counter[str] = Counter()
        self._random = np.random.default_rng(seed)
        self._owned = not isinstance(robot, Robot)
        if isinstance(robot, str):
            robot = RobotConfig(robot=robot)
        self.robot = robot if isinstance(robot, Robot) else open_robot(robot)
        self._filter: FilterState | None = None
        self._acted = -np.inf
        if do_reset:
            self.reset()

    @property
    def DoF(self) -> int:
        """Numbers of an action."""
        return 7 if self.action_space.startswith("cartesian") else 8

    # -- DROID's surface ------------------------------------------------------

    def step(self, action: Sequence[float] | Array) -> dict[str, Any]:
        """Execute one action; returns at once.

        Returns:
            The action in every space (see `create_action_dict`), and "interventions" (name -> how
            much), "rejected" (reason or None), "success_rate" of the last 100 control cycles.

        Raises:
            ContractMismatchError: It has a wrong number of numbers.
            ReflexError: The robot has stopped by itself.
            RobotDisconnectedError: The link is lost.
        """
        return self.update_robot(
            action, action_space=self.action_space, gripper_action_space=self.gripper_action_space
        )

    def update_robot(
        self,
        command: Sequence[float] | Array,
        action_space: ActionSpace = "cartesian_velocity",
        gripper_action_space: str | None = None,
        blocking: bool = False,
    ) -> dict[str, Any]:
        """Execute one action of any space; see `step`.

        Args:
            command: Six or seven numbers for the arm and one for the gripper.
            action_space: What they mean.
            gripper_action_space: What the last one means.
            blocking: For positions: move there by a planned motion and wait.
        """
        space = _known(action_space)
        gripper = _droid.gripper_space(space, gripper_action_space)
        action = self._shaped(command, space)
        arm, measured_gripper = self._read(), self.robot.gripper.position()
        words = self._words(arm, measured_gripper)
        if blocking:
            return self._move_and_wait(action, space, gripper, words)
        joint_space, wish = _as_joints(action, space, gripper, words)
        done = self._filtered(wish, arm, measured_gripper, joint_space, gripper)
        self._send(done)
        finite = np.nan_to_num(action, nan=0.0, posinf=0.0, neginf=0.0)
        info = _droid.action_dict(finite, space, gripper, words)
        info["interventions"] = dict(done.interventions)
        info["rejected"] = done.rejected
        info["success_rate"] = arm.success_rate if arm.mode == "move" else 1.0
        info["executed_action"] = done.action
        return info

    def hold(self) -> dict[str, Any]:
        """Brake, and stand from then on; the gripper keeps doing what it does. Call at 15 Hz."""
        arm, measured_gripper = self._read(), self.robot.gripper.position()
        done = self._filtered(None, arm, measured_gripper, "joint_position", "position")
        self._send(done)
        return {"interventions": {}, "rejected": None, "success_rate": arm.success_rate}

    def reset(self, randomize: bool = False) -> None:
        """Open the gripper, then move to the start by a planned motion; waits for both.

        Args:
            randomize: Start somewhere around: up to 0.1, 0.2, 0.1 m and 0.3 rad away.

        Raises:
            RobotError: The robot cannot get there.
        """
        self.robot.gripper.move_to(0.0)
        self.robot.gripper.wait()
        goal = self.reset_joints
        if randomize:
            goal = self._somewhere_around(goal)
        self.move_to_joints(goal)
        self.interventions.clear()

    def get_observation(self) -> dict[str, Any]:
        """Everything that is measured, under DROID's keys.

        Pictures are uint8 BGRA under "image" / "<camera>_left". Beyond DROID's keys there are
        "camera_age_s" (camera -> s), "control_command_success_rate" and "robot_mode".

        Raises:
            ReflexError: The robot has stopped by itself.
            RobotDisconnectedError: The link is lost.
            CameraError: A camera has no picture.
        """
        words, times = self.get_state()
        pictures, camera_times = self._pictures()
        now = time.time()
        return {
            "timestamp": {"robot_state": times, "cameras": camera_times, "control": {}},
            "robot_state": words,
            "image": _droid.images(pictures),
            "camera_type": {name: self.get_camera_type(name) for name in pictures},
            "camera_intrinsics": {},
            "camera_extrinsics": {},
            "camera_age_s": {name: now - p.captured for name, p in pictures.items()},
            "control_command_success_rate": self._state.success_rate,
            "robot_mode": self._state.mode,
        }

    def get_state(self) -> tuple[dict[str, Any], dict[str, int]]:
        """DROID's robot state and its times (ms, and the robot's own clock)."""
        begin = time.time()
        arm = self._read()
        words = self._words(arm, self.robot.gripper.position())
        seconds = int(arm.time)
        return words, {
            "read_start": round(begin * 1000),
            "read_end": round(time.time() * 1000),
            "robot_timestamp_seconds": seconds,
            "robot_timestamp_nanos": round((arm.time - seconds) * 1e9),
        }

    def read_cameras(self) -> tuple[dict[str, Any], dict[str, int]]:
        """DROID's pictures and their times (ms)."""
        pictures, times = self._pictures()
        return {"image": _droid.images(pictures)}, times

    def get_camera_type(self, name: str) -> int:
        """DROID's number of a camera's place: 0 on the wrist, 1 elsewhere."""
        return 0 if "wrist" in name or "hand" in name else 1

    def create_action_dict(
        self, action: Sequence[float] | Array, action_space: ActionSpace | None = None
    ) -> dict[str, Any]:
        """One action in every space, for the robot as it stands."""
        space = _known(action_space or self.action_space)
        words, _ = self.get_state()
        gripper = self.gripper_action_space
        return _droid.action_dict(self._shaped(action, space), space, gripper, words)

    # -- beyond DROID ---------------------------------------------------------

    def move_to_joints(self, goal: Array) -> None:
        """Move to (7,) joint positions by a planned motion and wait.

        Raises:
            RobotError: The way leaves the workspace, or the arm does not arrive.
        """
        goal = joints(goal, "a joint goal")
        path = plan(self._read().q, goal, self.robot.profile.limits)
        check_path(path, self.robot.profile.limits, self.robot.profile.workspace)
        self._filter = None
        follow(self.robot.arm, path)

    def recover(self) -> None:
        """Acknowledge a reflex, after a person has looked at the robot."""
        self.robot.arm.halt(clear_errors=True)
        self._filter = None

    def stop(self) -> None:
        """End the motion; the robot holds itself."""
        self.robot.arm.halt()
        self._filter = None

    def close(self) -> None:
        """Hang up, unless the robot was given open."""
        if self._owned:
            self.robot.close()

    def __enter__(self) -> RobotEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside ---------------------------------------------------------------

    def _read(self) -> ArmState:
        self._state = state = self.robot.arm.read()
        if state.mode == "user_stopped":
            raise UserStopError("the robot was stopped by hand: release the button, then confirm")
        if state.mode == "reflex":
            raise ReflexError(
                f"the robot stopped by itself: {', '.join(state.errors) or 'no reason given'}. "
                "Look at it, remove the cause, then confirm.",
                state.errors,
            )
        return state

    def _words(self, arm: ArmState, gripper: float) -> dict[str, Any]:
        ok = arm.mode != "move" or arm.success_rate >= _GOOD_RATE
        return _droid.robot_state(arm, gripper, command_ok=ok)

    def _shaped(self, action: Sequence[float] | Array, space: ActionSpace) -> Array:
        numbers = np.asarray(action, dtype=np.float64)
        expected = 7 if space.startswith("cartesian") else 8
        if numbers.shape != (expected,):
            raise ContractMismatchError(
                f"an action of {space} has {expected} numbers, the gripper's last; got shape "
                f"{numbers.shape}"
            )
        return numbers

    def _filtered(
        self,
        wish: Array | None,
        arm: ArmState,
        gripper: float,
        space: JointSpace,
        gripper_space: _droid.GripperSpace,
    ) -> Filtered:
        state = self._filter
        if state is None:
            state = FilterState.at_rest(arm.q)
        elif arm.time - self._acted > _LATE / self.control_hz:
            state = FilterState.at_rest(state.target, state.gripper)
        self._acted = arm.time
        return filter_action(
            wish,
            state=state,
            measured=arm.q,
            measured_gripper=gripper,
            profile=self.robot.profile,
            space=space,
            gripper_space=gripper_space,
            period=1 / self.control_hz,
        )

    def _send(self, done: Filtered) -> None:
        self.interventions.update(done.interventions.keys())
        self.robot.arm.move_to(done.state.target)
        self._filter = done.state
        if done.gripper is not None:
            self.robot.gripper.move_to(done.gripper)

    def _move_and_wait(
        self,
        action: Array,
        space: ActionSpace,
        gripper: _droid.GripperSpace,
        words: dict[str, Any],
    ) -> dict[str, Any]:
        if not np.all(np.isfinite(action)):
            raise ContractMismatchError(f"an action must be finite, got {action.tolist()}")
        info = _droid.action_dict(action, space, gripper, words)
        self.robot.gripper.move_to(info["gripper_position"])
        self.move_to_joints(np.array(info["joint_position"]))
        self.robot.gripper.wait()
        return info

    def _somewhere_around(self, q: Array) -> Array:
        offset = self._random.uniform(-_RANDOM_REACH, _RANDOM_REACH)
        pose = flange_pose(q)
        pose[:3, 3] += offset[:3]
        pose[:3, :3] = matrix_from_euler(offset[3:]) @ pose[:3, :3]
        limits = self.robot.profile.limits
        return joints_towards(
            pose, q, iterations=50, posture=q, bounds=(limits.lower, limits.upper)
        )

    def _pictures(self) -> tuple[dict[str, Any], dict[str, int]]:
        if not self.robot.cameras:
            return {}, {}
        try:
            pictures = {name: camera.latest() for name, camera in self.robot.cameras.items()}
        except CameraError:
            logger.warning("a camera failed")
            raise
        return pictures, _droid.camera_times(pictures)


def _known(space: str) -> ActionSpace:
    for known in get_args(ActionSpace):
        if space == known:
            result: ActionSpace = known
            return result
    raise ContractMismatchError(
        f"unknown action space {space!r}; known: {', '.join(get_args(ActionSpace))}"
    )


def _as_joints(
    action: Array, space: ActionSpace, gripper: _droid.GripperSpace, words: Mapping[str, Any]
) -> tuple[JointSpace, Array]:
    """The action in a joint space, for the filter, which judges it."""
    if space in ("joint_velocity", "joint_position"):
        return ("joint_velocity" if space == "joint_velocity" else "joint_position"), action
    if not np.all(np.isfinite(action)):
        return "joint_velocity", np.full(8, np.nan)
    joint = _droid.action_dict(action, space, gripper, words)["joint_velocity"]
    return "joint_velocity", np.append(joint, action[-1])
