"""PionOET: rotations of both sides of a matrix, which keep its singular values (arXiv 2605.12492).

The other optimizer that is called Pion; "OET" for orthogonal equivalence transformation.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule, parameter_names
from vla_opt.optim._matrix import check_matrix_group, merge_matrices, split_matrices
from vla_opt.optim._names import unknown_name

Retraction = Literal["taylor2", "taylor4", "cayley"]
Sides = Literal["both", "alternate"]

# Ways to cut a parameter that exist elsewhere and not here.
_NO_CUT: Mapping[str, Any] = {"head_size": None, "split_sizes": None}


def rotation(X: Tensor, retraction: str = "taylor2") -> Tensor:
    """A matrix near the rotation exp(X), exactly orthogonal for "cayley" alone.

    Args:
        X: (..., n, n), skew-symmetric.
        retraction: "taylor2" and "taylor4" cut the exponential's series; with Y of the second,
            Y^T Y = I + X^4 / 4, so that singular values grow a little. "cayley" is
            (I - X/2)^-1 (I + X/2): it costs a linear system and keeps them.

    >>> turned = rotation(torch.tensor([[0.0, -0.1], [0.1, 0.0]]), "cayley")
    >>> bool(torch.allclose(turned @ turned.mT, torch.eye(2)))
    True
    """
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    if retraction == "cayley":
        solved: Tensor = torch.linalg.solve(eye - X / 2, eye + X / 2)
        return solved
    square = X @ X
    second = eye + X + square / 2
    return second if retraction == "taylor2" else second + square @ (X / 6 + square / 24)


class PionOETRule:
    """One step of PionOET for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        return {
            "betas": (0.9, 0.999),
            "second_moment": False,
            "update_scale": 0.2,
            "retraction": "taylor2",
            "sides": "both",
            "num_heads": None,
            "head_axis": None,
            "eps": 1e-8,
        }

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a shape does not fit; warn of matrices that are zero."""
        for key, choices in (("retraction", Retraction), ("sides", Sides)):
            if group[key] not in get_args(choices):
                raise unknown_name(key, group[key], get_args(choices))
        if len(group["betas"]) != 2 or not all(0.0 <= beta < 1.0 for beta in group["betas"]):
            raise ValueError(f"betas must be two numbers in [0, 1), got {group['betas']!r}")
        check_matrix_group({**_NO_CUT, "momentum": group["betas"][0], **group})
        zeros = [
            name
            for name, parameter in zip(parameter_names(group), group["params"], strict=True)
            if _is_zero(parameter.detach())
        ]
        if zeros:
            warnings.warn(
                f"PionOET keeps singular values, and those of {', '.join(zeros)} are all zero: "
                "they will stay zero. Give zero-initialised matrices (LoRA's B, adaLN-zero "
                "modulation, zero-initialised heads) to another algorithm.",
                stacklevel=2,
            )

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Generators, their momentum, rotation of one side or both."""
        heads, axis = group["num_heads"], group["head_axis"]
        for slot in slots:
            W = split_matrices(slot.weight, heads, axis)
            G = split_matrices(slot.grad.to(slot.weight.dtype), heads, axis)
            turned = _turned(group, slot, W, G)
            slot.weight.copy_(merge_matrices(turned, slot.weight.shape, heads, axis))
            slot.step().add_(1.0)


def _turned(group: Group, slot: Slot, W: Tensor, G: Tensor) -> Tensor:
    """The matrices W (count, m, n) after one step along the gradients G."""
    m, n = W.shape[1:]
    A_out = _direction(group, slot, "out", _skew(G @ W.mT))
    A_in = _direction(group, slot, "in", _skew(W.mT @ G))
    left = right = True
    if group["sides"] == "alternate":
        left = int(slot.step()) % 2 == 0
        right = not left
    change = torch.zeros_like(W)
    change = change + A_out @ W if left else change
    change = change + W @ A_in if right else change
    norm: Tensor = torch.linalg.vector_norm(change, dim=(1, 2), keepdim=True)
    angle = float(group["lr"]) * group["update_scale"] * math.sqrt(m * n) / (norm + group["eps"])
    if right:
        W = W @ rotation(angle * A_in, group["retraction"])
    if left:
        W = rotation(angle * A_out, group["retraction"]) @ W
    return W


def _skew(X: Tensor) -> Tensor:
    return X - X.mT


def _direction(group: Group, slot: Slot, side: str, generator: Tensor) -> Tensor:
    """Minus the averaged generator (count, k, k), without bias correction as in the paper."""
    beta1, beta2 = group["betas"]
    first = _generator_state(slot, f"generator_{side}", generator)
    first.lerp_(generator, 1.0 - beta1)
    if not group["second_moment"]:
        return -first
    second = _generator_state(slot, f"generator_{side}_sq", generator)
    second.mul_(beta2).addcmul_(generator, generator, value=1.0 - beta2)
    return -first / (second.sqrt() + float(group["eps"]))


def _generator_state(slot: Slot, key: str, like: Tensor) -> Tensor:
    """State (count * k, k), so that it can be sharded by rows, seen as (count, k, k)."""
    if key not in slot.state:
        slot.state[key] = torch.zeros(
            like.shape[0] * like.shape[1], like.shape[2], dtype=like.dtype, device=like.device
        )
    return slot.state[key].view(like.shape)


def _is_zero(parameter: Any) -> bool:
    if parameter.is_meta or parameter.numel() == 0:
        return False
    found = parameter.any()
    return not bool(found.full_tensor() if hasattr(found, "full_tensor") else found)


class PionOET(RuleOptimizer):
    """The spectrum-preserving Pion (arXiv 2605.12492); not the high-pass `Pion` (2605.19282).

    A matrix W (m, n) with gradient G is turned from both sides, so that its singular values stay:

        G_out = G W^T - W G^T,  G_in = W^T G - G^T W     (skew-symmetric)
        A = -average(G_out), -average(G_in)              (betas[0]; over the root of the average
                                                          of squares with second_moment)
        angle = lr * update_scale * sqrt(m n) / ||A_out W + W A_in||
        W <- rotation(angle A_out) W rotation(angle A_in)

    There is no weight decay: norms stay by themselves. Scale, rank and zero matrices stay too, so
    that zero-initialised matrices cannot be trained (a warning names them). State is m^2 + n^2
    numbers for each matrix, twice that with second_moment; embeddings are too tall for it.
    bfloat16 weights keep their spectrum in the master copy, and up to rounding in themselves.

    Args:
        params: matrices, stacks of them or convolutions, as for `Pion`.
        lr: learning rate; the root mean square of a step is lr * update_scale to first order.
        betas: decay of the averages of generators and of their squares.
        second_moment: divide by the latter (off in the published runs).
        update_scale: 0.2 makes steps as large as AdamW's.
        retraction: "taylor2" (published), "taylor4", or "cayley", which is exact; see `rotation`.
        sides: "both", or "alternate" (left on even steps, right on odd ones; half the products).
        num_heads: turn each attention head on its own; with head_axis, as for `Pion`.
        head_axis: 0 for query, key, value weights, 1 for the output projection.
        eps: added to the norm and to the root.

    Raises:
        ValueError: an option is out of range, or a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        second_moment: bool = False,
        update_scale: float = 0.2,
        retraction: Retraction = "taylor2",
        sides: Sides = "both",
        num_heads: int | None = None,
        head_axis: int | None = None,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "second_moment": second_moment,
            "update_scale": update_scale,
            "retraction": retraction,
            "sides": sides,
            "num_heads": num_heads,
            "head_axis": head_axis,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def _rule(self, group: Group) -> UpdateRule:
        return PionOETRule()
