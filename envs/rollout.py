"""Episodes of a policy in a simulator, each the same wherever and whenever it runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from envs._video import encode_mp4, side_by_side
from envs.spec import EnvSpec, ImageSpec
from envs.suites import DEFAULT_VARIANTS, VariantOptions

Videos = Literal["failures", "all", "none"]
Observation = Mapping[str, Any]
"""What a policy sees:

    "pixels": {"image": (H, W, 3) uint8, "image2": ...}  views, upright
    "agent_pos": (8,) float32                            proprioception, see `envs.spec.EnvSpec`
    "task": str                                          the instruction
    "seed": int                                          for policies that sample; a function of the
                                                         episode and the step, of nothing else
"""


@dataclass(frozen=True, kw_only=True, order=True)
class EpisodeKey:
    """What identifies an episode. Its seed depends on nothing else.

    Attributes:
        suite: name of the task suite.
        task_id: index of the task in the suite.
        init_state: index of the fixed initial state.
        trial: repetition of the same task and initial state.

    >>> str(EpisodeKey(suite="libero_object", task_id=3, init_state=17))
    'libero_object/3/17/0'
    """

    suite: str
    task_id: int
    init_state: int
    trial: int = 0

    @property
    def seed(self) -> int:
        """31 bits of the sha256 of the key."""
        digest = hashlib.sha256(str(self).encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    @property
    def task(self) -> tuple[str, int]:
        """Suite and task: episodes that share an environment."""
        return self.suite, self.task_id

    def __str__(self) -> str:
        return f"{self.suite}/{self.task_id}/{self.init_state}/{self.trial}"


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What happened in one episode.

    Attributes:
        key: which episode.
        seed: the one it ran with, `key.seed`.
        success: whether the goal was reached within the step limit.
        steps: control steps executed.
        wall_s: wall seconds, inference included, construction of the environment not.
        cpu_s: CPU seconds of this process in that time.
        video: mp4 of the frames the policy looked at, views side by side; None if not kept.
        video_error: why there is no video although it was wanted; the episode counts all the same.
    """

    key: EpisodeKey
    seed: int
    success: bool
    steps: int
    wall_s: float
    cpu_s: float
    video: bytes | None = None
    video_error: str | None = None


class Policy(Protocol):
    """A policy is stateless between calls: what it answers depends on the observations alone."""

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float64]]:
        """Return one chunk of actions (chunk, 7) per observation."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How episodes are run.

    Attributes:
        execute_steps: actions of a chunk that are executed before the policy looks again.
        image_size: side of both images in pixels.
        render_profile: see `envs.rendering`.
        videos: which episodes keep a video.
        variants: how variants of LIBERO's tasks are run.
        max_steps: control steps until an episode has failed; None: the benchmark's own limit.
    """

    execute_steps: int = 4
    image_size: int = 128
    render_profile: str = "exact"
    videos: Videos = "failures"
    variants: VariantOptions = DEFAULT_VARIANTS
    max_steps: int | None = None

    @property
    def env_spec(self) -> EnvSpec:
        """What the environment will show and take, known without building one."""
        image = ImageSpec(height=self.image_size, width=self.image_size)
        images = {"image": image, "image2": image}
        return EnvSpec(images=images, render_profile=self.render_profile)


def make_libero(task: tuple[str, int], config: RolloutConfig) -> Any:
    """Build the LIBERO environment of a task."""
    from envs.libero import LiberoEnv

    suite, task_id = task
    return LiberoEnv(
        suite,
        task_id,
        image_size=config.image_size,
        render_profile=config.render_profile,
        variants=config.variants,
        max_steps=config.max_steps,
    )


