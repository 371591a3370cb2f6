"""The published methods, and ours, as compositions of the four choices."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import Tensor

from vla_opt.zeroth_order.estimators import (
    AveragedBaseline,
    ForwardGradient,
    OneSided,
    TwoPoint,
)
from vla_opt.zeroth_order.maps import HighPass, NewtonSchulz
from vla_opt.zeroth_order.optimizer import Params, ZerothOrder
from vla_opt.zeroth_order.rules import Adam, Momentum, Rule, Sgd
from vla_opt.zeroth_order.subspace_models import BayesianSubspace, SubspaceNewton
from vla_opt.zeroth_order.subspaces import Coordinates, LeftQR, LoraAtoms, Order

type Side = Literal["rows", "shorter"]
type RuleName = Literal["sgd", "momentum", "adam", "r-adazo"]

_PUBLISHED_VECTOR_RATIO = 1e-5
"""ZO-Muon's authors step 1e-7 along vectors where matrices get 1e-2."""


def mezo(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    directions: int = 1,
    rule: RuleName = "sgd",
    weight_decay: float = 0.0,
) -> ZerothOrder:
    """MeZO (arXiv 2305.17333): two-point estimate along Gaussian directions, plain descent.

    2 `directions` queries per step. The paper's learning rates: 1e-7 to 1e-6 for all weights of a
    large model, 1e-5 to 1e-4 with epsilon 1e-2 for LoRA.
    """
    return ZerothOrder(
        params,
        lr,
        estimator=TwoPoint(directions=directions),
        rule=inner_rule(rule),
        epsilon=epsilon,
        seed=seed,
        weight_decay=weight_decay,
    )


def subspace_mezo(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    rank: int = 64,
    every: int = 100,
    directions: int = 1,
    side: Side = "rows",
    weight_decay: float = 0.0,
) -> ZerothOrder:
    """ZO-Muon's ablation: MeZO within the subspaces, without Newton-Schulz."""
    return ZerothOrder(
        params,
        lr,
        estimator=TwoPoint(directions=directions),
        subspace=LeftQR(rank, every, side),
        epsilon=epsilon,
        seed=seed,
        weight_decay=weight_decay,
    )


def zo_muon(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    rank: int = 64,
    every: int = 100,
    directions: int = 4,
    side: Side = "rows",
    vector_lr_ratio: float = _PUBLISHED_VECTOR_RATIO,
    weight_decay: float = 0.0,
) -> ZerothOrder:
    """ZO-Muon (arXiv 2602.17155): W -= lr P NS(mean of g_i Psi_i), one-sided.

    `directions` + 1 queries per step. Its step has the length lr sqrt(rank) whatever the loss, so
    lr is like Muon's, 1e-2 in the paper. Vectors are stepped without map, with lr times
    `vector_lr_ratio`.
    """
    return ZerothOrder(
        params,
        lr,
        estimator=OneSided(directions=directions),
        subspace=LeftQR(rank, every, side),
        matrix_map=NewtonSchulz(),
        epsilon=epsilon,
        seed=seed,
        weight_decay=weight_decay,
        vector_lr_ratio=vector_lr_ratio,
    )


def zo_high_pass(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    rank: int = 16,
    every: int = 100,
    directions: int = 4,
    momentum: float = 0.9,
    promotion_steps: int | None = None,
    side: Side = "rows",
    vector_lr_ratio: float = _PUBLISHED_VECTOR_RATIO,
    weight_decay: float = 0.0,
) -> ZerothOrder:
    """Ours: ZO-Muon with the high-pass map of Pion on a momentum, in a smaller subspace.

    Newton-Schulz lifts the noise of an estimate from few queries to the level of its signal; the
    high-pass keeps its leading directions and drops the rest. Whether that pays is a matter of
    measurement: see docs/zeroth_order.md.
    """
    return ZerothOrder(
        params,
        lr,
        estimator=OneSided(directions=directions),
        subspace=LeftQR(rank, every, side),
        matrix_map=HighPass(promotion_steps=promotion_steps),
        rule=Momentum(beta=momentum),
        epsilon=epsilon,
        seed=seed,
        weight_decay=weight_decay,
        vector_lr_ratio=vector_lr_ratio,
    )


def zoar(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    directions: int = 4,
    reuse: int = 0,
    rule: RuleName = "sgd",
    weight_decay: float = 0.0,
) -> ZerothOrder:
    """ZoAR (arXiv 2506.14460): averaged baseline, optionally with the queries of earlier steps.

    `directions` queries per step. Reuse is off by default: it did not help where we measured it,
    and its authors switch it off after 200 steps when tuning language models.
    """
    return ZerothOrder(
        params,
        lr,
        estimator=AveragedBaseline(directions=directions, reuse=reuse),
        rule=inner_rule(rule),
        epsilon=epsilon,
        seed=seed,
        weight_decay=weight_decay,
    )


