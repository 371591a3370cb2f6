"""One update: episodes in, weights moved, figures out."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from vla_opt.rl._gradient import accumulate, add
from vla_opt.rl._trust_region import shorten
from vla_opt.rl.actors import Actor
from vla_opt.rl.advantages import group_advantages
from vla_opt.rl.batch import Rows, build_rows, log_probs, select, to_tokens
from vla_opt.rl.diagnostics import GradientNoise, HeadMeter, gradient_noise, squared_norm
from vla_opt.rl.losses import RatioReading, kl_k3
from vla_opt.rl.objective import ObjectiveConfig, Tokens, objective_loss, read_ratios
from vla_opt.rl.trajectories import Trajectory
from vla_opt.seeding import derive_seed


class NonFiniteGradientError(RuntimeError):
    """The loss or its gradient became NaN or infinite; no weight was changed by it."""


@dataclass(frozen=True, kw_only=True)
class UpdateReading:
    """What an update was like.

    Attributes:
        loss: mean over its steps.
        gain: what the objective rose by on the episodes learned from; below 0, the steps were too
            long.
        kept: share of the steps that was kept, less than 1 where `max_kl` shortened them.
        steps: optimizer steps.
        gradient: mean norm before clipping; and the signal-to-noise ratio of the first step, the
            only one that rewards alone decide: later the clip pulls back what went too far, and all
            parts of the gradient agree on that.
        clip_fraction: share of tokens whose gradient the clip removed, mean over its steps.
        after: ratios of the weights after the update to those before it.
        entropy: of a decision before it, in nats.
        kl_reference: k3 estimate of the distance to the reference, per token; None without one.
        rollout_mismatch: largest difference between a log-probability noted while acting and the
            same one computed for learning: rounding, unless the episode is stale.
        heads: see `vla_opt.rl.diagnostics.HeadMeter`.
    """

    loss: float
    gain: float
    kept: float
    steps: int
    gradient: GradientNoise
    clip_fraction: float
    after: RatioReading
    entropy: float
    kl_reference: float | None
    rollout_mismatch: float
    heads: dict[str, float]

    def row(self) -> dict[str, object]:
        """The figures as part of a JSON-able row."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Material:
    """Rows of all episodes and what belongs to each."""

    rows: Rows
    old: Tensor
    reference: Tensor | None
    advantages: Tensor
    stale: Tensor

    def tokens(self, rows: Rows, index: Tensor, episodes: Tensor, level: str) -> Tokens:
        """Arrange those of some episodes as sequences."""
        old, mask = to_tokens(self.old[index], rows.real, rows.episode, level)
        behaviour, _ = to_tokens(rows.behaviour, rows.real, rows.episode, level)
        reference = None
        if self.reference is not None:
            reference, _ = to_tokens(self.reference[index], rows.real, rows.episode, level)
        return Tokens(
            old=old,
            behaviour=behaviour,
            reference=reference,
            mask=mask,
            advantages=self.advantages[episodes],
            stale=self.stale[episodes],
        )

    def all_tokens(self, level: str) -> Tokens:
        """Arrange those of all episodes."""
        rows = self.rows
        every = torch.arange(len(rows.tasks))
        return self.tokens(rows, every, torch.arange(rows.episodes), level)

    def mismatch(self) -> float:
        """Largest difference between what was noted while acting and computed for learning."""
        fresh = ~self.stale[self.rows.episode]
        found = (self.old - self.rows.behaviour)[self.rows.real & fresh[:, None]]
        return float(found.abs().max()) if len(found) else 0.0


