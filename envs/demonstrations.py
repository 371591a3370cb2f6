"""Demonstrations by scripted experts, each a function of its key alone.

Noise is injected in the manner of DART (Laskey et al. 2017, arXiv 1703.09327): the disturbed action
is executed, the expert's own action for the state it finds itself in is recorded. The policy so
sees how to come back from where its own errors will lead it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs._grasp import GraspError
from envs._scene import Scene
from envs.experts import Expert

logger = logging.getLogger(__name__)

NOISE_HOLD = 6  # control steps for which a bias lasts: an error of aim, not a tremble
NOISE_WHITE = 0.5  # white noise on top, as a share of the bias
NOISE_ROTATION = 0.15  # rotation drags the grip site along, so a little goes far
_REST = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_SETTLE_STEPS, _SETTLE_ROUNDS = 5, 6
EXPERT_VERSION = 2
"""Counted up whenever the same key gives other actions than before."""


@dataclass(frozen=True, kw_only=True, order=True)
class DemoKey:
    """What identifies an attempt at a demonstration. Everything about it follows from this.

    Attributes:
        suite: name of the task suite.
        task_id: index of the task in the suite.
        index: number of the attempt, from 0.

    >>> str(DemoKey(suite="libero_object", task_id=3, index=17))
    'libero_object/3/demo/17'
    """

    suite: str
    task_id: int
    index: int

    @property
    def seed(self) -> int:
        """Seed of the scene and of the noise, in [2**31, 2**32).

        Episodes of an evaluation have seeds below 2**31 (`envs.rollout.EpisodeKey`) and start from
        LIBERO's fixed initial states, never from a randomised reset: the two cannot meet.
        """
        digest = hashlib.sha256(str(self).encode()).digest()
        return (1 << 31) | (int.from_bytes(digest[:4], "big") >> 1)

    @property
    def task(self) -> tuple[str, int]:
        """Suite and task: attempts that share an environment."""
        return self.suite, self.task_id

    def __str__(self) -> str:
        return f"{self.suite}/{self.task_id}/demo/{self.index}"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One attempt.

    Attributes:
        key: which attempt.
        success: whether the goal was reached within the step limit.
        steps: control steps until the goal was reached, or until the attempt ended.
        noise: noise level of the executed actions.
        reason: why it failed, empty on success.
        task: the instruction.
        cpu_s: CPU seconds.
        recording: a compressed npz with `state` (T, 8) float32, `action` (T, 7) float32, the clean
            labels, `executed` (T, 7) float32, and one (T, H, W, 3) uint8 array per camera; None for
            failures and where nothing is recorded.
    """

    key: DemoKey
    success: bool
    steps: int
    noise: float
    reason: str
    task: str
    cpu_s: float
    recording: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How demonstrations are made.

    Attributes:
        image_size: side of both images in pixels.
        render_profile: see `envs.rendering`.
        noise_levels: standard deviation of the disturbance in action units; attempt k takes level
            k modulo their number.
        tail_steps: control steps recorded after the goal is reached (the release, mostly), so that
            the chunks of actions before the end are whole.
        record: False for states alone, to measure the expert.
    """

    image_size: int = 128
    render_profile: str = "exact"
    noise_levels: tuple[float, ...] = (0.0, 0.2, 0.4)
    tail_steps: int = 8
    record: bool = True

    def noise_of(self, key: DemoKey) -> float:
        """Noise level of an attempt."""
        return self.noise_levels[key.index % len(self.noise_levels)]


class Disturbance:
    """Noise on an expert's actions: a bias that lasts for some steps, and white noise.

    Args:
        level: standard deviation of the bias in action units; 0 disturbs nothing.
        rng: where the noise comes from.
    """

    def __init__(self, level: float, rng: np.random.Generator) -> None:
        self._level = level
        self._rng = rng
        self._bias = np.zeros(6)
        self._steps = 0

    def __call__(self, action: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
        """The action to execute, (7,); the gripper is never disturbed.

        Args:
            action: the expert's action, (7,).
            scale: how much the situation tolerates, 0 to 1.
        """
        if self._steps % NOISE_HOLD == 0:
            self._bias = self._rng.normal(0.0, 1.0, 6)
        self._steps += 1
        noise = self._level * (self._bias + NOISE_WHITE * self._rng.normal(0.0, 1.0, 6))
        noise[3:] *= NOISE_ROTATION
        return np.concatenate([np.clip(action[:6] + scale * noise, -1.0, 1.0), action[6:]])


@dataclass
class _Recorder:
    """Observations and actions of one attempt."""

    observations: list[Mapping[str, Any]] = field(default_factory=list)
    actions: list[NDArray[np.float64]] = field(default_factory=list)
    executed: list[NDArray[np.float64]] = field(default_factory=list)

    def compressed(self) -> bytes:
        arrays: dict[str, NDArray[Any]] = {
            "state": np.stack([o["agent_pos"] for o in self.observations]).astype(np.float32),
            "action": np.stack(self.actions).astype(np.float32),
            "executed": np.stack(self.executed).astype(np.float32),
        }
        for camera in self.observations[0].get("pixels", {}):
            arrays[camera] = np.stack([o["pixels"][camera] for o in self.observations])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


class DemoWorker:
    """Makes attempts at demonstrations, a worker for `envs.pool.run_pool`.

    One environment is kept and reused for as long as the task stays the same.

    Args:
        options: how demonstrations are made.
    """

    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._env: Any = None
        self._task: tuple[str, int] | None = None

    def run(self, item: DemoKey) -> Demo:
        """Makes one attempt.

        Raises:
            envs.experts.UnsupportedTaskError: no skill for one of the task's goals.
        """
        started = time.process_time()
        env = self._environment(item.task)
        observation = _settled(env, item.seed)
        expert = Expert(env)
        noise = self._options.noise_of(item)
        recorder = _Recorder()
        try:
            steps, reason = self._play(env, expert, observation, item, recorder)
        except GraspError as error:
            steps, reason = len(recorder.actions), str(error)
        kept = self._options.record and not reason
        return Demo(
            key=item,
            success=not reason,
            steps=steps,
            noise=noise,
            reason=reason,
            task=env.task_description,
            recording=recorder.compressed() if kept else None,
            cpu_s=time.process_time() - started,
        )

    def close(self) -> None:
        """Frees the environment."""
        if self._env is not None:
            self._env.close()
        self._env = self._task = None

    def _play(
        self,
        env: Any,
        expert: Expert,
        observation: Mapping[str, Any],
        key: DemoKey,
        recorder: _Recorder,
    ) -> tuple[int, str]:
        """Returns the steps to the goal and the reason of a failure."""
        disturb = Disturbance(self._options.noise_of(key), np.random.default_rng(key.seed))
        solved: int | None = None
        while solved is None or len(recorder.actions) < solved + self._options.tail_steps:
            action = expert.act()
            executed = disturb(action, expert.noise_scale if solved is None else 0.0)
            recorder.observations.append(observation)
            recorder.actions.append(action)
            recorder.executed.append(executed)
            observation, _, terminated, truncated, _ = env.step(executed)
            if terminated and solved is None:
                solved = len(recorder.actions)
            if truncated and solved is None:
                return len(recorder.actions), f"step limit reached while in {expert.phase}"
        return solved, ""

    def _environment(self, task: tuple[str, int]) -> Any:
        if self._task != task:
            from envs.libero import LiberoEnv

            self.close()
            suite, task_id = task
            self._env = LiberoEnv(
                suite,
                task_id,
                image_size=self._options.image_size,
                render_profile=self._options.render_profile,
                render=self._options.record,
            )
            self._task = task
        return self._env


def _settled(env: Any, seed: int) -> Mapping[str, Any]:
    """Resets to a random scene and waits until its objects rest, as in the fixed initial states."""
    observation, _ = env.reset(seed=seed)
    scene = Scene(env.inner)
    for _ in range(_SETTLE_ROUNDS):
        if not scene.is_moving():
            break
        observation = env.step_chunk(np.tile(_REST, (_SETTLE_STEPS, 1)))[0]
    return dict(observation)


def read_recording(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of `Demo.recording`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def supported_tasks(suite: str, task_ids: Sequence[int] | None = None) -> tuple[int, ...]:
    """Indices of the tasks of a suite that the scripted expert covers, in order.

    Args:
        suite: name of the task suite.
        task_ids: choose among these only.

    Raises:
        UnknownNameError: no such suite or task.
        UnsupportedTaskError: a task was named and is not covered.
    """
    from envs._goals import UnsupportedTaskError, task_goals
    from envs.tasks import get_task, list_tasks

    if task_ids is not None:
        for task_id in task_ids:
            task_goals(get_task(suite, task_id))
        return tuple(task_ids)
    covered = []
    for task in list_tasks(suite):
        try:
            task_goals(task)
        except UnsupportedTaskError as error:
            logger.debug("%s/%d: %s", suite, task.task_id, error)
        else:
            covered.append(task.task_id)
    return tuple(covered)
