"""A small task that is really solved in closed loop from pictures, and faults that really happen.

A puck slides on a table with friction; a seeded wind pushes it. The policy finds puck and goal in
the picture and accelerates. Episodes take milliseconds, so that a test can afford many, and each
step depends on the bits of all steps before.

As a program it is an evaluation that a test can kill: `python reach.py CHECKPOINT FOLDER BACKEND`.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from envs.rollout import EpisodeWorker

SIZE = 32
MAX_STEPS = 48
SUITE = "libero_object"


class ReachEnv:
    """The interface of `envs.libero.LiberoEnv`."""

    def __init__(self, task: tuple[str, int], config: Any, folder: Path) -> None:
        self.spec, self.task_description = config.env_spec, f"reach goal {task[1]}"
        self._task_id, self._folder = task[1], folder
        self._goal = np.array([0.25 + 0.5 * (task[1] % 2), 0.3 + 0.04 * task[1]])

    def reset(self, *, seed: int, options: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        self._name = f"{self._task_id}/{options['init_state']}"
        self._fault("reset")
        rng = np.random.default_rng(seed)
        self._place, self._speed = rng.uniform(0.1, 0.9, 2), np.zeros(2)
        self._wind, self._steps = rng.normal(0.0, 0.012, 2), 0
        return self._look(), {"is_success": False, "steps": 0}

    def step_chunk(self, actions: np.ndarray) -> Any:
        self._fault("step")
        time.sleep(float(os.environ.get("REACH_SLOW", "0")))
        success = False
        for action in actions:
            self._speed = 0.8 * self._speed + 0.02 * action[:2] + self._wind
            self._place = np.clip(self._place + self._speed, 0.0, 1.0)
            self._steps += 1
            success = bool(np.linalg.norm(self._place - self._goal) < 0.06)
            if success or self._steps == MAX_STEPS:
                break
        info = {"is_success": success, "steps": self._steps}
        truncated = not success and self._steps == MAX_STEPS
        return self._look(), float(success), success, truncated, info

    def _look(self) -> dict[str, Any]:
        image = np.full((SIZE, SIZE, 3), 90, np.uint8)
        for place, channel in ((self._goal, 0), (self._place, 1)):
            row, column = (place * (SIZE - 4)).astype(int)
            image[row : row + 4, column : column + 4, channel] = 255
        state = np.zeros(8, np.float32)
        state[:2], state[2:4] = self._place, self._speed
        return {"pixels": {"image": image, "image2": image[::-1].copy()}, "agent_pos": state}

    def _fault(self, where: str) -> None:
        """Do what `faults.json` has for this episode; what ends in "!" each time, else once."""
        plan = json.loads((self._folder / "faults.json").read_text())
        kind, _, at = plan.get(self._name, "").partition("@")
        if not kind or at != where:
            return
        if not kind.endswith("!"):
            try:
                (self._folder / f"fired_{self._name.replace('/', '_')}").touch(exist_ok=False)
            except FileExistsError:
                return
        FAULTS[kind.rstrip("!")](self._folder)

    def close(self) -> None:
        pass


def _kill(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _abort(folder: Path) -> None:
    os.abort()  # what a C++ library does when it cannot allocate


def _hang(folder: Path) -> None:
    while True:
        time.sleep(60)


def _freeze(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)  # deaf to everything but SIGKILL


def _kill_policy(folder: Path) -> None:
    os.kill(int((folder / "policy_pid").read_text()), signal.SIGKILL)


def _no_memory(folder: Path) -> None:
    """Ask for more than this process may have."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    bytearray(1 << 30)


def _out_of_memory(folder: Path) -> None:
    """Be ended by the kernel, in a group whose memory a test has limited."""
    group = Path((folder / "memory_group").read_text())
    (group / "cgroup.procs").write_text(str(os.getpid()))
    bytearray(512 << 20)
    raise AssertionError("the limit is not in force")


def _broken_reset(folder: Path) -> None:
    raise RuntimeError("the scene cannot be drawn")


FAULTS = {
    "kill": _kill,
    "abort": _abort,
    "hang": _hang,
    "freeze": _freeze,
    "kill_policy": _kill_policy,
    "no_memory": _no_memory,
    "out_of_memory": _out_of_memory,
    "raise": _broken_reset,
}


class ServoPolicy:
    """Accelerates from the green square towards the red one; its gains are its weights."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self._gain, self._damping = json.loads((checkpoint / "config.json").read_text())["gains"]
        (folder / "policy_pid").write_text(str(os.getpid()))

    def infer(self, observations: Any) -> list[np.ndarray]:
        return [self._one(observation) for observation in observations]

    def _one(self, observation: Any) -> np.ndarray:
        image = observation["pixels"]["image"]
        goal, puck = (np.argwhere(image[..., c] == 255).mean(axis=0) / SIZE for c in (0, 1))
        aim = self._gain * (goal - puck) - self._damping * observation["agent_pos"][2:4]
        chunk = np.zeros((8, 7))
        chunk[:, :2] = np.clip(aim, -1.0, 1.0)
        return chunk


def write_checkpoint(folder: Path, gains: tuple[float, float] = (6.0, 4.0)) -> Path:
    """A checkpoint as `vla_opt.evaluation.contract` reads it."""
    shape = {"type": "VISUAL", "shape": [3, SIZE, SIZE]}
    config = {
        "type": "servo",
        "gains": gains,
        "chunk_size": 8,
        "input_features": {
            "observation.images.image": shape,
            "observation.state": {"type": "STATE", "shape": [8]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextlib.contextmanager
def reaching(folder: Path, faults: dict[str, str] | None = None) -> Iterator[None]:
    """Evaluations inside run this task, with the faults {"task/init_state": "kind@where"}."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.json").write_text(json.dumps(faults or {}))
    make_env = functools.partial(_make_env, folder)
    make_policy = functools.partial(_make_policy, folder)
    runner = "vla_opt.evaluation.runner"
    with (
        mock.patch(f"{runner}.EpisodeWorker", functools.partial(EpisodeWorker, make_env=make_env)),
        mock.patch(f"{runner}._build_policy", make_policy),
    ):
        yield


def _make_env(folder: Path, task: tuple[str, int], config: Any) -> ReachEnv:
    return ReachEnv(task, config, folder)


def _make_policy(folder: Path, checkpoint: Path, **options: Any) -> ServoPolicy:
    return ServoPolicy(checkpoint, folder)


def main(checkpoint: str, folder: str, backend: str) -> None:
    """Evaluate into FOLDER/eval; the error of a full disk is printed."""
    from vla_opt.evaluation.config import EvalConfig
    from vla_opt.evaluation.runner import evaluate

    config = EvalConfig(
        checkpoint=Path(checkpoint),
        task_ids=(0, 1),
        episodes=12,
        image_size=SIZE,
        backend=backend,
        videos="all",
        output_dir=Path(folder) / "eval",
    )
    with reaching(Path(folder)):
        try:
            evaluate(config)
        except OSError as error:
            print(error)
            sys.exit(1)


if __name__ == "__main__":
    sys.modules["reach"] = sys.modules[__name__]
    main(*sys.argv[1:])
