"""Statistics over seeds, against definitions written out."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_opt.evaluation.bootstrap import bootstrap_mean, sign_flip

SHARES = st.integers(0, 20).map(lambda k: k / 20)


def test_interval_of_three_seeds_is_that_of_all_27_resamples() -> None:
    values = [0.2, 0.5, 0.9]
    means = sorted(np.mean(drawn) for drawn in itertools.product(values, repeat=3))
    assert len(means) == 27
    assert bootstrap_mean(values, 0.8) == pytest.approx((means[2], means[24]))  # 2.7 of 27 cut off
    assert bootstrap_mean(values) == pytest.approx((0.2, 0.9))


@settings(deadline=None, max_examples=30)
@given(st.lists(SHARES, min_size=1, max_size=5))
def test_interval_holds_the_mean_and_stays_among_the_values(values: list[float]) -> None:
    low, high = bootstrap_mean(values)
    assert min(values) - 1e-9 <= low <= np.mean(values) + 1e-9
    assert np.mean(values) - 1e-9 <= high <= max(values) + 1e-9


def test_many_seeds_come_near_the_normal_interval_and_repeat() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 60).tolist()
    low, high = bootstrap_mean(values)
    half = 1.96 * np.std(values) / np.sqrt(60)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=4e-3)
    assert bootstrap_mean(values) == (low, high)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    values = [0.1, 0.3, 0.4, 0.8]
    wide, narrow = bootstrap_mean(values, 0.95), bootstrap_mean(values, 0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=6))
def test_sign_flip_counts_the_flips_that_are_as_extreme(tenths: list[int]) -> None:
    flips = itertools.product((1, -1), repeat=len(tenths))
    sums = [abs(sum(s * d for s, d in zip(signs, tenths, strict=True))) for signs in flips]
    expected = Fraction(sum(one >= abs(sum(tenths)) for one in sums), len(sums))
    assert sign_flip([d / 20 for d in tenths]) == float(expected)


def test_five_seeds_can_never_show_a_difference_at_five_per_cent() -> None:
    assert sign_flip([1.0] * 5) == 2 / 2**5 > 0.05
    assert sign_flip([1.0] * 6) < 0.05


@pytest.mark.parametrize("call", [lambda: bootstrap_mean([]), lambda: sign_flip([])])
def test_nothing_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="expected one"):
        call()
