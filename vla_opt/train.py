"""The training loop.

    summary = train(TrainConfig(...))

One loop for every policy of lerobot, on one CPU, one GPU, or several processes under `accelerate
launch`. The gradient is always that of the wrapped model, so it is averaged over the processes.
A run that was killed and started again ends with the same bytes as one that was not: noise and
data order are functions of (seed, step, rank), everything else is in the checkpoint.
"""

import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from vla_opt._data_contract import check_training
from vla_opt._numerics import fixed_numerics
from vla_opt._periodic_eval import evaluate_checkpoint
from vla_opt._reporting import Reporter
from vla_opt._resume import find_resume_point, only_writer, threads_of
from vla_opt._session import Clocks, Session, Window, build_accelerator, build_session
from vla_opt._sharding import no_sync, whole
from vla_opt._signals import StopRequest, stop_request
from vla_opt.checkpoint import checkpoint_name
from vla_opt.config import TrainConfig
from vla_opt.io import Row
from vla_opt.seeding import seed_everything

logger = logging.getLogger(__name__)

__all__ = ["NonFiniteError", "Reporter", "TrainConfig", "TrainSummary", "train"]


class NonFiniteError(RuntimeError):
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: The update that was not made, counted from 1.
        rows: Rows of the frame cache in the batch of this process.
        last_checkpoint: The newest checkpoint, None if there is none yet.
    """

    def __init__(
        self, what: str, step: int, rows: list[int], samples: list[str], last: Path | None
    ) -> None:
        self.step, self.rows, self.last_checkpoint = step, rows, last
        shown = ", ".join(samples[:8]) + (f" and {len(samples) - 8} more" if samples[8:] else "")
        self._message = (
            f"{what} at step {step}; nothing was updated. Batch: {shown}. "
            f"Last checkpoint: {last or 'none yet'}. Look at these samples; a lower learning rate, "
            "a longer warm-up or a smaller grad_clip may help."
        )
        # Another process unpickles an exception by calling its class with these.
        super().__init__(what, step, rows, samples, last)

    def __str__(self) -> str:
        return self._message


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What a run came to.

    Attributes:
        steps: Updates made in all, earlier sessions included.
        steps_now: Updates made by this call.
        loss: Mean over the last window of the log; NaN if this call made no step.
        samples_per_s: Samples of all processes per second of wall time in the loop.
        optimizer_share: Share of that time spent in the optimizer.
        data_share: Share spent on batches.
        peak_memory_bytes: Of this process: GPU memory on a GPU, resident memory otherwise.
        wall_s: Seconds spent on updates, in all sessions.
        checkpoint: The last checkpoint.
    """

    steps: int
    steps_now: int
    loss: float
    samples_per_s: float
    optimizer_share: float
    data_share: float
    peak_memory_bytes: int
    wall_s: float
    checkpoint: Path


def train(config: TrainConfig, reporter: Reporter | None = None) -> TrainSummary:
    """Train a policy, or go on with the run in `config.output_dir`.

    Args:
        config: The run.
        reporter: Told about progress, on the main process.

    Ctrl-C and SIGTERM end it after the update in progress, with a checkpoint.

    Raises:
        ConfigError: `output_dir` holds another run, or another process trains there.
        ContractError: The data are not what they declare, or do not fit the evaluation.
        DataError: The data set is missing, damaged or too small.
        PolicyError: The policy cannot be built or trained.
        NonFiniteError: The loss or its gradient is not finite; no weight was changed by it.
        OSError: A file could not be stored; the last checkpoint is whole.
        KeyboardInterrupt: It was asked to end.
    """
    accelerator = build_accelerator(config)
    if reporter is None or not accelerator.is_main_process:
        reporter = Reporter()
    with only_writer(config.output_dir) if accelerator.is_main_process else nullcontext():
        resume = find_resume_point(config, accelerator)
        for warning in check_training(config):
            logger.warning("%s", warning)
        with fixed_numerics(threads_of(config, resume), deterministic=config.deterministic):
            session = build_session(config, accelerator, resume, reporter.preparing)
            # Processes that share a run must all do the same: there, a signal ends it as it comes.
            alone = accelerator.num_processes == 1
            with session.log, stop_request(enabled=alone) as stop:
                reporter.started(session)
                return _run(session, reporter, stop)


def _run(session: Session, reporter: Reporter, stop: StopRequest) -> TrainSummary:
    config, first = session.config, session.step
    totals, loss = Clocks(), math.nan
    _evaluate_if_due(session, reporter)  # the last session may have ended between save and this
    while session.step < config.steps:
        step_loss = _update(session, totals, reporter)
        reporter.stepped(session.step, step_loss)
        is_last = session.step == config.steps
        if is_last or session.step % config.log_every == 0:
            loss = _log_window(session, reporter)
        if is_last or stop.made or _due(config.save_every, session.step):
            session.save()
        if stop.made:
            raise KeyboardInterrupt(f"stopped at step {session.step}, which is saved")
        _evaluate_if_due(session, reporter)
    path = session.last_checkpoint or session.save()
    return _summary(session, totals, session.step - first, loss, path)


