"""Scripted demonstrators: geometry, and demonstrations in the simulator."""

import numpy as np
import pytest

from envs._scene import highest_between, nearest_between, resting_height
from envs.demonstrations import (
    DemoKey,
    DemoOptions,
    DemoWorker,
    Disturbance,
    read_recording,
    supported_tasks,
)
from envs.experts import Expert, Phase, UnsupportedTaskError
from envs.rollout import EpisodeKey


def test_resting_height_stacks_surfaces():
    side = np.linspace(-0.05, 0.05, 21)
    plane = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    item = np.column_stack([plane * 0.5, np.full(len(plane), 0.30)])
    support = np.column_stack([plane + 1.0, np.full(len(plane), 0.12)])
    assert resting_height(item, support, np.array([1.0, 1.0])) == pytest.approx(-0.18)
    assert resting_height(item, support, np.array([5.0, 1.0])) is None


def test_highest_between_looks_only_near_the_path():
    points = np.array([[0.5, 0.02, 0.3], [0.5, 0.5, 0.9], [2.0, 0.0, 0.8]])
    start, end = np.zeros(2), np.array([1.0, 0.0])
    assert highest_between(points, start, end, 0.1) == pytest.approx(0.3)
    assert highest_between(points, start, start, 0.1) == -np.inf
    assert nearest_between(points, start, end) == pytest.approx(0.02)
    assert nearest_between(points, start, start) == pytest.approx(np.hypot(0.5, 0.02))
    assert nearest_between(np.zeros((0, 3)), start, end) == np.inf


def test_disturbance_spares_the_gripper_and_the_delicate_moments():
    disturb = Disturbance(0.4, np.random.default_rng(0))
    action = np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.0, -1.0])
    np.testing.assert_array_equal(disturb(action, 0.0), action)
    shaken = np.stack([disturb(action, 1.0) for _ in range(200)])
    assert (shaken[:, 6] == -1).all()
    assert np.abs(shaken).max() <= 1
    assert 0.2 < shaken[:, 0].std() < 0.6
    assert shaken[:, 3].std() < 0.15


def test_disturbance_is_correlated_in_time():
    disturb = Disturbance(0.2, np.random.default_rng(1))
    noise = np.array([disturb(np.zeros(7), 1.0)[0] for _ in range(6000)])
    neighbours = np.corrcoef(noise[:-1], noise[1:])[0, 1]
    assert 0.4 < neighbours < 0.9


def test_seeds_of_demonstrations_and_evaluation_never_meet():
    demos = {
        DemoKey(suite="libero_object", task_id=t, index=i).seed
        for t in range(10)
        for i in range(200)
    }
    episodes = {
        EpisodeKey(suite="libero_object", task_id=t, init_state=i).seed
        for t in range(10)
        for i in range(50)
    }
    assert len(demos) == 2000
    assert min(demos) >= 2**31 > max(episodes)
    assert max(demos) < 2**32  # numpy's limit


def test_supported_tasks_of_the_suites():
    assert supported_tasks("libero_object") == tuple(range(10))
    assert supported_tasks("libero_spatial") == tuple(range(10))
    assert supported_tasks("libero_goal") == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    assert supported_tasks("libero_10") == tuple(range(9))
    with pytest.raises(UnsupportedTaskError, match="yellow and white mug in the microwave"):
        supported_tasks("libero_10", [9])


@pytest.fixture(scope="module")
def recorder():
    worker = DemoWorker(DemoOptions(render_profile="fast", noise_levels=(0.0, 0.4), image_size=64))
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def demos(recorder):
    keys = [DemoKey(suite="libero_object", task_id=0, index=index) for index in (0, 1)]
    return [recorder.run(key) for key in keys]


