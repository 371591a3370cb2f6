"""``vla-opt demos``: generate demonstrations with the scripted expert, or measure it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_opt.demos import DemosProgress

HELP = "generate demonstrations with the scripted expert; --check=true measures the expert alone"


def main(argv: Sequence[str]) -> int:
    """Generate, or check; prints the expert's success per task."""
    from vla_opt.cli._config import parse
    from vla_opt.demos import DemosConfig, check, generate

    config = parse(DemosConfig, argv)
    with _Bars() as bars:
        summary = (check if config.check else generate)(config, bars)
    print(summary.table())
    if summary.root is None:
        failed = [t for t in summary.tasks if t.reasons]
        for task in failed:
            print(f"{task.suite}/{task.task_id}: {'; '.join(task.reasons)}")
        return 0
    print(f"{summary.episodes} demonstrations, {summary.frames} frames: {summary.root}")
    return 0


class _Bars:
    """One progress bar per stage."""

    def __init__(self) -> None:
        from vla_opt.cli._progress import Progress

        self._bar: Progress | None = None
        self._stage = ""

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, step: "DemosProgress") -> None:
        from vla_opt.cli._progress import progress

        if step.stage != self._stage:
            if self._bar is not None:
                self._bar.close()
            title = {"record": "demonstrations", "write": "data set"}[step.stage]
            self._bar = progress(step.total, title, initial=max(0, step.done - 1), unit="ep")
            self._stage = step.stage
        assert self._bar is not None
        if step.success is not None:
            self._bar.seed_counts(self._bar.successes + step.success, self._bar.judged + 1)
        self._bar.advance_to(step.done)
