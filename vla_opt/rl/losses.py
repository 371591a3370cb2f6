"""GRPO and GMPO as functions of log-probabilities: nothing here knows robots, text or models.

A sequence is what got one reward (an episode, a completion), a token is what has a probability
ratio of its own (a chunk of actions, an action, a word). All tensors are (S, T), padded, with a
mask that is True for real tokens; advantages are (S,). Losses are to be minimised.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vla_opt.rl.gmpo import LARGEST_LOG_RATIO, geometric_mean_objective

Aggregate = Literal["sequence", "token", "fixed"]


@dataclass(frozen=True, kw_only=True)
class RatioReading:
    """How far the policy is from the one that acted.

    Attributes:
        clip_fraction: share of the tokens whose gradient the clip removed.
        ratio_max: largest probability ratio.
        ratio_min: smallest one.
        approx_kl: k3 estimate of KL(old || new) per token, (r - 1) - log r.
    """

    clip_fraction: float
    ratio_max: float
    ratio_min: float
    approx_kl: float


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    aggregate: Aggregate = "token",
    fixed_length: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the clipped surrogate of GRPO, a scalar.

        L = - mean of min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),  r = exp(new - old)

    Sources: PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300, eq. 3; the asymmetric clip and
    the mean over tokens: DAPO, arXiv 2503.14476, eq. 8; the fixed length: Dr. GRPO, arXiv
    2503.20783.

    Args:
        log_prob: (S, T) of the policy that is trained.
        old_log_prob: (S, T) of the policy the ratio is taken to; constant.
        advantages: (S,).
        mask: (S, T) bool.
        clip_low: how far below 1 a ratio still gets a gradient.
        clip_high: how far above.
        dual_clip: with negative advantages the loss ends at this ratio (Ye et al., arXiv
            1912.09729); above 1. None: it grows with the ratio without end.
        aggregate: "token": mean over all tokens; "sequence": mean over each sequence's tokens, then
            over sequences, as in GRPO: long failures then weigh less per token; "fixed": sum over
            tokens divided by S fixed_length.
        fixed_length: tokens, for "fixed".
        weights: (S, T) importance of samples from an older policy, see `stale_weights`.

    Raises:
        ValueError: shapes do not fit, or an option is out of range.
    """
    _check(log_prob, old_log_prob, advantages, mask)
    _check_clip(clip_low, clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip={dual_clip}: expected more than 1, or None.")
    ratio = (log_prob - old_log_prob).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    gain = advantages[:, None]
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - clip_low, 1 + clip_high) * gain)
    if dual_clip is not None:
        surrogate = torch.where(gain < 0, torch.maximum(surrogate, dual_clip * gain), surrogate)
    if weights is not None:
        surrogate = surrogate * weights
    return -aggregate_tokens(surrogate, mask, aggregate, fixed_length)


def gmpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the geometric-mean surrogate of GMPO, a scalar.

        L = - mean over sequences of `geometric_mean_objective`

    Source: GMPO, arXiv 2507.20673, with its clip by token in log space, (-0.4, 0.4).

    Args:
        log_prob: (S, T) of the policy that is trained.
        old_log_prob: (S, T) of the policy the ratio is taken to; constant.
        advantages: (S,).
        mask: (S, T) bool; a sequence without tokens counts as zero.
        clip_low: in log space, positive.
        clip_high: in log space, positive.
        weights: (S,) importance of sequences from an older policy.

    Raises:
        ValueError: shapes do not fit, or an option is out of range.
    """
    _check(log_prob, old_log_prob, advantages, mask)
    _check_clip(clip_low, clip_high)
    result = geometric_mean_objective(
        log_prob, old_log_prob, advantages, mask, clip_low=clip_low, clip_high=clip_high
    )
    surrogate = result.objective * mask.any(1)
    return -(surrogate if weights is None else surrogate * weights).mean()


def kl_k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Return the estimate of KL(policy || reference) per token: exp(d) - d - 1, d = ref - new.

    Unbiased for samples of the policy itself, never negative, with little variance. Source:
    Schulman, "Approximating KL divergence", 2020, k3; GRPO, arXiv 2402.03300, eq. 4.

    >>> kl_k3(torch.tensor([0.0]), torch.tensor([0.0])).item()
    0.0
    """
    difference = (reference - log_prob).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return difference.expm1() - difference


def stale_weights(old_log_prob: Tensor, behaviour: Tensor, *, largest: float = 2.0) -> Tensor:
    """Return truncated importance weights of samples drawn by an older policy.

    min(old / behaviour, largest): the clip of the loss then bounds the step from the present policy
    ("old"), and the weight corrects for who acted. Sources: Hilton et al., "Batch size-invariance
    for policy optimization", arXiv 2110.00641; the truncation: Espeholt et al., IMPALA,
    arXiv 1802.01561.
    """
    return (old_log_prob - behaviour).exp().clamp(max=largest).detach()


def aggregate_tokens(
    values: Tensor, mask: Tensor, aggregate: Aggregate, fixed_length: int | None = None
) -> Tensor:
    """Return one number of values (S, T); see `grpo_loss`.

    Raises:
        ValueError: "fixed" without a length, or another name.
    """
    values = values * mask
    if aggregate == "token":
        return values.sum() / mask.sum().clamp(min=1)
    if aggregate == "sequence":
        return (values.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if aggregate == "fixed" and fixed_length:
        return values.sum() / (len(values) * fixed_length)
    raise ValueError(
        f"aggregate={aggregate!r}, fixed_length={fixed_length}: expected 'token', 'sequence', or "
        "'fixed' with a positive length."
    )


@torch.no_grad()
def ratio_reading(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    log_low: float,
    log_high: float,
) -> RatioReading:
    """Measure ratios; a token is clipped where its advantage pushes it further out.

    Args:
        log_prob: (S, T).
        old_log_prob: (S, T).
        advantages: (S,).
        mask: (S, T) bool.
        log_low: logarithm of the smallest ratio that is not clipped.
        log_high: logarithm of the largest one.
    """
    d = log_prob - old_log_prob
    gain = advantages[:, None].expand_as(d)
    clipped = ((gain > 0) & (d > log_high)) | ((gain < 0) & (d < log_low))
    real = d[mask].clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    if not len(real):
        return RatioReading(clip_fraction=0.0, ratio_max=1.0, ratio_min=1.0, approx_kl=0.0)
    return RatioReading(
        clip_fraction=clipped[mask].float().mean().item(),
        ratio_max=real.max().exp().item(),
        ratio_min=real.min().exp().item(),
        approx_kl=(real.expm1() - real).mean().item(),
    )


def _check(log_prob: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (log_prob, old, mask)]
    if log_prob.ndim != 2 or len(set(shapes)) > 1 or advantages.shape != log_prob.shape[:1]:
        raise ValueError(
            f"log_prob, old_log_prob and mask are {shapes}, advantages {tuple(advantages.shape)}: "
            "expected (S, T) three times and (S,)."
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}: expected bool, True for real tokens.")


def _check_clip(low: float, high: float) -> None:
    if not (low > 0 and high > 0):
        raise ValueError(f"clip_low={low}, clip_high={high}: expected positive numbers.")
