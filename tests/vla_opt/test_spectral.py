"""The spectral map against singular value decompositions in float64."""

import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "plugin"))

from spectral_truth import (
    LISTS,
    SPECTRA,
    by_svd,
    deficient,
    first_above,
    matrices,
    relative,
    rounding,
    with_spectrum,
)

from vla_opt.spectral import (
    KAON,
    NEWTON_SCHULZ,
    high_pass,
    measured_spectral_map,
    polar_express,
    scalar_map,
    spectral_map,
)


@settings(max_examples=150, deadline=None)
@given(matrices(), st.sampled_from(sorted(LISTS)), st.sampled_from(["auto", "direct", "gram"]))
def test_map_acts_on_singular_values_alone(X: Tensor, name: str, form: str) -> None:
    expected = by_svd(X, LISTS[name])
    mapped = spectral_map(X, LISTS[name], form=form)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=rounding(name))


@settings(max_examples=100, deadline=None)
@given(deficient(), st.sampled_from(sorted(LISTS)), st.sampled_from(["auto", "direct", "gram"]))
def test_map_of_a_batch_of_any_rank(X: Tensor, name: str, form: str) -> None:
    expected = torch.stack([by_svd(x, LISTS[name]) for x in X])
    mapped = spectral_map(X, LISTS[name], form=form)
    torch.testing.assert_close(mapped, expected, rtol=0, atol=rounding(name))


def test_kaon_of_rank_one_needs_the_direct_form_in_float32() -> None:
    spectra = [with_spectrum(torch.ones(1), 5, 2, seed) for seed in range(100)]

    def worst(form: str) -> float:
        off = [spectral_map(X.float(), KAON, form=form) - by_svd(X, KAON) for X in spectra]
        return max(error.abs().max().item() for error in off)

    assert worst("direct") < 5e-4
    assert 1e-3 < worst("gram") < 0.2


@settings(max_examples=50, deadline=None)
@given(matrices(), st.sampled_from(sorted(LISTS)), st.integers(0, 2**16))
def test_map_commutes_with_rotations(X: Tensor, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    square = [torch.randn(k, k, dtype=torch.float64, generator=generator) for k in X.shape]
    U, V = (torch.linalg.qr(A)[0] for A in square)
    mapped = partial(spectral_map, coefficients=LISTS[name])
    expected = U @ mapped(X) @ V
    torch.testing.assert_close(mapped(U @ X @ V), expected, rtol=0, atol=rounding(name))


@pytest.mark.parametrize("form", ["auto", "direct", "gram"])
@pytest.mark.parametrize("shape", [(16, 9), (16, 15), (40, 9)])
def test_tall_is_transpose_of_wide(shape: tuple[int, int], form: str) -> None:
    X = torch.randn(shape)
    wide = spectral_map(X.T.contiguous(), high_pass(3, 2), form=form)
    torch.testing.assert_close(spectral_map(X, high_pass(3, 2), form=form), wide.T)


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 3, 6, 30), (2, 3, 30, 6), (4, 5, 5)])
def test_leading_dimensions_are_a_batch(shape: tuple[int, ...]) -> None:
    X = torch.randn(shape, dtype=torch.float64)
    flat = X.reshape(-1, *shape[-2:])
    one_by_one = torch.stack([spectral_map(x, NEWTON_SCHULZ) for x in flat]).reshape(shape)
    torch.testing.assert_close(spectral_map(X, NEWTON_SCHULZ), one_by_one)


# promotion steps, suppression steps, singular value whose output is 0.01, 0.5 and 0.99, share of
# the squared norm it takes to pass, how many directions can hold that share at once
CUT_OFFS = [
    (0, 5, (0.748, 0.798, 0.846), 0.636, 1),
    (1, 4, (0.416, 0.492, 0.575), 0.242, 4),
    (2, 3, (0.187, 0.263, 0.352), 0.0692, 14),
    (3, 2, (0.066, 0.131, 0.214), 0.0171, 58),
    (4, 1, (0.013, 0.060, 0.135), 0.00354, 282),
    (5, 0, (0.0004, 0.023, 0.090), 0.00054, 1850),
]


@pytest.mark.parametrize(("promotion", "suppression", "points", "share", "most"), CUT_OFFS)
def test_cut_offs(
    promotion: int, suppression: int, points: tuple[float, ...], share: float, most: int
) -> None:
    coefficients = high_pass(promotion, suppression)
    for level, point in zip((0.01, 0.5, 0.99), points, strict=True):
        assert first_above(level, coefficients) == pytest.approx(point, abs=6e-4)
    half = first_above(0.5, coefficients) ** 2
    assert half == pytest.approx(share, rel=0.01)
    assert 1 / half == pytest.approx(most, rel=0.005) or int(1 / half) == most


@pytest.mark.parametrize(("promotion", "suppression", "points", "share", "most"), CUT_OFFS[:3])
def test_directions_above_the_cut_off_pass_and_others_vanish(
    promotion: int, suppression: int, points: tuple[float, ...], share: float, most: int
) -> None:
    above = 1.15 * points[2]
    below = min(0.85 * points[0], 0.99 * math.sqrt(1 - above**2))
    tail = math.sqrt((1 - above**2 - below**2) / 200)  # fills the norm up to one
    X = with_spectrum(torch.tensor([above, below] + [tail] * 200), 210, 230)
    mapped = torch.linalg.svdvals(spectral_map(X, high_pass(promotion, suppression)))
    assert mapped[0].item() == pytest.approx(1.0, abs=0.01)
    assert mapped[1].item() < 0.01


