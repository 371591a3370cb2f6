"""From "the hand should be there" to an action: proportional control of the arm's grip site."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs._scene import Scene

Vector = NDArray[np.float64]

OPEN, CLOSE = -1.0, 1.0

# Proportional control in action units; action 1.0 asks the controller for 0.05 m or 0.5 rad.
TRANSLATION_GAIN = 14.0  # per metre
FRICTION_ACTION = 0.25  # the arm hardly answers to smaller actions
STRETCHED_ACTION = 0.2  # and a stretched one to even fewer: it would stand a centimetre off
STRETCHED = 0.6  # m from the foot of the arm, where that begins
FRICTION_DISTANCE = 0.012  # m of error at which most of it is added
ROTATION_GAIN = 1.4  # per radian: the same share of the error per step as in translation
ROTATION_LIMIT = 0.4  # a unit rotation drags the grip site sideways by nearly a centimetre a step


class Motion:
    """Turns wanted poses of the grip site into actions.

    Args:
        scene: where the hand is.
        gain: proportional gain of translation, action units per metre of error.
        stretched: what friction takes beyond `FRICTION_ACTION` from an arm stretched out.
        speed: factor on gain and largest translation; no action exceeds 1 for it.
    """

    def __init__(
        self,
        scene: Scene,
        gain: float = TRANSLATION_GAIN,
        *,
        stretched: float = 0.0,
        speed: float = 1.0,
    ) -> None:
        self._scene = scene
        self._gain = gain
        self._stretched = stretched
        self._speed = speed

    def stretched_out(self) -> Motion:
        """The same with more force where the arm is stretched, for an empty hand."""
        return Motion(self._scene, self._gain, stretched=STRETCHED_ACTION, speed=self._speed)

    def towards(
        self, target: Vector, rotation: Vector, gripper: float, speed: float = 1.0
    ) -> Vector:
        """The action (7,) that moves the grip site towards a pose.

        Sideways motion waits for height where height is missing.

        Args:
            target: position of the grip site, (3,) metres.
            rotation: its frame, (3, 3): columns are the closing axis, ..., the pointing direction.
            gripper: `OPEN` or `CLOSE`.
            speed: limit of the translation in action units.
        """
        error = target - self._scene.eef_position()
        wait = ramp((error[2] - 0.01) / 0.06)
        sideways = limit(self._command(error[:2]), 1.0) * (1 - wait)
        translation = self._limited(np.array([*sideways, *self._command(error[2:])]), speed)
        return np.concatenate([translation, self._turn(rotation), [gripper]])

    def straight(
        self, target: Vector, rotation: Vector, gripper: float, speed: float = 1.0
    ) -> Vector:
        """As `towards`, on a straight line: for motions along a handle's or a door's way."""
        error = target - self._scene.eef_position()
        translation = self._limited(self._command(error), speed)
        return np.concatenate([translation, self._turn(rotation), [gripper]])

    def rotation_error(self, rotation: Vector) -> Vector:
        """Rotation vector (world frame, rad) from the present frame to another, (3,)."""
        return rotation_vector(rotation @ self._scene.eef_rotation().T)

    def _turn(self, rotation: Vector) -> Vector:
        return limit(ROTATION_GAIN * self.rotation_error(rotation), ROTATION_LIMIT)

    def _limited(self, translation: Vector, speed: float) -> Vector:
        return limit(translation, min(1.0, speed * self._speed))

    def _command(self, error: Vector) -> Vector:
        """Proportional, plus what friction and a stretched arm swallow before it moves at all."""
        distance = float(np.linalg.norm(error))
        friction = self._friction() * float(np.tanh(distance / FRICTION_DISTANCE))
        return error * (self._gain * self._speed + friction / max(distance, 1e-9))

    def _friction(self) -> float:
        """Action that the arm swallows: more, the farther it is stretched."""
        reach = self._scene.eef_position()[:2] - self._scene.base_position()[:2]
        share = ramp((float(np.linalg.norm(reach)) - STRETCHED) / 0.1)
        return FRICTION_ACTION + self._stretched * share


def pointing_down(yaw: float) -> Vector:
    """Frame (3, 3) of a hand that points down, its closing axis at `yaw` radians."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, sin, 0.0], [sin, -cos, 0.0], [0.0, 0.0, -1.0]])


def about_vertical(angle: float) -> Vector:
    """Rotation matrix (3, 3) about the vertical by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def frame(closing: Vector, pointing: Vector) -> Vector:
    """Right-handed frame (3, 3) of a hand from two orthogonal unit vectors (3,).

    >>> np.array_equal(frame(np.array([1.0, 0, 0]), np.array([0, 0, -1.0])), pointing_down(0.0))
    True
    """
    return np.column_stack([closing, np.cross(pointing, closing), pointing])


def rotation_vector(rotation: Vector) -> Vector:
    """Axis times angle (rad) of a rotation matrix (3, 3), for angles below half a turn.

    >>> rotation_vector(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).round(4)
    array([0.    , 0.    , 1.5708])
    """
    skew = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = float(np.linalg.norm(skew)) / 2, (float(np.trace(rotation)) - 1) / 2
    return skew / 2 if sine < 1e-9 else skew * (np.arctan2(sine, cosine) / (2 * sine))


def ramp(x: float) -> float:
    """0 below 0, 1 above 1, smooth in between."""
    x = min(1.0, max(0.0, x))
    return x * x * (3 - 2 * x)


def limit(vector: Vector, length: float) -> Vector:
    """Shortens a vector to a length; its direction stays."""
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-12))


def wrap(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
