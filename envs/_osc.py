"""The compiled part of the operational-space controller: everything between two calls of numpy.

robosuite computes with numba here and with numpy there, and the two link different BLAS libraries,
whose last bits may differ. This is what it computes with numba, and the elementwise arithmetic
around it, in one call; what it multiplies with numpy stays in `envs._fast_control`.

Importing this compiles nothing; the first call does, and keeps the result beside this file.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

Vector = NDArray[np.float64]


@numba.njit(cache=True)
def operational_space(
    whole: tuple[Vector, Vector, Vector],
    first: int,
    pose: tuple[Vector, Vector],
    goal: tuple[Vector, Vector],
    velocity: Vector,
    gains: tuple[Vector, Vector],
    joints: tuple[Vector, Vector, Vector],
    arm: tuple[Vector, Vector, Vector, Vector],
    wanted: Vector,
) -> Any:
    """What `OperationalSpaceController.run_controller` of robosuite computes before its last sums.

    Args:
        whole: mass matrix (nv, nv), Jacobians of position and rotation (3, nv) of all joints.
        first: index of the arm's first degree of freedom; the others follow it.
        pose: position (3,) and rotation matrix (3, 3) of the grip site.
        goal: the same, wanted.
        velocity: linear and angular, of the grip site, (6,).
        gains: stiffness and damping, (6,) each.
        joints: rest positions, positions and velocities of the arm, (7,) each.
        arm: filled with the arm's part: mass matrix (7, 7), Jacobians (3, 7), (3, 7), (6, 7). Their
            memory layout decides which BLAS routines run: it must be that of robosuite's arrays.
        wanted: filled with force and torque before decoupling, (6,).

    Returns:
        Inertia seen by forces and by torques, (3, 3) each, and the null-space torques, (7,).
    """
    mass, jac_pos, jac_ori, jac = arm
    for row in range(mass.shape[0]):
        for column in range(mass.shape[0]):
            mass[row, column] = whole[0][first + row, first + column]
    for row in range(3):
        for column in range(mass.shape[0]):
            jac_pos[row, column] = jac[row, column] = whole[1][row, first + column]
            jac_ori[row, column] = jac[3 + row, column] = whole[2][row, first + column]
    turn = orientation_error(goal[1], pose[1])
    stiffness, damping = gains
    for k in range(3):
        shift = goal[0][k] - pose[0][k]
        wanted[k] = shift * stiffness[k] - velocity[k] * damping[k]
        wanted[3 + k] = turn[k] * stiffness[3 + k] - velocity[3 + k] * damping[3 + k]
    _, of_forces, of_torques, nullspace = opspace_matrices(mass, jac, jac_pos, jac_ori)
    rest, positions, velocities = joints
    return of_forces, of_torques, nullspace_torques(mass, nullspace, rest, positions, velocities)
