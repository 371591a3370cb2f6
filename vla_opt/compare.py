"""Optimizers against each other: same data, weights, order and episodes, several seeds.

    result = compare(CompareConfig(...))

Every (optimizer, seed) is an ordinary run folder. What is done is found again, so a comparison that
was stopped goes on where it was. Whether runs of one seed really began with the same weights and
saw the same order of samples is checked, not assumed.
"""

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
from draccus.utils import DraccusException

from vla_opt._comparison import Comparison, RunResult
from vla_opt._parallel import train_in_processes
from vla_opt._reporting import Reporter
from vla_opt._resume import checkpoint_folder, is_finished
from vla_opt.checkpoint import checkpoint_name
from vla_opt.config import TrainConfig, to_tree, to_yaml
from vla_opt.data import DatasetFiles
from vla_opt.errors import UnknownNameError, nearest
from vla_opt.evaluation.config import EvalConfig, episode_keys
from vla_opt.evaluation.records import load_records
from vla_opt.evaluation.runner import EvalProgress, evaluate
from vla_opt.io import atomic_write_json, atomic_write_text, read_jsonl
from vla_opt.optim.config import OptimizerConfig
from vla_opt.provenance import run_metadata
from vla_opt.train import NonFiniteError, train

__all__ = ["CompareConfig", "CompareError", "Comparison", "Listener", "compare"]


class CompareError(RuntimeError):
    """Runs that were to differ in the optimizer alone differ in something else."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of optimizers.

    Attributes:
        train: What all runs have in common; its `eval` says which episodes are run at the end.
        optimizers: Names of the arms. A name is that of an optimizer, unless `options` gives the
            arm another: `optimizers: [pion, pion_k2]`, `options: {pion_k2: {name: pion,
            promotion_steps: 2}}`.
        options: Per arm, what differs from `train.optimizer`.
        seeds: Training seeds; each is run with every arm.
        parallel: Trainings at once, each a process with one thread; 1 = one after another here.
        output_dir: Folder of the comparison.

    Raises:
        ValueError: An arm or option does not exist (names the nearest), or occurs twice.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    optimizers: tuple[str, ...] = ("adamw", "muon", "pion")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    parallel: int = 1
    output_dir: Path = Path("runs/compare")

    def __post_init__(self) -> None:
        """Check the values."""
        for name, values in (("optimizers", self.optimizers), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name}={list(values)}: expected at least one, none twice.")
        if self.parallel < 1:
            raise ValueError(f"parallel={self.parallel}: expected at least 1.")
        for label in self.options:
            if label not in self.optimizers:
                raise UnknownNameError(
                    f"options.{label}: no such arm.{nearest(label, self.optimizers)}"
                )
        self.arms()

    def arms(self) -> dict[str, OptimizerConfig]:
        """Return the optimizer of each arm."""
        return {label: self._optimizer(label) for label in self.optimizers}

    def _optimizer(self, label: str) -> OptimizerConfig:
        changes = {"name": label, **self.options.get(label, {})}
        known = [f.name for f in dataclasses.fields(OptimizerConfig)]
        for key in changes:
            if key not in known:
                raise UnknownNameError(
                    f"options.{label}.{key}: an optimizer has no such option.{nearest(key, known)}"
                )
        tree = {**to_tree(self.train.optimizer), **changes}
        try:
            built: OptimizerConfig = draccus.decode(OptimizerConfig, tree)
        except DraccusException as error:
            raise ValueError(f"arm {label}: {error.__cause__ or error}") from error
        return built

    def run(self, label: str, seed: int) -> TrainConfig:
        """Return the training run of an arm and a seed."""
        threads = self.train.num_threads or (1 if self.parallel > 1 else 0)
        return dataclasses.replace(
            self.train,
            optimizer=self.arms()[label],
            seed=seed,
            num_threads=threads,
            output_dir=self.folder(label, seed) / "train",
            resume=True,
        )

    def folder(self, label: str, seed: int) -> Path:
        """Return the run folder of an arm and a seed."""
        return self.output_dir / label / f"seed{seed}"


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
    others go on. The table is written to `result.json`, `result.md` and `result.txt`.

    Raises:
        CompareError: Runs of one seed did not start alike.
        DataError: There is no data set at `train.data.root`.
        ConfigError: A run folder holds a run of another configuration.
        TrainProcessError: A training in another process failed.
        EvalError: An evaluation cannot run, or its folder holds another.
    """
    listener = listener or Listener()
    DatasetFiles(config.train.data.root)  # said here once, not by every process
    atomic_write_text(config.output_dir / "config.yaml", to_yaml(config))
    atomic_write_json(config.output_dir / "metadata.json", run_metadata())
    keys = [(arm, seed) for seed in config.seeds for arm in config.optimizers]
    diverged = _train_all(config, keys, listener)
    _check_same_start(config)
    with ExitStack() as cluster:
        results = [
            RunResult(arm=arm, seed=seed, diverged=diverged[arm, seed])
            if (arm, seed) in diverged
            else _evaluated(config, arm, seed, listener, cluster)
            for arm in config.optimizers
            for seed in config.seeds
        ]
    comparison = Comparison.of(results)
    atomic_write_json(config.output_dir / "result.json", comparison.to_dict())
    atomic_write_text(config.output_dir / "result.md", comparison.markdown())
    atomic_write_text(config.output_dir / "result.txt", comparison.text() + "\n")
    return comparison


