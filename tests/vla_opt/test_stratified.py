"""A stratified sample has the make-up of the whole, and its interval covers what it says."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vla_opt.evaluation.statistics import wilson
from vla_opt.evaluation.stratified import StratumCount, allocate, draw, estimate

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@settings(deadline=None)
@given(SIZES, st.data())
def test_every_stratum_gets_one_at_least_and_all_at_most(sizes, data):
    sample = data.draw(st.integers(len(sizes), sum(sizes)))
    drawn = allocate(sizes, sample)
    assert sum(drawn) == sample
    assert all(1 <= n <= size for n, size in zip(drawn, sizes, strict=True))


def test_shares_are_proportional():
    assert allocate([500, 300, 200], 100) == [50, 30, 20]


@pytest.mark.parametrize("sample", [1, 61])
def test_impossible_samples_are_refused(sample):
    with pytest.raises(ValueError, match=f"sample of {sample}"):
        allocate([10, 20, 30], sample)


def test_the_same_seed_draws_the_same_and_another_seed_others():
    strata = {"a": list(range(100)), "b": list(range(1000, 1300))}
    drawn = draw(strata, 40, seed=1)
    assert drawn == draw(strata, 40, seed=1)
    assert len(set(drawn)) == 40
    assert sum(task < 1000 for task in drawn) == 10
    assert drawn != draw(strata, 40, seed=2)


def test_a_larger_sample_continues_a_smaller_one():
    strata = {"a": list(range(100)), "b": list(range(1000, 1300))}
    assert set(draw(strata, 40)) <= set(draw(strata, 80))


def test_rate_weighs_strata_by_what_they_stand_for():
    counts = [
        StratumCount(weight=90, successes=1, scored=10),
        StratumCount(weight=10, successes=10, scored=10),
        StratumCount(weight=500, successes=0, scored=0),
    ]
    found = estimate(counts)
    assert found is not None
    assert found.rate == pytest.approx(0.9 * 0.1 + 0.1 * 1.0)


def test_nothing_scored_is_no_estimate():
    assert estimate([StratumCount(weight=1, successes=0, scored=0)]) is None
    assert estimate([]) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(1, 9)), min_size=1))
@example([(11, 2, 2), (45, 3, 3)])  # rounding once took it above one
def test_interval_holds_the_rate_and_stays_between_nothing_and_all(rows):
    counts = [StratumCount(weight=w, successes=min(k, n), scored=n) for w, k, n in rows]
    found = estimate(counts)
    assert found is not None
    assert 0 <= found.low <= found.rate + 1e-9
    assert found.rate - 1e-9 <= found.high <= 1
    assert found.high > found.low


def test_one_large_stratum_has_nearly_wilsons_interval():
    found = estimate([StratumCount(weight=3, successes=150, scored=200)])
    assert found is not None
    assert (found.low, found.high) == pytest.approx(wilson(150, 200), abs=2e-3)


def test_strata_that_differ_make_the_interval_narrower_than_that_of_a_simple_sample():
    counts = [StratumCount(weight=1, successes=k, scored=20) for k in (1, 19) * 5]
    found = estimate(counts)
    assert found is not None
    low, high = wilson(100, 200)
    assert found.high - found.low < 0.75 * (high - low)


@pytest.mark.parametrize("kind", ["alike", "spread", "high"])
def test_interval_covers_the_truth_as_often_as_it_says(kind):
    rng = random.Random(7)
    sizes = [rng.randint(10, 120) for _ in range(60)]
    rates = {
        "alike": [0.5] * 60,
        "spread": [rng.random() for _ in range(60)],
        "high": [0.97] * 60,
    }[kind]
    truth = sum(s * p for s, p in zip(sizes, rates, strict=True)) / sum(sizes)
    drawn = allocate(sizes, 150)
    repeats, covered = 300, 0
    for _ in range(repeats):
        counts = [
            StratumCount(weight=s, successes=sum(rng.random() < p for _ in range(n)), scored=n)
            for s, p, n in zip(sizes, rates, drawn, strict=True)
        ]
        found = estimate(counts)
        assert found is not None
        covered += found.low <= truth <= found.high
    noise = 3 * math.sqrt(0.95 * 0.05 / repeats)
    assert covered / repeats > 0.95 - noise
