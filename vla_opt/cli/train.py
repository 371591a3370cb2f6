"""``vla-opt train``: train a policy, or go on with a run that was interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence

HELP = "train a policy on demonstrations; run it again to go on; --dry-run shows what it would be"


def main(argv: Sequence[str]) -> int:
    """Train as configured; print which parameter gets which optimizer, and the throughput."""
    from vla_opt.cli._config import parse
    from vla_opt.cli._dry_run import FLAG, report, without_flag
    from vla_opt.cli._plugins import load_policies
    from vla_opt.cli._train_printer import Printer, closing
    from vla_opt.config import TrainConfig
    from vla_opt.train import train

    config = parse(TrainConfig, load_policies(without_flag(argv)))
    if FLAG in argv:
        print(report(config))
        return 0
    with Printer() as printer:
        summary = train(config, printer)
    print(f"{closing(summary)}\nNext: vla-opt eval --checkpoint={summary.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
