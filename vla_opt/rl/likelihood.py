"""How probable an action was: Gaussian chunks, and flow matching as a chain of Gaussians.

Pure functions. Noise always comes in from outside, so that who draws it decides what repeats.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Velocities (B, K, A) of noisy chunks (B, K, A) at noise levels (B,)."""

_LOG_2PI = math.log(2 * math.pi)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(x; mean, std^2), entry by entry."""
    return -0.5 * ((x - mean) * (-log_std).exp()).square() - log_std - 0.5 * _LOG_2PI


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Return the entropy of N(., std^2) in nats, entry by entry."""
    return log_std + 0.5 * (1 + _LOG_2PI)


def correlate(noise: Tensor, correlation: float) -> Tensor:
    """Turn independent noise (B, K, A) into a stationary AR(1) along K, with unit variance.

    Shaking every action on its own hardly moves the arm: the shakes cancel. Correlated along the
    chunk, they explore at the same standard deviation.
    """
    steps = [noise[:, 0]]
    innovation = math.sqrt(1 - correlation**2)
    for k in range(1, noise.shape[1]):
        steps.append(correlation * steps[-1] + innovation * noise[:, k])
    return torch.stack(steps, 1)


def chunk_log_prob(x: Tensor, mean: Tensor, log_std: Tensor, correlation: float) -> Tensor:
    """Return the log-probability of each action given the ones before it, (B, K).

    Their sum over any first k actions is the log-density of those k: what was not executed, at the
    end of a chunk, can be left out.

    Args:
        x: actions (B, K, A), mean + std `correlate`(noise).
        mean: (B, K, A).
        log_std: broadcast to (B, K, A).
        correlation: of neighbouring actions' noise, between -1 and 1.
    """
    log_std = log_std.expand_as(mean)
    z = (x - mean) * (-log_std).exp()
    before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
    spread = 0.5 * math.log(1 - correlation**2)
    log_scale = z.new_full((z.shape[1], 1), spread)
    log_scale[0] = 0.0  # the first action has none before it
    return (gaussian_log_prob(z, correlation * before, log_scale) - log_std).sum(-1)


def sde_transition(
    x: Tensor, velocity: Tensor, now: float, then: float, level: float
) -> tuple[Tensor, float]:
    """Return mean and standard deviation of one denoising step, a Gaussian.

    The deterministic flow dx = v ds is replaced by the stochastic process with the same marginals,
    integrated from noise level s = 1 to 0 by Euler-Maruyama with step d = now - then:

        mean = x - d v - d sigma^2 / (2 s) (x + (1 - s) v),   std = sigma sqrt(d)
        sigma = level sqrt(s / (1 - s))

    x + (1 - s) v is the noise the velocity implies, so the last term is the score of the marginal.
    Source: Flow-GRPO, arXiv 2505.05470, with time running as in `policies.flow`; for
    robot policies pi_RL, arXiv 2510.25889 ("Flow-SDE"). sigma has a pole at s = 1: there the first
    step takes it at its end, s = then.

    Args:
        x: (B, K, A), the noisy chunk at `now`.
        velocity: (B, K, A) there.
        now: noise level, in (0, 1].
        then: the next one, in [0, now).
        level: of the injected noise; positive.
    """
    step = now - then
    at = now if now < 1 else max(then, 0.5)
    sigma = level * math.sqrt(at / (1 - at))
    drift = velocity + sigma**2 / (2 * now) * (x + (1 - now) * velocity)
    return x - step * drift, sigma * math.sqrt(step)


def sde_sample(velocity: Velocity, noise: Tensor, level: float) -> Tensor:
    """Denoise stochastically and return the whole path (B, n + 1, K, A), noise first.

    Args:
        velocity: see `Velocity`.
        noise: (B, n + 1, K, A) standard normal: the start, then one per step.
        level: see `sde_transition`.
    """
    path = [noise[:, 0]]
    for i, (now, then) in enumerate(_levels(noise.shape[1] - 1)):
        x = path[-1]
        mean, std = sde_transition(x, velocity(x, x.new_full((len(x),), now)), now, then, level)
        path.append(mean + std * noise[:, i + 1])
    return torch.stack(path, 1)


def path_log_prob(velocity: Velocity, path: Tensor, level: float) -> Tensor:
    """Return the log-probability of each denoising step given the one before it, (B, n).

    Their sum is the log-density of the path given its start, which does not depend on the policy.
    The density of the resulting actions alone has no closed form; the path's ratio between two
    policies is an importance weight all the same (the actions are a function of the path). It
    involves every entry of the chunk, those that are not executed too: they shape the executed.

    Args:
        velocity: see `Velocity`.
        path: (B, n + 1, K, A), of `sde_sample`.
        level: the one it was sampled with.
    """
    found = []
    for i, (now, then) in enumerate(_levels(path.shape[1] - 1)):
        x = path[:, i]
        mean, std = sde_transition(x, velocity(x, x.new_full((len(x),), now)), now, then, level)
        log_std = x.new_tensor(math.log(std))
        found.append(gaussian_log_prob(path[:, i + 1], mean, log_std).flatten(1).sum(1))
    return torch.stack(found, 1)


def path_entropy(steps: int, entries: int, level: float) -> float:
    """Return the entropy of a path given its start, in nats; the same for all policies.

    Args:
        steps: of denoising.
        entries: numbers in a chunk.
        level: see `sde_transition`.
    """
    zero = torch.zeros(1, 1, 1)
    stds = [sde_transition(zero, zero, now, then, level)[1] for now, then in _levels(steps)]
    return entries * sum(math.log(std) + 0.5 * (1 + _LOG_2PI) for std in stds)


def _levels(steps: int) -> list[tuple[float, float]]:
    """Pairs of noise levels from 1 to 0 in equal steps, as `policies.flow.integrate` has them."""
    if steps < 1:
        raise ValueError(f"{steps} denoising steps: expected at least 1.")
    times = [1 - i / steps for i in range(steps)] + [0.0]
    return list(itertools.pairwise(times))
