"""Generated light and background: changes of a compiled scene, with LIBERO's own textures."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs._libero_setup import assets_root
from envs._perturbation import Perturbation

_WALL = ("walls_mat", "kitchen_background", "living_room")  # what stands behind the table
_FLOOR = ("floorplane",)
_TABLE = ("table_texture", "living_room_table", "desk")
_SURFACES = {
    1: (_WALL,),
    2: (_FLOOR,),
    3: (_WALL, _FLOOR),
    4: (_WALL, _FLOOR, _TABLE),
    5: (_WALL, _FLOOR, _TABLE),
}
_CUBE_FACES = 6
_SHADOWS_FROM = 5


class StyleLight(Perturbation):
    """Lights of another brightness, colour and direction.

    Level L makes them up to 1.25^L darker or 1.1^L brighter, changes each colour by up to 8 L per
    cent and the direction by 8 L degrees; from level 5 they cast shadows.

    Args:
        level: 1 to 5.
        seed: draws the rest.
    """

    def __init__(self, level: int, seed: int) -> None:
        self._level = level
        self._seed = seed

    def on_model(self, inner: Any) -> None:
        """Change the lights."""
        model = inner.sim.model._model
        rng = np.random.RandomState(self._seed)
        gain = rng.choice([1 / 1.25, 1.1]) ** (self._level * rng.uniform(0.6, 1.0))
        colour = 1.0 + 0.08 * self._level * rng.uniform(-1.0, 1.0, 3)
        for name in ("light_ambient", "light_diffuse", "light_specular"):
            values = getattr(model, name)
            values[:] = np.clip(values * gain * colour, 0.0, 1.0)
        angle = np.radians(8.0 * self._level)
        bearing = rng.uniform(0.0, 2 * np.pi)
        tilt = np.tan(angle) * np.array([np.cos(bearing), np.sin(bearing), 0.0])
        directions = model.light_dir / np.linalg.norm(model.light_dir, axis=1, keepdims=True)
        directions = directions + tilt
        model.light_dir[:] = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        model.light_castshadow[:] = self._level >= _SHADOWS_FROM


class StyleBackground(Perturbation):
    """Other textures: of the wall (1), the floor (2), both (3), the table too (4), patterns (5).

    Args:
        level: 1 to 5.
        seed: draws the textures.
    """

    def __init__(self, level: int, seed: int) -> None:
        self._level = level
        self._seed = seed

    def on_model(self, inner: Any) -> None:
        """Write the textures into the model and its renderer."""
        model = inner.sim.model._model
        rng = np.random.RandomState(self._seed)
        for materials in _SURFACES[self._level]:
            for texture in _textures_of(model, materials):
                _write(model, texture, self._image(rng))
                _upload(inner, texture)

    def _image(self, rng: np.random.RandomState) -> NDArray[np.uint8]:
        return _pattern(rng) if self._level == len(_SURFACES) else _library(rng)


def _textures_of(model: Any, materials: tuple[str, ...]) -> list[int]:
    """The textures of those of the materials that the scene uses."""
    found = set()
    for name in materials:
        material = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_MATERIAL, name)
        if material >= 0 and (model.geom_matid == material).any():
            found |= {int(texture) for texture in np.atleast_1d(model.mat_texid[material])}
    return sorted(texture for texture in found if texture >= 0)


def _library(rng: np.random.RandomState) -> NDArray[np.uint8]:
    """One of LIBERO's textures."""
    from PIL import Image

    files = sorted((assets_root() / "textures").glob("*.png"))
    with Image.open(files[rng.randint(len(files))]) as image:
        return np.asarray(image.convert("RGB"))


def _pattern(rng: np.random.RandomState) -> NDArray[np.uint8]:
    """A checkerboard of two random colours."""
    colours = rng.randint(0, 256, (2, 3)).astype(np.uint8)
    cells = 2 * rng.randint(2, 9)
    board = np.indices((cells, cells)).sum(0) % 2
    image: NDArray[np.uint8] = colours[board]
    return image


def _write(model: Any, texture: int, image: NDArray[np.uint8]) -> None:
    """Put an image into a texture, on every face if it is a cube."""
    from PIL import Image

    width, height = int(model.tex_width[texture]), int(model.tex_height[texture])
    channels = int(model.tex_nchannel[texture])
    faces = _CUBE_FACES if height == _CUBE_FACES * width else 1
    small = image.shape[0] < height // faces
    resample = Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR
    face = np.asarray(Image.fromarray(image).resize((width, height // faces), resample))
    opaque = np.full((*face.shape[:2], channels), 255, np.uint8)
    opaque[..., : min(3, channels)] = face[..., : min(3, channels)]
    start = int(model.tex_adr[texture])
    stop = start + width * height * channels
    model.tex_data[start:stop] = np.tile(opaque, (faces, 1, 1)).ravel()


def _upload(inner: Any, texture: int) -> None:
    context = inner.sim._render_context_offscreen
    if context is not None:
        mujoco.mjr_uploadTexture(inner.sim.model._model, context.con, texture)
