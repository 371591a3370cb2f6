"""The simulation side of a rollout. Imports no torch: it is what a worker's process holds."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.rollout import EpisodeWorker, Observation, RolloutConfig, make_libero
from vla_opt.rl.trajectories import Act, RolloutItem, Trajectory, executed_actions

MakeEnv = Callable[[tuple[str, int], RolloutConfig], Any]


class StaleWeightsError(RuntimeError):
    """A policy acted with other weights than it was asked to."""


class Acting(Protocol):
    """Answers observations with decisions; each says with "weights" which version must act."""

    def infer(self, observations: Sequence[Observation]) -> list[Act]:
        """Return one decision per observation."""


class Recorder:
    """An `envs.rollout.Policy` that keeps what it answered.

    Args:
        policy: decides.
    """

    def __init__(self, policy: Acting) -> None:
        self._policy = policy
        self.begin(0)

    def begin(self, version: int) -> None:
        """Start an episode that is to be run with this version of the weights."""
        self._version = version
        self.acts: list[Act] = []
        self.task = ""

    def infer(self, observations: Sequence[Observation]) -> list[NDArray[np.float64]]:
        """Return one chunk (K, A) per observation.

        Raises:
            StaleWeightsError: other weights answered.
        """
        acts = self._policy.infer([{**seen, "weights": self._version} for seen in observations])
        for seen, act in zip(observations, acts, strict=True):
            if act.version != self._version:
                raise StaleWeightsError(
                    f"version {act.version} of the weights acted, expected {self._version}: the "
                    "episode is not recorded."
                )
            self.task = seen["task"]
            self.acts.append(act)
        return [act.chunk for act in acts]


class RolloutWorker:
    """Runs episodes and records them; a worker for `envs.pool.run_pool`.

    Args:
        policy: in this process or remote.
        config: how to run.
        seed: of the run: decides the scenes.
        make_env: builds an environment of (suite, task).
    """

    def __init__(
        self,
        policy: Acting,
        config: RolloutConfig,
        seed: int,
        make_env: MakeEnv = make_libero,
    ) -> None:
        self._recorder, self._config = Recorder(policy), config
        self._episodes = EpisodeWorker(
            self._recorder, config, lambda task, how: GroupScenes(make_env(task, how), seed, task)
        )

    def prepare(self, item: RolloutItem) -> None:
        """Build the environment of an episode that comes next."""
        self._episodes.prepare(item.key)

    def run(self, item: RolloutItem) -> Trajectory:
        """Run one episode."""
        self._recorder.begin(item.version)
        state = np.random.get_state()  # noqa: NPY002 - LIBERO seeds the global one
        try:
            result = self._episodes.run(item.key)
        finally:
            np.random.set_state(state)  # noqa: NPY002
        acts = self._recorder.acts
        return Trajectory(
            key=item.key,
            success=result.success,
            steps=result.steps,
            wall_s=result.wall_s,
            version=item.version,
            task=self._recorder.task,
            inputs={name: np.stack([a.inputs[name] for a in acts]) for name in acts[0].inputs},
            latents=np.stack([act.latents for act in acts]),
            log_prob=np.stack([act.log_prob for act in acts]),
            executed=executed_actions(result.steps, len(acts), self._config.execute_steps),
        )

    def close(self) -> None:
        """Free the environment."""
        self._episodes.close()


class GroupScenes:
    """An environment in which all members of a group start from the same random scene.

    Scenes are drawn as for demonstrations, never taken from the fixed initial states that
    evaluation uses; the group's number, which comes as `init_state`, decides which one.

    Args:
        env: with the interface of `envs.libero.LiberoEnv`.
        seed: of the run.
        task: suite and task.
    """

    def __init__(self, env: Any, seed: int, task: tuple[str, int]) -> None:
        self._env, self._seed, self._task = env, seed, task

    def __getattr__(self, name: str) -> Any:
        if name == "become":  # the next task's scenes have seeds of their own: build it anew
            raise AttributeError(name)
        return getattr(self._env, name)

    def reset(self, *, seed: int, options: Mapping[str, int]) -> Any:
        """Start an episode in the group's scene; the episode's own seed has no part in it."""
        return self._env.reset(seed=scene_seed(self._seed, *self._task, options["init_state"]))


def scene_seed(seed: int, suite: str, task_id: int, group: int) -> int:
    """Return 31 bits that decide the scene of a group."""
    digest = hashlib.sha256(f"scene/{seed}/{suite}/{task_id}/{group}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
