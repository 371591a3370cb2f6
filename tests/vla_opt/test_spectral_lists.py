"""Coefficient lists: what passes, what vanishes, what lies between."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "plugin"))

from spectral_truth import first_above, with_spectrum

from vla_opt.spectral import (
    CUBIC,
    KAON,
    LOW_PASS,
    PROMOTION,
    SUPPRESSION,
    YOU,
    between,
    high_pass,
    high_pass_at,
    kaon,
    scalar_map,
    spectral_map,
)


def test_family_joins_pion_s_two_maps() -> None:
    assert between(0.0) == SUPPRESSION
    assert between(1.0) == PROMOTION
    for level in (0.1, 0.5, 0.9):
        a, b, c = between(level)
        assert a + b + c == pytest.approx(1.0)  # f(1) = 1
        assert a + 3 * b + 5 * c == pytest.approx(0.0)  # f'(1) = 0
        assert a == pytest.approx((3 + 2 * c) / 2)  # appendix E
        assert b == pytest.approx(-(1 + 4 * c) / 2)
        values = scalar_map(torch.linspace(0, 1, 999, dtype=torch.float64), [(a, b, c)])
        assert (values.diff() > 0).all()


@pytest.mark.parametrize("promotion", [-0.1, 1.1, math.nan])
def test_family_ends_at_its_ends(promotion: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        between(promotion)


@pytest.mark.parametrize(("share", "steps"), [(0.5, 5), (0.242, 5), (0.1, 5), (0.03, 6), (0.3, 3)])
def test_high_pass_at_passes_what_holds_that_share(share: float, steps: int) -> None:
    coefficients = high_pass_at(share, steps)
    assert len(coefficients) == steps
    assert first_above(0.5, coefficients) ** 2 == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("promotion", range(1, 5))
def test_high_pass_at_meets_the_lists_of_whole_steps(promotion: int) -> None:
    whole = high_pass(promotion, 5 - promotion)
    share = first_above(0.5, whole) ** 2
    torch.testing.assert_close(torch.tensor(high_pass_at(share)), torch.tensor(whole),
                               rtol=0, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize(("share", "steps"), [(0.9, 5), (1e-5, 5), (0.01, 1), (0.1, 0)])
def test_share_out_of_reach_is_refused(share: float, steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        high_pass_at(share, steps)


def test_low_pass_drops_what_high_pass_keeps() -> None:
    passed = scalar_map(torch.linspace(0.05, 0.5, 500, dtype=torch.float64), LOW_PASS)
    stopped = scalar_map(torch.linspace(0.75, 1.0, 500, dtype=torch.float64), LOW_PASS)
    assert (passed - 1).abs().max() < 0.03
    assert stopped.abs().max() < 0.01
    spectrum = torch.tensor([0.9] + [0.2] * 4, dtype=torch.float64)
    mapped = torch.linalg.svdvals(spectral_map(with_spectrum(spectrum, 8, 9), LOW_PASS))
    torch.testing.assert_close(mapped, torch.tensor([1.0] * 4 + [0.0] * 4).double(),
                               rtol=0, atol=0.02)  # fmt: skip


def test_kaon_is_bounded_and_uneven() -> None:
    values = scalar_map(torch.linspace(0, 1, 4001, dtype=torch.float64), KAON)
    assert values.min() >= 0.0
    assert values.max() <= 1.0
    before = 1.175 * values  # the figures of the iteration itself
    assert (before.mean().item(), before.std().item()) == pytest.approx((0.56, 0.40), abs=0.01)
    with pytest.raises(ValueError, match="steps >= 1"):
        kaon(0)


def test_lists_of_muon_bring_singular_values_near_one() -> None:
    sigma = torch.logspace(-1.5, 0, 2000, dtype=torch.float64)
    for coefficients, most in ((YOU, 0.25), (CUBIC, 0.35)):
        assert (scalar_map(sigma, coefficients) - 1).abs().max() < most
