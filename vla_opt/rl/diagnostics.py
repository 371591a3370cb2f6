"""What the gradient and the attention heads look like in reinforcement learning."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Projections whose rows are one attention head after the other.
_QUERIES = re.compile(r"(^|\.)q_proj\.weight$")


@dataclass(frozen=True, kw_only=True)
class GradientNoise:
    """The gradient of a minibatch, and how much its parts agree.

    Attributes:
        norm: of the whole gradient, before clipping.
        snr: ||E g||^2 / E||g - E g||^2 of the minibatch's gradient g (arXiv 2605.19282), estimated
            without bias in the numerator: below zero means no signal was found. None with less
            than two parts.
    """

    norm: float
    snr: float | None


def gradient_noise(total: float, squared_norms: Sequence[float]) -> GradientNoise:
    """Estimate the signal-to-noise ratio of a sum of M independent parts.

    With parts g_m: s^2 = (sum ||g_m||^2 - ||sum||^2 / M) / (M - 1) estimates the variance of a
    part, M s^2 that of the sum, and ||sum||^2 - M s^2 the squared norm of its expectation.

    Args:
        total: squared norm of the sum.
        squared_norms: of the parts.
    """
    count = len(squared_norms)
    if count < 2:
        return GradientNoise(norm=math.sqrt(total), snr=None)
    variance = (math.fsum(squared_norms) - total / count) / (count - 1) * count
    snr = (total - variance) / variance if variance > 0 else None
    return GradientNoise(norm=math.sqrt(total), snr=snr)


def squared_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """Return the squared norm of several tensors together, in float64."""
    squares = [t.detach().double().square().sum() for t in tensors if t is not None]
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)


def head_norms(weight: Tensor, head_size: int) -> Tensor:
    """Frobenius norm of each head of a query, key or value weight (heads * size, in) -> (heads,).

    >>> head_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), head_size=1)
    tensor([5., 0.])
    """
    heads = torch.unflatten(weight.detach().float(), 0, (-1, head_size)).flatten(1)
    norms: Tensor = torch.linalg.vector_norm(heads, dim=1)
    return norms


def head_norm_variance(weight: Tensor, num_heads: int) -> float:
    """Return the variance over heads of ||W^h||_F (arXiv 2605.19282, section on RLVR).

    Args:
        weight: (heads x head size, channels), heads one after the other.
        num_heads: a divisor of its rows.
    """
    return float(head_norms(weight, len(weight) // num_heads).var(correction=0))


class HeadMeter:
    """Compares query heads before and after a step.

    Args:
        model: its `config.num_heads`, if any, says how many heads a projection has.
        num_heads: attention heads; None: nothing is measured.
    """

    def __init__(self, model: nn.Module, num_heads: int | None) -> None:
        self._num_heads = num_heads or 0
        self._weights = {
            name: p
            for name, p in model.named_parameters()
            if num_heads and _QUERIES.search(name) and p.shape[0] % num_heads == 0
        }
        self._before: dict[str, Tensor] = {}

    def before_step(self) -> None:
        """Remember the weights."""
        self._before = {name: p.detach().clone() for name, p in self._weights.items()}

    def after_step(self) -> Mapping[str, float]:
        """Return means over layers: variance of the heads' norms, and of their updates' norms."""
        if not self._weights:
            return {}
        norms = [head_norm_variance(p, self._num_heads) for p in self._weights.values()]
        moves = [
            head_norm_variance(p.detach() - self._before[name], self._num_heads)
            for name, p in self._weights.items()
        ]
        return {
            "head_norm_variance": math.fsum(norms) / len(norms),
            "head_update_variance": math.fsum(moves) / len(moves),
        }
