"""Geometric-mean policy optimization (GMPO, arXiv 2507.20673): the objective as a pure function.

GRPO averages the importance ratios of a completion's tokens; GMPO takes their geometric mean, which
one outlier hardly moves. With log ratios d_t = log pi(t) - log pi_old(t) and the advantage A of the
completion (eq. 4 and its pseudo-code),

    objective = A * exp( mean_t c(d_t) ),    c(d) = min(d, clip_high)   if A > 0
                                                    max(d, -clip_low)   if A < 0

Clipping is in log space and per token, as its trust region is: ratios from exp(-clip_low) to
exp(clip_high). It stops a token that has moved far enough in the direction its advantage rewards,
and never one that has moved the other way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# exp of more is no figure of interest any more, and overflows into NaN gradients.
LARGEST_LOG_RATIO = 20.0


@dataclass(frozen=True, kw_only=True)
class GeometricMean:
    """The objective of a batch, and what was clipped.

    Attributes:
        objective: per completion, (B,); to be maximized.
        clipped_low: tokens held at the lower bound, (B, T), boolean.
        clipped_high: tokens held at the upper bound, (B, T), boolean.
    """

    objective: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def geometric_mean_objective(
    log_probabilities: Tensor,
    old_log_probabilities: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> GeometricMean:
    """The clipped geometric-mean objective of every completion.

    Args:
        log_probabilities: of the chosen tokens under the policy that is trained, (B, T).
        old_log_probabilities: the same under the policy that chose them, (B, T); no gradient.
        advantages: per completion, (B,).
        mask: 1 for tokens of the completion, 0 for padding, (B, T).
        clip_low: lower bound of the log ratio, as a positive number.
        clip_high: upper bound of the log ratio.

    Returns:
        Per completion; one without tokens has its advantage as objective and no gradient.

    Raises:
        ValueError: shapes that do not fit, or a negative bound.

    >>> one = torch.zeros(1, 2)
    >>> ratio = torch.tensor([[0.3, 0.1]])
    >>> result = geometric_mean_objective(ratio, one, torch.ones(1), one + 1)
    >>> round(result.objective.item(), 4)   # exp((0.3 + 0.1) / 2)
    1.2214
    """
    _check(log_probabilities, old_log_probabilities, advantages, mask, clip_low, clip_high)
    keep = mask.bool()
    # Padding may hold anything, infinities too, which times zero would be no number.
    ratio = (log_probabilities - old_log_probabilities.detach()).masked_fill(~keep, 0.0)
    positive, negative = advantages[:, None] > 0, advantages[:, None] < 0
    high, low = (ratio > clip_high) & positive & keep, (ratio < -clip_low) & negative & keep
    clipped = torch.where(positive, ratio.clamp(max=clip_high), ratio)
    clipped = torch.where(negative, clipped.clamp(min=-clip_low), clipped)
    mean = clipped.sum(dim=1) / keep.sum(dim=1).clamp(min=1)
    geometric = mean.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    return GeometricMean(objective=advantages * geometric, clipped_low=low, clipped_high=high)


def _check(
    log_probabilities: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> None:
    shape = log_probabilities.shape
    if len(shape) != 2 or not (old.shape == mask.shape == shape and advantages.shape == shape[:1]):
        raise ValueError(
            f"log_probabilities {tuple(shape)}, old_log_probabilities {tuple(old.shape)}, mask "
            f"{tuple(mask.shape)}, advantages {tuple(advantages.shape)}: expected (B, T) three "
            "times and (B,)"
        )
    if not (clip_low >= 0.0 and clip_high >= 0.0):
        raise ValueError(f"clip_low={clip_low}, clip_high={clip_high}: expected numbers >= 0")
