"""Optimizers against each other in reinforcement learning: same start, scenes, budget of episodes.

    comparison = rl_compare(RLCompareConfig(...))

Every (optimizer, seed) is an ordinary run of `vla-opt rl`. What is done is found again, so a
comparison that was stopped goes on where it was. The start is an arm of its own, evaluated once: it
is what each optimizer must beat on the same episodes.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.rollout import make_libero
from vla_opt._arms import changed, describe, write_comparison
from vla_opt._checks import require_at_least
from vla_opt._comparison import Comparison, RunResult
from vla_opt._curves import Curve, CurvePoint
from vla_opt._jobs import Job, run_jobs
from vla_opt.evaluation.records import EpisodeRecord, load_records
from vla_opt.io import Row, read_jsonl
from vla_opt.rl._worker import MakeEnv
from vla_opt.rl.config import RLConfig
from vla_opt.rl.run import Listener, evaluate_start, evaluation_folder, rl_train

START = "start"
OUTPUT = "output.txt"
"""In the folder of a run that had a process of its own: what it wrote."""


@dataclass(frozen=True, kw_only=True)
class RLCompareConfig:
    """Optimizers that raise the success of one checkpoint, at the same number of updates.

    Attributes:
        run: What all runs have in common. Its `eval` is run before the first and after the last
            update, and every `eval_every` updates in between.
        arms: Per arm, what differs from `run.optimizer`: `{pion_per_head: {name: pion, preset:
            qwen3, num_heads: 4}}`.
        seeds: Of scenes, exploration and order; each is run with every arm.
        parallel: Runs at once; above 1 each is a process that simulates its episodes itself, one
            after another: the same episodes, on one core per run instead of workers per run.
        output_dir: Folder of the comparison.

    Raises:
        ValueError: An arm has an option that does not exist, or is named "start".
    """

    run: RLConfig
    arms: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {name: {"name": name} for name in ("adamw", "muon", "pion")}
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    parallel: int = 1
    output_dir: Path = Path("runs/rl_compare")

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: expected at least one, none twice.")
        if not self.arms or START in self.arms:
            raise ValueError(f"arms={list(self.arms)}: expected at least one, none named {START}.")
        require_at_least("parallel", self.parallel, 1)
        for arm in self.arms:
            self.of(arm, self.seeds[0])

    def of(self, arm: str, seed: int) -> RLConfig:
        """Return the run of an arm and a seed.

        Raises:
            ValueError: The arm has an option that does not exist.
        """
        run = self.run
        if self.parallel > 1:
            run = dataclasses.replace(
                run,
                rollouts=dataclasses.replace(run.rollouts, backend="serial"),
                eval=dataclasses.replace(run.eval, backend="serial"),
            )
        return dataclasses.replace(
            run,
            optimizer=changed(self.run.optimizer, self.arms[arm], arm),
            seed=seed,
            eval_every=self.run.eval_every or self.run.updates,
            # an arm that collapsed is a result, and all arms run the same number of episodes
            no_signal=dataclasses.replace(self.run.no_signal, stop_after=0),
            output_dir=self.output_dir / arm / f"seed_{seed}",
        )


def rl_compare(
    config: RLCompareConfig,
    listen: Callable[[str, int], Listener] = lambda arm, seed: Listener(),
    make_env: MakeEnv = make_libero,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Run a comparison, or what is left of it.

    Writes result.json, result.md, result.txt, result.html and curves.csv.

    Args:
        config: what is compared.
        listen: makes what is told about the run of an arm and a seed, if it is in this process.
        make_env: builds an environment of (suite, task), see `envs.rollout.EpisodeWorker`.
        progress: told the updates done and in all, of runs in other processes.

    Raises:
        JobError: a run in another process failed.
        Exception: see `vla_opt.rl.run.rl_train`.
    """
    describe(config.output_dir, config)
    runs = [(arm, seed, config.of(arm, seed)) for seed in config.seeds for arm in config.arms]
    left = [(arm, seed, run) for arm, seed, run in runs if not _is_finished(run)]
    if config.parallel > 1 and left:
        _run_jobs(config, runs[0][2], [run for _, _, run in left], make_env, progress)
    else:
        for arm, seed, run in left:
            _share_start(runs[0][2], run)
            rl_train(run, listen(arm, seed), make_env)
    runs.sort(key=lambda item: list(config.arms).index(item[0]))
    first = runs[0][2]
    results = [
        RunResult(arm=START, seed=seed, records=_episodes(first, 0)) for seed in config.seeds
    ]
    results += [_result(*item) for item in runs]
    comparison = Comparison.of(results, controls=[START])
    write_comparison(config.output_dir, comparison, evaluation_folder(first, first.updates))
    return comparison


def _train(run: RLConfig, make_env: MakeEnv) -> None:
    """What a process of its own does."""
    rl_train(run, make_env=make_env)


def _run_jobs(
    config: RLCompareConfig,
    first: RLConfig,
    runs: Sequence[RLConfig],
    make_env: MakeEnv,
    progress: Callable[[int, int], None],
) -> None:
    """Run several at once; each tells its own folder how far it is."""
    evaluate_start(first)
    for run in runs:
        _share_start(first, run)

    def look() -> None:
        done = [sum(row["kind"] == "rl" for row in _log(run)) for run in runs]
        progress(sum(done), sum(run.updates for run in runs))

    jobs = [
        Job(
            functools.partial(_train, run, make_env),
            output=run.output_dir / OUTPUT,
            threads=run.num_threads,
        )
        for run in runs
    ]
    run_jobs(jobs, parallel=config.parallel, look=look)


def _share_start(first: RLConfig, run: RLConfig) -> None:
    """The evaluation before the first update is the same for all: run once."""
    done, wanted = (evaluation_folder(r, 0) for r in (first, run))
    if done.exists() and not wanted.exists():
        shutil.copytree(done, wanted)


def _is_finished(run: RLConfig) -> bool:
    """A run ends with the evaluation after its last update."""
    return any(row["kind"] == "eval" and row["step"] == run.updates for row in _log(run))


def _log(run: RLConfig) -> list[Row]:
    return read_jsonl(run.output_dir / "log.jsonl")


def _episodes(run: RLConfig, update: int) -> tuple[EpisodeRecord, ...]:
    rows = {
        record.key: record
        for record in load_records(evaluation_folder(run, update) / "episodes.jsonl")
    }
    return tuple(rows[key] for key in sorted(rows))


def _result(arm: str, seed: int, run: RLConfig) -> RunResult:
    log = _log(run)
    seconds = {int(row["step"]): float(row["wall_s"]) for row in log if row["kind"] == "rl"}
    points = tuple(
        CurvePoint(
            step=int(row["step"]),
            train_s=seconds.get(int(row["step"]), 0.0),
            successes=int(row["successes"]),
            scored=int(row["episodes"]),
        )
        for row in log
        if row["kind"] == "eval"
    )
    return RunResult(
        arm=arm,
        seed=seed,
        records=_episodes(run, run.updates),
        train_s=max(seconds.values(), default=None),
        curve=Curve(arm=arm, seed=seed, points=points),
    )
