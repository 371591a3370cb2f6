"""Point clouds of a scene's bodies, from the geoms that collide: what a gripper can touch."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

_SPACING = 0.006  # m; finer than a finger pad (16 mm) and than the thinnest rim that matters
_MAX_MESH_POINTS = 2000
_ROUND_POINTS = 24  # around a cylinder


def subtree(model: Any, body: int) -> list[int]:
    """Ids of a body and of everything attached below it."""
    members = {body}
    for child in range(body + 1, model.nbody):  # a parent's id is smaller than its child's
        if int(model.body_parentid[child]) in members:
            members.add(child)
    return sorted(members)


def body_points(model: Any, data: Any, body: int) -> Points:
    """Surface points of a body and its children in the world frame, (N, 3) metres.

    Colliding geoms are used; a body that has none is described by its visual geoms.

    Args:
        model: `mujoco.MjModel`.
        data: `mujoco.MjData`; its poses must be up to date.
        body: id of the root body.
    """
    geoms = [g for b in subtree(model, body) for g in _geoms_of(model, b)]
    colliding = [g for g in geoms if model.geom_contype[g] or model.geom_conaffinity[g]]
    clouds = [_geom_points(model, data, g) for g in colliding or geoms]
    return np.concatenate(clouds) if clouds else np.zeros((0, 3))


def _geoms_of(model: Any, body: int) -> range:
    start = int(model.body_geomadr[body])
    return range(start, start + int(model.body_geomnum[body]))


def _geom_points(model: Any, data: Any, geom: int) -> Points:
    local = _local_points(model, geom)
    rotation = data.geom_xmat[geom].reshape(3, 3)
    world: Points = local @ rotation.T + data.geom_xpos[geom]
    return world


def _local_points(model: Any, geom: int) -> Points:
    kind, size = int(model.geom_type[geom]), model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return _box(size)
    if kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
        return _cylinder(float(size[0]), float(size[1]))
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return _sphere(float(size[0]))
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = int(model.geom_dataid[geom])
        start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        stride = max(1, count // _MAX_MESH_POINTS)
        vertices: Points = model.mesh_vert[start : start + count : stride].astype(np.float64)
        return vertices
    return np.zeros((0, 3))  # planes and height fields are the ground, not objects


def _box(half: NDArray[np.float64]) -> Points:
    """Grid on the six faces of a box with the given half sizes."""
    axes = [np.linspace(-h, h, int(np.clip(np.ceil(2 * h / _SPACING) + 1, 2, 40))) for h in half]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    on_surface = (np.abs(grid) >= half * (1 - 1e-9)).any(axis=1)
    points: Points = grid[on_surface]
    return points


def _cylinder(radius: float, half_length: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, _ROUND_POINTS, endpoint=False)
    heights = np.linspace(-half_length, half_length, max(3, int(2 * half_length / _SPACING)))
    angle, height = (a.ravel() for a in np.meshgrid(angles, heights))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)


def _sphere(radius: float) -> Points:
    """Fibonacci lattice: even and deterministic."""
    k = np.arange(64) + 0.5
    polar, azimuth = np.arccos(1 - 2 * k / 64), np.pi * (1 + 5**0.5) * k
    unit = [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    return radius * np.stack(unit, axis=1)
