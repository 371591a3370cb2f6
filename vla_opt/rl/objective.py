"""From episodes to one number per log-probability: which loss, over which tokens."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vla_opt._checks import require_at_least
from vla_opt.rl.advantages import Baseline, Scale
from vla_opt.rl.losses import (
    Aggregate,
    RatioReading,
    aggregate_tokens,
    gmpo_loss,
    grpo_loss,
    kl_k3,
    ratio_reading,
    stale_weights,
)

_CLIPS = {"grpo": (0.2, 0.28), "gmpo": (0.4, 0.4)}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned from episodes, and in how many steps.

    Attributes:
        name: "grpo", a clipped ratio per token; or "gmpo", the geometric mean of an episode's.
        level: What has a ratio of its own: "chunk", one decision of the policy; or "part", each
            executed action of an l1 policy, each denoising step of a flow-matching one.
        clip_low: How far a ratio may fall: grpo 1 - clip_low, gmpo exp(-clip_low). Not given:
            0.2 and 0.4.
        clip_high: How far it may rise: grpo 1 + clip_high, gmpo exp(clip_high). Not given: 0.28
            and 0.4.
        dual_clip: Of grpo: the loss of bad episodes ends at this ratio. Not given: no end.
        aggregate: Of grpo: mean over all tokens ("token"), over each episode's tokens first
            ("sequence"), or "fixed", a sum over `fixed_length` tokens per episode.
        fixed_length: Tokens per episode for "fixed".
        baseline: Subtracted from rewards: the group's "mean", or "leave_one_out".
        scale: Divide advantages by the group's "std", or by "none".
        failure_weight: Of episodes that did worse than their group; 0 learns from the better ones
            alone, which a fixed deviation cannot run away from.
        kl_weight: Of the k3 estimate of the distance to the checkpoint it began with; 0 = none.
        max_kl: An update that moved the policy further than this from the weights that acted, in
            nats per token, is shortened until it has not; 0 = it stays. Rates and optimizers then
            matter less.
        entropy_weight: Of the entropy, where the standard deviation is learned; 0 = none.
        stale_weight_max: Largest importance weight of episodes of older weights.
        epochs: Times each episode is learned from.
        minibatches: Optimizer steps per epoch.
        micro_batches: Parts of a minibatch, by episode, between whose gradients the signal-to-noise
            ratio is measured; 1 measures none.
        max_rows: Decisions per forward pass. Decides memory, and the last bits.
        decisions_per_episode: Learn from so many decisions of each, drawn at random; 0 = all.

    Raises:
        ValueError: A number is out of range, or an option of the other algorithm is given.
    """

    name: Literal["grpo", "gmpo"] = "grpo"
    level: Literal["chunk", "part"] = "chunk"
    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = None
    aggregate: Aggregate = "token"
    fixed_length: int | None = None
    baseline: Baseline = "mean"
    scale: Scale = "std"
    failure_weight: float = 1.0
    kl_weight: float = 0.0
    max_kl: float = 0.0
    entropy_weight: float = 0.0
    stale_weight_max: float = 2.0
    epochs: int = 1
    minibatches: int = 1
    micro_batches: int = 4
    max_rows: int = 32
    decisions_per_episode: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("epochs", "minibatches", "micro_batches", "max_rows"):
            require_at_least(name, getattr(self, name), 1)
        for name in (
            *("failure_weight", "kl_weight", "max_kl", "entropy_weight"),
            "decisions_per_episode",
        ):
            require_at_least(name, getattr(self, name), 0)
        low, high = self.clip
        if not (low > 0 and high > 0) or (self.name == "grpo" and low >= 1):
            raise ValueError(
                f"clip_low={low}, clip_high={high}: expected positive numbers, and with grpo "
                "clip_low below 1."
            )
        if self.name == "gmpo" and (self.dual_clip or self.aggregate != "token"):
            raise ValueError("dual_clip and aggregate are options of grpo; gmpo has neither.")
        if self.aggregate == "fixed" and not self.fixed_length:
            raise ValueError("aggregate=fixed needs --objective.fixed_length=TOKENS_PER_EPISODE.")

    @property
    def clip(self) -> tuple[float, float]:
        """Lower and upper clip."""
        low, high = _CLIPS[self.name]
        return (
            low if self.clip_low is None else self.clip_low,
            high if self.clip_high is None else self.clip_high,
        )

    @property
    def log_clip(self) -> tuple[float, float]:
        """Logarithms of the smallest and the largest ratio that is not clipped."""
        low, high = self.clip
        return (math.log1p(-low), math.log1p(high)) if self.name == "grpo" else (-low, high)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Episodes as padded tensors, see `vla_opt.rl.losses`.

    Attributes:
        old: (S, T) log-probabilities the ratio is taken to.
        behaviour: (S, T) of the weights that acted.
        reference: (S, T) of the reference, None without one.
        mask: (S, T) bool.
        advantages: (S,).
        stale: (S,) bool, episodes of older weights.
    """

    old: Tensor
    behaviour: Tensor
    reference: Tensor | None
    mask: Tensor
    advantages: Tensor
    stale: Tensor


def objective_loss(config: ObjectiveConfig, log_prob: Tensor, tokens: Tokens) -> Tensor:
    """Return the loss of log-probabilities (S, T), a scalar; the entropy is not part of it."""
    low, high = config.clip
    weights = _weights(config, tokens)
    arguments = (log_prob, tokens.old, tokens.advantages, tokens.mask)
    if config.name == "gmpo":
        loss = gmpo_loss(*arguments, clip_low=low, clip_high=high, weights=weights)
    else:
        loss = grpo_loss(
            *arguments,
            clip_low=low,
            clip_high=high,
            dual_clip=config.dual_clip,
            aggregate=config.aggregate,
            fixed_length=config.fixed_length,
            weights=weights,
        )
    if config.kl_weight and tokens.reference is not None:
        kl = aggregate_tokens(kl_k3(log_prob, tokens.reference), tokens.mask, "token")
        loss = loss + config.kl_weight * kl
    return loss


def read_ratios(config: ObjectiveConfig, log_prob: Tensor, tokens: Tokens) -> RatioReading:
    """Measure the ratios of log-probabilities (S, T) with the clip of the configuration."""
    low, high = config.log_clip
    return ratio_reading(
        log_prob, tokens.old, tokens.advantages, tokens.mask, log_low=low, log_high=high
    )


def _weights(config: ObjectiveConfig, tokens: Tokens) -> Tensor | None:
    """Importance weights of stale episodes, 1 for fresh ones; None if all are fresh."""
    if not tokens.stale.any():
        return None
    largest = config.stale_weight_max
    if config.name == "gmpo":  # one ratio per sequence, its geometric mean, here as well
        count = tokens.mask.sum(1).clamp(min=1)
        means = [(t * tokens.mask).sum(1) / count for t in (tokens.old, tokens.behaviour)]
        return torch.where(tokens.stale, stale_weights(*means, largest=largest), 1.0)
    weights = stale_weights(tokens.old, tokens.behaviour, largest=largest)
    return torch.where(tokens.stale[:, None], weights, 1.0)
