"""Writes what TRL's loop reports, and what is measured beside it, to the run's log."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from transformers import TrainerCallback

from vla_opt._run_log import RunLog
from vla_opt.diagnostics import Reading, SpectralMeter
from vla_opt.rlvr.accuracy import Accuracy
from vla_opt.rlvr.collapse import CollapseWatch
from vla_opt.rlvr.config import RLVRConfig
from vla_opt.rlvr.heads import HeadMeter
from vla_opt.rlvr.trainer import PolicyTrainer

logger = logging.getLogger(__name__)

# Our name of a figure -> TRL's.
_FIGURES = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "equal_groups": "frac_reward_zero_std",
    "entropy": "entropy",
    "clip_fraction": "clip_ratio/region_mean",
    "clip_low": "clip_ratio/low_mean",
    "clip_high": "clip_ratio/high_mean",
    "kl": "kl",
    "grad_norm": "grad_norm",
    "length": "completions/mean_length",
    "cut_off": "completions/clipped_ratio",
}


class Listener(Protocol):
    """Told about progress."""

    def stepped(self, step: int, reward: float) -> None:
        """A row was logged."""

    def evaluated(self, step: int, accuracy: Accuracy) -> None:
        """Held-out questions were answered."""

    def warned(self, step: int, message: str) -> None:
        """Something about the run looks wrong."""


class Recorder(TrainerCallback):
    """The rows of a run, by kind: train, noise, heads, spectra, eval; and its warnings.

    Args:
        config: the run.
        log: where rows go.
        watch: judges reward and entropy.
        heads: reads attention heads, and knows where they began; None to leave them.
        evaluate: measures accuracy on held-out questions.
        listener: told about progress.
    """

    def __init__(
        self,
        config: RLVRConfig,
        log: RunLog,
        watch: CollapseWatch,
        heads: HeadMeter | None,
        evaluate: Callable[[], Accuracy],
        listener: Listener,
    ) -> None:
        self._config, self._log, self._watch = config, log, watch
        self._heads, self._evaluate, self._listener = heads, evaluate, listener
        self._spectra: SpectralMeter | None = None
        self._since = time.perf_counter()
        self.trainer: PolicyTrainer | None = None  # set once it exists; callbacks come before it

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Prepare the meter of spectra, and measure where the run begins."""
        assert self.trainer is not None
        if self._config.spectra_every:
            optimizer: Any = self.trainer.optimizer
            inner = getattr(optimizer, "optimizer", optimizer)
            self._spectra = SpectralMeter(inner, every=self._config.spectra_every)
        if state.global_step == 0:
            self._measure_accuracy(0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let the spectral meter look at the weights before."""
        if self._spectra is not None:
            self._spectra.before_step(state.global_step + 1)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """And after."""
        reading: Reading | None = self._spectra.after_step() if self._spectra else None
        if reading is not None:
            self._log.append(reading.row())
            if warning := reading.warning():
                self._warn(state.global_step + 1, warning["message"], sign="still")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Store measurements that are due after this step."""
        step = int(state.global_step)
        assert self.trainer is not None
        for at, ratio in self.trainer.noise.items():
            self._log.append({"kind": "noise", "step": at + 1, "gradient_snr": ratio})
        self.trainer.noise.clear()
        if self._heads is not None and step % self._config.heads_every == 0:
            self._log.append({"kind": "heads", "step": step, **self._heads.read().row()})
        every = self._config.eval_every
        if step == state.max_steps or (every and step % every == 0):
            self._measure_accuracy(step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Store a row of the loop's own figures, and judge them."""
        if not logs or "reward" not in logs:
            return  # the summary at the end
        step, now = int(state.global_step), time.perf_counter()
        row = {name: logs[key] for name, key in _FIGURES.items() if logs.get(key) is not None}
        rates = [group["lr"] for group in self._groups()]
        updates = self._config.log_every * self._config.updates_per_round
        seconds, self._since = (now - self._since) / updates, now
        self._log.append(
            {"kind": "train", "step": step, **row, "lr": max(rates), "step_s": seconds}
        )
        self._judge(step, row)
        self._listener.stepped(step, float(row["reward"]))

    def _judge(self, step: int, row: dict[str, float]) -> None:
        if any(not math.isfinite(row.get(name, 0.0)) for name in ("reward", "entropy", "loss")):
            self._warn(step, f"not a finite number: {row}", sign="not finite")
            return
        complaints = self._watch.observe(
            reward=row["reward"],
            entropy=row.get("entropy", 0.0),
            equal_groups=row.get("equal_groups", 0.0),
        )
        for kind, message in complaints.items():
            self._warn(step, message, sign=kind)

    def _measure_accuracy(self, step: int) -> None:
        if self._log.has("eval", step):
            return
        found = self._evaluate()
        self._log.append({"kind": "eval", "step": step, **found.row()})
        self._listener.evaluated(step, found)

    def _warn(self, step: int, message: str, *, sign: str) -> None:
        self._log.warn(step, message, sign=sign)
        self._listener.warned(step, message)

    def _groups(self) -> list[dict[str, Any]]:
        assert self.trainer is not None
        optimizer: Any = self.trainer.optimizer
        groups: list[dict[str, Any]] = optimizer.param_groups
        return groups