class EpisodeWorker:
    """Runs episodes one after the other; a worker for `envs.pool.run_pool`.

    Keeps one environment for the task it works on: hand it the episodes of a task in a row.

    Args:
        policy: in this process, or a `envs.policy_server.RemotePolicy`.
        config: how to run.
        make_env: builds an environment with the interface of `envs.libero.LiberoEnv`.
    """

    def __init__(
        self,
        policy: Policy,
        config: RolloutConfig,
        make_env: Callable[[tuple[str, int], RolloutConfig], Any] = make_libero,
    ) -> None:
        self._policy = policy
        self._config = config
        self._make_env = make_env
        self._env: Any = None
        self._task: tuple[str, int] | None = None

    def prepare(self, item: EpisodeKey) -> None:
        """Build the environment of an episode that comes next."""
        self._env_of(item.task)

    def run(self, item: EpisodeKey) -> EpisodeResult:
        """Run one episode from its fixed initial state to success or the step limit.

        Raises:
            ValueError: the policy answered with something that is no chunk of finite actions.
        """
        env = self._env_of(item.task)
        wall, cpu = time.perf_counter(), time.process_time()
        film = _Film(self._config.videos)
        success, steps = self._play(env, item, film)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        looks_per_s = Fraction(env.spec.control_hz, self._config.execute_steps)
        video, video_error = film.develop(success, looks_per_s)
        return EpisodeResult(
            key=item,
            seed=item.seed,
            success=success,
            steps=steps,
            wall_s=wall,
            cpu_s=cpu,
            video=video,
            video_error=video_error,
        )

    def close(self) -> None:
        """Free the environment."""
        if self._env is not None:
            self._env.close()
        self._env = self._task = None

    def _play(self, env: Any, key: EpisodeKey, film: _Film) -> tuple[bool, int]:
        observation, info = env.reset(seed=key.seed, options={"init_state": key.init_state})
        film.add(observation)
        done = False
        while not done:
            seen = {**observation, "task": env.task_description, "seed": _seed(key, info["steps"])}
            (chunk,) = self._policy.infer([seen])
            actions = _checked(chunk, self._config.execute_steps, len(env.spec.action_names))
            observation, _, terminated, truncated, info = env.step_chunk(actions)
            film.add(observation)
            done = terminated or truncated
        return bool(info["is_success"]), int(info["steps"])

    def _env_of(self, task: tuple[str, int]) -> Any:
        if task != self._task and not self._switched(task):
            self.close()
            self._env = self._make_env(task, self._config)
            self._task = task
            if difference := self._config.env_spec.difference(self._env.spec):
                raise ValueError(
                    "the environment is not what the policy was checked against (expected "
                    f"against built): {'; '.join(difference)}."
                )
        return self._env

    def _switched(self, task: tuple[str, int]) -> bool:
        """Whether the present environment could turn into that of another task."""
        become = getattr(self._env, "become", None)
        if become is None or not become(*task):
            return False
        self._task = task
        return True


@dataclass
class _Film:
    """The frames the policy looked at, as far as anybody may want them."""

    videos: Videos
    frames: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, observation: Observation) -> None:
        if self.videos != "none":
            self.frames.append(side_by_side(list(observation["pixels"].values())))

    def develop(self, success: bool, fps: Fraction) -> tuple[bytes | None, str | None]:
        """The video, if it is wanted, or why there is none."""
        wanted = self.videos == "all" or (self.videos == "failures" and not success)
        if not wanted:
            return None, None
        try:
            return encode_mp4(self.frames, fps), None
        except Exception as error:  # the episode was measured, whatever the codec does
            return None, f"{type(error).__name__}: {error}"


def _seed(key: EpisodeKey, step: int) -> int:
    return int(np.random.SeedSequence([key.seed, step]).generate_state(1)[0]) >> 1


def _checked(chunk: NDArray[np.float64], steps: int, action_dim: int) -> NDArray[np.float64]:
    """The part of the chunk to execute."""
    chunk = np.asarray(chunk, dtype=np.float64)
    if chunk.ndim != 2 or chunk.shape[1] != action_dim or len(chunk) < steps:
        raise ValueError(
            f"the policy must answer with at least execute_steps={steps} actions, "
            f"(>= {steps}, {action_dim}); got {chunk.shape}."
        )
    if not np.isfinite(chunk[:steps]).all():
        raise ValueError(f"the policy's actions are not finite: {chunk[:steps].tolist()}.")
    return chunk[:steps]
