"""Demonstrations by scripted experts, each a function of its key alone."""

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

from envs._disturbance import Disturbance
from envs._diversity import Diversity, Manner
from envs._grasp import GraspError
from envs._lapse import Lapse
from envs._scene import Scene
from envs.experts import Expert

logger = logging.getLogger(__name__)

_REST = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
_SETTLE_STEPS, _SETTLE_ROUNDS, _REDRAWS = 5, 6, 10
EXPERT_VERSION = 2
"""Counted up whenever a key of LIBERO-Object or LIBERO-Spatial gives other actions than before."""
SUITE_VERSIONS = {"libero_goal": 1, "libero_10": 1, "libero_90": 1}
"""The same for a key of these suites. Data sets from before there were such counts have none."""


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
        manner: what was not as usual (`Diversity`), empty if nothing.
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
    manner: str = ""
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
        diversity: what else varies between attempts.
    """

    image_size: int = 128
    render_profile: str = "exact"
    noise_levels: tuple[float, ...] = (0.0, 0.2, 0.4)
    tail_steps: int = 8
    record: bool = True
    diversity: Diversity = field(default_factory=Diversity)

    def noise_of(self, key: DemoKey) -> float:
        """Noise level of an attempt."""
        return self.noise_levels[key.index % len(self.noise_levels)]

    def manner_of(self, key: DemoKey) -> Manner:
        """How an attempt is made beside its noise."""
        return self.diversity.manner(key.index // len(self.noise_levels), key.seed)


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

    def run(self, item: DemoKey) -> Demo:
        """Makes one attempt.

        Raises:
            envs.experts.UnsupportedTaskError: no skill for one of the task's goals.
        """
        started = time.process_time()
        manner = self._options.manner_of(item)
        env = self._environment(item, manner)
        observation = _settled(env, item.seed)
        expert = Expert(env, speed=manner.speed, taste=manner.taste)
        noise = self._options.noise_of(item)
        recorder = _Recorder()
        try:
            steps, reason = self._play(env, expert, observation, item, recorder, manner.lapse())
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
            manner=str(manner),
            recording=recorder.compressed() if kept else None,
            cpu_s=time.process_time() - started,
        )

    def close(self) -> None:
        """Frees the environment."""
        if self._env is not None:
            self._env.close()
        self._env = None

    def _play(
        self,
        env: Any,
        expert: Expert,
        observation: Mapping[str, Any],
        key: DemoKey,
        recorder: _Recorder,
        lapse: Lapse | None,
    ) -> tuple[int, str]:
        """Returns the steps to the goal and the reason of a failure."""
        disturb = Disturbance(self._options.noise_of(key), np.random.default_rng(key.seed))
        solved: int | None = None
        while solved is None or len(recorder.actions) < solved + self._options.tail_steps:
            action = expert.act()
            executed = disturb(action, expert.noise_scale if solved is None else 0.0)
            if lapse is not None and solved is None:
                executed = lapse(executed, expert.phase)
            recorder.observations.append(observation)
            recorder.actions.append(action)
            recorder.executed.append(executed)
            observation, _, terminated, truncated, _ = env.step(executed)
            if terminated and solved is None:
                solved = len(recorder.actions)
            if truncated and solved is None:
                return len(recorder.actions), f"step limit reached while in {expert.phase}"
        return solved, ""

    def _environment(self, key: DemoKey, manner: Manner) -> Any:
        from envs._training_variant import training_variant
        from envs.libero import LiberoEnv
        from envs.tasks import get_task

        variant = training_variant(manner.perturbation, manner.level, key.seed, get_task(*key.task))
        if self._env is None or not self._env.turn_into(variant):
            self.close()
            self._env = LiberoEnv(
                *key.task,
                image_size=self._options.image_size,
                render_profile=self._options.render_profile,
                render=self._options.record,
                variant=variant,
            )
        return self._env


def _settled(env: Any, seed: int) -> Mapping[str, Any]:
    """Resets to a random scene and waits until its objects rest, as in the fixed initial states.

    LIBERO begins objects inside its living room tables and inside each other, and some are shot off
    the table. A scene from which an object that is to be moved has fallen is drawn again.
    """
    seeds = np.random.default_rng(seed).integers(2**31, 2**32, _REDRAWS)
    for drawn in (seed, *seeds.tolist()):
        observation, _ = env.reset(seed=drawn)
        scene = Scene(env.inner)
        for _ in range(_SETTLE_ROUNDS):
            if not scene.is_moving():
                break
            observation = env.step_chunk(np.tile(_REST, (_SETTLE_STEPS, 1)))[0]
        if not any(scene.has_fallen(goal.item) for goal in scene.goals()):
            break
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
