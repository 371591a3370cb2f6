"""What `vla-opt train` and `vla-opt compare` show of a training run."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from vla_opt._reporting import Reporter
from vla_opt.cli._progress import Progress, clock, progress
from vla_opt.io import Row

if TYPE_CHECKING:
    from vla_opt._session import Session
    from vla_opt.train import TrainSummary


class Printer(Reporter):
    """Prints the routing table, and a progress bar for every stage.

    Args:
        title: Put before the name of a stage, to tell several runs apart.
    """

    def __init__(self, title: str = "") -> None:
        self._title = f"{title} " if title else ""
        self._bar: Progress | None = None
        self._stage, self._steps, self._first = "", 0, 0
        self._pace = ""

    def __enter__(self) -> Self:
        """Return the printer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the line of the last bar."""
        self._close()

    def started(self, session: Session) -> None:
        """Print what is trained, on what, and by which algorithm."""
        self._close()
        self._steps, self._first = session.config.steps, session.step
        print(f"{opening(session)}\n\n{session.routing}\n", flush=True)

    def preparing(self, what: str, done: int, total: int) -> None:
        """Move the bar of a stage of the preparation."""
        self._show(what, done, total, first=0)

    def stepped(self, step: int, loss: float) -> None:
        """Move the bar of the training."""
        note = f"loss {loss:.4f}{self._pace}"
        self._show("training", step, self._steps, first=self._first, note=note)

    def logged(self, row: Row) -> None:
        """Keep the throughput and memory of the last window, to be shown with the next step."""
        if row["kind"] == "train":
            self._pace = f", {pace(row)}"

    def _show(self, stage: str, done: int, total: int, *, first: int, note: str = "") -> None:
        if self._bar is None or stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = progress(total, self._title + stage, initial=first, unit="steps")
        self._first = done
        self._bar.advance_to(done, note=note)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def pace(row: Row) -> str:
    """Throughput, memory and the optimizer's share of the time, of a row of the log.

    >>> pace({"samples_per_s": 33.0, "tokens_per_s": 2112.0, "optimizer_s": 0.2, "step_s": 1.0,
    ...       "peak_memory_bytes": 3 * 2**29})
    '33 samples/s, 2,112 tokens/s, optimizer 20%, 1.50 GiB'
    """
    tokens = [f"{row['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in row else []
    return ", ".join(
        [
            f"{row['samples_per_s']:.0f} samples/s",
            *tokens,
            f"optimizer {row['optimizer_s'] / row['step_s']:.0%}",
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB",
        ]
    )


def opening(session: Session) -> str:
    """What is about to be trained, as text."""
    config, trainable = session.config, sum(p.numel() for p in session.parameters)
    total = sum(p.numel() for p in session.policy.parameters())
    where = f"going on from step {session.step} of" if session.step else "for"
    processes = session.accelerator.num_processes
    return (
        f"Training {session.policy.name} with {config.optimizer.name} {where} {config.steps} steps "
        f"of {session.batches.samples_per_step} samples, on {session.accelerator.device}"
        + (f" x {processes}" if processes > 1 else "")
        + f"; {trainable:,} of {total:,} parameters are trained. Everything goes to "
        f"{config.output_dir}."
    )


def closing(summary: TrainSummary) -> str:
    """What a run came to, as text."""
    if not summary.steps_now:
        return f"Step {summary.steps} was reached already. Checkpoint: {summary.checkpoint}"
    return (
        f"Trained to step {summary.steps} in {clock(summary.wall_s)}: loss {summary.loss:.4f}, "
        f"{summary.samples_per_s:.0f} samples/s, {summary.optimizer_share:.0%} of the time in the "
        f"optimizer and {summary.data_share:.0%} for data, peak memory "
        f"{summary.peak_memory_bytes / 2**30:.2f} GiB.\nCheckpoint: {summary.checkpoint}"
    )
