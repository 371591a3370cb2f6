"""Adding mapped matrices to weights in place is mapping them and adding."""

import pytest
import torch
from torch import Tensor

from vla_opt.spectral import NEWTON_SCHULZ, add_spectral_map_, high_pass, spectral_map

WIDE, TALL, SQUARE, LARGE = (5, 4, 9), (5, 9, 4), (5, 6, 6), (5, 60, 90)


def stack(shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise, one matrix of rank one and one of zeros."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(shape, dtype=torch.float64, generator=generator)
    X[1] = X[1, :, :1] * X[1, :1, :]
    X[3] = 0.0
    return X.to(dtype)


def expected(W: Tensor, D: Tensor, scale: float, keep: float) -> Tensor:
    return keep * W + scale * D[:, : W.shape[1], : W.shape[2]]


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE, LARGE])
@pytest.mark.parametrize("coefficients", [NEWTON_SCHULZ, high_pass(1, 4), high_pass(0, 5)])
def test_adds_the_map(shape: tuple[int, int, int], coefficients: object) -> None:
    X, W = stack(shape), torch.randn(shape, dtype=torch.float64)
    wanted = expected(W, spectral_map(X, coefficients), -0.3, 0.9)
    add_spectral_map_([W], X.clone(), coefficients, scales=[-0.3], keep=0.9)
    torch.testing.assert_close(W, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sides", [(48, 80), (80, 48)])
def test_parts_may_be_smaller_than_the_matrices_that_were_padded(sides: tuple[int, int]) -> None:
    m, n = sides
    X = torch.zeros(4, *sides)
    X[:3] = torch.randn(3, *sides)
    X[1] = torch.randn(m, 1) * torch.randn(1, n)
    X[3, : m - 9, : n - 7] = torch.randn(m - 9, 1) * torch.randn(1, n - 7)
    parts = [torch.randn(1, *sides), torch.randn(2, *sides), torch.randn(1, m - 9, n - 7)]
    scales = [-0.5, 2.0, 3.0]
    mapped = spectral_map(X, high_pass(0, 5)).split([1, 2, 1])
    assert not mapped[0].any()  # left out on the way
    assert mapped[2].any()
    wanted = [expected(W, D, s, 0.7) for W, D, s in zip(parts, mapped, scales, strict=True)]
    add_spectral_map_(parts, X, high_pass(0, 5), scales=scales, keep=0.7)
    for W, right in zip(parts, wanted, strict=True):
        torch.testing.assert_close(W, right, rtol=0, atol=1e-5)


def test_views_of_a_larger_weight_are_written_through() -> None:
    X, weight = torch.randn(2, 6, 3), torch.zeros(6, 9)
    heads = weight[:, :6].unflatten(1, (2, 3)).movedim(1, 0)  # blocks of columns
    add_spectral_map_([heads], X.clone(), NEWTON_SCHULZ, scales=[1.0])
    torch.testing.assert_close(
        weight[:, :6], torch.cat(list(spectral_map(X, NEWTON_SCHULZ)), 1), rtol=0, atol=1e-5
    )
    assert not weight[:, 6:].any()


def test_what_a_matrix_gets_does_not_depend_on_its_neighbours() -> None:
    alone, X = torch.zeros(1, 60, 90), stack(LARGE, torch.float32)
    add_spectral_map_([alone], X[1:2].clone(), high_pass(1, 4), scales=[1.0])
    beside = torch.zeros(LARGE)
    add_spectral_map_([beside], X.clone(), high_pass(1, 4), scales=[1.0])
    living = X[1].expand(LARGE).clone()
    among = torch.zeros(LARGE)
    add_spectral_map_([among], living, high_pass(1, 4), scales=[1.0])
    assert alone.any()
    assert torch.equal(beside[1], alone[0])
    assert torch.equal(among[4], alone[0])
    assert not beside[[0, 2, 3, 4]].any()


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_weights_may_have_another_dtype_than_the_iteration(precision: str) -> None:
    X, W = stack(LARGE, torch.float32), torch.ones(LARGE)
    wanted = expected(W, spectral_map(X, NEWTON_SCHULZ, precision=precision), 0.1, 0.5)
    add_spectral_map_([W], X, NEWTON_SCHULZ, scales=[0.1], keep=0.5, precision=precision)
    torch.testing.assert_close(W, wanted, rtol=0, atol=2e-3 if precision == "bfloat16" else 1e-6)


def test_figures_leave_the_weights_as_they_are() -> None:
    plain, measured = torch.ones(LARGE), torch.ones(LARGE)
    for W, measure in ((plain, False), (measured, True)):
        figures = add_spectral_map_([W], stack(LARGE, torch.float32), high_pass(1, 4),
                                    scales=[0.1], measure=measure)  # fmt: skip
        assert (figures is not None) == measure
    assert torch.equal(plain, measured)
    assert figures is not None
    assert figures.directions_passed.round().tolist() == [0, 1, 0, 0, 0]
    assert figures.top_energy.shape == (5,)
