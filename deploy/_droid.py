"""DROID's words for states, actions and pictures, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from deploy.cameras import Picture
from deploy.drivers import ArmState
from deploy.errors import ContractMismatchError
from deploy.kinematics import (
    jacobian,
    joints_towards,
    matrix_from_euler,
    pose_error,
    pose_matrix,
    pose_vector,
)
from deploy.limits import (
    FULL_LIMITS,
    MAX_GRIPPER_DELTA,
    MAX_JOINT_DELTA,
    MAX_POSITION_DELTA,
    MAX_ROTATION_DELTA,
    RESET_POSE,
    ActionSpace,
    Array,
)

GripperSpace = Literal["position", "velocity"]
_IK_DAMPING = 0.05


def robot_state(state: ArmState, gripper: float, *, command_ok: bool) -> dict[str, Any]:
    """DROID's `robot_state` of an observation; lists, rad, m, Nm."""
    return {
        "cartesian_position": pose_vector(state.pose).tolist(),
        "gripper_position": float(gripper),
        "joint_positions": state.q.tolist(),
        "joint_velocities": state.dq.tolist(),
        "joint_torques_computed": state.commanded_torque.tolist(),
        "prev_joint_torques_computed": state.commanded_torque.tolist(),
        "prev_joint_torques_computed_safened": state.commanded_torque.tolist(),
        "motor_torques_measured": state.torque.tolist(),
        "prev_controller_latency_ms": 0.0,
        "prev_command_successful": command_ok,
    }


def gripper_space(space: ActionSpace, given: str | None) -> GripperSpace:
    """What the last number of an action means; like the arm's where nothing is said.

    Raises:
        ContractMismatchError: It is no such space.
    """
    if given is None:
        return "velocity" if space.endswith("velocity") else "position"
    if given not in ("position", "velocity"):
        raise ContractMismatchError(
            f"gripper_action_space: expected 'position', 'velocity' or None, got {given!r}"
        )
    return "velocity" if given == "velocity" else "position"


def action_dict(
    action: Array, space: ActionSpace, gripper: GripperSpace, state: Mapping[str, Any]
) -> dict[str, Any]:
    """One action in all of DROID's spaces.

    Args:
        action: Six or seven numbers for the arm, by `space`, then one for the gripper.
        space: What the arm's numbers mean. Velocities are shares of DROID's unit steps.
        gripper: What the last number means.
        state: `robot_state` at the time of the action.
    """
    q = np.array(state["joint_positions"])
    arm, last = np.asarray(action[:-1], dtype=np.float64), float(action[-1])
    result: dict[str, Any] = {"robot_state": dict(state)}
    result |= _gripper_words(last, gripper, float(state["gripper_position"]))
    if space.startswith("cartesian"):
        pose = pose_matrix(np.array(state["cartesian_position"]))
        if space == "cartesian_velocity":
            arm = scaled(arm)
            target = moved(pose, arm)
        else:
            target = pose_matrix(arm)
        velocity = arm if space == "cartesian_velocity" else pose_velocity(pose, target)
        joint = joint_velocity(target, q)
        result |= {
            "cartesian_position": pose_vector(target).tolist(),
            "cartesian_velocity": velocity.tolist(),
        }
    else:
        joint = scaled(arm) if space == "joint_velocity" else (arm - q) / MAX_JOINT_DELTA
    position = arm if space == "joint_position" else q + joint * MAX_JOINT_DELTA
    return result | {"joint_position": position.tolist(), "joint_velocity": joint.tolist()}


def scaled(velocity: Array) -> Array:
    """The whole vector divided by its largest number where that is beyond 1."""
    return velocity / max(1.0, float(np.abs(velocity).max()))


def moved(pose: Array, velocity: Array) -> Array:
    """The pose one control step of a Cartesian velocity action (6,) away; rotations are fixed-axis
    angles applied in the base frame."""
    target = pose.copy()
    target[:3, 3] += MAX_POSITION_DELTA * velocity[:3]
    target[:3, :3] = matrix_from_euler(MAX_ROTATION_DELTA * velocity[3:]) @ pose[:3, :3]
    return target


def pose_velocity(pose: Array, target: Array) -> Array:
    """The Cartesian velocity action (6,) that leads from `pose` to `target` in one step."""
    error = pose_error(target, pose)
    return np.concatenate([error[:3] / MAX_POSITION_DELTA, error[3:] / MAX_ROTATION_DELTA])


def joint_velocity(target: Array, q: Array) -> Array:
    """The joint velocity action (7,) that brings the flange to `target` in one step.

    One step of damped least squares, with the rest of the freedom spent on DROID's start posture.
    """
    bounds = (FULL_LIMITS.lower, FULL_LIMITS.upper)
    wanted = joints_towards(
        target, q, damping=_IK_DAMPING, iterations=3, posture=RESET_POSE, bounds=bounds
    )
    return (wanted - q) / MAX_JOINT_DELTA


def flange_speed(q: Array, dq: Array) -> float:
    """Speed of the flange; m/s."""
    return float(np.linalg.norm(jacobian(q)[:3] @ dq))


def images(pictures: Mapping[str, Picture]) -> dict[str, Array]:
    """DROID's `image` of an observation: "<camera>_left" -> (H, W, 4) uint8 BGRA.

    Each of DROID's cameras is a stereo pair of which policies see the left eye; cameras with one
    eye fill only that.
    """
    result = {}
    for name, picture in pictures.items():
        alpha = np.full((*picture.image.shape[:2], 1), 255, dtype=np.uint8)
        result[f"{name}_left"] = np.concatenate([picture.image[..., ::-1], alpha], axis=-1)
    return result


def camera_times(pictures: Mapping[str, Picture]) -> dict[str, int]:
    """DROID's `timestamp.cameras`: milliseconds."""
    times: dict[str, int] = {}
    for name, picture in pictures.items():
        captured, received = round(picture.captured * 1000), round(picture.received * 1000)
        times |= {
            f"{name}_read_start": captured,
            f"{name}_read_end": received,
            f"{name}_frame_received": received,
            f"{name}_estimated_capture": captured,
        }
    return times


def _gripper_words(value: float, space: GripperSpace, measured: float) -> dict[str, float]:
    if space == "velocity":
        position = measured + MAX_GRIPPER_DELTA * value
        return {"gripper_velocity": value, "gripper_position": float(np.clip(position, 0, 1))}
    position = float(np.clip(value, 0, 1))
    return {
        "gripper_position": position,
        "gripper_delta": (position - measured) / MAX_GRIPPER_DELTA,
    }
