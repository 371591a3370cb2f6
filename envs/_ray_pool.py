"""The pool on Ray actors, with its own loop over `ray.wait`.

Ray's own `ActorPool` stops at the first dead actor, and `max_restarts` knows neither hangs nor
items that kill every worker; hence the loop here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs._backlog import Backlog, Entry
from envs._ray_cluster import ray_cluster
from envs.pool import Outcome, PoolError, Worker

logger = logging.getLogger(__name__)

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_POLL_S = 1.0  # how long a missed deadline can go unnoticed
_CLOSE_S = 10.0  # a polite end for idle workers, before they are killed
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
# on a cluster the workers do not inherit this process's choice of renderer and assets
_PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LIBERO_CONFIG_PATH")


class _Host:
    """The actor: a worker in its own process."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._worker = make_worker()

    def ready(self) -> int:
        return os.getpid()

    def prepare(self, item: Any) -> None:
        prepare = getattr(self._worker, "prepare", None)
        if prepare is not None:
            with contextlib.suppress(Exception):  # `run` meets it again, and tells
                prepare(item)

    def run(self, item: Any) -> Any:
        return self._worker.run(item)

    def close(self) -> None:
        self._worker.close()


@dataclass
class _Slot:
    """One place for a worker; `pending` is the call it owes us (None: idle)."""

    index: int
    actor: Any = None
    pid: int | None = None  # None until the constructor has returned
    pending: Any = None
    deadline: float = 0.0
    entry: Entry | None = None
    group: Hashable = None


