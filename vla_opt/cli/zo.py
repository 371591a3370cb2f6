"""``vla-opt zo train|compare|replay``: fine-tune by forward calls alone; rebuild the weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_opt.zo_training import ReplaySummary, ZOSummary, ZOTrainConfig
    from vla_opt.zo_training.replica import Replica
    from vla_opt.zo_training.run import Listener

HELP = "fine-tune by forward calls alone: train, compare methods, replay (weights from the log)"


def main(argv: Sequence[str]) -> int:
    """Run one of the three; 1 if replayed weights are not those of the run."""
    from vla_opt.errors import UnknownNameError, nearest

    actions = {"train": _train, "compare": _compare, "replay": _replay}
    action = argv[0] if argv else "--help"
    if action in ("-h", "--help"):
        print(f"usage: vla-opt zo {{{','.join(actions)}}} [--key=value ...]\n\n{HELP}")
        return 0 if argv else 2
    if action not in actions:
        raise UnknownNameError(f"unknown action '{action}'.{nearest(action, actions)}")
    return actions[action](argv[1:])


def _train(argv: Sequence[str]) -> int:
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies
    from vla_opt.cli._progress import Bars
    from vla_opt.zo_training import ZOTrainConfig, zo_train

    config = parse(ZOTrainConfig, load_policies(argv))
    with Bars() as bars:
        summary = zo_train(config, _console(bars, config))
    print(closing(summary))
    print(f"Next: vla-opt eval --checkpoint={summary.checkpoint}")
    print(f"      vla-opt zo replay --run={config.output_dir}")
    return 0


def _compare(argv: Sequence[str]) -> int:
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies
    from vla_opt.zo_training.compare import ZOCompareConfig, zo_compare

    config = parse(ZOCompareConfig, load_policies(argv))
    print(
        f"{', '.join(config.names)} from {config.run.checkpoint}, {config.marks[-1]} forward calls "
        f"each, seeds {', '.join(map(str, config.seeds))}. Everything goes to {config.output_dir}; "
        "the same command goes on where it was stopped.",
        flush=True,
    )
    outcome = zo_compare(config, lambda line: print(line, flush=True))
    print(f"\n{outcome.markdown()}\nThe same as files: {config.output_dir}/result.{{html,md,json}}")
    return 0


def _replay(argv: Sequence[str]) -> int:
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies
    from vla_opt.zo_training import ReplayConfig, replay

    summary = replay(parse(ReplayConfig, load_policies(argv)))
    print(verdict(summary))
    return 1 if summary.equal is False else 0


def closing(summary: ZOSummary) -> str:
    """What a run came to, as text."""
    from vla_opt.cli._progress import clock

    return (
        f"{summary.steps} steps with {summary.queries} forward calls in {clock(summary.wall_s)}: "
        f"loss {summary.first_loss:.4f} -> {summary.loss:.4f} (means of 20 steps).\n"
        f"Checkpoint: {summary.checkpoint}"
    )


def verdict(summary: ReplaySummary) -> str:
    """What a replay came to, as text."""
    compared = {
        True: "the same bits as the run's own checkpoint",
        False: "NOT the weights of the run's own checkpoint of that step. Another version of "
        "torch, or a CPU with other vector instructions, may be the reason",
        None: "the run has no checkpoint of that step to compare with",
    }
    lines = [
        f"{summary.steps} steps ({summary.queries} forward calls when they were made) rebuilt from "
        f"{summary.log_bytes:,} bytes of log.",
        f"Weights {summary.weights}: {compared[summary.equal]}.",
    ]
    if summary.checkpoint is not None:
        lines.append(f"Checkpoint: {summary.checkpoint}")
    return "\n".join(lines)


def opening(config: ZOTrainConfig, replica: Replica) -> str:
    """What is about to be done, as text."""
    optimizer = replica.optimizer
    count = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    where = f"going on from step {optimizer.steps}" if optimizer.steps else "from its first step"
    what = "its loss on demonstrations" if config.objective == "supervised" else "its failures"
    return (
        f"{config.method.name} on {count:,} parameters of {config.checkpoint}, {where}, to lower "
        f"{what}: {config.budget} forward calls, {len(optimizer.plan())} per step. Everything goes "
        f"to {config.output_dir}."
    )


def _console(bars: Any, config: ZOTrainConfig) -> Listener:
    from vla_opt.zo_training.run import Listener

    class Console(Listener):
        """A bar per stage."""

        def preparing(self, what: str, done: int, total: int) -> None:
            bars.get(what, total, unit="frames").advance_to(done)

        def started(self, config: ZOTrainConfig, replica: Replica) -> None:
            self._first = replica.optimizer.queries
            print(opening(config, replica), flush=True)

        def stepped(self, queries: int, loss: float) -> None:
            bar = bars.get("forward calls", config.budget, initial=self._first, unit="calls")
            bar.advance_to(queries, note=f"loss {loss:.4f}")

        def evaluated(self, queries: int, successes: int, episodes: int) -> None:
            print(f"after {queries} forward calls: {successes}/{episodes}", flush=True)

    return Console()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
