"""The loop: queries, a record, an update, a row of the log; until the budget is spent.

The log is the run. One that was stopped goes on by repeating the updates of its log, which takes no
forward call, so there is no optimizer state to save and no step is lost.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vla_opt._numerics import fixed_numerics
from vla_opt._resume import only_writer
from vla_opt.checkpoint import PRETRAINED, TRAINING_STATE, checkpoint_name, write_checkpoint
from vla_opt.evaluation.contract import open_checkpoint
from vla_opt.evaluation.runner import evaluate
from vla_opt.io import append_jsonl, atomic_write_json, read_jsonl
from vla_opt.zeroth_order import StepRecord
from vla_opt.zo_training import run_log
from vla_opt.zo_training.config import ZOTrainConfig
from vla_opt.zo_training.queries import Answering, ray_queries
from vla_opt.zo_training.replica import Replica

EVALUATIONS = "evaluations.jsonl"
STATE = "zeroth_order.json"


class Listener:
    """Told about progress; does nothing."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """A stage of the preparation moved."""

    def started(self, config: ZOTrainConfig, replica: Replica) -> None:
        """The first query comes next."""

    def stepped(self, queries: int, loss: float) -> None:
        """A step was made; forward calls so far, and the mean loss of the last steps."""

    def evaluated(self, queries: int, successes: int, episodes: int) -> None:
        """A checkpoint was evaluated."""


@dataclass(frozen=True, kw_only=True)
class ZOSummary:
    """What a run came to.

    Attributes:
        steps: updates in all.
        queries: forward calls in all.
        first_loss: mean of the first 20 steps.
        loss: mean of the last 20 steps.
        wall_s: seconds of this session.
        checkpoint: the last one.
        weights: hash of the weights.
    """

    steps: int
    queries: int
    first_loss: float
    loss: float
    wall_s: float
    checkpoint: Path
    weights: str


def zo_train(config: ZOTrainConfig, listener: Listener | None = None) -> ZOSummary:
    """Fine-tune a checkpoint by forward calls, or go on with the run in `config.output_dir`.

    Raises:
        ConfigError: `output_dir` holds another run, or nothing is to be trained as configured.
        CheckpointError: no checkpoint to start from, or a damaged one.
        DataError: the data set is missing, damaged or too small.
        NonFiniteLossError: a query gave NaN or infinity; the log ends with the step before.
    """
    listener, begin = listener or Listener(), time.perf_counter()
    with only_writer(config.output_dir), fixed_numerics(config.num_threads, deterministic=True):
        history = run_log.read_records(config.output_dir) if run_log.check_same_run(config) else []
        replica = Replica(config, history, listener.preparing)
        if not history:
            _describe(config, replica)
        with _answering(config, replica, history) as answering:
            listener.started(config, replica)
            losses = [record.loss for record in history]
            path = _loop(config, replica, answering, listener, losses)
    return ZOSummary(
        steps=replica.optimizer.steps,
        queries=replica.optimizer.queries,
        first_loss=_recent(losses[:20]),
        loss=_recent(losses),
        wall_s=time.perf_counter() - begin,
        checkpoint=path,
        weights=replica.weights_hash(),
    )


def _loop(
    config: ZOTrainConfig,
    replica: Replica,
    answering: Answering,
    listener: Listener,
    losses: list[float],
) -> Path:
    optimizer = replica.optimizer
    while optimizer.queries < config.budget:
        begin = time.perf_counter()
        record = optimizer.conclude(answering.measure(optimizer.plan()))
        replica.apply(record)
        if answering is not replica:
            answering.apply(record)
        seconds = time.perf_counter() - begin
        run_log.append_record(config.output_dir, record, step_s=round(seconds, 4))
        losses.append(record.loss)
        listener.stepped(optimizer.queries, _recent(losses))
        if _due(config.save_every, optimizer.steps):
            save(config, replica)
        if _due(config.eval_every, optimizer.steps):
            _evaluate(config, replica, listener)
    return save(config, replica)


def save(config: ZOTrainConfig, replica: Replica) -> Path:
    """Write a checkpoint of the present weights."""

    def fill(folder: Path) -> None:
        replica.live.save(folder / PRETRAINED)
        state = {
            "step": replica.optimizer.steps,
            "queries": replica.optimizer.queries,
            "weights": replica.weights_hash(),
        }
        (folder / TRAINING_STATE).mkdir()
        atomic_write_json(folder / TRAINING_STATE / STATE, state)

    folder = config.output_dir / run_log.CHECKPOINTS
    return write_checkpoint(folder, replica.optimizer.steps, fill, keep_last=config.keep_last)


def build_worker(config: ZOTrainConfig, history: Sequence[StepRecord]) -> Replica:
    """Build the replica of a worker's process, with the numerics of the run."""
    ExitStack().enter_context(fixed_numerics(config.num_threads, deterministic=True))
    return Replica(config, history)


@contextmanager
def _answering(
    config: ZOTrainConfig, replica: Replica, history: Sequence[StepRecord]
) -> Iterator[Answering]:
    if config.workers == 0:
        replica.prepare()
        try:
            yield replica
        finally:
            replica.close()
        return
    make = functools.partial(build_worker, config)
    with ray_queries(
        make,
        workers=config.workers,
        history=history,
        threads=config.num_threads,
        spare_cpus=config.eval.num_workers if config.eval_every else 0,
    ) as queries:
        yield queries


def _describe(config: ZOTrainConfig, replica: Replica) -> None:
    trained = [p for group in replica.optimizer.param_groups for p in group["params"]]
    run_log.write_description(
        config,
        start=open_checkpoint(config.checkpoint).sha256,
        initial_weights=replica.weights_hash(),
        trained_parameters=sum(p.numel() for p in trained),
    )


def _evaluate(config: ZOTrainConfig, replica: Replica, listener: Listener) -> None:
    """Evaluate the present weights in simulation, once."""
    step, file = replica.optimizer.steps, config.output_dir / EVALUATIONS
    if any(row["step"] == step for row in read_jsonl(file)):
        return
    checkpoint = save(config, replica)
    summary = evaluate(
        dataclasses.replace(
            config.eval,
            checkpoint=checkpoint / PRETRAINED,
            output_dir=config.output_dir / "eval" / checkpoint_name(step),
        )
    )
    counts = {"successes": summary.successes, "episodes": summary.scored}
    append_jsonl(file, {"step": step, "queries": replica.optimizer.queries, **counts})
    listener.evaluated(replica.optimizer.queries, summary.successes, summary.scored)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _recent(losses: Sequence[float]) -> float:
    last = losses[-20:]
    return math.fsum(last) / len(last) if last else math.nan
