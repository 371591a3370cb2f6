"""``vla-opt rlvr``: train a language model on rewards that a program verifies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_opt.rlvr import RLVRConfig, RLVRSummary
    from vla_opt.rlvr.accuracy import Accuracy

HELP = "train a language model on rewards that a program verifies (GRPO, GMPO; needs TRL)"


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    from vla_opt.cli._config import parse
    from vla_opt.cli._progress import Bars
    from vla_opt.rlvr import RLVRConfig, rlvr

    config = parse(RLVRConfig, argv)
    print(opening(config), flush=True)
    with Bars() as bars:
        summary = rlvr(config, _console(bars, config))
    print(closing(summary))
    return 0


def opening(config: RLVRConfig) -> str:
    """What is about to be done, as text."""
    sampling, task = config.sampling, config.task
    model = config.model.path or "a small random Qwen3"
    return (
        f"{config.objective.name} with {config.optimizer.name} on {model}: {task.name} with reward "
        f"'{task.reward_name}', {config.steps} updates, {sampling.prompts} prompts x "
        f"{sampling.group} completions per round. Everything goes to {config.output_dir}."
    )


def closing(summary: RLVRSummary) -> str:
    """What a run came to, as text."""
    from vla_opt.cli._progress import clock

    warned = f"{summary.warnings} warnings in warnings.jsonl. " if summary.warnings else ""
    return (
        f"{summary.steps} updates in {clock(summary.wall_s)}: reward {summary.first_reward:.3f} -> "
        f"{summary.reward:.3f} (first and last tenth).\n"
        f"Held-out questions, greedy: {summary.before} -> {summary.after}. {warned}\n"
        f"Model: {summary.model}\nCharts: {summary.model.parent / 'report.html'}"
    )


def _console(bars: Any, config: RLVRConfig) -> Any:
    class Console:
        """A bar of updates; evaluations as lines."""

        def stepped(self, step: int, reward: float) -> None:
            bar = bars.get("updates", config.steps, unit="updates")
            bar.advance_to(step, note=f"reward {reward:.3f}")

        def evaluated(self, step: int, accuracy: Accuracy) -> None:
            print(f"after {step} updates: {accuracy} of held-out questions", flush=True)

        def warned(self, step: int, message: str) -> None:
            """The log has written it already."""

    return Console()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
