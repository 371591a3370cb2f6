"""Perturbed scenes to demonstrate in, none of which an evaluation contains.

They are of the kinds that LIBERO-Plus and `envs.libero_style` evaluate, and drawn so that they
cannot be theirs: cameras stand at half degrees and half per cents where the benchmark's names have
whole ones, postures lie between its five distances, backgrounds are colour gradients instead of
LIBERO's textures and checkerboards, and lights and objects are drawn from seeds of demonstrations,
which no variant has (`envs.demonstrations.DemoKey.seed`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs._perturbation import UNPERTURBED, Perturbation
from envs._plus_names import CameraView
from envs._plus_scene import MovedCamera
from envs._style_objects import AddedDistractors, choose_distractors, with_distractors
from envs._style_scene import StyleBackground, StyleLight
from envs.suites import ResolvedTask
from envs.tasks import Task

LARGEST_ORBIT, LARGEST_TURN = 75.0, 14.0  # degrees, at level 5, as in LIBERO-Plus
POSTURE_STEP = 0.1  # rad in joint space by level, as in LIBERO-Plus
_BETWEEN = (0.1, 0.9)  # where between two of the benchmark's postures


class DrawnPosture(Perturbation):
    """The robot starts with its joints moved.

    Args:
        offset: rad, (7,).
    """

    def __init__(self, offset: NDArray[np.float64]) -> None:
        self.offset = offset

    def on_model(self, inner: Any) -> None:
        """Make it the posture that a reset goes to."""
        robot = inner.robots[0]
        robot.init_qpos = robot.init_qpos + self.offset

    def on_init_state(self, state: NDArray[np.float64], inner: Any) -> NDArray[np.float64]:
        """Move the joints of the initial state."""
        state = state.copy()
        state[1 + np.array(inner.robots[0]._ref_joint_pos_indexes)] += self.offset
        return state


class GradientBackground(StyleBackground):
    """Wall, floor and table (by level, as in `StyleBackground`) in gradients of two colours."""

    def _image(self, rng: np.random.RandomState) -> NDArray[np.uint8]:
        start, end = rng.randint(0, 256, (2, 3))
        bearing = rng.uniform(0, 2 * np.pi)
        y, x = np.indices((64, 64)) / 63 - 0.5
        share = (x * np.cos(bearing) + y * np.sin(bearing))[..., None] / np.sqrt(2) + 0.5
        image: NDArray[np.uint8] = (start + (end - start) * share).astype(np.uint8)
        return image


def draw_camera(level: int, rng: np.random.RandomState) -> CameraView:
    """A camera led around the scene, moved away from it, or turned where it stands."""
    share = (level - 1 + rng.uniform()) / 5
    kind = rng.randint(3)
    if kind == 0:
        return CameraView(orbit_deg=_halved(share * LARGEST_ORBIT) * rng.choice((-1, 1)))
    if kind == 1:
        return CameraView(distance=1 + _halved(100 * share) / 100)
    bearing = rng.uniform(0, 2 * np.pi)
    turn = share * LARGEST_TURN * np.array([np.cos(bearing), np.sin(bearing)])
    yaw, pitch = np.sign(turn) * [_halved(abs(degrees)) for degrees in turn]
    return CameraView(yaw_deg=float(yaw), pitch_deg=float(pitch))


def draw_offset(level: int, rng: np.random.RandomState) -> NDArray[np.float64]:
    """Joint offset (7,) in rad whose length lies between those of two of the benchmark's levels."""
    direction = rng.normal(size=7)
    length = POSTURE_STEP * (level - 1 + rng.uniform(*_BETWEEN))
    return length * direction / np.linalg.norm(direction)


def training_variant(kind: str, level: int, seed: int, task: Task) -> ResolvedTask:
    """The task in a perturbed scene.

    Args:
        kind: one of `envs._diversity.PERTURBATIONS`.
        level: size of the perturbation, 1 to 5.
        seed: of the attempt; decides everything.
        task: one of LIBERO's.
    """
    rng = np.random.RandomState(seed)
    shared, own = (task.suite, task.name), (task.suite, task.name, kind, str(seed))
    perturbation: Perturbation = UNPERTURBED
    if kind == "objects":
        added = choose_distractors(task.bddl_file, level, rng)
        definition = with_distractors(task.bddl_file, added, f"{task.name}_demo_{seed}")
        task = dataclasses.replace(task, bddl_file=definition)
        perturbation = AddedDistractors(added)
    elif kind == "background":
        perturbation = GradientBackground(level, seed)
    elif kind == "light":
        perturbation = StyleLight(level, seed)
    elif kind == "camera":
        perturbation = MovedCamera(draw_camera(level, rng))
    elif kind == "robot":
        perturbation = DrawnPosture(draw_offset(level, rng))
    key = own if kind in ("objects", "background") else shared
    return ResolvedTask(task=task, perturbation=perturbation, scene_key=key)


def _halved(number: float) -> float:
    """The half that follows a whole number: 0.5, 1.5, ..."""
    return float(np.floor(number)) + 0.5
