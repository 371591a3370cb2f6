"""The simulated tasks: where things stand, when they are solved, and who gets there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scenes import KinematicArm, scene
from simulated import FakeClock

from deploy.errors import ContractMismatchError
from deploy.kinematics import flange_pose, matrix_from_euler
from deploy.limits import MAX_JOINT_DELTA, RESET_POSE
from deploy.sim.expert import PickPlaceExpert, _funnel
from deploy.sim.expert_policy import ExpertPolicy
from deploy.sim.link import SceneState
from deploy.sim.tasks import TASKS, position_of, random_placements, rotation_of, settled


def test_a_seed_lays_the_same_scene_and_nothing_overlaps() -> None:
    assert random_placements(5) == random_placements(5)
    assert random_placements(5) != random_placements(6)
    for seed in range(200):
        placed = {name: np.array(p[:2]) for name, p in random_placements(seed).items()}
        names = sorted(placed)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                assert np.linalg.norm(placed[first] - placed[second]) > 0.09


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_solved_when_the_object_lies_there_and_the_hand_is_open(name: str) -> None:
    task, state = TASKS[name], scene(0)
    assert not task.solved(state)
    start = 9 if task.thing == "cube" else 16
    qpos = state.qpos.copy()
    qpos[start : start + 3] = [*position_of(task.target, state)[:2], 0.03]
    there = dataclasses.replace(state, qpos=qpos)
    assert task.solved(there)
    closed, high = qpos.copy(), qpos.copy()
    closed[7:9], high[start + 2] = 0.01, 0.1
    assert not task.solved(dataclasses.replace(state, qpos=closed))
    assert not task.solved(dataclasses.replace(state, qpos=high))


def test_rotations_of_objects_are_those_of_their_quaternions() -> None:
    state = scene(3)
    turn = random_placements(3)["cube"][3]
    expected = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    np.testing.assert_allclose(rotation_of("cube", state), expected, atol=1e-9)
    assert abs(rotation_of("cucumber", state)[2, 2]) < 1e-9  # it lies


@pytest.mark.parametrize("chunked", [False, True], ids=["step by step", "in chunks"])
@pytest.mark.parametrize("name", ["cube_to_bowl", "cucumber_to_plate"])
def test_the_demonstrator_goes_through_all_its_legs_within_the_limits(
    name: str, chunked: bool
) -> None:
    """On an arm that realises 45 % of each action."""
    expert, clock = PickPlaceExpert(TASKS[name]), FakeClock()
    arm, grips, chunk = KinematicArm(clock, TASKS[name], 1, 0.45), [], np.empty((0, 8))
    for step in range(250):
        clock.time = 100.0 + step / 15
        if chunked and step % 8 == 0:
            chunk = expert.plan(arm.state(), 15)
        action = chunk[step % 8] if chunked else expert.act(arm.state())
        assert arm.act(action)["rejected"] is None
        grips.append(action[7])
        if expert.done:
            break
    assert expert.done
    assert TASKS[name].solved(arm.state())
    changes = np.flatnonzero(np.diff(grips))
    assert len(changes) == 2  # closes once, opens once: no flicker
    assert np.abs(np.array(grips)).max() == 1.0


def test_what_the_hand_has_lost_is_fetched_again() -> None:
    expert, clock = PickPlaceExpert(TASKS["cube_to_plate"]), FakeClock()
    arm = KinematicArm(clock, TASKS["cube_to_plate"], 1, 0.45)
    for step in range(60):
        clock.time = 100.0 + step / 15
        if step % 8 == 0:
            chunk = expert.plan(arm.state(), 15)
        arm.act(chunk[step % 8])
    now = arm.state()
    assert expert.phase in ("lift", "above the target")
    qpos = now.qpos.copy()
    qpos[9:12] = scene(1).qpos[9:12]  # back on the table
    chunk = expert.plan(dataclasses.replace(now, qpos=qpos), 15)
    assert expert.phase == "above the object"
    assert chunk[0, 7] == 0.0, "the hand opens"


def test_solved_for_a_moment_is_not_settled() -> None:
    task, now = TASKS["cube_to_plate"], scene(0)
    qpos = now.qpos.copy()
    qpos[9:12] = [*position_of("plate", now)[:2], 0.03]
    there = dataclasses.replace(now, qpos=qpos)
    looks = [(there, 0.0), (there, 0.1), (now, 0.2), (there, 0.3), (there, 0.6), (there, 0.71)]
    seen = iter([dataclasses.replace(state, time=time) for state, time in looks])
    done = settled(task, lambda: next(seen), seconds=0.4)
    assert [done({}) for _ in looks] == [False] * 5 + [True]


def test_the_grasp_of_a_cube_turns_smoothly_with_it() -> None:
    """A jump would ask whoever imitates it to choose between two turns that look the same."""
    turns, now = np.linspace(-0.75, 0.75, 61), scene(1)
    flange = []
    for turn in turns:
        qpos = now.qpos.copy()
        qpos[12:16] = [np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
        expert = PickPlaceExpert(TASKS["cube_to_bowl"])
        expert.act(dataclasses.replace(now, qpos=qpos))
        flange.append(expert._yaw)
    np.testing.assert_allclose(np.diff(flange), np.diff(turns), atol=1e-6)


def test_beside_a_place_the_fingers_stay_high() -> None:
    goal = flange_pose(RESET_POSE)
    beside, over = goal.copy(), goal.copy()
    beside[0, 3] += 0.05
    over[0, 3] += 0.005
    turned = goal.copy()
    turned[:3, :3] = goal[:3, :3] @ matrix_from_euler(np.array([0, 0, 0.5]))
    assert _funnel(beside, RESET_POSE) > 0.1
    assert _funnel(over, RESET_POSE) == 0.0
    assert _funnel(turned, RESET_POSE) > 0.03


def test_a_plan_is_what_stepping_would_give_on_the_foreseen_arm() -> None:
    expert, now = PickPlaceExpert(TASKS["cube_to_plate"]), scene(2)
    chunk = expert.plan(now, 4)
    other, q = PickPlaceExpert(TASKS["cube_to_plate"]), RESET_POSE.copy()
    for step in range(4):
        qpos = np.concatenate([q, now.qpos[7:]])
        action = other.act(dataclasses.replace(now, qpos=qpos, time=step / 15))
        np.testing.assert_allclose(chunk[step], action, atol=1e-9)
        q = q + 0.45 * MAX_JOINT_DELTA * action[:7]


class FixedLink:
    def __init__(self) -> None:
        self.now = scene(0)

    def state(self) -> SceneState:
        return self.now


def test_a_new_episode_of_the_same_task_begins_anew() -> None:
    """The protocol has no reset: an arm back at its start says that there was one."""
    link = FixedLink()
    policy = ExpertPolicy(link)  # type: ignore[arg-type]
    request = {"prompt": "put the cube in the bowl"}
    first = policy.infer(request)["actions"]
    assert policy._expert is not None
    policy._expert._leg = 6  # solved while it lets go, so it never came to its end
    link.now = dataclasses.replace(link.now, time=50.0)
    np.testing.assert_allclose(policy.infer(request)["actions"], first, atol=1e-9)


def test_the_demonstrator_serves_known_instructions_only() -> None:
    policy = ExpertPolicy(FixedLink())  # type: ignore[arg-type]
    chunk = policy.infer({"prompt": "put the cube in the bowl"})["actions"]
    assert chunk.shape == (15, 8)
    assert np.abs(chunk[:, :7]).max() <= 1.0
    with pytest.raises(ContractMismatchError, match="put the cube on the plate"):
        policy.infer({"prompt": "fold the towel"})
