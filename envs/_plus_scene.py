"""What each kind of LIBERO-Plus variant does to a LIBERO scene."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from envs._perturbation import Perturbation
from envs._plus_camera import moved_camera
from envs._plus_names import CameraView
from envs._plus_noise import CORRUPTIONS, SEVERITIES
from envs._plus_source import (
    AddedObject,
    SceneChange,
    corruption_table,
    robot_joints,
    style_textures,
)

_PROBLEM = re.compile(r"\(problem\s+(?P<name>[^\s()]+)\s*\)")
_THIRD_PERSON = "agentview"


class MovedCamera(Perturbation):
    """The third-person camera stands elsewhere."""

    def __init__(self, view: CameraView) -> None:
        self._view = view

    def on_model(self, inner: Any) -> None:
        """Move it."""
        model = inner.sim.model._model
        camera = inner.sim.model.camera_name2id(_THIRD_PERSON)
        pose = model.cam_pos[camera].copy(), model.cam_quat[camera].copy()
        model.cam_pos[camera], model.cam_quat[camera] = moved_camera(pose, self._view)


class RobotPosture(Perturbation):
    """The robot starts in another posture.

    Args:
        definitions: see `envs._plus_package.PlusFiles`.
        number: of the posture, from 1.
        published_compat: as the published benchmark runs: it writes the fixed initial state over
            the posture. The controller still aims at where the hand was, and draws the arm a part
            of the way back while the scene settles.
    """

    def __init__(self, definitions: Path, number: int, *, published_compat: bool) -> None:
        self._definitions = definitions
        self._number = number
        self._lost = published_compat
        self._joints: NDArray[np.float64] = np.zeros(0)

    def on_model(self, inner: Any) -> None:
        """Make it the posture that a reset goes to."""
        robot = inner.robots[0]
        mount = re.sub(r"(?<=[a-z])([A-Z])", r"_\1", type(robot.robot_model).__name__).lower()
        self._joints = np.array(robot_joints(self._definitions, mount, self._number))
        robot.init_qpos = self._joints

    def on_init_state(self, state: NDArray[np.float64], inner: Any) -> NDArray[np.float64]:
        """Write it into the initial state, which holds LIBERO's own."""
        if self._lost:
            return state
        state = state.copy()
        state[1 + np.array(inner.robots[0]._ref_joint_pos_indexes)] = self._joints
        return state


class SensorNoise(Perturbation):
    """The third-person image is corrupted.

    Args:
        definitions: see `envs._plus_package.PlusFiles`.
        number: kind and severity, from 1.
    """

    def __init__(self, definitions: Path, number: int) -> None:
        kind, severity = divmod(number - 1, SEVERITIES)
        name, self._corrupt = CORRUPTIONS[kind]
        self._parameters = corruption_table(definitions, name)[severity]

    def on_image(
        self, camera: str, image: NDArray[np.uint8], rng: np.random.RandomState
    ) -> NDArray[np.uint8]:
        """Corrupt the third-person view; the wrist's stays clear, as in the benchmark."""
        return self._corrupt(image, self._parameters, rng) if camera == "image" else image


class ChangedScene(Perturbation):
    """Another arena: its lights, or the textures of table, floor and wall.

    Args:
        definitions: see `envs._plus_package.PlusFiles`.
        change: what is different from LIBERO's.
        assets: the folder that has the files it names.
    """

    def __init__(self, definitions: Path, change: SceneChange, assets: Path) -> None:
        self._definitions = definitions
        self._change = change
        self._assets = assets

    @contextmanager
    def construction(self) -> Iterator[dict[str, Any]]:
        """Hand the arena to LIBERO's problem class, with the benchmark's names of textures."""
        from libero.libero.envs.arenas.style import STYLE_MAPPING

        change = self._change
        styles = {"floor_style": change.floor_style, "wall_style": change.wall_style}
        options: dict[str, Any] = {"scene_properties": {k: v for k, v in styles.items() if v}}
        if change.scene_xml:
            options["scene_xml"] = change.scene_xml
        with ExitStack() as stack:
            stack.enter_context(assets_from(self._assets))
            for kind, names in style_textures(self._definitions).items():
                stack.enter_context(mock.patch.dict(STYLE_MAPPING[kind], names))
            yield {name: value for name, value in options.items() if value}


class AddedObjects(Perturbation):
    """Objects that LIBERO does not have.

    Args:
        objects: those that the definition names.
        assets: the benchmark's assets folder.
    """

    def __init__(self, objects: tuple[AddedObject, ...], assets: Path) -> None:
        self._objects = objects
        self._assets = assets

    @contextmanager
    def construction(self) -> Iterator[dict[str, Any]]:
        """Let LIBERO find their classes."""
        from libero.libero.envs.base_object import OBJECTS_DICT

        classes = {o.category: _object_class(o, self._assets) for o in self._objects}
        with assets_from(self._assets), mock.patch.dict(OBJECTS_DICT, classes):
            yield {}


@contextmanager
def assets_from(folder: Path) -> Iterator[None]:
    """LIBERO takes arenas and objects from this folder while the block lasts."""
    import libero.libero

    with mock.patch.object(libero.libero, "_assets_path_cache", str(folder)):
        yield


def problem_of(definition: Path) -> str:
    """The problem class that a definition file names, in lower case."""
    match = _PROBLEM.search(definition.read_text(encoding="utf-8"))
    assert match is not None, definition
    return match["name"].lower()


def with_problem(definition: Path, problem: str) -> Path:
    """Return a copy of a definition file that names another problem class."""
    text = _PROBLEM.sub(f"(problem {problem})", definition.read_text(encoding="utf-8"), count=1)
    copy = scratch() / definition.name
    copy.write_text(text, encoding="utf-8")
    return copy


@functools.cache
def scratch() -> Path:
    """A folder of this process for rewritten definitions; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="vla_opt_variants_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _object_class(spec: AddedObject, assets: Path) -> type:
    """A robosuite object, as LIBERO's scenes use them."""
    import xml.etree.ElementTree as ElementTree

    from robosuite.models.objects import MujocoXMLObject

    class PlusObject(MujocoXMLObject):  # type: ignore[misc]
        def __init__(self, name: str = spec.category, obj_name: str = spec.category) -> None:
            super().__init__(
                str(assets / spec.xml),
                name=name,
                joints=[{"type": "free", "damping": "0.0005"}],
                obj_type="all",
                duplicate_collision_geoms=False,
            )
            self.category_name = obj_name
            self.object_properties: dict[str, Any] = {"vis_site_names": {}}
            self.rotation = spec.rotation
            self.rotation_axis = spec.rotation_axis

        def _get_object_subtree(self) -> Any:
            """Some of the models have their body one level higher than robosuite looks for it."""
            body = self.worldbody.find("./body[@name='object']")
            if body is not None:
                self.worldbody.remove(body)
                ElementTree.SubElement(self.worldbody, "body").append(body)
            return super()._get_object_subtree()

    return PlusObject
