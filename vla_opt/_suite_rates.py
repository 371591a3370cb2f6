"""Success of the arms of a comparison suite by suite, where there is more than one."""

from collections.abc import Sequence

from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.evaluation.statistics import format_rate
from vla_opt.evaluation.tables import success_table

NOTHING = "nothing measured"
"""In place of a rate without episodes."""


def suite_rows(arms: Sequence[tuple[str, Sequence[EpisodeRecord]]]) -> list[tuple[str, ...]]:
    """A table of rates, its head first; empty where there is one suite or none.

    Args:
        arms: Name and episodes of each. The suites stand in the order of the episodes.
    """
    suites = list(dict.fromkeys(record.suite for _, records in arms for record in records))
    if len(suites) < 2:
        return []
    rows = [("optimizer", *suites)]
    for name, records in arms:
        counts = [row for row in success_table(records).suites if row.scored]
        rates = {row.suite: format_rate(row.successes, row.scored) for row in counts}
        rows.append((name, *(rates.get(suite, NOTHING) for suite in suites)))
    return rows
