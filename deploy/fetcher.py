"""Fetches chunks in a thread, so that no control loop ever waits for a network."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from deploy._chunk_check import Array, ChunkRules, check_chunk
from deploy.client import PolicyClient
from deploy.errors import ContractMismatchError, DeployError
from deploy.metadata import ServerMetadata
from deploy.realtime import latent_of

logger = logging.getLogger(__name__)

_BACK_OFF_S = (0.05, 2.0)  # after the first failure in a row, and at most


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A chunk that has passed every check.

    Attributes:
        ticket: Of the request it answers.
        actions: (horizon, dim).
        latent: See `deploy.realtime`; None without.
        latency_s: From handing the observation over to having the checked chunk.
        server_ms: What the server says its policy took; None if it does not.
    """

    ticket: int
    actions: Array
    latent: NDArray[Any] | None = None
    latency_s: float
    server_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an observation got no chunk.

    Attributes:
        ticket: Of the request.
        error: What happened.
        latency_s: How long it took to happen.
    """

    ticket: int
    error: DeployError
    latency_s: float


Request = Callable[[], Mapping[str, Any]]
"""Builds a request; reading cameras may take a while. May raise `DeployError`."""


class ChunkSource(Protocol):
    """Where an executor gets chunks from. Every call returns at once."""

    def submit(self, ticket: int, request: Request) -> bool:
        """Hand a request over; False if the former one is still being worked on."""

    def poll(self) -> Answer | Failure | None:
        """Return an outcome once; None if there is none yet."""

    def close(self) -> None:
        """Stop fetching."""


def back_off_s(failures: int) -> float:
    """Return how long to leave the server alone after so many failures in a row.

    >>> [back_off_s(n) for n in (0, 1, 2, 3, 20)]
    [0.0, 0.05, 0.1, 0.2, 2.0]
    """
    least, most = _BACK_OFF_S
    return min(most, least * 2.0 ** (failures - 1)) if failures else 0.0


class ChunkFetcher:
    """Asks a policy server from a thread of its own; connects anew after failures.

    Args:
        client: Used by the thread alone from now on.
        rules: What an answer must be.
        expected: The server's metadata when the episode was planned. A server that comes back with
            others serves another policy, and is not used.
        first_timeout_s: For the first answer, which may include compilation.
        sleep: For tests.
    """

    def __init__(
        self,
        client: PolicyClient,
        rules: ChunkRules,
        *,
        expected: ServerMetadata,
        first_timeout_s: float = 30.0,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._client = client
        self._rules = rules
        self._expected = expected
        self._timeout_s: float | None = first_timeout_s
        self._failures = 0
        self._jobs: queue.Queue[tuple[int, Request, float] | None] = queue.Queue()
        self._outcomes: queue.Queue[Answer | Failure] = queue.Queue()
        self._free = threading.Event()
        self._free.set()
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._thread = threading.Thread(target=self._work, name="chunk-fetcher", daemon=True)
        self._thread.start()

    def submit(self, ticket: int, request: Request) -> bool:
        """See `ChunkSource`. Not free while it leaves a failing server alone, either."""
        if not self._free.is_set():
            return False
        self._free.clear()
        self._jobs.put((ticket, request, time.monotonic()))
        return True

    def poll(self) -> Answer | Failure | None:
        """See `ChunkSource`."""
        try:
            return self._outcomes.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop; a request under way is left to end at its deadline."""
        self._closed.set()
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            outcome = self._fetch(*job)
            self._failures = self._failures + 1 if isinstance(outcome, Failure) else 0
            self._outcomes.put(outcome)
            if self._failures:
                self._sleep(back_off_s(self._failures))
            self._free.set()
        self._client.close()

    def _fetch(self, ticket: int, request: Request, submitted: float) -> Answer | Failure:
        try:
            answer = self._client.infer(request(), self._timeout_s)
            if self._client.metadata != self._expected:
                raise ContractMismatchError(
                    "The policy server came back with other metadata: it serves another policy "
                    "now. Start the episode anew."
                )
            actions = check_chunk(answer, self._rules)
        except DeployError as error:
            return Failure(ticket=ticket, error=error, latency_s=time.monotonic() - submitted)
        except Exception as error:  # a thread that dies would look like a slow server
            logger.exception("fetching a chunk failed")
            wrapped = DeployError(f"Fetching a chunk failed: {type(error).__name__}: {error}")
            return Failure(ticket=ticket, error=wrapped, latency_s=time.monotonic() - submitted)
        self._timeout_s = None
        return Answer(
            ticket=ticket,
            actions=actions,
            latent=latent_of(answer, len(actions)),
            latency_s=time.monotonic() - submitted,
            server_ms=_server_ms(answer),
        )


def _server_ms(answer: Mapping[str, Any]) -> float | None:
    timing = answer.get("server_timing")
    value = timing.get("infer_ms") if isinstance(timing, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None
