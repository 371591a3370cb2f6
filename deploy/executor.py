"""Plays a policy's chunks on a robot at a fixed rate, whatever the policy server does."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence

from deploy._episode import Episode, EpisodeEnd, Until
from deploy._executor_config import ExecutorConfig
from deploy._report import Ending, EpisodeLog, EpisodeReport
from deploy._schedule import Clock, MonotonicClock
from deploy.errors import ReflexError, RobotDisconnectedError, RobotError, UserStopError
from deploy.fetcher import ChunkSource
from deploy.interfaces import Robot, Watcher
from deploy.states import State, StateMachine

__all__ = ["EpisodeReport", "Executor", "ExecutorConfig"]

logger = logging.getLogger(__name__)


class Executor:
    """Runs episodes: `connect`, `reset`, `run`, and after a fault `confirm`.

    For one thread, but for `request_stop`.

    Args:
        robot: See `Robot`.
        config: See `ExecutorConfig`.
        clock: The time; another one in tests.
        watchers: Told about every tick and note.
        max_recoveries: See `StateMachine`.
        displacements: Whether actions are velocities, which say how far to go, not where to.
    """

    def __init__(
        self,
        robot: Robot,
        config: ExecutorConfig | None = None,
        *,
        clock: Clock | None = None,
        watchers: Sequence[Watcher] = (),
        max_recoveries: int = 1,
        displacements: bool = False,
    ) -> None:
        self.config = config or ExecutorConfig()
        self._robot = robot
        self._clock = clock or MonotonicClock()
        self._watchers = tuple(watchers)
        self._displacements = displacements
        self._states = StateMachine(max_recoveries=max_recoveries, told=self._told)
        self._log = EpisodeLog(prompt="", start=self._clock.now())
        self._tickets = itertools.count()
        self._stop = threading.Event()
        self._stop_reason = ""

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._states.state

    def connect(self) -> None:
        """Look at the robot once: from DISCONNECTED to IDLE.

        Raises:
            RobotError: It is not there, or in a fault; the state says which.
        """
        self._guarded(self._robot.observe)
        self._states.to(State.IDLE)

    def reset(self) -> None:
        """Move the robot to its start.

        Raises:
            StateError: Not from this state: a fault must be confirmed first.
            RobotError: The robot did not get there; it stands, or the state says which fault.
        """
        self._states.to(State.RESETTING)
        self._stop.clear()
        try:
            self._guarded(self._robot.reset)
        except BaseException:
            self._rest()
            raise
        self._states.to(State.READY)

    def confirm(self) -> None:
        """A person has looked at the robot after a reflex or a stop, and wants to go on.

        Raises:
            StateError: See `StateMachine.confirm`.
        """
        self._states.confirm()

    def request_stop(self, reason: str = "the operator asked for it") -> None:
        """End the episode before its next tick; from any thread or signal handler.

        Asked for between `reset` and `run`, the episode ends before its first.
        """
        self._stop_reason = reason
        self._stop.set()

    def run(self, prompt: str, source: ChunkSource, *, until: Until | None = None) -> EpisodeReport:
        """Run one episode. The robot stands at its end, whatever happened.

        Args:
            prompt: The instruction.
            source: Of chunks; not closed here.
            until: Asked with the info of every executed action whether the task is done.

        Returns:
            What happened. A fault of the robot ends the episode; it is in the report and in
            `state`.

        Raises:
            StateError: The robot is not at its start (READY).
        """
        self._log = EpisodeLog(prompt=prompt, start=self._clock.now())
        self._states.to(State.RUNNING)
        episode = Episode(
            self._robot,
            source,
            self.config,
            clock=self._clock,
            states=self._states,
            log=self._log,
            watchers=self._watchers,
            tickets=lambda: next(self._tickets),
            displacements=self._displacements,
        )
        try:
            ending, reason = self._play(episode, until)
        finally:
            failed = self._rest()
        if failed is not None and ending not in ("reflex", "estop", "disconnected"):
            ending, reason = _ending_of(failed), f"{reason}; then {failed}"
        logger.info("episode ended (%s): %s", ending, reason)
        schedule = episode.schedule
        return self._log.report(
            ending, reason, schedule.times, late=schedule.late, skipped=schedule.skipped
        )

    def _play(self, episode: Episode, until: Until | None) -> tuple[Ending, str]:
        try:
            while not self._stop.is_set():
                self._guarded(lambda: episode.tick(until))
        except EpisodeEnd as end:
            return end.ending, end.reason
        except RobotError as error:
            return _ending_of(error), str(error)
        return "operator", self._stop_reason

    def _rest(self) -> RobotError | None:
        """Stop the robot if it can still be told to; returns why it could not."""
        if self.state in (State.REFLEX, State.ESTOP, State.DISCONNECTED):
            return None
        self._states.to(State.STOPPING)
        try:
            self._guarded(self._robot.stop)
        except RobotError as error:
            logger.error("the robot could not be stopped: %s", error)
            return error
        finally:
            if self.state is State.STOPPING:
                self._states.to(State.IDLE)
        return None

    def _guarded(self, call: Callable[[], object]) -> None:
        """Call the robot; an error that is a state of the robot becomes the executor's state."""
        try:
            call()
        except RobotError as error:
            if (state := _state_of(error)) is not None:
                self._states.to(state)
            raise

    def _told(self, old: State, new: State) -> None:
        moment = self._clock.now() - self._log.start
        self._log.transitions.append((moment, old.value, new.value))
        logger.debug("%.3f s: %s -> %s", moment, old.value, new.value)


def _state_of(error: RobotError) -> State | None:
    states = {
        ReflexError: State.REFLEX,
        UserStopError: State.ESTOP,
        RobotDisconnectedError: State.DISCONNECTED,
    }
    return next((state for kind, state in states.items() if isinstance(error, kind)), None)


def _ending_of(error: RobotError) -> Ending:
    endings: dict[State | None, Ending] = {
        State.REFLEX: "reflex",
        State.ESTOP: "estop",
        State.DISCONNECTED: "disconnected",
    }
    return endings.get(_state_of(error), "robot")
