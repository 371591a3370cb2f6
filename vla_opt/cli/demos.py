"""``vla-opt demos``: generate demonstrations with the scripted expert, or measure it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_opt.demos import DemosProgress, ProgressCallback

HELP = "generate demonstrations with the scripted expert; --check=true measures the expert alone"


def main(argv: Sequence[str]) -> int:
    """Generate, or check; prints the expert's success per task."""
    from vla_opt.cli._config import parse
    from vla_opt.demos import DemosConfig, check, generate

    config = parse(DemosConfig, argv)
    with demos_progress() as told:
        summary = (check if config.check else generate)(config, told)
    print(summary.table())
    if summary.root is None:
        failed = [t for t in summary.tasks if t.reasons]
        for task in failed:
            print(f"{task.suite}/{task.task_id}: {'; '.join(task.reasons)}")
        return 0
    print(f"{summary.episodes} demonstrations, {summary.frames} frames: {summary.root}")
    return 0


@contextmanager
def demos_progress() -> "Iterator[ProgressCallback]":
    """What `generate` and `check` may tell their progress to: one bar per stage."""
    from vla_opt.cli._progress import Bars

    titles = {"record": "demonstrations", "write": "data set"}

    def told(step: "DemosProgress") -> None:
        first = max(0, step.done - 1)
        bar = bars.get(titles[step.stage], step.total, initial=first, unit="episodes")
        bar.advance_to(step.done, success=step.success)

    with Bars() as bars:
        yield told
