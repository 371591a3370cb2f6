"""Control steps per CPU second of LiberoEnv against stock LIBERO, in one run.

    python tests/bench/bench_sim.py [--suite libero_object] [--task_id 0] [--steps 64]

Stock renders both views at every control step; a policy that executes chunks of eight looks every
eighth. CPU seconds are counted, so that other load on the machine does not change the ratio.
The physical limit is MuJoCo alone: `mj_step` for each substep and the two views per look, without
controller, observations or goals. (Its arm stands still and everything is drawn, so that a scene of
which the cameras see little can beat it.) The last lines say where a control step's time goes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import mujoco
import numpy as np

from envs._libero_setup import import_libero
from envs.libero import CAMERAS, SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from envs.tasks import get_task, load_init_states

LOOK_EVERY = 8


def timed(run: Callable[[], None], steps: int) -> float:
    start = time.process_time()
    run()
    return steps / (time.process_time() - start)


def stock(suite: str, task_id: int, size: int, actions: np.ndarray) -> tuple[float, np.ndarray]:
    task = get_task(suite, task_id)
    env = import_libero().OffScreenRenderEnv(
        bddl_file_name=str(task.bddl_file), camera_heights=size, camera_widths=size
    )
    env.seed(0)
    env.env.reset()
    env.set_init_state(load_init_states(task)[0])
    for _ in range(SETTLE_STEPS):
        env.step(SETTLE_ACTION)

    def run() -> None:
        for action in actions:
            env.step(action)

    rate = timed(run, len(actions))
    state = env.get_sim_state()
    env.close()
    return rate, state


def ours(
    suite: str, task_id: int, size: int, actions: np.ndarray, chunk: int, profile: str
) -> tuple[float, np.ndarray]:
    env = LiberoEnv(suite, task_id, image_size=size, render_profile=profile)
    env.reset(seed=0, options={"init_state": 0})

    def run() -> None:
        for k in range(0, len(actions), chunk):
            env.step_chunk(actions[k : k + chunk])

    rate = timed(run, len(actions))
    state = env.sim_state()
    env.close()
    return rate, state


def mujoco_alone(
    suite: str, task_id: int, size: int, actions: np.ndarray, chunk: int, profile: str
) -> float:
    """Steps per CPU second of the same scene when nothing but MuJoCo runs."""
    env = LiberoEnv(suite, task_id, image_size=size, render_profile=profile)
    env.reset(seed=0, options={"init_state": 0})
    model, data = env.sim.model._model, env.sim.data._data
    substeps = int(env.inner.control_timestep / env.inner.model_timestep)
    cameras = [model.camera(name).id for name in CAMERAS.values()]

    def run() -> None:
        for k in range(len(actions)):
            mujoco.mj_step(model, data, substeps)
            if k % chunk == chunk - 1:
                for camera in cameras:
                    env.sim._render_context_offscreen.render(size, size, camera)
                    env.sim._render_context_offscreen.read_pixels(size, size, depth=False)

    rate = timed(run, len(actions))
    env.close()
    return rate


def parts(suite: str, task_id: int, size: int, actions: np.ndarray, profile: str) -> str:
    """Where the time of a control step goes, a look every `LOOK_EVERY` steps, by the clock."""
    env = LiberoEnv(suite, task_id, image_size=size, render_profile=profile)
    env.reset(seed=0, options={"init_state": 0})
    seconds = dict.fromkeys(("substeps", "controller", "views"), 0.0)

    def clocked(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocking(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - start

        return clocking

    arm, context = env._stepper._arm, env.sim._render_context_offscreen
    with ExitStack() as stack:
        for owner, names, part in (
            (mujoco, ("mj_step1", "mj_step2"), "substeps"),
            (arm, ("begin", "hold"), "controller"),
            (context, ("render", "read_pixels"), "views"),
        ):
            for name in names:
                patch = mock.patch.object(owner, name, clocked(part, getattr(owner, name)))
                stack.enter_context(patch)
        start = time.perf_counter()
        for k in range(0, len(actions), LOOK_EVERY):
            env.step_chunk(actions[k : k + LOOK_EVERY])
        total = time.perf_counter() - start
    env.close()
    seconds["rest"] = total - sum(seconds.values())
    shares = ", ".join(f"{part} {100 * spent / total:.0f} %" for part, spent in seconds.items())
    return f"{1000 * total / len(actions):.1f} ms: {shares}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--task_id", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()
    actions = np.random.default_rng(0).uniform(-0.4, 0.4, (args.steps, 7))
    where = (args.suite, args.task_id, args.image_size, actions)
    base, state = stock(*where)
    print(f"{'':34}{'steps per CPU s':>16}{'ratio':>8}  states")
    print(f"{'stock LIBERO, every step rendered':34}{base:16.1f}{1:8.1f}")
    for profile in ("exact", "fast"):
        for chunk in (1, LOOK_EVERY):
            rate, reached = ours(*where, chunk, profile)
            same = "bitwise stock's" if np.array_equal(reached, state) else "DIFFERENT"
            label = f"{profile}, rendered every {chunk}"
            print(f"{label:34}{rate:16.1f}{rate / base:8.1f}  {same}")
        bound = mujoco_alone(*where, LOOK_EVERY, profile)
        label = f"{profile}, MuJoCo alone, every {LOOK_EVERY}"
        share = f"{100 * rate / bound:.0f} % of it reached"
        print(f"{label:34}{bound:16.1f}{bound / base:8.1f}  the limit: {share}")
    for profile in ("exact", "fast"):
        print(f"a control step of {profile}, {parts(*where, profile)}")


if __name__ == "__main__":
    main()
