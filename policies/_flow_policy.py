"""Loss and sampling shared by the flow-matching policies, whatever is in front of their head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from policies._chunk_policy import ChunkPolicy, reduce_steps
from policies._flow_config import FlowConfig
from policies._flow_head import FlowContext, FlowHead
from policies.flow import (
    band_weights,
    frequency_error,
    integrate,
    interpolate,
    sample_time,
    seeded_noise,
    velocity_of,
)

NOISE_SEED = "noise_seed"


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
        """Squared error of the prediction, plus the frequency loss; padded actions do not count.

        An error of predicted actions is that of their velocity times the noise level: noisy chunks,
        whose answer the observation alone can give, weigh more in it than nearly clean ones.

        Args:
            batch: see the class.
            reduction: "mean" over all real actions, or "none" for one loss per sample, (B,).

        Returns:
            the loss, and figures for the log.

        Raises:
            ValueError: a key is missing or has the wrong shape.
        """
        config, target = self.config, self._target(batch)
        draws = config.noise_draws
        actions = target.repeat_interleave(draws, dim=0)
        noise = torch.randn(actions.shape).to(actions)
        time = sample_time(len(target), config.time_distribution, draws).to(actions)
        context = self._context(batch).repeat(draws)
        predicted = self._head(interpolate(actions, noise, time), time, context)
        if config.prediction == "velocity":
            error, clean = predicted - (noise - actions), time
        else:
            error, clean = predicted - actions, torch.ones_like(time)
        real = self._real_steps(batch, target).repeat_interleave(draws, dim=0)
        flow = reduce_steps(error.square().mean(-1), real, reduction)
        weights = band_weights(
            config.chunk_size, config.frequency_split, config.frequency_low, config.frequency_high
        )
        frequency = frequency_error(error, clean, real, weights)
        if reduction == "none":
            flow, frequency = (f.unflatten(0, (-1, draws)).mean(1) for f in (flow, frequency))
        else:
            frequency = frequency.mean()
        loss = flow + config.frequency_weight * frequency
        figures = {"flow_loss": flow, "frequency_loss": frequency}
        return loss, {name: value.detach().mean().item() for name, value in figures.items()}

    def _velocity(self, noisy: Tensor, time: Tensor, context: FlowContext) -> Tensor:
        predicted = self._head(noisy, time, context)
        if self.config.prediction == "velocity":
            return predicted
        return velocity_of(predicted, noisy, time)

    def velocity_field(self, batch: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """Velocities (B, K, A) of noisy chunks (B, K, A) at noise levels (B,), differentiable."""
        context = self._context(batch)
        return lambda noisy, time: self._velocity(noisy, time, context)

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
            lambda x, time: self._velocity(x, time, context),
            noise,
            config.inference_steps,
            config.solver,
            correct_last=config.prediction == "velocity",
        ).float()
