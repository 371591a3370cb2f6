"""Rollouts in LIBERO itself: groups share a random scene, and repeat to the last bit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from rl_toys import SIZE, fill_checkpoint  # noqa: E402

from envs.rollout import EpisodeKey, RolloutConfig  # noqa: E402
from vla_opt.checkpoint import write_checkpoint  # noqa: E402
from vla_opt.rl._worker import RolloutWorker  # noqa: E402
from vla_opt.rl.acting import ActingPolicy  # noqa: E402
from vla_opt.rl.config import ExplorationConfig  # noqa: E402
from vla_opt.rl.trajectories import RolloutItem, Trajectory  # noqa: E402

STEPS = 10


@pytest.mark.sim
def test_groups_share_a_scene_and_repeat(tmp_path: Path) -> None:
    start = write_checkpoint(tmp_path / "start", 1, fill_checkpoint)
    policy = ActingPolicy(start, exploration=ExplorationConfig(std=0.3), execute_steps=4, seed=0)
    config = RolloutConfig(
        execute_steps=4, image_size=SIZE, render_profile="fast", videos="none", max_steps=STEPS
    )
    worker = RolloutWorker(policy, config, 0)

    def run(group: int, member: int) -> Trajectory:
        key = EpisodeKey(suite="libero_object", task_id=0, init_state=group, trial=member)
        return worker.run(RolloutItem(key=key, version=0))

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    try:
        first, other, elsewhere, again = run(3, 0), run(3, 1), run(4, 0), run(3, 0)
    finally:
        worker.close()
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    pictures = [t.inputs["observation.images.image"] for t in (first, other, elsewhere, again)]
    assert np.array_equal(pictures[0][0], pictures[1][0])  # the same scene
    assert not np.array_equal(pictures[0][-1], pictures[1][-1])  # another way through it
    assert not np.array_equal(pictures[0][0], pictures[2][0])  # another scene
    assert np.array_equal(pictures[0], pictures[3])
    assert np.array_equal(first.latents, again.latents)
    assert first.steps == STEPS  # which is not a multiple of the chunk
    assert first.executed.sum(1).tolist() == [4, 4, 2]
