"""The filter between every action and the arm: a pure function that cannot be switched off.

A stream of arbitrary actions goes in, a stream of joint targets that respects every bound of a
profile comes out, and each time the two differ the reason has a name. Order of the stages: shape
and finiteness, range, gripper, DROID's scaling of the vector, cap per step, leash, position, speed,
acceleration, workspace and table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from deploy._viability import braked, viable_speeds
from deploy._workspace import Workspace, confine
from deploy.limits import (
    CAUTIOUS_LIMITS,
    FULL_LIMITS,
    JOINTS,
    MAX_GRIPPER_DELTA,
    MAX_JOINT_DELTA,
    Array,
    JointLimits,
)

JointSpace = Literal["joint_velocity", "joint_position"]
GripperSpace = Literal["position", "velocity"]

REJECTIONS = ("shape", "not_finite", "out_of_range")
"""Reasons for which an action is not executed at all: the arm brakes instead."""

INTERVENTIONS = (
    *REJECTIONS,
    "scaled",
    "step_cap",
    "leash",
    "position",
    "speed",
    "acceleration",
    "workspace",
    "table",
)
"""Every name a filtered action may carry."""

BLOCKS = (*REJECTIONS, "leash", "position", "workspace", "table")
"""Those that stand in an action's way; the others only shape how it goes there."""


@dataclass(frozen=True, kw_only=True)
class SafetyProfile:
    """Bounds for one way of running the arm.

    Attributes:
        name: As people call it.
        limits: Of the joints.
        workspace: Of wrist and fingertips.
        max_step: Largest move of a joint that one action may ask for; rad.
        leash: How far a target may be from the measured joints; rad.
        reject_velocity: A velocity action beyond this is an error, not a wish (1 is full speed).
        reject_position: A position action this far outside the range is an error; rad.
        gripper: "binary" opens or closes (the Franka Hand can do no more while streaming);
            "continuous" passes positions on.
        gripper_threshold: Closed above it, open below.
        gripper_hysteresis: Half the width of the band around the threshold that changes nothing.
        gripper_step: Least change that is sent in "continuous".
    """

    name: str
    limits: JointLimits
    workspace: Workspace = field(default_factory=Workspace)
    max_step: float = MAX_JOINT_DELTA
    leash: float = 0.5
    reject_velocity: float = 5.0
    reject_position: float = 0.3
    gripper: Literal["binary", "continuous"] = "binary"
    gripper_threshold: float = 0.5
    gripper_hysteresis: float = 0.05
    gripper_step: float = 0.02


FULL = SafetyProfile(name="full", limits=FULL_LIMITS)
CAUTIOUS = SafetyProfile(name="cautious", limits=CAUTIOUS_LIMITS, max_step=0.05, leash=0.2)
PROFILES: Mapping[str, SafetyProfile] = MappingProxyType({"cautious": CAUTIOUS, "full": FULL})


@dataclass(frozen=True, kw_only=True)
class FilterState:
    """What the filter remembers from one action to the next.

    Attributes:
        target: (7,) joint target last given to the arm; rad.
        speed: (7,) its speed; rad/s.
        gripper: Position last commanded, 0 open, 1 closed; None before the first command.
    """

    target: Array
    speed: Array
    gripper: float | None = None

    @classmethod
    def at_rest(cls, q: Array, gripper: float | None = None) -> FilterState:
        """An arm that stands at `q`."""
        return cls(target=np.array(q, dtype=np.float64), speed=np.zeros(JOINTS), gripper=gripper)


@dataclass(frozen=True, kw_only=True)
class Filtered:
    """What may be sent to the robot.

    Attributes:
        state: To pass to the next call; `state.target` is the (7,) joint target to send.
        gripper: Position to send, 0 open, 1 closed; None when nothing has changed.
        interventions: Name -> by how much the wish was changed, in its own unit.
        action: (8,) the action that the target amounts to, in the space of the one given.
    """

    state: FilterState
    gripper: float | None
    interventions: Mapping[str, float]
    action: Array

    @property
    def rejected(self) -> str | None:
        """Why the action was not executed at all; None if it was."""
        return next((name for name in self.interventions if name in REJECTIONS), None)


