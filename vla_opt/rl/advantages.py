"""How much better an episode was than its group: pure functions of rewards."""

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["mean", "leave_one_out"]
Scale = Literal["std", "none"]

_EPSILON = 1e-6  # keeps a group without spread at zero instead of 0 / 0


def group_advantages(
    rewards: Tensor,
    groups: Tensor,
    *,
    baseline: Baseline = "mean",
    scale: Scale = "std",
) -> Tensor:
    """Return advantages (N,) relative to the other members of each one's group.

    With "mean" and "std" these are GRPO's, (r - mean) / std, DeepSeekMath, arXiv 2402.03300,
    section 4.1.2; the standard deviation is the sample's (n - 1). Scale "none" is Dr. GRPO's,
    arXiv 2503.20783: dividing by the spread favours groups that nearly always or never succeed.
    "leave_one_out" subtracts the mean of the others (RLOO, arXiv 2402.14740): unbiased.

    Args:
        rewards: (N,), any finite numbers; here 1 for success and 0 for failure.
        groups: (N,) integers; equal ones belong together.
        baseline: what is subtracted.
        scale: what the difference is divided by.

    Raises:
        ValueError: shapes differ, or a group has one member: nothing to compare it with.

    >>> group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([7, 7, 8, 8]))
    tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    index, sizes = _members(rewards, groups)
    mean = _sum(rewards, index, sizes) / sizes
    centred = rewards - mean[index]
    if baseline == "leave_one_out":
        centred = centred * (sizes / (sizes - 1))[index]
    if scale == "none":
        return centred
    variance = _sum((rewards - mean[index]).square(), index, sizes) / (sizes - 1)
    return centred / (variance.sqrt() + _EPSILON)[index]


def has_signal(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return (N,) bool: whether the rewards of each one's group differ at all.

    Where they do not, every advantage is zero, and so is the gradient; dynamic sampling drops such
    groups and draws others (DAPO, arXiv 2503.14476, section 3.2).

    >>> has_signal(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([7, 7, 8, 8])).tolist()
    [True, True, False, False]
    """
    index, sizes = _members(rewards, groups)
    highest = rewards.new_full(sizes.shape, -torch.inf).scatter_reduce(0, index, rewards, "amax")
    lowest = rewards.new_full(sizes.shape, torch.inf).scatter_reduce(0, index, rewards, "amin")
    return (highest > lowest)[index]


def _members(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Position of each one's group, (N,), and the groups' sizes."""
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)}: expected (N,) both."
        )
    names, index, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    alone = names[sizes < 2]
    if len(alone):
        raise ValueError(
            f"groups {alone.tolist()[:5]} have one member; an advantage needs at least two."
        )
    return index, sizes.to(rewards.dtype)


def _sum(values: Tensor, index: Tensor, sizes: Tensor) -> Tensor:
    return torch.zeros_like(sizes).index_add(0, index, values)