def _update(session: Session, totals: Clocks, reporter: Reporter) -> float:
    """Make one update; return the loss, averaged over all processes."""
    config, accelerator, start = session.config, session.accelerator, time.perf_counter()
    seed_everything(config.seed, "noise", session.step, accelerator.process_index)
    session.model.train()
    loss, data_s = _accumulate_gradient(session)
    clip = config.grad_clip or math.inf
    norm = float(whole(accelerator.clip_grad_norm_(session.parameters, clip)))
    if not math.isfinite(norm):
        raise _non_finite(session, f"The gradient's norm is {norm}")
    session.meter.before_step(session.step + 1)
    optimizer_s = _timed(session, session.optimizer.step)
    reading = session.meter.after_step()
    session.scheduler.step()
    session.optimizer.zero_grad(set_to_none=True)
    if hasattr(session.policy, "update"):  # lerobot's hook for moving averages of weights
        session.policy.update()
    session.step += 1
    session.window.add(loss, norm)
    seconds = time.perf_counter() - start
    session.wall_s += seconds
    for clocks in (totals, session.clocks):
        clocks.add(seconds, optimizer_s, data_s)
    if reading is not None:
        for row in (reading.row(), reading.warning()):
            _append(session, reporter, row)
    return loss


def _accumulate_gradient(session: Session) -> tuple[float, float]:
    """Run the batches of a step forward and backward; return the loss and the seconds for data."""
    config, accelerator = session.config, session.accelerator
    loss, data_s = 0.0, 0.0
    for micro in range(config.gradient_accumulation):
        begin = time.perf_counter()
        batch = session.batches.batch(session.step, micro, accelerator.device)
        batch = session.preprocessor(batch)
        data_s += time.perf_counter() - begin
        # Gradients are averaged over the processes once, with the last batch.
        is_last = micro == config.gradient_accumulation - 1
        with nullcontext() if is_last else no_sync(accelerator, session.model):
            with accelerator.autocast():
                output, _ = session.model(batch)
            mean = float(accelerator.reduce(output.detach().float(), reduction="mean"))
            if not math.isfinite(mean):  # on one process: all stop here, none waits for another
                raise _non_finite(session, f"The loss is {mean}", micro)
            accelerator.backward(output / config.gradient_accumulation)
        loss += mean / config.gradient_accumulation
    return loss, data_s


def _non_finite(session: Session, what: str, micro: int | None = None) -> NonFiniteError:
    """Build the error; on disk the event is a row of `warnings.jsonl`."""
    micros = range(session.config.gradient_accumulation) if micro is None else [micro]
    rows = [int(r) for m in micros for r in session.batches.rows(session.step, m)]
    step, samples = session.step + 1, session.batches.describe(rows)
    error = NonFiniteError(what, step, rows, samples, session.last_checkpoint)
    session.log.warn(step, str(error), rows=rows)
    return error


def _log_window(session: Session, reporter: Reporter) -> float:
    """Log the means since the last row, and return that of the loss."""
    window, clocks, config = session.window, session.clocks, session.config
    factor = config.scheduler.factor(session.step - 1, config.steps)
    loss = window.loss / window.steps
    row = {
        "kind": "train",
        "step": session.step,
        "loss": loss,
        "lr": config.optimizer.lr * factor,
        "grad_norm": window.grad_norm / window.steps,
        "samples_per_s": session.batches.samples_per_step * clocks.steps / clocks.total,
        **_token_rate(session, clocks),
        "step_s": clocks.total / clocks.steps,
        "optimizer_s": clocks.optimizer / clocks.steps,
        "data_s": clocks.data / clocks.steps,
        "wall_s": session.wall_s,
        "peak_memory_bytes": _peak_memory(session.accelerator.device),
    }
    session.window, session.clocks = Window(), Clocks()
    _append(session, reporter, row)
    return loss


def _token_rate(session: Session, clocks: Clocks) -> dict[str, float]:
    """Of all processes, as if each had as many as this one; nothing without a language model."""
    tokens = session.tokens.take() * session.accelerator.num_processes
    return {"tokens_per_s": tokens / clocks.total} if tokens else {}


def _append(session: Session, reporter: Reporter, row: Row | None) -> None:
    if row is not None:
        session.log.append(row)
        reporter.logged(row)


def _due(every: int, step: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _evaluate_if_due(session: Session, reporter: Reporter) -> None:
    step = session.step
    if not _due(session.config.eval_every, step):
        return
    if session.last_checkpoint is None or session.last_checkpoint.name != checkpoint_name(step):
        session.save()
    if session.is_main and not session.log.has("eval", step):
        _append(session, reporter, evaluate_checkpoint(session, reporter.preparing))
    session.accelerator.wait_for_everyone()


def _timed(session: Session, work: Callable[[], object]) -> float:
    """Seconds that `work` takes, on a GPU too."""
    synchronize = torch.cuda.synchronize if session.accelerator.device.type == "cuda" else None
    if synchronize:
        synchronize()
    begin = time.perf_counter()
    work()
    if synchronize:
        synchronize()
    return time.perf_counter() - begin


def _summary(
    session: Session, totals: Clocks, steps_now: int, loss: float, checkpoint: Path
) -> TrainSummary:
    seconds = totals.total or math.inf
    return TrainSummary(
        steps=session.step,
        steps_now=steps_now,
        loss=loss,
        samples_per_s=session.batches.samples_per_step * steps_now / seconds,
        optimizer_share=totals.optimizer / seconds,
        data_share=totals.data / seconds,
        peak_memory_bytes=_peak_memory(session.accelerator.device),
        wall_s=session.wall_s,
        checkpoint=checkpoint,
    )


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
