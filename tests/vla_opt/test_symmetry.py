"""Symmetry-compatible updates: their reference, and that they commute with what they should."""

import numpy as np
import pytest
import torch
from torch import nn

from vla_opt.optim import SymmetryCompatible
from vla_opt.optim.symmetry import centred, polar, row_norm

FORMS = ["row_norm", "left_polar", "right_polar", "polar_row_norm", "row_norm_polar"]
SHAPES = [(7, 4), (4, 7)]


def gradients(shape: tuple[int, int], steps: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(shape))
    return [rng.normal(size=shape) for _ in range(steps)]


def polar_by_svd(M: np.ndarray, power: float) -> np.ndarray:
    U, sigma, V = np.linalg.svd(M, full_matrices=False)
    keep = sigma > 1e-7 * sigma[0]
    return (U[:, keep] @ V[keep]) * sigma.sum() ** power


def rows(M: np.ndarray) -> np.ndarray:
    return np.stack([row / (np.sqrt(np.sum(row**2)) + 1e-8) for row in M])


def reference(
    W: np.ndarray, given: list[np.ndarray], form: str, centre: bool, power: float
) -> np.ndarray:
    lr, beta, scale, decay = 0.1, 0.9, 0.3, 0.05
    m, n = W.shape
    M = np.zeros_like(W)
    for G in given:
        M = beta * M + (1 - beta) * G
        D = M - M.mean(0) if centre else M
        size = np.sqrt(n if form in ("row_norm", "polar_row_norm") else max(m, n))
        if form == "row_norm":
            D = rows(D)
        elif form == "polar_row_norm":
            D = rows(polar_by_svd(D, power))
        elif form == "row_norm_polar":
            D = polar_by_svd(rows(D), power)
        else:
            D = polar_by_svd(D, power)
        D = D - D.mean(0) if centre else D
        W = (1 - lr * decay) * W - lr * scale * size * D
    return W


def run(W: np.ndarray, given: list[np.ndarray], **options: object) -> np.ndarray:
    parameter = nn.Parameter(torch.tensor(W))
    optimizer = SymmetryCompatible([parameter], 0.1, momentum=0.9, update_scale=0.3, **options)
    for G in given:
        parameter.grad = torch.tensor(np.ascontiguousarray(G))
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_twenty_steps_are_the_reference(
    form: str, shape: tuple[int, int], centre: bool, power: float
) -> None:
    W = np.random.default_rng(0).normal(size=shape)
    given = gradients(shape)
    ours = run(W, given, form=form, centred=centre, nuclear_power=power, weight_decay=0.05)
    np.testing.assert_allclose(ours, reference(W, given, form, centre, power), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centre", [False, True])
def test_steps_commute_with_permuted_rows_and_rotated_features(
    form: str, shape: tuple[int, int], centre: bool
) -> None:
    rng = np.random.default_rng(1)
    W, given = rng.normal(size=shape), gradients(shape)
    order = rng.permutation(shape[0])
    Q, _ = np.linalg.qr(rng.normal(size=(shape[1], shape[1])))
    options = {"form": form, "centred": centre, "weight_decay": 0.1}
    plain = run(W, given, **options)
    permuted = run(W[order], [G[order] for G in given], **options)
    rotated = run(W @ Q, [G @ Q for G in given], **options)
    np.testing.assert_allclose(permuted, plain[order], rtol=0, atol=1e-12)
    np.testing.assert_allclose(rotated, plain @ Q, rtol=0, atol=1e-12)


def test_permuted_rows_give_the_same_bits_under_row_norm() -> None:
    W, given = np.random.default_rng(0).normal(size=(7, 4)), gradients((7, 4))
    order = np.random.default_rng(1).permutation(7)
    plain, permuted = run(W, given), run(W[order], [G[order] for G in given])
    np.testing.assert_array_equal(permuted, plain[order])


def test_adamw_does_not_commute_with_rotations() -> None:
    """The control: the identities above are no accident of the test."""
    rng = np.random.default_rng(1)
    W, given = rng.normal(size=(7, 4)), gradients((7, 4))
    Q, _ = np.linalg.qr(rng.normal(size=(4, 4)))

    def adamw(W: np.ndarray, given: list[np.ndarray]) -> np.ndarray:
        parameter = nn.Parameter(torch.tensor(W))
        optimizer = torch.optim.AdamW([parameter], 0.1)
        for G in given:
            parameter.grad = torch.tensor(G)
            optimizer.step()
        return parameter.detach().numpy()

    assert np.abs(adamw(W @ Q, [G @ Q for G in given]) - adamw(W, given) @ Q).max() > 0.05


def test_polar_factor_is_that_of_the_svd_and_drops_absent_directions() -> None:
    torch.manual_seed(0)
    for shape in ((5, 5), (7, 3), (3, 7)):
        M = torch.randn(shape, dtype=torch.float64)
        U, sigma, V = torch.linalg.svd(M, full_matrices=False)
        torch.testing.assert_close(polar(M), U @ V, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(polar(M, 1.0), U @ V * sigma.sum(), rtol=1e-9, atol=1e-9)
    thin = torch.randn(6, 2) @ torch.randn(2, 5)
    sigma = torch.linalg.svdvals(polar(thin, eps=1e-4))
    torch.testing.assert_close(sigma[:2], torch.ones(2), rtol=1e-5, atol=1e-5)
    assert sigma[2:].max() < 1e-3
    assert not polar(torch.zeros(3, 3)).any()


def test_rows_without_gradient_stay_and_the_mean_row_is_taken_out() -> None:
    M = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(row_norm(M), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert centred(M).sum(0).abs().max() == 0.0


def test_step_of_every_form_is_as_large_as_adamws() -> None:
    for form in FORMS:
        W = nn.Parameter(torch.zeros(16, 16))
        W.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        SymmetryCompatible([W], 1.0, form=form, weight_decay=0.0).step()
        rms = W.detach().square().mean().sqrt().item()
        # A polar factor of square matrices has root mean square 1 / sqrt(n) too.
        assert rms == pytest.approx(0.2, rel=1e-3), form


@pytest.mark.parametrize(
    ("options", "message"),
    [({"form": "rownorm"}, "Did you mean 'row_norm'"), ({"momentum": 1.0}, "momentum"),
     ({"eps": -1.0}, "eps")],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SymmetryCompatible([nn.Parameter(torch.randn(2, 2))], 0.1, **options)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        SymmetryCompatible([nn.Parameter(torch.randn(2))], 0.1)
