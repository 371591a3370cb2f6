"""Intervals and tests agree with published values, with scipy, and with brute force."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vla_opt.evaluation import (
    EpisodeRecord,
    PairedComparison,
    format_rate,
    holm,
    mcnemar,
    paired_comparison,
    pool_comparisons,
    wilson,
)
from vla_opt.evaluation.statistics import format_percent

counts = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_newcombes_published_intervals(
    k: int, n: int, low: float, high: float
) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(counts.filter(lambda kn: kn[1] > 0), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(kn: tuple[int, int], confidence: float) -> None:
    expected = stats.binomtest(*kn).proportion_ci(confidence, method="wilson")
    assert wilson(*kn, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(counts)
def test_wilson_is_symmetric_contains_the_rate_and_stays_in_the_unit_interval(
    kn: tuple[int, int],
) -> None:
    k, n = kn
    low, high = wilson(k, n)
    assert 0 <= low <= high <= 1
    assert n == 0 or low <= k / n <= high
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_covers_at_the_nominal_rate_on_average() -> None:
    """Exact coverage, summed over the binomial distribution, not simulated."""
    n, rates = 50, [i / 100 for i in range(5, 100, 5)]
    covered = [
        sum(
            stats.binom.pmf(k, n, rate)
            for k in range(n + 1)
            if wilson(k, n)[0] <= rate <= wilson(k, n)[1]
        )
        for rate in rates
    ]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= k <= n"):
        wilson(k, n)


def test_impossible_confidence_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson(1, 2, 95)


@given(st.integers(0, 120), st.integers(0, 120))
def test_mcnemar_equals_scipys_exact_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_equals_counting_all_sign_patterns() -> None:
    for b, c in itertools.product(range(5), repeat=2):
        patterns = list(itertools.product((0, 1), repeat=b + c))
        extreme = [p for p in patterns if abs(2 * sum(p) - (b + c)) >= abs(b - c)]
        assert mcnemar(b, c) == pytest.approx(len(extreme) / len(patterns))


def test_mcnemar_is_exact_for_benchmark_sized_counts() -> None:
    assert mcnemar(5200, 5000) == pytest.approx(stats.binomtest(5200, 10200).pvalue, rel=1e-9)
    assert mcnemar(3000, 0) == pytest.approx(0.0, abs=1e-300)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)


def test_holm_gives_the_textbook_adjustment_in_the_order_given() -> None:
    assert holm([0.02, 0.005, 0.04, 0.03]) == pytest.approx([0.06, 0.02, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps: list[float], alpha: float) -> None:
    rejected = set()
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        if min(1.0, (len(ps) - rank) * ps[index]) > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(ps)) if p <= alpha} == rejected


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, math.nan])


def test_rates_are_stated_with_count_percentage_and_interval() -> None:
    assert format_rate(19, 20) == "19/20 (95.0 %, 95 % CI 76.4-99.1)"
    assert format_rate(0, 0) == "0/0 (nothing measured)"
    assert format_rate(5, 10, 0.9) == "5/10 (50.0 %, 90 % CI 26.9-73.1)"


def test_only_all_is_one_hundred_percent_and_only_none_is_zero() -> None:
    assert [format_percent(x) for x in (1.0, 1999 / 2000, 1 / 3000, 0.0, 0.95)] == [
        "100.0",
        "99.9",
        "0.1",
        "0.0",
        "95.0",
    ]


def episodes(outcomes: str, **changes: Any) -> list[EpisodeRecord]:
    """One record per letter: s(uccess), f(ailure), e(rror), - (not run)."""
    names = {"s": "success", "f": "failure", "e": "error"}
    return [
        EpisodeRecord(
            **{
                "suite": "libero_goal",
                "task_id": 1,
                "init_state": i,
                "seed": i,
                "outcome": names[letter],
                "success": letter == "s",
                "steps": 9,
                "wall_s": 1.0,
                "cpu_s": 1.0,
                "error": "lost" if letter == "e" else None,
                **changes,
            }
        )
        for i, letter in enumerate(outcomes)
        if letter != "-"
    ]


def test_comparison_counts_each_kind_of_pair() -> None:
    result = paired_comparison(episodes("ssssffffs"), episodes("sfffsfffs"))
    assert result == PairedComparison(
        n=9, both=2, only_a=3, only_b=1, neither=3, p=mcnemar(3, 1), unmatched_a=0, unmatched_b=0
    )
    assert result.difference == pytest.approx(2 / 9)


def test_only_identical_scored_episodes_are_compared_and_the_rest_is_counted() -> None:
    result = paired_comparison(episodes("sse-fs"), episodes("sfsse-"))
    assert (result.n, result.both, result.only_a) == (2, 1, 1)
    assert (result.unmatched_a, result.unmatched_b) == (2, 2)
    assert "4 episodes without a partner not used" in result.describe("a", "b")


def test_comparison_does_not_depend_on_the_order_of_rows() -> None:
    a, b = episodes("ssfsf"), episodes("sfffs")
    assert paired_comparison(a[::-1], b) == paired_comparison(a, b)


def test_comparison_without_a_common_episode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"No episode in common: 2 scored .* 1 in the second"):
        paired_comparison(episodes("ss"), episodes("--s"))


@pytest.mark.parametrize("changes", [{"seed": 77}, {"render_profile": "fast"}])
def test_comparison_across_different_experiments_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not the same episode"):
        paired_comparison(episodes("ss"), episodes("sf", **changes))


def test_several_trained_policies_in_one_set_are_refused() -> None:
    with pytest.raises(ValueError, match="scored twice"):
        paired_comparison(episodes("ss") + episodes("sf"), episodes("ss"))


def test_better_is_said_only_beside_a_small_p() -> None:
    clear = paired_comparison(episodes("s" * 20), episodes("s" * 8 + "f" * 12))
    assert clear.describe("pion", "adamw").startswith(
        "pion is better than adamw: pion 20/20, adamw 8/20"
    )
    flipped = paired_comparison(episodes("f" * 12), episodes("s" * 12))
    assert flipped.describe("pion", "adamw").startswith("adamw is better than pion")
    unclear = paired_comparison(episodes("sss"), episodes("sff")).describe("pion", "adamw")
    assert "better" not in unclear
    assert "p = 0.5" in unclear


def test_pooling_adds_pairs_and_tests_the_sum() -> None:
    seeds = [
        paired_comparison(episodes("ssss"), episodes("sfff")),
        paired_comparison(episodes("ssfe"), episodes("sfff")),
    ]
    pooled = pool_comparisons(seeds)
    assert (pooled.n, pooled.only_a, pooled.only_b, pooled.unmatched_b) == (7, 4, 0, 1)
    assert pooled.p == mcnemar(4, 0) == pytest.approx(0.125)
    with pytest.raises(ValueError, match="at least one"):
        pool_comparisons([])
