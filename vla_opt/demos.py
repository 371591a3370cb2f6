"""Generates demonstrations: scripted experts in parallel simulators -> LeRobotDataset v3."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from envs._diversity import Diversity
from envs.demonstrations import Demo, DemoKey, DemoOptions, DemoWorker, supported_tasks
from envs.pool import run_pool
from envs.rendering import get_profile
from envs.spec import EnvSpec, ImageSpec
from envs.tasks import get_task
from vla_opt._demo_staging import Attempt, Staging, fingerprint, made_with
from vla_opt.data import write_dataset
from vla_opt.errors import ConfigError
from vla_opt.evaluation.statistics import format_rate

logger = logging.getLogger(__name__)

Backend = Literal["ray", "serial"]
RECORD = "demos.json"
"""File under the data set's `meta/` that says how it was made."""


class DemosError(RuntimeError):
    """The demonstrations that were asked for could not be made."""


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """Generate demonstrations with a scripted expert.

    Attributes:
        suites: Task suites.
        task_ids: Tasks of each suite; all that the expert covers if not given.
        per_task: Successful demonstrations to keep of each task; with `check`, attempts.
        root: Folder of the data set. Attempts are staged beside it until it is whole.
        image_size: Side of both images in pixels.
        render_profile: "exact" (stock LIBERO's images) or "fast".
        noise_levels: Disturbance of the executed actions, taken in turn (DART); labels stay clean.
        tail_steps: Control steps recorded after the goal is reached.
        diversity: What else varies: speeds, grasps, recoveries, perturbed scenes.
        backend: "ray", or "serial" for one simulator in this process.
        num_workers: Simulators in parallel.
        timeout_s: Seconds for one attempt before its simulator is replaced.
        max_retries: How often an attempt is run again after its simulator died.
        check: Only measure the undisturbed expert; nothing is recorded.
        keep_staging: Keep the staged attempts after the data set is written.
    """

    suites: tuple[str, ...] = ("libero_object",)
    task_ids: tuple[int, ...] | None = None
    per_task: int = 40
    root: Path = Path("runs/quickstart/demos")
    image_size: int = 128
    render_profile: str = "fast"
    noise_levels: tuple[float, ...] = (0.0, 0.2, 0.4)
    tail_steps: int = 8
    diversity: Diversity = field(default_factory=Diversity)
    backend: Backend = "ray"
    num_workers: int = 2
    timeout_s: float = 600.0
    max_retries: int = 2
    check: bool = False
    keep_staging: bool = False

    def __post_init__(self) -> None:
        if self.per_task < 1 or self.num_workers < 1 or self.tail_steps < 0:
            raise ValueError(
                f"per_task={self.per_task}, num_workers={self.num_workers}, "
                f"tail_steps={self.tail_steps}: expected at least 1, 1 and 0."
            )
        if not self.noise_levels or min(self.noise_levels) < 0:
            raise ValueError(f"noise_levels={self.noise_levels}: expected numbers from 0 up.")
        if not self.suites:
            raise ValueError("suites is empty: name at least one, for example libero_object.")

    @property
    def options(self) -> DemoOptions:
        """What the simulators need to know."""
        return DemoOptions(
            image_size=self.image_size,
            render_profile=self.render_profile,
            noise_levels=self.noise_levels,
            tail_steps=self.tail_steps,
            diversity=self.diversity,
        )

    @property
    def staging(self) -> Path:
        """Folder of the attempts while the data set is not whole."""
        return self.root.with_name(self.root.name + "_staging")

    def tasks(self) -> list[tuple[str, int]]:
        """Suite and index of every task.

        Raises:
            UnknownNameError: no such suite or task.
            UnsupportedTaskError: a task was named that the expert does not cover.
        """
        return [(s, t) for s in self.suites for t in supported_tasks(s, self.task_ids)]


@dataclass(frozen=True, kw_only=True)
class DemosProgress:
    """A step of `generate` or `check`: `done` of `total`, and whether the last one succeeded."""

    stage: Literal["record", "write"]
    done: int
    total: int
    success: bool | None = None
    note: str = ""


ProgressCallback = Callable[[DemosProgress], None]


