"""What happened in an episode, in numbers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Ending = Literal[
    "success",
    "max_steps",
    "operator",
    "hold",
    "camera",
    "success_rate",
    "blocked",
    "reflex",
    "estop",
    "disconnected",
    "robot",
    "contract",
]


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Of times in milliseconds; NaN where there is nothing to measure."""

    p50: float
    p99: float
    largest: float

    @classmethod
    def of_ms(cls, seconds: Sequence[float]) -> Quantiles:
        """Summarise times given in seconds."""
        if not seconds:
            return cls(p50=float("nan"), p99=float("nan"), largest=float("nan"))
        p50, p99 = np.percentile(1e3 * np.asarray(seconds), [50, 99])
        return cls(p50=float(p50), p99=float(p99), largest=1e3 * max(seconds))


@dataclass(frozen=True, kw_only=True)
class EpisodeReport:
    """One episode.

    Attributes:
        prompt: The instruction.
        ending: Why it ended, in one word.
        reason: The same in a sentence.
        ticks: Control ticks, held ones included.
        executed: Actions given to the robot.
        held: Ticks without an action, and those of them before the first chunk.
        held_at_start: See `held`.
        late: Ticks that started more than a quarter of a period late.
        skipped: Ticks that could not take place at all.
        seconds: From the first tick to the last.
        rate_hz: Ticks per second.
        tick_gap_ms: Between consecutive ticks.
        action_gap_ms: Between consecutive executed actions.
        latency_ms: From observation to usable chunk.
        server_ms: What the server says its policy took.
        chunks: Chunks that arrived and were good.
        failures: What went wrong with requests, by class of error, with counts.
        last_failure: Words of the last one.
        interventions: What the safety filter did, by name, with counts.
        notes: What the operator should know, in order, with the second it happened.
        transitions: (second, state, state) of every change of state.
    """

    prompt: str
    ending: Ending
    reason: str
    ticks: int
    executed: int
    held: int
    held_at_start: int
    late: int
    skipped: int
    seconds: float
    rate_hz: float
    tick_gap_ms: Quantiles
    action_gap_ms: Quantiles
    latency_ms: Quantiles
    server_ms: Quantiles
    chunks: int
    failures: Mapping[str, int]
    last_failure: str
    interventions: Mapping[str, int]
    notes: tuple[tuple[float, str], ...]
    transitions: tuple[tuple[float, str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return dataclasses.asdict(self)


@dataclass(kw_only=True)
class EpisodeLog:
    """Filled while an episode runs; `EpisodeReport` says what the names mean."""

    prompt: str
    start: float = 0.0
    executed: int = 0
    held: int = 0
    held_at_start: int = 0
    chunks: int = 0
    last_failure: str = ""
    action_times: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    server_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    interventions: Counter[str] = field(default_factory=Counter)
    notes: list[tuple[float, str]] = field(default_factory=list)
    transitions: list[tuple[float, str, str]] = field(default_factory=list)

    def report(
        self, ending: Ending, reason: str, times: Sequence[float], *, late: int, skipped: int
    ) -> EpisodeReport:
        """Close the log.

        Args:
            ending: See `EpisodeReport`.
            reason: Likewise.
            times: Of all ticks.
            late: See `EpisodeReport`.
            skipped: Likewise.
        """
        gaps = [float(gap) for gap in np.diff(np.asarray(times))]
        seconds = sum(gaps)
        return EpisodeReport(
            prompt=self.prompt,
            ending=ending,
            reason=reason,
            ticks=len(times),
            executed=self.executed,
            held=self.held,
            held_at_start=self.held_at_start,
            late=late,
            skipped=skipped,
            seconds=seconds,
            rate_hz=len(gaps) / seconds if seconds > 0 else float("nan"),
            tick_gap_ms=Quantiles.of_ms(gaps),
            action_gap_ms=Quantiles.of_ms([float(g) for g in np.diff(self.action_times)]),
            latency_ms=Quantiles.of_ms(self.latencies),
            server_ms=Quantiles.of_ms(self.server_s),
            chunks=self.chunks,
            failures=dict(self.failures),
            last_failure=self.last_failure,
            interventions=dict(self.interventions),
            notes=tuple(self.notes),
            transitions=tuple(self.transitions),
        )
