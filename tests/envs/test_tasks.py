"""Task lists, initial states and the contract between environment and policy."""

from __future__ import annotations

import numpy as np
import pytest

from envs.spec import EnvSpec, ImageSpec
from envs.tasks import SUITES, list_tasks, load_init_states


def test_all_130_tasks_have_definitions_and_initial_states():
    tasks = [task for suite in SUITES for task in list_tasks(suite)]
    assert len(tasks) == 130
    assert all(task.bddl_file.is_file() and task.init_states_file.is_file() for task in tasks)
    assert list_tasks("libero_10")[0].language.startswith("put both the alphabet soup")


@pytest.mark.parametrize("suite", SUITES)
def test_initial_states_are_fifty_finite_distinct_vectors(suite):
    states = load_init_states(list_tasks(suite)[0])
    assert states.shape[0] == 50
    assert np.isfinite(states).all()
    assert len(np.unique(states, axis=0)) == 50


def test_spec_survives_a_round_trip_and_names_differences():
    spec = EnvSpec(images={"image": ImageSpec(height=128, width=128)})
    assert EnvSpec.from_dict(spec.to_dict()) == spec
    other = EnvSpec(images={"image": ImageSpec(height=256, width=128)}, render_profile="fast")
    assert spec.difference(spec) == []
    assert spec.difference(other) == [
        "images.image.height: 128 against 256",
        "render_profile: exact against fast",
    ]
