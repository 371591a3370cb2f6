"""PionOET: its reference, the spectrum it keeps, and what it cannot train."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from vla_opt.optim import OptimizerConfig, PionOET
from vla_opt.optim.pion_oet import rotation

SHAPES = [(4, 6), (6, 4), (5, 5), (1, 3)]


def reference(W: np.ndarray, gradients: list[np.ndarray], *, lr: float, beta: float, scale: float,
              series: int, second: float | None = None, eps: float = 1e-8,
              alternate: bool = False) -> np.ndarray:  # fmt: skip
    """The paper's step for one matrix, entry by entry where that is clearer."""

    def exponential(X: np.ndarray) -> np.ndarray:
        terms, term = np.eye(len(X)), np.eye(len(X))
        for k in range(1, series + 1):
            term = term @ X / k
            terms = terms + term
        return terms

    m, n = W.shape
    averages = {"out": np.zeros((m, m)), "in": np.zeros((n, n))}
    squares = {"out": np.zeros((m, m)), "in": np.zeros((n, n))}
    for t, G in enumerate(gradients):
        skew = {"out": G @ W.T - W @ G.T, "in": W.T @ G - G.T @ W}
        A = {}
        for side, X in skew.items():
            averages[side] = beta * averages[side] + (1 - beta) * X
            A[side] = -averages[side]
            if second is not None:
                squares[side] = second * squares[side] + (1 - second) * X**2
                A[side] = A[side] / (np.sqrt(squares[side]) + eps)
        if alternate:
            A["in" if t % 2 == 0 else "out"] *= 0.0
        change = A["out"] @ W + W @ A["in"]
        angle = lr * scale * math.sqrt(m * n) / (np.linalg.norm(change) + eps)
        W = exponential(angle * A["out"]) @ W @ exponential(angle * A["in"])
    return W


def problem(shape: tuple[int, int], steps: int = 20) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(sum(shape))
    return rng.normal(size=shape), [rng.normal(size=shape) for _ in range(steps)]


def run(W: np.ndarray, gradients: list[np.ndarray], **options: object) -> np.ndarray:
    parameter = nn.Parameter(torch.tensor(W))
    optimizer = PionOET([parameter], **options)
    for G in gradients:
        parameter.grad = torch.tensor(G)
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("series", [2, 4])
@pytest.mark.parametrize("second", [None, 0.99])
def test_twenty_steps_are_the_reference(
    shape: tuple[int, int], series: int, second: float | None
) -> None:
    W, gradients = problem(shape)
    ours = run(W, gradients, lr=0.05, betas=(0.8, second or 0.5), update_scale=0.3,
               second_moment=second is not None, retraction=f"taylor{series}")  # fmt: skip
    theirs = reference(W, gradients, lr=0.05, beta=0.8, scale=0.3, series=series, second=second)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_sides_can_take_turns() -> None:
    W, gradients = problem((4, 6))
    ours = run(W, gradients, lr=0.05, betas=(0.8, 0.9), sides="alternate")
    theirs = reference(W, gradients, lr=0.05, beta=0.8, scale=0.2, series=2, alternate=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_cayley_is_the_rotation_up_to_third_order_and_taylor_its_series() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5, 5))
    X = 0.1 * (X - X.T)
    exact = scipy.linalg.expm(X)
    for retraction, order in (("taylor2", 3), ("taylor4", 5), ("cayley", 3)):
        error = np.linalg.norm(rotation(torch.tensor(X), retraction).numpy() - exact, 2)
        half = rotation(torch.tensor(X / 2), retraction).numpy()
        smaller = np.linalg.norm(half - scipy.linalg.expm(X / 2), 2)
        assert error / smaller == pytest.approx(2**order, rel=0.25), retraction


def drift(retraction: str, lr: float, steps: int = 60) -> float:
    """Largest relative change of a singular value of a 12 x 24 matrix."""
    W, gradients = problem((12, 24), steps)
    after = run(W, gradients, lr=lr, retraction=retraction)
    sigma, now = (np.linalg.svd(X, compute_uv=False) for X in (W, after))
    assert np.linalg.norm(after - W) > 0.01 * np.linalg.norm(W)
    return float(np.max(np.abs(now / sigma - 1)))


def test_cayley_keeps_the_spectrum() -> None:
    assert max(drift("cayley", 1e-1), drift("cayley", 1e-2)) < 1e-12


def test_series_lose_the_spectrum_slowly_and_the_longer_one_more_slowly() -> None:
    assert 1e-8 < drift("taylor2", 1e-1) < 1e-4
    assert drift("taylor4", 1e-1) < 1e-2 * drift("taylor2", 1e-1)


def test_step_goes_downhill_and_has_the_size_of_lr() -> None:
    W, gradients = problem((8, 8), 1)
    after = run(W, gradients, lr=1e-4, update_scale=0.2)
    assert np.sum((after - W) * gradients[0]) < 0
    assert np.sqrt(np.mean((after - W) ** 2)) == pytest.approx(0.2 * 1e-4, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_heads_are_turned_one_by_one(axis: int) -> None:
    shape = (6, 5) if axis == 0 else (5, 6)
    W, gradients = problem(shape, 5)
    whole = run(W, gradients, lr=0.1, num_heads=3, head_axis=axis)
    parts = [
        run(w, list(g), lr=0.1)
        for w, g in zip(
            np.split(W, 3, axis),
            zip(*(np.split(G, 3, axis) for G in gradients), strict=True),
            strict=True,
        )
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts, axis), atol=1e-12)


def test_stacks_and_convolutions_are_taken_as_matrices() -> None:
    torch.manual_seed(0)
    stack, conv = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.randn(4, 2, 3, 3))
    optimizer = PionOET([stack, conv], 0.1, retraction="cayley")
    before = [torch.linalg.svdvals(p.detach().reshape(s)) for p, s in
              ((stack, (2, 3, 4)), (conv, (4, 18)))]  # fmt: skip
    for p in (stack, conv):
        p.grad = torch.randn_like(p)
    optimizer.step()
    after = [torch.linalg.svdvals(p.detach().reshape(s)) for p, s in
             ((stack, (2, 3, 4)), (conv, (4, 18)))]  # fmt: skip
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_zero_gradient_moves_nothing() -> None:
    W, _ = problem((4, 6))
    after = run(W, [np.zeros((4, 6))] * 3, lr=0.1)
    np.testing.assert_array_equal(after, W)


def test_zero_matrices_are_warned_of_by_name() -> None:
    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A, self.B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(4, 2))

    with pytest.warns(UserWarning, match="those of B are all zero: they will stay zero"):
        PionOET(Lora().named_parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PionOET([nn.Parameter(torch.randn(2, 2))], 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retraction": "cayly"}, "Did you mean 'cayley'"),
        ({"sides": "alternating"}, "Did you mean 'alternate'"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PionOET([nn.Parameter(torch.randn(2, 2))], 0.1, **options)


def test_vectors_are_refused_and_configuration_builds_it() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        PionOET([nn.Parameter(torch.randn(3))], 0.1)
    config = OptimizerConfig(name="pion_oet", preset="default", options={"retraction": "cayley"})
    groups = config.build(nn.Linear(3, 2)).param_groups
    assert [g["algorithm"] for g in groups] == ["adamw", "pion_oet"]
    assert groups[1]["retraction"] == "cayley"