@pytest.mark.sim
def test_demonstrations_succeed_and_are_recorded_whole(demos):
    for demo in demos:
        assert demo.success, demo.reason
        assert demo.steps < 200
        arrays = read_recording(demo.recording)
        length = demo.steps + DemoOptions().tail_steps
        assert arrays["state"].shape == (length, 8)
        assert arrays["action"].shape == (length, 7)
        assert arrays["image"].shape == arrays["image2"].shape == (length, 64, 64, 3)
        assert (np.abs(arrays["action"]) <= 1).all()
        assert set(np.unique(arrays["action"][:, 6])) == {-1.0, 1.0}
        moving = np.abs(np.diff(arrays["image2"].astype(int), axis=0)).mean(axis=(1, 2, 3))
        assert (moving[:60] > 0).mean() > 0.9


@pytest.mark.sim
def test_labels_are_clean_where_the_executed_action_is_disturbed(demos):
    clean, noisy = (read_recording(demo.recording) for demo in demos)
    np.testing.assert_array_equal(clean["action"], clean["executed"])
    difference = np.abs(noisy["action"] - noisy["executed"])
    assert (difference[:, :3].max(axis=1) > 0.1).mean() > 0.3
    closing = np.flatnonzero(np.diff(noisy["action"][:, 6]) > 0)[0] + 1
    np.testing.assert_array_equal(noisy["action"][closing], noisy["executed"][closing])


@pytest.mark.sim
def test_clean_motion_is_smooth_and_never_waits(demos):
    arrays = read_recording(demos[0].recording)
    steps = demos[0].steps
    jumps = np.linalg.norm(np.diff(arrays["action"][:steps, :3], axis=0), axis=1)
    assert jumps.max() < 0.8
    assert np.quantile(jumps, 0.9) < 0.25
    state = np.abs(np.diff(arrays["state"][:steps], axis=0))
    still = (state[:, :3].max(axis=1) < 5e-4) & (state[:, 6:].max(axis=1) < 2e-4)
    assert still.sum() <= 5


@pytest.mark.sim
def test_the_same_key_gives_the_same_bytes_again(recorder, demos):
    again = recorder.run(demos[1].key)
    first, second = read_recording(demos[1].recording), read_recording(again.recording)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.sim
def test_a_lost_object_is_picked_up_again():
    from envs.libero import LiberoEnv

    env = LiberoEnv("libero_object", 0, render=False)
    env.reset(seed=5)
    expert = Expert(env)
    carried, drops, success = 0, 0, False
    while not success and env.sim.data.time < 280 / 20:
        action = expert.act()
        carried += expert.phase is Phase.CARRY
        if carried == 5 and drops < 12:  # a few centimetres up: let go
            action, drops = np.array([0, 0, 0, 0, 0, 0, -1.0]), drops + 1
            carried -= 1
        success = env.step(action)[2]
    env.close()
    assert drops > 5
    assert success


@pytest.fixture(scope="module")
def kitchen():
    """LIBERO-Goal's tasks share one scene; a test sets the goal."""
    from envs.libero import LiberoEnv

    env = LiberoEnv("libero_goal", 0, render=False)
    yield env
    env.close()


def reaches(env, goal, language, seed):
    env.reset(seed=seed)
    env.inner.parsed_problem["goal_state"] = goal
    env.inner.parsed_problem["language_instruction"] = language.split()
    expert = Expert(env)
    actions = []
    for _ in range(250):
        actions.append(expert.act())
        if env.step(actions[-1])[2]:
            return np.array(actions)
    raise AssertionError(f"{language}: not reached, still in {expert.phase}")


@pytest.mark.sim
@pytest.mark.parametrize(
    ("goal", "language"),
    [
        (["open", "wooden_cabinet_1_middle_region"], "open the middle drawer"),
        (["turnon", "flat_stove_1"], "turn on the stove"),
    ],
)
def test_drawers_are_opened_and_knobs_turned(kitchen, goal, language):
    seed = DemoKey(suite="libero_goal", task_id=0, index=3).seed
    actions = reaches(kitchen, [goal], language, seed)
    assert np.abs(actions).max() <= 1
    jumps = np.linalg.norm(np.diff(actions[:, :3], axis=0), axis=1)
    assert np.quantile(jumps, 0.9) < 0.3


