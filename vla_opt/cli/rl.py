"""``vla-opt rl [compare]``: improve a checkpoint by the success of its own simulated episodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_opt.io import Row
    from vla_opt.rl.config import RLConfig
    from vla_opt.rl.run import Listener, RLSummary
    from vla_opt.rl.session import Session

HELP = "improve a checkpoint by its own episodes (GRPO, GMPO); rl compare: optimizers at it"


def main(argv: Sequence[str]) -> int:
    """Run as configured; `compare` runs several optimizers from one start."""
    if argv[:1] == ["compare"]:
        return _compare(argv[1:])
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies
    from vla_opt.cli._progress import Bars
    from vla_opt.rl.config import RLConfig
    from vla_opt.rl.run import rl_train

    config = parse(RLConfig, load_policies(argv))
    with Bars() as bars:
        summary = rl_train(config, _console(bars))
    print(closing(summary, config))
    return 0


def _compare(argv: Sequence[str]) -> int:
    from vla_opt.cli._config import parse
    from vla_opt.cli._plugins import load_policies
    from vla_opt.cli._progress import Bars
    from vla_opt.rl.compare import RLCompareConfig, rl_compare

    config = parse(RLCompareConfig, load_policies(argv))
    print(
        f"{', '.join(config.arms)} with seeds {', '.join(map(str, config.seeds))}. Everything goes "
        f"to {config.output_dir}; the same command goes on where it was stopped.",
        flush=True,
    )
    with Bars() as bars:
        comparison = rl_compare(
            config,
            lambda arm, seed: _console(bars, f"{arm} seed {seed}: "),
            progress=lambda done, total: bars.get(
                "updates", total, initial=done, unit="updates"
            ).advance_to(done),
        )
    files = f"{config.output_dir}/result.{{html,txt,md,json}}, curves.csv"
    print(f"\n{comparison.text()}\n\nThe same as files: {files}")
    return 0 if comparison.complete else 1


def opening(session: Session) -> str:
    """What is about to be done, as text."""
    config = session.config
    rollouts, objective = config.rollouts, config.objective
    where = f"going on from update {session.step} of" if session.step else "for"
    count = sum(p.numel() for p in session.acting.actor.parameters() if p.requires_grad)
    return (
        f"{objective.name.upper()} with {config.optimizer.name} on {count:,} parameters of "
        f"{config.checkpoint}, {where} {config.updates} updates of {rollouts.groups} groups of "
        f"{rollouts.group_size} episodes ({rollouts.suite}, tasks {list(rollouts.task_ids)}). "
        f"Everything goes to {config.output_dir}."
    )


def update_line(row: Row) -> str:
    """An update in one line."""
    success, groups = row["success"], row["groups"]
    text = (
        f"update {row['step']}: {success['successes']}/{success['episodes']} with exploration "
        f"({100 * success['low']:.0f}-{100 * success['high']:.0f} %), "
        f"{groups['learned_episodes']} learned from"
    )
    if "update" not in row:
        return f"{text}; no group showed a difference, no weight moved"
    update = row["update"]
    after, snr = update["after"], update["gradient"]["snr"]
    figures = f"gradient {update['gradient']['norm']:.3g}"
    figures += f", SNR {snr:.2f}" if snr is not None else ""
    figures += f", gain {update['gain']:.3g}, KL {after['approx_kl']:.3g}"
    return f"{text}; {figures}, clipped {after['clip_fraction']:.0%}"


def closing(summary: RLSummary, config: RLConfig) -> str:
    """What a run came to, as text."""
    from vla_opt.cli._progress import clock

    return (
        f"{summary.updates} updates, {summary.episodes} episodes now, {clock(summary.wall_s)} in "
        f"all.\nThe curve of success: {config.output_dir / 'success.md'} and success.html\n"
        f"Checkpoint: {summary.checkpoint}\nNext: vla-opt eval --checkpoint={summary.checkpoint}"
    )


def _console(bars: Any, name: str = "") -> Listener:
    from vla_opt.rl.run import Listener

    class Console(Listener):
        """A bar per update, a line for what came of it."""

        def started(self, session: Session) -> None:
            rollouts = session.config.rollouts
            self._most = rollouts.groups * rollouts.group_size * rollouts.max_rounds
            self._played: dict[int, int] = {}
            print(f"{name}{opening(session)}", flush=True)

        def played(self, update: int, success: bool) -> None:
            self._played[update] = self._played.get(update, 0) + 1
            bar = bars.get(
                f"{name}episodes of update {update}", self._most, unit="episodes at most"
            )
            bar.advance_to(self._played[update], success=success)

        def updated(self, row: Row) -> None:
            print(f"{name}{update_line(row)}", flush=True)

        def warned(self, row: Row) -> None:
            print(f"warning: {row['message']}", flush=True)

        def evaluated(self, row: Row) -> None:
            span = f"{100 * row['low']:.0f}-{100 * row['high']:.0f} %"
            text = f"{row['successes']}/{row['episodes']} ({span})"
            print(f"{name}evaluation after update {row['step']}: {text}", flush=True)

    return Console()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
