"""``vla-opt compare``: optimizers against each other, on the same data, seeds and episodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_opt.compare import Listener
    from vla_opt.evaluation.runner import EvalProgress
    from vla_opt.train import Reporter

HELP = "train and evaluate optimizers with several seeds; k/n, intervals, paired tests"


def main(argv: Sequence[str]) -> int:
    """Run a comparison, or the rest of it; 1 if a run diverged or an episode was not measured."""
    from vla_opt._compare_config import CompareConfig
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies

    config = parse(CompareConfig, load_policies(argv))
    from vla_opt.compare import compare  # slow, and not needed for --help

    runs = len(config.names) * len(config.seeds)
    if config.tune:
        short = len(config.names) * len(config.tune.factors)
        print(f"{short} short runs choose the learning rates. {config.tune.budget}")
    print(
        f"{runs} runs: {', '.join(config.names)} with seeds "
        f"{', '.join(map(str, config.seeds))}. Everything goes to {config.output_dir}; the same "
        "command goes on where it was stopped.",
        flush=True,
    )
    comparison = compare(config, _console())
    files = f"{config.output_dir}/result.{{html,txt,md,json}}, curves.csv"
    print(f"\n{comparison.text()}\n\nThe same as files: {files}")
    folders = [str(config.folder(arm, config.seeds[0])) for arm in config.optimizers]
    print(f"Next: vla-opt report {' '.join(folders)}")
    return 0 if comparison.complete else 1


def _console() -> Listener:
    from vla_opt.cli._episodes_bar import episodes_bar
    from vla_opt.cli._progress import Bars
    from vla_opt.cli._train_printer import Printer
    from vla_opt.compare import Listener

    class Console(Listener):
        """A bar per training and per evaluation."""

        def training(self, arm: str, seed: int) -> AbstractContextManager[Reporter | None]:
            return Printer(f"{arm} seed {seed}")

        @contextmanager
        def parallel_training(self) -> Iterator[Callable[[int, int], None] | None]:
            def told(done: int, total: int) -> None:
                bars.get("training", total, initial=done, unit="steps").advance_to(done)

            with Bars() as bars:
                yield told

        def evaluation(
            self, arm: str, seed: int
        ) -> AbstractContextManager[Callable[[EvalProgress], None] | None]:
            return episodes_bar(f"{arm} seed {seed}")

    return Console()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
