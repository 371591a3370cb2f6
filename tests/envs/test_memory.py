"""What a simulator's process holds."""

import subprocess
import sys

import pytest

LIMIT = 1.25e9  # bytes of proportional set size
CODE = """
import psutil
from envs.libero import LiberoEnv

for task_id in (0, 1, 2):
    env = LiberoEnv("libero_object", task_id, render_profile="{profile}")
    env.reset(seed=1)
    print(psutil.Process().memory_full_info().pss)
    env.close()
    del env
print(psutil.Process().memory_full_info().pss)
"""


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_a_worker_stays_near_a_gigabyte_over_several_scenes(profile):
    command = [sys.executable, "-c", CODE.format(profile=profile)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    *scenes, closed = (int(line) for line in run.stdout.split() if line.isdigit())
    assert max(scenes) < LIMIT, scenes
    assert scenes[-1] < scenes[0] + 1e8, scenes
    assert closed < 0.5e9, closed
