"""Several trainings at once, each a process with one thread."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_opt._jobs import Job, run_jobs
from vla_opt.config import TrainConfig
from vla_opt.io import read_jsonl

OUTPUT = "train_output.txt"
"""In the folder above the run's: what the process wrote."""

_DIVERGED = 3


def train_in_processes(
    configs: Sequence[TrainConfig],
    *,
    parallel: int,
    progress: Callable[[int, int], None],
) -> dict[Path, str]:
    """Run trainings to their ends, at most `parallel` at a time.

    Args:
        configs: The runs; their output folders differ.
        parallel: Processes at once.
        progress: Called now and then with (steps done, steps in all) over all runs.

    Returns:
        For each run that diverged its output folder and what it said.

    Raises:
        JobError: A process failed otherwise; the others are stopped.
    """
    total = sum(config.steps for config in configs)
    jobs = [
        Job(
            functools.partial(_train, config),
            output=config.output_dir.parent / OUTPUT,
            threads=config.num_threads or 1,
        )
        for config in configs
    ]
    codes = run_jobs(
        jobs,
        parallel=parallel,
        look=lambda: progress(sum(map(_steps_done, configs)), total),
        expected=(_DIVERGED,),
    )
    return {
        config.output_dir: (job.said().splitlines() or ["diverged"])[-1]
        for config, job, code in zip(configs, jobs, codes, strict=True)
        if code == _DIVERGED
    }


def _train(config: TrainConfig) -> int:
    """Train in this process; a loss or gradient that is not finite is a result."""
    from vla_opt.train import NonFiniteError, train

    try:
        train(config)
    except NonFiniteError as error:
        sys.stderr.write(f"{error}\n")
        return _DIVERGED
    return 0


def _steps_done(config: TrainConfig) -> int:
    rows = read_jsonl(config.output_dir / "log.jsonl")
    return max((int(row["step"]) for row in rows if row["kind"] == "train"), default=0)
