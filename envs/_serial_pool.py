"""The pool without processes: one worker, here and now."""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable
from typing import Any

from envs._backlog import Backlog
from envs.pool import Outcome, PoolError, Worker

logger = logging.getLogger(__name__)


def run_serial(
    items: Iterable[Any],
    make_worker: Callable[[], Worker],
    *,
    affinity: Callable[[Any], Hashable],
    max_retries: int,
) -> Generator[Outcome]:
    """Yield one `Outcome` per item; see `envs.pool.run_pool`."""
    backlog = Backlog(items, affinity)
    group: Hashable = object()
    worker: Worker | None = None
    try:
        while (entry := backlog.take(group, Counter())) is not None:
            group = entry.group
            worker = worker or _start(make_worker, max_retries)
            try:
                result = worker.run(entry.item)
            except Exception:
                error = traceback.format_exc()
                logger.warning("%s failed (attempt %d):\n%s", entry.item, entry.retries + 1, error)
                _close(worker)  # what it holds may be the reason
                worker = None
                if entry.retries >= max_retries:
                    yield Outcome(item=entry.item, error=error, retries=entry.retries)
                else:
                    entry.retries += 1
                    backlog.put(entry)
                continue
            yield Outcome(item=entry.item, result=result, retries=entry.retries)
    finally:
        if worker is not None:
            _close(worker)


def _start(make_worker: Callable[[], Worker], max_retries: int) -> Worker:
    for attempt in range(max_retries + 1):
        try:
            return make_worker()
        except Exception as error:
            logger.warning("a worker could not be started (attempt %d): %r", attempt + 1, error)
            cause = error
    raise PoolError(
        f"No worker could be started in {max_retries + 1} attempts: {cause!r}"
    ) from cause


def _close(worker: Worker) -> None:
    try:
        worker.close()
    except Exception as error:
        logger.warning("a worker did not close cleanly: %r", error)