class RayPool:
    """See `envs.pool.run_pool` for the arguments and the promises."""

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        *,
        num_workers: int,
        timeout_s: float,
        start_timeout_s: float,
        max_retries: int,
        worker_env: Mapping[str, str],
    ) -> None:
        self._make_worker = make_worker
        self._slots = [_Slot(index=i) for i in range(num_workers)]
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._max_retries = max_retries
        inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._env = {**_ONE_THREAD, **inherited, **worker_env}
        self._failed_starts = 0  # in a row

    def run(
        self,
        items: Iterable[Any],
        affinity: Callable[[Any], Hashable],
        wait_for: Callable[[], None] | None = None,
    ) -> Generator[Outcome]:
        """Yield one `Outcome` per item."""
        items = list(items)
        if not items:
            return
        with ray_cluster(num_cpus=len(self._slots)) as self._ray:
            try:
                yield from self.work_off(items, affinity, wait_for)
                self._close_idle()
            finally:
                for slot in self._slots:
                    self._kill(slot)

    def work_off(
        self,
        items: Iterable[Any],
        affinity: Callable[[Any], Hashable],
        wait_for: Callable[[], None] | None,
    ) -> Generator[Outcome]:
        """Yield one `Outcome` per item; the cluster is there, and workers stay."""
        self._backlog = Backlog(items, affinity)
        if wait_for is not None:
            self._start_while(wait_for)
        while self._assign():
            yield from self._collect()

    def _start_while(self, wait_for: Callable[[], None]) -> None:
        """Let the workers start and prepare while something else gets ready."""
        self._assign()
        for slot in self._slots:
            if slot.actor is not None:
                entry = self._backlog.look(None, self._groups_beside(slot))
                assert entry is not None
                slot.group = entry.group
                slot.actor.prepare.remote(entry.item)  # the item's `run` queues up behind it
        wait_for()
        for slot in self._slots:  # nobody looked meanwhile whether they are ready
            slot.deadline = time.monotonic() + self._start_timeout_s

    # -- giving out work ------------------------------------------------------------------------

    def _assign(self) -> bool:
        """Start workers and hand out items; False when nothing is left to wait for."""
        for slot in self._slots:
            if slot.pending is None and slot.pid is not None and len(self._backlog):
                self._give(slot)
        for slot in self._slots:
            starting = sum(other.pending is not None and other.pid is None for other in self._slots)
            if slot.pending is None and slot.pid is None and starting < len(self._backlog):
                self._start(slot)
        # a worker that is still being built when the last item ends is not waited for
        return len(self._backlog) > 0 or any(slot.entry for slot in self._slots)

    def _start(self, slot: _Slot) -> None:
        actor_class = self._ray.remote(_Host)
        slot.actor = actor_class.options(
            num_cpus=1, max_restarts=0, runtime_env={"env_vars": self._env}
        ).remote(self._make_worker)
        slot.pending = slot.actor.ready.remote()
        slot.deadline = time.monotonic() + self._start_timeout_s

    def _give(self, slot: _Slot) -> None:
        entry = self._backlog.take(slot.group, self._groups_beside(slot))
        assert entry is not None
        slot.entry, slot.group = entry, entry.group
        slot.pending = slot.actor.run.remote(entry.item)
        slot.deadline = time.monotonic() + self._timeout_s

    def _groups_beside(self, slot: _Slot) -> Counter[Hashable]:
        """How many other workers are on each group."""
        return Counter(
            other.group for other in self._slots if other is not slot and other.group is not None
        )

    # -- taking in results ----------------------------------------------------------------------

    def _collect(self) -> Iterator[Outcome]:
        """Wait for a call to end or a deadline to pass; deal with all that did."""
        waiting = {slot.pending: slot for slot in self._slots if slot.pending is not None}
        done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
        for ref in done:
            yield from self._finished(waiting[ref], ref)
        for slot in waiting.values():
            if slot.pending is not None and time.monotonic() > slot.deadline:
                yield from self._late(slot)

    def _finished(self, slot: _Slot, ref: Any) -> Iterator[Outcome]:
        try:
            value = self._ray.get(ref)
        except Exception as error:
            yield from self._failed(slot, self._describe(slot, error))
            return
        slot.pending = None
        if slot.entry is None:
            slot.pid = value
            self._failed_starts = 0
            return
        entry, slot.entry = slot.entry, None
        yield Outcome(item=entry.item, result=value, retries=entry.retries, worker=slot.index)

    def _late(self, slot: _Slot) -> Iterator[Outcome]:
        what = "the item did not finish" if slot.entry else "the worker was not ready"
        limit = self._timeout_s if slot.entry else self._start_timeout_s
        yield from self._failed(slot, f"Timeout: {what} within {limit:g} s.")

    def _failed(self, slot: _Slot, error: str) -> Iterator[Outcome]:
        """Drop the worker; run its item again or give it up."""
        entry = slot.entry
        self._kill(slot)
        if entry is None:
            self._failed_start(error)
            return
        logger.warning("%s failed (attempt %d):\n%s", entry.item, entry.retries + 1, error)
        if entry.retries >= self._max_retries:
            yield Outcome(item=entry.item, error=error, retries=entry.retries, worker=slot.index)
            return
        entry.retries += 1
        self._backlog.put(entry)

    def _failed_start(self, error: str) -> None:
        self._failed_starts += 1
        logger.warning(
            "a worker could not be started (%d in a row): %s", self._failed_starts, error
        )
        if self._failed_starts > self._max_retries:
            raise PoolError(
                f"No worker could be started in {self._failed_starts} attempts. Last one: {error}"
            )

    def _describe(self, slot: _Slot, error: Exception) -> str:
        if isinstance(error, self._ray.exceptions.RayTaskError):
            return _ANSI.sub("", str(error))  # the traceback inside the worker
        return f"The worker died. {error}\n{self._last_words(slot)}".strip()

    def _last_words(self, slot: _Slot) -> str:
        """Tail of the dead process's stderr, where it ran on this machine."""
        node = getattr(self._ray._private.worker, "_global_node", None)
        if slot.pid is None or node is None:
            return ""
        logs = Path(node.get_logs_dir_path())
        for file in logs.glob(f"worker-*-{slot.pid}.err"):
            lines = file.read_text(errors="replace").splitlines()[-15:]
            return "\n".join(line for line in lines if not line.startswith(":"))
        return ""

    # -- ending workers -------------------------------------------------------------------------

    def _kill(self, slot: _Slot) -> None:
        if slot.actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(slot.actor, no_restart=True)
        slot.actor = slot.pid = slot.pending = slot.entry = slot.group = None

    def _close_idle(self) -> None:
        closing = [s.actor.close.remote() for s in self._slots if s.pid is not None]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
