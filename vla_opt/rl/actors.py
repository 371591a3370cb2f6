"""Policies that explore, and say how probable what they did was."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from policies._flow_policy import FlowPolicy
from policies._l1_policy import L1Policy
from policies.flow import seeded_noise
from vla_opt.errors import ConfigError
from vla_opt.rl.likelihood import (
    chunk_log_prob,
    correlate,
    gaussian_entropy,
    path_entropy,
    path_log_prob,
    sde_sample,
)

Batch = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """How a policy deviates from its best guess while it gathers episodes.

    Attributes:
        std: Standard deviation of the Gaussian around the chunk of an l1 policy, in the network's
            own units of the action (LIBERO: -1 to 1 for all seven). One number for all action
            dimensions, or one for each; 0 leaves a dimension as predicted, and nothing is learned
            about it.
        learn_std: Train it, one number per shaken action dimension; otherwise it stays.
        correlation: Of the noise of neighbouring actions in a chunk, in [0, 1).
        noise_level: Of flow-matching policies: the factor a of sigma = a sqrt(s / (1 - s)).
        flow_steps: Denoising steps of flow-matching policies; 0 = as the policy is configured.

    Raises:
        ValueError: A number is out of range.
    """

    std: float | tuple[float, ...] = 0.1
    learn_std: bool = False
    correlation: float = 0.0
    noise_level: float = 0.3
    flow_steps: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if not (all(std >= 0 for std in self.deviations) and any(self.deviations)):
            raise ValueError(f"std={self.std}: expected numbers from 0 up, one of them positive.")
        if not self.noise_level > 0:
            raise ValueError(f"noise_level={self.noise_level}: expected a positive number.")
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation={self.correlation}: expected 0 <= correlation < 1.")
        if self.flow_steps < 0:
            raise ValueError(f"flow_steps={self.flow_steps}: expected 0 or more.")

    @property
    def deviations(self) -> tuple[float, ...]:
        """Standard deviations: one for all dimensions, or one for each."""
        return self.std if isinstance(self.std, tuple) else (self.std,)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What was drawn for B observations.

    Attributes:
        chunk: (B, K, A), as the network gives it: before post-processing.
        latents: (B, ...), see `vla_opt.rl.trajectories.Act`.
        log_prob: (B, U), see there.
    """

    chunk: Tensor
    latents: Tensor
    log_prob: Tensor


