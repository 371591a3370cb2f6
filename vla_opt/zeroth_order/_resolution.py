"""Telling a user that epsilon is too small for weights of low precision."""

import warnings
from collections.abc import Iterable

import torch

from vla_opt.zeroth_order._sites import Site

_TOLERATED = 0.1  # share of a parameter's entries


def unresolved_share(site: Site, epsilon: float) -> float:
    """Return the share of a parameter's entries that a move of epsilon leaves where they are.

    An entry moves if the move exceeds half the spacing of the numbers around it.
    """
    spacing = torch.finfo(site.weight.dtype).eps
    moved = site.weight.abs() * (spacing / 2) <= epsilon
    return 1.0 - float(moved.sum()) / max(1, moved.numel())


def warn_if_unresolved(sites: Iterable[Site], epsilon: float) -> None:
    """Warn if low precision makes a part of the weights deaf to perturbations."""
    low = [site for site in sites if site.weight.itemsize < 4]
    deaf = [site.index for site in low if unresolved_share(site, epsilon) > _TOLERATED]
    if deaf:
        warnings.warn(
            f"epsilon={epsilon:g} is below the resolution of {len(deaf)} of {len(low)} parameters "
            f"of low precision (first: parameter {deaf[0]}): more than {_TOLERATED:.0%} of their "
            "entries would not move. Keep these (norms, mostly) in float32, or raise epsilon.",
            stacklevel=4,
        )
