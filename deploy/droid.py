"""Between DROID's `RobotEnv` and a policy: which camera is which view, and what an action may be.

What openpi's example for DROID does around each step, as an executor's `Robot`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from deploy.cameras import Camera
from deploy.errors import CameraError, ContractMismatchError, ReflexError, UserStopError
from deploy.images import resize_with_pad
from deploy.interfaces import INTERVENTIONS, Array, Frame, Pictures
from deploy.metadata import GRIPPER_POLARITY, ServerMetadata

VELOCITY_SPACES = ("joint_velocity", "cartesian_velocity")
"""Those whose actions say how far to go, as shares of full speed, and not where to."""
_IMAGE_SIZE = 224  # openpi's clients shrink pictures before they send them
_LARGEST_PICTURE = 1024  # pixels a side; what a server states is not to be trusted further
DROID_VIEWS: Mapping[str, str] = MappingProxyType(
    {
        "observation/exterior_image_1_left": "exterior_left",
        "observation/wrist_image_left": "wrist",
    }
)
"""Key of a request -> camera. One exterior camera only: whoever runs this chooses its side."""


class DroidEnv(Protocol):
    """What is asked of `deploy.robot_env.RobotEnv`."""

    action_space: Any
    control_hz: float

    def get_state(self) -> tuple[dict[str, Any], Any]:
        """DROID's robot state, and its times."""

    def step(self, action: Array) -> dict[str, Any]:
        """Execute an action."""

    def hold(self) -> dict[str, Any]:
        """Stand."""

    def reset(self) -> None:
        """Move to the start."""

    def recover(self) -> None:
        """Acknowledge a reflex."""

    def stop(self) -> None:
        """End the motion."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Which cameras a policy sees.

    Attributes:
        cameras: Key of a request -> name of a camera, see `DROID_VIEWS`.
        image_size: Side of the pictures that are sent to a policy that states no size; pixels.
    """

    cameras: Mapping[str, str] = field(default_factory=lambda: dict(DROID_VIEWS))
    image_size: int = _IMAGE_SIZE


class DroidRobot:
    """A `RobotEnv` as `deploy.interfaces.Robot`.

    Args:
        env: See `DroidEnv`. Its safety filter judges every action; the clipping here is the one of
            openpi's example, so that policies meet the interface they were tried on.
        cameras: Name -> camera.
        views: See `Views`.
        judge: Instead of moving, ask this what would come of an action. Nothing moves then.
    """

    def __init__(
        self,
        env: DroidEnv,
        cameras: Mapping[str, Camera],
        views: Views | None = None,
        *,
        judge: Callable[[Array], Mapping[str, Any]] | None = None,
    ) -> None:
        self._env = env
        self._cameras = cameras
        self._views = views or Views()
        self._judge = judge
        self._faulty = False
        self._sizes: dict[str, tuple[int, int]] = {}

    def observe(self) -> Frame:
        """See `Robot.observe`."""
        state, _ = self._call(self._env.get_state)
        observation: dict[str, Any] = {
            "observation/joint_position": np.asarray(state["joint_positions"], np.float64),
            "observation/gripper_position": np.atleast_1d(
                np.asarray(state["gripper_position"], np.float64)
            ),
        }
        return Frame(observation=observation, pictures=self.pictures)

    def fit_pictures(self, policy: ServerMetadata) -> None:
        """From now on send each view in the size that the policy states it takes.

        Without it they are framed in a square, as openpi's clients do, and a policy that was
        trained on other pictures has to guess what was done to them.
        """
        self._sizes = {
            key: (shape[0], shape[1])
            for key, shape in policy.inputs.items()
            if len(shape) == 3 and max(shape[:2]) <= _LARGEST_PICTURE and min(shape[:2]) > 0
        }

    def pictures(self) -> Pictures:
        """Return the views that the policy sees; see `fit_pictures`.

        Raises:
            CameraError: A camera is not there or has no picture.
        """
        square = (self._views.image_size, self._views.image_size)
        views, ages = {}, [0.0]
        for key, name in self._views.cameras.items():
            if name not in self._cameras:
                known = ", ".join(sorted(self._cameras)) or "none"
                raise CameraError(f"there is no camera {name!r}; the robot has {known}")
            picture = self._cameras[name].latest()
            views[key] = resize_with_pad(picture.image, *self._sizes.get(key, square))
            ages.append(time.time() - picture.captured)
        return Pictures(views=views, age_s=max(ages))

    def act(self, action: Array | None) -> Mapping[str, Any]:
        """See `Robot.act`."""
        if self._judge is not None:
            return {} if action is None else self._judge(self._clipped(action))
        if action is None:
            info = self._call(self._env.hold)
            return {k: v for k, v in info.items() if k != "success_rate"}  # 0 before it moves
        info = self._call(lambda: self._env.step(self._clipped(action)))
        return dict(info)

    def stand(self) -> Mapping[str, Any]:
        """Stand under control; returns the info with the success rate of control cycles."""
        return dict(self._call(self._env.hold))

    def reset(self) -> None:
        """See `Robot.reset`. After a fault this acknowledges it: a person has confirmed."""
        if self._faulty:
            self._env.recover()
            self._faulty = False
        if self._judge is None:
            self._call(self._env.reset)

    def stop(self) -> None:
        """See `Robot.stop`."""
        if self._judge is None:
            self._call(self._env.stop)

    def _clipped(self, action: Array) -> Array:
        """Velocities are shares of full speed; DROID refuses more."""
        if self._env.action_space in VELOCITY_SPACES:
            return np.clip(action, -1.0, 1.0)
        return action

    def _call(self, method: Any) -> Any:
        try:
            return method()
        except (ReflexError, UserStopError):
            self._faulty = True
            raise


