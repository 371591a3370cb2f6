"""A small data set that looks like the real ones: a drifting scene with saturated objects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:  # most tests beside this file need none of it
    from envs.rollout import RolloutConfig
    from vla_opt.data import Episode, FrameCache

LENGTHS = (23, 17, 30)
TASKS = ("put the soup into the basket", "open the drawer", "put the soup into the basket")

MakeEpisode = Callable[..., "Episode"]


def scene(length: int, size: int, seed: int) -> NDArray[np.uint8]:
    """(T, size, size, 3): a textured table, shading, and coloured objects a few pixels wide."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    table = 120 + 60 * x + 20 * np.sin(40 * y + seed) + rng.normal(0, 4, (size, size))
    frames = np.repeat(np.stack([table, 0.9 * table, 0.7 * table], -1)[None], length, axis=0)
    for colour in ((220, 30, 30), (20, 60, 200), (240, 220, 40)):
        start, speed = rng.integers(4, size // 2, 2), rng.uniform(-0.5, 0.9, 2)
        for t in range(length):
            row, column = np.clip((start + speed * t).astype(int), 0, size - 7)
            frames[t, row : row + 6, column : column + 5] = colour
    return np.clip(frames, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def make_episode() -> MakeEpisode:
    """`make_episode(number, size=32)`: one episode of the sample data set."""
    from vla_opt.data import Episode

    def make(number: int, size: int = 32) -> Episode:
        length = LENGTHS[number % len(LENGTHS)]
        rng = np.random.default_rng(number)
        views = {"image": 2 * number, "image2": 2 * number + 1}
        return Episode(
            frames={name: scene(length, size, seed) for name, seed in views.items()},
            state=rng.normal(number, 1.0, (length, 8)).astype(np.float32),
            action=rng.uniform(-1, 1, (length, 7)).astype(np.float32),
            task=TASKS[number % len(TASKS)],
            meta={"seed": 1000 + number},
        )

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_episode: MakeEpisode) -> Path:
    """The sample data set on disk, three episodes and 70 frames; do not change it."""
    from vla_opt.data import write_dataset

    root = tmp_path_factory.mktemp("sample") / "dataset"
    return write_dataset((make_episode(i) for i in range(3)), root, robot_type="panda")


@pytest.fixture(scope="session")
def cache(dataset: Path) -> FrameCache:
    """The frame cache of `dataset`; do not change it."""
    from vla_opt.data import build_cache

    return build_cache(dataset, dataset.parent / "cache")


class QuickEnv:
    """The interface of LiberoEnv: ends after 8 steps, in success for even initial states."""

    def __init__(self, task: object, config: RolloutConfig) -> None:
        self.spec, self.task_description = config.env_spec, "pick up the soup"
        self.size = config.image_size

    def reset(self, *, seed, options):
        self.state, self.steps, self.rng = options["init_state"], 0, np.random.default_rng(seed)
        if self.state == 13:
            raise RuntimeError("unlucky")
        return self._observe(), {"is_success": False, "steps": 0}

    def step_chunk(self, actions):
        self.steps += len(actions)
        success = self.steps >= 8 and self.state % 2 == 0
        info = {"is_success": success, "steps": self.steps}
        return self._observe(), 0.0, success, self.steps >= 8 and not success, info

    def _observe(self):
        image = self.rng.integers(0, 255, (self.size, self.size, 3)).astype(np.uint8)
        return {"pixels": {"image": image, "image2": image}, "agent_pos": np.zeros(8, np.float32)}

    def close(self):
        pass


@pytest.fixture
def quick(monkeypatch):
    """Evaluations on QuickEnv; returns the environments that were built."""
    from envs.rollout import EpisodeWorker

    built = []

    def make_env(task, config):
        built.append(task)
        return QuickEnv(task, config)

    worker = functools.partial(EpisodeWorker, make_env=make_env)
    monkeypatch.setattr("vla_opt.evaluation.runner.EpisodeWorker", worker)
    return built
