"""The loop of one episode: fetch, check, act, watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy._blending import ActionPlan, Chunk
from deploy._executor_config import ExecutorConfig
from deploy._pacing import Pacing
from deploy._report import Ending, EpisodeLog
from deploy._schedule import Clock, Schedule
from deploy.errors import CameraError, ContractMismatchError, DeployError
from deploy.fetcher import Answer, ChunkSource, Failure
from deploy.interfaces import INTERVENTIONS, SUCCESS_RATE, Array, Frame, Robot, Tick, Watcher
from deploy.realtime import request_keys
from deploy.safety import BLOCKS
from deploy.states import State, StateMachine

_BAD_RATES_IN_A_ROW = 3
Until = Callable[[Mapping[str, Any]], bool]


class EpisodeEnd(Exception):
    """Leaves the loop.

    Args:
        ending: See `EpisodeReport.ending`.
        reason: In a sentence.
    """

    def __init__(self, ending: Ending, reason: str) -> None:
        super().__init__(ending, reason)
        self.ending = ending
        self.reason = reason

    def __str__(self) -> str:
        """The reason."""
        return self.reason


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request under way.

    Attributes:
        ticket: Its number.
        step: The step whose action its observation is for.
        tick: The tick at whose beginning it was made.
        moment: When that tick began.
    """

    ticket: int
    step: int
    tick: int
    moment: float