def filter_report(env: Any) -> Callable[[Array], Mapping[str, Any]]:
    """Return a `judge` for `DroidRobot`: what the safety filter would change, arm at rest.

    Args:
        env: `deploy.robot_env.RobotEnv`, in a joint space.

    Raises:
        ContractMismatchError: It is in a Cartesian space.
    """
    from deploy.safety import FilterState, filter_action

    if env.action_space not in ("joint_velocity", "joint_position"):
        raise ContractMismatchError(f"Cannot judge actions of {env.action_space} without moving.")

    def judge(action: Array) -> Mapping[str, Any]:
        state, _ = env.get_state()
        q = np.asarray(state["joint_positions"], np.float64)
        filtered = filter_action(
            action,
            state=FilterState.at_rest(q),
            measured=q,
            measured_gripper=float(state["gripper_position"]),
            profile=env.robot.profile,
            space=env.action_space,
        )
        return {INTERVENTIONS: dict(filtered.interventions), "robot_state": state}

    return judge


def robot_metadata(
    env: DroidEnv, *, controller_profile: str | None, views: Views | None = None
) -> ServerMetadata:
    """Return what the robot will do with an action, to compare with what a policy means by it.

    Args:
        env: See `DroidEnv`.
        controller_profile: Name of the low-level controller.
        views: What will be sent.
    """
    return space_metadata(
        str(env.action_space),
        control_hz=float(env.control_hz),
        controller_profile=controller_profile,
        views=views,
    )


def space_metadata(
    action_space: str,
    *,
    control_hz: float,
    controller_profile: str | None,
    views: Views | None = None,
) -> ServerMetadata:
    """Return what a robot of DROID's interface does with an action, without a robot.

    Args:
        action_space: See `deploy.metadata.ActionSpace`.
        control_hz: Actions per second.
        controller_profile: Name of the low-level controller.
        views: What will be sent.
    """
    size = (views or Views()).image_size
    inputs: dict[str, tuple[int, ...]] = {
        key: (size, size, 3) for key in (views or Views()).cameras
    }
    inputs |= {"observation/joint_position": (7,), "observation/gripper_position": (1,)}
    return ServerMetadata(
        action_space=action_space,
        action_dim=8 if action_space.startswith("joint") else 7,
        control_hz=control_hz,
        gripper=GRIPPER_POLARITY,
        controller_profile=controller_profile,
        inputs={**inputs, "prompt": ()},
    )


def check_inputs(policy: ServerMetadata, robot: ServerMetadata) -> None:
    """See that everything the policy asks for will be sent; servers resize pictures themselves.

    Raises:
        ContractMismatchError: Something will be missing.
    """
    missing = sorted(set(policy.inputs) - set(robot.inputs))
    if missing:
        raise ContractMismatchError(
            f"The policy asks for {', '.join(missing)}; this robot sends "
            f"{', '.join(sorted(robot.inputs))}. Name a camera for each view: --views."
        )
