"""``vla-opt train``: train a policy, or go on with a run that was interrupted."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

HELP = "train a policy on demonstrations; run it again to go on; --dry-run shows what it would be"


def main(argv: Sequence[str]) -> int:
    """Train as configured; print which parameter gets which optimizer, and the throughput."""
    from vla_opt.cli._config import parse
    from vla_opt.cli._dry_run import FLAG, report, without_flag
    from vla_opt.cli._plugins import load_policies
    from vla_opt.cli._ray_launch import RowPrinter, split_launcher
    from vla_opt.cli._train_printer import Printer, closing
    from vla_opt.config import TrainConfig

    words, launch = split_launcher(without_flag(argv))
    config = parse(TrainConfig, load_policies(words))
    if FLAG in argv:
        print(report(config))
        return 0
    if launch is not None:
        from vla_opt.ray_training import train_with_ray

        with contextlib.closing(RowPrinter(config.steps)) as rows:
            summary = train_with_ray(config, launch, rows)
    else:
        from vla_opt.train import train

        with Printer() as printer:
            summary = train(config, printer)
    print(f"{closing(summary)}\nNext: vla-opt eval --checkpoint={summary.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
