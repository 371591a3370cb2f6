"""From an empty folder to a measured success rate: demonstrations, training, evaluation, report.

Every stage finds what an earlier run has left and does the rest, so a quickstart that was stopped
is continued by the same call.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_opt._quickstart_config import QuickstartConfig
from vla_opt.config import to_yaml
from vla_opt.demos import DemosSummary, ProgressCallback, generate
from vla_opt.doctor import Check, examine, healthy
from vla_opt.errors import QuickstartError
from vla_opt.evaluation.report import write_report
from vla_opt.evaluation.runner import EvalProgress, EvalSummary, evaluate
from vla_opt.evaluation.tables import SuccessTable, success_table
from vla_opt.io import atomic_write_json, atomic_write_text
from vla_opt.train import Reporter, TrainSummary, train

StageName = Literal["machine", "demonstrations", "training", "evaluation", "report"]
STAGES: tuple[StageName, ...] = ("machine", "demonstrations", "training", "evaluation", "report")
TIMES = "quickstart.json"
"""File in the run folder with the seconds of every stage, all runs of it added up."""


class Listener:
    """What a quickstart tells while it runs; this one is silent. Override what is wanted."""

    def stage(self, name: StageName) -> None:
        """A stage begins."""

    def checked(self, check: Check) -> None:
        """A look at the machine ended."""

    def demos(self) -> AbstractContextManager[ProgressCallback | None]:
        """Is told about attempts while the context lasts."""
        return nullcontext()

    def training(self) -> AbstractContextManager[Reporter | None]:
        """Is told about preparation and steps while the context lasts."""
        return nullcontext()

    def evaluation(self) -> AbstractContextManager[Callable[[EvalProgress], None] | None]:
        """Is told about episodes while the context lasts."""
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """What came of it.

    Attributes:
        config: With every path filled in.
        demos: The demonstrations, failed attempts counted.
        training: The training run.
        evaluation: The evaluation.
        table: Successes per task and in total.
        report: The HTML report.
        seconds: Of every stage, earlier runs included.
    """

    config: QuickstartConfig
    demos: DemosSummary
    training: TrainSummary
    evaluation: EvalSummary
    table: SuccessTable
    report: Path
    seconds: dict[str, float]


def run_quickstart(config: QuickstartConfig, listener: Listener | None = None) -> QuickstartResult:
    """Run what is left of a quickstart.

    Args:
        config: What to do, and where.
        listener: Told about progress.

    Raises:
        QuickstartError: The machine lacks something; names the checks that failed.
        ConfigError: The run folder holds a run with another configuration.
        OSError: The disk is full; what was done is kept.
    """
    listener = listener or Listener()
    config = config.resolved()
    config.run_dir.mkdir(parents=True, exist_ok=True)
    if config.check_machine:
        with _stage("machine", config, listener):
            _check_machine(config, listener)
    with _stage("demonstrations", config, listener), listener.demos() as told:
        demos = generate(config.demos, told)
    with _stage("training", config, listener), listener.training() as reporter:
        training = train(config.train, reporter)
    with _stage("evaluation", config, listener), listener.evaluation() as on_episode:
        evaluation = evaluate(config.eval, on_episode)
    atomic_write_text(config.run_dir / "config.yaml", to_yaml(config))
    with _stage("report", config, listener):
        report = write_report(config.run_dir)
    return QuickstartResult(
        config=config,
        demos=demos,
        training=training,
        evaluation=evaluation,
        table=success_table(evaluation.records),
        report=report,
        seconds=stage_seconds(config.run_dir),
    )


def stage_seconds(run_dir: Path) -> dict[str, float]:
    """Seconds every stage of a run folder has taken so far; empty if there is no record."""
    try:
        found = json.loads((run_dir / TIMES).read_bytes())
        return {str(name): float(seconds) for name, seconds in found["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


@contextlib.contextmanager
def _stage(name: StageName, config: QuickstartConfig, listener: Listener) -> Iterator[None]:
    """Announce a stage and add its time to the record, also when it is interrupted."""
    listener.stage(name)
    begin = time.monotonic()
    try:
        yield
    finally:
        seconds = stage_seconds(config.run_dir)
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - begin, 1)
        atomic_write_json(config.run_dir / TIMES, {"seconds": seconds})


def _check_machine(config: QuickstartConfig, listener: Listener) -> None:
    checks = []
    for check in examine(config.run_dir):
        listener.checked(check)
        checks.append(check)
    if not healthy(checks):
        failed = ", ".join(check.name for check in checks if check.status == "failure")
        raise QuickstartError(
            f"this machine is not ready: {failed}. Mend that as shown above, and run it again; "
            "--check_machine=false goes on regardless."
        )