def forward_gradient(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    directions: int = 1,
    rule: RuleName = "sgd",
    weight_decay: float = 0.0,
) -> ZerothOrder:
    """The noise-free reference: exact derivatives along Gaussian directions, by forward mode.

    `directions` queries per step, each about twice the work of a forward call. `epsilon` is taken
    for the sake of a common signature; there is no difference to make.
    """
    return ZerothOrder(
        params,
        lr,
        estimator=ForwardGradient(directions=directions),
        rule=inner_rule(rule),
        epsilon=epsilon,
        seed=seed,
        weight_decay=weight_decay,
    )


def ar1_zo(
    params: Iterable[tuple[str, Tensor]] | Iterable[tuple[Tensor, Tensor]],
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    order: Order = "cyclic",
    rule: RuleName = "sgd",
) -> ZerothOrder:
    """AR1-ZO (arXiv 2605.19767): one rank-one atom of each LoRA pair per step, two queries.

    Give the product B A the factor alpha, not alpha / r (LoRA's `lora_alpha` = alpha r): otherwise
    the signal of an atom falls with the rank.

    Args:
        params: (A, B) pairs with A (r, d_in) and B (d_out, r); or named parameters, of which those
            with `lora_A` or `lora_B` in their names are taken, as PEFT names them.
        lr: learning rate.
        epsilon: length of a move.
        seed: of all directions.
        order: in which atoms take turns.
        rule: inner rule; its buffers are kept per atom.

    Raises:
        ValueError: no pairs, or factors that do not belong together.
    """
    pairs = lora_pairs(params)
    groups: list[dict[str, Any]] = [
        {"params": [a for a, _ in pairs], "atom_axis": 0},
        {"params": [b for _, b in pairs], "atom_axis": 1},
    ]
    return ZerothOrder(
        groups,
        lr,
        estimator=TwoPoint(),
        subspace=LoraAtoms(order),
        rule=inner_rule(rule),
        epsilon=epsilon,
        seed=seed,
    )


def coordinate_wise(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    directions: int = 64,
    rule: RuleName = "sgd",
) -> ZerothOrder:
    """Coordinate-wise estimation as in DeepZero (arXiv 2310.02025): one query per entry.

    `directions` + 1 queries measure that many derivatives, up to all of them; entries take turns.
    DeepZero's pruning and reuse of features are not part of it. For small parameters only.
    """
    return ZerothOrder(
        params,
        lr,
        estimator=OneSided(directions=directions),
        subspace=Coordinates(),
        rule=inner_rule(rule),
        epsilon=epsilon,
        seed=seed,
    )


def subspace_newton(
    params: Params,
    lr: float = 1.0,
    *,
    epsilon: float = 1e-2,
    seed: int = 0,
    directions: int = 3,
    damping: float = 0.1,
) -> ZerothOrder:
    """ZO-RSN (Berglund et al., ICASSP 2022): Newton steps in the span of random directions."""
    return ZerothOrder(
        params,
        lr,
        estimator=SubspaceNewton(directions=directions, damping=damping),
        epsilon=epsilon,
        seed=seed,
    )


def bayesian_subspace(
    params: Params,
    lr: float,
    *,
    epsilon: float = 1e-3,
    seed: int = 0,
    directions: int = 4,
    prior_variance: float = 1.0,
    noise_variance: float = 1.0,
) -> ZerothOrder:
    """BSZO (arXiv 2601.01452): differences weighed by how much they look like signal."""
    return ZerothOrder(
        params,
        lr,
        estimator=BayesianSubspace(
            directions=directions, prior_variance=prior_variance, noise_variance=noise_variance
        ),
        epsilon=epsilon,
        seed=seed,
    )


def inner_rule(name: RuleName) -> Rule:
    """Return the inner rule of that name, with its usual constants.

    Raises:
        ValueError: an unknown name.
    """
    rules: dict[str, Rule] = {
        "sgd": Sgd(),
        "momentum": Momentum(),
        "adam": Adam(),
        "r-adazo": Adam(of_momentum=True),
    }
    if name not in rules:
        raise ValueError(f"rule {name!r} is unknown; choose {', '.join(rules)}")
    return rules[name]


def lora_pairs(
    params: Iterable[tuple[str, Tensor]] | Iterable[tuple[Tensor, Tensor]],
) -> list[tuple[Tensor, Tensor]]:
    """Return (A, B) pairs from pairs, or from named parameters by PEFT's names.

    Raises:
        ValueError: none, or two factors whose ranks differ.
    """
    items: Sequence[tuple[Any, Any]] = list(params)
    pairs = items
    if items and isinstance(items[0][0], str):
        named = dict(items)
        names = [name for name in named if "lora_A" in name]
        missing = [n for n in names if n.replace("lora_A", "lora_B") not in named]
        if missing:
            raise ValueError(f"{missing[0]} has no partner with lora_B in its name")
        pairs = [(named[n], named[n.replace("lora_A", "lora_B")]) for n in names]
    if not pairs:
        raise ValueError(
            "no LoRA pairs: give (A, B) tensors, or named parameters with lora_A and lora_B in "
            "their names"
        )
    for a, b in pairs:
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(
                f"A must be (r, d_in) and B (d_out, r) with the same r, got {tuple(a.shape)} and "
                f"{tuple(b.shape)}"
            )
    return list(pairs)