@dataclass(frozen=True, kw_only=True)
class TaskDemos:
    """What became of the attempts at one task."""

    suite: str
    task_id: int
    language: str
    successes: int
    attempts: int
    mean_steps: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DemosSummary:
    """Result of `generate` or `check`.

    Attributes:
        tasks: One entry for each task.
        root: The data set, None after a check.
        episodes: Demonstrations in it.
        frames: Frames in it.
    """

    tasks: tuple[TaskDemos, ...]
    root: Path | None = None
    episodes: int = 0
    frames: int = 0

    def table(self) -> str:
        """Success of the expert as text, k/n with 95 % Wilson intervals, per task and in total."""
        rows = [
            (f"{t.suite}/{t.task_id}", t.language, t.successes, t.attempts, f"{t.mean_steps:.0f}")
            for t in self.tasks
        ]
        total = sum(t.successes for t in self.tasks), sum(t.attempts for t in self.tasks)
        rows.append(("total", "", *total, ""))
        width = max(len(row[1]) for row in rows)
        lines = [
            f"{name:<18}  {language:<{width}}  {format_rate(k, n):<36}  {steps:>5}"
            for name, language, k, n, steps in rows
        ]
        head = f"{'task':<18}  {'instruction':<{width}}  {'expert succeeded':<36}  steps"
        return "\n".join([head, *lines])


def generate(config: DemosConfig, progress: ProgressCallback | None = None) -> DemosSummary:
    """Makes the data set, or returns at once if it is there already.

    Attempts that fail are dropped and counted. Interrupted and called again, it continues.

    Args:
        config: what to make.
        progress: called after every attempt and every written episode.

    Raises:
        ConfigError: the data set or the staging folder was made in another way.
        DemosError: the expert failed so often that a task did not get its demonstrations.
        UnknownNameError: no such suite, task or render profile.
        UnsupportedTaskError: a task was named that the expert does not cover.
    """
    get_profile(config.render_profile)
    tasks = config.tasks()
    if (made := _existing(config, tasks)) is not None:
        return made
    staging = Staging(config.staging, config.options, config.suites)
    kept = _record(config, tasks, staging, progress)
    _write(config, staging, kept, progress)
    summary = _existing(config, tasks)
    assert summary is not None, config.root
    if not config.keep_staging:
        shutil.rmtree(config.staging)
    return summary


def check(config: DemosConfig, progress: ProgressCallback | None = None) -> DemosSummary:
    """Measures the undisturbed expert: `per_task` attempts at each task, nothing recorded."""
    tasks = config.tasks()
    keys = [
        DemoKey(suite=suite, task_id=task_id, index=index)
        for suite, task_id in tasks
        for index in range(config.per_task)
    ]
    options = dataclasses.replace(config.options, noise_levels=(0.0,), record=False)
    demos: list[Demo] = []
    for demo in _run(config, options, keys):
        demos.append(demo)
        _tell(progress, "record", len(demos), len(keys), demo.success)
    return DemosSummary(tasks=tuple(_task_summary(task, demos) for task in tasks))


def _record(
    config: DemosConfig,
    tasks: Sequence[tuple[str, int]],
    staging: Staging,
    progress: ProgressCallback | None,
) -> list[Attempt]:
    """Runs attempts until every task has its demonstrations; returns those to keep, in order."""
    total = config.per_task * len(tasks)
    while keys := [key for task in tasks for key in _missing(config, staging, task)]:
        before = len(staging.attempts)
        for demo in _run(config, config.options, keys):
            attempt = staging.add(demo)
            if not attempt.success:
                logger.info("%s failed: %s", attempt.key, attempt.reason)
            done = sum(len(_kept(config, staging, task)) for task in tasks)
            _tell(progress, "record", done, total, attempt.success)
        if len(staging.attempts) == before:
            raise DemosError("no attempt came to an end; the warnings above say why.")
    return [attempt for task in tasks for attempt in _kept(config, staging, task)]


def _kept(config: DemosConfig, staging: Staging, task: tuple[str, int]) -> list[Attempt]:
    """The first successes by index: the same ones in whatever order they were made."""
    return [a for a in staging.of_task(*task) if a.success][: config.per_task]


def _missing(config: DemosConfig, staging: Staging, task: tuple[str, int]) -> list[DemoKey]:
    """Attempts to make next: as many as demonstrations are missing, at the lowest free indices."""
    attempts = staging.of_task(*task)
    successes = sum(attempt.success for attempt in attempts)
    wanted = config.per_task - successes
    if wanted > 0 and len(attempts) > 2 * config.per_task + 10:
        reasons = "; ".join(sorted({a.reason for a in attempts if a.reason}))
        raise DemosError(
            f"{task[0]} task {task[1]}: the expert succeeded in {successes}/{len(attempts)} "
            f"attempts, so {config.per_task} demonstrations are out of reach ({reasons})."
        )
    taken = {attempt.key.index for attempt in attempts}
    free = (index for index in range(len(taken) + max(wanted, 0)) if index not in taken)
    return [
        DemoKey(suite=task[0], task_id=task[1], index=index)
        for _, index in zip(range(wanted), free, strict=False)
    ]