class Actor(nn.Module):
    """A policy with a likelihood; subclasses say which.

    Args:
        policy: not copied; in evaluation mode from now on, as dropout would change the ratio.
    """

    def __init__(self, policy: PreTrainedPolicy) -> None:
        super().__init__()
        self.policy = policy.eval()

    def sample(self, batch: Batch, seeds: list[int]) -> Draw:
        """Draw for B observations; row i depends on observation i and seeds[i] alone."""
        raise NotImplementedError

    def log_prob(self, batch: Batch, latents: Tensor) -> Tensor:
        """Return (B, U), differentiable."""
        raise NotImplementedError

    def real(self, executed: Tensor) -> Tensor:
        """Which of the U parts count, (B, U) bool; (B, E) says which actions were executed."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """Return the entropy of a decision in nats, a scalar."""
        raise NotImplementedError

    @property
    def exploration(self) -> float:
        """The size of the noise: a mean standard deviation, or a noise level."""
        raise NotImplementedError

    def rescale(self, factor: float) -> None:
        """Multiply the noise by a positive number."""
        raise NotImplementedError


class GaussianActor(Actor):
    """An l1 policy as the mean of a Gaussian over the executed actions.

    Args:
        policy: predicts chunks.
        execute_steps: actions of a chunk that are executed; the others are neither shaken nor
            counted.
        exploration: see `ExplorationConfig`.
    """

    def __init__(
        self, policy: L1Policy, execute_steps: int, exploration: ExplorationConfig
    ) -> None:
        super().__init__(policy)
        feature = policy.config.action_feature
        assert feature is not None
        self._execute, self._correlation = execute_steps, exploration.correlation
        deviations = _per_dimension(exploration.deviations, feature.shape[0])
        device = next(policy.parameters()).device
        self._shaken = deviations.nonzero().flatten().to(device)
        start = deviations.to(device)[self._shaken].log()
        self.log_std = nn.Parameter(start, requires_grad=exploration.learn_std)

    def sample(self, batch: Batch, seeds: list[int]) -> Draw:
        """Draw the executed actions; the rest of the chunk stays as predicted."""
        chunk = self._mean(batch)
        mean = chunk[:, : self._execute]
        noise = seeded_noise(tuple(mean.shape[1:]), seeds).to(mean)[..., self._shaken]
        shakes = self.log_std.exp() * correlate(noise, self._correlation)
        actions = mean.index_add(-1, self._shaken, shakes)
        chunk = torch.cat([actions, chunk[:, self._execute :]], 1)
        return Draw(chunk=chunk, latents=actions, log_prob=self._density(actions, mean))

    def log_prob(self, batch: Batch, latents: Tensor) -> Tensor:
        """Return that of each executed action given those before it in its chunk, (B, E)."""
        return self._density(latents, self._mean(batch)[:, : self._execute])

    def real(self, executed: Tensor) -> Tensor:
        """The executed ones."""
        return executed

    def entropy(self) -> Tensor:
        """Return that of one action, given the one before it if they are correlated."""
        return gaussian_entropy(self.log_std).sum()

    @property
    def exploration(self) -> float:
        """The mean standard deviation of the dimensions that are shaken."""
        return float(self.log_std.detach().exp().mean())

    def rescale(self, factor: float) -> None:
        """Multiply the standard deviations."""
        self.log_std.data.add_(math.log(factor))

    def _density(self, actions: Tensor, mean: Tensor) -> Tensor:
        actions, mean = actions[..., self._shaken], mean[..., self._shaken]
        return chunk_log_prob(actions, mean, self.log_std, self._correlation)

    def _mean(self, batch: Batch) -> Tensor:
        policy = self.policy
        assert isinstance(policy, L1Policy)
        return policy.mean_chunk(batch).float()


class FlowActor(Actor):
    """A flow-matching policy that denoises stochastically.

    Args:
        policy: predicts velocities.
        exploration: see `ExplorationConfig`.
    """

    def __init__(self, policy: FlowPolicy, exploration: ExplorationConfig) -> None:
        super().__init__(policy)
        feature = policy.config.action_feature
        assert feature is not None
        self._shape = (policy.config.chunk_size, feature.shape[0])
        self._steps = exploration.flow_steps or policy.config.inference_steps
        like = next(policy.parameters())
        # a parameter, so that it travels with the weights to the processes that act
        level = torch.tensor(exploration.noise_level, device=like.device)
        self.noise_level = nn.Parameter(level, requires_grad=False)

    def sample(self, batch: Batch, seeds: list[int]) -> Draw:
        """Draw a path from noise to actions."""
        velocity = self._velocity(batch)
        noise = seeded_noise((self._steps + 1, *self._shape), seeds)
        path = sde_sample(velocity, noise.to(next(self.policy.parameters())), self.exploration)
        log_prob = path_log_prob(velocity, path, self.exploration)
        return Draw(chunk=path[:, -1].float(), latents=path, log_prob=log_prob)

    def log_prob(self, batch: Batch, latents: Tensor) -> Tensor:
        """Return that of each denoising step given the one before it, (B, n)."""
        return path_log_prob(self._velocity(batch), latents, self.exploration)

    def real(self, executed: Tensor) -> Tensor:
        """All denoising steps: each shapes the executed actions."""
        return executed.new_ones(len(executed), self._steps)

    def entropy(self) -> Tensor:
        """Return that of a path, which the noise level alone decides."""
        entries = self._shape[0] * self._shape[1]
        return torch.tensor(path_entropy(self._steps, entries, self.exploration))

    @property
    def exploration(self) -> float:
        """The noise level."""
        return float(self.noise_level)

    def rescale(self, factor: float) -> None:
        """Multiply the noise level."""
        self.noise_level.data.mul_(factor)

    def _velocity(self, batch: Batch) -> Any:
        assert isinstance(self.policy, FlowPolicy)
        return self.policy.velocity_field(batch)


def _per_dimension(deviations: tuple[float, ...], count: int) -> Tensor:
    """Return (count,), one number repeated.

    Raises:
        ConfigError: neither one number nor `count` of them.
    """
    if len(deviations) not in (1, count):
        raise ConfigError(
            f"exploration.std has {len(deviations)} numbers; expected one, or {count} for the "
            "dimensions of the policy's action."
        )
    return torch.tensor(deviations).expand(count)


def build_actor(
    policy: PreTrainedPolicy, execute_steps: int, exploration: ExplorationConfig
) -> Actor:
    """Return the actor that fits a policy.

    Raises:
        ConfigError: it predicts chunks in a way that has no likelihood here.
    """
    if isinstance(policy, FlowPolicy):
        return FlowActor(policy, exploration)
    if isinstance(policy, L1Policy):
        return GaussianActor(policy, execute_steps, exploration)
    raise ConfigError(
        f"a policy of type '{policy.name}' has no likelihood to learn by; expected an l1 policy "
        "(vla_adapter) or a flow-matching one (vla_flow, vlanext)."
    )


def model_inputs(policy: PreTrainedPolicy, batch: Batch) -> dict[str, Tensor]:
    """Return what an actor needs of a pre-processed batch, besides the task's words.

    Frozen encoders are run here once; later passes begin with their features.
    """
    config: Any = policy.config
    state = {"observation.state": batch["observation.state"]}
    views = [batch[key] for key in config.views]
    if getattr(policy, "features_fingerprint", None) is None:
        return {**state, **dict(zip(config.views, views, strict=True))}
    encode: Any = policy.encode_images
    return {**state, "observation.features": encode(torch.stack(views, dim=1))}
