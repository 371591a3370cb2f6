"""Loss and sampling shared by the flow-matching policies, whatever is in front of their head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies._chunk_policy import ChunkPolicy, reduce_steps
from policies._configuration import ChunkPolicyConfig
from policies._flow_head import FlowContext, FlowHead
from policies.flow import (
    Solver,
    TimeDistribution,
    band_weights,
    frequency_error,
    integrate,
    interpolate,
    sample_time,
    seeded_noise,
)

NOISE_SEED = "noise_seed"


@dataclass
class FlowConfig(ChunkPolicyConfig):
    """How a flow-matching policy learns and samples.

    Args:
        inference_steps: steps from noise to actions.
        solver: "euler", or "heun": second order, two evaluations of the head per step.
        time_distribution: noise levels in training: "uniform", or "beta" as pi_0 has it.
        frequency_weight: factor of the frequency-domain loss; 0 = none.
        frequency_split: share of the chunk's frequencies that are low.
        frequency_low: weight of the low ones in that loss.
        frequency_high: weight of the others. Equal weights make it a plain squared error of the
            clean actions.

    Raises:
        ValueError: a value out of range.
    """

    inference_steps: int = 10
    solver: Solver = "euler"
    time_distribution: TimeDistribution = "uniform"
    frequency_weight: float = 0.1
    frequency_split: float = 0.125
    frequency_low: float = 5.0
    frequency_high: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("inference_steps")
        for name in ("frequency_weight", "frequency_low", "frequency_high"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must not be negative")
        if not 0 <= self.frequency_split <= 1:
            raise ValueError(f"frequency_split is {self.frequency_split}, must be in 0..1")
        if self.solver not in ("euler", "heun"):
            raise ValueError(f"solver is '{self.solver}', expected 'euler' or 'heun'")
        if self.time_distribution not in ("uniform", "beta"):
            raise ValueError(
                f"time_distribution is '{self.time_distribution}', expected 'uniform' or 'beta'"
            )


class FlowPolicy(ChunkPolicy):
    """Flow matching on the chunk; a subclass says what the head attends to.

    Noise in training comes from torch's global generator. Noise of an answer comes from a generator
    of its own per observation, seeded by ``noise_seed`` (B integers in the batch) or, without it,
    by one draw from torch's global generator: either way the same seed gives the same answer, on
    any device and in any company.
    """

    config_class = FlowConfig
    name = "flow_policy"
    config: FlowConfig

    @property
    def _head(self) -> FlowHead:
        """The head that predicts velocities."""
        raise NotImplementedError

    def _context(self, batch: Mapping[str, Any]) -> FlowContext:
        """What the head attends to."""
        raise NotImplementedError

    def forward(
        self, batch: Mapping[str, Any], reduction: str = "mean"
    ) -> tuple[Tensor, dict[str, float]]:
        """Squared error of the velocity, plus the frequency loss; padded actions do not count.

        Args:
            batch: see the class.
            reduction: "mean" over all real actions, or "none" for one loss per sample, (B,).

        Returns:
            the loss, and figures for the log.

        Raises:
            ValueError: a key is missing or has the wrong shape.
        """
        config, actions = self.config, self._target(batch)
        noise = torch.randn(actions.shape).to(actions)
        time = sample_time(len(actions), config.time_distribution).to(actions)
        predicted = self._head(interpolate(actions, noise, time), time, self._context(batch))
        error = predicted - (noise - actions)
        real = self._real_steps(batch, error)
        flow = reduce_steps(error.square().mean(-1), real, reduction)
        weights = band_weights(
            config.chunk_size, config.frequency_split, config.frequency_low, config.frequency_high
        )
        frequency = frequency_error(error, time, real, weights)
        frequency = frequency if reduction == "none" else frequency.mean()
        loss = flow + config.frequency_weight * frequency
        figures = {"flow_loss": flow, "frequency_loss": frequency}
        return loss, {name: value.detach().mean().item() for name, value in figures.items()}

    def velocity_field(self, batch: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """Velocities (B, K, A) of noisy chunks (B, K, A) at noise levels (B,), differentiable."""
        context = self._context(batch)
        return lambda noisy, time: self._head(noisy, time, context)

    def _predict(self, batch: Mapping[str, Any]) -> Tensor:
        context = self._context(batch)
        rows, config = len(context.bias), self.config
        assert config.action_feature is not None
        seeds = batch.get(NOISE_SEED)
        if seeds is None:
            seeds = torch.randint(2**62, (rows,)).tolist()
        shape = (config.chunk_size, config.action_feature.shape[0])
        like = self._head.input_proj.weight
        noise = seeded_noise(shape, seeds).to(like.device, like.dtype)
        return integrate(
            lambda x, time: self._head(x, time, context),
            noise,
            config.inference_steps,
            config.solver,
        ).float()
