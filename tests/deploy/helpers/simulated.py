"""A clock, a policy and a robot without a machine behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deploy.errors import DeployError
from deploy.fetcher import Answer, Failure, Request
from deploy.interfaces import Array, Frame, Pictures, Tick

HORIZON = 15


class FakeClock:
    """Time passes only where somebody sleeps or works."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


def counting_chunk(step: float, horizon: int = HORIZON) -> Array:
    """Row i is the number of the step it is meant for, in all eight columns."""
    return np.repeat(step + np.arange(horizon, dtype=float)[:, None], 8, axis=1)


class ScriptedSource:
    """Answers the observed step's `counting_chunk` after a latency in the clock's time.

    `script` may give another latency, a failure or another chunk for the n-th request.
    """

    def __init__(
        self,
        clock: FakeClock,
        latency_s: float,
        script: Callable[[int], float | DeployError | Array | None] = lambda n: None,
        horizon: int = HORIZON,
    ) -> None:
        self.clock, self.latency_s, self.script, self.horizon = clock, latency_s, script, horizon
        self.requests: list[dict[str, Any]] = []
        self.latent = False
        self._pending: tuple[int, float] | None = None
        self._failure: DeployError | None = None

    def submit(self, ticket: int, request: Request) -> bool:
        if self._pending is not None:
            return False
        self._failure = None
        try:
            self.requests.append(dict(request()))
        except DeployError as error:
            self.requests.append({})
            self._failure = error
        said = self.script(len(self.requests) - 1)
        latency = said if isinstance(said, float) else self.latency_s
        self._pending = ticket, self.clock.now() + latency
        return True

    def poll(self) -> Answer | Failure | None:
        if self._pending is None or self.clock.now() < self._pending[1] - 1e-9:
            return None
        ticket, self._pending = self._pending[0], None
        number = len(self.requests) - 1
        said = self._failure or self.script(number)
        latency = said if isinstance(said, float) else self.latency_s
        if isinstance(said, DeployError):
            return Failure(ticket=ticket, error=said, latency_s=latency)
        if isinstance(said, np.ndarray):
            chunk = said
        else:
            chunk = counting_chunk(self.requests[number]["step"], self.horizon)
        latent = chunk[:, :3].astype(np.float32) if self.latent else None
        return Answer(ticket=ticket, actions=chunk, latency_s=latency, latent=latent)

    def close(self) -> None: ...


class FakeRobot:
    """Counts; `faults` maps the number of a call of `act` to what it raises, once."""

    def __init__(self, faults: Mapping[int, Exception] | None = None) -> None:
        self.faults = dict(faults or {})
        self.actions: list[Array | None] = []
        self.calls: list[str] = []
        self.camera_age_s = 0.0
        self.info: dict[str, Any] = {}
        self.camera_fault: Exception | None = None

    @property
    def executed(self) -> list[float]:
        """First number of every action that was executed."""
        return [float(a[0]) for a in self.actions if a is not None]

    def observe(self) -> Frame:
        return Frame(observation={"step": len(self.executed)}, pictures=self.pictures)

    def pictures(self) -> Pictures:
        if self.camera_fault is not None:
            raise self.camera_fault
        return Pictures(views={}, age_s=self.camera_age_s)

    def act(self, action: Array | None) -> Mapping[str, Any]:
        if fault := self.faults.pop(len(self.actions), None):
            raise fault
        self.actions.append(action)
        return self.info

    def reset(self) -> None:
        self.calls.append("reset")

    def stop(self) -> None:
        self.calls.append("stop")


class Collector:
    """A watcher that keeps everything."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.notes: list[str] = []
        self.pictures: list[Pictures] = []

    def on_tick(self, tick: Tick) -> None:
        self.ticks.append(tick)

    def on_note(self, time_s: float, text: str) -> None:
        self.notes.append(text)

    def on_pictures(self, time_s: float, pictures: Pictures) -> None:
        self.pictures.append(pictures)
