"""What several files of these tests share."""

from __future__ import annotations

import pytest

from envs._ray_cluster import ray_cluster


@pytest.fixture(scope="module")
def ray():
    """Ray with a local cluster of two CPUs."""
    with ray_cluster(num_cpus=2) as ray:
        yield ray
