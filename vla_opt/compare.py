"""Optimizers against each other: same data, weights, order and episodes, several seeds.

    result = compare(CompareConfig(...))

Every (optimizer, seed) is an ordinary run folder, and so is every short run that helps to choose a
learning rate. What is done is found again, so a comparison that was stopped goes on where it was.
Whether runs of one seed really began with the same weights and saw the same order of samples is
checked, not assumed.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext

from vla_opt._arms import describe, write_comparison
from vla_opt._compare_config import CONTROLS, CompareConfig
from vla_opt._comparison import Comparison, RunResult
from vla_opt._curves import CurvePoint, curve_of
from vla_opt._parallel import train_in_processes
from vla_opt._reporting import Reporter
from vla_opt._resume import checkpoint_folder, is_finished
from vla_opt._tuning import (
    Trial,
    TuneConfig,
    Tuned,
    check_budget,
    read_trial,
    write_trial,
)
from vla_opt._validation import validation_loss
from vla_opt.checkpoint import checkpoint_name
from vla_opt.config import TrainConfig, to_tree
from vla_opt.data import DatasetFiles
from vla_opt.evaluation.config import EvalConfig, episode_keys
from vla_opt.evaluation.records import load_records
from vla_opt.evaluation.runner import EvalProgress, evaluate
from vla_opt.io import read_jsonl
from vla_opt.train import NonFiniteError, train

__all__ = [
    "CONTROLS",
    "CompareConfig",
    "CompareError",
    "Comparison",
    "Listener",
    "TuneConfig",
    "compare",
]

TRIAL = "trial.json"
"""In the folder of a short run: what it was measured to be."""


class CompareError(RuntimeError):
    """Runs that were to differ in the optimizer alone differ in something else."""


class Listener:
    """What a comparison tells while it runs; this one is silent. Override what is wanted."""

    def training(self, arm: str, seed: int) -> AbstractContextManager[Reporter | None]:
        """Is told about one training in this process while the context lasts."""
        return nullcontext()

    def parallel_training(self) -> AbstractContextManager[Callable[[int, int], None] | None]:
        """Is told the steps done and in all, of trainings in other processes."""
        return nullcontext()

    def evaluation(
        self, arm: str, seed: int
    ) -> AbstractContextManager[Callable[[EvalProgress], None] | None]:
        """Is told about the episodes of one run while the context lasts."""
        return nullcontext()


def compare(config: CompareConfig, listener: Listener | None = None) -> Comparison:
    """Train and evaluate every arm with every seed, or what is left of it.

    A training whose loss stops being finite is a result: the run is listed as diverged, and the
    others go on. The table is written to `result.json`, `result.md`, `result.txt`
    and `result.html`, the learning curves to `curves.csv`.

    Raises:
        CompareError: Runs of one seed did not start alike; an arm diverged at every rate tried.
        DataError: There is no data set at `train.data.root`.
        ConfigError: A run folder holds a run of another configuration.
        JobError: A training in another process failed.
        EvalError: An evaluation cannot run, or its folder holds another.
    """
    listener = listener or Listener()
    DatasetFiles(config.train.data.root)  # said here once, not by every process
    describe(config.output_dir, config)
    with ExitStack() as cluster:
        tuned = _tuned(config, listener, cluster)
        if tuned:
            config = config.with_rates({one.arm: _chosen_rate(one) for one in tuned})
        keys = [(arm, seed) for seed in config.seeds for arm in config.names]
        runs = {key: config.run(*key) for key in keys}
        diverged = _train_all(runs, lambda key: key[0], config.parallel, listener)
        _check_same_start(config)
        results = [
            _diverged(config, arm, seed, diverged[arm, seed])
            if (arm, seed) in diverged
            else _evaluated(config, arm, seed, listener, cluster)
            for arm in config.names
            for seed in config.seeds
        ]
    comparison = Comparison.of(
        results,
        budget=config.tune.budget if config.tune else "",
        tuned=tuned,
        controls=config.controls,
    )
    shown = next(config.folder(run.arm, run.seed) for arm in comparison.arms for run in arm.runs)
    write_comparison(config.output_dir, comparison, shown)
    return comparison


# -- learning rates --------------------------------------------------------------------------------


def _tuned(config: CompareConfig, listener: Listener, cluster: ExitStack) -> list[Tuned]:
    """Run, or read, the short runs of every arm."""
    tune = config.tune
    if tune is None:
        return []
    root = config.output_dir / "tuning"
    check_budget(root, to_tree(tune))
    runs = {
        (arm, factor): tune.short_run(config.run(arm, tune.seed), factor, root / arm)
        for arm in config.names
        for factor in tune.factors
    }
    known = {key: read_trial(run.output_dir.parent / TRIAL) for key, run in runs.items()}
    left = {key: run for key, run in runs.items() if known[key] is None}
    diverged = _train_all(
        left, lambda key: f"{key[0]} at {key[1]:g} x its rate", config.parallel, listener
    )
    found = {
        key: known[key] or _trial(tune, key[0], key[1], run, diverged.get(key), listener, cluster)
        for key, run in runs.items()
    }
    return [
        Tuned(arm=arm, trials=tuple(_known(found[arm, factor]) for factor in tune.factors))
        for arm in config.names
    ]


def _trial(
    tune: TuneConfig,
    arm: str,
    factor: float,
    run: TrainConfig,
    diverged: str | None,
    listener: Listener,
    cluster: ExitStack,
) -> Trial:
    """Measure a short run that has ended, and keep what came out."""
    folder, trial = run.output_dir.parent, Trial(factor=factor, lr=run.optimizer.lr)
    checkpoint = checkpoint_folder(run) / checkpoint_name(run.steps)
    if diverged is not None:
        trial = dataclasses.replace(trial, diverged=diverged)
    elif tune.by == "validation_loss":
        trial = dataclasses.replace(trial, loss=validation_loss(run, checkpoint))
    else:
        job = tune.test(run.eval, checkpoint, folder / "eval")
        _open_cluster(job, cluster)
        with listener.evaluation(f"{arm} at {run.optimizer.lr:g}", tune.seed) as progress:
            records = evaluate(job, progress).records
        successes, scored = sum(r.success for r in records), sum(r.scored for r in records)
        if scored < len(records):
            raise CompareError(
                f"{len(records) - scored} episodes that decide on the rate of {arm} could not be "
                f"run: see {job.output_dir}. The same command tries them again."
            )
        trial = dataclasses.replace(trial, successes=successes, scored=scored)
    return write_trial(folder / TRIAL, trial)


def _known(trial: Trial | None) -> Trial:
    assert trial is not None
    return trial


def _chosen_rate(tuned: Tuned) -> float:
    if tuned.chosen is None:
        raise CompareError(
            f"Every learning rate tried for {tuned.arm} diverged ({tuned.describe()}): give it "
            f"smaller ones, options.{tuned.arm}.lr or tune.factors."
        )
    return tuned.chosen.lr


# -- training and evaluation -----------------------------------------------------------------------


def _train_all[K](
    runs: Mapping[K, TrainConfig],
    label: Callable[[K], str],
    parallel: int,
    listener: Listener,
) -> dict[K, str]:
    """Train what is not trained yet; return what diverged runs said. `label` names a run."""
    left = {key: run for key, run in runs.items() if not is_finished(run)}
    diverged: dict[K, str] = {}
    if parallel > 1 and left:
        with listener.parallel_training() as progress:
            said = train_in_processes(
                list(left.values()), parallel=parallel, progress=progress or _ignore
            )
        return {key: said[run.output_dir] for key, run in left.items() if run.output_dir in said}
    for key, run in left.items():
        with listener.training(label(key), run.seed) as reporter:
            try:
                train(run, reporter)
            except NonFiniteError as error:
                diverged[key] = str(error)
    return diverged


def _ignore(done: int, total: int) -> None:
    pass


def _check_same_start(config: CompareConfig) -> None:
    """Runs of one seed must have begun with the same weights and the same order of samples."""
    for seed in config.seeds:
        seen: dict[str, str] = {}
        for arm in config.names:
            file = config.run(arm, seed).output_dir / "metadata.json"
            metadata = json.loads(file.read_text(encoding="utf-8"))
            start = json.dumps([metadata["initial_weights"], metadata["data"]])
            seen.setdefault(start, arm)
        if len(seen) > 1:
            raise CompareError(
                f"Seed {seed}: {' and '.join(seen.values())} did not start with the same weights "
                f"and the same data: {' against '.join(seen)}. Use another output_dir."
            )


def _diverged(config: CompareConfig, arm: str, seed: int, said: str) -> RunResult:
    log = read_jsonl(config.run(arm, seed).output_dir / "log.jsonl")
    return RunResult(arm=arm, seed=seed, diverged=said, curve=curve_of(arm, seed, log, None))


def _evaluated(
    config: CompareConfig, arm: str, seed: int, listener: Listener, cluster: ExitStack
) -> RunResult:
    """Evaluate one run; the first evaluation that has work to do opens the cluster for all."""
    run = config.run(arm, seed)
    job = dataclasses.replace(
        config.train.eval,
        checkpoint=checkpoint_folder(run) / checkpoint_name(run.steps),
        output_dir=config.folder(arm, seed) / "eval",
    )
    _take_over_periodic(run, job)
    _open_cluster(job, cluster)
    with listener.evaluation(arm, seed) as progress:
        records = evaluate(job, progress).records
    log = read_jsonl(run.output_dir / "log.jsonl")
    rows = [row for row in log if row["kind"] == "train"]
    final = CurvePoint(
        step=run.steps,
        train_s=rows[-1]["wall_s"] if rows else 0.0,
        successes=sum(record.success for record in records),
        scored=sum(record.scored for record in records),
    )
    return RunResult(
        arm=arm,
        seed=seed,
        records=records,
        loss=rows[-1]["loss"] if rows else None,
        train_s=rows[-1]["wall_s"] if rows else None,
        curve=curve_of(arm, seed, log, final),
    )


def _take_over_periodic(run: TrainConfig, job: EvalConfig) -> None:
    """The last evaluation of a training with `eval_every` is the final one: not run twice."""
    assert job.output_dir is not None
    periodic = run.output_dir / "eval" / checkpoint_name(run.steps)
    if (periodic / "episodes.jsonl").exists() and not job.output_dir.exists():
        shutil.copytree(periodic, job.output_dir)


def _open_cluster(job: EvalConfig, cluster: ExitStack) -> None:
    """Open the cluster for all evaluations, when the first has something to do."""
    if job.backend == "ray" and not _is_evaluated(job):
        from envs._ray_cluster import ray_cluster

        cluster.enter_context(ray_cluster(num_cpus=job.num_workers))


def _is_evaluated(job: EvalConfig) -> bool:
    assert job.output_dir is not None
    scored = {r.key for r in load_records(job.output_dir / "episodes.jsonl") if r.scored}
    return all((k.suite, k.task_id, k.init_state, k.trial) in scored for k in episode_keys(job))