def _run(config: DemosConfig, options: DemoOptions, keys: Sequence[DemoKey]) -> Iterator[Demo]:
    """Runs attempts in parallel simulators; one whose simulator keeps dying is only reported."""
    outcomes = run_pool(
        keys,
        functools.partial(DemoWorker, options),
        backend=config.backend,
        num_workers=config.num_workers,
        affinity=_task_of,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
    )
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if outcome.error is not None:
                logger.warning("%s could not be run: %s", outcome.item, outcome.error)
            else:
                yield outcome.result


def _task_of(key: DemoKey) -> tuple[str, int]:
    return key.task


def _write(
    config: DemosConfig,
    staging: Staging,
    kept: Sequence[Attempt],
    progress: ProgressCallback | None,
) -> None:
    images = {
        name: ImageSpec(height=config.image_size, width=config.image_size)
        for name in ("image", "image2")
    }
    spec = EnvSpec(images=images, render_profile=config.render_profile)
    config.root.parent.mkdir(parents=True, exist_ok=True)
    write_dataset(
        staging.episodes(kept),
        config.root,
        fps=spec.control_hz,
        image_size=config.image_size,
        state_names=spec.state_names,
        action_names=spec.action_names,
        robot_type="panda",
        meta_files={"env_spec.json": spec.to_dict(), RECORD: _record_of(config, staging, kept)},
        on_episode=lambda done: _tell(progress, "write", done, len(kept)),
    )


def _record_of(config: DemosConfig, staging: Staging, kept: Sequence[Attempt]) -> dict[str, object]:
    """What the data set says about its making."""
    tasks = sorted({attempt.key.task for attempt in kept})
    attempts = list(staging.attempts.values())
    return {
        "fingerprint": fingerprint(config.options, config.suites),
        "options": made_with(config.options, config.suites),
        "per_task": config.per_task,
        "tasks": [dataclasses.asdict(_task_summary(task, attempts)) for task in tasks],
        "keys": [str(attempt.key) for attempt in kept],
    }


def _existing(config: DemosConfig, tasks: Sequence[tuple[str, int]]) -> DemosSummary | None:
    """The summary of a data set that is there already.

    Raises:
        ConfigError: it was made in another way.
    """
    path = config.root / "meta" / RECORD
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    summaries = tuple(
        TaskDemos(**{**task, "reasons": tuple(task["reasons"])}) for task in found["tasks"]
    )
    is_same = (
        found["fingerprint"] == fingerprint(config.options, config.suites)
        and found["per_task"] == config.per_task
        and [(t.suite, t.task_id) for t in summaries] == sorted(tasks)
    )
    if not is_same:
        made = {key: found[key] for key in ("options", "per_task")}
        wanted = made_with(config.options, config.suites)
        raise ConfigError(
            f"{config.root} holds other demonstrations ({made} of "
            f"{[f'{t.suite}/{t.task_id}' for t in summaries]}) than were asked for "
            f"({wanted}, {config.per_task} of each task). Choose another --root or remove it."
        )
    info = json.loads((config.root / "meta" / "info.json").read_text(encoding="utf-8"))
    return DemosSummary(
        tasks=summaries,
        root=config.root,
        episodes=int(info["total_episodes"]),
        frames=int(info["total_frames"]),
    )


def _task_summary(task: tuple[str, int], attempts: Sequence[Attempt | Demo]) -> TaskDemos:
    own = [attempt for attempt in attempts if attempt.key.task == task]
    steps = [attempt.steps for attempt in own if attempt.success]
    return TaskDemos(
        suite=task[0],
        task_id=task[1],
        language=get_task(*task).language,
        successes=len(steps),
        attempts=len(own),
        mean_steps=sum(steps) / len(steps) if steps else float("nan"),
        reasons=tuple(sorted({attempt.reason for attempt in own if attempt.reason})),
    )


def _tell(
    progress: ProgressCallback | None,
    stage: Literal["record", "write"],
    done: int,
    total: int,
    success: bool | None = None,
) -> None:
    if progress is not None:
        progress(DemosProgress(stage=stage, done=done, total=total, success=success))
