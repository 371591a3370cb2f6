"""The weights of a run from where it began and its log of seeds and scalars."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from vla_opt._numerics import fixed_numerics
from vla_opt.checkpoint import TRAINING_STATE, CheckpointError, checkpoint_name
from vla_opt.errors import ConfigError
from vla_opt.evaluation.contract import open_checkpoint
from vla_opt.zo_training import run_log
from vla_opt.zo_training.config import ReplayConfig, ZOTrainConfig
from vla_opt.zo_training.replica import Replica
from vla_opt.zo_training.run import STATE, save


@dataclass(frozen=True, kw_only=True)
class ReplaySummary:
    """What a replay came to.

    Attributes:
        steps: updates repeated.
        queries: forward calls that these took when they were made.
        log_bytes: size of their records.
        weights: hash of the rebuilt weights.
        equal: whether the run's own checkpoint of that step has the same weights, bit by bit; None
            if there is none.
        checkpoint: what was written, if anything.
    """

    steps: int
    queries: int
    log_bytes: int
    weights: str
    equal: bool | None
    checkpoint: Path | None


def replay(config: ReplayConfig) -> ReplaySummary:
    """Rebuild the weights of a run without a forward call.

    The same bits need the same version of torch and a CPU with the same vector instructions.

    Raises:
        ConfigError: there is no such run, or it has fewer steps.
        CheckpointError: the checkpoint the run began with is gone or has changed.
    """
    run = run_log.read_config(config.run)
    run = dataclasses.replace(run, checkpoint=config.checkpoint or run.checkpoint)
    records = run_log.read_records(config.run)
    steps = len(records) if config.step is None else config.step
    if not 0 <= steps <= len(records):
        raise ConfigError(f"step={config.step}: {config.run} has {len(records)} steps.")
    _check_start(config.run, run)
    with fixed_numerics(run.num_threads, deterministic=True):
        replica = Replica(run, records[:steps])
        weights = replica.weights_hash()
        written = None
        if config.output_dir is not None:
            written = save(dataclasses.replace(run, output_dir=config.output_dir), replica)
    return ReplaySummary(
        steps=steps,
        queries=replica.optimizer.queries,
        log_bytes=sum(len(json.dumps(record.to_dict())) + 1 for record in records[:steps]),
        weights=weights,
        equal=_equal(config.run, steps, weights),
        checkpoint=written,
    )


def _check_start(folder: Path, run: ZOTrainConfig) -> None:
    found, expected = open_checkpoint(run.checkpoint).sha256, run_log.read_metadata(folder)["start"]
    if found != expected:
        raise CheckpointError(
            f"{run.checkpoint} is not what {folder} began with (sha256 {found[:12]}, expected "
            f"{expected[:12]}). Give the right one with --checkpoint."
        )


def _equal(folder: Path, step: int, weights: str) -> bool | None:
    file = folder / run_log.CHECKPOINTS / checkpoint_name(step) / TRAINING_STATE / STATE
    if not file.is_file():
        return None
    return bool(json.loads(file.read_text(encoding="utf-8"))["weights"] == weights)
