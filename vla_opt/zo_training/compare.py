"""Zeroth-order methods against each other and against backward passes, at equal forward calls.

    outcome = zo_compare(ZOCompareConfig(...))

Every (arm, seed) is an ordinary run folder whose budget is raised from mark to mark, and so is each
short run that helps to choose a learning rate. What is done is found again, so a comparison that
was stopped goes on where it was.
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from vla_opt._arms import describe
from vla_opt._jobs import Job, run_jobs
from vla_opt._numerics import fixed_numerics
from vla_opt._validation import held_out_loss
from vla_opt.checkpoint import TRAINING_STATE, checkpoint_name, list_checkpoints
from vla_opt.config import changed_settings
from vla_opt.errors import ConfigError
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.runner import evaluate
from vla_opt.io import atomic_write_json, read_jsonl
from vla_opt.zeroth_order import NonFiniteLossError
from vla_opt.zo_training import run_log
from vla_opt.zo_training._compare_config import ADAMW, ZOCompareConfig
from vla_opt.zo_training._outcome import START, ArmTuning, Point, ZOComparison
from vla_opt.zo_training.backward import train_backward
from vla_opt.zo_training.config import ZOTrainConfig
from vla_opt.zo_training.live_policy import LivePolicy
from vla_opt.zo_training.run import STATE, zo_train

__all__ = ["ZOCompareConfig", "ZOComparison", "zo_compare"]

MEASURED = "measured.json"
OUTPUT = "output.txt"
"""In the folder of an arm that had a process of its own: what it wrote."""

# A comparison may go on although these differ: they add measurements, or change none.
_FREE = {
    *("output_dir", "success_marks", "seeds", "factors", "growth", "parallel"),
    *("run.output_dir", "run.checkpoint", "run.eval", "run.workers"),
}


def zo_compare(
    config: ZOCompareConfig, told: Callable[[str], None] = lambda line: None
) -> ZOComparison:
    """Run a comparison, or what is left of it; write result.json, result.md and result.html.

    A method whose loss stops being finite is a result: it has no measurement from there on.

    Args:
        config: what is compared.
        told: is given a line after each measurement.

    Raises:
        ConfigError: a folder holds a run of another configuration, or an arm diverged at every
            learning rate.
        DataError: no data, or none held out.
        CheckpointError: no checkpoint to start from.
        EvalError: an evaluation cannot run, or its folder holds another.
        JobError: one of these in a process of its own.
    """
    _check_same(config)
    describe(config.output_dir, config)
    points = [_measure(config, START, 0, 0, config.run.checkpoint, None)]
    told(str(points[0]))
    if config.parallel > 1:
        _run_side_by_side(config, told)
        told = _silent
    tuning = [_tuned(config, arm, told) for arm in config.names]
    for one in tuning:
        points += _curves(config, one, told)
    outcome = ZOComparison(points=tuple(points), tuning=tuple(tuning), config=config)
    outcome.write(config.output_dir)
    return outcome


def _silent(line: str) -> None:
    """What is found in folders was told before."""


def _run_side_by_side(config: ZOCompareConfig, told: Callable[[str], None]) -> None:
    """Do what is left of each arm in a process; what they measured is found in their folders."""
    jobs = [
        Job(
            functools.partial(_run_arm, config, arm),
            output=config.output_dir / arm / OUTPUT,
            threads=config.run.num_threads,
        )
        for arm in config.names
    ]
    heard = dict.fromkeys(jobs, 0)

    def look() -> None:
        for job in jobs:
            lines = job.said().splitlines() if job.output.exists() else []
            for line in lines[heard[job] :]:
                told(line)
            heard[job] = len(lines)

    run_jobs(jobs, parallel=config.parallel, look=look)


def _run_arm(config: ZOCompareConfig, arm: str) -> None:
    def told(line: str) -> None:
        sys.stdout.write(f"{line}\n")  # to the arm's file, which the comparison reads aloud
        sys.stdout.flush()

    _curves(config, _tuned(config, arm, told), told)


def _check_same(config: ZOCompareConfig) -> None:
    """Refuse to go on with a comparison whose computation was configured otherwise."""
    file = config.output_dir / "config.yaml"
    earlier = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    changed = [
        f"{key}: {then!r} then, {now!r} now"
        for key, then, now in changed_settings(earlier, config, free=_FREE)
    ]
    if changed:
        raise ConfigError(
            f"{config.output_dir} holds another comparison ({'; '.join(changed)}). Give its "
            "configuration to go on with it, or another --output_dir."
        )


def _tuned(config: ZOCompareConfig, arm: str, told: Callable[[str], None]) -> ArmTuning:
    """Try the learning rates of an arm, and further ones while the best lies at an edge."""
    losses: dict[float, float] = {}
    left = list(config.factors) if len(config.factors) > 1 else []
    while left:
        factor = left.pop(0)
        losses[factor] = _short_run(config, arm, factor)
        told(f"{arm} at {config.rate(arm, factor):g}: held-out loss {losses[factor]:.4f}")
        if not left and len(losses) < len(config.factors) + config.growth:
            left = config.beyond(losses)
    factor = min(losses, key=lambda f: losses[f]) if losses else config.factors[0]
    if losses and not math.isfinite(losses[factor]):
        raise ConfigError(
            f"{arm} diverged at every learning rate tried: give it a smaller one, or smaller "
            "--factors."
        )
    rates = {config.rate(arm, f): losses[f] for f in sorted(losses)}
    return ArmTuning(arm=arm, factor=factor, lr=config.rate(arm, factor), losses=rates)


def _short_run(config: ZOCompareConfig, arm: str, factor: float) -> float:
    """The held-out loss after a run that helps to choose a rate; infinite if it diverged."""
    folder = config.output_dir / "tuning" / arm / f"times_{factor:g}"
    file = folder / MEASURED
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))["loss"]
        return math.inf if known is None else float(known)
    found = _trained(config, arm, config.tune_seed, factor, folder, config.tune_calls)
    loss = _loss(config.run, found[-1]) if found else math.inf
    loss = loss if math.isfinite(loss) else math.inf
    atomic_write_json(file, {"loss": loss if math.isfinite(loss) else None})
    return loss


def _curves(config: ZOCompareConfig, tuned: ArmTuning, told: Callable[[str], None]) -> list[Point]:
    points = []
    for seed in config.seeds:
        for point in _curve(config, tuned.arm, seed, tuned.factor):
            points.append(point)
            told(str(point))
    return points


def _curve(config: ZOCompareConfig, arm: str, seed: int, factor: float) -> list[Point]:
    """Measure an arm at its marks, as far as it came."""
    folder = config.output_dir / arm / f"seed_{seed}"
    checkpoints = _trained(config, arm, seed, factor, folder, *config.marks)
    seconds = _seconds(folder)
    return [
        _measure(config, arm, seed, mark, checkpoint, seconds)
        for mark, checkpoint in zip(config.marks, checkpoints, strict=False)
    ]


def _trained(
    config: ZOCompareConfig, arm: str, seed: int, factor: float, folder: Path, *marks: int
) -> list[Path]:
    """Return a checkpoint per mark; fewer if the loss stopped being finite."""
    run = dataclasses.replace(config.of(arm, seed, factor), output_dir=folder)
    budgets = [config.units(arm, mark) for mark in marks]
    if arm == ADAMW:
        return _trained_backward(run, config.rate(arm, factor), budgets)
    checkpoints = []
    for budget in budgets:
        try:
            found = _saved(folder, budget)
            found = found or zo_train(dataclasses.replace(run, budget=budget)).checkpoint
        except NonFiniteLossError:
            break
        checkpoints.append(found)
    return checkpoints


def _saved(folder: Path, budget: int) -> Path | None:
    """The checkpoint that a run with this budget left, if it came so far."""
    for checkpoint in list_checkpoints(folder / run_log.CHECKPOINTS):
        state = json.loads((checkpoint / TRAINING_STATE / STATE).read_text(encoding="utf-8"))
        if state["queries"] >= budget:
            return checkpoint
    return None


def _trained_backward(run: ZOTrainConfig, lr: float, steps: list[int]) -> list[Path]:
    done = run.output_dir / "adamw.json"
    facts = {"lr": lr, "steps": steps}
    known = json.loads(done.read_text(encoding="utf-8")) if done.exists() else {}
    if {key: known.get(key) for key in facts} != facts:
        atomic_write_json(done, {**facts, "seconds": train_backward(run, lr, steps)})
    return [run.output_dir / run_log.CHECKPOINTS / checkpoint_name(step) for step in steps]


def _seconds(folder: Path) -> float:
    """Seconds of a run's steps, loading and measuring not included."""
    if (done := folder / "adamw.json").exists():
        return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
    return math.fsum(row["step_s"] for row in read_jsonl(folder / run_log.STEPS))


def _measure(
    config: ZOCompareConfig, arm: str, seed: int, cost: int, checkpoint: Path, seconds: float | None
) -> Point:
    """Measure weights once: their loss on held-out demonstrations, and their success if due."""
    folder = config.output_dir / arm / f"seed_{seed}" / f"after_{cost}"
    file = folder / MEASURED
    if file.exists():
        loss = float(json.loads(file.read_text(encoding="utf-8"))["loss"])
    else:
        loss = _loss(config.run, checkpoint)
        atomic_write_json(file, {"loss": loss})
    records: tuple[EpisodeRecord, ...] = ()
    if arm == START or cost in config.measured:
        job = dataclasses.replace(config.eval, checkpoint=checkpoint, output_dir=folder / "eval")
        records = evaluate(job).records
    return Point(arm=arm, seed=seed, cost=cost, loss=loss, records=records, seconds=seconds)


def _loss(run: ZOTrainConfig, checkpoint: Path) -> float:
    with fixed_numerics(run.num_threads, deterministic=True):
        live = LivePolicy(checkpoint, device=run.device, num_threads=run.num_threads)
        device = torch.device(run.device)
        return held_out_loss(run.data, live.module, live.preprocessor, device, run.batch_size)
