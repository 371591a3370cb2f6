"""A work pool whose workers stay between one list of items and the next."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from envs._ray_pool import RayPool
from envs._serial_pool import run_serial
from envs.pool import Outcome, Worker


class StandingPool(Protocol):
    """Runs lists of items, one after the other."""

    def __call__(self, items: Iterable[Any]) -> Generator[Outcome]:
        """Yield one outcome per item; exhaust it before the next list."""


@contextlib.contextmanager
def standing_pool(
    make_worker: Callable[[], Worker],
    *,
    ray: Any = None,
    num_workers: int = 2,
    affinity: Callable[[Any], Hashable] = lambda item: None,
    timeout_s: float = 600.0,
    max_retries: int = 2,
    worker_env: Mapping[str, str] | None = None,
    start_timeout_s: float = 300.0,
    wait_for: Callable[[], None] | None = None,
) -> Iterator[StandingPool]:
    """Give a pool with the promises of `envs.pool.run_pool`, whose workers outlive a list of items.

    A simulator takes tens of seconds to build; a learner that asks for episodes again and again
    would pay them each time.

    Args:
        make_worker: see `run_pool`.
        ray: the initialised module, see `envs._ray_cluster.ray_cluster`; None: one worker in this
            process.
        num_workers: see `run_pool`.
        affinity: see there.
        timeout_s: see there.
        max_retries: see there.
        worker_env: see there.
        start_timeout_s: see there.
        wait_for: see there; it is waited for once, in the first list.
    """
    waits = iter((wait_for,))
    if ray is None:
        worker = _Kept(make_worker)

        def here(items: Iterable[Any]) -> Generator[Outcome]:
            if (wait := next(waits, None)) is not None:
                wait()
            return run_serial(items, worker.lend, affinity=affinity, max_retries=max_retries)

        try:
            yield here
        finally:
            worker.end()
        return
    pool = _StandingRayPool(
        make_worker,
        num_workers=num_workers,
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
        max_retries=max_retries,
        worker_env=worker_env or {},
    )
    pool.use(ray)

    def there(items: Iterable[Any]) -> Generator[Outcome]:
        return pool.work_off(items, affinity, next(waits, None))

    try:
        yield there
    finally:
        pool.end()


class _StandingRayPool(RayPool):
    """The Ray pool without its end."""

    def use(self, ray: Any) -> None:
        """Work on this cluster."""
        self._ray = ray

    def end(self) -> None:
        """End the workers."""
        try:
            self._close_idle()
        finally:
            for slot in self._slots:
                self._kill(slot)


class _Kept:
    """One worker in this process, lent to one list of items after the other.

    The serial pool closes what it was given: after a failure, because what the worker holds may be
    the reason, and at the end of a list, where it is only given back.
    """

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker
        self._worker: Worker | None = None
        self._failed = False

    def lend(self) -> Worker:
        """Return the worker, a new one if there is none."""
        self._worker = self._worker or self._make_worker()
        return self

    def run(self, item: Any) -> Any:
        """Turn one item into a result."""
        assert self._worker is not None
        self._failed = True
        result = self._worker.run(item)
        self._failed = False
        return result

    def close(self) -> None:
        """End the worker after a failure; otherwise keep it for the next list."""
        if self._failed:
            self.end()

    def end(self) -> None:
        """End the worker."""
        worker, self._worker, self._failed = self._worker, None, False
        if worker is not None:
            worker.close()
