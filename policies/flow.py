"""Flow matching on chunks of actions: times, loss and sampling, as pure functions.

A noisy chunk is a_s = (1 - s) a + s e with noise e ~ N(0, I) and s in [0, 1]; the network predicts
the velocity e - a, and sampling integrates it from s = 1 (noise) to s = 0 (actions).

Source: Lipman et al., "Flow Matching for Generative Modeling", arXiv 2210.02747, section 4.1, with
time running from data to noise as in pi_0 (arXiv 2410.24164) reversed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

TimeDistribution = Literal["uniform", "beta"]
Solver = Literal["euler", "heun"]
Prediction = Literal["velocity", "actions"]

# pi_0 (arXiv 2410.24164, appendix B) samples noisy times more often, and never exactly 0.
_BETA = (1.5, 1.0)
_SMALLEST_TIME = 0.001

# A velocity that follows from predicted actions is divided by s, and at most by this little: an
# error there would be thrown far, and no sampler with fewer than 20 steps asks for less.
_SMALLEST_DIVISOR = 0.05


def sample_time(count: int, distribution: TimeDistribution, draws: int = 1) -> Tensor:
    """Noise levels s, from torch's global generator, on the CPU.

    Args:
        count: how many samples.
        distribution: "uniform" on [0, 1), or "beta": 0.001 + 0.999 Beta(1.5, 1).
        draws: levels of one sample. They are spread: each falls into its own of as many equally
            probable parts of the distribution, which makes their mean loss less noisy.

    Returns:
        (count * draws,), those of a sample beside one another.

    Raises:
        ValueError: another distribution.
    """
    uniform = ((torch.arange(draws) + torch.rand(count, draws)) / draws).flatten()
    if distribution == "uniform":
        return uniform
    if distribution == "beta":
        # The distribution function of Beta(a, 1) is x^a; its inverse of a uniform number has it.
        assert _BETA[1] == 1.0
        return _SMALLEST_TIME + (1 - _SMALLEST_TIME) * uniform ** (1 / _BETA[0])
    raise ValueError(f"time distribution is '{distribution}', expected 'uniform' or 'beta'")


def interpolate(actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The noisy chunk a_s, (B, K, A), at times (B,)."""
    s = time[:, None, None]
    return (1 - s) * actions + s * noise


def velocity_of(actions: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """The velocity (B, K, A) that points from a noisy chunk at times (B,) to clean actions."""
    return (noisy - actions) / time.clamp(min=_SMALLEST_DIVISOR)[:, None, None]


def dct_matrix(size: int, device: torch.device | None = None) -> Tensor:
    """The orthonormal DCT-II as a matrix (size, size); row k has frequency k.

    >>> m = dct_matrix(4)
    >>> torch.allclose(m @ m.T, torch.eye(4), atol=1e-6)
    True
    """
    steps = torch.arange(size, dtype=torch.float64, device=device)
    rows = torch.cos(math.pi / size * (steps + 0.5) * steps[:, None]) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.float()


def band_weights(size: int, split: float, low: float, high: float) -> Tensor:
    """Weights (size,) of the frequencies: ``low`` for the first share ``split``, then ``high``.

    At least one frequency is low, unless split is 0.
    """
    count = 0 if split == 0 else max(1, round(split * size))
    return torch.tensor([low] * count + [high] * (size - count))


def frequency_error(error: Tensor, factor: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    """Squared error of the predicted clean actions, per frequency over the chunk's time.

    The clean actions that a velocity v implies are a_s - s v, so their error is -s times that of
    the velocity. With all weights 1 this is, by Parseval's theorem, s^2 times the squared velocity
    error and says nothing about frequencies; the weights make the difference.

    Args:
        error: of what is predicted, (B, K, A). factor: (B,), what makes it one of the clean
            actions: s for a velocity, 1 for actions. real: (B, K), 0 beyond the episode's end.
        weights: (K,), of the frequencies.

    Returns:
        (B,), the weighted mean over real steps and action dimensions.
    """
    error = error * (factor[:, None] * real)[..., None]
    coefficients = dct_matrix(error.shape[1], error.device).to(error.dtype) @ error
    squares = (coefficients.square().mean(-1) * weights.to(error)).sum(1)
    return squares / real.sum(1).clamp(min=1)


def seeded_noise(shape: tuple[int, ...], seeds: Sequence[int]) -> Tensor:
    """Noise (B, *shape) on the CPU; row i depends on ``seeds[i]`` alone."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(rows)


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    solver: Solver,
    *,
    correct_last: bool = True,
) -> Tensor:
    """Follow the velocity from noise (s = 1) to actions (s = 0) in equal steps.

    Args:
        velocity: called with a chunk (B, K, A) and times (B,); "heun" calls it twice per step.
        noise: (B, K, A). steps: at least 1.
        solver: "euler" (first order) or "heun" (second order).
        correct_last: whether "heun" asks for the velocity at s = 0, which one that follows from
            predicted actions does not have (Karras et al., arXiv 2206.00364, algorithm 1).

    Raises:
        ValueError: fewer than one step, or another solver.
    """
    if steps < 1 or solver not in ("euler", "heun"):
        raise ValueError(f"{steps} steps of '{solver}': expected >= 1 of 'euler' or 'heun'")
    times = torch.linspace(1.0, 0.0, steps + 1).tolist()
    x = noise
    for now, then in itertools.pairwise(times):
        slope = velocity(x, x.new_full((len(x),), now))
        ahead = x + (then - now) * slope
        if solver == "heun" and (then > 0 or correct_last):
            slope = (slope + velocity(ahead, x.new_full((len(x),), then))) / 2
            ahead = x + (then - now) * slope
        x = ahead
    return x
