"""One compiled LIBERO scene, reset again and again as if it were built afresh each time.

Stock LIBERO compiles the model anew for every episode (about 4 s with rendering); resetting the
compiled one takes a tenth of a second. Two things survive in it that a fresh build would not have,
and both are undone here, so that the states are bitwise those of a fresh stock environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs._culling import sees_only_its_view
from envs._libero_setup import gl_error, import_libero
from envs._memory import give_back
from envs._perturbation import UNPERTURBED, Perturbation
from envs.rendering import RenderProfile, set_flags, simplify_model
from envs.tasks import Task

_RESET_TRIES = 20  # object placement is rejection sampling and fails now and then
_Poses = tuple[NDArray[np.float64], NDArray[np.float64]]
_PERTURBED = (
    *("cam_pos", "cam_quat"),
    *("light_pos", "light_dir", "light_ambient", "light_diffuse", "light_specular"),
    "light_castshadow",
)
"""What perturbations change in a compiled model, and what is put back between two of them."""


class Scene:
    """A robosuite environment and the body poses that its model was compiled with.

    Args:
        control_env: LIBERO's `ControlEnv`.
        compiled_poses: `body_pos` and `body_quat` before anything was placed.
    """

    def __init__(self, control_env: Any, compiled_poses: _Poses, task: Task) -> None:
        self._control_env = control_env
        self._compiled_poses = compiled_poses
        self._task = task
        model = self.inner.sim.model._model
        self._pristine = {name: getattr(model, name).copy() for name in _PERTURBED}
        self._posture = np.array(self.inner.robots[0].init_qpos)

    @property
    def inner(self) -> Any:
        """The robosuite environment."""
        return self._control_env.env

    def perturb(self, task: Task, perturbation: Perturbation) -> None:
        """Make the compiled scene that of another variant of its task."""
        self._task = task
        model = self.inner.sim.model._model
        for name, values in self._pristine.items():
            getattr(model, name)[:] = values
        self.inner.robots[0].init_qpos = self._posture
        perturbation.on_model(self.inner)

    def redraw(self, seed: int) -> None:
        """Resets the simulation and draws the scene from `seed`.

        LIBERO's own retry loop swallows every exception, Ctrl-C included, and never ends; this one
        is bounded.

        Raises:
            RuntimeError: no collision-free placement was found.
        """
        from robosuite.utils.errors import RandomizationError

        with numpy_seed(seed):
            for _ in range(_RESET_TRIES):
                # Placement reads site positions, so fixtures must stand where the model has them,
                # not where the episode before has put them.
                model = self.inner.sim.model._model
                model.body_pos[:], model.body_quat[:] = self._compiled_poses
                try:
                    self.inner.reset()
                    return
                except RandomizationError:
                    continue
        raise RuntimeError(
            f"{self._task.suite} task {self._task.task_id}: no collision-free placement in "
            f"{_RESET_TRIES} draws from seed {seed}; try another seed."
        )

    def close(self) -> None:
        """Frees the simulation."""
        self._control_env.close()
        give_back()


def build_scene(
    task: Task,
    profile: RenderProfile,
    cameras: Sequence[str],
    image_size: int,
    perturbation: Perturbation = UNPERTURBED,
) -> Scene:
    """Compiles the scene of a task.

    Args:
        task: which one.
        profile: renderer settings.
        cameras: MuJoCo camera names; none means no renderer at all.
        image_size: height and width in pixels.
        perturbation: what a variant of the task changes.

    Raises:
        RuntimeError: no headless OpenGL; the message names the Debian packages.
    """
    wrapper = import_libero().env_wrapper.ControlEnv
    visible = bool(cameras)
    compiling = _compiling(profile if visible else None, image_size)
    try:
        # The constructor draws a scene of its own.
        with numpy_seed(0), compiling as poses, perturbation.construction() as options:
            env = wrapper(
                bddl_file_name=str(task.bddl_file),
                has_offscreen_renderer=visible,
                use_camera_obs=visible,
                camera_names=list(cameras),
                camera_heights=image_size,
                camera_widths=image_size,
                hard_reset=False,
                ignore_done=True,
                **options,
            )
    except (ImportError, AttributeError) as error:
        raise gl_error(error) from error
    # Stock LIBERO adds its drawer and knob samplers again at each model load, of which a fresh
    # environment has had two at its first reset; the draws that follow depend on their number.
    env.env.object_property_initializers *= 2
    if visible:
        set_flags(env.env.sim._render_context_offscreen, profile)
    for camera in cameras:
        observable = env.env._observables[f"{camera}_image"]
        observable._sensor = sees_only_its_view(observable._sensor, env.env.sim, camera)
    scene = Scene(env, poses[-1], task)
    scene.perturb(task, perturbation)
    give_back()
    return scene


@contextmanager
def _compiling(profile: RenderProfile | None, image_size: int) -> Iterator[list[_Poses]]:
    """Compiles robosuite's models inside the block; yields their body poses before placement.

    MuJoCo's own function for it keeps its last parsed scene, with all meshes, for ever. Whatever
    decides how the model is drawn is settled before robosuite makes a render context of it, so that
    one is made and not two.

    Args:
        profile: None for a model that is not drawn.
        image_size: of the largest image, so that the frame buffer has no more.
    """
    from robosuite.utils.binding_utils import MjSim

    poses: list[_Poses] = []

    def compile_model(xml: str) -> Any:
        model = mujoco.MjSpec.from_string(xml).compile()
        poses.append((model.body_pos.copy(), model.body_quat.copy()))
        if profile is not None:
            simplify_model(model, profile)
            model.vis.global_.offwidth = model.vis.global_.offheight = image_size
        return MjSim(model)

    with mock.patch.object(MjSim, "from_xml_string", compile_model):
        yield poses


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """LIBERO draws from numpy's global generator; the caller's state is put back afterwards."""
    state = np.random.get_state()  # noqa: NPY002 (it is LIBERO's generator)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