def filter_action(
    action: Sequence[float] | Array | None,
    *,
    state: FilterState,
    measured: Array,
    measured_gripper: float,
    profile: SafetyProfile,
    space: JointSpace = "joint_velocity",
    gripper_space: GripperSpace = "position",
    period: float = 1 / 15,
) -> Filtered:
    """Turn an action into a joint target that keeps every bound of the profile.

    If `state` keeps the bounds of position, speed and acceleration, so does the result, whatever
    the action and the measurement are; likewise for the workspace.

    Args:
        action: (8,) seven joints and the gripper: speeds as shares of DROID's unit step, or
            positions in rad. None brakes and leaves the gripper.
        state: As the call before returned it, or `FilterState.at_rest`.
        measured: (7,) joint positions; rad.
        measured_gripper: 0 open, 1 closed.
        profile: The bounds.
        space: What the first seven numbers mean.
        gripper_space: What the last one means.
        period: Time until the next action; s.
    """
    notes: dict[str, float] = {}
    wish = None if action is None else _checked(action, space, profile, notes)
    if wish is None:
        desired, gripper = state.target, None
    else:
        gripper = _gripper(float(wish[JOINTS]), state, measured_gripper, gripper_space, profile)
        desired = _desired(wish[:JOINTS], state, measured, space, profile, notes)
    speed = _limited_speed(desired, state, profile, period, notes)
    target = state.target + speed * period
    gripper_now = state.gripper if gripper is None else gripper
    after = FilterState(target=target, speed=speed, gripper=gripper_now)
    arm = (target - measured) / MAX_JOINT_DELTA if space == "joint_velocity" else target
    said = measured_gripper if gripper_now is None else gripper_now
    return Filtered(
        state=after,
        gripper=gripper,
        interventions=notes,
        action=np.append(arm, said),
    )


def _checked(
    action: Sequence[float] | Array,
    space: JointSpace,
    profile: SafetyProfile,
    notes: dict[str, float],
) -> Array | None:
    """The action as eight believable numbers, or None."""
    try:
        wish = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError):
        notes["shape"] = 1.0
        return None
    if wish.shape != (JOINTS + 1,):
        notes["shape"] = float(abs(wish.size - JOINTS - 1) or 1)
        return None
    if not np.all(np.isfinite(wish)):
        notes["not_finite"] = float(np.count_nonzero(~np.isfinite(wish)))
        return None
    if (beyond := _beyond_range(wish[:JOINTS], space, profile)) > 0:
        notes["out_of_range"] = beyond
        return None
    return wish


def _beyond_range(arm: Array, space: JointSpace, profile: SafetyProfile) -> float:
    if space == "joint_velocity":
        return float(np.abs(arm).max()) - profile.reject_velocity
    outside = np.maximum(FULL_LIMITS.lower - arm, arm - FULL_LIMITS.upper)
    return float(outside.max()) - profile.reject_position


def _gripper(
    wish: float,
    state: FilterState,
    measured: float,
    space: GripperSpace,
    profile: SafetyProfile,
) -> float | None:
    """The position to send, or None if the gripper is (being) there already."""
    if space == "velocity":
        wish = measured + MAX_GRIPPER_DELTA * wish
    wish = min(max(wish, 0.0), 1.0)
    last = state.gripper
    if profile.gripper == "continuous":
        return wish if last is None or abs(wish - last) >= profile.gripper_step else None
    if last is not None and abs(wish - profile.gripper_threshold) <= profile.gripper_hysteresis:
        return None
    wanted = float(wish > profile.gripper_threshold)
    return wanted if wanted != last else None


def _desired(
    arm: Array,
    state: FilterState,
    measured: Array,
    space: JointSpace,
    profile: SafetyProfile,
    notes: dict[str, float],
) -> Array:
    """The joint target the action means, within reach of one step and of the leash."""
    if space == "joint_velocity":
        if (largest := float(np.abs(arm).max())) > 1:
            notes["scaled"] = largest
            arm = arm / largest
        start, move = measured, arm * MAX_JOINT_DELTA
    else:
        start, move = state.target, arm - state.target
    if (largest := float(np.abs(move).max())) > profile.max_step + 1e-12:
        notes["step_cap"] = largest - profile.max_step
        move = move * (profile.max_step / largest)
    wanted = start + move
    leashed = np.clip(wanted, measured - profile.leash, measured + profile.leash)
    _note(notes, "leash", wanted, leashed)
    return leashed


def _limited_speed(
    desired: Array,
    state: FilterState,
    profile: SafetyProfile,
    period: float,
    notes: dict[str, float],
) -> Array:
    """The speed of the target nearest to what reaches `desired` in one period."""
    limits = profile.limits
    # A joint that starts outside its range is not pulled in, but can only move inwards.
    lower, upper = np.minimum(limits.lower, state.target), np.maximum(limits.upper, state.target)
    inside = np.clip(desired, lower, upper)
    _note(notes, "position", desired, inside)
    wanted = (inside - state.target) / period
    slow, fast = viable_speeds(state.target, limits, period)
    viable = np.clip(wanted, slow, fast)
    _note(notes, "speed", wanted, viable)
    change = limits.acceleration * period
    speed = np.clip(viable, state.speed - change, state.speed + change)
    _note(notes, "acceleration", viable, speed)
    bounds = np.maximum(slow, state.speed - change), np.minimum(fast, state.speed + change)
    confined, obstacles = confine(
        state.target,
        speed,
        bounds,
        brake=braked(state.speed, limits, period),
        limits=limits,
        workspace=profile.workspace,
        period=period,
    )
    for name in obstacles:
        notes[name] = float(np.abs(confined - speed).max())
    return confined


def _note(notes: dict[str, float], name: str, before: Array, after: Array) -> None:
    if (change := float(np.abs(after - before).max())) > 1e-9:
        notes[name] = change
