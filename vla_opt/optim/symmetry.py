"""Updates that respect the symmetries of embeddings and output layers (arXiv 2605.18106).

The rows of a table of tokens can be permuted, the features it maps to can be rotated: an update
should commute with both. Normalised rows and polar factors do; AdamW's entries do not rotate.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule, parameter_names
from vla_opt.optim._names import unknown_name

Form = Literal["row_norm", "left_polar", "right_polar", "polar_row_norm", "row_norm_polar"]


def row_norm(M: Tensor, eps: float = 1e-8) -> Tensor:
    """Each row of M (..., m, n) over its norm; zero rows stay zero."""
    norm: Tensor = torch.linalg.vector_norm(M, dim=-1, keepdim=True)
    return M / (norm + eps)


def centred(M: Tensor) -> Tensor:
    """M (..., m, n) without the mean row: what a softmax over the m rows does not see."""
    return M - M.mean(dim=-2, keepdim=True)


def polar(M: Tensor, power: float = 0.0, eps: float = 1e-8) -> Tensor:
    """The polar factor of M (..., m, n) times nu^power, with nu the nuclear norm of M.

    The paper's left form (M M^T)^(-1/2) M and right form M (M^T M)^(-1/2) are this one matrix: the
    smaller of the two Gram matrices is used, in float64, because it squares the singular values.

    Args:
        M: matrices.
        power: 0 as Muon, whose step does not depend on the size of M; 1 as PolarGrad.
        eps: directions below this share of the largest count as absent; 1e-7 at least, which is
            what float64 can tell.
    """
    if M.shape[-2] < M.shape[-1]:
        return polar(M.mT, power, eps).mT
    wide = M.to(torch.float64)
    lam, Q = torch.linalg.eigh(wide.mT @ wide)
    sigma = lam.clamp_min(0.0).sqrt()
    inverse = torch.where(sigma > max(eps, 1e-7) * sigma[..., -1:], 1.0 / sigma, 0.0)
    factor: Tensor = wide @ ((Q * inverse.unsqueeze(-2)) @ Q.mT)
    nuclear: Tensor = sigma.sum(dim=-1)[..., None, None]
    return (factor * nuclear**power).to(M.dtype)


class SymmetryRule:
    """One symmetry-compatible step for a group of tables or output layers."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        return {
            "form": "row_norm",
            "centred": False,
            "momentum": 0.95,
            "nuclear_power": 0.0,
            "weight_decay": 0.01,
            "update_scale": 0.2,
            "eps": 1e-8,
        }

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        if group["form"] not in get_args(Form):
            raise unknown_name("form", group["form"], get_args(Form))
        if not 0.0 <= group["momentum"] < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']!r}")
        for key in ("eps", "update_scale", "nuclear_power"):
            if not 0.0 <= group[key] < math.inf:
                raise ValueError(f"{key} must be a finite number >= 0, got {group[key]!r}")
        for name, parameter in zip(parameter_names(group), group["params"], strict=True):
            if parameter.ndim not in (2, 3):
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)}: symmetry-compatible updates are "
                    "for matrices (rows, features) and stacks of them"
                )

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, map by form, decoupled weight decay, step."""
        for slot in slots:
            momentum = slot.buffer("momentum")
            momentum.lerp_(slot.grad.to(momentum.dtype), 1.0 - group["momentum"])
            direction = _direction(group, momentum)
            lr = float(group["lr"])
            slot.weight.mul_(1.0 - lr * float(group["weight_decay"]))
            slot.weight.add_(direction, alpha=-lr * group["update_scale"])
            slot.step().add_(1.0)


def _direction(group: Group, M: Tensor) -> Tensor:
    """The mapped momentum, with root mean square one if all rows or directions take part."""
    form, eps, power = group["form"], group["eps"], group["nuclear_power"]
    m, n = M.shape[-2:]
    M = centred(M) if group["centred"] else M
    size = math.sqrt(max(m, n))
    if form in ("row_norm", "polar_row_norm"):
        M = polar(M, power, eps) if form == "polar_row_norm" else M
        M, size = row_norm(M, eps), math.sqrt(n)
    elif form == "row_norm_polar":
        M = polar(row_norm(M, eps), power, eps)
    else:
        M = polar(M, power, eps)
    return size * (centred(M) if group["centred"] else M)


class SymmetryCompatible(RuleOptimizer):
    """Row-normalised or polar updates for embeddings, output layers and routers.

    As in arXiv 2605.18106, the momentum M <- mu M + (1 - mu) G of a matrix (rows, features) is
    mapped by `form`:

        row_norm         each row over its norm: embeddings, output layers
        right_polar      M (M^T M)^(-1/2)
        left_polar       (M M^T)^(-1/2) M: the same matrix, under the paper's other name
        polar_row_norm   polar, then rows
        row_norm_polar   rows, then polar

    and `centred` takes the mean row out before and after (routers, heads under a softmax). All
    commute with permutations of rows and with rotations of features. The step is
    lr * update_scale * sqrt(n) times normalised rows, or sqrt(max(m, n)) times a polar factor, so
    that 0.2 has the root mean square of AdamW's as elsewhere in this library; the published code
    takes lr alone (0.5 for embeddings, 5e-3 for the output layer, at 30 000 steps).

    Under weight tying and for action heads that are regression, the symmetries are other ones.

    Args:
        params: matrices or stacks of them.
        lr: learning rate.
        form: see above.
        centred: see above.
        momentum: decay of the averaged gradient.
        nuclear_power: of the nuclear norm that multiplies a polar factor: 0 Muon, 1 PolarGrad.
        weight_decay: decoupled.
        update_scale: see above.
        eps: added to the norm of a row; relative size of directions that count as absent.

    Raises:
        ValueError: an option is out of range, or a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        form: Form = "row_norm",
        centred: bool = False,
        momentum: float = 0.95,
        nuclear_power: float = 0.0,
        weight_decay: float = 0.01,
        update_scale: float = 0.2,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "form": form,
            "centred": centred,
            "momentum": momentum,
            "nuclear_power": nuclear_power,
            "weight_decay": weight_decay,
            "update_scale": update_scale,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def _rule(self, group: Group) -> UpdateRule:
        return SymmetryRule()
