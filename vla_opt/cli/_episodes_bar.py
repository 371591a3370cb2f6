"""The bar over the episodes of an evaluation: running k/n, its interval, errors, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vla_opt.cli._progress import Bars

if TYPE_CHECKING:
    from vla_opt.evaluation.runner import EvalProgress


@contextmanager
def episodes_bar(title: str) -> Iterator[Callable[[EvalProgress], None]]:
    """Give what `evaluate` may tell its progress to; the bar appears with the first episode."""
    from vla_opt.evaluation.statistics import wilson

    def told(now: EvalProgress) -> None:
        low, high = wilson(now.successes, now.scored)
        note = f"95 % CI {100 * low:.0f}-{100 * high:.0f} %"
        bar = bars.get(title, now.total, initial=now.resumed, unit="episodes")
        bar.seed_counts(now.successes, now.scored)
        bar.advance_to(now.done, note=f"{note}, {now.errors} errors" if now.errors else note)

    with Bars() as bars:
        yield told