@pytest.mark.sim
def test_a_drawer_that_is_shut_last_is_pressed_on(kitchen):
    """A policy that stops a little early needs it: up to the stop there is nothing but pushing."""
    kitchen.reset(seed=DemoKey(suite="libero_goal", task_id=0, index=3).seed)
    kitchen.inner.parsed_problem["goal_state"] = [["close", "wooden_cabinet_1_middle_region"]]
    kitchen.sim.data.set_joint_qpos("wooden_cabinet_1_middle_level", -0.1)
    kitchen.sim.forward()
    expert = Expert(kitchen)
    shut = [kitchen.step(expert.act())[2] for _ in range(120)]
    begin = shut.index(True)
    assert all(shut[begin:])
    assert expert.phase is Phase.MOVE
    assert expert.act()[1] < -0.5  # where the cabinet's back is


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task_id", "index"),
    [
        ("libero_goal", 5, 0),
        ("libero_goal", 5, 2),  # the palm would sweep a bowl to where the plate shall be
        ("libero_goal", 5, 4),  # a bowl stands where the plate would go first
        ("libero_10", 2, 0),
        ("libero_10", 3, 4),  # the bowl only just fits between the drawer's front and a handle
        ("libero_10", 3, 6),  # a rack stands behind the forearm that shuts the drawer
        ("libero_10", 8, 0),
    ],
)
def test_plates_are_pushed_drawers_shut_and_pots_set_side_by_side(suite, task_id, index):
    worker = DemoWorker(DemoOptions(record=False, noise_levels=(0.0,)))
    demo = worker.run(DemoKey(suite=suite, task_id=task_id, index=index))
    worker.close()
    assert demo.success, demo.reason
    assert demo.steps < 250


@pytest.mark.sim
@pytest.mark.slow
def test_a_plate_is_not_lifted_by_the_fingers_that_pushed_it():
    from envs.libero import LiberoEnv

    env = LiberoEnv("libero_goal", 5, render=False)
    env.reset(seed=DemoKey(suite="libero_goal", task_id=5, index=0).seed)
    expert = Expert(env)
    plate = env.inner.obj_body_id["plate_1"]
    height = [env.sim.data.body_xpos[plate][2]]
    while expert.phase is not Phase.RETREAT:
        env.step(expert.act())
    for _ in range(10):
        env.step(expert.act())
        height.append(env.sim.data.body_xpos[plate][2])
    env.close()
    assert max(height) < height[0] + 0.01


@pytest.mark.sim
def test_a_demonstration_begins_with_what_is_to_be_moved_on_the_table():
    """LIBERO begins this scene with the cheese inside the juice; it would lie on the floor."""
    from envs.demonstrations import _settled
    from envs.libero import LiberoEnv

    env = LiberoEnv("libero_10", 1, render=False)
    _settled(env, DemoKey(suite="libero_10", task_id=1, index=4).seed)
    body = env.inner.obj_body_id["cream_cheese_1"]
    x, y, z = np.array(env.sim.data.body_xpos[body])
    table = env.inner.workspace_offset[2]
    env.close()
    assert z > table
    assert np.hypot(x, y) < 0.4


@pytest.mark.sim
def test_it_does_not_wait_above_a_bowl_far_from_the_arm():
    from envs.libero import LiberoEnv

    env = LiberoEnv("libero_spatial", 4, render=False)  # in the drawer of the cabinet
    env.reset(seed=2**31)
    expert = Expert(env)
    hand = []
    while expert.phase is not Phase.GRASP and len(hand) < 80:
        env.step(expert.act())
        hand.append(np.array(env.sim.data.site_xpos[env.inner.robots[0].eef_site_id]))
    env.close()
    above = [p for p in hand if np.linalg.norm((p - hand[-1])[:2]) < 0.02]
    assert expert.phase is Phase.GRASP
    assert len(above) < 10
