"""Sampling by strata, and the estimate and interval that follow from it.

A stratum is a set of tasks that are alike (dimension, level, suite). Each gets its share of the
sample, so that the sample has the make-up of the whole; each outcome then counts with the number of
tasks it stands for.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla_opt.evaluation.statistics import format_percent, wilson

_PRIOR = 2.0
"""Episodes that a stratum's group counts for in its standard error."""


@dataclass(frozen=True, kw_only=True)
class StratumCount:
    """Outcomes in one stratum.

    Attributes:
        weight: Share of the estimate, in any unit: the number of tasks it stands for.
        successes: Scored episodes that succeeded.
        scored: Episodes with an outcome.
        group: Strata that are expected to be alike, for example those of one dimension.
    """

    weight: float
    successes: int
    scored: int
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A weighted success rate.

    Attributes:
        rate: Between 0 and 1.
        low: Lower bound of its interval.
        high: Upper bound.
    """

    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        """The rate and its interval in per cent, for example "71.4 % (68.0-74.7)"."""
        return f"{format_percent(self.rate)} % ({self.low * 100:.1f}-{self.high * 100:.1f})"


def estimate(strata: Sequence[StratumCount], confidence: float = 0.95) -> Estimate | None:
    """Return the weighted success rate and an interval that knows how it was sampled.

    The interval is Wilson's at the effective sample size: the number of episodes of a simple random
    sample that would have the same standard error. Strata may have as little as one episode, so
    for the standard error (not for the rate) each is drawn towards the rate of its group, by the
    weight of two episodes; that can only overstate the error where the strata differ. There is no
    finite-population correction: it is an interval for tasks like these, as everywhere in this
    project, and not only for the ones at hand.

    Args:
        strata: Those without a scored episode are left out, their weight goes to the others.
        confidence: Nominal coverage, between 0 and 1.

    Returns:
        None if nothing was scored.

    Source: Korn & Graubard, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data", 1998 (effective sample size); Dean & Pagano,
    "Evaluating confidence interval methods for binomial proportions in clustered surveys", 2015
    (with Wilson's interval).

    >>> parts = [StratumCount(weight=10, successes=k, scored=10) for k in (1, 9)]
    >>> print(estimate(parts))
    50.0 % (34.0-66.0)
    """
    seen = [s for s in strata if s.scored and s.weight > 0]
    if not seen:
        return None
    total = sum(s.weight for s in seen)
    weights = [s.weight / total for s in seen]
    rate = min(sum(w * s.successes / s.scored for w, s in zip(weights, seen, strict=True)), 1.0)
    groups = _group_rates(seen)
    smooth = [_towards(s, groups[s.group]) for s in seen]
    variance = sum(
        w * w * p * (1 - p) / (s.scored * _unbiased(s.scored))
        for w, p, s in zip(weights, smooth, seen, strict=True)
    )
    centre = sum(w * p for w, p in zip(weights, smooth, strict=True))
    effective = centre * (1 - centre) / variance
    low, high = wilson(rate * effective, effective, confidence)
    return Estimate(rate=rate, low=max(low, 0.0), high=min(high, 1.0))  # rounding


def allocate(sizes: Sequence[int], sample: int) -> list[int]:
    """Return how many to draw from each stratum: in proportion, at least one, at most all.

    Args:
        sizes: Tasks of each stratum, all positive.
        sample: How many in total.

    Raises:
        ValueError: Less than one per stratum, or more than there are.

    >>> allocate([50, 30, 20], 10)
    [5, 3, 2]
    """
    if not len(sizes) <= sample <= sum(sizes):
        raise ValueError(
            f"a sample of {sample} from {len(sizes)} strata with {sum(sizes)} tasks: expected "
            f"{len(sizes)} to {sum(sizes)}."
        )
    rest, room = sample - len(sizes), sum(sizes) - len(sizes)
    shares = [rest * (size - 1) / room if room else 0.0 for size in sizes]
    drawn = [1 + math.floor(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (math.floor(shares[i]) - shares[i], i))
    for i in by_remainder[: sample - sum(drawn)]:
        drawn[i] += 1
    return drawn


def draw[T](strata: Mapping[str, Sequence[T]], sample: int, seed: int = 0) -> list[T]:
    """Draw a stratified sample; of two sizes with one seed, the smaller is mostly in the larger.

    Args:
        strata: Name -> members, in an order that does not change.
        sample: How many in total, see `allocate`.
        seed: Another seed draws another sample.

    Raises:
        ValueError: See `allocate`.
    """
    counts = allocate([len(members) for members in strata.values()], sample)
    drawn: list[T] = []
    for (name, members), count in zip(strata.items(), counts, strict=True):
        order = sorted(range(len(members)), key=lambda i: _rank(f"{seed}/{name}/{i}"))
        drawn += [members[i] for i in sorted(order[:count])]
    return drawn


def _group_rates(strata: Sequence[StratumCount]) -> dict[str, float]:
    """Success rate of each group, with half a success and half a failure added."""
    rates = {}
    for group in {s.group for s in strata}:
        members = [s for s in strata if s.group == group]
        scored = sum(s.scored for s in members)
        rates[group] = (sum(s.successes for s in members) + 0.5) / (scored + 1)
    return rates


def _towards(stratum: StratumCount, group_rate: float) -> float:
    return (stratum.successes + _PRIOR * group_rate) / (stratum.scored + _PRIOR)


def _unbiased(n: int) -> float:
    """What p(1 - p) of a rate drawn towards its group's is too small by, if all have that rate."""
    return 1 - n / (n + _PRIOR) ** 2


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
