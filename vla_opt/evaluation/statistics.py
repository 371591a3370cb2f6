"""Intervals and tests for success rates, exact and without dependencies.

A success rate is `k` of `n` with a Wilson interval; two policies are compared on the same episodes
with McNemar's exact test; several comparisons at once are corrected with Holm's procedure.

The interval and the test treat the episodes as independent draws for one trained policy. They do
not cover what another training seed would have given: for that, train with several seeds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from vla_opt.evaluation.records import EpisodeRecord, Key


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    Unlike k/n plus or minus two standard errors it stays inside [0, 1] and does not collapse to a
    point at 0 or n successes.

    Args:
        k: Successes.
        n: Trials; with 0 trials nothing is known and the interval is (0, 1). Effective sample sizes
            need not be whole.
        confidence: Nominal coverage, between 0 and 1.

    Raises:
        ValueError: Not 0 <= k <= n, or the confidence is not between 0 and 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    >>> [round(bound, 4) for bound in wilson(19, 20)]
    [0.7639, 0.9911]
    """
    if not 0 <= k <= n:
        raise ValueError(f"wilson(k={k}, n={n}): expected 0 <= k <= n.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, e.g. 0.95.")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = k + z * z / 2
    half_width = z * math.sqrt(k * (n - k) / n + z * z / 4)
    low = 0.0 if k == 0 else (centre - half_width) / (n + z * z)
    high = 1.0 if k == n else (centre + half_width) / (n + z * z)
    return low, high


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Under the null hypothesis each of the `b + c` episodes on which two policies disagree is won by
    either with probability one half; episodes on which they agree say nothing about a difference.

    Args:
        b: Episodes that only the first policy solved.
        c: Episodes that only the second policy solved.

    Raises:
        ValueError: A count is negative.

    >>> mcnemar(18, 0) == 2 / 2**18
    True
    """
    if b < 0 or c < 0:
        raise ValueError(f"mcnemar(b={b}, c={c}): counts cannot be negative.")
    n = b + c
    tail = sum(math.comb(n, i) for i in range(min(b, c) + 1))
    return float(min(1.0, 2 * tail / 2**n))  # integers of any size: exact up to the last division


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for having made several comparisons, in the order given.

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at
    most alpha, whatever the dependence between the comparisons.

    Raises:
        ValueError: A value is not a probability.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if any(not 0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"holm({list(p_values)}): expected probabilities between 0 and 1.")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def format_percent(share: float) -> str:
    """Return a share as a percentage with one decimal, without a sign.

    "100.0" and "0.0" are kept for exactly all and exactly none: 1999/2000 is "99.9".
    """
    tenths = round(share * 1000)
    if tenths >= 1000 and share < 1.0:
        tenths = 999
    if tenths <= 0 and share > 0.0:
        tenths = 1
    return f"{tenths / 10:.1f}"


def format_rate(k: int, n: int, confidence: float = 0.95) -> str:
    """Return a success rate as every text of this project states it.

    >>> format_rate(19, 20)
    '19/20 (95.0 %, 95 % CI 76.4-99.1)'
    """
    if n == 0:
        return "0/0 (nothing measured)"
    low, high = wilson(k, n, confidence)
    return (
        f"{k}/{n} ({format_percent(k / n)} %, {confidence * 100:g} % CI "
        f"{_bound(low)}-{_bound(high)})"
    )


def format_p(p: float) -> str:
    """Return a p-value for reading, for example "p = 0.0313" or "p < 1e-6"."""
    return "p < 1e-6" if p < 1e-6 else f"p = {p:.3g}"


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two policies on the same episodes.

    Attributes:
        n: Matched episodes, scored for both.
        both: Solved by both.
        only_a: Solved by the first alone.
        only_b: Solved by the second alone.
        neither: Solved by none.
        p: Exact two-sided McNemar p-value.
        unmatched_a: Scored episodes of the first without a scored partner; not used.
        unmatched_b: The same for the second.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    unmatched_a: int = 0
    unmatched_b: int = 0

    @property
    def difference(self) -> float:
        """Success rate of the first minus that of the second, on the matched episodes."""
        return (self.only_a - self.only_b) / self.n

    def describe(self, name_a: str, name_b: str, *, alpha: float = 0.05) -> str:
        """Say what was found; "better" is used only where p is at most `alpha`."""
        if self.p <= alpha:
            first, second = (name_a, name_b) if self.difference > 0 else (name_b, name_a)
            finding = f"{first} is better than {second}"
        else:
            finding = f"no difference shown between {name_a} and {name_b}"
        unused = self.unmatched_a + self.unmatched_b
        return (
            f"{finding}: {name_a} {self.both + self.only_a}/{self.n}, "
            f"{name_b} {self.both + self.only_b}/{self.n} on the same episodes "
            f"({self.only_a} solved by {name_a} alone, {self.only_b} by {name_b} alone; "
            f"McNemar {format_p(self.p)})"
            + (f"; {unused} episodes without a partner not used" if unused else "")
        )


def paired_comparison(
    records_a: Iterable[EpisodeRecord], records_b: Iterable[EpisodeRecord]
) -> PairedComparison:
    """Compare two policies on the episodes that were scored for both.

    Episodes are matched by (suite, task, initial state, trial). Errors are no outcome of a policy
    and match nothing; how many scored episodes found no partner is returned.

    Raises:
        ValueError: No episode matches; matched episodes were not the same experiment (their seeds
            or rendering differ); or one set scored an episode twice, as records of several trained
            policies do: compare those one by one, then `pool_comparisons`.
    """
    scored_a, scored_b = _scored(records_a), _scored(records_b)
    keys = [key for key in scored_a if key in scored_b]
    if not keys:
        raise ValueError(
            f"No episode in common: {len(scored_a)} scored in the first set, {len(scored_b)} in "
            "the second. Evaluate both on the same suites, tasks and initial states."
        )
    for key in keys:
        _check_same_experiment(scored_a[key], scored_b[key])
    pairs = [(scored_a[key].success, scored_b[key].success) for key in keys]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    return PairedComparison(
        n=len(pairs),
        both=pairs.count((True, True)),
        only_a=only_a,
        only_b=only_b,
        neither=pairs.count((False, False)),
        p=mcnemar(only_a, only_b),
        unmatched_a=len(scored_a) - len(pairs),
        unmatched_b=len(scored_b) - len(pairs),
    )


def pool_comparisons(comparisons: Sequence[PairedComparison]) -> PairedComparison:
    """Add up comparisons of the same two recipes, for example one per training seed.

    The pooled p-value speaks about these trained policies. It treats all pairs as independent,
    which the episodes of one training seed are not: state the seeds one by one beside it.

    Raises:
        ValueError: Nothing to pool.
    """
    if not comparisons:
        raise ValueError("pool_comparisons([]): give at least one comparison.")
    total: Mapping[str, int] = {
        name: sum(getattr(comparison, name) for comparison in comparisons)
        for name in ("n", "both", "only_a", "only_b", "neither", "unmatched_a", "unmatched_b")
    }
    return PairedComparison(**total, p=mcnemar(total["only_a"], total["only_b"]))


def _scored(records: Iterable[EpisodeRecord]) -> dict[Key, EpisodeRecord]:
    scored: dict[Key, EpisodeRecord] = {}
    for record in records:
        if not record.scored:
            continue
        if record.key in scored:
            raise ValueError(
                f"Episode {record.label} is scored twice in one set. Give the records of one "
                "trained policy at a time, and pool_comparisons() of the results."
            )
        scored[record.key] = record
    return scored


def _check_same_experiment(a: EpisodeRecord, b: EpisodeRecord) -> None:
    for name in ("seed", "render_profile"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(
                f"Episode {a.label}: {name} is {getattr(a, name)!r} in the first set and "
                f"{getattr(b, name)!r} in the second, so they are not the same episode. "
                "Evaluate both with the same settings."
            )


def _bound(share: float) -> str:
    return f"{share * 100:.1f}"