def test_both_pion_maps_fix_one_and_are_flat_there() -> None:
    for coefficients in (high_pass(1, 0), high_pass(0, 1)):
        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        value = scalar_map(one, coefficients)
        value.backward()
        assert (value.item(), one.grad.item()) == (1.0, 0.0)


def test_muon_levels_the_spectrum() -> None:
    sigma = torch.logspace(-2, 0, 4000, dtype=torch.float64)
    low, high = scalar_map(sigma, NEWTON_SCHULZ).aminmax()
    assert low.item() == pytest.approx(0.682, abs=1e-3)
    assert high.item() == pytest.approx(1.134, abs=1e-3)
    assert (scalar_map(sigma, polar_express(7)) - 1).abs().max().item() < 0.01


def test_zero_in_zero_out_and_neighbours_are_unharmed() -> None:
    X = torch.randn(3, 4, 8)
    X[1] = 0.0
    mapped = spectral_map(X, NEWTON_SCHULZ)
    assert torch.equal(mapped[1], torch.zeros(4, 8))
    torch.testing.assert_close(mapped[2], spectral_map(X[2], NEWTON_SCHULZ))


def test_nan_stays_in_its_matrix() -> None:
    X = torch.randn(3, 4, 8)
    X[1, 2, 3] = float("nan")
    mapped = spectral_map(X, high_pass())
    assert mapped[1].isnan().any()
    assert mapped[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (3, 4, 0), (0, 0)])
def test_empty_batch_is_left_alone(shape: tuple[int, ...]) -> None:
    mapped, figures = measured_spectral_map(torch.empty(shape), NEWTON_SCHULZ)
    assert mapped.shape == shape
    assert figures.directions_passed.shape == figures.top_energy.shape == shape[:-2]


def test_input_is_not_changed() -> None:
    X = torch.randn(4, 8)
    before = X.clone()
    spectral_map(X, NEWTON_SCHULZ)
    assert torch.equal(X, before)


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_suppression_multiplies_nothing_to_a_subnormal_number(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmm, baddbmm = torch.bmm, torch.baddbmm
    smallest: list[float] = []

    def note(A: Tensor, B: Tensor) -> None:
        factors = [X.double().abs() for X in (A, B)]
        least = [X[X > 0].min().item() if X.any() else 1.0 for X in factors]
        smallest.append(least[0] * least[1])

    def spy_bmm(A: Tensor, B: Tensor, **options: Tensor) -> Tensor:
        note(A, B)
        return bmm(A, B, **options)

    def spy_baddbmm(C: Tensor, A: Tensor, B: Tensor, **scales: float) -> Tensor:
        note(A, B)
        return baddbmm(C, A, B, **scales)

    monkeypatch.setattr(torch, "bmm", spy_bmm)
    monkeypatch.setattr(torch, "baddbmm", spy_baddbmm)
    torch.manual_seed(0)
    for X in (
        torch.randn(48, 96),  # nothing passes: all of it shrinks
        torch.randn(48, 1) @ torch.randn(1, 96) + 1e-4 * torch.randn(48, 96),  # one passes
        torch.randn(48, 96) * torch.logspace(0, -40, 48).unsqueeze(1),  # tiny from the start
        torch.eye(48, 96) * torch.logspace(0, -40, 48).unsqueeze(1),
    ):
        spectral_map(X, high_pass(0, 5), form=form)
    assert len(smallest) >= 30
    assert min(smallest) >= 0.99 * torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("promotion", [0, 1, 2])
def test_result_holds_no_subnormal_number(promotion: int) -> None:
    mapped = spectral_map(torch.randn(4, 48, 64), high_pass(promotion, 5 - promotion))
    assert not ((mapped != 0) & (mapped.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert spectral_map(torch.randn(4, 8).to(dtype), high_pass()).dtype == dtype


def test_bfloat16_input_is_computed_in_float32_on_a_cpu() -> None:
    X = torch.randn(16, 64).bfloat16()
    exact = spectral_map(X.float(), NEWTON_SCHULZ).bfloat16()
    assert torch.equal(spectral_map(X, NEWTON_SCHULZ), exact)
    rough = spectral_map(X, NEWTON_SCHULZ, precision="bfloat16")
    assert not torch.equal(rough, exact)
    assert relative(rough, exact.double()) < 0.05


@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
@pytest.mark.parametrize("name", sorted(LISTS))
@pytest.mark.parametrize("form", ["direct", "gram"])
def test_float32_rounding_stays_small(name: str, spectrum: str, form: str) -> None:
    # Also the reason for starting the Gram form again: without, polar_express lists fail.
    X = with_spectrum(SPECTRA[spectrum], 96, 384)
    exact = by_svd(X, LISTS[name])
    error = relative(spectral_map(X.float(), LISTS[name], form=form), exact)
    # Chaos multiplies what rounding leaves; nobody should need more of a control.
    assert error < (2e-5 if "high_pass" in name else 2e-2 if name == "kaon" else 1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": torch.ones(3)}, r"\(\.\.\., m, n\)"),
        ({"X": torch.ones(3, 3, dtype=torch.int64)}, "floating-point"),
        ({"X": torch.ones(3, 3, dtype=torch.complex64)}, "floating-point"),
        ({"X": torch.ones(3, 3), "precision": "float8"}, "bfloat16"),
        ({"X": torch.ones(3, 3), "form": "svd"}, "direct or gram"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_map(coefficients=NEWTON_SCHULZ, **arguments)


@pytest.mark.parametrize("steps", [(-1, 4), (1, -2), (0, 0), (1.5, 2)])
def test_impossible_step_counts_are_refused(steps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="steps"):
        high_pass(*steps)


def test_polar_express_needs_a_step() -> None:
    with pytest.raises(ValueError, match="steps >= 1"):
        polar_express(0)
