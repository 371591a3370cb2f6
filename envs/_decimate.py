"""Fewer triangles for visual meshes of a compiled MuJoCo model; colliding meshes stay untouched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MESH = 7  # mujoco.mjtGeom.mjGEOM_MESH
_WELD = 2e-5  # vertices closer than this fraction of the mesh size are one
_UV_GRID = 4096  # texture coordinates closer than 1/4096 are one


@dataclass(frozen=True, kw_only=True)
class Decimation:
    """How far to simplify.

    Attributes:
        keep: share of the faces to aim for.
        min_faces: meshes at or below this stay whole; larger ones keep at least as many.
        error: largest deviation, as a fraction of the mesh size.
    """

    keep: float = 0.05
    min_faces: int = 800
    error: float = 0.02


def decimate_visual_meshes(model: Any, settings: Decimation) -> tuple[int, int]:
    """Simplifies, in place, every mesh that no colliding geom uses.

    Only index buffers change, so mass, inertia and contacts are those of the original model.

    Args:
        model: a `mujoco.MjModel`.
        settings: see `Decimation`.

    Returns:
        Faces of the visual meshes before and after.
    """
    before = after = 0
    for mesh in _visual_only_meshes(model):
        faces = int(model.mesh_facenum[mesh])
        before += faces
        if faces > settings.min_faces:
            _decimate(model, mesh, settings)
        after += int(model.mesh_facenum[mesh])
    return before, after


def _visual_only_meshes(model: Any) -> list[int]:
    is_mesh = model.geom_type == _MESH
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    visual = set(model.geom_dataid[is_mesh & ~collides].tolist())
    return sorted(visual - set(model.geom_dataid[is_mesh & collides].tolist()))


def _is_textured(model: Any, mesh: int) -> bool:
    geoms = (model.geom_type == _MESH) & (model.geom_dataid == mesh)
    materials = model.geom_matid[geoms]
    return bool((model.mat_texid[materials[materials >= 0]] >= 0).any())


def _weld(points: NDArray[np.float32], grid: float) -> NDArray[np.int64]:
    """Maps each point to the first point of its grid cell."""
    first, inverse = _distinct(np.round(points * grid).astype(np.int64))
    return first[inverse]


def _distinct(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First place of each distinct row, in lexicographic order, and each row's number in it.

    As `np.unique` along an axis, which sorts rows as strings of bytes and takes ten times as long.

    Args:
        rows: (N, k); the product of the columns' ranges must fit into 63 bits.
    """
    key = np.zeros(len(rows), np.int64)
    for column in (rows - rows.min(axis=0)).T:
        key = key * (column.max() + 1) + column
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return first, inverse


def _decimate(model: Any, mesh: int, settings: Decimation) -> None:
    import meshoptimizer

    start, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    stop = start + count
    vertex = slice(int(model.mesh_vertadr[mesh]), None)
    vertices = model.mesh_vert[vertex][: int(model.mesh_vertnum[mesh])]
    corners = model.mesh_face[start:stop].reshape(-1).astype(np.int64)
    normals = model.mesh_facenormal[start:stop].reshape(-1).astype(np.int64)
    corners = _weld(vertices, 1.0 / (_WELD * np.ptp(vertices, axis=0).max()))[corners]

    textured = model.mesh_texcoordadr[mesh] >= 0 and _is_textured(model, mesh)
    coords = np.zeros_like(corners)
    if textured:
        first = int(model.mesh_texcoordadr[mesh])
        uv = model.mesh_texcoord[first : first + int(model.mesh_texcoordnum[mesh])]
        coords = _weld(uv, _UV_GRID)[model.mesh_facetexcoord[start:stop].reshape(-1)]

    # One simplifier vertex for each (position, texture coordinate) pair: seams survive.
    representative, index = _distinct(np.stack([corners, coords], 1))
    pairs = np.stack([corners, coords], 1)[representative]
    triangles = index.reshape(-1, 3)
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (a != c)]
    indices = np.ascontiguousarray(triangles.reshape(-1), dtype=np.uint32)
    positions = np.ascontiguousarray(vertices[pairs[:, 0]], dtype=np.float32)
    target = max(int(count * settings.keep), settings.min_faces) * 3
    kept: NDArray[np.uint32] = np.zeros(len(indices), np.uint32)
    size = meshoptimizer.simplify(
        *(kept, indices, positions, len(indices), len(positions), positions.strides[0]),
        *(target, settings.error, 0, np.zeros(1, np.float32)),
    )
    kept = kept[: int(size) // 3 * 3]
    end = start + len(kept) // 3
    model.mesh_face[start:end] = pairs[kept, 0].reshape(-1, 3)
    model.mesh_facenormal[start:end] = normals[representative][kept].reshape(-1, 3)
    if textured:
        model.mesh_facetexcoord[start:end] = pairs[kept, 1].reshape(-1, 3)
    model.mesh_facenum[mesh] = end - start
