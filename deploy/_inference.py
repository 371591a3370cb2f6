"""One thread that owns the policy, and a short queue in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deploy.errors import ServerBusyError


class ServedPolicy(Protocol):
    """What the server serves; openpi's `BasePolicy` is one."""

    def infer(self, obs: dict[str, Any]) -> Mapping[str, Any]:
        """Answer an observation with a map that holds at least "actions" (horizon, dim)."""


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """An answer of the policy.

    Attributes:
        result: What the policy returned.
        infer_s: Seconds in the policy.
        queue_s: Seconds before that, behind other requests.
    """

    result: dict[str, Any]
    infer_s: float
    queue_s: float


@dataclass(frozen=True, kw_only=True)
class _Job:
    observation: dict[str, Any]
    future: asyncio.Future[Inferred]
    loop: asyncio.AbstractEventLoop
    submitted: float


class InferenceThread:
    """Runs one request after the other; the event loop stays free to answer everything else.

    The thread is a daemon: a policy that hangs cannot be interrupted, and must not keep the process
    from ending.

    Args:
        policy: Called from the one thread only.
        max_pending: Requests that may wait while another is worked on.
    """

    def __init__(self, policy: ServedPolicy, max_pending: int) -> None:
        self._policy = policy
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._max_pending = max_pending
        self._busy = 0  # touched by the event loop's thread only
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    async def infer(self, observation: dict[str, Any]) -> Inferred:
        """Ask the policy. A caller that is cancelled while waiting costs the policy nothing.

        Raises:
            ServerBusyError: `max_pending` requests are waiting already.
            Exception: Whatever the policy raised.
        """
        if self._busy > self._max_pending:
            raise ServerBusyError(
                f"{self._max_pending} requests are waiting already: ask less often, or raise "
                "--max_pending."
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Inferred] = loop.create_future()
        self._busy += 1
        self._jobs.put(
            _Job(observation=observation, future=future, loop=loop, submitted=time.monotonic())
        )
        try:
            return await future
        finally:
            self._busy -= 1

    def close(self) -> None:
        """Let the thread end after the request in progress."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.future.cancelled():
                continue
            started = time.monotonic()
            try:
                outcome: Inferred | Exception = Inferred(
                    result=dict(self._policy.infer(job.observation)),
                    infer_s=time.monotonic() - started,
                    queue_s=started - job.submitted,
                )
            except Exception as error:
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                job.loop.call_soon_threadsafe(_settle, job.future, outcome)


def _settle(future: asyncio.Future[Inferred], outcome: Inferred | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
