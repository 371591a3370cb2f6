"""The whole way from a policy server to an arm, without an arm: ``python -m deploy.rehearsal``.

A simulated FR3 behind the real protocol with its limits enforced, drawn cameras, a policy server,
and the 15 Hz executor, for one or more episodes of each task. Ends with a report that has plots and
a video. The policy is the scripted demonstrator unless `--server` names another one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from deploy._pacing import MODES, Mode
from deploy._rehearsal_observer import FILM_FPS, Observer
from deploy._rehearsal_report import About, EpisodeSeen, write_report
from deploy._signals import end_like_ctrl_c, stop_on_signal
from deploy.cameras import Image
from deploy.client import ClientConfig
from deploy.droid import DroidRobot, Views, robot_metadata
from deploy.executor import ExecutorConfig
from deploy.robot import RobotConfig
from deploy.robot_env import RobotEnv
from deploy.server import PolicyServer, ServerConfig
from deploy.session import Session, open_session
from deploy.sim.clock import RobotClock
from deploy.sim.expert_policy import ExpertPolicy
from deploy.sim.link import SceneLink
from deploy.sim.process import SimulatedArm
from deploy.sim.tasks import TASKS, Task, random_placements, settled
from deploy.states import State
from deploy.tick_log import TickLog
from vla_opt.provenance import run_metadata

logger = logging.getLogger("rehearsal")

_ANSWER_S = 20.0  # wall time: a machine with other work is slow, which is no fault of the server


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """What to rehearse.

    Attributes:
        tasks: Of `deploy.sim.tasks.TASKS`.
        episodes: Of each task.
        seed: Objects of episode n stand as seed + n says.
        max_steps: Control steps of an episode.
        safety: Profile of the safety filter.
        mode: How chunks are fetched; see `deploy.executor.ExecutorConfig`.
        execute_steps: Actions of a chunk that are played; likewise.
        make_up: Whether velocity actions that elapsed are made up for; likewise.
        server: Of a policy that is served already; None serves the scripted demonstrator.
        patience_s: See `deploy.sim.physics.ArmPhysics`; 0 is as strict as a real arm.
        film: Whether to make the video.
        output_dir: For report, log and video.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    episodes: int = 1
    seed: int = 0
    max_steps: int = 200
    safety: str = "full"
    mode: Mode = "auto"
    execute_steps: int = 8
    make_up: bool = True
    server: str | None = None
    patience_s: float = 0.1
    film: bool = True
    output_dir: Path = Path("runs/rehearsal")


