"""TRL's GRPO loop with the optimizers of this project, GMPO's objective, and a noise meter.

Needs the extra `rlvr`. Nothing of TRL is copied: its trainer is subclassed in four methods.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from trl.trainer.grpo_trainer import GRPOTrainer

from vla_opt.rl.gmpo import GeometricMean, geometric_mean_objective
from vla_opt.rl.losses import kl_k3
from vla_opt.rlvr.gradient_noise import GradientNoise


class PolicyTrainer(GRPOTrainer):
    """GRPO with an optimizer that sees names, and a measurement of the gradient's noise.

    Args:
        build_optimizer: makes the optimizer of a model; called when the model stands where it is
            trained (after sharding, for example).
        build_scheduler: makes the schedule of an optimizer for a number of steps.
        noise_every: steps between measurements of noise, at the beginning of a round; 0 = none.
        noise_samples: parts a microbatch is cut into.
        **trl: what TRL's trainer takes.
    """

    def __init__(
        self,
        *,
        build_optimizer: Callable[[Any], Optimizer],
        build_scheduler: Callable[[Optimizer, int], LRScheduler],
        noise_every: int = 0,
        noise_samples: int = 4,
        **trl: Any,
    ) -> None:
        self._build_optimizer, self._build_scheduler = build_optimizer, build_scheduler
        self._noise_every, self._noise_samples = noise_every, noise_samples
        self._noise_at = -1
        self.noise: dict[int, float] = {}
        super().__init__(**trl)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """The optimizer of all parameters that are trained."""
        if self.optimizer is None:
            self.optimizer = self._build_optimizer(self.model if model is None else model)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """The schedule; accelerate steps it once per update."""
        current: Any = self
        if current.lr_scheduler is None:
            chosen: Any = current.optimizer if optimizer is None else optimizer
            inner = getattr(chosen, "optimizer", chosen)  # accelerate's wrapper
            current.lr_scheduler = self._build_scheduler(inner, num_training_steps)
        schedule: LRScheduler = current.lr_scheduler
        return schedule

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss; before it, when due, its gradient is measured in parts."""
        step = int(self.state.global_step)
        if self._training and step != self._noise_at and self._noise_due(step):
            self._noise_at = step
            self._measure_noise(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _noise_due(self, step: int) -> bool:
        """Whether this update begins a round of sampling, and enough passed since the last such.

        Later in a round the clip pulls back what went too far; all samples agree on that, which
        would pass for signal.
        """
        if not self._noise_every:
            return False
        arguments: Any = self.args
        passes = arguments.steps_per_generation * self.num_iterations
        round_length = max(1, passes // arguments.gradient_accumulation_steps)
        every: int = math.ceil(self._noise_every / round_length) * round_length
        return step % every == 0

    @property
    def _training(self) -> bool:
        model: Any = self.model
        return bool(model.training)

    def _measure_noise(self, inputs: Mapping[str, Any]) -> None:
        """Store the ratio for a gradient of one update, extrapolated from parts of a microbatch."""
        model = self.accelerator.unwrap_model(self.model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        logged = {key: list(values) for key, values in self._metrics["train"].items()}
        noise, compute = GradientNoise(), cast(Callable[..., Tensor], self._compute_loss)
        parts = cut(inputs, self._noise_samples)
        for part in parts:
            with self.compute_loss_context_manager():
                loss = compute(model, part)
            noise.add(torch.autograd.grad(loss, parameters, allow_unused=True))
        self._metrics["train"].clear()  # the parts' losses are not the step's
        self._metrics["train"].update(logged)
        per_update = len(parts) * self.current_gradient_accumulation_steps
        ratio = noise.ratio(per_update * self.accelerator.num_processes)
        if ratio is not None:
            self.noise[int(self.state.global_step)] = ratio


def cut(inputs: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """A batch in parts of equal size, a rest left out; what is not per completion stays whole.

    >>> [part["a"].tolist() for part in cut({"a": torch.arange(5), "prompt_ids": torch.ones(5)}, 2)]
    [[0, 1], [2, 3]]
    """
    size = len(inputs["prompt_ids"])
    count = min(count, size)
    width = size // count
    return [
        {key: _rows(value, size, i * width, (i + 1) * width) for key, value in inputs.items()}
        for i in range(count)
    ]


def _rows(value: Any, size: int, start: int, stop: int) -> Any:
    per_completion = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
    return value[start:stop] if per_completion and len(value) == size else value


class GeometricMeanTrainer(PolicyTrainer):
    """GMPO: TRL's loop with the objective of `vla_opt.rl.gmpo` in place of its loss."""

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        log_probabilities, entropies = self._token_statistics(model, inputs)
        mask = inputs["completion_mask"]
        old = inputs.get("old_per_token_logps")  # absent while the policy is the one that sampled
        result = geometric_mean_objective(
            log_probabilities,
            log_probabilities.detach() if old is None else old,
            inputs["advantages"],
            mask,
            clip_low=self.epsilon_low,
            clip_high=self.epsilon_high,
        )
        loss = -result.objective.mean()
        if self.beta:
            divergence = kl_k3(log_probabilities, inputs["ref_per_token_logps"])
            loss = loss + self.beta * _completion_means(divergence, mask).mean()
            self._note("kl", self._token_mean(divergence.detach(), mask))
        self._note_policy(result, entropies, mask)
        return loss / (self.current_gradient_accumulation_steps if self._training else 1)

    def _token_statistics(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every token of the completions, (B, T) each."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        length = inputs["completion_ids"].shape[1]
        log_probabilities, entropies, _ = self._get_per_token_logps_and_entropies(
            model, ids, mask, length, compute_entropy=True
        )
        return log_probabilities, entropies

    def _note_policy(self, result: GeometricMean, entropies: Tensor, mask: Tensor) -> None:
        low, high = result.clipped_low.float(), result.clipped_high.float()
        self._note("entropy", self._token_mean(entropies, mask))
        self._note("clip_ratio/low_mean", self._token_mean(low, mask))
        self._note("clip_ratio/high_mean", self._token_mean(high, mask))
        self._note("clip_ratio/region_mean", self._token_mean(low + high, mask))

    def _note(self, name: str, value: float) -> None:
        self._metrics["train" if self._training else "eval"][name].append(value)

    def _token_mean(self, values: Tensor, mask: Tensor) -> float:
        """Mean over the tokens of all processes."""
        local = torch.stack([(values * mask).sum(), mask.sum().to(values.dtype)]).detach()
        total, count = self.accelerator.reduce(local, reduction="sum").tolist()
        return float(total / max(count, 1.0))


def _completion_means(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
