"""LiberoEnv against the unpatched simulator, and its own contract."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from envs._libero_setup import import_libero
from envs.errors import UnknownNameError
from envs.libero import SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from envs.tasks import get_task, load_init_states

SEED = 11


def reach_down_and_close(steps: int = 24) -> np.ndarray:
    """Random motion with both gripper commands: contacts, joint limits and clipping included."""
    actions = np.random.default_rng(0).uniform(-0.6, 0.6, (steps, 7))
    actions[:, 2] -= 0.5
    actions[:, 6] = np.where(np.arange(steps) < steps // 2, -1.0, 1.0)
    return actions.clip(-1, 1)


def stock_env(suite: str, task_id: int, size: int):
    wrapper = import_libero().OffScreenRenderEnv
    bddl = str(get_task(suite, task_id).bddl_file)
    return wrapper(bddl_file_name=bddl, camera_heights=size, camera_widths=size)


def stock_rollout(suite: str, task_id: int, init_state: int | None, actions: np.ndarray):
    """States after every step and images after every eighth, of LIBERO as it is published."""
    env = stock_env(suite, task_id, 64)
    env.seed(SEED)
    env.env.reset()
    if init_state is not None:
        env.set_init_state(load_init_states(get_task(suite, task_id))[init_state])
    for _ in range(SETTLE_STEPS):
        obs, *_ = env.step(SETTLE_ACTION)
    states, images = [env.get_sim_state()], [images_of(obs)]
    for k, action in enumerate(actions):
        obs, *_ = env.step(action)
        states.append(env.get_sim_state())
        if (k + 1) % 8 == 0:
            images.append(images_of(obs))
    env.close()
    return np.array(states), np.array(images)


def images_of(obs) -> np.ndarray:
    keys = ("agentview_image", "robot0_eye_in_hand_image")
    return np.stack([obs[key][::-1, ::-1] for key in keys])


@pytest.mark.sim
@pytest.mark.parametrize(
    ("suite", "task_id", "init_state"),
    [
        ("libero_object", 0, 3),
        # A drawer, drawn at reset: the bowl lies in it, its cabinet is not in the initial state.
        pytest.param("libero_spatial", 4, 3, marks=pytest.mark.slow),
        pytest.param("libero_spatial", 4, None, marks=pytest.mark.slow),
        pytest.param("libero_goal", 0, None, marks=pytest.mark.slow),
    ],
)
def test_states_and_images_are_bitwise_those_of_stock_libero(suite, task_id, init_state):
    actions = reach_down_and_close(16)
    states, images = stock_rollout(suite, task_id, init_state, actions)
    env = LiberoEnv(suite, task_id, image_size=64)
    env.reset(seed=SEED + 1)  # an episode before leaves no trace
    env.step_chunk(actions[::-1])
    obs, _ = env.reset(seed=SEED, options={"init_state": init_state})
    np.testing.assert_array_equal(env.sim_state(), states[0])
    for chunk in range(2):
        np.testing.assert_array_equal(np.stack(list(obs["pixels"].values())), images[chunk])
        obs, *_ = env.step_chunk(actions[chunk * 8 : chunk * 8 + 8])
        np.testing.assert_array_equal(env.sim_state(), states[chunk * 8 + 8])
    np.testing.assert_array_equal(np.stack(list(obs["pixels"].values())), images[2])
    env.close()


@pytest.mark.sim
def test_proprioception_is_that_of_stock_observables():
    env = stock_env("libero_object", 0, 64)
    env.seed(SEED)
    env.env.reset()
    env.set_init_state(load_init_states(get_task("libero_object", 0))[0])
    for _ in range(SETTLE_STEPS):
        obs, *_ = env.step(SETTLE_ACTION)
    env.close()
    fast = LiberoEnv("libero_object", 0, render=False)
    ours, _ = fast.reset(seed=SEED, options={"init_state": 0})
    fast.close()
    np.testing.assert_array_equal(ours["agent_pos"][:3], obs["robot0_eef_pos"].astype(np.float32))
    np.testing.assert_array_equal(
        ours["agent_pos"][6:], obs["robot0_gripper_qpos"].astype(np.float32)
    )
    assert np.linalg.norm(ours["agent_pos"][3:6]) == pytest.approx(np.pi, abs=0.1)


@pytest.mark.sim
def test_render_profile_and_rendering_do_not_touch_the_physics():
    actions = reach_down_and_close(16)
    finals = []
    for options in ({"render_profile": "fast"}, {"render": False}, {"image_size": 96}):
        env = LiberoEnv("libero_object", 3, **options)
        env.reset(seed=SEED)  # a randomised scene
        env.step_chunk(actions)
        finals.append(env.sim_state())
        env.close()
    np.testing.assert_array_equal(finals[0], finals[1])
    np.testing.assert_array_equal(finals[0], finals[2])


@pytest.mark.sim
def test_single_steps_equal_one_chunk_and_observations_fit_the_space():
    env = LiberoEnv("libero_object", 0, image_size=32, render_profile="fast")
    actions = reach_down_and_close(4)
    env.reset(seed=SEED, options={"init_state": 0})
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
    single = env.sim_state()
    assert env.observation_space.contains(obs)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"is_success": False, "steps": 4}
    env.reset(seed=SEED, options={"init_state": 0})
    chunked, *_ = env.step_chunk(actions)
    np.testing.assert_array_equal(env.sim_state(), single)
    for key in ("image", "image2"):
        np.testing.assert_array_equal(chunked["pixels"][key], obs["pixels"][key])
    env.close()


@pytest.mark.sim
def test_episode_is_truncated_at_the_suite_limit_and_the_seed_decides_the_scene():
    env = LiberoEnv("libero_spatial", 4, render=False)
    env.reset(seed=1)
    first = env.sim_state()
    env.reset(seed=2)
    assert not np.array_equal(env.sim_state(), first)
    env.reset(seed=1)
    np.testing.assert_array_equal(env.sim_state(), first)
    *_, truncated, info = env.step_chunk(np.zeros((500, 7)))
    assert truncated
    assert info["steps"] == 220
    env.close()


@pytest.mark.sim
def test_reset_leaves_the_callers_random_numbers_alone():
    env = LiberoEnv("libero_object", 0, render=False)
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    env.reset(seed=1)
    assert np.random.rand() == expected  # noqa: NPY002
    env.close()


@pytest.mark.sim
def test_bad_actions_and_initial_states_are_refused():
    env = LiberoEnv("libero_object", 0, render=False)
    with pytest.raises(ValueError, match="initial states 0 to 49"):
        env.reset(options={"init_state": 50})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        env.step_chunk(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="not finite"):
        env.step(np.full(7, np.nan))
    env.close()
    env.close()


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'libero_object'"):
        LiberoEnv("libero_objekt", 0)
    with pytest.raises(UnknownNameError, match="tasks 0 to 9"):
        LiberoEnv("libero_object", 10)
    with pytest.raises(UnknownNameError, match="'fast'"):
        LiberoEnv("libero_object", 0, render_profile="fats")
    with pytest.raises(UnknownNameError, match="'image'"):
        LiberoEnv("libero_object", 0, cameras=("imagee",))


def test_missing_opengl_names_the_debian_package():
    code = "from envs.libero import LiberoEnv; LiberoEnv('libero_object', 0, image_size=32)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "apt-get install libegl1" in run.stderr


def test_simulator_is_a_gymnasium_environment_without_torch():
    assert issubclass(LiberoEnv, gymnasium.Env)
    code = "import sys, envs.libero; from envs._libero_setup import import_libero; import_libero();"
    check = "print(sorted({'torch', 'lerobot'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert run.stdout.strip().endswith("[]"), run.stdout + run.stderr
