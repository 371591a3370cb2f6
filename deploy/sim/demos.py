"""Demonstrations of the tasks, recorded over Franka's protocol: ``python -m deploy.sim.demos``.

The scripted demonstrator drives the simulated arm through `RobotEnv`, the policy's pictures are
drawn, and what becomes of it is a LeRobotDataset with the controller it was made under. Disturbed
actions are executed and undisturbed ones recorded (DART, Laskey et al. 2017): a policy learns how
to come back from where its own errors lead it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from deploy._schedule import Schedule
from deploy.droid import DROID_VIEWS, robot_metadata
from deploy.errors import DeployError
from deploy.limits import JOINTS, Array
from deploy.recording import EpisodeRecorder, frame_of
from deploy.robot import RobotConfig
from deploy.robot_env import CONTROL_HZ, RobotEnv
from deploy.sim.clock import RobotClock
from deploy.sim.expert import PickPlaceExpert
from deploy.sim.link import SceneLink
from deploy.sim.process import SimulatedArm
from deploy.sim.tasks import TASKS, Task, random_placements
from vla_opt.io import append_jsonl

logger = logging.getLogger("demos")

ATTEMPTS = "attempts.jsonl"
_SEED_STEP = 10_000  # between the scenes of two tasks
_HOLD = 6  # control steps that a disturbance lasts
_WHITE = 0.3  # share of it that changes at every step
_HEADROOM = 3  # attempts at most for each demonstration that is wanted


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """What to record.

    Attributes:
        tasks: Of `deploy.sim.tasks.TASKS`.
        per_task: Demonstrations that solved their task, of each.
        seed: Objects of attempt n stand as seed + n says. Rehearsals count from 0: no scene is in
            both.
        noise_levels: Standard deviations of the disturbance in units of an action; attempt n takes
            level n modulo their number.
        max_steps: Control steps after which an attempt has failed.
        safety: Profile of the safety filter.
        patience_s: See `deploy.sim.physics.ArmPhysics`.
        output_dir: Attempts, episodes and at last the data set `dataset`, made of all of them, go
            here; recording goes on where it was interrupted.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    per_task: int = 40
    seed: int = 1_000_000
    noise_levels: tuple[float, ...] = (0.0, 0.05, 0.1)
    max_steps: int = 250
    safety: str = "full"
    patience_s: float = 0.1
    output_dir: Path = Path("runs/fr3/demos")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One line of `ATTEMPTS`.

    Attributes:
        task: Its name.
        number: Of the attempt at this task.
        seed: Of the scene and of the disturbance.
        noise: Its level.
        solved: Whether the task was solved; only then the attempt is kept.
        steps: Control steps.
        seconds: Of robot time.
        skipped: Control steps that this machine was too slow for.
    """

    task: str
    number: int
    seed: int
    noise: float
    solved: bool
    steps: int
    seconds: float
    skipped: int


class Disturbance:
    """A joint velocity that lasts for some steps, and white noise on top.

    Args:
        level: Standard deviation in units of an action; 0 disturbs nothing.
        seed: Where it comes from.
    """

    def __init__(self, level: float, seed: int) -> None:
        self._level = level
        self._random = np.random.default_rng(seed)
        self._steps = 0
        self._bias: Array = np.zeros(JOINTS)

    def __call__(self, action: Array, tolerance: float) -> Array:
        """The (8,) action to execute; the gripper is never disturbed.

        Args:
            action: The demonstrator's.
            tolerance: How much the situation bears, from 0 to 1.
        """
        if self._steps % _HOLD == 0:
            self._bias = self._random.normal(size=JOINTS)
        self._steps += 1
        noise = self._bias + _WHITE * self._random.normal(size=JOINTS)
        return np.append(action[:JOINTS] + tolerance * self._level * noise, action[JOINTS])


def record(config: DemosConfig) -> Path:
    """Record what is missing, then write the data set.

    Returns:
        The data set's folder.

    Raises:
        DeployError: The simulation failed, or the demonstrator fails too often.
        OSError: The disk is full; what was recorded before stays.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with _opened(config) as (env, link):
        said = robot_metadata(env, controller_profile=env.robot.arm.profile.name)
        recorder = EpisodeRecorder(config.output_dir / "episodes", said)
        for name in config.tasks:
            _record_task(config, env, link, recorder, name)
    dataset = config.output_dir / "dataset"
    if dataset.exists():
        shutil.rmtree(dataset)  # made of fewer episodes; those are still there
    return recorder.export(dataset)


