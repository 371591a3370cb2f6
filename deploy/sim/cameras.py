"""Pictures of the simulated table, drawn on demand in the client's process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deploy.cameras import Camera, Image, Picture
from deploy.errors import CameraError
from deploy.sim.link import SceneLink
from deploy.sim.scene import CAMERAS, CAPTURE_SIZE, scene_xml


class SceneCameras:
    """Draws what the simulation's cameras see.

    All drawing happens on one thread, to which the OpenGL context belongs.

    Args:
        link: Where the scene's state comes from. Not closed here.
        size: Height and width of the pictures.

    Raises:
        CameraError: There is no OpenGL for off-screen drawing.
    """

    def __init__(self, link: SceneLink, size: tuple[int, int] = CAPTURE_SIZE) -> None:
        self._link, self._size = link, size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scene cameras")
        self._numbers = dict.fromkeys(CAMERAS, 0)
        try:
            self._thread.submit(self._open).result()
        except Exception as error:
            self._thread.shutdown()
            raise CameraError(
                f"cannot draw off-screen (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}): {error}; "
                "`vla-opt doctor` looks into it"
            ) from error

    def cameras(self) -> Mapping[str, Camera]:
        """One camera per view."""
        return {name: _View(self, name) for name in CAMERAS}

    def draw(self, name: str) -> Picture:
        """Draw the present scene."""
        state = self._link.state()
        captured = time.time()
        image = self._thread.submit(self._draw, name, state.qpos, state.mocap_pos).result()
        self._numbers[name] += 1
        return Picture(
            image=image, captured=captured, received=time.time(), number=self._numbers[name]
        )

    def close(self) -> None:
        """Let go of OpenGL."""
        self._thread.submit(self._renderer.close).result()
        self._thread.shutdown()

    def _open(self) -> None:
        os.environ.setdefault("MUJOCO_GL", "egl")
        import mujoco

        self._mujoco = mujoco
        self._model = mujoco.MjModel.from_xml_string(scene_xml())
        self._data = mujoco.MjData(self._model)
        self._renderer: Any = mujoco.Renderer(self._model, *self._size)
        # Ten times the time of everything else, on a processor without a GPU.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0

    def _draw(self, name: str, qpos: Any, mocap_pos: Any) -> Image:
        self._data.qpos[:], self._data.mocap_pos[:] = qpos, mocap_pos
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        self._renderer.update_scene(self._data, name)
        return np.array(self._renderer.render(), dtype=np.uint8)


class _View:
    """One of them as a `Camera`."""

    def __init__(self, cameras: SceneCameras, name: str) -> None:
        self._cameras, self._name = cameras, name

    def latest(self) -> Picture:
        return self._cameras.draw(self._name)

    def close(self) -> None:
        """Belongs to all views; see `SceneCameras.close`."""
