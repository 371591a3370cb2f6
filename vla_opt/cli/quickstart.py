"""``vla-opt quickstart``: all stages in a row, continued where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_opt._quickstart_config import QuickstartConfig
    from vla_opt.demos import ProgressCallback
    from vla_opt.doctor import Check
    from vla_opt.evaluation.runner import EvalProgress
    from vla_opt.quickstart import Listener, QuickstartResult, StageName
    from vla_opt.train import Reporter

HELP = "demonstrations, training, evaluation and report in a row; run it again to continue"

_INIT_STATES = 50  # of every task of LIBERO
_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


def main(argv: Sequence[str]) -> int:
    """Run the stages; print successes per task and in total, the report, and what to run next."""
    from vla_opt._quickstart_config import QuickstartConfig
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies

    words = load_policies(argv)
    if not any(word.startswith("--config_path") for word in words) and _CONFIG.is_file():
        words = [f"--config_path={_CONFIG}", *words]
    config = parse(QuickstartConfig, words)
    from vla_opt.quickstart import run_quickstart  # slow, and not needed for --help

    result = run_quickstart(config, _console())
    print(closing(result))
    return 0


def closing(result: QuickstartResult) -> str:
    """The outcome as text: k/n per task and in total, times, the report, and what comes next."""
    from vla_opt.cli._progress import clock
    from vla_opt.evaluation.tables import text_table

    training = result.config.train
    times = ", ".join(f"{name} {clock(s)}" for name, s in result.seconds.items())
    lost = result.evaluation.errors
    again = "; run the same command again to repeat them" if lost else ""
    return "\n".join(
        [
            "",
            f"Success of {training.policy.type} trained with {training.optimizer.name} for "
            f"{result.training.steps} steps, on initial states not seen in training:",
            text_table(result.table),
            *([f"{lost} episodes could not be run and count neither way{again}."] if lost else []),
            "",
            f"Time:    {times}; {clock(sum(result.seconds.values()))} in all",
            f"Report:  {result.report}",
            *_headed("Next:    ", next_commands(result.config, result.training.checkpoint)),
        ]
    )


def next_commands(config: QuickstartConfig, checkpoint: Path) -> list[str]:
    """What to run after this one: more tasks and initial states, or, after all, other questions."""
    evaluation = config.eval
    tasks = ",".join(map(str, evaluation.task_ids or ()))
    evaluate = f"vla-opt eval --checkpoint={checkpoint} --execute_steps={evaluation.execute_steps}"
    if not tasks or evaluation.episodes >= _INIT_STATES:
        plus = ",".join(f"libero_plus/{suite}" for suite in evaluation.suites)
        base = f" --variants.base_tasks=[{tasks}]" if tasks else ""
        return [
            f"vla-opt spectra {checkpoint}",
            f"{evaluate} --suites={plus}{base} --variants.sample=700 "
            f"--output_dir={config.run_dir / 'plus'}",
        ]
    return [
        "make compare           AdamW, Muon and Pion on the same data, three seeds",
        "make libero-object     all ten tasks x 50 initial states, hours",
        f"{evaluate} --suites={','.join(evaluation.suites)} --task_ids=[{tasks}] "
        f"--episodes={_INIT_STATES} --output_dir={config.run_dir / 'eval50'}",
    ]


def _headed(head: str, lines: Sequence[str]) -> list[str]:
    """The lines under one another, with `head` before the first."""
    return [(head if i == 0 else " " * len(head)) + line for i, line in enumerate(lines)]


def _console() -> Listener:
    from vla_opt.cli._episodes_bar import episodes_bar
    from vla_opt.cli._train_printer import Printer
    from vla_opt.cli.demos import demos_progress
    from vla_opt.cli.doctor import show
    from vla_opt.quickstart import STAGES, Listener

    class Console(Listener):
        """Prints a heading per stage and a bar for whatever takes long."""

        def stage(self, name: StageName) -> None:
            print(f"\n[{STAGES.index(name) + 1}/{len(STAGES)}] {name}", flush=True)

        def checked(self, check: Check) -> None:
            show(check)

        def demos(self) -> AbstractContextManager[ProgressCallback]:
            return demos_progress()

        def training(self) -> AbstractContextManager[Reporter]:
            return Printer()

        def evaluation(self) -> AbstractContextManager[Callable[[EvalProgress], None]]:
            return episodes_bar("evaluation")

    return Console()