def rehearse(config: RehearsalConfig) -> list[EpisodeSeen]:
    """Run all episodes; the report is written anew after each.

    Returns:
        What was seen of each episode; the last one is that in which the arm went into a fault, or
        that was ended by a signal.

    Raises:
        DeployError: The simulation, the server or the robot's link failed.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    metadata = run_metadata()
    with contextlib.ExitStack() as stack:
        arm = stack.enter_context(SimulatedArm(patience_s=config.patience_s))
        logger.info("simulated FR3 at %s, limits enforced", arm.host)
        env = stack.enter_context(
            RobotEnv(
                "joint_velocity",
                "position",
                do_reset=False,
                robot=RobotConfig(robot=f"sim:{arm.host}", safety=config.safety),
            )
        )
        profile = env.robot.arm.profile.name
        url = config.server or stack.enter_context(_demonstrator(arm, profile))
        logger.info("policy server at %s", url)
        watch = stack.enter_context(_watching(arm))
        log = TickLog(config.output_dir / "ticks.jsonl")
        stack.callback(log.close)
        session = stack.enter_context(_session(env, url, config, RobotClock(watch), (log,)))
        said = session.agreement.policy.policy or "a policy that says no name"
        about = About(policy=said, patience_s=config.patience_s, metadata=metadata)
        seen = []
        for episode in _episodes(config, session, env, arm):
            seen.append(episode)
            write_report(config.output_dir, seen, about)  # whatever happens to the next one
    return seen


def _episodes(
    config: RehearsalConfig, session: Session, env: RobotEnv, arm: SimulatedArm
) -> Iterator[EpisodeSeen]:
    """All episodes, or those up to the first that the operator ended or has to look at."""
    for name in config.tasks:
        for number in range(config.episodes):
            episode = _episode(config, session, env, arm, TASKS[name], config.seed + number)
            yield episode
            if episode.report["ending"] == "operator":
                return
            if session.executor.state is not State.IDLE:
                logger.error("ending here: the arm is in state %s", session.executor.state.value)
                return


@contextlib.contextmanager
def _demonstrator(arm: SimulatedArm, controller_profile: str) -> Iterator[str]:
    with _watching(arm) as link:
        policy = ExpertPolicy(link)
        server = PolicyServer(
            policy,
            metadata=policy.metadata(controller_profile),
            config=ServerConfig(port=0),
        )
        with server.running():
            yield server.url


@contextlib.contextmanager
def _watching(arm: SimulatedArm) -> Iterator[SceneLink]:
    link = arm.link()
    try:
        yield link
    finally:
        link.close()


@contextlib.contextmanager
def _session(
    env: RobotEnv,
    url: str,
    config: RehearsalConfig,
    clock: RobotClock,
    watchers: Sequence[Any],
) -> Iterator[Session]:
    views = Views()
    says = robot_metadata(env, controller_profile=env.robot.arm.profile.name, views=views)
    with open_session(
        DroidRobot(env, env.robot.cameras, views),
        says,
        client=ClientConfig(url=url, answer_timeout_s=_ANSWER_S, connect_timeout_s=_ANSWER_S),
        executor=ExecutorConfig(
            max_steps=config.max_steps,
            mode=config.mode,
            execute_steps=config.execute_steps,
            make_up=config.make_up,
            max_camera_age_s=_ANSWER_S,
        ),
        clock=clock,
        watchers=watchers,
    ) as session:
        yield session


def _episode(
    config: RehearsalConfig,
    session: Session,
    env: RobotEnv,
    arm: SimulatedArm,
    task: Task,
    seed: int,
) -> EpisodeSeen:
    """One episode, sampled and filmed from the side."""
    logger.info("%s, scene %d", task.name, seed)
    with _watching(arm) as link, Observer(arm, film=config.film) as observer:
        session.executor.reset()
        link.place(random_placements(seed))
        wall, robot = time.monotonic(), link.state().time
        with stop_on_signal(session.executor):
            report = session.executor.run(
                task.instruction, session.fetcher, until=settled(task, link.state)
            )
        solved = task.solved(link.state())
        factor = (link.state().time - robot) / (time.monotonic() - wall)
    if observer.frames:
        _write_film(config.output_dir / f"{task.name}_{seed}.mp4", observer.frames)
    logger.info("%s: %s", "solved" if solved else "not solved", report.reason)
    return EpisodeSeen(
        task=task.name,
        seed=seed,
        solved=solved,
        report=report.to_dict(),
        samples=tuple(observer.samples),
        real_time_factor=factor,
        interventions=dict(env.interventions),
    )


def _write_film(path: Path, frames: Sequence[Image]) -> None:
    from envs._video import encode_mp4

    path.write_bytes(encode_mp4(frames, Fraction(FILM_FPS)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearse as the command line says; 0 if no episode ended by a fault or by the operator."""
    defaults = RehearsalConfig()
    parser = argparse.ArgumentParser(
        prog="python -m deploy.rehearsal", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tasks", nargs="+", default=defaults.tasks, choices=tuple(TASKS))
    parser.add_argument("--episodes", type=int, default=defaults.episodes)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--max-steps", type=int, default=defaults.max_steps)
    parser.add_argument("--safety", default=defaults.safety, choices=("cautious", "full"))
    parser.add_argument("--mode", default=defaults.mode, choices=MODES)
    parser.add_argument("--execute-steps", type=int, default=defaults.execute_steps)
    parser.add_argument("--no-make-up", dest="make_up", action="store_false")
    parser.add_argument("--server", help="ws://... of a policy; without, the demonstrator")
    parser.add_argument("--patience-s", type=float, default=defaults.patience_s)
    parser.add_argument("--no-film", dest="film", action="store_false")
    parser.add_argument("--output-dir", type=Path, default=defaults.output_dir)
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = RehearsalConfig(**{**options, "tasks": tuple(options["tasks"])})
    end_like_ctrl_c()
    try:
        seen = rehearse(config)
    except KeyboardInterrupt:
        logger.warning("ended between two episodes")
        return 1
    report = config.output_dir / "report.html"
    summary = {
        "solved": f"{sum(e.solved for e in seen)}/{len(seen)}",
        "faults": [e.report["reason"] for e in seen if e.faulty],
        "report": str(report),
    }
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    return int(any(e.faulty for e in seen))


if __name__ == "__main__":
    sys.exit(main())