class Episode:
    """State of a running episode; `tick` is one turn of the control loop.

    Args:
        robot: See `Robot`.
        source: See `ChunkSource`.
        config: See `ExecutorConfig`.
        clock: The time.
        states: Goes between RUNNING and HOLD.
        log: Filled.
        watchers: Told about every tick and note.
        tickets: Numbers for requests that no earlier episode has used.
        displacements: Whether actions are velocities.
    """

    def __init__(
        self,
        robot: Robot,
        source: ChunkSource,
        config: ExecutorConfig,
        *,
        clock: Clock,
        states: StateMachine,
        log: EpisodeLog,
        watchers: Sequence[Watcher],
        tickets: Callable[[], int],
        displacements: bool = False,
    ) -> None:
        self.schedule = Schedule(1.0 / config.control_hz, clock)
        self._robot, self._source, self._config = robot, source, config
        self._states, self._log, self._watchers = states, log, watchers
        self._tickets = tickets
        self._plan = ActionPlan(
            blend=config.blend,
            blend_steps=config.blend_steps,
            decay=config.ensemble_decay,
            displacements=displacements and config.make_up,
        )
        self._pacing = Pacing(
            mode=config.mode,
            execute_steps=config.execute_steps,
            eager=config.blend == "ensemble",
        )
        self._step = 0
        self._ticks = 0
        self._asked: _Asked | None = None
        self._standing_since: float | None = None
        self._blame: DeployError | None = None
        self._bad_rates = 0
        self._blocked_since: float | None = None

    def tick(self, until: Until | None) -> None:
        """One turn.

        Raises:
            EpisodeEnd: The episode is over.
            RobotError: The robot cannot go on.
        """
        now = self.schedule.wait()
        if self._step >= self._config.max_steps:
            raise EpisodeEnd("max_steps", f"{self._step} actions were executed")
        self._take_outcome()
        frame = self._ask(now)  # before acting: a chunk's first action is for what was observed
        stands = self._pacing.stands(waiting=self._asked is not None)
        action = None if stands else self._plan.action_at(self._step)
        self._states.to(State.HOLD if action is None else State.RUNNING)
        info = self._robot.act(action)
        if action is not None:
            self._plan.executed(action)
            self._count_action(now)
        self._tell(now, action, info, frame)
        if action is None:
            self._count_standing(now)
        self._watch(info)
        self._watch_blocks(now, action, info.get(INTERVENTIONS) or {})
        self._ticks += 1
        if action is not None and until is not None and until(info):
            raise EpisodeEnd("success", f"the task was done after {self._step} actions")

    def note(self, text: str) -> None:
        """Write something down for the operator."""
        moment = self.schedule.times[-1] - self._log.start if self.schedule.times else 0.0
        self._log.notes.append((moment, text))
        for watcher in self._watchers:
            watcher.on_note(moment, text)

    def _take_outcome(self) -> None:
        outcome, asked = self._source.poll(), self._asked
        if outcome is None or asked is None or outcome.ticket != asked.ticket:
            return  # nothing, or from an earlier episode
        self._asked = None
        if isinstance(outcome, Failure):
            self._fail(outcome.error)
        else:
            self._take_chunk(outcome, asked)

    def _take_chunk(self, answer: Answer, asked: _Asked) -> None:
        chunk = Chunk(
            start=asked.step, actions=answer.actions, arrived=self._step, latent=answer.latent
        )
        self._log.latencies.append(answer.latency_s)
        if answer.server_ms is not None:
            self._log.server_s.append(answer.server_ms / 1e3)
        self._log.chunks += 1
        if not self._plan.add(chunk):
            self.note(f"a chunk came after {self._step - asked.step} steps: of no use any more")
        self._blame = None
        if news := self._pacing.answered(self._ticks - asked.tick, len(answer.actions)):
            self.note(news)

    def _fail(self, error: DeployError) -> None:
        """Note a failure; the same one again is only counted."""
        kind = type(error).__name__
        if self._blame is None or str(self._blame) != str(error):
            self.note(f"{kind}: {error}")
        self._blame = error
        self._log.failures[kind] += 1
        self._log.last_failure = f"{kind}: {error}"
        if isinstance(error, ContractMismatchError):
            raise EpisodeEnd("contract", str(error))

    def _ask(self, now: float) -> Frame | None:
        """Hand an observation over if a chunk is due; returns the observation."""
        newest = self._plan.newest
        if self._asked is not None or not self._pacing.should_ask(self._step, newest):
            return None
        frame = self._robot.observe()
        words: dict[str, Any] = {**frame.observation, "prompt": self._log.prompt}
        if self._config.realtime_chunking and newest is not None:
            elapsed = self._step - newest.start
            words |= request_keys(newest.latent, elapsed, self._pacing.delay)
        ticket = self._tickets()
        if self._source.submit(ticket, lambda: {**words, **self._views(frame)}):
            self._asked = _Asked(ticket=ticket, step=self._step, tick=self._ticks, moment=now)
        return frame

    def _views(self, frame: Frame) -> Mapping[str, Any]:
        """Read the cameras, in the thread that sends the request.

        Raises:
            CameraError: One fails, or its newest picture is old.
        """
        if frame.pictures is None:
            return {}
        pictures = frame.pictures()
        if pictures.age_s > self._config.max_camera_age_s:
            raise CameraError(
                f"the newest picture is older than {self._config.max_camera_age_s:g} s: a camera "
                "stands still"
            )
        moment = self.schedule.times[-1] - self._log.start
        for watcher in self._watchers:
            watcher.on_pictures(moment, pictures)
        return pictures.views

    def _count_action(self, now: float) -> None:
        self._step += 1
        self._log.executed += 1
        self._log.action_times.append(now)
        self._standing_since = None

    def _count_standing(self, now: float) -> None:
        self._log.held += 1
        started = self._log.chunks > 0
        self._log.held_at_start += not started
        if self._standing_since is None:
            self._standing_since = now
        stood = now - self._standing_since
        if stood > (self._config.max_hold_s if started else self._config.first_chunk_s):
            ending: Ending = "camera" if isinstance(self._blame, CameraError) else "hold"
            raise EpisodeEnd(ending, f"no action for {stood:.1f} s: {self._why(now)}")

    def _why(self, now: float) -> str:
        if self._asked is not None:
            waited = f"the policy server has not answered for {now - self._asked.moment:.1f} s"
            return f"{waited}; before that {self._log.last_failure}" if self._blame else waited
        if self._blame is not None:
            return f"{type(self._blame).__name__}: {self._blame}"
        return "the policy server takes no request"

    def _watch(self, info: Mapping[str, Any]) -> None:
        self._log.interventions.update(str(name) for name in info.get(INTERVENTIONS) or ())
        rate = info.get(SUCCESS_RATE)
        if rate is None:
            return
        self._bad_rates = self._bad_rates + 1 if rate < self._config.min_success_rate else 0
        if self._bad_rates >= _BAD_RATES_IN_A_ROW:
            raise EpisodeEnd(
                "success_rate",
                f"only {100 * float(rate):.0f} % of the control cycles were on time: the network "
                "or the processor of the robot host is overloaded",
            )

    def _watch_blocks(
        self, now: float, action: Array | None, interventions: Mapping[str, Any]
    ) -> None:
        """A policy that pushes against the same wall on and on will not get anywhere."""
        names = [name for name in interventions if name in BLOCKS]
        if action is None or not names:
            self._blocked_since = None
            return
        if self._blocked_since is None:
            self._blocked_since = now
        if now - self._blocked_since >= self._config.max_blocked_s:
            raise EpisodeEnd(
                "blocked",
                f"the safety filter stood in the way of every action for "
                f"{self._config.max_blocked_s:g} s ({', '.join(names)})",
            )

    def _tell(
        self, now: float, action: Array | None, info: Mapping[str, Any], frame: Frame | None
    ) -> None:
        latencies = self._log.latencies
        tick = Tick(
            time_s=now - self._log.start,
            step=self._step - (action is not None),
            state=self._states.state,
            action=action,
            info=info,
            frame=frame,
            latency_s=latencies[-1] if latencies else None,
        )
        for watcher in self._watchers:
            watcher.on_tick(tick)
