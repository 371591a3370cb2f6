"""``vla-opt eval``: run a checkpoint in simulation and print its success rates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_opt.cli._progress import Progress
    from vla_opt.evaluation.runner import EvalProgress

HELP = "evaluate a checkpoint in simulation: k/n with intervals per task, videos, resumable rows"


def main(argv: Sequence[str]) -> int:
    """Evaluate; 1 if an episode could not be run, so that the numbers are not complete."""
    from vla_opt.cli._config import parse
    from vla_opt.evaluation.runner import EvalConfig, evaluate
    from vla_opt.evaluation.tables import success_table, text_table

    config = parse(EvalConfig, argv)
    with _Bar() as bar:
        summary = evaluate(config, bar)
    for note in summary.notes:
        print(f"note: {note}")
    print(text_table(success_table(summary.records)))
    print(f"rows and videos: {summary.output_dir}")
    print(f"next: vla-opt report {summary.output_dir.parent}")
    if summary.errors:
        print(
            f"{summary.errors} of {len(summary.records)} episodes could not be run and count "
            "neither way; the same command tries them again."
        )
    return 1 if summary.errors else 0


class _Bar:
    """Running k/n with its interval, and the time left."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, now: "EvalProgress") -> None:
        from vla_opt.cli._progress import progress
        from vla_opt.evaluation.statistics import wilson

        if self._bar is None:
            self._bar = progress(now.total, "episodes", initial=now.resumed, unit="ep")
            self._bar.seed_counts(now.successes, now.scored)
            return
        low, high = wilson(now.successes, now.scored)
        note = f"95 % CI {100 * low:.0f}-{100 * high:.0f} %"
        if now.errors:
            note += f", {now.errors} errors"
        success = None if now.record is None or not now.record.scored else now.record.success
        self._bar.update(1, success=success, note=note)
