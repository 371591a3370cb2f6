"""Geometry that a camera cannot see is not drawn; the images stay the same to the bit.

MuJoCo hands every visible geom to OpenGL, and a software renderer transforms each of its vertices
before it finds that none is inside the picture. A geom whose bounding sphere lies outside of the
camera's field of view, and whose mirror images do as well, adds no pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_NOT_DRAWN = 5  # a geom group that no camera shows: robosuite uses 0 and 1
_MARGIN = (1.001, 1e-3)  # factor and metres on a radius: OpenGL counts in float32


def unseen(
    model: mujoco.MjModel, data: mujoco.MjData, camera: int, *, reflections: bool
) -> NDArray[np.bool_]:
    """Which geoms lie outside of a square picture, directly and in every mirror: (ngeom,).

    Args:
        model: the scene.
        data: its state; positions must be up to date.
        camera: index of a fixed camera with a field of view.
        reflections: whether they are drawn.
    """
    if model.light_castshadow.any():  # what is not seen may cast a shadow on what is
        return np.zeros(model.ngeom, dtype=bool)
    radii = model.geom_rbound * _MARGIN[0] + _MARGIN[1]
    hidden = _outside(data.geom_xpos, radii, model, data, camera)
    hidden &= model.geom_rbound > 0  # infinite planes have none
    for point, normal in _mirrors(model, data, ~hidden) if reflections else ():
        images = data.geom_xpos - 2 * np.outer((data.geom_xpos - point) @ normal, normal)
        hidden &= _outside(images, radii, model, data, camera)
    return hidden


def sees_only_its_view(sensor: Callable[[Any], Any], sim: Any, camera: str) -> Callable[[Any], Any]:
    """A robosuite camera sensor that draws without what its camera cannot see.

    Args:
        sensor: what draws.
        sim: robosuite's simulation.
        camera: MuJoCo's name of the camera.
    """
    number = sim.model.camera_name2id(camera)

    @functools.wraps(sensor)  # robosuite looks for an attribute of it
    def draw(cache: Any) -> Any:
        model, data = sim.model._model, sim.data._data  # not to be kept alive by this function
        flags = sim._render_context_offscreen.scn.flags
        mirrors = bool(flags[mujoco.mjtRndFlag.mjRND_REFLECTION])
        with _not_drawn(model, unseen(model, data, number, reflections=mirrors)):
            return sensor(cache)

    return draw


@contextmanager
def _not_drawn(model: mujoco.MjModel, geoms: NDArray[np.bool_]) -> Iterator[None]:
    groups = model.geom_group.copy()
    model.geom_group[geoms] = _NOT_DRAWN
    try:
        yield
    finally:
        model.geom_group[:] = groups


def _outside(
    centers: Vector,
    radii: Vector,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: int,
) -> NDArray[np.bool_]:
    """Which spheres are behind the camera or beyond one of the four sides of its pyramid."""
    seen_from = (centers - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
    depth, sideways = -seen_from[:, 2], np.abs(seen_from[:, :2]).max(axis=1)
    half = np.radians(model.cam_fovy[camera]) / 2
    beyond: NDArray[np.bool_] = sideways * np.cos(half) - depth * np.sin(half) > radii
    behind: NDArray[np.bool_] = depth < -radii
    return beyond | behind


def _mirrors(
    model: mujoco.MjModel, data: mujoco.MjData, seen: NDArray[np.bool_]
) -> list[tuple[Vector, Vector]]:
    """A point on, and the normal of, every surface in the picture that MuJoCo reflects in.

    These are planes and the upper sides of boxes (MuJoCo's XML reference, material/reflectance).
    """
    plane, box = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX
    flat = (model.geom_type == plane) | (model.geom_type == box)
    shiny = (model.geom_matid >= 0) & (model.mat_reflectance[model.geom_matid] > 0)
    found = []
    for geom in np.flatnonzero(seen & flat & shiny):
        normal = data.geom_xmat[geom].reshape(3, 3)[:, 2]
        height = model.geom_size[geom, 2] if model.geom_type[geom] == box else 0.0
        found.append((data.geom_xpos[geom] + height * normal, normal))
    return found