class Learner:
    """Moves the weights of an actor.

    The loss is differentiated in two parts. It is a function of log-probabilities, so its
    derivative with respect to those is computed for whole episodes first; then each piece of
    `max_rows` decisions adds its share to the gradient by the chain rule. Memory does not grow with
    the length of an episode, although GMPO's loss couples all its tokens.

    Args:
        actor: what learns.
        optimizer: of its trainable parameters.
        config: what is learned.
        grad_clip: largest norm of the gradient; 0 = no clipping.
        seed: of the order of episodes.
        reference: the policy to stay near; needed with `kl_weight`.
    """

    def __init__(
        self,
        actor: Actor,
        optimizer: torch.optim.Optimizer,
        config: ObjectiveConfig,
        *,
        grad_clip: float = 1.0,
        seed: int = 0,
        reference: Actor | None = None,
    ) -> None:
        self._actor, self._optimizer, self._config = actor, optimizer, config
        self._grad_clip, self._seed, self._reference = grad_clip, seed, reference
        self._parameters = [p for p in actor.parameters() if p.requires_grad]
        heads = getattr(getattr(actor.policy, "config", None), "num_heads", None)
        self._heads = HeadMeter(actor, heads)

    def update(self, trajectories: Sequence[Trajectory], version: int) -> UpdateReading:
        """Learn from episodes.

        Args:
            trajectories: at least one; groups of at least two.
            version: of the present weights; those of another version count as stale.

        Raises:
            NonFiniteGradientError: the loss or its gradient is NaN or infinite.
        """
        material = self._prepare(trajectories, version)
        entropy = float(self._actor.entropy().detach())
        limited = self._config.max_kl > 0
        before = [p.detach().clone() for p in self._parameters] if limited else []
        self._heads.before_step()
        losses: list[float] = []
        noises: list[GradientNoise] = []
        clipped: list[float] = []
        for epoch in range(self._config.epochs):
            for chosen in self._minibatches(material.rows.episodes, version, epoch):
                loss, noise, ratios = self._step(material, chosen, first=not losses)
                losses.append(loss)
                noises.append(noise)
                clipped.append(ratios.clip_fraction)
        tokens = material.all_tokens(self._config.level)
        kept = self._shorten(material.rows, tokens, before)
        now = self._tokens_now(material.rows)
        return UpdateReading(
            loss=_mean(losses),
            gain=self._loss(tokens.old, tokens) - self._loss(now, tokens),
            kept=kept,
            steps=len(losses),
            gradient=replace(noises[0], norm=_mean([noise.norm for noise in noises])),
            clip_fraction=_mean(clipped),
            after=read_ratios(self._config, now, tokens),
            entropy=entropy,
            kl_reference=_distance(now, tokens),
            rollout_mismatch=material.mismatch(),
            heads=dict(self._heads.after_step()),
        )

    def _shorten(self, rows: Rows, tokens: Tokens, before: list[Tensor]) -> float:
        """Hold the policy within `max_kl` of the one that acted; return what is left."""
        config = self._config
        if not before:
            return 1.0
        return shorten(
            self._parameters,
            before,
            lambda: read_ratios(config, self._tokens_now(rows), tokens).approx_kl,
            config.max_kl,
        )

    def _tokens_now(self, rows: Rows) -> Tensor:
        """Log-probabilities (S, T) of the present weights."""
        values = log_probs(self._actor, rows, self._config.max_rows)
        return to_tokens(values, rows.real, rows.episode, self._config.level)[0]

    def _loss(self, log_prob: Tensor, tokens: Tokens) -> float:
        return float(objective_loss(self._config, log_prob, tokens))

    def _prepare(self, trajectories: Sequence[Trajectory], version: int) -> _Material:
        config = self._config
        rows = build_rows(
            trajectories, self._actor, decisions=config.decisions_per_episode, seed=self._seed
        )
        rewards = torch.tensor([t.reward for t in trajectories])
        groups = torch.tensor([t.group for t in trajectories])
        advantages = group_advantages(rewards, groups, baseline=config.baseline, scale=config.scale)
        advantages = torch.where(advantages < 0, config.failure_weight * advantages, advantages)
        reference = None
        if self._reference is not None and config.kl_weight:
            reference = log_probs(self._reference, rows, config.max_rows)
        device = rows.episode.device
        return _Material(
            rows=rows,
            old=log_probs(self._actor, rows, config.max_rows),
            reference=reference,
            advantages=advantages.to(device),
            stale=torch.tensor([t.version != version for t in trajectories], device=device),
        )

    def _minibatches(self, episodes: int, version: int, epoch: int) -> list[Tensor]:
        source = torch.Generator().manual_seed(derive_seed(self._seed, "order", version, epoch))
        order = torch.randperm(episodes, generator=source)
        return [part for part in order.tensor_split(self._config.minibatches) if len(part)]

    def _step(
        self, material: _Material, chosen: Tensor, *, first: bool
    ) -> tuple[float, GradientNoise, RatioReading]:
        """Make one optimizer step from some of the episodes."""
        config = self._config
        rows, index = select(material.rows, chosen)
        tokens = material.tokens(rows, index, chosen, config.level)
        # before the first step the present weights are the ones the ratio is taken to
        values = material.old[index] if first else log_probs(self._actor, rows, config.max_rows)
        leaf = values.clone().requires_grad_()
        log_prob, _ = to_tokens(leaf, rows.real, rows.episode, config.level)
        loss = objective_loss(config, log_prob, tokens)
        (coefficients,) = torch.autograd.grad(loss, leaf)
        self._optimizer.zero_grad(set_to_none=True)
        noise = self._backward(rows, coefficients)
        # the clamps of the loss turn a NaN into a gradient of zero, so the loss itself is looked at
        if not (math.isfinite(noise.norm) and math.isfinite(float(loss.detach()))):
            raise NonFiniteGradientError(
                f"The loss is {float(loss.detach())}, its gradient's norm {noise.norm}; no weight "
                "was changed by it. A lower learning rate, a larger exploration.std or more "
                "objective.kl_weight may help."
            )
        if self._grad_clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), noise, read_ratios(config, log_prob.detach(), tokens)

    def _backward(self, rows: Rows, coefficients: Tensor) -> GradientNoise:
        """Leave the gradient in the parameters: the sum over parts of the minibatch."""
        config = self._config
        squares = accumulate(
            self._actor,
            self._parameters,
            rows,
            coefficients,
            parts=config.micro_batches,
            max_rows=config.max_rows,
        )
        noise = gradient_noise(self._squared_gradient(), squares)
        if config.entropy_weight:
            gain = -config.entropy_weight * self._actor.entropy()
            add(self._parameters, torch.autograd.grad(gain, self._parameters, allow_unused=True))
        return replace(noise, norm=math.sqrt(self._squared_gradient()))

    def _squared_gradient(self) -> float:
        return float(squared_norm([p.grad for p in self._parameters]))


def _distance(now: Tensor, tokens: Tokens) -> float | None:
    if tokens.reference is None:
        return None
    return float(kl_k3(now, tokens.reference)[tokens.mask].mean())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
