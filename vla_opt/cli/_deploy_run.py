"""``vla-opt deploy run``, ``dry-run``, ``replay`` and ``record``."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_opt.cli._deploy_config import DeployConfig, Opened, open_robot

if TYPE_CHECKING:
    from deploy.executor import EpisodeReport, Executor
    from deploy.fetcher import ChunkSource
    from deploy.interfaces import Pictures, Tick
    from deploy.tick_log import TickLog


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(DeployConfig):
    """Which episode to play again.

    Attributes:
        dataset: A LeRobotDataset v3.
        episode: Its number in the data set.
    """

    dataset: Path
    episode: int = 0


@dataclass(frozen=True, kw_only=True)
class RecordConfig(DeployConfig):
    """Where to keep the episodes.

    Attributes:
        dataset: The LeRobotDataset v3 that is made at the end, of everything below `output_dir`.
    """

    dataset: Path


def run(argv: Sequence[str]) -> int:
    """Run episodes with a served policy."""
    from vla_opt.cli._config import parse

    return _with_policy(parse(DeployConfig, argv))


def dry_run(argv: Sequence[str]) -> int:
    """The same without moving."""
    from vla_opt.cli._config import parse

    return _with_policy(parse(DeployConfig, argv), read_only=True)


def replay(argv: Sequence[str]) -> int:
    """Play a recorded episode again."""
    from deploy._signals import stop_on_signal
    from deploy.executor import Executor
    from deploy.replay import RecordedActions, check_recording, read_actions
    from vla_opt.cli._config import parse

    config = parse(ReplayConfig, argv)
    actions, instruction = read_actions(config.dataset, config.episode)
    length = len(actions)
    playing = dataclasses.replace(
        config.executor, max_steps=length, execute_steps=length, blend="none", mode="async"
    )
    print(f"episode {config.episode} of {config.dataset}: {length} actions, {instruction!r}")
    with open_robot(config, ready=_clear_fault) as opened, _live() as live:
        for warning in check_recording(
            config.dataset,
            actions,
            opened.says,
            stated=config.policy.metadata(),
            override=config.override_contract,
        ):
            print(f"warning: {warning}")
        executor = Executor(opened.robot, playing, watchers=[live])
        executor.connect()
        executor.reset()
        with stop_on_signal(executor):
            report = executor.run(instruction, RecordedActions(actions))
    _print_report(report)
    return 0 if report.ending == "max_steps" else 1


def record(argv: Sequence[str]) -> int:
    """Run episodes and keep them, good or not: each says how it ended."""
    from deploy.policy_recording import PolicyRecording
    from vla_opt.cli._config import parse

    config = parse(RecordConfig, argv)
    recording = PolicyRecording(config.output_dir / "episodes", config.instruction())
    code = _with_policy(config, wrap=recording.wrap, keep=recording.finish)
    print(f"data set: {recording.export(config.dataset)}")
    return code


def _with_policy(
    config: DeployConfig,
    *,
    read_only: bool = False,
    wrap: Callable[[Any], Any] | None = None,
    keep: Callable[[EpisodeReport], None] = lambda report: None,
) -> int:
    from deploy.session import open_session
    from deploy.tick_log import TickLog

    instruction = config.instruction()
    log = TickLog(config.output_dir / "ticks.jsonl")
    watchers = _watchers(config, log)
    try:
        with (
            open_robot(
                config,
                read_only=read_only,
                wrap=wrap,
                ready=_nothing if read_only else _clear_fault,
            ) as opened,
            _live() as live,
            open_session(
                opened.robot,
                opened.says,
                client=config.client(),
                executor=config.executor,
                stated=config.policy.metadata(),
                override=config.override_contract,
                watchers=[live, *watchers],
            ) as session,
        ):
            print(f"policy: {session.agreement.policy.policy or 'says no name'}")
            for warning in session.agreement.warnings:
                print(f"warning: {warning}")
            reports = []
            for report in _episodes(config, opened, session.executor, session.fetcher, instruction):
                reports.append(report)
                keep(report)
    finally:
        for watcher in watchers:
            watcher.close()
    return _summary(config, reports)


def _watchers(config: DeployConfig, log: TickLog) -> list[Any]:
    """Those that write files."""
    if not config.rerun:
        return [log]
    from deploy.rerun_log import RerunLog

    return [log, RerunLog(config.output_dir / "episodes.rrd")]


def _episodes(
    config: DeployConfig,
    opened: Opened,
    executor: Executor,
    source: ChunkSource,
    instruction: str,
) -> Iterator[EpisodeReport]:
    from deploy._signals import stop_on_signal

    for number in range(config.episodes):
        until = _lay_table(config, opened, number)
        executor.reset()
        with stop_on_signal(executor):
            report = executor.run(instruction, source, until=until)
        print(f"episode {number + 1} of {config.episodes}")
        _print_report(report)
        yield report
        if report.ending in ("reflex", "estop") and _may_go_on(executor, report.reason):
            continue
        if report.ending not in ("success", "max_steps"):
            print("ending here: look at the robot before you go on.")
            return


def _may_go_on(executor: Executor, fault: str) -> bool:
    """Ask the operator to look at the robot; once per program, see `StateMachine`."""
    from deploy.errors import StateError

    if not _confirmed(fault):
        return False
    try:
        executor.confirm()
    except StateError as error:
        print(error)
        return False
    return True


def _nothing(opened: Opened) -> None:
    """A dry run clears no faults: nothing moves."""


def _clear_fault(opened: Opened) -> None:
    """A robot that was found in a fault is recovered if the operator confirms it.

    Raises:
        RobotError: The operator did not.
    """
    from deploy.errors import ReflexError, UserStopError

    try:
        opened.robot.observe()
    except (ReflexError, UserStopError) as error:
        if not _confirmed(str(error)):
            raise
        opened.env.recover()


def _confirmed(fault: str) -> bool:
    """Whether somebody at a terminal has looked at the robot and says so, word for word."""
    print(fault, flush=True)
    if not sys.stdin.isatty():
        return False
    answer = input("Look at the robot and remove the cause. 'recover' goes on, all else ends: ")
    return answer.strip() == "recover"


def _lay_table(
    config: DeployConfig, opened: Opened, number: int
) -> Callable[[Mapping[str, Any]], bool] | None:
    """Put the objects of a simulated task where the seed says; returns its success predicate."""
    if config.task is None:
        return None
    from deploy.sim.tasks import TASKS, random_placements, settled

    scene = opened.env.robot.scene
    scene.place(random_placements(config.seed + number))
    return settled(TASKS[config.task], scene.state)


class _Live:
    """One line that is written over: state, rate, latency, interventions."""

    def __init__(self) -> None:
        self._shown = -1.0
        self._ticks = self._interventions = 0
        self._terminal = sys.stderr.isatty()

    def on_tick(self, tick: Tick) -> None:
        """See `deploy.interfaces.Watcher`."""
        if tick.time_s < self._shown:  # a new episode
            self._shown, self._ticks, self._interventions = -1.0, 0, 0
        self._ticks += 1
        self._interventions += bool(tick.info.get("interventions"))
        if tick.time_s - self._shown < (0.5 if self._terminal else 5.0):
            return
        self._shown = tick.time_s
        rate = (self._ticks - 1) / tick.time_s if tick.time_s > 0 else 0.0
        latency = "-" if tick.latency_s is None else f"{1e3 * tick.latency_s:.0f} ms"
        line = (
            f"{tick.time_s:6.1f} s  {tick.state.value:8} step {tick.step:4}  {rate:5.2f} Hz  "
            f"latency {latency:>7}  filtered {self._interventions}"
        )
        end = "\r" if self._terminal else "\n"
        print(line, end=end, file=sys.stderr, flush=True)

    def on_note(self, time_s: float, text: str) -> None:
        """See `deploy.interfaces.Watcher`."""
        print(f"{time_s:6.1f} s  {text}", file=sys.stderr, flush=True)

    def on_pictures(self, time_s: float, pictures: Pictures) -> None:
        """See `deploy.interfaces.Watcher`."""


@contextlib.contextmanager
def _live() -> Iterator[_Live]:
    live = _Live()
    yield live
    if sys.stderr.isatty():
        print(file=sys.stderr)


def _print_report(report: EpisodeReport) -> None:
    gap, latency = report.tick_gap_ms, report.latency_ms
    print(f"  ended: {report.ending} ({report.reason})")
    print(
        f"  {report.executed} actions in {report.seconds:.1f} s, {report.rate_hz:.2f} Hz; gaps "
        f"p50 {gap.p50:.1f}, p99 {gap.p99:.1f}, largest {gap.largest:.1f} ms; {report.late} late, "
        f"{report.skipped} skipped"
    )
    print(
        f"  stood {report.held} ticks ({report.held_at_start} of them before the first chunk); "
        f"{report.chunks} chunks, latency p50 {latency.p50:.0f}, p99 {latency.p99:.0f} ms"
    )
    for name, counts in (("failures", report.failures), ("filter", report.interventions)):
        if counts:
            print(f"  {name}: " + ", ".join(f"{k} {v}" for k, v in sorted(counts.items())))


def _summary(config: DeployConfig, reports: Sequence[EpisodeReport]) -> int:
    from vla_opt.evaluation.statistics import wilson
    from vla_opt.io import atomic_write_json

    file = config.output_dir / "episodes.json"
    atomic_write_json(file, [report.to_dict() for report in reports])
    if config.task is not None and reports:
        solved = sum(report.ending == "success" for report in reports)
        low, high = wilson(solved, len(reports))
        print(
            f"success {solved}/{len(reports)} (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
        )
    print(f"reports: {file}, every tick: {config.output_dir / 'ticks.jsonl'}")
    good = all(report.ending in ("success", "max_steps") for report in reports)
    return 0 if good and len(reports) == config.episodes else 1
