"""What is minimised: the policy's loss on demonstrations, or the failures of its episodes."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.rollout import EpisodeKey, EpisodeWorker, RolloutConfig, make_libero
from vla_opt._batches import BatchSource, open_cache, open_features
from vla_opt.evaluation.contract import check_contract, open_checkpoint, rollout_as_trained
from vla_opt.zo_training.config import ZOTrainConfig
from vla_opt.zo_training.live_policy import LivePolicy

type Closure = Callable[[], Tensor | float]
type Progress = Callable[[str, int, int], None]


class Objective(Protocol):
    """A loss of the weights for each step."""

    def closure(self, step: int) -> Closure:
        """The loss of a step: depends on the weights, and on nothing else that changes."""

    def close(self) -> None:
        """Free what it holds."""


def build_objective(config: ZOTrainConfig, live: LivePolicy, progress: Progress) -> Objective:
    """Build the objective that the configuration names."""
    if config.objective == "success":
        return Success(config, live)
    return Supervised(config, live, progress)


class Supervised:
    """The policy's own training loss on one batch per step.

    Args:
        config: the run.
        live: the policy.
        progress: told about the preparation of the data.

    Raises:
        DataError: the data set is missing, damaged or too small.
    """

    def __init__(self, config: ZOTrainConfig, live: LivePolicy, progress: Progress) -> None:
        self._live, self._device = live, torch.device(config.device)
        cache = open_cache(config.data, progress)
        self._batches = BatchSource(
            cache,
            live.module.config,
            config.data,
            open_features(config.data, cache, live.module, self._device, progress),
            batch_size=config.batch_size,
            accumulation=1,
            seed=config.seed,
            rank=0,
            world_size=1,
        )

    def closure(self, step: int) -> Closure:
        """The loss of the batch of this step."""
        batch: dict[str, Any] = self._live.preprocessor(self._batches.batch(step, 0, self._device))

        def loss() -> Tensor:
            output: Tensor = self._live.module(batch)[0]
            return output

        return loss

    def close(self) -> None:
        """Nothing to free."""


class Success:
    """One minus the share of episodes that succeed.

    The scenes are drawn at random, as for demonstrations, never taken from the fixed initial states
    that evaluation uses. All queries of a step see the same episodes.

    Args:
        config: the run.
        live: the policy.
        make_env: builds an environment of (suite, task), see `envs.rollout.EpisodeWorker`.

    Raises:
        ContractError: the policy does not fit the environment.
    """

    def __init__(
        self,
        config: ZOTrainConfig,
        live: LivePolicy,
        make_env: Callable[[tuple[str, int], RolloutConfig], Any] = make_libero,
    ) -> None:
        self._config = config.episodes
        checkpoint = open_checkpoint(config.checkpoint)
        rollout = rollout_as_trained(
            checkpoint,
            execute_steps=self._config.execute_steps,
            render_profile=self._config.render_profile,
            videos="none",
            max_steps=self._config.max_steps,
        )
        check_contract(checkpoint, rollout.env_spec, execute_steps=rollout.execute_steps)
        self._worker = EpisodeWorker(
            live, rollout, lambda task, how: RandomScenes(make_env(task, how))
        )

    def episodes(self, step: int) -> list[EpisodeKey]:
        """The episodes of a step, task by task; a scene is drawn from its episode's seed."""
        first = step * self._config.episodes
        tasks = self._config.task_ids
        keys = [
            EpisodeKey(suite=self._config.suite, task_id=tasks[i % len(tasks)], init_state=i)
            for i in range(first, first + self._config.episodes)
        ]
        return sorted(keys)

    def closure(self, step: int) -> Closure:
        """The failures of this step's episodes."""
        keys = self.episodes(step)

        def loss() -> float:
            state = np.random.get_state()  # noqa: NPY002 - LIBERO seeds the global one
            try:
                successes = sum(self._worker.run(key).success for key in keys)
            finally:
                np.random.set_state(state)  # noqa: NPY002
            return 1.0 - successes / len(keys)

        return loss

    def close(self) -> None:
        """Free the simulation."""
        self._worker.close()


class RandomScenes:
    """An environment that draws its scene from the seed whatever initial state is asked for.

    Args:
        env: with the interface of `envs.libero.LiberoEnv`.
    """

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, *, seed: int, options: object = None) -> Any:
        """Start an episode in a random scene."""
        return self._env.reset(seed=seed)
