"""LIBERO as a gymnasium environment: deterministic, offline, and rendered only when looked at.

Protocol (OpenVLA, openpi): ten settling steps with the gripper open, then at most
220 / 280 / 300 / 520 / 400 control steps at 20 Hz; success is the task's goal predicate, checked
after every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs._fast_sim import FastStepper
from envs._libero_scene import Scene, build_scene
from envs._suite_names import SETTLE_STEPS
from envs.errors import UnknownNameError, nearest
from envs.rendering import get_profile
from envs.spec import EnvSpec, ImageSpec
from envs.suites import DEFAULT_VARIANTS, ResolvedTask, VariantOptions, resolve
from envs.tasks import SUITES, Task, get_task, list_tasks, load_init_states

__all__ = ["SUITES", "LiberoEnv", "Task", "get_task", "list_tasks", "load_init_states"]

CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
"""Observation key (lerobot's LIBERO naming) -> MuJoCo camera."""

SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
ACTION_DIM = 7

Observation = dict[str, Any]
Transition = tuple[Observation, float, bool, bool, dict[str, Any]]


class LiberoEnv(gymnasium.Env[Observation, NDArray[Any]]):
    """One LIBERO task, or one of its variants (`envs.libero_plus`, `envs.libero_style`).

    Observation: `{"pixels": {"image": (H, W, 3) uint8, "image2": ...}, "agent_pos": (8,) float32}`,
    the layout of lerobot's LIBERO environment; images are rotated by 180 degrees. Action (7,) in
    [-1, 1], see `envs.spec.EnvSpec`. The same (task, initial state, seed, actions) gives bitwise
    the same states in any process.

    Args:
        suite: one of `SUITES`; behind "libero_plus/" or "libero_style/" its variants.
        task_id: index within the suite.
        image_size: height and width of both images in pixels.
        render_profile: "exact" (stock LIBERO's images) or "fast", see `envs.rendering`.
        cameras: keys of `CAMERAS` to show.
        render: False for states alone; the observation then has no pixels.
        variants: how variants are run; of no meaning for plain LIBERO.
        max_steps: control steps until an episode is over; None: the benchmark's own limit.
        variant: run this instead of what suite and index name.

    Raises:
        LiberoPlusError: a LIBERO-Plus task that needs what is not on this machine.
        UnknownNameError: unknown suite, task, camera or render profile.
        RuntimeError: no headless OpenGL; the message names the Debian packages.
        ValueError: `max_steps` is below 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's form)
    render_mode = "rgb_array"

    def __init__(
        self,
        suite: str,
        task_id: int,
        *,
        image_size: int = 128,
        render_profile: str = "exact",
        cameras: Sequence[str] = ("image", "image2"),
        render: bool = True,
        variants: VariantOptions = DEFAULT_VARIANTS,
        max_steps: int | None = None,
        variant: ResolvedTask | None = None,
    ) -> None:
        for camera in cameras:
            if camera not in CAMERAS:
                raise UnknownNameError(f"unknown camera {camera!r}. {nearest(camera, CAMERAS)}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps={max_steps}: expected at least 1.")
        resolved = variant or resolve(suite, task_id, variants)
        self.task, self._perturbation = resolved.task, resolved.perturbation
        self._scene_key, self._variants = resolved.scene_key, variants
        self._max_steps = max_steps
        self._profile = get_profile(render_profile)
        self._cameras = tuple(cameras) if render else ()
        self._image_size = image_size
        self._init_states = load_init_states(self.task)
        self._scene: Scene | None = build_scene(
            self.task,
            self._profile,
            [CAMERAS[key] for key in self._cameras],
            image_size,
            self._perturbation,
        )
        self._stepper: FastStepper | None = None
        self._seed = self._steps = 0
        self._looked = False
        spec = _env_spec(self._cameras, image_size, self._profile.name)
        self.spec = spec  # type: ignore[assignment]  # gymnasium's is how it was registered
        self.observation_space = _observation_space(spec)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    @property
    def task_description(self) -> str:
        """The instruction."""
        return self.task.language

    @property
    def _max_episode_steps(self) -> int:
        return self._max_steps or self.task.max_steps

    @property
    def num_init_states(self) -> int:
        """How many fixed initial states the task has."""
        return len(self._init_states)

    @property
    def inner(self) -> Any:
        """The robosuite environment, for scripted experts."""
        return self._open_scene.inner

    @property
    def sim(self) -> Any:
        """robosuite's `MjSim`, for scripted experts."""
        return self.inner.sim

    def become(self, suite: str, task_id: int) -> bool:
        """Turn into another variant of the same scene, without building it again.

        States and images are then bitwise those of an environment built for that variant. Call
        `reset` next.

        Returns:
            False, and nothing is changed, if that task needs a scene of its own.
        """
        return self.turn_into(resolve(suite, task_id, self._variants))

    def turn_into(self, resolved: ResolvedTask) -> bool:
        """As `become`, for a variant that has no suite and index."""
        if resolved.scene_key != self._scene_key:
            return False
        self.task, self._perturbation = resolved.task, resolved.perturbation
        self._init_states = load_init_states(self.task)
        self._make_current()
        self._open_scene.perturb(self.task, self._perturbation)
        self._stepper = None
        return True

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode and lets the scene settle.

        Args:
            seed: decides everything that LIBERO draws at reset: the poses of fixtures always, and
                those of all objects when no initial state is given. None draws a fresh one.
            options: `{"init_state": k}` starts from the k-th fixed initial state, the standard
                evaluation protocol; without it the scene is drawn at random.

        Raises:
            ValueError: the initial state does not exist.
        """
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        init_state = (options or {}).get("init_state")
        if init_state is not None and not 0 <= init_state < self.num_init_states:
            raise ValueError(
                f"{self.task.suite} task {self.task.task_id} has initial states 0 to "
                f"{self.num_init_states - 1}, but {init_state} was asked for."
            )
        self._make_current()
        self._open_scene.redraw(seed)
        if init_state is None:
            self._perturbation.on_draw(self.inner)
        # Stock robosuite carries the gripper's last command over into the next episode.
        gripper = self.inner.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)
        self._stepper = FastStepper(self.inner, self._camera_observables())
        if init_state is not None:
            state = self._init_states[init_state]
            self.set_sim_state(self._perturbation.on_init_state(state, self.inner))
        self._seed, self._steps = seed, 0
        for k in range(SETTLE_STEPS):
            self._advance(SETTLE_ACTION, render=k == SETTLE_STEPS - 1)
        return self.observe(), self._info(success=False)

    def step(self, action: NDArray[np.float64]) -> Transition:
        """One control step; both views are rendered."""
        return self.step_chunk(np.asarray(action, dtype=np.float64)[None])

    def step_chunk(self, actions: NDArray[np.float64]) -> Transition:
        """Executes up to k actions and stops at success or at the step limit.

        Only the last executed step is rendered: a policy that acts in chunks looks no oftener.

        Args:
            actions: (k, 7); values outside [-1, 1] are clipped.

        Raises:
            ValueError: wrong shape, or an action that is not finite.
        """
        actions = _checked(actions)
        success = False
        for k, action in enumerate(actions):
            last = k == len(actions) - 1 or self._steps == self._max_episode_steps - 1
            self._advance(action, render=last)
            self._steps += 1
            success = bool(self.inner._check_success())
            if success or self._steps >= self._max_episode_steps:
                break
        truncated = not success and self._steps >= self._max_episode_steps
        return self.observe(), float(success), success, truncated, self._info(success=success)

    def observe(self) -> Observation:
        """The observation of the last step; renders now if that step was not rendered."""
        assert self._stepper is not None, "call reset() first"
        if self._cameras and not self._looked:
            self._make_current()
            self._stepper.refresh(render=True)
            self._looked = True
        values = {name: obs.obs for name, obs in self.inner._observables.items() if obs._enabled}
        state = _proprioception(values)
        if not self._cameras:
            return {"agent_pos": state}
        names = dict(zip(self._cameras, self._camera_observables(), strict=True))
        observables = self.inner._observables
        pixels = {
            key: np.ascontiguousarray(self._shown(key, observables[name].obs)[::-1, ::-1])
            for key, name in names.items()
        }
        return {"pixels": pixels, "agent_pos": state}

    def render(self) -> NDArray[np.uint8]:
        """The third-person view of the last observation, (H, W, 3)."""
        image: NDArray[np.uint8] = self.observe()["pixels"][self._cameras[0]]
        return image

    def sim_state(self) -> NDArray[np.float64]:
        """Time, qpos and qvel as one vector, the format of LIBERO's initial states."""
        state: NDArray[np.float64] = self.sim.get_state().flatten()
        return state

    def set_sim_state(self, state: NDArray[np.float64]) -> None:
        """Puts the simulation into a state written by `sim_state`."""
        assert self._stepper is not None, "call reset() first"
        self.sim.set_state_from_flattened(state)
        self.sim.forward()
        self.inner._check_success()
        self.inner._post_process()
        self._stepper.refresh(render=False)
        self._looked = False

    def close(self) -> None:
        """Frees the simulation and its OpenGL context; further calls do nothing."""
        if self._scene is not None:
            self._stepper = None
            self._scene.close()
            self._scene = None

    def _advance(self, action: NDArray[np.float64], *, render: bool) -> None:
        assert self._stepper is not None, "call reset() first"
        looked = render and bool(self._cameras)
        if looked:
            self._make_current()
        self._stepper.step(action, render=looked)
        self._looked = looked

    def _shown(self, camera: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image with what the variant does to it; the same however often it is asked for."""
        source = np.random.SeedSequence([self._seed, self._steps])
        rng = np.random.RandomState(np.random.MT19937(source))
        return self._perturbation.on_image(camera, image, rng)

    def _info(self, *, success: bool) -> dict[str, Any]:
        return {"is_success": success, "steps": self._steps}

    def _camera_observables(self) -> tuple[str, ...]:
        return tuple(f"{CAMERAS[key]}_image" for key in self._cameras)

    def _make_current(self) -> None:
        if self._cameras:  # another environment of this process may have drawn last
            self.sim._render_context_offscreen.gl_ctx.make_current()

    @property
    def _open_scene(self) -> Scene:
        if self._scene is None:
            raise RuntimeError("the environment is closed: build a new LiberoEnv.")
        return self._scene


def _env_spec(cameras: Sequence[str], size: int, profile: str) -> EnvSpec:
    images = {key: ImageSpec(height=size, width=size) for key in cameras}
    return EnvSpec(images=images, render_profile=profile)


def _observation_space(spec: EnvSpec) -> gymnasium.spaces.Dict:
    boxes: dict[str, gymnasium.Space[Any]] = {
        "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (len(spec.state_names),), np.float32)
    }
    if spec.images:
        boxes["pixels"] = gymnasium.spaces.Dict(
            {
                key: gymnasium.spaces.Box(0, 255, (image.height, image.width, 3), np.uint8)
                for key, image in spec.images.items()
            }
        )
    return gymnasium.spaces.Dict(boxes)


def _proprioception(values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
    """End-effector position (m), axis-angle (rad) and finger positions (m): (8,)."""
    from robosuite.utils.transform_utils import quat2axisangle

    parts = (
        values["robot0_eef_pos"],
        quat2axisangle(np.array(values["robot0_eef_quat"])),
        values["robot0_gripper_qpos"],
    )
    state: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
    return state


def _checked(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
        raise ValueError(f"actions must have shape (k, {ACTION_DIM}), got {actions.shape}.")
    if not np.isfinite(actions).all():
        raise ValueError(f"action is not finite: {actions.tolist()}.")
    return np.clip(actions, -1.0, 1.0)
