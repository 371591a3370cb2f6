"""Normalisation by the largest singular value, regularisation, figures."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "plugin"))

from spectral_truth import LISTS, SPECTRA, deficient, matrices, relative, with_spectrum

from vla_opt import spectral
from vla_opt.spectral import (
    NEWTON_SCHULZ,
    high_pass,
    measured_spectral_map,
    polar_express,
    scalar_map,
    spectral_map,
    top_eigenvalue,
)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(["direct", "gram"]))
def test_spectral_normalisation_divides_by_the_largest(X: Tensor, form: str) -> None:
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    expected = U @ torch.diag(scalar_map(S / (1.02 * S[0]), high_pass(1, 4))) @ Vh
    mapped = spectral_map(X, high_pass(1, 4), normalize="spectral", form=form)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-4)  # eps is relative to X


@pytest.mark.parametrize("promotion", [0, 1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_top_direction_always_passes_under_spectral_normalisation(
    promotion: int, decay: float
) -> None:
    sigma = torch.arange(1, 201, dtype=torch.float64) ** -decay
    X = with_spectrum(sigma, 200, 240).float()
    coefficients = high_pass(promotion, 5 - promotion)
    mapped = spectral_map(X, coefficients, normalize="spectral")
    assert torch.linalg.matrix_norm(mapped, 2).item() == pytest.approx(1.0, abs=0.02)
    if decay < 1.0 and promotion == 0:
        assert not spectral_map(X, coefficients).any()  # the dead zone


@pytest.mark.parametrize("normalize", ["frobenius", "spectral"])
def test_zero_stays_zero_under_every_option(normalize: str) -> None:
    for regularization in (0.0, 0.3):
        mapped = spectral_map(torch.zeros(2, 3, 4), NEWTON_SCHULZ, normalize=normalize,
                              regularization=regularization)  # fmt: skip
        assert torch.equal(mapped, torch.zeros(2, 3, 4))


def regularised_by_svd(X: Tensor, coefficients: spectral.Coefficients, epsilon: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    r = (S**2 + epsilon**2).sqrt()
    norm = (S.square().sum() + min(X.shape) * epsilon**2).sqrt() + 1e-7
    return U @ torch.diag(scalar_map(r / norm, coefficients) * S / r) @ Vh


@settings(max_examples=80, deadline=None)
@given(matrices(), st.sampled_from(sorted(LISTS)), st.floats(1e-6, 3.0))
def test_regularisation_adds_to_every_singular_value(X: Tensor, name: str, share: float) -> None:
    epsilon = share * X.norm().item()
    mapped = spectral_map(X, LISTS[name], regularization=epsilon)
    expected = regularised_by_svd(X, LISTS[name], epsilon)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 0.3])
def test_regularisation_survives_a_new_start_of_the_gram_form(epsilon: float) -> None:
    X = with_spectrum(SPECTRA["1/i"], 96, 384)
    expected = regularised_by_svd(X, polar_express(6), epsilon)
    mapped = spectral_map(X.float(), polar_express(6), regularization=epsilon)
    assert relative(mapped, expected) < 1e-3


def test_regularised_muon_is_the_paper_s_map() -> None:
    X = with_spectrum(SPECTRA["1/i"], 96, 384)
    epsilon = 0.5 * X.norm().item() / math.sqrt(96)
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    expected = U @ torch.diag(S / (S**2 + epsilon**2).sqrt()) @ Vh
    assert relative(spectral_map(X, polar_express(6), regularization=epsilon), expected) < 2e-3


def test_regularisation_may_differ_per_matrix() -> None:
    X = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    epsilon = torch.rand(2, 3, dtype=torch.float64)
    mapped = spectral_map(X, NEWTON_SCHULZ, regularization=epsilon)
    alone = spectral_map(X[1, 2], NEWTON_SCHULZ, regularization=epsilon[1, 2].item())
    torch.testing.assert_close(mapped[1, 2], alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "nuclear"}, "frobenius or spectral"),
        ({"regularization": -1.0}, ">= 0"),
        ({"regularization": torch.ones(3)}, r"expected one number per matrix, \(2,\)"),
        ({"regularization": 0.1, "form": "direct"}, "gram"),
    ],
)
def test_bad_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_map(torch.ones(2, 3, 3), NEWTON_SCHULZ, **options)


@settings(max_examples=60, deadline=None)
@given(deficient(), st.sampled_from(["high_pass_1_4", "newton_schulz"]), st.booleans())
def test_figures_are_those_of_the_singular_values(X: Tensor, name: str, wide: bool) -> None:
    mapped, figures = measured_spectral_map(X, LISTS[name], form="gram" if wide else "direct")
    assert torch.equal(mapped, spectral_map(X, LISTS[name], form="gram" if wide else "direct"))
    S = torch.linalg.svdvals(X)
    energy = S.square().sum(-1)
    top = torch.where(energy > 0, S[:, 0].square() / energy.clamp_min(1e-30), 0.0)
    passed = torch.linalg.svdvals(mapped).square().sum(-1)
    for value, expected in (
        (figures.top_energy, top),
        (figures.stable_rank, torch.where(top > 0, 1 / top, 0.0)),
        (figures.directions_passed, passed),
    ):
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)


def test_figures_cost_no_product_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    bmm, counted = torch.bmm, []

    def spy(A: Tensor, B: Tensor, **options: Tensor) -> Tensor:
        counted.append(min(*A.shape[1:], *B.shape[1:]) > 1)
        return bmm(A, B, **options)

    monkeypatch.setattr(torch, "bmm", spy)
    X = torch.randn(2, 30, 70)
    spectral_map(X, NEWTON_SCHULZ)
    plain = sum(counted)
    counted.clear()
    measured_spectral_map(X, NEWTON_SCHULZ)
    assert sum(counted) == plain


def test_figures_have_the_shape_of_the_batch() -> None:
    _, figures = measured_spectral_map(torch.randn(2, 3, 4, 5), NEWTON_SCHULZ)
    assert figures.top_energy.shape == figures.directions_passed.shape == (2, 3)


@pytest.mark.parametrize("decay", [0.0, 0.02, 0.5, 2.0])
def test_top_eigenvalue_is_close_and_from_below(decay: float) -> None:
    sigma = torch.arange(1, 301, dtype=torch.float64) ** -decay
    X = with_spectrum(sigma, 300, 300).float().unsqueeze(0)
    found = top_eigenvalue(X @ X.mT).item()
    assert found <= 1.0 + 1e-5
    assert found >= (0.999 if decay >= 0.5 or decay == 0.0 else 0.95)
