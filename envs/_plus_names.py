"""What the name of a LIBERO-Plus task says: the benchmark defines its tasks by their names."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from envs.errors import UnknownNameError

DIMENSIONS: dict[str, str] = {
    "camera": "Camera Viewpoints",
    "robot": "Robot Initial States",
    "language": "Language Instructions",
    "light": "Light Conditions",
    "background": "Background Textures",
    "noise": "Sensor Noise",
    "layout": "Objects Layout",
}
"""Dimension -> the benchmark's own name of the category, in the order of its result tables."""

_VIEW = re.compile(
    r"^(?P<scene>.+?)(?P<rewritten>_language_\d+)?"
    r"_view_(?P<orbit>\d+)_(?P<elevation>\d+)_(?P<distance>\d+)_(?P<yaw>\d+)_(?P<pitch>\d+)"
    r"_initstate_(?P<robot>\d+)(?:_noise_(?P<noise>\d+))?$"
)
_SCENE = re.compile(
    r"^(?P<scene>.+?)_(?:(?P<kind>light|table|tb|add)_\d+|level(?P<level>\d+)_sample\d+)$"
)
_KINDS = {"light": "light", "table": "background", "tb": "background", "add": "layout"}


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """Where the third-person camera is moved to; all zero and 1.0 for the camera as it was.

    Attributes:
        orbit_deg: rotation of the camera about the vertical axis through the scene.
        elevation_deg: rotation about the horizontal axis through the scene.
        distance: factor on its distance from the scene.
        yaw_deg: turn of the camera where it stands, about the vertical axis.
        pitch_deg: the same about the horizontal axis.
    """

    orbit_deg: float = 0
    elevation_deg: float = 0
    distance: float = 1.0
    yaw_deg: float = 0
    pitch_deg: float = 0


@dataclass(frozen=True, kw_only=True)
class VariantName:
    """A task's name, taken apart.

    Attributes:
        dimension: key of `DIMENSIONS`.
        scene: stem of the definition file, of which the name of the LIBERO task is the beginning.
        view: the third-person camera.
        robot: number of the robot's initial posture, 0 for LIBERO's own.
        noise: number of the image corruption, 0 for none.
        magnitude: size of the perturbation from 1 to 5, from the numbers in the name; None where
            they say nothing about it (a numbered light, texture, object or sentence).
    """

    dimension: str
    scene: str
    view: CameraView = CameraView()
    robot: int = 0
    noise: int = 0
    magnitude: int | None = None


def parse_name(name: str) -> VariantName:
    """Take the name of a LIBERO-Plus task apart.

    Raises:
        UnknownNameError: the name follows none of the benchmark's patterns.

    >>> parse_name("open_the_drawer_view_0_0_100_0_0_initstate_213").dimension
    'robot'
    """
    if match := _VIEW.match(name):
        return _of_view(match)
    if match := _SCENE.match(name):
        level = match["level"]
        return VariantName(
            dimension="layout" if level else _KINDS[match["kind"]],
            scene=name,
            magnitude=int(level) if level else None,
        )
    raise UnknownNameError(
        f"{name!r} is not the name of a LIBERO-Plus task: expected a LIBERO task followed by "
        "_view_..._initstate_N, _language_N_view_..., _light_N, _table_N, _tb_N, _add_N or "
        "_levelL_sampleK."
    )


def _of_view(match: re.Match[str]) -> VariantName:
    view = CameraView(
        orbit_deg=int(match["orbit"]),
        elevation_deg=int(match["elevation"]),
        distance=int(match["distance"]) / 100,
        yaw_deg=int(match["yaw"]),
        pitch_deg=int(match["pitch"]),
    )
    robot, noise = int(match["robot"]), int(match["noise"] or 0)
    scene = match["scene"] + (match["rewritten"] or "")
    magnitude: int | None
    if match["rewritten"]:
        dimension, magnitude = "language", None
    elif noise:
        dimension, magnitude = "noise", ((noise - 1) % 10) // 2 + 1
    elif robot:
        dimension, magnitude = "robot", (robot - 1) // 100 + 1
    else:
        dimension, magnitude = "camera", _camera_magnitude(view)
    return VariantName(
        dimension=dimension,
        scene=scene,
        view=view,
        robot=robot,
        noise=noise,
        magnitude=magnitude,
    )


def _camera_magnitude(view: CameraView) -> int:
    """Fifths of the largest displacement of its kind: 75 degrees of orbit, 2 x, 14.2 degrees."""
    turn = math.hypot(_signed(view.yaw_deg), _signed(view.pitch_deg))
    shares = (abs(_signed(view.orbit_deg)) / 75, abs(view.distance - 1), turn / 14.2)
    fifths = round(5 * max(shares), 6)  # 1.6 - 1 is a little more than 0.6
    return min(5, max(1, math.ceil(fifths)))


def _signed(degrees: float) -> float:
    return (degrees + 180) % 360 - 180