def _train_all(
    config: CompareConfig, keys: list[tuple[str, int]], listener: Listener
) -> dict[tuple[str, int], str]:
    """Train what is not trained yet; return what diverged runs said."""
    runs = {key: config.run(*key) for key in keys}
    left = {key: run for key, run in runs.items() if not is_finished(run)}
    diverged: dict[tuple[str, int], str] = {}
    if config.parallel > 1 and left:
        with listener.parallel_training() as progress:
            said = train_in_processes(
                list(left.values()), parallel=config.parallel, progress=progress or _ignore
            )
        return {key: said[run.output_dir] for key, run in left.items() if run.output_dir in said}
    for (arm, seed), run in left.items():
        with listener.training(arm, seed) as reporter:
            try:
                train(run, reporter)
            except NonFiniteError as error:
                diverged[arm, seed] = str(error)
    return diverged


def _ignore(done: int, total: int) -> None:
    pass


def _check_same_start(config: CompareConfig) -> None:
    """Runs of one seed must have begun with the same weights and the same order of samples."""
    for seed in config.seeds:
        seen: dict[str, str] = {}
        for arm in config.optimizers:
            file = config.run(arm, seed).output_dir / "metadata.json"
            metadata = json.loads(file.read_text(encoding="utf-8"))
            start = json.dumps([metadata["initial_weights"], metadata["data"]])
            seen.setdefault(start, arm)
        if len(seen) > 1:
            raise CompareError(
                f"Seed {seed}: {' and '.join(seen.values())} did not start with the same weights "
                f"and the same data: {' against '.join(seen)}. Use another output_dir."
            )


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
    if job.backend == "ray" and not _is_evaluated(job):
        from envs._ray_cluster import ray_cluster

        cluster.enter_context(ray_cluster(num_cpus=job.num_workers))
    with listener.evaluation(arm, seed) as progress:
        records = evaluate(job, progress).records
    rows = [row for row in read_jsonl(run.output_dir / "log.jsonl") if row["kind"] == "train"]
    return RunResult(
        arm=arm,
        seed=seed,
        records=records,
        loss=rows[-1]["loss"] if rows else None,
        train_s=rows[-1]["wall_s"] if rows else None,
    )


def _is_evaluated(job: EvalConfig) -> bool:
    assert job.output_dir is not None
    scored = {r.key for r in load_records(job.output_dir / "episodes.jsonl") if r.scored}
    return all((k.suite, k.task_id, k.init_state, k.trial) in scored for k in episode_keys(job))