@contextlib.contextmanager
def _opened(config: DemosConfig) -> Iterator[tuple[RobotEnv, SceneLink]]:
    with contextlib.ExitStack() as stack:
        arm = stack.enter_context(SimulatedArm(patience_s=config.patience_s))
        link = arm.link()
        stack.callback(link.close)
        chosen = RobotConfig(robot=f"sim:{arm.host}", safety=config.safety)
        env = stack.enter_context(
            RobotEnv("joint_velocity", "position", do_reset=False, robot=chosen)
        )
        seen = set(DROID_VIEWS.values())  # what a policy is shown; drawing the others takes time
        env.robot.cameras = {n: c for n, c in env.robot.cameras.items() if n in seen}
        yield env, link


def _record_task(
    config: DemosConfig,
    env: RobotEnv,
    link: SceneLink,
    recorder: EpisodeRecorder,
    name: str,
) -> None:
    seed = config.seed + _SEED_STEP * list(TASKS).index(name)
    made = [a for a in read_attempts(config.output_dir) if a.task == name]
    solved, number = sum(a.solved for a in made), len(made)
    while solved < config.per_task:
        if number >= _HEADROOM * config.per_task:
            raise DeployError(f"the demonstrator solved {name} {solved} times of {number}")
        level = config.noise_levels[number % len(config.noise_levels)]
        found = demonstrate(
            TASKS[name],
            env,
            link,
            recorder,
            number=number,
            seed=seed + number,
            noise=level,
            max_steps=config.max_steps,
        )
        append_jsonl(config.output_dir / ATTEMPTS, asdict(found))
        solved, number = solved + found.solved, number + 1
        logger.info("%s: %d of %d, %s", name, solved, config.per_task, found)


def demonstrate(
    task: Task,
    env: RobotEnv,
    link: SceneLink,
    recorder: EpisodeRecorder,
    *,
    number: int,
    seed: int,
    noise: float,
    max_steps: int,
) -> Attempt:
    """Make one attempt; keep it if it solved the task.

    Args:
        task: What to do.
        env: In the space "joint_velocity".
        link: To the simulation that `env` is connected to.
        recorder: Where to.
        number: See `Attempt`.
        seed: See `Attempt`.
        noise: See `Attempt`.
        max_steps: See `DemosConfig`.

    Raises:
        DeployError: The arm or the simulation failed.
    """
    env.reset()
    link.place(random_placements(seed))
    expert, disturb = PickPlaceExpert(task), Disturbance(noise, seed)
    schedule = Schedule(1 / CONTROL_HZ, RobotClock(link))
    recorder.begin(task.instruction)
    steps = 0
    while not expert.done and steps < max_steps:
        now = schedule.wait()
        seen, scene = env.get_observation(), link.state()
        action = expert.act(scene)
        env.step(disturb(action, expert.tolerance(scene)))
        recorder.add(frame_of(seen, action, now - schedule.times[0]))
        steps += 1
    env.stop()
    found = Attempt(
        task=task.name,
        number=number,
        seed=seed,
        noise=noise,
        solved=task.solved(link.state()),
        steps=steps,
        seconds=schedule.times[-1] - schedule.times[0],
        skipped=schedule.skipped,
    )
    if found.solved:
        recorder.finish(**asdict(found))
    return found


def read_attempts(folder: Path) -> list[Attempt]:
    """All attempts that were made in a folder."""
    file = folder / ATTEMPTS
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Attempt(**json.loads(line)) for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Record as the command line says."""
    defaults = DemosConfig()
    parser = argparse.ArgumentParser(
        prog="python -m deploy.sim.demos", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tasks", nargs="+", default=defaults.tasks, choices=tuple(TASKS))
    parser.add_argument("--per-task", type=int, default=defaults.per_task)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--noise-levels", nargs="+", type=float, default=defaults.noise_levels)
    parser.add_argument("--patience-s", type=float, default=defaults.patience_s)
    parser.add_argument("--output-dir", type=Path, default=defaults.output_dir)
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("tasks", "noise_levels"):
        options[name] = tuple(options[name])
    sys.stdout.write(f"{record(DemosConfig(**options))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
