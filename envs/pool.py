"""A work pool that loses no item: dead, hung and crashing workers are replaced.

Generic on purpose: evaluation episodes, demonstrations and rollouts for reinforcement learning are
all lists of picklable items, each of which some expensive worker (a simulator) turns into a result.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Backend = Literal["serial", "ray"]
BACKENDS: tuple[str, ...] = ("serial", "ray")


class Worker(Protocol):
    """What the pool needs of a worker."""

    def run(self, item: Any) -> Any:
        """Turn one item into a result."""

    def close(self) -> None:
        """Free what the worker holds."""


class PoolError(RuntimeError):
    """The pool cannot work at all: no worker could be started. No item is to blame."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one item.

    Attributes:
        item: the item as it was given.
        result: what `Worker.run` returned; None if every attempt failed.
        error: None on success, else why the last attempt failed (readable, several lines).
        retries: how many attempts failed before this outcome.
        worker: slot of the worker that ended it, 0..num_workers-1. Must never influence the result.
    """

    item: Any
    result: Any = None
    error: str | None = None
    retries: int = 0
    worker: int = 0


def run_pool(
    items: Iterable[Any],
    make_worker: Callable[[], Worker],
    *,
    backend: Backend = "ray",
    num_workers: int = 2,
    affinity: Callable[[Any], Hashable] = lambda item: None,
    timeout_s: float = 600.0,
    max_retries: int = 2,
    worker_env: Mapping[str, str] | None = None,
    start_timeout_s: float = 300.0,
    wait_for: Callable[[], None] | None = None,
) -> Generator[Outcome]:
    """Run every item exactly once to an `Outcome`, yielded as they finish (any order).

    A worker that dies (SIGKILL, out of memory, segmentation fault), exceeds `timeout_s`, or raises
    is replaced by a fresh one and its item runs again; after `max_retries` further attempts the
    item ends with `Outcome.error`. A constructor that fails is tried again too, but blames no item:
    after `max_retries` further failures in a row the pool stops. Attempts are at-least-once,
    outcomes exactly once: an item must give the same result whenever and wherever it runs.

    Close the iterator or exhaust it to free the workers: `with contextlib.closing(run_pool(...))`.

    Args:
        items: what to run. With backend "ray" they are pickled, and so are the results.
        make_worker: builds a worker inside its process; must be cloudpickle-able.
        backend: "serial" runs in this process, without Ray. It cannot survive a crash nor stop a
            hang: `timeout_s` and `worker_env` do not apply. Same results otherwise.
        num_workers: processes, one CPU each ("ray"); ignored by "serial".
        affinity: items of one group stay with one worker as long as possible, so that an expensive
            state (a compiled scene) is built once.
        timeout_s: wall seconds for one attempt at one item.
        max_retries: attempts after the first one.
        worker_env: environment variables set before the worker's first import. Thread counts are 1
            unless given here.
        start_timeout_s: wall seconds for a worker to be constructed.
        wait_for: returns when items can be run, for example when a policy is loaded. Meanwhile the
            workers are constructed, and prepare for their first items if they have a method
            `prepare(item)`; where that fails, `run` is what is blamed. What `wait_for` raises ends
            the pool.

    Raises:
        ValueError: bad arguments.
        PoolError: no worker could be started.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown. Valid: {', '.join(BACKENDS)}.")
    for name, value, least in (("num_workers", num_workers, 1), ("max_retries", max_retries, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    for name, seconds in (("timeout_s", timeout_s), ("start_timeout_s", start_timeout_s)):
        if not seconds > 0:
            raise ValueError(f"{name} must be positive, got {seconds}.")
    if backend == "serial":
        from envs._serial_pool import run_serial

        if wait_for is not None:
            wait_for()
        return run_serial(items, make_worker, affinity=affinity, max_retries=max_retries)
    from envs._ray_pool import RayPool

    pool = RayPool(
        make_worker,
        num_workers=num_workers,
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
        max_retries=max_retries,
        worker_env=worker_env or {},
    )
    return pool.run(items, affinity, wait_for)
