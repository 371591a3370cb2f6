"""Which frames are left out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

PLUGIN = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(PLUGIN))

from foreign import actions_with_pauses  # noqa: E402

from vla_opt.importing import kept_rows  # noqa: E402


def test_pauses_are_left_out_and_grasps_stay() -> None:
    assert kept_rows(actions_with_pauses()).tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


def test_a_pause_after_a_grasp_is_one_although_the_step_before_it_moved_the_gripper() -> None:
    action = np.zeros((4, 7))
    action[0, 0], action[1:, 6] = 1, 1
    assert kept_rows(action).tolist() == [0, 1]


def test_the_rule_is_openvlas() -> None:
    """Its words in code: the norm of all but the gripper, the gripper as in the last kept step."""
    rng = np.random.default_rng(1)
    actions = rng.choice([0.0, 1e-5, 0.5], (200, 3)) * rng.choice([0, 1], (200, 1))
    actions[:, 2] = rng.choice([-1.0, 1.0], 200)
    expected: list[int] = []
    for t, a in enumerate(actions):
        still = np.sqrt((a[:2] ** 2).sum()) < 1e-4
        if not (still and (not expected or a[2] == actions[expected[-1]][2])):
            expected.append(t)
    assert kept_rows(actions).tolist() == expected
