"""``vla-opt compare``: optimizers against each other, on the same data, seeds and episodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vla_opt.cli._progress import Progress, progress

if TYPE_CHECKING:
    from vla_opt.compare import Listener
    from vla_opt.evaluation.runner import EvalProgress
    from vla_opt.train import Reporter

HELP = "train and evaluate optimizers with several seeds; k/n, intervals, paired tests"


def main(argv: Sequence[str]) -> int:
    """Run a comparison, or the rest of it; 1 if a run diverged or an episode was not measured."""
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies
    from vla_opt.compare import CompareConfig, compare

    config = parse(CompareConfig, load_policies(argv))
    runs = len(config.optimizers) * len(config.seeds)
    print(
        f"{runs} runs: {', '.join(config.optimizers)} with seeds "
        f"{', '.join(map(str, config.seeds))}. Everything goes to {config.output_dir}; the same "
        "command goes on where it was stopped.",
        flush=True,
    )
    comparison = compare(config, _console())
    print(f"\n{comparison.text()}\n\nThe same as files: {config.output_dir}/result.{{txt,md,json}}")
    print(f"Next: vla-opt report {config.folder(config.optimizers[-1], config.seeds[0])}")
    return 0 if comparison.complete else 1


def _console() -> Listener:
    from vla_opt.cli._train_printer import Printer
    from vla_opt.compare import Listener

    class Console(Listener):
        """A bar per training and per evaluation."""

        @contextmanager
        def training(self, arm: str, seed: int) -> Iterator[Reporter | None]:
            with Printer(f"{arm} seed {seed}") as printer:
                yield printer

        @contextmanager
        def parallel_training(self) -> Iterator[Callable[[int, int], None] | None]:
            with _Bar("training", "steps") as bar:
                yield bar

        @contextmanager
        def evaluation(
            self, arm: str, seed: int
        ) -> Iterator[Callable[[EvalProgress], None] | None]:
            with _Bar(f"{arm} seed {seed}", "ep") as bar:

                def show(now: EvalProgress) -> None:
                    bar(now.done, now.total, successes=now.successes, judged=now.scored)

                yield show

    return Console()


class _Bar:
    """A progress bar that appears with its first number."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._bar: Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int, *, successes: int = 0, judged: int = 0) -> None:
        if self._bar is None:
            self._bar = progress(total, self._title, initial=done, unit=self._unit)
        self._bar.seed_counts(successes, judged)
        self._bar.advance_to(done)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
