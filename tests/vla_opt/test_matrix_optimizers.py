"""The matrix optimizers beside Pion and Muon, each against its mathematics in float64."""

import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from vla_opt.optim import (
    Freon,
    Kaon,
    LowRankMuon,
    MiMuon,
    Muon,
    NorMuon,
    RegularizedMuon,
    build_optimizer,
)
from vla_opt.optim.low_rank_muon import leading_directions, sketched_directions
from vla_opt.optim.mimuon import gap_condition, norm_condition
from vla_opt.optim.routing import Rule
from vla_opt.spectral import NEWTON_SCHULZ

SHAPES = {"square": (6, 6), "wide": (4, 9), "tall": (9, 4), "row": (1, 5), "stack": (3, 4, 6),
          "convolution": (5, 2, 3, 3)}  # fmt: skip
LR, MU, DECAY, SCALE = 0.05, 0.9, 0.1, 0.3
OPTIONS = {"lr": LR, "momentum": MU, "weight_decay": DECAY, "update_scale": SCALE}


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrices_of(X: Tensor) -> list[Tensor]:
    if X.ndim == 4:
        return [X.reshape(X.shape[0], -1)]
    return list(X) if X.ndim == 3 else [X]


def by_numbers(X: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """U f(S) V^T."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return U @ torch.diag(f(S)) @ Vh


def newton_schulz(X: Tensor, coefficients: object = NEWTON_SCHULZ) -> Tensor:
    def f(S: Tensor) -> Tensor:
        s = S / (S.square().sum().sqrt() + 1e-7)
        for a, b, c in coefficients:
            s = a * s + b * s**3 + c * s**5
        return s

    return by_numbers(X, f)


class Reference:
    """Momentum, a direction, decoupled weight decay and a step, for one matrix."""

    def __init__(self, W: Tensor) -> None:
        self.W, self.M = W.clone(), torch.zeros_like(W)

    def step(self, G: Tensor) -> None:
        self.M = MU * self.M + (1 - MU) * G
        X = MU * self.M + (1 - MU) * G
        self.W = self.W - LR * DECAY * self.W - LR * self.update(X)

    def update(self, X: Tensor) -> Tensor:
        return SCALE * math.sqrt(max(X.shape)) * self.direction(X)

    def direction(self, X: Tensor) -> Tensor:
        raise NotImplementedError


class NorMuonReference(Reference):
    """Algorithm 1 of arXiv 2510.05491, with the Nesterov step of its code."""

    v: Tensor | float = 0.0

    def update(self, X: Tensor) -> Tensor:
        O = newton_schulz(X)  # noqa: E741
        self.v = 0.8 * self.v + 0.2 * O.square().mean(dim=1)
        N = O / (self.v.sqrt() + 1e-10)[:, None]
        return SCALE * math.sqrt(X.numel()) / N.norm() * N


class KaonReference(Reference):
    """X <- 4.1 (I - X X^T)^2 X five times, over 1.175 (arXiv 2605.11181)."""

    def direction(self, X: Tensor) -> Tensor:
        Y = X / (X.norm() + 1e-7)
        for _ in range(5):
            K = torch.eye(len(Y), dtype=Y.dtype) - Y @ Y.T
            Y = 4.1 * K @ K @ Y
        return Y / 1.175


class LowRankReference(Reference):
    def direction(self, X: Tensor) -> Tensor:
        U, _, Vh = torch.linalg.svd(X, full_matrices=False)
        return U[:, :2] @ Vh[:2]


class FreonReference(Reference):
    """sigma^(q - 1) after division by the Schatten-q norm, q = 0.7 (arXiv 2605.11181)."""

    def direction(self, X: Tensor) -> Tensor:
        return by_numbers(X, lambda S: (S / S.pow(0.7).sum().pow(1 / 0.7)) ** -0.3)


class MatchedFreonReference(FreonReference):
    def direction(self, X: Tensor) -> Tensor:
        D = super().direction(X)
        return D * math.sqrt(min(X.shape)) / D.norm()


class RegularizedReference(Reference):
    """sigma / sqrt(sigma^2 + epsilon^2), epsilon half the root mean square of sigma."""

    def direction(self, X: Tensor) -> Tensor:
        epsilon = 0.5 * X.norm() / math.sqrt(min(X.shape))
        return by_numbers(X, lambda S: S / (S**2 + epsilon**2).sqrt())


class MiMuonReference(Reference):
    """Muon above a norm of 1.2, momentum at scale 0.7 below (arXiv 2605.19619)."""

    branches: ClassVar[set[bool]] = set()

    def update(self, X: Tensor) -> Tensor:
        self.branches.add(bool(X.norm() >= 1.2))
        if X.norm() >= 1.2:
            return SCALE * math.sqrt(max(X.shape)) * newton_schulz(X)
        return 0.7 * X


CASES = {
    "normuon": (NorMuon, {"beta2": 0.8}, NorMuonReference, 1e-8),
    "kaon": (Kaon, {}, KaonReference, 1e-6),  # chaos multiplies rounding
    "low_rank_muon": (LowRankMuon, {"rank": 2}, LowRankReference, 1e-8),
    "freon": (Freon, {"q": 0.7, "match_rms": False}, FreonReference, 1e-7),
    "freon matched": (Freon, {"q": 0.7}, MatchedFreonReference, 1e-7),
    # Six steps come within 0.1 % of the limit; 20 updates of 0.05 * 0.3 * 3 within 2e-3.
    "regularized_muon": (RegularizedMuon, {}, RegularizedReference, 2e-3),
    "mimuon": (MiMuon, {"tau": 1.2, "plain_scale": 0.7}, MiMuonReference, 1e-8),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_twenty_steps_agree_with_the_mathematics(case: str) -> None:
    make, options, reference_class, tolerance = CASES[case]
    parameters = {name: nn.Parameter(noise(s, 1)) for name, s in SHAPES.items()}
    references = {n: [reference_class(W) for W in matrices_of(p.detach())]
                  for n, p in parameters.items()}  # fmt: skip
    optimizer = make(parameters.items(), **OPTIONS, **options)
    for step in range(20):
        for number, (name, parameter) in enumerate(parameters.items()):
            parameter.grad = noise(SHAPES[name], 100 * step + number)
            for reference, G in zip(references[name], matrices_of(parameter.grad), strict=True):
                reference.step(G)
        optimizer.step()
    for name, parameter in parameters.items():
        expected = torch.stack([r.W for r in references[name]]).reshape(parameter.shape)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=tolerance)
    if case == "mimuon":
        assert MiMuonReference.branches == {True, False}


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int = 5) -> None:
    for step in range(count):
        for number, parameter in enumerate(parameters):
            parameter.grad = noise(tuple(parameter.shape), 50 * step + number).to(parameter.dtype)
        optimizer.step()


def twins(shapes: list[tuple[int, ...]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    one, two = ([nn.Parameter(noise(s, 7)) for s in shapes] for _ in range(2))
    return one, two


@pytest.mark.parametrize("condition", ["norm", "gap"])
def test_mimuon_at_tau_zero_is_muon(condition: str) -> None:
    ours, muon = twins([(4, 9), (9, 4), (2, 5, 5)])
    steps(MiMuon(ours, 0.1, condition=condition), ours)
    steps(Muon(muon, 0.1), muon)
    for a, b in zip(ours, muon, strict=True):
        assert torch.equal(a, b)


def test_mimuon_at_a_high_tau_is_momentum_alone() -> None:
    parameter = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    parameter.grad = noise((3, 4), 0)
    MiMuon([parameter], 0.1, tau=1e9, plain_scale=0.5, nesterov=False).step()
    expected = -0.1 * 0.5 * 0.05 * parameter.grad
    torch.testing.assert_close(parameter.detach(), expected)


def test_mimuon_conditions() -> None:
    X = torch.stack([torch.diag(torch.tensor([3.0, 2.0, 0.0])),
                     torch.diag(torch.tensor([3.0, 2.9, 1.0]))])  # fmt: skip
    assert norm_condition(X, 3.8).tolist() == [False, True]
    assert gap_condition(X, 0.5).tolist() == [True, False]
    assert gap_condition(X[:, :, :2], 0.5).tolist() == [True, False]


def test_rows_of_normuon_have_one_size() -> None:
    uneven = noise((24, 40), 3) * torch.logspace(0, -2, 24, dtype=torch.float64)[:, None]

    def spread(make: type) -> float:
        parameter = nn.Parameter(torch.zeros_like(uneven))
        parameter.grad = uneven.clone()
        make([parameter], 1.0).step()
        rows = parameter.detach().norm(dim=1)
        return (rows.std() / rows.mean()).item()

    assert spread(NorMuon) < 1e-9
    assert spread(Muon) > 0.03


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_update_of_normuon_has_the_asked_root_mean_square(shape: tuple[int, int]) -> None:
    parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    parameter.grad = noise(shape, 0)
    NorMuon([parameter], 0.5, update_scale=0.3).step()
    assert parameter.square().mean().sqrt().item() == pytest.approx(0.5 * 0.3)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("make", [NorMuon, LowRankMuon, RegularizedMuon, Freon, MiMuon, Kaon])
def test_per_head_is_a_loop_over_heads(make: type, axis: int) -> None:
    shape = (12, 7) if axis == 0 else (7, 12)
    whole = nn.Parameter(noise(shape, 0))
    parts = [nn.Parameter(part.clone()) for part in whole.detach().chunk(3, axis)]
    together, apart = make([whole], 0.1, num_heads=3, head_axis=axis), make(parts, 0.1)
    for step in range(4):
        whole.grad = noise(shape, 10 + step)
        for part, gradient in zip(parts, whole.grad.chunk(3, axis), strict=True):
            part.grad = gradient.clone()
        together.step()
        apart.step()
    joined = torch.cat([part.detach() for part in parts], axis)
    torch.testing.assert_close(whole.detach(), joined)


ALL = {"normuon": NorMuon, "low_rank_muon": LowRankMuon, "mimuon": MiMuon, "freon": Freon,
       "regularized_muon": RegularizedMuon, "kaon": Kaon}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ALL))
def test_zero_gradient_moves_nothing_but_decay(name: str) -> None:
    parameter = nn.Parameter(torch.ones(3, 4))
    parameter.grad = torch.zeros(3, 4)
    ALL[name]([parameter], 0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((3, 4), 0.95))


@pytest.mark.parametrize("name", sorted(ALL))
def test_resumed_run_ends_with_the_same_bits(name: str) -> None:
    shapes = [(4, 9), (9, 4), (3, 5, 5), (4, 2, 3, 3)]
    whole, resumed = twins(shapes)
    first = ALL[name](whole, 0.1)
    steps(first, whole, 3)
    second = ALL[name](resumed, 0.1)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for a, b in zip(resumed, whole, strict=True):
            a.copy_(b)
    for optimizer, parameters in ((first, whole), (second, resumed)):
        steps(optimizer, parameters, 2)
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(ALL))
def test_rule_is_registered_with_the_same_defaults(name: str) -> None:
    ours, mixed = twins([(4, 9), (3, 5, 5)])
    direct = ALL[name](ours, 0.1)
    built = build_optimizer([(str(i), p) for i, p in enumerate(mixed)], [Rule("", name)], lr=0.1)
    group = built.param_groups[0]
    assert {
        k: v for k, v in direct.param_groups[0].items() if k != "params"
    }.items() <= group.items()
    steps(direct, ours, 2)
    steps(built, mixed, 2)
    for a, b in zip(ours, mixed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rank", [1, 3, 50])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_leading_directions_are_those_of_the_decomposition(
    rank: int, shape: tuple[int, int]
) -> None:
    X = noise((2, *shape), 0)
    U, _, Vh = torch.linalg.svd(X, full_matrices=False)
    expected = U[:, :, :rank] @ Vh[:, :rank]
    torch.testing.assert_close(leading_directions(X, rank), expected)


def test_directions_that_do_not_exist_are_not_invented() -> None:
    rank_two = noise((1, 6, 2), 0) @ noise((1, 2, 9), 1)
    assert torch.linalg.svdvals(leading_directions(rank_two, 4)[0])[2:].max() < 1e-9
    assert not leading_directions(torch.zeros(1, 3, 4), 2).any()


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_sketch_finds_directions_that_stand_out(shape: tuple[int, int]) -> None:
    r = 4
    U, V = (torch.linalg.qr(noise((side, r), side))[0] for side in shape)
    X = U @ torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0]).double()) @ V.T
    X = (X + 1e-4 * noise(shape, 9)).unsqueeze(0)
    exact, sketched = leading_directions(X, r), sketched_directions(X, r)
    assert ((exact - sketched).norm() / exact.norm()).item() < 1e-6
    assert torch.equal(sketched, sketched_directions(X, r))  # the same at every call


def test_freon_at_one_is_the_orthogonal_factor_and_at_two_the_gradient() -> None:
    def moved(q: float) -> Tensor:
        parameter = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
        parameter.grad = noise((4, 6), 2)
        Freon([parameter], 1.0, q=q, match_rms=False, update_scale=1 / math.sqrt(6)).step()
        return -parameter.detach()

    G = noise((4, 6), 2)
    torch.testing.assert_close(moved(1.0), by_numbers(G, torch.ones_like))
    torch.testing.assert_close(moved(2.0), G / G.norm())


def test_regularization_spares_small_directions() -> None:
    def sizes(**options: float) -> Tensor:
        parameter = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
        parameter.grad = torch.diag(torch.tensor([1.0, 0.1, 0.01]).double())
        RegularizedMuon([parameter], 1.0, nesterov=False, momentum=0.0,
                        update_scale=1 / math.sqrt(3), **options).step()  # fmt: skip
        return -parameter.detach().diagonal()

    expected = torch.tensor([1.0, 0.1, 0.01]).double()
    expected = expected / (expected**2 + 0.1**2).sqrt()
    torch.testing.assert_close(sizes(epsilon=0.1), expected, rtol=2e-3, atol=0)
    assert (sizes(epsilon=0.0) - 1).abs().max() < 0.02


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (NorMuon, {"beta2": 1.0}, r"beta2 must lie in \[0, 1\)"),
        (NorMuon, {"row_eps": 0.0}, "row_eps"),
        (NorMuon, {"coefficients": ()}, r"\(a, b, c\)"),
        (LowRankMuon, {"rank": 0}, "rank must be an integer"),
        (LowRankMuon, {"method": "svd"}, "exact or sketch"),
        (Freon, {"q": 0.0}, r"q must lie in \(0, 2\]"),
        (MiMuon, {"tau": -1.0}, "tau"),
        (MiMuon, {"condition": "rank"}, "norm or gap"),
        (MiMuon, {"update_scale": 0.0}, "update_scale must be above 0"),
        (RegularizedMuon, {"epsilon": -1.0}, "epsilon"),
        (Kaon, {"normalize": "nuclear"}, "frobenius or spectral"),
        (Kaon, {"precision": "float8"}, "bfloat16"),
    ],
)
def test_bad_option_is_refused(make: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.zeros(2, 2))], 0.1, **options)
