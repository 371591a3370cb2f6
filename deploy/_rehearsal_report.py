"""What a rehearsal writes: figures as JSON, and the same as a page with plots and the video."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.limits import JOINTS, MAX_SPEED
from vla_opt.evaluation._charts import Series, color_of, line_chart
from vla_opt.evaluation._html import Section, facts, page, paragraph, table
from vla_opt.evaluation.statistics import wilson
from vla_opt.io import atomic_write_json, atomic_write_text

_NO_FAULT = ("success", "max_steps")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at the arm.

    Attributes:
        time_s: Robot time since the episode's preparation began.
        speed: Of the seven joints; rad/s.
    """

    time_s: float
    speed: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class EpisodeSeen:
    """One rehearsed episode.

    Attributes:
        task: Its name.
        seed: Of the scene.
        solved: By the task's predicate, at the end.
        report: The executor's (`deploy.executor.EpisodeReport`).
        samples: Joint speeds over time.
        real_time_factor: Robot seconds per second of the wall clock.
        interventions: Of the safety filter, by name.
    """

    task: str
    seed: int
    solved: bool
    report: Mapping[str, Any]
    samples: tuple[Sample, ...]
    real_time_factor: float
    interventions: Mapping[str, int]

    @property
    def faulty(self) -> bool:
        """Whether it ended otherwise than by success or by its number of steps."""
        return self.report["ending"] not in _NO_FAULT

    @property
    def fastest(self) -> float:
        """Greatest share of a joint's speed limit that was seen."""
        shares = (
            abs(v) / float(limit)
            for s in self.samples
            for v, limit in zip(s.speed, MAX_SPEED, strict=True)
        )
        return max(shares, default=0.0)


@dataclass(frozen=True, kw_only=True)
class About:
    """What was rehearsed, and with what.

    Attributes:
        policy: Who acted.
        patience_s: Of the simulation.
        metadata: See `vla_opt.provenance.run_metadata`; of when it began.
    """

    policy: str
    patience_s: float
    metadata: Mapping[str, Any]


def write_report(folder: Path, seen: Sequence[EpisodeSeen], about: About) -> Path:
    """Write `report.json` and `report.html`; returns the latter.

    Args:
        folder: Where; videos `<task>_<seed>.mp4` that are there are shown.
        seen: All episodes.
        about: What was rehearsed.

    Raises:
        OSError: The disk is full or not writable.
    """
    solved = sum(e.solved for e in seen)
    low, high = wilson(solved, len(seen))
    summary = {
        "policy": about.policy,
        "solved": solved,
        "episodes": len(seen),
        "wilson_95": [low, high],
        "by_task": {name: _counted(of_task) for name, of_task in _by_task(seen).items()},
        "patience_s": about.patience_s,
        "metadata": dict(about.metadata),
        "runs": [_row(e) for e in seen],
    }
    atomic_write_json(folder / "report.json", summary)
    sections = [Section(anchor="summary", title="Summary", body=_summary(seen, about))]
    sections += [
        Section(anchor=f"e{n}", title=f"{e.task}, scene {e.seed}", body=_episode(folder, e))
        for n, e in enumerate(seen)
    ]
    title = "Rehearsal on a simulated Franka Research 3"
    document = page(title, f"<h1>{title}</h1>", sections, "Written by deploy.rehearsal.")
    atomic_write_text(folder / "report.html", document)
    return folder / "report.html"


def _by_task(seen: Sequence[EpisodeSeen]) -> dict[str, list[EpisodeSeen]]:
    found: dict[str, list[EpisodeSeen]] = {}
    for episode in seen:
        found.setdefault(episode.task, []).append(episode)
    return found


def _counted(seen: Sequence[EpisodeSeen]) -> str:
    """Successes as they are to be quoted."""
    solved = sum(e.solved for e in seen)
    low, high = wilson(solved, len(seen))
    return f"{solved}/{len(seen)} (95 % Wilson interval {low:.2f} to {high:.2f})"


def _row(episode: EpisodeSeen) -> dict[str, Any]:
    return {
        "task": episode.task,
        "seed": episode.seed,
        "solved": episode.solved,
        "fastest_share_of_limit": episode.fastest,
        "real_time_factor": episode.real_time_factor,
        "report": _without_nan(episode.report),
    }


def _without_nan(value: Any) -> Any:
    """The same with None for what could not be measured: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(seen: Sequence[EpisodeSeen], about: About) -> str:
    by_task = _by_task(seen)
    head_facts = facts(
        [
            ("policy", about.policy),
            ("solved", _counted(seen)),
            *((name, _counted(found)) for name, found in by_task.items() if len(by_task) > 1),
            ("faults", sum(e.faulty for e in seen)),
            ("patience of the simulation", f"{about.patience_s:g} s (a real arm has none)"),
        ]
    )
    head = (
        "task",
        "scene",
        "solved",
        "ending",
        "ticks/s",
        "tick gap p99",
        "latency p50",
        "held",
        "fastest joint",
        "robot s per s",
    )
    rows = [
        (
            e.task,
            str(e.seed),
            "yes" if e.solved else "no",
            html.escape(str(e.report["ending"])),
            f"{e.report['rate_hz']:.2f}",
            _quantile(e.report["tick_gap_ms"], "p99"),
            _quantile(e.report["latency_ms"], "p50"),
            str(e.report["held"]),
            f"{100 * e.fastest:.0f} % of its limit",
            f"{e.real_time_factor:.2f}",
        )
        for e in seen
    ]
    note = paragraph(
        "Rates, gaps and latencies are in the robot's time, by which the loop is paced.", "soft"
    )
    return head_facts + table(head, rows, numeric=range(4, 10)) + note


def _quantile(value: Any, name: str) -> str:
    number = value.get(name) if isinstance(value, Mapping) else None
    return "-" if number is None or not math.isfinite(number) else f"{number:.0f} ms"


def _episode(folder: Path, episode: EpisodeSeen) -> str:
    speeds = [
        Series(
            name=f"joint {joint + 1}",
            points=[(s.time_s, s.speed[joint]) for s in episode.samples],
            color=color_of(joint),
        )
        for joint in range(JOINTS)
    ]
    chart = line_chart("joint speed, rad/s", speeds, x_label="robot time, s")
    counts = ", ".join(f"{name} {n}" for name, n in sorted(episode.interventions.items()))
    filtered = facts(
        [("safety filter", counts or "changed nothing"), ("why it ended", episode.report["reason"])]
    )
    return f"{_film(folder / f'{episode.task}_{episode.seed}.mp4')}{chart}{filtered}"


def _film(path: Path) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls muted loop src="data:video/mp4;base64,{data}"></video>'


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `report.json` of a rehearsal."""
    summary: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return summary
