"""Success of the arms of a comparison suite by suite, where there is more than one."""

from collections.abc import Iterable, Sequence

from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.statistics import format_rate

SuiteRates = dict[str, tuple[int, int]]
"""Successes and scored episodes by suite, in the order of the episodes."""


def suite_rates(records: Iterable[EpisodeRecord]) -> SuiteRates:
    """Count successes and scored episodes of every suite."""
    counts: SuiteRates = {}
    for record in records:
        successes, scored = counts.get(record.suite, (0, 0))
        counts[record.suite] = (successes + record.success, scored + record.scored)
    return counts


def suite_rows(arms: Sequence[tuple[str, SuiteRates]]) -> list[tuple[str, ...]]:
    """A table of rates, its head first; empty where there is one suite or none.

    Args:
        arms: Name and counts of each.
    """
    suites = list(dict.fromkeys(suite for _, counts in arms for suite in counts))
    if len(suites) < 2:
        return []
    rows = [("optimizer", *suites)]
    for name, counts in arms:
        found = [counts.get(suite, (0, 0)) for suite in suites]
        rows.append((name, *(format_rate(k, n) if n else "nothing measured" for k, n in found)))
    return rows
